package signer_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/sealedlog"
)

func verifierKeys(t *testing.T, keys checkpoint.Keys) []audit.VerifierKey {
	t.Helper()
	parsed := make([]audit.VerifierKey, len(keys.Public))
	for i, text := range keys.Public {
		var err error
		parsed[i], err = audit.ParseVerifierKey(text)
		check(t, err)
	}
	return parsed
}

func TestWhatOnlyTheSignerMaySayIsNotSealedForOthers(t *testing.T) {
	t.Parallel()
	_, others := sealedlog.NewKey(t)
	for name, made := range map[string]audit.Event{
		"a key of somebody else's":            {Actor: audit.BySigner(), Action: audit.SigningKeysChanged, Detail: audit.Detail{audit.VerifierKeys("keys", verifierKeys(t, others))}},
		"a loss that nobody accepted":         {Actor: keyheraldtest.Admin(), Action: audit.LossAccepted, Detail: audit.Detail{audit.Number("epoch", 2), audit.Number("surviving_size", 4)}},
		"a change of keys that names no keys": {Actor: audit.BySigner(), Action: audit.SigningKeysChanged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRoom(t)
			r.Append(t, 3)
			r.Seal(t)
			made.Time, made.Subject, made.Outcome = time.Now(), audit.OfLog(sealedlog.Name), audit.Accepted
			r.AppendEvents(t, made)
			if _, err := r.Signer.Seal(t.Context()); !errors.Is(err, signer.ErrForeignStatement) || !r.Signer.Status().Stopped {
				t.Fatalf("sealing it gave %v", err)
			}
			forged := fmt.Sprintf(`(SELECT id FROM audit_event WHERE position('%s' IN convert_from(body, 'UTF8')) > 0 ORDER BY id DESC LIMIT 1)`, made.Action)
			r.Tamper(t, `DELETE FROM audit_detail WHERE event_id = `+forged, `DELETE FROM audit_event WHERE id = `+forged)
			r.Seal(t)
			if n := r.Count(t, `SELECT COUNT(*) FROM audit_log WHERE action = 'audit.event_missing'`); n != 1 {
				t.Errorf("%d events say that it is missing", n)
			}
		})
	}
}
