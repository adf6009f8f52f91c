package todevice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
)

// Outgoing is a message to one device. Key names it for good: a second message with the same key is not encrypted.
type Outgoing struct {
	Key     string
	To      crosssigning.Device
	Type    string
	Content any
}

// Queue encrypts a message within InTxn and leaves ciphertext and transaction id in the outbox. A key that is in the
// outbox already is left as it is. ErrNoOneTimeKey means that there is neither a session nor a claim for the device.
func (e *Endpoint) Queue(ctx context.Context, out Outgoing, claims Claims) error {
	state, err := e.state(ctx)
	if err != nil {
		return err
	}
	if known, err := e.Has(ctx, out.Key); err != nil || known {
		return err
	}
	content, err := json.Marshal(out.Content)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", out.Type, err)
	}
	ciphertext, err := e.encrypt(ctx, out.To, out.Type, content, claims)
	if err != nil {
		return err
	}
	rowID, err := newID()
	if err != nil {
		return err
	}
	_, err = e.db.Exec(ctx, `INSERT INTO todevice_outbox (id, account_id, key, recipient_user, recipient_device, type, content, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		rowID, e.accountID, out.Key, out.To.UserID, out.To.DeviceID, out.Type, string(ciphertext), e.now().UnixMilli())
	if err != nil {
		return fmt.Errorf("keeping %s in the outbox: %w", out.Type, err)
	}
	state.queued = true
	return nil
}

// Has reports whether the outbox knows the key, whatever became of the message.
func (e *Endpoint) Has(ctx context.Context, key string) (bool, error) {
	var n int
	err := e.db.QueryRow(ctx, `SELECT COUNT(*) FROM todevice_outbox WHERE account_id = $1 AND key = $2`, e.accountID, key).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("looking into the outbox: %w", err)
	}
	return n > 0, nil
}

// State tells what became of the message with this key: pending, sent or refused; empty if there is none.
func (e *Endpoint) State(ctx context.Context, key string) (string, error) {
	var state string
	err := e.db.QueryRow(ctx, `SELECT COALESCE(MAX(state), '') FROM todevice_outbox WHERE account_id = $1 AND key = $2`, e.accountID, key).Scan(&state)
	if err != nil {
		return "", fmt.Errorf("looking into the outbox: %w", err)
	}
	return state, nil
}

// Sent is told, in the transaction that records it, what the homeserver answered: accepted, or refused for good with
// a reason.
type Sent func(ctx context.Context, key string, refusal string) error

type outboxRow struct {
	id, key, content string
	user             id.UserID
	device           id.DeviceID
	tries            int
}

// Flush sends what is due in the outbox, oldest first, always the committed bytes under the committed transaction id.
// An answer that may come right later (no answer, 429, 5xx) leaves the row pending for a later Flush. It returns when
// the next pending row is due, zero if there is none.
func (e *Endpoint) Flush(ctx context.Context, sent Sent) (next time.Time, err error) {
	e.flushing.Lock()
	defer e.flushing.Unlock()
	rows, err := e.due(ctx)
	if err != nil {
		return time.Time{}, err
	}
	for _, row := range rows {
		if err := e.send(ctx, row, sent); err != nil {
			return time.Time{}, err
		}
	}
	var due int64
	err = e.db.QueryRow(ctx, `SELECT COALESCE(MIN(next_try), -1) FROM todevice_outbox WHERE account_id = $1 AND state = 'pending'`, e.accountID).Scan(&due)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the outbox: %w", err)
	}
	if due < 0 {
		return time.Time{}, nil
	}
	return time.UnixMilli(due), nil
}

func (e *Endpoint) due(ctx context.Context) ([]outboxRow, error) {
	rows, err := e.db.Query(ctx, `SELECT id, key, recipient_user, recipient_device, content, tries FROM todevice_outbox
		WHERE account_id = $1 AND state = 'pending' AND next_try <= $2 ORDER BY id LIMIT 1000`, e.accountID, e.now().UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var due []outboxRow
	for rows.Next() {
		var row outboxRow
		if err := rows.Scan(&row.id, &row.key, &row.user, &row.device, &row.content, &row.tries); err != nil {
			return nil, fmt.Errorf("reading the outbox: %w", err)
		}
		due = append(due, row)
	}
	return due, rows.Err()
}

func (e *Endpoint) send(ctx context.Context, row outboxRow, sent Sent) error {
	url := e.client.BuildClientURL("v3", "sendToDevice", event.ToDeviceEncrypted.Type, row.id)
	body := map[string]any{"messages": map[id.UserID]map[id.DeviceID]json.RawMessage{row.user: {row.device: json.RawMessage(row.content)}}}
	_, sendErr := e.client.MakeRequest(ctx, http.MethodPut, url, body, nil)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	refusal, wait := verdict(sendErr, row.tries+1)
	if sendErr != nil && refusal == "" {
		e.log.Warn().Err(sendErr).Str("transaction", row.id).Dur("wait", wait).Msg("A to-device message will be sent again")
		_, err := e.db.Exec(ctx, `UPDATE todevice_outbox SET tries = $1, next_try = $2, error = $3 WHERE id = $4`,
			row.tries+1, e.now().Add(wait).UnixMilli(), sendErr.Error(), row.id)
		if err != nil {
			return fmt.Errorf("postponing a message: %w", err)
		}
		return nil
	}
	return e.InTxn(ctx, func(ctx context.Context) error {
		state := "sent"
		if refusal != "" {
			state = "refused"
		}
		_, err := e.db.Exec(ctx, `UPDATE todevice_outbox SET state = $1, sent_at = $2, error = $3, tries = tries + 1 WHERE id = $4`,
			state, e.now().UnixMilli(), refusal, row.id)
		if err != nil {
			return fmt.Errorf("recording a sent message: %w", err)
		}
		if sent == nil {
			return nil
		}
		return sent(ctx, row.key, refusal)
	})
}

// verdict says whether the homeserver refused for good, or else how long to wait. A dead token (401, 403) is ours to
// mend, not the message's fault.
func verdict(err error, tries int) (refusal string, wait time.Duration) {
	if err == nil {
		return "", 0
	}
	wait = backoff(tries)
	var httpErr mautrix.HTTPError
	if !errors.As(err, &httpErr) || httpErr.Response == nil {
		return "", wait
	}
	switch code := httpErr.Response.StatusCode; {
	case code == http.StatusTooManyRequests:
		if seconds, err := strconv.Atoi(httpErr.Response.Header.Get("Retry-After")); err == nil && seconds > 0 {
			return "", time.Duration(seconds) * time.Second
		}
		if httpErr.RespError != nil {
			if ms, ok := httpErr.RespError.ExtraData["retry_after_ms"].(float64); ok && ms > 0 {
				return "", time.Duration(ms) * time.Millisecond
			}
		}
		return "", wait
	case code == http.StatusUnauthorized || code == http.StatusForbidden || code >= 500:
		return "", wait
	default:
		return httpErr.Error(), 0
	}
}

// backoff doubles from half a second to five minutes, with jitter, so that a fleet does not come back at once.
func backoff(tries int) time.Duration {
	wait := min(500*time.Millisecond<<min(tries-1, 10), 5*time.Minute)
	return wait/2 + rand.N(wait/2)
}
