package device

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/protocol"
)

// PendingSecret is a secret that waits for a person, without the secret.
type PendingSecret struct {
	ID         int64
	Name       string
	Sender     id.DeviceID
	ReceivedAt time.Time
}

// Pending lists what waits for a person in an account's store, oldest first. It needs no network and no key, and works
// while a fleet runs the account.
func Pending(ctx context.Context, path string) ([]PendingSecret, error) {
	store, err := openForReading(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = store.db.Close() }()
	return store.pending(ctx)
}

func (s *store) pending(ctx context.Context) ([]PendingSecret, error) {
	rows, err := s.db.Query(ctx, `SELECT id, name, sender, received_at FROM received WHERE state = 'parked' ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("reading the secrets that wait: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var pending []PendingSecret
	for rows.Next() {
		var p PendingSecret
		var at int64
		if err := rows.Scan(&p.ID, &p.Name, &p.Sender, &at); err != nil {
			return nil, fmt.Errorf("reading the secrets that wait: %w", err)
		}
		p.ReceivedAt = time.UnixMilli(at).UTC()
		pending = append(pending, p)
	}
	return pending, rows.Err()
}

// AcceptPending has the secrets with these ids compared with what is true now, all that wait if none is named, and
// returns those that were kept: of several of a name the newest that fits. The others are dropped, since a key that fits
// nothing now fits nothing later.
func (a *Account) AcceptPending(ctx context.Context, ids ...int64) (kept []PendingSecret, err error) {
	chosen, err := a.decide(ctx, ids, protocol.ActSecretAccepted, `UPDATE received SET state = 'new' WHERE id = $1`)
	if err != nil {
		return nil, err
	}
	adopted, err := a.adopt(ctx)
	if err != nil {
		return nil, fmt.Errorf("they are accepted, and the running device compares them as soon as it can: %w", err)
	}
	for _, p := range chosen {
		if slices.ContainsFunc(adopted, func(w waiting) bool { return w.id == p.ID }) {
			kept = append(kept, p)
		}
	}
	return kept, nil
}

// RejectPending drops the secrets with these ids unused, all that wait if none is named, and returns them.
func (a *Account) RejectPending(ctx context.Context, ids ...int64) ([]PendingSecret, error) {
	rejected, err := a.decide(ctx, ids, protocol.ActSecretRejected, `DELETE FROM received WHERE id = $1`)
	if err != nil {
		return nil, err
	}
	return rejected, nil
}

// decide carries a person's word out, together with the act that tells the server of it.
func (a *Account) decide(ctx context.Context, ids []int64, act protocol.ActKind, statement string) (chosen []PendingSecret, err error) {
	err = a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		pending, err := a.store.pending(ctx)
		if err != nil {
			return err
		}
		chosen = nil
		for _, p := range pending {
			if len(ids) == 0 || slices.Contains(ids, p.ID) {
				chosen = append(chosen, p)
			}
		}
		for _, want := range ids {
			if !slices.ContainsFunc(chosen, func(p PendingSecret) bool { return p.ID == want }) {
				return fmt.Errorf("no secret with the id %d waits: look with `keyherald-device pending-secrets list`", want)
			}
		}
		if len(chosen) == 0 {
			return errors.New("no secret waits for a decision")
		}
		for _, p := range chosen {
			if _, err := a.store.db.Exec(ctx, statement, p.ID); err != nil {
				return fmt.Errorf("journaling a decision: %w", err)
			}
			if err := a.did(ctx, protocol.Act{Kind: act, Secret: p.Name, DeviceID: p.Sender}); err != nil {
				return err
			}
		}
		return nil
	})
	return chosen, err
}
