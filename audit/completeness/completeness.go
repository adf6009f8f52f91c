// Package completeness compares what key-management systems say with what the audit log says: versions of a key without an
// event, and events without a version. It asks for metadata alone.
package completeness

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/kms"
)

// Place is where a user's key lives. KMS is empty where no rotation in the database says it.
type Place struct {
	User string `json:"user"`
	KMS  string `json:"kms"`
	Path string `json:"path"`
}

// Row is a rotation in the database.
type Row struct {
	Place
	Rotation, Version string
}

// Kind is what does not agree.
type Kind string

// The kinds.
const (
	VersionWithoutEvent Kind = "version_without_event"
	EventWithoutVersion Kind = "event_without_version"
	RowWithoutEvent     Kind = "rotation_without_event"
	EventWithoutRow     Kind = "event_without_rotation"
)

// Difference is one thing that does not agree.
type Difference struct {
	Kind     Kind   `json:"kind"`
	Version  string `json:"version,omitempty"`
	Rotation string `json:"rotation,omitempty"`
}

// Result is what was found of one place.
type Result struct {
	Place
	// Compared are the versions that both sides were asked for, and Before those that are older than the first event:
	// from before Keyherald knew the key.
	Compared    int          `json:"compared"`
	Before      int          `json:"before"`
	Differences []Difference `json:"differences,omitempty"`
	// Limited says why not all could be compared; empty where all was.
	Limited string `json:"limited,omitempty"`
}

// Book is what the log and the database know, by user and path.
type Book struct {
	places map[userPath]*entry
	// Redacted are the notifications whose detail is gone: which path and version they were about is not known.
	Redacted int
}

type userPath struct{ user, path string }

type entry struct {
	kms map[string]bool
	// versions are those with an event; rotations their ids.
	versions  map[string]bool
	rotations map[string]string
	rows      map[string]string
}

func (b *Book) entry(user, path string) *entry {
	key := userPath{user, path}
	if b.places[key] == nil {
		b.places[key] = &entry{map[string]bool{}, map[string]bool{}, map[string]string{}, map[string]string{}}
	}
	return b.places[key]
}

// Actions are the actions of the events that Read needs.
func Actions() []string {
	return []string{string(audit.NotificationAccepted), string(audit.ChangeFound), string(audit.RotationAsked), string(audit.ProgressReported)}
}

// Read makes the book. Events are those of Actions, in their order; others do no harm. The version of a key that a
// device made itself is what it reports.
func Read(events iter.Seq2[audit.Record, error], rows []Row) (*Book, error) {
	b := &Book{places: map[userPath]*entry{}}
	redacted, asked := map[string]bool{}, map[string]*entry{}
	for record, err := range events {
		if err != nil {
			return nil, err
		}
		fields, err := audit.ParseBody(record.Body)
		if err != nil {
			return nil, fmt.Errorf("event %s is not as keyherald wrote it (see `keyherald audit verify`): %w", record.ID, err)
		}
		made := asked[fields.Rotation]
		if !opens(fields) && (fields.Action != audit.ProgressReported || made == nil) {
			continue
		}
		var d struct {
			Path, Version string
			KMSVersion    string `json:"kms_version"`
		}
		if record.Detail == nil {
			b.Redacted++
			redacted[fields.Rotation] = true
			continue
		}
		if err := json.Unmarshal(record.Detail, &d); err != nil {
			return nil, fmt.Errorf("the detail of event %s is not as keyherald wrote it (see `keyherald audit verify`): %w", record.ID, err)
		}
		if fields.Action == audit.ProgressReported {
			if d.KMSVersion != "" {
				made.versions[d.KMSVersion], made.rotations[fields.Rotation] = true, d.KMSVersion
			}
			continue
		}
		e := b.entry(fields.Subject, d.Path)
		if fields.Action == audit.RotationAsked {
			asked[fields.Rotation], e.rotations[fields.Rotation] = e, ""
		} else {
			e.versions[d.Version], e.rotations[fields.Rotation] = true, d.Version
		}
	}
	for _, row := range rows {
		e := b.entry(row.User, row.Path)
		e.kms[row.KMS], e.rows[row.Rotation] = true, row.Version
		if redacted[row.Rotation] {
			// That there was an event is known, and the row says of which version.
			e.versions[row.Version], e.rotations[row.Rotation] = true, row.Version
		}
	}
	return b, nil
}

// opens reports whether an event tells of a rotation that it, or one before it, opened.
func opens(fields audit.Fields) bool {
	switch fields.Action {
	case audit.NotificationAccepted, audit.ChangeFound, audit.RotationAsked:
		return fields.Outcome == audit.Accepted
	}
	return false
}

// own are the differences between log and database.
func (e *entry) own() (found []Difference) {
	for _, rotation := range slices.Sorted(maps.Keys(e.rows)) {
		if _, ok := e.rotations[rotation]; !ok {
			found = append(found, Difference{RowWithoutEvent, e.rows[rotation], rotation})
		}
	}
	for _, rotation := range slices.Sorted(maps.Keys(e.rotations)) {
		if _, ok := e.rows[rotation]; !ok {
			found = append(found, Difference{EventWithoutRow, e.rotations[rotation], rotation})
		}
	}
	return found
}

// compare holds the versions with events against those of the KMS. With whole it lists all that the KMS has, and else the
// current one alone, so that nothing can be said of events without a version.
func (r *Result) compare(events map[string]bool, listed []string, whole bool) {
	for _, version := range listed {
		switch {
		case events[version]:
			r.Compared++
		case before(version, events):
			r.Before++
		default:
			r.Compared++
			r.Differences = append(r.Differences, Difference{Kind: VersionWithoutEvent, Version: version})
		}
	}
	if !whole {
		return
	}
	for _, version := range slices.SortedFunc(maps.Keys(events), older) {
		if !slices.Contains(listed, version) {
			r.Compared++
			r.Differences = append(r.Differences, Difference{Kind: EventWithoutVersion, Version: version})
		}
	}
}

func older(a, b string) int {
	if newer, ordered := kms.NewerVersion(a, b); ordered {
		if newer {
			return 1
		} else if a == b {
			return 0
		}
		return -1
	}
	return cmp.Compare(a, b)
}

// before tells whether a version is older than all that have an event.
func before(version string, events map[string]bool) bool {
	for known := range events {
		if newer, ordered := kms.NewerVersion(known, version); !ordered || !newer {
			return false
		}
	}
	return len(events) > 0
}

const (
	// askers is how many questions are under way at once.
	askers = 4
	// patience is how many times in a row a KMS may not be available before it is asked no more.
	patience = 3
)

// Compare asks each KMS for its versions of every place that the book knows, and returns a result for each place, by
// user and path. It ends early with ctx; what was not asked says so.
func (b *Book) Compare(ctx context.Context, systems map[string]kms.Metadata) []Result {
	var results []Result
	for _, key := range slices.SortedFunc(maps.Keys(b.places), func(a, b userPath) int { return cmp.Or(cmp.Compare(a.user, b.user), cmp.Compare(a.path, b.path)) }) {
		e := b.places[key]
		names := slices.Sorted(maps.Keys(e.kms))
		if len(names) == 0 {
			// Only the log knows the place, and it does not name the KMS: one is no choice.
			names = append(names, "")
			if len(systems) == 1 {
				names = slices.Collect(maps.Keys(systems))
			}
		}
		for i, name := range names {
			r := Result{Place: Place{key.user, name, key.path}}
			if i == 0 {
				r.Differences = e.own()
			}
			if len(names) > 1 {
				r.Limited = "the path is known in several KMS, and events do not name theirs: their versions are compared with each"
			}
			results = append(results, r)
		}
	}
	a := asker{systems: systems, failed: map[string]int{}}
	var wait sync.WaitGroup
	next := make(chan *Result)
	for range askers {
		wait.Go(func() {
			for r := range next {
				a.ask(ctx, r, b.places[userPath{r.User, r.Path}].versions)
			}
		})
	}
	for i := range results {
		next <- &results[i]
	}
	close(next)
	wait.Wait()
	return results
}

type asker struct {
	systems map[string]kms.Metadata
	mu      sync.Mutex // guards failed
	failed  map[string]int
}

// down reports whether a KMS is asked no more.
func (a *asker) down(system string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failed[system] >= patience
}

func (a *asker) answered(system string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if errors.Is(err, kms.ErrUnavailable) {
		a.failed[system]++
	} else {
		a.failed[system] = 0
	}
}

func (a *asker) ask(ctx context.Context, r *Result, events map[string]bool) {
	limit := func(why string) {
		if r.Limited != "" {
			why = r.Limited + "; " + why
		}
		r.Limited = why
	}
	metadata, ok := a.systems[r.KMS]
	switch {
	case ctx.Err() != nil:
		limit("not asked: time was up")
		return
	case r.KMS == "":
		limit("not asked: the log alone knows the path, and does not name the KMS")
		return
	case !ok:
		limit("not asked: the configuration has no kms." + r.KMS)
		return
	case a.down(r.KMS):
		limit(fmt.Sprintf("not asked: the KMS was not available %d times in a row", patience))
		return
	}
	lister, lists := metadata.(kms.Lister)
	var listed []string
	var err error
	if lists {
		listed, err = lister.Versions(ctx, r.Path)
	} else {
		var current kms.Description
		if current, err = metadata.Current(ctx, r.Path); err == nil {
			listed = []string{current.Version}
			limit("this KMS does not list versions: the current one alone was compared")
		}
	}
	a.answered(r.KMS, err)
	switch {
	case errors.Is(err, kms.ErrNotFound):
		r.compare(events, nil, true)
	case err != nil:
		limit("not compared: " + err.Error())
	default:
		r.compare(events, listed, lists)
	}
}
