package keyheraldtest

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/todevice"
)

// Receiver is an instrumented device: it keeps every payload byte for byte as it was decrypted, and counts how often
// each ciphertext was.
type Receiver struct {
	Endpoint *todevice.Endpoint
	db       *dbutil.Database

	mu          sync.Mutex // guards the rest
	messages    []Received
	decryptions map[[32]byte]int
}

// Received is a message as it was decrypted, with the SHA-256 of its ciphertext.
type Received struct {
	Type, Content  string
	CiphertextHash [32]byte
}

// NewReceiver logs a device in and publishes its keys; nothing has verified it yet. Its store goes into dir.
func NewReceiver(ctx context.Context, url string, user id.UserID, password string, device id.DeviceID, dir string) (*Receiver, error) {
	client, err := mautrix.NewClient(url, "", "")
	if err != nil {
		return nil, err
	}
	_, err = client.Login(ctx, &mautrix.ReqLogin{Type: mautrix.AuthTypePassword, Password: password, DeviceID: device, StoreCredentials: true,
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: user.String()}})
	if err != nil {
		return nil, fmt.Errorf("logging %s in as %s: %w", user, device, err)
	}
	raw, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "receiver-"+string(device)+".db")+"?_txlock=immediate&_pragma=journal_mode(WAL)")
	if err != nil {
		return nil, err
	}
	r := &Receiver{decryptions: map[[32]byte]int{}}
	if r.db, err = dbutil.NewWithDB(raw, "sqlite3"); err != nil {
		return nil, err
	}
	for _, schema := range todevice.Databases(r.db) {
		if err := schema.Upgrade(ctx); err != nil {
			return nil, err
		}
	}
	if r.Endpoint, err = todevice.New(todevice.Config{DB: r.db, Client: client, AccountID: "receiver", PickleKey: make([]byte, 32)}); err != nil {
		return nil, err
	}
	return r, r.Endpoint.PublishKeys(ctx)
}

// Close ends the use of its store.
func (r *Receiver) Close() error { return r.db.Close() }

// Receive asks the homeserver once and decrypts what came.
func (r *Receiver) Receive(ctx context.Context) error {
	if _, err := r.Endpoint.Sync(ctx, time.Second); err != nil {
		return err
	}
	return r.Endpoint.Process(ctx, r)
}

// Payloads are the last decrypted contents, by event type.
func (r *Receiver) Payloads() map[string]string {
	payloads := map[string]string{}
	for _, message := range r.Messages() {
		payloads[message.Type] = message.Content
	}
	return payloads
}

// Messages is everything that was decrypted, in that order.
func (r *Receiver) Messages() []Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.messages)
}

// PutAway counts the envelopes that were put away in a state: "duplicate" for identical bytes that came again,
// "undecryptable".
func (r *Receiver) PutAway(ctx context.Context, state string) (n int, err error) {
	err = r.db.QueryRow(ctx, `SELECT COUNT(*) FROM todevice_inbox WHERE state = $1`, state).Scan(&n)
	return n, err
}

// Decryptions counts by the SHA-256 of the ciphertext.
func (r *Receiver) Decryptions() map[[32]byte]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.decryptions)
}

// Admit implements todevice.Handler: everything is let in.
func (r *Receiver) Admit(context.Context, todevice.Envelope) (todevice.Admission, error) {
	return todevice.Admission{}, nil
}

// Handle implements todevice.Handler.
func (r *Receiver) Handle(_ context.Context, message *todevice.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.messages = append(r.messages, Received{message.Type, string(message.Content), message.CiphertextHash})
	r.decryptions[message.CiphertextHash]++
	return nil
}

// Undecryptable implements todevice.Handler; the endpoint keeps such an envelope with its reason.
func (r *Receiver) Undecryptable(context.Context, todevice.Envelope, string) error { return nil }
