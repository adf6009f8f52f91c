package signer_test

import (
	"database/sql"
	"testing"

	"github.com/lib/pq"

	"github.com/keyherald/keyherald/keyheraldtest/faults"
	"github.com/keyherald/keyherald/postgres"
)

// Every write of a batch fails once, before and after it took effect, and the signer goes on as it is or is started
// again: each event is sealed once, without a gap, and one checkpoint is over all of them.
func TestTheSignersWritesMayFailBeforeAndAfterTheyTookEffect(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	recorder := &faults.Recorder{}
	connector, err := pq.NewConnector(r.Database.SignerURL)
	check(t, err)
	if r.Sealer, err = postgres.OpenWith(t.Context(), sql.OpenDB(recorder.Connector("PostgreSQL", connector)), r.Database.SignerURL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Sealer.Close() })
	r.Signer = r.NewSigner(t)
	batch := func(t *testing.T) {
		t.Helper()
		r.Append(t, 3)
		if _, err := r.Signer.Seal(t.Context()); err != nil {
			return // what was lost is sealed by the next round
		}
		r.intact(t)
	}
	batch(t) // names the signing key, which later batches do not
	recorder.Begin()
	batch(t)
	table := faults.Table(recorder.Points())
	if len(table) < 3 {
		t.Fatalf("only %v were found", table)
	}
	for _, fault := range table {
		for _, restart := range []bool{false, true} {
			name := fault.String()
			if restart {
				name += ", and started again"
			}
			t.Run(name, func(t *testing.T) {
				recorder.Arm(fault, nil)
				batch(t)
				if !recorder.Fired() {
					t.Fatalf("it did not come to this write: %v", recorder.Points())
				}
				if restart {
					r.Signer = r.NewSigner(t)
				}
				r.Seal(t)
				r.intact(t)
			})
		}
	}
}
