package rotation

import "time"

// Reading is what it comes to that somebody who is not the user's device read his key.
type Reading int

// The readings: the current version was read, as far as is known, so a new key is due; one is being made for it already,
// or was; the version was not the current one any more.
const (
	ReadCurrent Reading = iota + 1
	ReadCovered
	ReadOutdated
)

// Standing is a rotation at the place of a key that was read, as the rule sees it.
type Standing struct {
	// Version is empty while the device makes the key.
	Version string
	// Read is the version whose reading opened the rotation; empty for every other cause.
	Read    string
	Reason  Reason
	Open    bool
	Created time.Time
}

// Judged is a reading with what it is about.
type Judged struct {
	Reading Reading
	// Version is the one that was read: where the KMS named none, the newest that is known, or empty for none.
	Version string
	// Covering is the index of the rotation that covers it.
	Covering int
	// Again says that a key of this place was made anew for the same reason within the last hour: either word of the old
	// key came late, or somebody reads each new one, and then making another gains nothing.
	Again bool
}

// ReadAgainWindow is how soon after a rotation for the same reason a further read is left to people.
const ReadAgainWindow = time.Hour

// JudgeRead says what a read of a version comes to beside the rotations at its place, newest first, and the version that
// was seen last in the KMS, or empty. version is empty where the KMS does not say which one was read: then it was the
// current one. A version that names no order and was never told of counts as the current one, since its own notification
// may come later.
func JudgeRead(version string, standing []Standing, seen string, now time.Time) Judged {
	newest := newestVersion(standing, seen)
	known := version == seen && seen != ""
	if version == "" {
		version = newest
	}
	pending, again := -1, false
	for i, s := range standing {
		if version != "" && s.Read == version {
			return Judged{Reading: ReadCovered, Version: version, Covering: i}
		}
		known = known || s.Version == version
		if !s.Reason.Urgent() {
			continue
		}
		again = again || now.Sub(s.Created) < ReadAgainWindow
		if s.Open && s.Version == "" && pending < 0 {
			pending = i
		}
	}
	switch {
	case version != newest && (known || strictlyNewer(newest, version)):
		return Judged{Reading: ReadOutdated, Version: version}
	case pending >= 0 && !strictlyNewer(version, newest):
		return Judged{Reading: ReadCovered, Version: version, Covering: pending}
	}
	return Judged{Reading: ReadCurrent, Version: version, Again: again}
}

// newestVersion is the newest that is known: by number where they are numbers, and else the one that was told of last.
func newestVersion(standing []Standing, seen string) string {
	newest := ""
	for _, s := range standing {
		if s.Version != "" && (newest == "" || strictlyNewer(s.Version, newest)) {
			newest = s.Version
		}
	}
	if newest == "" || strictlyNewer(seen, newest) {
		return seen
	}
	return newest
}

// strictlyNewer is Newer between versions that name an order.
func strictlyNewer(version, than string) bool {
	return Newer(version, than) && !Newer(than, version)
}
