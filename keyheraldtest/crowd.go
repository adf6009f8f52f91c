package keyheraldtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
)

// Crowd makes users by the thousand: an application service of its own, since a homeserver hashes every password.
type Crowd struct {
	token string
	url   string
}

// Member is a user with one cross-signed device, whose private keys are forgotten: messages can be sent to it.
type Member struct {
	UserID    id.UserID
	Device    crosssigning.Device
	MasterKey id.Ed25519
}

// CrowdRegistration writes the registration for the homeserver and returns its path.
func CrowdRegistration(dir string) (*Crowd, string, error) {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw)
	crowd := &Crowd{token: hex.EncodeToString(raw)}
	path := filepath.Join(dir, "crowd.yaml")
	text := fmt.Sprintf("id: crowd\nurl: null\nas_token: %s\nhs_token: none\nsender_localpart: crowd\nrate_limited: false\nnamespaces: {users: [{regex: '@crowd.*', exclusive: true}], rooms: [], aliases: []}\n", crowd.token)
	return crowd, path, os.WriteFile(path, []byte(text), 0o600)
}

// Make makes n members on the homeserver.
func (c *Crowd) Make(ctx context.Context, hs *Homeserver, n int) ([]Member, error) {
	c.url = hs.URL
	members := make([]Member, n)
	errs := make(chan error, n)
	var workers sync.WaitGroup
	for worker := range 4 {
		workers.Go(func() {
			for i := worker; i < n; i += 4 {
				var err error
				if members[i], err = c.member(ctx, fmt.Sprintf("crowd%d", i)); err != nil {
					errs <- fmt.Errorf("making member %d: %w", i, err)
					return
				}
			}
		})
	}
	workers.Wait()
	select {
	case err := <-errs:
		return nil, err
	default:
		return members, nil
	}
}

func (c *Crowd) member(ctx context.Context, localpart string) (Member, error) {
	m := Member{UserID: id.NewUserID(localpart, ServerName)}
	client, err := c.Login(ctx, m.UserID, "DEVICE")
	if err != nil {
		return m, err
	}
	keys, err := crosssigning.Generate()
	if err != nil {
		return m, err
	}
	public, err := keys.Public(m.UserID)
	if err != nil {
		return m, err
	}
	m.MasterKey = keys.Master.PublicKey()
	account := crypto.NewOlmAccount()
	signing, identity := account.Keys()
	m.Device = crosssigning.Device{UserID: m.UserID, DeviceID: client.DeviceID, SigningKey: signing, IdentityKey: identity, CrossSigned: true}
	err = client.UploadCrossSigningKeys(ctx, &mautrix.UploadCrossSigningKeysReq[any]{Master: public.Master, SelfSigning: public.SelfSigning, UserSigning: public.UserSigning}, nil)
	if err != nil {
		return m, err
	}
	return m, publish(ctx, client, account, keys.SelfSigning, 1)
}

// publish uploads a device's keys with so many one-time keys, and its user's signature.
func publish(ctx context.Context, client *mautrix.Client, account *crypto.OlmAccount, self olm.PKSigning, oneTimeKeys uint) error {
	signing, identity := account.Keys()
	device := mautrix.DeviceKeys{UserID: client.UserID, DeviceID: client.DeviceID, Algorithms: []id.Algorithm{id.AlgorithmOlmV1, id.AlgorithmMegolmV1}, Keys: mautrix.KeyMap{
		id.NewDeviceKeyID(id.KeyAlgorithmEd25519, client.DeviceID): signing.String(), id.NewDeviceKeyID(id.KeyAlgorithmCurve25519, client.DeviceID): identity.String()}}
	own, err := account.SignJSON(device)
	if err != nil {
		return err
	}
	signed, err := crosssigning.SignDevice(self, device)
	if err != nil {
		return err
	}
	device.Signatures = signatures.NewSingleSignature(client.UserID, id.KeyAlgorithmEd25519, client.DeviceID.String(), own)
	if err := account.Internal.GenOneTimeKeys(oneTimeKeys); err != nil {
		return err
	}
	fresh, err := account.Internal.OneTimeKeys()
	if err != nil {
		return err
	}
	upload := &mautrix.ReqUploadKeys{DeviceKeys: &device, OneTimeKeys: map[id.KeyID]mautrix.OneTimeKey{}}
	for keyID, key := range fresh {
		oneTime := mautrix.OneTimeKey{Key: key}
		signature, err := account.SignJSON(oneTime)
		if err != nil {
			return err
		}
		oneTime.Signatures, oneTime.IsSigned = signatures.NewSingleSignature(client.UserID, id.KeyAlgorithmEd25519, client.DeviceID.String(), signature), true
		upload.OneTimeKeys[id.NewKeyID(id.KeyAlgorithmSignedCurve25519, keyID)] = oneTime
	}
	if _, err := client.UploadKeys(ctx, upload); err != nil {
		return err
	}
	_, err = client.UploadSignatures(ctx, &signed)
	return err
}

// Login registers a user of the crowd and logs a device in.
func (c *Crowd) Login(ctx context.Context, user id.UserID, device id.DeviceID) (*mautrix.Client, error) {
	client, err := mautrix.NewClient(c.url, "", c.token)
	if err != nil {
		return nil, err
	}
	body := map[string]any{"type": mautrix.AuthTypeAppservice, "username": user.Localpart(), "inhibit_login": true}
	if _, err := client.MakeRequest(ctx, http.MethodPost, client.BuildClientURL("v3", "register"), body, nil); err != nil {
		return nil, err
	}
	return c.LoginAgain(ctx, user, device)
}

// LoginAgain logs one more device of a user of the crowd in.
func (c *Crowd) LoginAgain(ctx context.Context, user id.UserID, device id.DeviceID) (*mautrix.Client, error) {
	client, err := mautrix.NewClient(c.url, "", c.token)
	if err != nil {
		return nil, err
	}
	_, err = client.Login(ctx, &mautrix.ReqLogin{Type: mautrix.AuthTypeAppservice, DeviceID: device, StoreCredentials: true,
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: user.String()}})
	return client, err
}
