package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/sas"
	"github.com/keyherald/keyherald/todevice"
)

// Comparison is what this device shows to be compared with what the other one shows. What the other cannot show is empty.
type Comparison struct {
	Device   id.DeviceID
	Name     string
	Emoji    []sas.Emoji
	Decimals []int
}

// Terminal is the person at this device.
type Terminal struct {
	// Tell says how it goes.
	Tell func(text string)
	// Compare asks whether the other device shows the same.
	Compare func(ctx context.Context, shown Comparison) (same bool, err error)
}

// startAfter is how long the other device may take to start after it asked and we were ready.
const startAfter = 15 * time.Second

// VerifyByEmoji has another cross-signed device of the user verify this one: asked by us, all of them or only the one
// named, or if wait by a request of its own. When the persons at both ends saw the same, the master key that the other
// device vouched for is pinned, and the other device signs this one. It returns that device.
func (a *Account) VerifyByEmoji(ctx context.Context, only id.DeviceID, wait bool, terminal Terminal) (id.DeviceID, error) {
	if err := a.endpoint.PublishKeys(ctx); err != nil {
		return "", err
	}
	identity, err := a.endpoint.RefreshOwnKeys(ctx)
	if err != nil {
		return "", err
	}
	side, err := a.side(identity, only)
	if err != nil {
		return "", err
	}
	c := &comparing{account: a, identity: identity, side: side, terminal: terminal}
	if !wait {
		transaction, err := uuid.NewRandom()
		if err != nil {
			return "", fmt.Errorf("making a transaction id: %w", err)
		}
		var request sas.Message
		c.verification, request = sas.Ask(side, id.VerificationTransactionID(transaction.String()), a.now())
		if err := c.send(ctx, request); err != nil {
			return "", err
		}
		terminal.Tell("The user's other devices show a request: accept it on one of them")
	} else {
		terminal.Tell("Ask for a verification of this device on another one")
	}
	if err := c.run(ctx); err != nil {
		return "", errors.Join(err, c.giveUp(ctx))
	}
	peer := c.verification.Peer()
	terminal.Tell("Both devices agree; waiting for the other one's signature")
	return peer, a.pinVerified(ctx, peer, side.MasterKey)
}

// side is what a verification needs to know, with the devices that could sign this one.
func (a *Account) side(identity crosssigning.Identity, only id.DeviceID) (sas.Side, error) {
	if identity.MasterKey == "" {
		return sas.Side{}, fmt.Errorf("%s has no cross-signing identity: let the user set it up on another device first", a.config.UserID)
	}
	own := identity.Devices[a.client.DeviceID]
	side := sas.Side{UserID: a.config.UserID, Device: sas.Device{ID: own.DeviceID, SigningKey: own.SigningKey}, MasterKey: identity.MasterKey}
	for _, device := range identity.Devices {
		if device.CrossSigned && !device.Dehydrated && device.DeviceID != own.DeviceID && (only == "" || device.DeviceID == only) {
			side.Others = append(side.Others, sas.Device{ID: device.DeviceID, SigningKey: device.SigningKey})
		}
	}
	switch {
	case len(side.Others) > 0:
		return side, nil
	case only != "":
		return side, fmt.Errorf("device %s is not there, or is not cross-signed and could not sign this one", only)
	}
	return side, errors.New("the user has no other cross-signed device: use his recovery key instead")
}

// comparing is one verification under way.
type comparing struct {
	account      *Account
	identity     crosssigning.Identity
	side         sas.Side
	terminal     Terminal
	verification *sas.Verification
	answeredAt   time.Time
	// arrived are messages of verifications, to be handled after the transaction they were read in.
	arrived []sas.Message
}

// Admit lets messages of verifications in, which travel outside Olm, and else what the account always does.
func (c *comparing) Admit(ctx context.Context, envelope todevice.Envelope) (todevice.Admission, error) {
	if envelope.Sender == c.side.UserID && slices.Contains(sas.Types(), envelope.Type) {
		return todevice.Admission{}, nil
	}
	return c.account.Admit(ctx, envelope)
}

func (c *comparing) Undecryptable(ctx context.Context, envelope todevice.Envelope, reason string) error {
	return c.account.Undecryptable(ctx, envelope, reason)
}

// Handle keeps messages of verifications for later: nothing is sent inside a transaction.
func (c *comparing) Handle(ctx context.Context, message *todevice.Message) error {
	if message.Sender != c.side.UserID || !slices.Contains(sas.Types(), message.Type) {
		return c.account.Handle(ctx, message)
	}
	c.arrived = append(c.arrived, sas.Message{Type: message.Type, Content: message.Content})
	return nil
}

// run goes on until both sides are done, and returns why they are not.
func (c *comparing) run(ctx context.Context) error {
	for {
		_, err := c.account.endpoint.Sync(ctx, 2*time.Second)
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for the other device: %w", ctx.Err())
		} else if err != nil {
			c.account.warn(ctx, err, "Receiving failed and is tried again")
			loop.Pause(ctx, time.Second)
			continue
		}
		// A message that cannot be read yet is none of this verification's, or comes again.
		c.account.warn(ctx, c.account.endpoint.Process(ctx, c), "A message could not be handled yet")
		arrived := c.arrived
		c.arrived = nil
		for _, message := range arrived {
			if err := c.receive(ctx, message); err != nil {
				return err
			}
		}
		if c.verification == nil {
			continue
		}
		switch c.verification.Stage() {
		case sas.Ready:
			if c.answeredAt.IsZero() || time.Since(c.answeredAt) > startAfter {
				if err := c.send(ctx, c.verification.Start()...); err != nil {
					return err
				}
			}
		case sas.Comparing:
			if err := c.compare(ctx); err != nil {
				return err
			}
		case sas.Done:
			return nil
		case sas.Cancelled:
			return c.why()
		}
	}
}

func (c *comparing) receive(ctx context.Context, message sas.Message) error {
	if c.verification != nil {
		return c.send(ctx, c.verification.Receive(message.Type, message.Content)...)
	}
	if message.Type != event.ToDeviceVerificationRequest.Type {
		return nil
	}
	request, ok := sas.ReadRequest(message.Content, c.account.now())
	if !ok {
		return nil
	}
	verification, ready, ok := sas.Answer(c.side, request)
	if !ok {
		return nil
	}
	c.verification, c.answeredAt = verification, time.Now()
	c.terminal.Tell(fmt.Sprintf("Device %q asks: choose to compare emoji there", request.From))
	return c.send(ctx, ready)
}

func (c *comparing) compare(ctx context.Context) error {
	device := c.identity.Devices[c.verification.Peer()]
	same, err := c.terminal.Compare(ctx, Comparison{Device: device.DeviceID, Name: device.Name, Emoji: c.verification.Emoji(), Decimals: c.verification.Decimals()})
	if err != nil {
		return err
	}
	if same {
		return c.send(ctx, c.verification.Confirm()...)
	}
	return c.send(ctx, c.verification.Mismatch()...)
}

func (c *comparing) why() error {
	code, reason, byUs := c.verification.Cancellation()
	who := "the other device"
	if byUs {
		who = "this device"
	}
	if code == event.VerificationCancelCodeSASMismatch {
		return fmt.Errorf("the devices do not show the same: somebody may be between them, the homeserver first of all (said by %s)", who)
	}
	return fmt.Errorf("%s cancelled the verification: %.64q (%.200q)", who, code, reason)
}

// giveUp tells the other side, if it is still waiting. The command's own time may be over.
func (c *comparing) giveUp(ctx context.Context) error {
	if c.verification == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return c.send(ctx, c.verification.Cancel(event.VerificationCancelCodeTimeout, "this device ended it")...)
}

func (c *comparing) send(ctx context.Context, messages ...sas.Message) error {
	for _, message := range messages {
		transaction, err := uuid.NewRandom()
		if err != nil {
			return fmt.Errorf("making a transaction id: %w", err)
		}
		err = c.account.sendPlain(ctx, message.Type, transaction.String(), message.Content, message.To...)
		for try := 1; err != nil && try < 3 && ctx.Err() == nil; try++ {
			loop.Pause(ctx, time.Second)
			err = c.account.sendPlain(ctx, message.Type, transaction.String(), message.Content, message.To...)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// verified is what a verification by emoji proved.
type verified struct {
	MasterKey id.Ed25519  `json:"master_key"`
	By        id.DeviceID `json:"by"`
}

func (a *Account) verified(ctx context.Context) (v verified, err error) {
	text, err := a.store.get(ctx, "verified")
	if err != nil || text == "" {
		return v, err
	}
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return v, fmt.Errorf("reading who verified this device: %w", err)
	}
	return v, nil
}

// pinVerified keeps the master key that was verified, signs it with this device, and waits until the homeserver presents
// this device as signed by it.
func (a *Account) pinVerified(ctx context.Context, peer id.DeviceID, master id.Ed25519) error {
	encoded, err := json.Marshal(verified{master, peer})
	if err != nil {
		return fmt.Errorf("keeping who verified this device: %w", err)
	}
	err = a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		if err := a.store.set(ctx, "verified", string(encoded)); err != nil {
			return err
		}
		return a.did(ctx, protocol.Act{Kind: protocol.ActDeviceVerified, DeviceID: peer})
	})
	if err != nil {
		return err
	}
	var upload mautrix.ReqUploadSignatures
	err = a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		account, err := a.endpoint.Account(ctx)
		if err != nil {
			return err
		}
		upload, err = crosssigning.SignMaster(account, a.config.UserID, a.client.DeviceID, master)
		return err
	})
	if err != nil {
		return err
	}
	if err := a.uploadSignatures(ctx, upload); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, signedWithin)
	defer cancel()
	for {
		identity, err := a.endpoint.RefreshOwnKeys(limited)
		switch {
		case err == nil && identity.PinnedTo(master) && identity.Devices[a.client.DeviceID].CrossSigned:
			return nil
		case err == nil && !identity.PinnedTo(master):
			return errors.New("the user's identity was reset meanwhile: verify again")
		case limited.Err() != nil:
			return errors.Join(errors.New("the other device has verified this one and did not sign it: it may not hold the user's self-signing key; verify with another one, or with the recovery key"), err)
		}
		loop.Pause(limited, time.Second)
	}
}

// signedWithin is how long the other device may take to sign this one.
const signedWithin = time.Minute

// byEmoji reports whether this device is verified by emoji and needs no recovery key for it. An identity that is not the
// one that was verified then is an error: the homeserver made it up, or the user reset it.
func (a *Account) byEmoji(ctx context.Context, identity crosssigning.Identity) (bool, error) {
	v, err := a.verified(ctx)
	if err != nil || v.MasterKey == "" {
		return false, err
	}
	if !identity.PinnedTo(v.MasterKey) {
		return false, errors.New("the user's identity is not the one that was verified by emoji: verify this device again")
	}
	verification := a.config.Verification
	return identity.Devices[a.client.DeviceID].CrossSigned && verification.RecoveryKeyFile == "" && verification.RecoveryKeyEnv == "", nil
}
