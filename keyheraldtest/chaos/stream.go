package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
)

// accepted is a notification that a server answered 202.
type accepted struct {
	id   string
	user *user
	body []byte
	at   time.Time
}

// ledger is what the KMS knows of its own notifications.
type ledger struct {
	mu       sync.Mutex
	accepted []accepted
}

func (l *ledger) add(a accepted) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepted = append(l.accepted, a)
}

func (l *ledger) all() []accepted {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]accepted(nil), l.accepted...)
}

// stream rotates one user's key again and again until stop is closed, each time when the last rotation has ended or
// after a while, so that some are superseded under way.
func (w *world) stream(ctx context.Context, u *user, book *ledger, random *rand.Rand, stop <-chan struct{}) error {
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-stop:
			return nil
		default:
		}
		key, err := backupkey.Generate()
		if err != nil {
			return err
		}
		version, err := w.setec.PutKey(ctx, u.path(), key)
		if err != nil {
			return err
		}
		u.keys = append(u.keys, key)
		id := fmt.Sprintf("%s-%d", u.name, n)
		body, err := json.Marshal(map[string]any{"specversion": "1.0", "type": "com.example.secret.rotated", "source": "/setec", "id": id,
			"subject": u.path(), "datacontenttype": "application/json", "data": map[string]string{"version": version}})
		if err != nil {
			return err
		}
		if err := w.notify(ctx, body, random.IntN(2)); err != nil {
			return err
		}
		book.add(accepted{id, u, body, time.Now()})
		w.pause(ctx, u, time.Duration(500+random.IntN(7500))*time.Millisecond, stop)
		if err := w.checkEnded(ctx, u, version); err != nil {
			return err
		}
	}
}

// pause waits until the user's rotations have ended, and no longer than patience.
func (w *world) pause(ctx context.Context, u *user, patience time.Duration, stop <-chan struct{}) {
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		select {
		case <-ctx.Done():
			return
		case <-stop:
			return
		case <-time.After(50 * time.Millisecond):
		}
		var open int
		err := w.db.QueryRow(ctx, `SELECT COUNT(*) FROM rotation WHERE user_id = $1 AND ended_at IS NULL`, u.id).Scan(&open)
		if err == nil && open == 0 {
			return
		}
	}
}

// checkEnded looks at the room keys where the rotation to the user's newest version is done, before another one begins.
func (w *world) checkEnded(ctx context.Context, u *user, version string) error {
	var done int
	err := w.db.QueryRow(ctx, `SELECT COUNT(*) FROM rotation WHERE user_id = $1 AND version = $2 AND state = 'done'`, u.id, version).Scan(&done)
	if err != nil || done == 0 {
		return nil // PostgreSQL is down, or it goes on: then the next one has to carry on from there
	}
	return keyheraldtest.Until(ctx, time.Minute, func() error { return w.checkHistory(ctx, u) })
}

// notify sends a notification as a KMS does: to one server or the other, again and again until one says 202.
func (w *world) notify(ctx context.Context, body []byte, door int) error {
	for try := 0; ; try++ {
		status, err := w.post(ctx, w.doors[(door+try)%len(w.doors)], body)
		if err == nil && status == http.StatusAccepted {
			return nil
		}
		if err == nil && status/100 == 4 {
			return fmt.Errorf("a notification was refused with %d", status)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (w *world) post(ctx context.Context, door string, body []byte) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	now, message := time.Now(), uuid.NewString()
	signature, err := intake.Sign(w.signingKey, message, now, body)
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+door+"/notify/corporate-kms", strings.NewReader(string(body)))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/cloudevents+json")
	req.Header.Set("Webhook-Id", message)
	req.Header.Set("Webhook-Timestamp", strconv.FormatInt(now.Unix(), 10))
	req.Header.Set("Webhook-Signature", signature)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Body.Close()
}

// receive keeps a receiving client up: it asks and decrypts until ctx ends.
func receive(ctx context.Context, do func(context.Context) error) {
	for ctx.Err() == nil {
		if err := do(ctx); err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
}
