package signer

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/tree"
	"github.com/keyherald/keyherald/postgres"
)

// Loss is a gap that was declared: the log goes on in a new epoch from the events that survived.
type Loss struct {
	Epoch     int
	Surviving int64
	// Published is the newest checkpoint of the log that was lost.
	Published checkpoint.Checkpoint
}

// ErrNothingLost means that the database fits its own newest checkpoint and every one that was published, so there is no
// loss to accept.
var ErrNothingLost = errors.New("the audit log in the database fits every checkpoint: nothing is lost, and there is nothing to accept")

// AcceptLoss declares that the database was put back to an earlier state, or is another one, and lets the log be signed
// again: in a new epoch, whose first event names the gap. Signer.Status says Stopped where this is what is missing.
func (s *Signer) AcceptLoss(ctx context.Context, reason string, actor audit.Actor) (Loss, error) {
	event := audit.Event{Time: s.now(), Actor: actor, Action: audit.LossAccepted, Subject: s.subject(), Outcome: audit.Accepted}
	why, err := audit.NewReason(reason)
	if err != nil {
		return Loss{}, s.refuse(ctx, event, audit.WhyNoReason(err), err)
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
		root, err := tree.Root(ctx, state.Size, s.db.TreeNodes)
		if err != nil {
			return err
		}
		if !stopped && s.checkOwn(state, root) == nil {
			return ErrNothingLost
		}
		loss = Loss{Epoch: max(state.Epoch, newest.Epoch) + 1, Surviving: state.Size, Published: newest}
		event.Detail = audit.Detail{audit.Number("epoch", loss.Epoch), audit.Number("surviving_size", state.Size), audit.Root("surviving_root", root),
			audit.Number("remembered_size", newest.Size), audit.Root("remembered_root", newest.Root),
			audit.ID("remembered_origin", audit.LogName(checkpoint.Origin(s.keys.Name, newest.Epoch))), audit.Text("reason", why)}
		ids, err := s.db.AppendAll(ctx, []audit.Event{event})
		if err != nil {
			return err
		}
		return s.db.BeginEpoch(ctx, loss.Epoch, ids[0], event.Time)
	})
	switch {
	case errors.Is(err, ErrNothingLost):
		return Loss{}, s.refuse(ctx, event, audit.RefusedNothingLost, err)
	case err != nil:
		return Loss{}, fmt.Errorf("accepting the loss: %w", err)
	}
	return loss, nil
}

// refuse audits that something that was asked for is refused, and returns why. Nothing else happened.
func (s *Signer) refuse(ctx context.Context, event audit.Event, word audit.Refusal, why error) error {
	event.Outcome, event.Detail = audit.Refused, audit.Detail{audit.Word("refusal", word)}
	return errors.Join(why, s.db.Append(ctx, event))
}

// Lost reports whether there is a loss to accept.
func (s *Signer) Lost(ctx context.Context) (bool, error) {
	published, err := s.remember(ctx)
	if err != nil {
		return false, err
	}
	state, err := s.db.TreeState(ctx)
	if err != nil {
		return false, err
	}
	for _, p := range published {
		if err := judge(ctx, state, p, s.rootAt); Stops(err) {
			return true, nil
		} else if err != nil {
			return false, err
		}
	}
	root, err := s.rootAt(ctx, state.Size)
	if Stops(err) {
		return true, nil
	}
	return s.checkOwn(state, root) != nil, err
}

// checkOwn holds the tree against the newest checkpoint in the database itself. One of an earlier epoch is behind a loss
// that was accepted.
func (s *Signer) checkOwn(state postgres.TreeState, root tlog.Hash) error {
	if err := s.checkNote(state); err != nil {
		return err
	}
	return checkBefore(state, root)
}
