package device

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/protocol"
)

// errOvertaken ends the work on a rotation that a newer trigger or a cancel took over while it was under way.
var errOvertaken = errors.New("overtaken by a newer trigger or a cancel")

// keepJob journals a step of the work, in the caller's transaction, unless a handler ended the rotation or gave it
// another trigger since the work began: then nothing is written, and it is errOvertaken.
func (s *store) keepJob(ctx context.Context, j *job, now time.Time) error {
	var ended bool
	var sequence int64
	err := s.db.QueryRow(ctx, `SELECT ended, json_extract(trigger, '$.sequence') FROM journal WHERE rotation_id = $1`, j.Rotation.String()).Scan(&ended, &sequence)
	if errors.Is(err, sql.ErrNoRows) || err == nil && (ended || sequence != j.Trigger.Sequence) {
		return errOvertaken
	} else if err != nil {
		return fmt.Errorf("reading the journal: %w", err)
	}
	return s.putJob(ctx, j, now)
}

// supersede ends the work on every open rotation but the trigger's.
func (a *Account) supersede(ctx context.Context, trigger protocol.Trigger) error {
	jobs, err := a.store.jobs(ctx, true)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.Rotation == trigger.RotationID {
			continue
		}
		if sameKey(j, trigger) {
			j.Ended, j.LastError = true, "superseded"
			err = a.store.putJob(ctx, j, a.now())
		} else {
			err = a.end(ctx, j, "superseded")
		}
		if err != nil {
			return err
		}
	}
	// Rounds of the very key that the trigger means go on.
	ours, err := a.store.get(ctx, "our_kms_version")
	if err != nil || ours == trigger.KMS.Version {
		return err
	}
	return a.endRounds(ctx, "superseded")
}

// endAll ends the work on every open rotation.
func (a *Account) endAll(ctx context.Context, why string) error {
	jobs, err := a.store.jobs(ctx, true)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if err := a.end(ctx, j, why); err != nil {
			return err
		}
	}
	return a.endRounds(ctx, why)
}

// sameKey reports whether a rotation took up the trigger's version already, or a newer one: the KMS's current version
// is meant, whatever a trigger names. Its pushes are then the trigger's as well. They stay in the outbox, where the new
// rotation finds them by the key-backup version: withdrawn and made again, a target would get one key in two ciphertexts.
func sameKey(j *job, trigger protocol.Trigger) bool {
	newer, ordered := kms.NewerVersion(trigger.KMS.Version, j.KMSVersion)
	return j.KMSVersion == trigger.KMS.Version || ordered && !newer
}

// end ends the work on a rotation, within InTxn: what the homeserver is not known to have of its pushes is withdrawn,
// and where that gave targets their outcome, the server is told.
func (a *Account) end(ctx context.Context, j *job, why string) error {
	news, err := a.withdraw(ctx, j)
	if err != nil {
		return err
	}
	j.Ended, j.LastError = true, why
	if err := a.store.putJob(ctx, j, a.now()); err != nil || !news {
		return err
	}
	return a.report(ctx, protocol.Progress{RotationID: j.Rotation, Attempt: j.Attempt, Stage: protocol.StageWithdrawn, Deliveries: j.Plan})
}

// withdraw gives every target that has none its outcome: superseded where each of its pushes was withdrawn.
func (a *Account) withdraw(ctx context.Context, j *job) (news bool, err error) {
	for i, delivery := range j.Plan {
		if delivery.Outcome != "" {
			continue
		}
		keys := make([]string, len(delivery.Forms))
		for f, form := range delivery.Forms {
			if keys[f], _, err = a.pushKey(ctx, j, delivery.DeviceID, form); err != nil {
				return false, err
			}
		}
		if _, err := a.endpoint.Withdraw(ctx, keys); err != nil {
			return false, err
		}
		states := make([]string, len(keys))
		for k, key := range keys {
			if states[k], err = a.endpoint.State(ctx, key); err != nil {
				return false, err
			}
		}
		j.Plan[i], news = withdrawn(delivery, states), true
	}
	return news, nil
}

// withdrawn is a delivery after its pushes were withdrawn, by what became of each of its forms.
func withdrawn(delivery protocol.Delivery, states []string) protocol.Delivery {
	switch {
	case slices.Contains(states, "sent"):
		var sent []string
		for i, form := range delivery.Forms {
			if states[i] == "sent" {
				sent = append(sent, form)
			}
		}
		delivery.Outcome, delivery.Forms = protocol.OutcomeSent, sent
	case slices.Contains(states, "refused"):
		delivery.Outcome = protocol.OutcomeFailed
	default:
		delivery.Outcome, delivery.Forms = protocol.OutcomeSuperseded, nil
	}
	return delivery
}
