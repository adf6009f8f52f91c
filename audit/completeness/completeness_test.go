package completeness_test

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/completeness"
	"github.com/keyherald/keyherald/keyheraldtest/sealedlog"
	"github.com/keyherald/keyherald/kms"
)

// system is a KMS with versions by path; what it has none of it has not.
type system struct {
	kms.Metadata
	versions map[string][]string
	err      error
	asked    atomic.Int32
}

func (s *system) Current(_ context.Context, path string) (kms.Description, error) {
	s.asked.Add(1)
	versions := s.versions[path]
	if s.err != nil {
		return kms.Description{}, s.err
	}
	if len(versions) == 0 {
		return kms.Description{}, kms.ErrNotFound
	}
	return kms.Description{Path: path, Version: versions[len(versions)-1]}, nil
}

type lister struct{ *system }

func (l lister) Versions(ctx context.Context, path string) ([]string, error) {
	if _, err := l.Current(ctx, path); err != nil {
		return nil, err
	}
	return l.versions[path], nil
}

const (
	alice = "@alice:example.org"
	path  = "keyherald/alice"
)

// event is an accepted notification that opened rotation n.
func event(n int, user, path, version string) audit.Record {
	return sealedlog.Record(int64(n), time.Now(), "source:x", audit.NotificationAccepted, user, fmt.Sprint("r", n), audit.Accepted,
		fmt.Sprintf(`{"path":%q,"version":%q}`, path, version))
}

func row(n int, user, name, path, version string) completeness.Row {
	return completeness.Row{Place: completeness.Place{User: user, KMS: name, Path: path}, Rotation: fmt.Sprint("r", n), Version: version}
}

func events(records ...audit.Record) iter.Seq2[audit.Record, error] {
	return func(yield func(audit.Record, error) bool) {
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func compare(t *testing.T, records []audit.Record, rows []completeness.Row, systems map[string]kms.Metadata) []completeness.Result {
	t.Helper()
	book, err := completeness.Read(events(records...), rows)
	if err != nil {
		t.Fatal(err)
	}
	return book.Compare(t.Context(), systems)
}

func TestWhatDoesNotAgreeIsNamed(t *testing.T) {
	gone := event(2, alice, path, "2")
	gone.Detail, gone.Salt = nil, nil
	both := []audit.Record{event(1, alice, path, "1"), event(2, alice, path, "2")}
	rows := []completeness.Row{row(1, alice, "k", path, "1"), row(2, alice, "k", path, "2")}
	for _, test := range []struct {
		name     string
		events   []audit.Record
		rows     []completeness.Row
		versions []string
		want     []string
		compared int
		before   int
	}{
		{"all agrees", both, rows, []string{"1", "2"}, nil, 2, 0},
		{"versions of before the first event are no difference", both[1:], rows[1:], []string{"1", "2"}, nil, 1, 1},
		{"a version that nobody notified of", both, rows, []string{"1", "2", "3"}, []string{"version_without_event 3"}, 3, 0},
		{"a version in between", []audit.Record{both[0], event(2, alice, path, "3")}, []completeness.Row{rows[0], row(2, alice, "k", path, "3")}, []string{"1", "2", "3"}, []string{"version_without_event 2"}, 3, 0},
		{"a version that is gone", both, rows, []string{"2"}, []string{"event_without_version 1"}, 2, 0},
		{"a secret that is gone", both, rows, nil, []string{"event_without_version 1", "event_without_version 2"}, 2, 0},
		{"a version that has the same digits and another name", both, rows, []string{"1", "2", "02"}, []string{"version_without_event 02"}, 3, 0},
		{"a version without an order", both, rows, []string{"1", "2", "x"}, []string{"version_without_event x"}, 3, 0},
		{"a rotation that no event opened", both[:1], rows, []string{"1", "2"}, []string{"rotation_without_event 2", "version_without_event 2"}, 2, 0},
		{"an event whose rotation is gone", both, rows[:1], []string{"1", "2"}, []string{"event_without_rotation 2"}, 2, 0},
		{"an event whose detail was redacted counts by its rotation", []audit.Record{both[0], gone}, rows, []string{"1", "2"}, nil, 2, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			results := compare(t, test.events, test.rows, map[string]kms.Metadata{"k": lister{&system{versions: map[string][]string{path: test.versions}}}})
			if len(results) != 1 || results[0].Limited != "" || results[0].Place != (completeness.Place{User: alice, KMS: "k", Path: path}) {
				t.Fatalf("the results are %+v", results)
			}
			var found []string
			for _, d := range results[0].Differences {
				found = append(found, string(d.Kind)+" "+d.Version)
			}
			if !slices.Equal(found, test.want) || results[0].Compared != test.compared || results[0].Before != test.before {
				t.Errorf("found %q; %d compared, %d before", found, results[0].Compared, results[0].Before)
			}
		})
	}
}

func TestWhatCannotBeComparedSaysWhy(t *testing.T) {
	one := []audit.Record{event(1, alice, path, "1")}
	rows := []completeness.Row{row(1, alice, "k", path, "1")}
	has := map[string][]string{path: {"1", "2"}}
	for _, test := range []struct {
		name    string
		events  []audit.Record
		rows    []completeness.Row
		systems map[string]kms.Metadata
		limited string
		want    int
	}{
		{"a KMS that does not list", one, rows, map[string]kms.Metadata{"k": &system{versions: has}}, "does not list versions", 1},
		{"a KMS that is not configured", one, rows, nil, "the configuration has no kms.k", 0},
		{"a KMS that refuses", one, rows, map[string]kms.Metadata{"k": lister{&system{err: kms.ErrForbidden}}}, "refuses these credentials", 0},
		{"a path that the log alone knows, of two KMS", one, nil, map[string]kms.Metadata{"k": lister{&system{}}, "l": lister{&system{}}}, "does not name the KMS", 1},
		{"a path that the log alone knows, of one", one, nil, map[string]kms.Metadata{"k": lister{&system{versions: map[string][]string{path: {"1"}}}}}, "", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := compare(t, test.events, test.rows, test.systems)[0]
			if (r.Limited == "") != (test.limited == "") || !strings.Contains(r.Limited, test.limited) || len(r.Differences) != test.want {
				t.Errorf("it is %+v", r)
			}
		})
	}
}

func TestAKMSThatIsNotAvailableIsNotAskedForever(t *testing.T) {
	var records []audit.Record
	var rows []completeness.Row
	for i := range 500 {
		user := fmt.Sprintf("@u%03d:example.org", i)
		records, rows = append(records, event(i, user, "p", "1")), append(rows, row(i, user, []string{"down", "up"}[i%2], "p", "1"))
	}
	down, up := &system{err: kms.ErrUnavailable}, &system{versions: map[string][]string{"p": {"1"}}}
	results := compare(t, records, rows, map[string]kms.Metadata{"down": lister{down}, "up": lister{up}})
	if n := down.asked.Load(); n < 3 || n > 8 {
		t.Errorf("the one that is down was asked %d times", n)
	}
	limited := 0
	for _, r := range results {
		if len(r.Differences) > 0 || (r.KMS == "up") != (r.Limited == "") {
			t.Fatalf("it is %+v", r)
		}
		if r.Limited != "" {
			limited++
		}
	}
	if up.asked.Load() != 250 || limited != 250 || len(results) != 500 {
		t.Errorf("%d results, %d limited; the one that is up was asked %d times", len(results), limited, up.asked.Load())
	}
}

func TestWhatIsNotAskedInTimeSaysSo(t *testing.T) {
	book, err := completeness.Read(events(event(1, alice, path, "1")), []completeness.Row{row(1, alice, "k", path, "1")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := book.Compare(ctx, map[string]kms.Metadata{"k": lister{&system{}}}); r[0].Limited != "not asked: time was up" {
		t.Errorf("it is %+v", r)
	}
}

func TestAPathInTwoKMSIsComparedWithBoth(t *testing.T) {
	records := []audit.Record{event(1, alice, path, "1")}
	rows := []completeness.Row{row(1, alice, "k", path, "1"), row(1, alice, "l", path, "1")}
	results := compare(t, records, rows, map[string]kms.Metadata{"k": lister{&system{versions: map[string][]string{path: {"1"}}}}, "l": lister{&system{versions: map[string][]string{path: {"1"}}}}})
	if len(results) != 2 || !strings.Contains(results[0].Limited, "several KMS") || results[1].KMS != "l" {
		t.Errorf("they are %+v", results)
	}
}

func TestAnEventThatSomebodyChangedIsAnError(t *testing.T) {
	broken := event(1, alice, path, "1")
	broken.Body = nil
	if _, err := completeness.Read(events(broken), nil); err == nil || !strings.Contains(err.Error(), broken.ID.String()) {
		t.Error(err)
	}
	broken = event(1, alice, path, "1")
	broken.Detail = []byte("{")
	if _, err := completeness.Read(events(broken), nil); err == nil || !strings.Contains(err.Error(), broken.ID.String()) {
		t.Error(err)
	}
}
