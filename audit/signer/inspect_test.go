package signer_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/keyherald/keyherald/keyheraldtest"
)

// What is changed far behind what the next batch is built on is found by looking over the whole log; sealing goes on.
func TestTheSignerLooksOverTheWholeLogAndSaysWhatWasAltered(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		statement, problem, first string
	}{
		"a node that nothing is built on": {"UPDATE audit_node SET hash = sha256(hash) WHERE level = 1 AND n = 1", "altered", "2"},
		"an event":                        {"UPDATE audit_event SET body = body || ' ' WHERE id = (SELECT event_id FROM audit_leaf WHERE leaf_index = 3)", "altered", "3"},
		"a detail":                        {"UPDATE audit_detail SET detail = '{}' WHERE event_id = (SELECT event_id FROM audit_leaf WHERE leaf_index = 4)", "altered", "4"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRoom(t)
			ctx := t.Context()
			r.Append(t, 7)
			r.Seal(t)
			if seen, err := r.Signer.Inspect(ctx); err != nil || seen.Altered != "" || seen.At.IsZero() {
				t.Fatalf("of an untouched log it says %+v, %v", seen, err)
			}
			r.Tamper(t, test.statement)
			for range 2 {
				seen, err := r.Signer.Inspect(ctx)
				check(t, err)
				if seen.Altered == "" || r.Signer.Status().Inspection.Altered != seen.Altered {
					t.Errorf("it says %+v", seen)
				}
			}
			if n := r.Count(t, `SELECT COUNT(*) FROM audit_log WHERE action = 'audit.alteration_found' AND outcome = 'failed' AND detail->>'problem' = $1 AND detail->>'first' = $2`, test.problem, test.first); n != 1 {
				t.Errorf("%d events name the place", n)
			}
			if _, err := r.Signer.Seal(ctx); err != nil || r.Signer.Status().Problem != nil {
				t.Errorf("sealing does not go on: %v", err)
			}
		})
	}
}

func TestTheSignerLooksOverTheLogWhenItBegins(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx, cancel := context.WithCancel(t.Context())
	r.Append(t, 3)
	r.Seal(t)
	r.Tamper(t, "UPDATE audit_detail SET detail = '{}' WHERE event_id = (SELECT event_id FROM audit_leaf WHERE leaf_index = 1)")
	r.Signer = r.NewSigner(t)
	var running sync.WaitGroup
	running.Go(func() { r.Signer.Run(ctx) })
	check(t, keyheraldtest.Until(ctx, time.Minute, func() error {
		if r.Signer.Status().Inspection.Altered == "" {
			return errors.New("nothing is found")
		}
		return nil
	}))
	cancel()
	running.Wait()
}
