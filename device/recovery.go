package device

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/crypto/ssss"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/secretstorage"
)

// ProvideRecoveryKey keeps the user's present recovery key, sealed, so that the recovery copy can be rewritten, and wakes
// what waited for it. A key that does not open the user's secret storage is refused.
func (a *Account) ProvideRecoveryKey(ctx context.Context, recoveryKey string) error {
	keyID, metadata, err := ssss.NewSSSSMachine(a.client).GetDefaultKeyData(ctx)
	if errors.Is(err, ssss.ErrNoDefaultKeyID) {
		return errors.New("the user has no secret storage: there is nothing that a recovery key would open")
	} else if err != nil {
		return fmt.Errorf("reading the secret storage's key metadata: %w", err)
	}
	fourS, err := metadata.VerifyRecoveryKey(keyID, recoveryKey)
	if errors.Is(err, ssss.ErrUnverifiableKey) {
		return errors.New("the secret storage does not say how to check its key, so that none can be trusted: let the user set up recovery again")
	} else if err != nil {
		return errors.New("the recovery key does not open the user's secret storage: check that it is the present one")
	}
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		if err := a.store.putSealed(ctx, "4s", fourS.Key); err != nil {
			return err
		}
		if err := a.did(ctx, protocol.Act{Kind: protocol.ActRecoveryKeyProvided}); err != nil {
			return err
		}
		return a.store.wakeJobs(ctx)
	})
}

// Replaced is what became of a replaced recovery key.
type Replaced struct {
	// KeyID is the new key's id in secret storage, and Where the new recovery key is kept.
	KeyID, Where string
	// Rewritten are the entries that the new key opens. LeftBehind are those that could not be opened, or were for other
	// keys already: they stay as they are.
	Rewritten, LeftBehind []string
}

// replacement is a recovery key that is being replaced, kept sealed until it is: a new try goes on with the same key.
type replacement struct {
	From     string            `json:"from"`
	ID       string            `json:"id"`
	Key      []byte            `json:"key"`
	Metadata *ssss.KeyMetadata `json:"metadata"`
	// switched is set where the new key is the default already.
	switched bool
}

// replacedKey is what the status says of the last replacement, for somebody who does not know whether his was done.
type replacedKey struct {
	ID    string    `json:"key_id"`
	Where string    `json:"kept_in"`
	At    time.Time `json:"at"`
}

func (r replacement) key() *ssss.Key { return &ssss.Key{ID: r.ID, Key: r.Key, Metadata: r.Metadata} }

// ReplaceRecoveryKey gives the user's secret storage a new key: the new recovery key is kept where the config says, then
// everything that the old one opens, and what the device holds by itself, is encrypted for the new key, and then the new
// key becomes the default. Whatever stops it, the next call goes on, and until the switch the old recovery key works. An
// entry of the present key that nobody here can open would be lost to the user with the switch: without leaveBehind that
// is refused while nothing is changed.
func (a *Account) ReplaceRecoveryKey(ctx context.Context, leaveBehind bool) (Replaced, error) {
	if a.config.escrow() == (Escrow{}) {
		return Replaced{}, errors.New("escrow: set file, or kms, to where the new recovery key is to be kept")
	}
	storage := secretstorage.New(a.client)
	next, entries, err := a.beginReplacing(ctx, storage)
	if err != nil {
		return Replaced{}, err
	}
	payloads, behind, err := a.openEntries(ctx, entries, next)
	if err != nil {
		return Replaced{}, err
	}
	if err := a.mayLeaveBehind(ctx, next, entries, behind, leaveBehind); err != nil {
		return Replaced{}, err
	}
	if err := a.sealReplacement(ctx, next); err != nil {
		return Replaced{}, err
	}
	key := next.key()
	replaced := Replaced{KeyID: next.ID, LeftBehind: behind}
	if replaced.Where, err = a.keepReplaced(ctx, next.ID, key.RecoveryKey()); err != nil {
		return replaced, err
	}
	if err := storage.Describe(ctx, key); err != nil {
		return replaced, err
	}
	for _, p := range payloads {
		if err := storage.Put(ctx, p.name, p.payload, key, false); err != nil {
			return replaced, err
		}
	}
	if err := storage.Switch(ctx, next.From, next.ID); errors.Is(err, secretstorage.ErrChanged) {
		return replaced, a.dropReplacement(ctx, err)
	} else if err != nil {
		return replaced, err
	}
	// Only now: until the switch the old recovery key had to open everything. From here on it must not.
	for _, p := range payloads {
		if err := storage.Put(ctx, p.name, p.payload, key, true); err != nil {
			return replaced, err
		}
		replaced.Rewritten = append(replaced.Rewritten, p.name)
	}
	return replaced, a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		if err := a.store.putSealed(ctx, "4s", next.Key); err != nil {
			return err
		}
		if err := a.store.dropSealed(ctx, "4s_next"); err != nil {
			return err
		}
		encoded, err := json.Marshal(replacedKey{next.ID, replaced.Where, a.now()})
		if err != nil {
			return fmt.Errorf("journaling the new recovery key: %w", err)
		}
		if err := a.store.set(ctx, "recovery_key", string(encoded)); err != nil {
			return err
		}
		if err := a.did(ctx, protocol.Act{Kind: protocol.ActRecoveryKeyReplaced, KeyID: next.ID}); err != nil {
			return err
		}
		return a.store.wakeJobs(ctx)
	})
}

// beginReplacing takes up the replacement that an earlier call left, or makes a new key, and lists the entries.
func (a *Account) beginReplacing(ctx context.Context, storage *secretstorage.Client) (next replacement, entries []secretstorage.Entry, err error) {
	current, err := storage.DefaultKey(ctx)
	if err != nil {
		return next, nil, err
	}
	if current == "" {
		return next, nil, errors.New("the user has no secret storage: there is no recovery key to replace")
	}
	raw, err := a.store.sealedValue(ctx, "4s_next")
	if err != nil {
		return next, nil, err
	}
	if raw != nil && json.Unmarshal(raw, &next) != nil {
		return next, nil, errors.New("reading the replacement that was begun: it is malformed")
	}
	switch {
	case raw != nil && current != next.From && current != next.ID:
		return next, nil, a.dropReplacement(ctx, secretstorage.ErrChanged)
	case raw == nil:
		key, err := ssss.NewKey("")
		if err != nil {
			return next, nil, fmt.Errorf("making a recovery key: %w", err)
		}
		// mautrix's ids are base64, whose slashes have no place in a file's name.
		next = replacement{From: current, ID: rand.Text(), Key: key.Key, Metadata: key.Metadata}
	}
	next.switched = current == next.ID
	entries, err = storage.Entries(ctx, secretNames...)
	return next, entries, err
}

func (a *Account) sealReplacement(ctx context.Context, next replacement) error {
	encoded, err := json.Marshal(next)
	if err != nil {
		return errors.New("keeping the new recovery key: it cannot be encoded")
	}
	return a.store.putSealed(ctx, "4s_next", encoded)
}

// dropReplacement forgets a key that nobody uses: somebody else gave the storage another one.
func (a *Account) dropReplacement(ctx context.Context, cause error) error {
	return errors.Join(fmt.Errorf("%w: the new recovery key is not used; provide the present one (keyherald-device provide-recovery-key) and run it again", cause),
		a.store.dropSealed(ctx, "4s_next"))
}

func (s *store) dropSealed(ctx context.Context, name string) error {
	if _, err := s.db.Exec(ctx, `DELETE FROM sealed WHERE name = $1`, name); err != nil {
		return fmt.Errorf("dropping a sealed value: %w", err)
	}
	return nil
}

type payload struct {
	name    string
	payload []byte
}

// openEntries gives what the new key is to open: what the storage has for it already, what the old key opens, and what the
// device holds. behind names the rest.
func (a *Account) openEntries(ctx context.Context, entries []secretstorage.Entry, next replacement) (payloads []payload, behind []string, err error) {
	raw, err := a.store.sealedValue(ctx, "4s")
	if err != nil {
		return nil, nil, err
	}
	trueKeys, err := a.trueKeys(ctx)
	if err != nil {
		return nil, nil, err
	}
	old, now := &ssss.Key{ID: next.From, Key: raw}, next.key()
	for _, entry := range entries {
		opened, err := entry.Open(now)
		if err != nil && raw != nil {
			opened, err = entry.Open(old)
		}
		if err != nil {
			opened = nil
		}
		if slices.Contains(secretNames, entry.Name) {
			if opened, err = a.check(ctx, entry.Name, opened, trueKeys); err != nil {
				return nil, nil, err
			}
		}
		if opened == nil {
			behind = append(behind, entry.Name)
			continue
		}
		payloads = append(payloads, payload{entry.Name, opened})
	}
	return payloads, behind, nil
}

// trueKeys are the public keys that the user's secrets must derive now, by name.
func (a *Account) trueKeys(ctx context.Context) (map[string]string, error) {
	identities, err := a.endpoint.Identities(ctx, a.config.UserID)
	if err != nil {
		return nil, err
	}
	keys := map[string]string{}
	for _, name := range crossSigningNames {
		keys[name] = publicCrossSigningKey(identities[a.config.UserID], name)
	}
	current, err := a.backup.Current(ctx)
	if err != nil {
		return nil, err
	}
	if current != nil {
		keys[protocol.SecretMegolmBackup] = current.PublicKey
	}
	return keys, nil
}

// check looks at what a known entry opened to. What is not the key that it must be now gives way to the one the device
// holds; if it holds none, an older key stays, and what is no key at all is nothing.
func (a *Account) check(ctx context.Context, name string, opened []byte, trueKeys map[string]string) ([]byte, error) {
	derived, parseErr := publicKeyOf(name, string(opened))
	if parseErr == nil && derived == trueKeys[name] {
		return opened, nil
	}
	held, err := a.heldPayload(ctx, name, trueKeys[name])
	if err != nil || held != nil {
		return held, err
	}
	if parseErr != nil {
		return nil, nil
	}
	return opened, nil
}

// heldPayload is the secret for a public key, where the device holds it by itself; nil where it does not.
func (a *Account) heldPayload(ctx context.Context, name, publicKey string) ([]byte, error) {
	if publicKey == "" {
		return nil, nil
	}
	if name == protocol.SecretMegolmBackup {
		key, held, err := a.searchKey(ctx, publicKey)
		if err != nil || !held {
			return nil, err
		}
		return secretstorage.Payload(key.Reveal()), nil
	}
	seed, err := a.store.sealedValue(ctx, "cross_signing/"+name)
	if err != nil || seed == nil || !derives(seed, publicKey) {
		return nil, err
	}
	return secretstorage.Payload(seed), nil
}

// mayLeaveBehind refuses a switch that takes a secret away from the user: one that is there for the present key, while
// that key is not in hand. What the present key in hand does not open is lost to him already.
func (a *Account) mayLeaveBehind(ctx context.Context, next replacement, entries []secretstorage.Entry, behind []string, agreed bool) error {
	var lost []string
	for _, entry := range entries {
		if entry.For(next.From) && slices.Contains(behind, entry.Name) {
			lost = append(lost, entry.Name)
		}
	}
	if len(lost) == 0 || agreed || next.switched {
		return nil
	}
	raw, err := a.store.sealedValue(ctx, "4s")
	if err != nil {
		return err
	}
	if _, err := a.backup.CheckWritable(ctx, raw); err == nil {
		return nil
	} else if !errors.Is(err, backup.ErrNotWritable) {
		return err
	}
	return fmt.Errorf("the present recovery key is not in hand, and %s would be lost to the user: provide it (keyherald-device provide-recovery-key), "+
		"adopt them from another device (keyherald-device adopt-secrets), or leave them behind on purpose", strings.Join(lost, ", "))
}

// resumeReplacing finishes a replacement that was stopped after the switch, once a run. One that was stopped before is
// left to whoever began it.
func (a *Account) resumeReplacing(ctx context.Context) error {
	if a.resumed {
		return nil
	}
	raw, err := a.store.sealedValue(ctx, "4s_next")
	if err != nil {
		return err
	}
	var next replacement
	if raw != nil {
		if json.Unmarshal(raw, &next) != nil {
			return errors.New("reading the replacement that was begun: it is malformed")
		}
		current, err := secretstorage.New(a.client).DefaultKey(ctx)
		if err != nil {
			return err
		}
		if current == next.ID {
			if _, err := a.ReplaceRecoveryKey(ctx, true); err != nil {
				return err
			}
		} else {
			a.log.Warn().Msg("A new recovery key was begun and is not in use: run keyherald-device recovery replace again")
		}
	}
	a.resumed = true
	return nil
}
