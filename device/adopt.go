package device

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/protocol"
)

// AdoptSecrets asks the user's other cross-signed devices, or only the one named, for the secrets that this device lacks
// and may have: the current version's backup key, and the cross-signing keys that receive.accept does not refuse. It
// waits until they are there or ctx ends. What is missing then stays asked for, and the running device takes it.
func (a *Account) AdoptSecrets(ctx context.Context, only id.DeviceID) (kept, missing []string, err error) {
	lacking, err := a.lacking(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, secret := range lacking {
		if err := a.wish(ctx, secret.name, secret.publicKey, true); err != nil {
			return nil, nil, err
		}
		missing = append(missing, secret.name)
	}
	var devices []id.DeviceID
	if only != "" {
		devices = append(devices, only)
	}
	for len(missing) > 0 && ctx.Err() == nil {
		if err := a.step(ctx, devices); err != nil && ctx.Err() == nil {
			return kept, missing, err
		}
		adopted, err := a.adopt(ctx)
		if err != nil && ctx.Err() == nil {
			return kept, missing, err
		}
		for _, w := range adopted {
			if i := slices.Index(missing, w.name); i >= 0 {
				kept, missing = append(kept, w.name), slices.Delete(missing, i, i+1)
			}
		}
	}
	if len(kept) > 0 && len(missing) == 0 {
		// The devices that were asked need not show the requests any longer.
		return kept, missing, a.ask(ctx)
	}
	return kept, missing, nil
}

// step asks, and takes in what came.
func (a *Account) step(ctx context.Context, devices []id.DeviceID) error {
	if err := a.ask(ctx, devices...); err != nil {
		return err
	}
	if _, err := a.endpoint.Sync(ctx, 2*time.Second); err != nil {
		return fmt.Errorf("waiting for the other device: %w", err)
	}
	return a.endpoint.Process(ctx, a)
}

type lackingSecret struct{ name, publicKey string }

func (a *Account) lacking(ctx context.Context) ([]lackingSecret, error) {
	identities, err := a.endpoint.Identities(ctx, a.config.UserID)
	if err != nil {
		return nil, err
	}
	identity := identities[a.config.UserID]
	p, err := a.pin(ctx)
	if err != nil {
		return nil, err
	}
	if !trustedBy(p, identity, identity.Devices[a.client.DeviceID]) {
		return nil, errors.New("this device is not verified, and no other one would answer it: run keyherald-device verify or enroll first")
	}
	return a.lackingOf(ctx, identity)
}

func (a *Account) lackingOf(ctx context.Context, identity crosssigning.Identity) (lacking []lackingSecret, err error) {
	current, err := a.backup.Current(ctx)
	if err != nil {
		return nil, err
	}
	if current != nil && current.PublicKey != "" {
		if _, held, err := a.store.key(ctx, current.PublicKey); err != nil {
			return nil, err
		} else if !held {
			lacking = append(lacking, lackingSecret{protocol.SecretMegolmBackup, current.PublicKey})
		}
	}
	for _, name := range crossSigningNames {
		if judgement := a.config.Receive.Accept[name]; judgement != acceptAlways && judgement != acceptAsk {
			continue
		}
		publicKey := publicCrossSigningKey(identity, name)
		seed, err := a.store.sealedValue(ctx, "cross_signing/"+name)
		if err != nil {
			return nil, err
		}
		if publicKey != "" && (seed == nil || !derives(seed, publicKey)) {
			lacking = append(lacking, lackingSecret{name, publicKey})
		}
	}
	return lacking, nil
}
