package device

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/backup/backupkey"
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
	err := a.settle(ctx, j.Plan, func(device id.DeviceID, form string) (string, int, error) { return a.pushKey(ctx, j, device, form) })
	if err != nil {
		return err
	}
	j.Stage = protocol.StagePushed
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		if err := a.commit(ctx, j, protocol.Progress{Stage: protocol.StagePushed, Deliveries: j.Plan}); err != nil {
			return err
		}
		return a.planRepeat(ctx, j)
	})
}

// naming gives the outbox key of a push to a device in a form, and its round.
type naming func(device id.DeviceID, form string) (key string, round int, err error)

// settle gives every target of a plan its outcome, by what became of its messages. While the homeserver has not taken
// all of them, it is an error.
func (a *Account) settle(ctx context.Context, plan []protocol.Delivery, name naming) error {
	for i, delivery := range plan {
		if delivery.Outcome != "" {
			continue
		}
		outcome := protocol.OutcomeSent
		for _, form := range delivery.Forms {
			key, _, err := name(delivery.DeviceID, form)
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
		plan[i].Outcome = outcome
	}
	return nil
}

// pushKey names the push of a form to a target, and its round. A push that was withdrawn is never sent again, so the
// next round is meant then.
func (a *Account) pushKey(ctx context.Context, j *job, device id.DeviceID, form string) (key string, round int, err error) {
	for round = 1; ; round++ {
		key = roundKey(j.NewVersion, round, device, form)
		if sabotage.EncryptAgain {
			key += fmt.Sprintf("/%d", j.Tries)
		}
		if state, err := a.endpoint.State(ctx, key); err != nil || state != "withdrawn" {
			return key, round, err
		}
	}
}

// roundKey names a push for good. It goes by the key-backup version and not by the rotation: a server that was restored
// may open another rotation for a version whose key the targets have already.
func roundKey(version string, round int, device id.DeviceID, form string) string {
	return fmt.Sprintf("push/%s/%d/%s/%s", version, round, device, form)
}

// plan queries the devices afresh, drops those that must not or cannot have the key, reads the current version once
// more, and commits ciphertexts and plan together.
func (a *Account) plan(ctx context.Context, j *job, p pin) error {
	ready, err := a.prepare(ctx, p, j.NewVersion, j.Trigger.Exclude, nil)
	if err != nil {
		return err
	}
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		j.Plan, err = ready.queue(ctx, func(device id.DeviceID, form string) (string, int, error) { return a.pushKey(ctx, j, device, form) })
		if err != nil {
			return err
		}
		return a.store.keepJob(ctx, j, a.now())
	})
}

// readied is a push that only has to be encrypted.
type readied struct {
	account *Account
	key     backupkey.Key
	targets []crosssigning.Device
	claims  todevice.Claims
	// others are the devices that do not get the key, with the reason.
	others []protocol.Delivery
}

// prepare does what takes HTTP: it asks for the devices, and last whether the version still is the current one. only, if
// not nil, names the devices that it is about.
func (a *Account) prepare(ctx context.Context, p pin, version string, exclude []id.DeviceID, only []id.DeviceID) (*readied, error) {
	identities, err := a.endpoint.Identities(ctx, a.config.UserID)
	if err != nil {
		return nil, err
	}
	identity := identities[a.config.UserID]
	if !identity.PinnedTo(p.OwnMasterKey) {
		return nil, stop(protocol.AttentionNotCrossSigned, errors.New("the user's master key is not the pinned one"))
	}
	r := &readied{account: a}
	for _, device := range identity.Devices {
		if device.DeviceID == a.client.DeviceID || (only != nil && !slices.Contains(only, device.DeviceID)) {
			continue
		}
		if outcome := judgeTarget(device, exclude); outcome != "" {
			r.others = append(r.others, protocol.Delivery{DeviceID: device.DeviceID, Outcome: outcome})
		} else {
			r.targets = append(r.targets, device)
		}
	}
	if r.claims, err = a.endpoint.Claim(ctx, false, r.targets...); err != nil {
		return nil, err
	}
	current, err := a.backup.Current(ctx)
	if err != nil {
		return nil, err
	}
	if current == nil || current.ID.String() != version {
		return nil, stop(protocol.AttentionBackupChanged, backup.ErrChanged)
	}
	key, ok, err := a.store.key(ctx, current.PublicKey)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, stop(protocol.AttentionBackupChanged, errors.New("the current version is not the rotation's"))
	}
	r.key = key
	return r, nil
}

// judgeTarget says why a device of the user does not get the key; empty where it does.
func judgeTarget(device crosssigning.Device, exclude []id.DeviceID) protocol.Outcome {
	switch {
	case slices.Contains(exclude, device.DeviceID):
		return protocol.OutcomeSkippedExcluded
	case device.Dehydrated:
		return protocol.OutcomeSkippedDehydrated
	case !device.CrossSigned:
		return protocol.OutcomeSkippedUnverified
	}
	return ""
}

// queue encrypts within InTxn and returns the plan: who has an outcome already, and who gets one when it is settled.
func (r *readied) queue(ctx context.Context, name naming) ([]protocol.Delivery, error) {
	a := r.account
	plan := slices.Clone(r.others)
	if plan == nil {
		plan = []protocol.Delivery{}
	}
	for _, target := range r.targets {
		delivery := protocol.Delivery{DeviceID: target.DeviceID}
		for _, form := range a.config.Push.Forms {
			content, err := msc4385.Build(form, protocol.SecretMegolmBackup, msc4385.NewSecret(r.key.RevealBase64()))
			if err != nil {
				return nil, err
			}
			key, round, err := name(target.DeviceID, string(form))
			if err != nil {
				return nil, err
			}
			err = a.endpoint.Queue(ctx, todevice.Outgoing{Key: key, To: target, Type: string(form), Content: content}, r.claims)
			if errors.Is(err, todevice.ErrNoOneTimeKey) {
				delivery.Outcome = protocol.OutcomeNoOneTimeKey
				break
			} else if err != nil {
				return nil, err
			}
			delivery.Forms, delivery.Round = append(delivery.Forms, string(form)), max(delivery.Round, round)
		}
		plan = append(plan, delivery)
	}
	slices.SortFunc(plan, func(x, y protocol.Delivery) int { return strings.Compare(x.DeviceID.String(), y.DeviceID.String()) })
	return plan, nil
}
