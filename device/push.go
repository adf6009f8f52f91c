package device

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/internal/sabotage"
	"github.com/keyherald/keyherald/msc4385"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// push is step 8: who is to have the key is decided once and journaled; each (target, form) is encrypted once.
func (a *Account) push(ctx context.Context, j *job, p pin) error {
	if j.Plan == nil || sabotage.EncryptAgain {
		if err := a.plan(ctx, j, p); err != nil {
			return err
		}
	}
	if _, err := a.endpoint.Flush(ctx, nil); err != nil {
		return err
	}
	for i, delivery := range j.Plan {
		if delivery.Outcome != "" {
			continue
		}
		outcome := protocol.OutcomeSent
		for _, form := range delivery.Forms {
			key, _, err := a.pushKey(ctx, j, delivery.DeviceID, form)
			if err != nil {
				return err
			}
			switch state, err := a.endpoint.State(ctx, key); {
			case err != nil:
				return err
			case state == "pending":
				return errors.New("the homeserver has not taken every push yet")
			case state != "sent":
				outcome = protocol.OutcomeFailed
			}
		}
		j.Plan[i].Outcome = outcome
	}
	j.Stage = protocol.StagePushed
	return a.commit(ctx, j, protocol.Progress{Stage: protocol.StagePushed, Deliveries: j.Plan})
}

// pushKey names the push of a form to a target, and its round. A push that was withdrawn is never sent again, so the
// next round is meant then.
func (a *Account) pushKey(ctx context.Context, j *job, device id.DeviceID, form string) (key string, round int, err error) {
	for round = 1; ; round++ {
		key = roundKey(j, round, device, form)
		if state, err := a.endpoint.State(ctx, key); err != nil || state != "withdrawn" {
			return key, round, err
		}
	}
}

// roundKey names a push for good. It goes by the key-backup version and not by the rotation: a server that was restored
// may open another rotation for a version whose key the targets have already.
func roundKey(j *job, round int, device id.DeviceID, form string) string {
	key := fmt.Sprintf("push/%s/%d/%s/%s", j.NewVersion, round, device, form)
	if sabotage.EncryptAgain {
		key += fmt.Sprintf("/%d", j.Tries)
	}
	return key
}

// plan queries the devices afresh, drops those that must not or cannot have the key, reads the current version once
// more, and commits ciphertexts and plan together.
func (a *Account) plan(ctx context.Context, j *job, p pin) error {
	identities, err := a.endpoint.Identities(ctx, a.config.UserID)
	if err != nil {
		return err
	}
	identity := identities[a.config.UserID]
	if !identity.PinnedTo(p.OwnMasterKey) {
		return stop(protocol.AttentionNotCrossSigned, errors.New("the user's master key is not the pinned one"))
	}
	plan := []protocol.Delivery{}
	var targets []crosssigning.Device
	for _, device := range identity.Devices {
		delivery := protocol.Delivery{DeviceID: device.DeviceID}
		switch {
		case device.DeviceID == a.client.DeviceID:
			continue
		case slices.Contains(j.Trigger.Exclude, device.DeviceID):
			delivery.Outcome = protocol.OutcomeSkippedExcluded
		case device.Dehydrated:
			delivery.Outcome = protocol.OutcomeSkippedDehydrated
		case !device.CrossSigned:
			delivery.Outcome = protocol.OutcomeSkippedUnverified
		default:
			targets = append(targets, device)
		}
		if delivery.Outcome != "" {
			plan = append(plan, delivery)
		}
	}
	claims, err := a.endpoint.Claim(ctx, false, targets...)
	if err != nil {
		return err
	}
	current, err := a.backup.Current(ctx)
	if err != nil {
		return err
	}
	if current == nil || current.ID.String() != j.NewVersion {
		return stop(protocol.AttentionBackupChanged, backup.ErrChanged)
	}
	backupKey, ok, err := a.store.key(ctx, current.PublicKey)
	if err != nil {
		return err
	}
	if !ok {
		return stop(protocol.AttentionBackupChanged, errors.New("the current version is not the rotation's"))
	}
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		queued := slices.Clone(plan)
		for _, target := range targets {
			delivery := protocol.Delivery{DeviceID: target.DeviceID}
			for _, form := range a.config.Push.Forms {
				content, err := msc4385.Build(form, protocol.SecretMegolmBackup, msc4385.NewSecret(backupKey.RevealBase64()))
				if err != nil {
					return err
				}
				key, round, err := a.pushKey(ctx, j, target.DeviceID, string(form))
				if err != nil {
					return err
				}
				err = a.endpoint.Queue(ctx, todevice.Outgoing{Key: key, To: target, Type: string(form), Content: content}, claims)
				if errors.Is(err, todevice.ErrNoOneTimeKey) {
					delivery.Outcome = protocol.OutcomeNoOneTimeKey
					break
				} else if err != nil {
					return err
				}
				delivery.Forms, delivery.Round = append(delivery.Forms, string(form)), max(delivery.Round, round)
			}
			queued = append(queued, delivery)
		}
		slices.SortFunc(queued, func(x, y protocol.Delivery) int { return strings.Compare(x.DeviceID.String(), y.DeviceID.String()) })
		j.Plan = queued
		return a.store.keepJob(ctx, j, a.now())
	})
}
