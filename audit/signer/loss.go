package signer

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/tree"
)

// Loss is a gap that was declared: the log goes on in a new epoch from the events that survived.
type Loss struct {
	Epoch     int
	Surviving int64
	// Published is the newest checkpoint of the log that was lost.
	Published checkpoint.Checkpoint
}

// ErrNothingLost means that the database fits every checkpoint that was published, so there is no loss to accept.
var ErrNothingLost = errors.New("the audit log in the database fits every checkpoint that was published: nothing is lost, and there is nothing to accept")

// AcceptLoss declares that the database was put back to an earlier state, or is another one, and lets the log be signed
// again: in a new epoch, whose first event names the gap. Signer.Status says Stopped where this is what is missing.
func (s *Signer) AcceptLoss(ctx context.Context, reason, actor string) (Loss, error) {
	if reason == "" || len(reason) > 500 {
		return Loss{}, errors.New("a reason of 1 to 500 bytes is needed: it stands in the audit log")
	}
	published, err := s.remember(ctx)
	if err != nil {
		return Loss{}, err
	}
	var loss Loss
	err = s.db.Txn(ctx, func(ctx context.Context) error {
		if err := s.db.LockTree(ctx); err != nil {
			return err
		}
		state, err := s.db.TreeState(ctx)
		if err != nil {
			return err
		}
		var newest checkpoint.Checkpoint
		stopped := false
		for _, p := range published {
			err := judge(ctx, state, p, s.rootAt)
			if err != nil && !Stops(err) {
				return err
			}
			stopped = stopped || err != nil
			if p.Compare(newest) > 0 {
				newest = p.Checkpoint
			}
		}
		if !stopped {
			return ErrNothingLost
		}
		root, err := tree.Root(ctx, state.Size, s.db.TreeNodes)
		if err != nil {
			return err
		}
		now := s.now()
		loss = Loss{Epoch: max(state.Epoch, newest.Epoch) + 1, Surviving: state.Size, Published: newest}
		ids, err := s.db.AppendAll(ctx, []audit.Event{{Time: now, Actor: actor, Action: audit.LossAccepted, Subject: s.keys.Name, Outcome: audit.Accepted,
			Detail: audit.Detail{audit.Number("epoch", loss.Epoch), audit.Number("surviving_size", state.Size), audit.Hash("surviving_root", root),
				audit.Number("remembered_size", newest.Size), audit.Hash("remembered_root", newest.Root),
				audit.ID("remembered_origin", checkpoint.Origin(s.keys.Name, newest.Epoch)), audit.ID("reason", reason)}}})
		if err != nil {
			return err
		}
		return s.db.BeginEpoch(ctx, loss.Epoch, ids[0], now)
	})
	if err != nil {
		return Loss{}, fmt.Errorf("accepting the loss: %w", err)
	}
	return loss, nil
}
