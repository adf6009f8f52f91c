package signer

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/postgres"
)

// ErrForeignStatement means that an event waits to be sealed which says in the signer's name what the signer did not say.
// Sealed, a verifier would believe it: a key that the log announces counts from then on.
var ErrForeignStatement = errors.New("somebody put an event into the audit log that only its signer may append")

// checkStatements finds such events among those that wait. Everybody who may append can make one up, so what counts is
// what it says: the keys that sign here, or the loss that the present epoch begins with.
func (s *Signer) checkStatements(ctx context.Context, state postgres.TreeState, pending []postgres.PendingEvent) error {
	for _, p := range pending {
		// Verifiers call every other form of an event altered, so nothing need be read of the rest.
		if !bytes.Contains(p.Body, []byte(`"action":"audit.`)) {
			continue
		}
		fields, err := audit.ParseBody(p.Body)
		if err != nil || fields.Outcome != audit.Accepted {
			continue
		}
		own := true
		switch fields.Action {
		case audit.LossAccepted:
			own = p.ID == state.EpochEvent
		case audit.SigningKeysChanged:
			if own, err = s.namesOwnKeys(ctx, p, fields); err != nil {
				return err
			}
		}
		if !own {
			return fmt.Errorf("%w: the event %s, %s; take it out of audit_event as a superuser, and the log will say that it is missing", ErrForeignStatement, p.ID, fields.Action)
		}
	}
	return nil
}

// namesOwnKeys tells whether the detail that an event commits to lists the keys that sign here, and no others.
func (s *Signer) namesOwnKeys(ctx context.Context, p postgres.PendingEvent, fields audit.Fields) (bool, error) {
	record, _, err := s.db.Event(ctx, p.ID)
	if err != nil {
		return false, err
	}
	var detail struct {
		Keys []string `json:"keys"`
	}
	if !hmac.Equal(audit.Commit(record.Salt, record.Detail), fields.Commitment) || json.Unmarshal(record.Detail, &detail) != nil {
		return false, nil
	}
	return slices.Equal(detail.Keys, s.keys.Public), nil
}

// checkNote holds the newest checkpoint in the database against its own signature, so that nobody without a key has the
// signer build on leaves of his. One of an earlier epoch is behind a loss that was accepted.
func (s *Signer) checkNote(state postgres.TreeState) error {
	if state.Newest.Size == 0 || state.Newest.Epoch < state.Epoch {
		return nil
	}
	signed, err := checkpoint.Open(s.keys.Name, state.Note, s.keys.Verifiers)
	if err != nil {
		return fmt.Errorf("%w: its newest checkpoint, of %d events, is not signed by a key of audit.signing_key_files (while a key is being replaced the former one stays there): %w",
			postgres.ErrTreeDamaged, state.Newest.Size, err)
	}
	if signed != state.Newest {
		return fmt.Errorf("%w: the row of its newest checkpoint, of %d events, is not what its note says, of %d", postgres.ErrTreeDamaged, state.Newest.Size, signed.Size)
	}
	return nil
}
