package todevice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
)

// Envelope is a to-device event as the homeserver delivered it. Only its bytes are known: nothing in it is proved.
type Envelope struct {
	ID         string
	Sender     id.UserID
	Type       string
	Content    json.RawMessage
	ReceivedAt time.Time
}

// Message is a to-device event that may be handled: decrypted where it was encrypted. Type and Content are the inner
// ones. SenderKey and SenderSigningKey belong together and to Sender only as far as Identity, or a pin the handler
// holds, says so; they are empty for an unencrypted message.
type Message struct {
	Envelope
	Type             string
	Content          json.RawMessage
	SenderKey        id.Curve25519
	SenderSigningKey id.Ed25519
	CiphertextHash   [32]byte
	// Began is true where the message began an Olm session.
	Began bool
	// Identity is the sender as the homeserver presented him just before the transaction, if Admit asked for it.
	Identity *crosssigning.Identity
}

// SenderDevice is the device of Identity that holds both keys the message was sent with.
func (m *Message) SenderDevice() (crosssigning.Device, bool) {
	if m.Identity == nil || m.SenderKey == "" {
		return crosssigning.Device{}, false
	}
	device, ok := m.Identity.ByIdentityKey(m.SenderKey)
	if !ok || device.SigningKey != m.SenderSigningKey {
		return crosssigning.Device{}, false
	}
	return device, true
}

// Admission is what is to be done with an envelope before anything of it is decrypted.
type Admission struct {
	// Drop, if not empty, is why the envelope is put away unread.
	Drop string
	// Identity asks for the sender's devices, over HTTP, before the transaction begins.
	Identity bool
}

// Handler is the owner of an endpoint. Handle and Undecryptable run inside the transaction that also puts the
// envelope away: an error rolls everything back, and the envelope is tried again later. ErrUnusable from Handle keeps
// the decryption and puts the envelope away with its reason instead.
type Handler interface {
	Admit(ctx context.Context, envelope Envelope) (Admission, error)
	Handle(ctx context.Context, message *Message) error
	Undecryptable(ctx context.Context, envelope Envelope, reason string) error
}

// Unwedger is a Handler that is told, in the transaction that queues it, that a new Olm session with a device is opened,
// since a message of the device's could not be read.
type Unwedger interface {
	Unwedged(ctx context.Context, device crosssigning.Device) error
}

// ErrUnusable marks a message that was read and can never be acted on.
var ErrUnusable = errors.New("unusable")

// syncFilter keeps rooms, presence and account data out: the endpoint reads to-device messages alone.
const syncFilter = `{"room":{"rooms":[],"timeline":{"limit":1}},"presence":{"not_types":["*"]},"account_data":{"not_types":["*"]}}`

// Sync asks once for new to-device messages, waiting up to wait, and commits them raw together with the token. Only
// the next request tells the homeserver that they arrived, so a crash anywhere loses nothing. It then tops up the
// one-time keys where they run low. came is how many messages were committed; a homeserver gives a hundred or so at once.
func (e *Endpoint) Sync(ctx context.Context, wait time.Duration) (came int, err error) {
	var since string
	err = e.db.QueryRow(ctx, `SELECT COALESCE(MAX(sync_token), '') FROM todevice_account WHERE account_id = $1`, e.accountID).Scan(&since)
	if err != nil {
		return 0, fmt.Errorf("reading the sync token: %w", err)
	}
	resp, err := e.client.FullSyncRequest(ctx, mautrix.ReqSync{
		Timeout:     int((wait + e.patience).Milliseconds()),
		Since:       since,
		FilterID:    syncFilter,
		SetPresence: event.PresenceOffline,
	})
	if err != nil {
		return 0, fmt.Errorf("asking for to-device messages: %w", err)
	}
	err = e.InTxn(ctx, func(ctx context.Context) error {
		for _, evt := range resp.ToDevice.Events {
			if err := e.keep(ctx, evt); err != nil {
				return err
			}
		}
		// The old token is part of the condition: two syncs at once must not both count.
		result, err := e.db.Exec(ctx, `UPDATE todevice_account SET sync_token = $1 WHERE account_id = $2 AND sync_token = $3`,
			resp.NextBatch, e.accountID, since)
		if err != nil {
			return fmt.Errorf("keeping the sync token: %w", err)
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 {
			return errors.New("another process took this device's messages: two programs run the same device")
		}
		return nil
	})
	if slices.Contains(resp.DeviceLists.Changed, e.client.UserID) {
		// Also where that failed: the token may have been kept, and then the homeserver does not say it again.
		signal(e.changed)
	}
	if err != nil {
		return 0, err
	}
	came = len(resp.ToDevice.Events)
	if came > 0 {
		signal(e.arrived)
	}
	if resp.DeviceOTKCount.SignedCurve25519 < otkLow {
		if err := e.PublishKeys(ctx); err != nil {
			return came, err
		}
	}
	return came, nil
}

func (e *Endpoint) keep(ctx context.Context, evt *event.Event) error {
	rowID, err := newID()
	if err != nil {
		return err
	}
	content := evt.Content.VeryRaw
	if len(content) == 0 {
		content = json.RawMessage("{}")
	}
	_, err = e.db.Exec(ctx, `INSERT INTO todevice_inbox (id, account_id, sender, type, content, received_at) VALUES ($1, $2, $3, $4, $5, $6)`,
		rowID, e.accountID, evt.Sender, evt.Type.Type, string(content), e.now().UnixMilli())
	if err != nil {
		return fmt.Errorf("keeping a to-device message: %w", err)
	}
	return nil
}

// Process hands every pending envelope that is due to the handler, oldest first, each in a transaction of its own. An
// envelope whose handling failed waits, with growing delay, and does not hold up those behind it. The error is the
// first that stopped an envelope; the rest were tried all the same.
func (e *Endpoint) Process(ctx context.Context, handler Handler) error {
	const batch = 256
	var first error
	after := ""
	for {
		envelopes, err := e.pending(ctx, after, batch)
		if err != nil {
			return err
		}
		for _, envelope := range envelopes {
			after = envelope.ID
			if err := e.processOne(ctx, handler, envelope); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				first = errors.Join(first, e.postpone(ctx, envelope, err))
			}
		}
		if len(envelopes) < batch {
			return first
		}
	}
}

// Waiting reports whether the inbox has a message that Process has still to handle, be it later.
func (e *Endpoint) Waiting(ctx context.Context) (waiting bool, err error) {
	err = e.db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM todevice_inbox WHERE account_id = $1 AND state = 'pending')`, e.accountID).Scan(&waiting)
	if err != nil {
		return false, fmt.Errorf("reading the inbox: %w", err)
	}
	return waiting, nil
}

func (e *Endpoint) pending(ctx context.Context, after string, limit int) ([]Envelope, error) {
	rows, err := e.db.Query(ctx, `SELECT id, sender, type, content, received_at FROM todevice_inbox
		WHERE account_id = $1 AND state = 'pending' AND id > $2 AND next_try <= $3 ORDER BY id LIMIT $4`,
		e.accountID, after, e.now().UnixMilli(), limit)
	if err != nil {
		return nil, fmt.Errorf("reading the inbox: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var envelopes []Envelope
	for rows.Next() {
		var envelope Envelope
		var content string
		var received int64
		if err := rows.Scan(&envelope.ID, &envelope.Sender, &envelope.Type, &content, &received); err != nil {
			return nil, fmt.Errorf("reading the inbox: %w", err)
		}
		envelope.Content, envelope.ReceivedAt = json.RawMessage(content), time.UnixMilli(received).UTC()
		envelopes = append(envelopes, envelope)
	}
	return envelopes, rows.Err()
}

func (e *Endpoint) processOne(ctx context.Context, handler Handler, envelope Envelope) error {
	admission, err := handler.Admit(ctx, envelope)
	if err != nil {
		return err
	}
	var identity *crosssigning.Identity
	if admission.Identity && admission.Drop == "" {
		identities, err := e.Identities(ctx, envelope.Sender)
		if err != nil {
			return err
		}
		found := identities[envelope.Sender]
		identity = &found
	}
	var unread bool
	err = e.InTxn(ctx, func(ctx context.Context) error {
		if admission.Drop != "" {
			return e.putAway(ctx, envelope, "dropped", admission.Drop)
		}
		message := &Message{Envelope: envelope, Type: envelope.Type, Content: envelope.Content}
		if envelope.Type == event.ToDeviceEncrypted.Type {
			var err error
			if message, err = e.decrypt(ctx, envelope); errors.Is(err, errDuplicate) {
				return e.putAway(ctx, envelope, "duplicate", "")
			} else if err != nil && undecryptable(err) {
				unread = true
				if err := handler.Undecryptable(ctx, envelope, err.Error()); err != nil {
					return err
				}
				return e.putAway(ctx, envelope, "undecryptable", err.Error())
			} else if err != nil {
				return err
			}
		}
		message.Identity = identity
		if err := handler.Handle(ctx, message); errors.Is(err, ErrUnusable) {
			return e.putAway(ctx, envelope, "unusable", err.Error())
		} else if err != nil {
			return err
		}
		return e.putAway(ctx, envelope, "done", "")
	})
	if err == nil && unread {
		e.unwedge(ctx, handler, envelope)
	}
	return err
}

// putAway ends an envelope. Those that were handled keep no content: it is ciphertext that nobody needs again.
func (e *Endpoint) putAway(ctx context.Context, envelope Envelope, state, reason string) error {
	content := ""
	if state == "undecryptable" || state == "unusable" {
		content = string(envelope.Content)
	}
	_, err := e.db.Exec(ctx, `UPDATE todevice_inbox SET state = $1, reason = $2, content = $3 WHERE id = $4`,
		state, reason, content, envelope.ID)
	if err != nil {
		return fmt.Errorf("putting an envelope away: %w", err)
	}
	return nil
}

func (e *Endpoint) postpone(ctx context.Context, envelope Envelope, cause error) error {
	e.log.Warn().Err(cause).Str("envelope", envelope.ID).Stringer("sender", envelope.Sender).Msg("A to-device message will be tried again")
	tries := 1
	err := e.db.QueryRow(ctx, `UPDATE todevice_inbox SET tries = tries + 1 WHERE id = $1 RETURNING tries`, envelope.ID).Scan(&tries)
	wait := backoff(max(tries, 1))
	if err == nil {
		_, err = e.db.Exec(ctx, `UPDATE todevice_inbox SET next_try = $1 WHERE id = $2`, e.now().Add(wait).UnixMilli(), envelope.ID)
	}
	// No message may come that would make anybody look again.
	time.AfterFunc(wait, func() { signal(e.arrived) })
	return errors.Join(cause, err)
}

// unwedge opens a new Olm session with a device whose message could not be read, by an empty m.dummy through the
// outbox, at most once an hour and device (client-server API, "Recovering from undecryptable messages").
func (e *Endpoint) unwedge(ctx context.Context, handler Handler, envelope Envelope) {
	var content encryptedContent
	if json.Unmarshal(envelope.Content, &content) != nil || content.SenderKey == "" {
		return
	}
	err := func() error {
		identities, err := e.Identities(ctx, envelope.Sender)
		if err != nil {
			return err
		}
		device, ok := identities[envelope.Sender].ByIdentityKey(content.SenderKey)
		if !ok {
			return nil
		}
		key := fmt.Sprintf("unwedge/%s/%d", device.IdentityKey, e.now().Unix()/3600)
		if sent, err := e.Has(ctx, key); err != nil || sent {
			return err
		}
		claims, err := e.Claim(ctx, true, device)
		if err != nil || len(claims) == 0 {
			return err
		}
		return e.InTxn(ctx, func(ctx context.Context) error {
			if unwedger, ok := handler.(Unwedger); ok {
				if err := unwedger.Unwedged(ctx, device); err != nil {
					return err
				}
			}
			return e.Queue(ctx, Outgoing{Key: key, To: device, Type: event.ToDeviceDummy.Type, Content: struct{}{}}, claims)
		})
	}()
	if err != nil {
		e.log.Warn().Err(err).Stringer("sender", envelope.Sender).Msg("A new Olm session could not be opened")
	}
}
