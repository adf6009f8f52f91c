package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/msc4385"
)

// pushing is a user whose managed device has pushed a key to n light devices of his once, so that the Olm sessions are
// there.
type pushing struct {
	*crowded
	*managed
	account *device.Account
	forms   int
	lights  []*keyheraldtest.Light
	failed  chan error

	mu      sync.Mutex // guards the rest
	secret  string
	waiting map[id.DeviceID]bool
	all     chan time.Time
	// others is told what is not a push of the managed device's.
	others func(l *keyheraldtest.Light, messages []keyheraldtest.LightMessage)
}

// newPushing makes them; others log further devices of the user in, before anybody pushes.
func newPushing(ctx context.Context, n int, forms []msc4385.Form, others ...func(ctx context.Context, p *pushing) error) (*pushing, error) {
	p := &pushing{forms: len(forms), failed: make(chan error, 1)}
	var err error
	if p.crowded, err = newCrowded(ctx, 0); err != nil {
		return p, err
	}
	dir, err := os.MkdirTemp("", "keyherald-bench-")
	if err != nil {
		return p, err
	}
	p.closers = append(p.closers, func() error { return os.RemoveAll(dir) })
	pickleKey := make([]byte, 32)
	if p.managed, err = p.manage(ctx, dir, "crowdalice", pickleKey, forms...); err != nil {
		return p, err
	}
	if p.account, err = p.open(ctx, pickleKey); err != nil {
		return p, err
	}
	p.closers = append(p.closers, p.account.Close)
	if err := p.makeLights(ctx, n); err != nil {
		return p, err
	}
	for _, other := range others {
		if err := other(ctx, p); err != nil {
			return p, err
		}
	}
	if err := p.introduce(ctx); err != nil {
		return p, err
	}
	for _, l := range p.lights {
		p.run(ctx, func(ctx context.Context) error {
			err := l.Receive(ctx, func(messages []keyheraldtest.LightMessage) { p.take(l, messages) })
			p.fail(err)
			return err
		})
	}
	key, err := p.rotate(ctx, p.managed, p.account)
	if err != nil {
		return p, err
	}
	p.mu.Lock()
	p.secret = key.RevealBase64()
	p.mu.Unlock()
	return p, p.drained(ctx, int64(p.forms*n))
}

// patience is how long a round may take: on a machine that is busy with other things a broadcast among a hundred devices
// takes minutes.
const patience = 15 * time.Minute

// makeLights logs them in and has the user's identity sign them.
func (p *pushing) makeLights(ctx context.Context, n int) error {
	self, err := p.selfSigningKey(ctx)
	if err != nil {
		return err
	}
	// One after the other: Dendrite loses device keys of a user that are uploaded at once.
	for i := range n {
		client, err := p.crowd.LoginAgain(ctx, p.userID, id.DeviceID(fmt.Sprintf("LIGHT%d", i)))
		if err != nil {
			return fmt.Errorf("logging light device %d in: %w", i, err)
		}
		l, err := keyheraldtest.NewLight(ctx, client, self)
		if err != nil {
			return fmt.Errorf("making light device %d: %w", i, err)
		}
		p.lights = append(p.lights, l)
	}
	return nil
}

func (p *pushing) selfSigningKey(ctx context.Context) (olm.PKSigning, error) {
	recoveryKey, err := p.recoveryKey()
	if err != nil {
		return nil, err
	}
	storage := ssss.NewSSSSMachine(p.client)
	keyID, metadata, err := storage.GetDefaultKeyData(ctx)
	if err != nil {
		return nil, err
	}
	key, err := metadata.VerifyRecoveryKey(keyID, recoveryKey)
	if err != nil {
		return nil, err
	}
	seed, err := storage.GetDecryptedAccountData(ctx, event.AccountDataCrossSigningSelf, key)
	if err != nil {
		return nil, err
	}
	return olm.NewPKSigningFromSeed(seed)
}

// introduce tells the light devices of each other and of the rest, and fails where one is not cross-signed.
func (p *pushing) introduce(ctx context.Context) error {
	answer, err := p.client.QueryKeys(ctx, &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{p.userID: mautrix.DeviceIDList{}}, Timeout: 10_000})
	if err != nil {
		return err
	}
	peers := map[id.Curve25519]id.DeviceID{}
	for _, d := range crosssigning.Read(answer, p.userID).Devices {
		if !d.CrossSigned {
			return fmt.Errorf("%s is not cross-signed", d.DeviceID)
		}
		peers[d.IdentityKey] = d.DeviceID
	}
	if len(peers) <= len(p.lights) {
		return fmt.Errorf("the homeserver knows %d devices, and there are %d light ones and more", len(peers), len(p.lights))
	}
	for _, l := range p.lights {
		l.Peers = peers
	}
	return nil
}

// begin starts a round: the channel gets the time when the last of these devices has the key.
func (p *pushing) begin(of []*keyheraldtest.Light) <-chan time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting, p.all = map[id.DeviceID]bool{}, make(chan time.Time, 1)
	for _, l := range of {
		p.waiting[l.DeviceID] = true
	}
	return p.all
}

// has says that a device has the key now.
func (p *pushing) has(l *keyheraldtest.Light) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting[l.DeviceID] {
		delete(p.waiting, l.DeviceID)
		if len(p.waiting) == 0 {
			p.all <- time.Now()
		}
	}
}

func (p *pushing) fail(err error) {
	if err != nil {
		select {
		case p.failed <- err:
		default:
		}
	}
}

// take looks for the key in the form that shipped clients take, which leaves after the other one.
func (p *pushing) take(l *keyheraldtest.Light, messages []keyheraldtest.LightMessage) {
	p.mu.Lock()
	secret, others := p.secret, p.others
	p.mu.Unlock()
	for _, message := range messages {
		var push struct{ Name, Secret string }
		if message.Type == string(msc4385.FormPush) && message.Encrypted && json.Unmarshal(message.Content, &push) == nil && push.Secret == secret {
			p.has(l)
		}
	}
	if others != nil {
		others(l, messages)
	}
}

// wait is how long a round took that began then.
func (p *pushing) wait(ctx context.Context, began time.Time, all <-chan time.Time) (time.Duration, error) {
	select {
	case at := <-all:
		return at.Sub(began), nil
	case err := <-p.failed:
		return 0, err
	case <-time.After(patience):
		p.mu.Lock()
		defer p.mu.Unlock()
		return 0, fmt.Errorf("%d devices have no key", len(p.waiting))
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// received is how many messages came to the light devices so far.
func (p *pushing) received() (n int64) {
	for _, l := range p.lights {
		n += l.Received.Load()
	}
	return n
}

// drained waits until so many messages came to the light devices.
func (p *pushing) drained(ctx context.Context, want int64) error {
	return keyheraldtest.Until(ctx, patience, func() error {
		select {
		case err := <-p.failed:
			return err
		default:
		}
		if n := p.received(); n != want {
			return fmt.Errorf("%d messages came of %d", n, want)
		}
		return nil
	})
}

// push has the managed device push its key once more, and returns how long it took until the last device had it, how long
// until the device was done, and how many messages came to them.
func (p *pushing) push(ctx context.Context) (delivered, done time.Duration, messages int64, err error) {
	before := p.received()
	all := p.begin(p.lights)
	began := time.Now()
	if err := p.account.PushAgain(ctx); err != nil {
		return 0, 0, 0, err
	}
	done = time.Since(began)
	if delivered, err = p.wait(ctx, began, all); err != nil {
		return 0, 0, 0, err
	}
	err = p.drained(ctx, before+int64(p.forms*len(p.lights)))
	return delivered, done, p.received() - before, err
}

func (p *pushing) close() error {
	if p.crowded == nil {
		return nil
	}
	return p.crowded.close()
}
