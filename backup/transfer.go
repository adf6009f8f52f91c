package backup

import (
	"context"
	"crypto/ecdh"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"
)

// transfer carries keys: one goroutine reads the old version, some open and seal, one writes.
type transfer struct {
	client *Client
	job    CarryOver
	to     *ecdh.PublicKey

	mu      sync.Mutex // guards carried
	carried Carried
}

// carriedKey is a room key on its way; encoded is set when it is sealed for the new version.
type carriedKey struct {
	room    id.RoomID
	session id.SessionID
	key     session
	encoded json.RawMessage
}

func newTransfer(client *Client, job CarryOver, to *ecdh.PublicKey) *transfer {
	return &transfer{client: client, job: job, to: to}
}

func (t *transfer) result() Carried {
	t.mu.Lock()
	defer t.mu.Unlock()
	result := t.carried
	result.Undecrypted = slices.Clone(result.Undecrypted)
	slices.Sort(result.Undecrypted)
	return result
}

func (t *transfer) count(change func(*Carried)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.carried)
}

// run carries what the new version lacks. The first failure of any part ends all of them; what was written stays.
func (t *transfer) run(ctx context.Context, old *spooled, have index) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Few are on their way, so that memory does not grow with the version.
	opened, sealed := make(chan carriedKey, t.job.Workers), make(chan carriedKey, t.job.Workers)
	var reading, working sync.WaitGroup
	reading.Go(func() {
		defer close(opened)
		err := each(old, func(room id.RoomID, sessionID id.SessionID, key session) error {
			t.count(func(c *Carried) { c.Total++ })
			if !have.lacks(room, sessionID, key.FirstMessageIndex) {
				t.count(func(c *Carried) { c.Carried++ })
				return nil
			}
			select {
			case opened <- carriedKey{room: room, session: sessionID, key: key}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err != nil {
			cancel(err)
		}
	})
	for range t.job.Workers {
		working.Go(func() {
			for k := range opened {
				if err := t.reseal(&k); err != nil {
					cancel(err)
					return
				}
				if k.encoded == nil {
					continue
				}
				select {
				case sealed <- k:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	go func() { working.Wait(); close(sealed) }()
	err := t.write(ctx, sealed)
	if err != nil {
		cancel(err)
	}
	// The old version's file is the caller's again only when nobody reads it.
	reading.Wait()
	working.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// reseal opens a key with the old version's and seals it for the new one. One that does not open is counted, and left
// without an encoding.
func (t *transfer) reseal(k *carriedKey) error {
	plaintext, err := open(k.key.SessionData, t.job.FromKey)
	if err != nil {
		t.count(func(c *Carried) { c.Undecrypted = append(c.Undecrypted, k.session) })
		return nil
	}
	if k.key.SessionData, err = seal(plaintext, t.to); err != nil {
		return fmt.Errorf("encrypting a room key to key-backup version %s: %w", t.job.To, err)
	}
	if k.encoded, err = json.Marshal(k.key); err != nil {
		return fmt.Errorf("encoding a room key: %w", err)
	}
	k.key.SessionData = nil
	return nil
}

// write puts the sealed keys into the new version, as many in a request as its limit allows. A PUT without rooms makes
// Dendrite wipe auth_data, so there is none.
func (t *transfer) write(ctx context.Context, sealed <-chan carriedKey) error {
	b := newBatch(t.job.MaxBodyBytes)
	for k := range sealed {
		if b.add(k.room, k.session, k.encoded) {
			continue
		}
		if err := t.put(ctx, b); err != nil {
			return err
		}
		b = newBatch(t.job.MaxBodyBytes)
		b.add(k.room, k.session, k.encoded)
	}
	if b.keys == 0 || ctx.Err() != nil {
		return ctx.Err()
	}
	return t.put(ctx, b)
}

func (t *transfer) put(ctx context.Context, b *batch) error {
	done := func(time.Duration) {}
	if t.job.Pace != nil {
		var err error
		if done, err = t.job.Pace(ctx); err != nil {
			return err
		}
	}
	began := time.Now()
	err := t.client.writeRooms(ctx, t.job.To, b)
	done(time.Since(began))
	if err != nil {
		return err
	}
	t.count(func(c *Carried) { c.Carried += b.keys })
	if t.job.Progress != nil {
		t.job.Progress(t.result())
	}
	return nil
}
