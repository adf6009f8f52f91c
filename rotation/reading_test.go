package rotation

import (
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestAReadIsCurrentCoveredOrOutdated(t *testing.T) {
	now := time.Now()
	old, recent := now.Add(-2*time.Hour), now.Add(-time.Minute)
	done := func(version string) Standing { return Standing{Version: version, Created: old} }
	made := func(version, read string, at time.Time) Standing {
		return Standing{Version: version, Read: read, Reason: ReasonDisclosed, Open: version == "", Created: at}
	}
	for _, test := range []struct {
		name     string
		version  string
		standing []Standing
		seen     string
		want     Judged
	}{
		{"of a key that nothing is known of", "", nil, "", Judged{Reading: ReadCurrent}},
		{"of a version at a place that nothing is known of", "3", nil, "", Judged{Reading: ReadCurrent, Version: "3"}},
		{"of the version that was rotated last", "3", []Standing{done("3"), done("2")}, "", Judged{Reading: ReadCurrent, Version: "3"}},
		{"of no named version is of the newest", "", []Standing{done("3"), done("2")}, "", Judged{Reading: ReadCurrent, Version: "3"}},
		{"of the newest by number, though an older one was told of last", "3", []Standing{done("2"), done("3")}, "", Judged{Reading: ReadCurrent, Version: "3"}},
		{"of the one that was seen in the KMS alone", "3", nil, "3", Judged{Reading: ReadCurrent, Version: "3"}},
		{"of one that was seen in the KMS and not told of yet", "", []Standing{done("2")}, "3", Judged{Reading: ReadCurrent, Version: "3"}},
		{"of one that nobody told of yet", "4", []Standing{done("3")}, "3", Judged{Reading: ReadCurrent, Version: "4"}},
		{"of an older one", "2", []Standing{done("3"), done("2")}, "", Judged{Reading: ReadOutdated, Version: "2"}},
		{"of an older one that was never told of", "1", []Standing{done("3")}, "", Judged{Reading: ReadOutdated, Version: "1"}},
		{"of one that is older than what was seen", "2", nil, "3", Judged{Reading: ReadOutdated, Version: "2"}},
		{"of a known version without an order that is not the last", "aa", []Standing{done("bb"), done("aa")}, "", Judged{Reading: ReadOutdated, Version: "aa"}},
		{"of the version without an order that was told of last", "bb", []Standing{done("bb"), done("aa")}, "aa", Judged{Reading: ReadCurrent, Version: "bb"}},
		{"of what was seen before the rotations", "00", []Standing{done("bb")}, "00", Judged{Reading: ReadOutdated, Version: "00"}},
		{"of a version without an order that nobody told of", "cc", []Standing{done("bb"), done("aa")}, "", Judged{Reading: ReadCurrent, Version: "cc"}},
		{"of a version that a rotation was opened for", "3", []Standing{made("", "3", recent), done("3")}, "", Judged{Reading: ReadCovered, Version: "3"}},
		{"of a version that a rotation was opened for, and which is done", "3", []Standing{made("4", "3", recent), done("3")}, "", Judged{Reading: ReadCovered, Version: "3"}},
		{"of the current one while a key is being made for another cause", "3", []Standing{{Reason: ReasonCompromise, Open: true, Created: old}, done("3")}, "", Judged{Reading: ReadCovered, Version: "3"}},
		{"of the current one while a key is being made that is not urgent", "3", []Standing{{Open: true, Created: recent}, done("3")}, "", Judged{Reading: ReadCurrent, Version: "3"}},
		{"of an unknown version without an order while a key is being made", "cc", []Standing{made("", "bb", recent), done("bb")}, "", Judged{Reading: ReadCovered, Version: "cc"}},
		{"of an older one while a key is being made", "2", []Standing{made("", "3", recent), done("3")}, "", Judged{Reading: ReadOutdated, Version: "2"}},
		{"of the key that is being made", "4", []Standing{made("", "3", recent), done("3")}, "", Judged{Reading: ReadCurrent, Version: "4", Again: true}},
		{"of the key that was made a moment ago", "4", []Standing{made("4", "3", recent), done("3")}, "", Judged{Reading: ReadCurrent, Version: "4", Again: true}},
		{"of the key that was made long ago", "4", []Standing{made("4", "3", old), done("3")}, "", Judged{Reading: ReadCurrent, Version: "4"}},
		{"of a key whose rotation was cancelled", "4", []Standing{{Read: "4", Reason: ReasonDisclosed, Created: old}, done("4")}, "", Judged{Reading: ReadCovered, Version: "4"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := JudgeRead(test.version, test.standing, test.seen, now); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

// However often and in whatever order reads of numbered versions are told, each version opens one rotation at most, and
// none that is older than a known one.
func TestManyReadsOfAVersionOpenOneRotation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Now()
		var standing []Standing
		newest := 0
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "minutes")) * time.Minute)
			version := rapid.IntRange(0, 5).Draw(t, "version")
			if rapid.Bool().Draw(t, "change") && version > 0 {
				standing, newest = append([]Standing{{Version: strconv.Itoa(version), Created: now}}, standing...), max(newest, version)
				continue
			}
			name := ""
			if version > 0 {
				name = strconv.Itoa(version)
			}
			got := JudgeRead(name, standing, "", now)
			switch got.Reading {
			case ReadCurrent:
				for _, s := range standing {
					if got.Version != "" && s.Read == got.Version {
						t.Fatalf("%q opened a second rotation beside %+v", got.Version, standing)
					}
				}
				if number, _ := strconv.Atoi(got.Version); number < newest {
					t.Fatalf("%q opened a rotation beside %d", got.Version, newest)
				}
				standing = append([]Standing{{Read: got.Version, Reason: ReasonDisclosed, Open: true, Created: now}}, standing...)
			case ReadCovered:
				if s := standing[got.Covering]; s.Read != got.Version && (!s.Open || s.Version != "") {
					t.Fatalf("%q is covered by %+v", got.Version, s)
				}
			case ReadOutdated:
				if number, _ := strconv.Atoi(got.Version); name == "" || number >= newest {
					t.Fatalf("%q is outdated beside %d", name, newest)
				}
			}
			if rapid.Bool().Draw(t, "made") {
				for i := range standing {
					if standing[i].Open && standing[i].Version == "" {
						newest++
						standing[i].Version, standing[i].Open = strconv.Itoa(newest), false
						break
					}
				}
			}
		}
	})
}
