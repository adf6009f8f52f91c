package device

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/msc4385"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// The judgements of receive.accept.
const (
	acceptAlways = "always"
	acceptAsk    = "ask"
	acceptNever  = "never"
)

// policy is receive.accept in the words of the proposal's rules.
func (r Receive) policy() map[string]msc4385.Verdict {
	policy := map[string]msc4385.Verdict{protocol.SecretMegolmBackup: msc4385.Accept}
	for name, judgement := range r.Accept {
		switch judgement {
		case acceptAlways:
			policy[name] = msc4385.Accept
		case acceptAsk:
			policy[name] = msc4385.Ask
		default:
			policy[name] = msc4385.Refuse
		}
	}
	return policy
}

// maxWaiting is how many secrets of a name are kept at once; the newest stay.
const maxWaiting = 32

// receive keeps a secret sealed until it can be checked, which takes HTTP and so happens outside of this transaction. An
// answer to a request counts only as that; what comes unasked is judged by receive.accept.
func (a *Account) receive(ctx context.Context, message *todevice.Message) error {
	push, err := msc4385.Parse(message.Type, message.Content)
	if err != nil {
		return fmt.Errorf("%w: %w", todevice.ErrUnusable, err)
	}
	p, err := a.pin(ctx)
	if err != nil {
		return err
	}
	sender, trusted := a.ownDevice(message, p)
	if push.Kind == msc4385.Response {
		return a.answered(ctx, push, sender, trusted)
	}
	verdict, reason := msc4385.Decide(a.config.UserID.String(), msc4385.Sender{UserID: message.Sender.String(), CrossSigned: trusted,
		ThisDevice: sender.DeviceID == a.client.DeviceID, Dehydrated: sender.Dehydrated}, push.Name, a.config.Receive.policy())
	state := "new"
	switch verdict {
	case msc4385.Accept:
	case msc4385.Ask:
		state = "parked"
		a.log.Warn().Stringer("device", sender.DeviceID).Str("secret", protocol.KnownSecret(push.Name)).
			Msg("A secret waits for a person: keyherald-device pending-secrets list")
	default:
		return fmt.Errorf("%w: %s", todevice.ErrUnusable, reason)
	}
	return a.keepReceived(ctx, push.Name, "", sender.DeviceID, state, push.Secret)
}

// answered keeps the answer to an open request of our own, from a device that it went to.
func (a *Account) answered(ctx context.Context, push msc4385.Message, sender crosssigning.Device, trusted bool) error {
	if !trusted {
		return fmt.Errorf("%w: an answer that is not from a cross-signed device of the user", todevice.ErrUnusable)
	}
	open, err := a.openAsking(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(open, func(r asking) bool {
		return r.requestID == push.RequestID && r.state == "open" && slices.Contains(r.devices, sender.DeviceID)
	})
	if i < 0 {
		return fmt.Errorf("%w: an answer to no open request", todevice.ErrUnusable)
	}
	return a.keepReceived(ctx, open[i].name, push.RequestID, sender.DeviceID, "new", push.Secret)
}

func (a *Account) keepReceived(ctx context.Context, name, requestID string, sender id.DeviceID, state string, secret msc4385.Secret) error {
	box := a.store.seal.Seal(nil, nil, []byte(secret.Reveal()), []byte("received"))
	_, err := a.store.db.Exec(ctx, `INSERT INTO received (name, sender, value, state, request_id, received_at) VALUES ($1, $2, $3, $4, $5, $6)`,
		name, sender, box, state, requestID, a.now().UnixMilli())
	if err != nil {
		return fmt.Errorf("keeping a received secret: %w", err)
	}
	_, err = a.store.db.Exec(ctx, `DELETE FROM received WHERE name = $1 AND state = $2 AND id NOT IN (
		SELECT id FROM received WHERE name = $1 AND state = $2 ORDER BY id DESC LIMIT $3)`, name, state, maxWaiting)
	if err != nil {
		return fmt.Errorf("dropping the oldest received secrets: %w", err)
	}
	return nil
}

var errSealed = errors.New("a sealed value does not open: the pickle key is not the one it was sealed with")

// waiting is a received secret. It fits if its public key is the one that counts.
type waiting struct {
	id              int64
	name, requestID string
	sender          id.DeviceID
	secret          msc4385.Secret
	publicKey       string
}

// adopt compares received secrets with what is true now: the current version, the user's identity, or the version that
// was asked for. Of several, the newest that fits is kept, and all the rest is dropped. It returns what it kept.
func (a *Account) adopt(ctx context.Context) (kept []waiting, err error) {
	received, err := a.newlyReceived(ctx)
	if err != nil || len(received) == 0 {
		return nil, err
	}
	current, err := a.backup.Current(ctx)
	if err != nil {
		return nil, err
	}
	var identity crosssigning.Identity
	if slices.ContainsFunc(received, func(w waiting) bool { return w.name != protocol.SecretMegolmBackup }) {
		identities, err := a.endpoint.Identities(ctx, a.config.UserID)
		if err != nil {
			return nil, err
		}
		identity = identities[a.config.UserID]
	}
	p, err := a.pin(ctx)
	if err != nil {
		return nil, err
	}
	open, err := a.openAsking(ctx)
	if err != nil {
		return nil, err
	}
	fits := func(w waiting) bool {
		if w.publicKey == "" {
			return false
		}
		if i := slices.IndexFunc(open, func(r asking) bool { return r.requestID == w.requestID && r.state == "open" }); w.requestID != "" {
			return i >= 0 && open[i].publicKey == w.publicKey
		}
		return w.publicKey == wanted(w.name, current, identity, p)
	}
	err = a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		kept = nil
		for _, w := range received {
			if !slices.ContainsFunc(kept, func(k waiting) bool { return k.publicKey == w.publicKey }) && fits(w) {
				if err := a.keep(ctx, w); err != nil {
					return err
				}
				kept = append(kept, w)
			} else {
				a.log.Info().Stringer("device", w.sender).Str("secret", w.name).Bool("answer", w.requestID != "").
					Msg("A received secret is not the one that counts, or another one like it is kept, and is dropped")
			}
			if _, err := a.store.db.Exec(ctx, `DELETE FROM received WHERE id = $1`, w.id); err != nil {
				return fmt.Errorf("dropping a received secret: %w", err)
			}
		}
		return nil
	})
	if err != nil || len(kept) == 0 {
		return nil, err
	}
	return kept, a.sendStatus(ctx)
}

// wanted is the public key that a secret which came unasked has to derive; empty fits nothing.
func wanted(name string, current *backup.Version, identity crosssigning.Identity, p pin) string {
	switch {
	case name == protocol.SecretMegolmBackup && current != nil:
		return current.PublicKey
	case name != protocol.SecretMegolmBackup && identity.PinnedTo(p.OwnMasterKey):
		return publicCrossSigningKey(identity, name)
	}
	return ""
}

// keep keeps a secret that fits. Whoever waits for the key is woken, and nobody else is asked for it any more.
func (a *Account) keep(ctx context.Context, w waiting) error {
	if err := a.keepSecret(ctx, w.name, w.secret.Reveal()); err != nil {
		return err
	}
	if err := a.stopAsking(ctx, w.publicKey); err != nil {
		return err
	}
	if w.requestID != "" || w.name != protocol.SecretMegolmBackup {
		// A pushed backup key is what this device is for; its status says that it holds it.
		if err := a.did(ctx, protocol.Act{Kind: protocol.ActSecretKept, Secret: w.name, DeviceID: w.sender}); err != nil {
			return err
		}
	}
	return a.store.wakeJobs(ctx)
}

// wakeJobs makes every open rotation due: what it waited for may be there.
func (s *store) wakeJobs(ctx context.Context) error {
	if _, err := s.db.Exec(ctx, `UPDATE journal SET next_try = 0 WHERE NOT ended`); err != nil {
		return fmt.Errorf("waking the open rotations: %w", err)
	}
	return nil
}

// newlyReceived are the secrets that the device is to compare itself, newest first.
func (a *Account) newlyReceived(ctx context.Context) ([]waiting, error) {
	rows, err := a.store.db.Query(ctx, `SELECT id, name, request_id, sender, value FROM received WHERE state = 'new' ORDER BY id DESC`)
	if err != nil {
		return nil, fmt.Errorf("reading the received secrets: %w", err)
	}
	var received []waiting
	for rows.Next() {
		var w waiting
		var box []byte
		if err := rows.Scan(&w.id, &w.name, &w.requestID, &w.sender, &box); err != nil {
			return nil, errors.Join(fmt.Errorf("reading the received secrets: %w", err), rows.Close())
		}
		raw, err := a.store.seal.Open(nil, nil, box, []byte("received"))
		if err != nil {
			return nil, errors.Join(errSealed, rows.Close())
		}
		w.secret = msc4385.NewSecret(string(raw))
		// What derives no public key fits nothing, and is dropped with the rest.
		w.publicKey, _ = publicKeyOf(w.name, w.secret.Reveal())
		received = append(received, w)
	}
	return received, errors.Join(rows.Err(), rows.Close())
}
