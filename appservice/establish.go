package appservice

import (
	"context"
	"errors"
	"fmt"

	"maunium.net/go/mautrix"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/todevice"
)

// establish uploads the identity where the homeserver has none, refuses another one, and cross-signs the bot's device.
// What it is about to do at the homeserver is in the audit log before it is done.
func (b *Bot) establish(ctx context.Context, client *mautrix.Client, endpoint *todevice.Endpoint) error {
	i := b.config.Identity
	identities, err := endpoint.Identities(ctx, i.UserID)
	if err != nil {
		return err
	}
	present := identities[i.UserID]
	switch present.MasterKey {
	case i.MasterKey():
	case "":
		if err := b.tell(ctx, audit.BotIdentityPublished, audit.Fingerprint("master_key_sha256", i.MasterKey())); err != nil {
			return err
		}
		err := client.UploadCrossSigningKeys(ctx, &mautrix.UploadCrossSigningKeysReq[any]{
			Master: i.Public.Master, SelfSigning: i.Public.SelfSigning, UserSigning: i.Public.UserSigning,
		}, nil)
		if err != nil {
			return fmt.Errorf("uploading the bot's cross-signing identity: %w", err)
		}
	default:
		refused := b.event(audit.BotIdentityRefused, audit.Word("refusal", audit.RefusedForeignIdentity), audit.Fingerprint("master_key_sha256", present.MasterKey))
		refused.Outcome = audit.Refused
		return errors.Join(ErrForeignIdentity, b.config.DB.Append(ctx, refused))
	}
	identity, err := endpoint.RefreshOwnKeys(ctx)
	if err != nil {
		return err
	}
	if identity.Devices[client.DeviceID].CrossSigned {
		return nil
	}
	if err := b.tell(ctx, audit.BotDeviceSigned, audit.ID("device", client.DeviceID)); err != nil {
		return err
	}
	upload, err := crosssigning.SignDevice(i.selfSigning, identity.Keys[client.DeviceID])
	if err != nil {
		return err
	}
	answer, err := client.UploadSignatures(ctx, &upload)
	if err != nil {
		return fmt.Errorf("uploading the signature of the bot's device: %w", err)
	}
	if len(answer.Failures) > 0 {
		return errors.New("the homeserver refused the signature of the bot's device")
	}
	if identity, err = endpoint.RefreshOwnKeys(ctx); err != nil {
		return err
	}
	if !identity.PinnedTo(i.MasterKey()) || !identity.Devices[client.DeviceID].CrossSigned {
		return errors.New("the homeserver does not present the bot's device as cross-signed")
	}
	return nil
}
