package follow_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/audit/follow"
	"github.com/keyherald/keyherald/keyheraldtest/sealedlog"
)

// log is a log of n leaves; leaves returns parts of it as a database does.
func log(n int64) (records []audit.Record) {
	for i := range n {
		records = append(records, sealedlog.Record(i, time.UnixMilli(1764590400000), "relay", audit.TriggerSent, "x", "", audit.Accepted, `{}`))
	}
	return records
}

func leaves(records *[]audit.Record) func(context.Context, int64, int64) ([]audit.Record, error) {
	return func(_ context.Context, first, end int64) ([]audit.Record, error) {
		n := int64(len(*records))
		return (*records)[min(first, n):min(end, n)], nil
	}
}

func TestWhatIsWrittenIsRememberedAfterItWasWritten(t *testing.T) {
	records := log(follow.Batch*2 + 7)
	path := filepath.Join(t.TempDir(), "state")
	for _, room := range []int{0, 100, 1 << 30} {
		state, err := follow.LoadState(path, "l")
		if err != nil {
			t.Fatal(err)
		}
		before := state
		out := &pipe{room: room}
		f := follow.Follower{Leaves: leaves(&records), Encode: export.JSONLine, Out: out, State: state, Path: path, Once: true}
		err = f.Run(t.Context())
		state, loadErr := follow.LoadState(path, "l")
		switch {
		case loadErr != nil:
			t.Fatal(loadErr)
		case room < 1<<30 && (!errors.Is(err, errBroken) || state != before):
			t.Errorf("what could not be written is remembered: %+v (%v)", state, err)
		case room == 1<<30 && (err != nil || state.Next != int64(len(records)) || strings.Count(out.String(), "\n") != len(records)):
			t.Errorf("after %d lines it remembers %+v (%v)", strings.Count(out.String(), "\n"), state, err)
		}
	}
}

var errBroken = errors.New("nobody reads")

// pipe has room for so many bytes.
type pipe struct {
	bytes.Buffer
	room int
}

func (p *pipe) Write(raw []byte) (int, error) {
	if p.room -= len(raw); p.room < 0 {
		return 0, errBroken
	}
	return p.Buffer.Write(raw)
}

func TestALogThatIsNotTheSameIsNotFollowed(t *testing.T) {
	other := log(20)
	other[9] = sealedlog.Record(9, time.UnixMilli(1), "relay", audit.TriggerSent, "another", "", audit.Accepted, `{}`)
	changed := log(20)
	changed[12].Body = append(bytes.Clone(changed[12].Body), ' ')
	gone := log(20)
	gone[12].Body = nil
	gap := append(log(12), log(20)[13:]...)
	for name, test := range map[string]struct {
		records []audit.Record
		want    error
	}{
		"a shorter one":                     {log(5), follow.ErrWentBack},
		"an empty one":                      {nil, follow.ErrWentBack},
		"one with another leaf at the seam": {other, follow.ErrWentBack},
		"one with changed bytes":            {changed, follow.ErrAltered},
		"one whose event is gone":           {gone, follow.ErrAltered},
		"one with a gap":                    {gap, follow.ErrAltered},
		"the same":                          {log(20), nil},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			f := follow.Follower{Leaves: leaves(&test.records), Encode: export.JSONLine, Out: &out, State: follow.After("l", log(10)[9]), Once: true}
			if err := f.Run(t.Context()); !errors.Is(err, test.want) || (out.Len() > 0) != (test.want == nil) {
				t.Errorf("it ends with %v, and prints %s", err, &out)
			}
		})
	}
}

func TestAReadingThatFailsIsTriedAgain(t *testing.T) {
	records := log(3)
	broken := errors.New("the database is away")
	var heard []error
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	read := leaves(&records)
	tries := 0
	f := follow.Follower{Encode: export.JSONLine, Out: &out, State: follow.Begin("l"), Interval: time.Millisecond, Failed: func(err error) { heard = append(heard, err) },
		Leaves: func(ctx context.Context, first, end int64) ([]audit.Record, error) {
			switch tries++; tries {
			case 1, 2:
				return nil, broken
			case 4:
				cancel()
			}
			return read(ctx, first, end)
		}}
	if err := f.Run(ctx); err != nil || len(heard) != 2 || !errors.Is(heard[0], broken) || strings.Count(out.String(), "\n") != 3 {
		t.Errorf("it ends with %v; heard %v; printed %s", err, heard, &out)
	}
	f.Once, tries = true, 0
	if err := f.Run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("once, it ends with %v", err)
	}
}

func TestAStateThatIsNoneIsNotGuessedAt(t *testing.T) {
	for _, state := range []string{"", "x", "{}", `{"format":"keyherald-audit-follow/2","log":"l","next":0}`, `{"format":"keyherald-audit-follow/1","log":"other","next":0}`,
		`{"format":"keyherald-audit-follow/1","log":"l","next":1}`, `{"format":"keyherald-audit-follow/1","log":"l","next":-1}`, `{"format":"keyherald-audit-follow/1","log":"l","next":0,"more":1}`,
		`{"format":"keyherald-audit-follow/1","log":"l","next":1,"last_leaf_hash":"AAAA"}`, `{"format":"keyherald-audit-follow/1","log":"l","next":0} {}`} {
		path := filepath.Join(t.TempDir(), "state")
		if err := os.WriteFile(path, []byte(state), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := follow.LoadState(path, "l"); err == nil || !strings.Contains(err.Error(), "--from") {
			t.Errorf("%q is taken for %+v (%v)", state, s, err)
		}
	}
}

func FuzzParseState(f *testing.F) {
	f.Add([]byte(`{"format":"keyherald-audit-follow/1","log":"l","next":1,"last_leaf_hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`))
	f.Add([]byte(`{"format":"keyherald-audit-follow/1","log":"l","next":0}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := follow.ParseState(raw, "l")
		if err != nil {
			return
		}
		if s.Next < 0 || s.Log != "l" || (s.Next == 0) != (s.LastLeafHash == "") {
			t.Errorf("%s is taken for %+v", raw, s)
		}
	})
}
