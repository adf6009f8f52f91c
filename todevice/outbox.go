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
	// Again keeps the content in clear, until Forget is called after a day, so that QueueAgain can encrypt it anew: never
	// where it holds a secret.
	Again bool
}

// again is what is kept of a content.
func (o Outgoing) again(content []byte) string {
	if !o.Again {
		return ""
	}
	return string(content)
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
	request, err := state.requests.place(recipient{out.To.UserID, out.To.DeviceID}, len(ciphertext))
	if err != nil {
		return err
	}
	_, err = e.db.Exec(ctx, `INSERT INTO todevice_outbox (id, account_id, key, recipient_user, recipient_device, type, content, created_at, request, again)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		rowID, e.accountID, out.Key, out.To.UserID, out.To.DeviceID, out.Type, string(ciphertext), e.now().UnixMilli(), request, out.again(content))
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

// State tells what became of the message with this key: pending, sent, refused or withdrawn; empty if there is none.
func (e *Endpoint) State(ctx context.Context, key string) (string, error) {
	var state string
	err := e.db.QueryRow(ctx, `SELECT COALESCE(MAX(state), '') FROM todevice_outbox WHERE account_id = $1 AND key = $2`, e.accountID, key).Scan(&state)
	if err != nil {
		return "", fmt.Errorf("looking into the outbox: %w", err)
	}
	return state, nil
}

// Sent is told, in the transaction that records it, what the homeserver answered for these messages: accepted, or
// refused for good with a reason.
type Sent func(ctx context.Context, keys []string, refusal string) error

type outboxRow struct {
	id, key, content string
	to               recipient
	tries            int
}

// Flush sends what is due in the outbox, oldest request first, always the committed bytes under the committed
// transaction id. An answer that may come right later (no answer, 429, 5xx) leaves a request pending for a later
// Flush; a 429 holds back all of the outbox. A request that is refused for good is split until the message at fault
// is alone. It returns when the next pending request is due, zero if there is none.
func (e *Endpoint) Flush(ctx context.Context, sent Sent) (next time.Time, err error) {
	e.flushing.Lock()
	defer e.flushing.Unlock()
	if e.now().Before(e.pausedUntil) {
		return e.pausedUntil, nil
	}
	for {
		due, err := e.due(ctx)
		if err != nil {
			return time.Time{}, err
		}
		if err := e.sendAll(ctx, due, sent); err != nil && !errors.Is(err, errHeldBack) {
			return time.Time{}, err
		} else if err != nil || len(due) == 0 {
			return e.nextDue(ctx)
		}
	}
}

// AwaitFlush returns when no Flush is under way.
func (e *Endpoint) AwaitFlush() {
	e.flushing.Lock()
	defer e.flushing.Unlock()
}

// sendAll sends requests one after the other. What was taken is recorded while the next request is under way, in the order
// of the requests; all of it has ended when sendAll returns.
func (e *Endpoint) sendAll(ctx context.Context, requests []string, sent Sent) (err error) {
	recorded := make(chan error, 1)
	recorded <- nil
	defer func() { err = errors.Join(err, <-recorded) }()
	for _, request := range requests {
		rows, answer, err := e.send(ctx, request)
		err = errors.Join(<-recorded, err)
		switch {
		case err != nil || len(rows) == 0:
		case answer.again:
			err = e.hold(ctx, request, answer)
		case answer.refusal != "" && len(rows) > 1:
			err = e.split(ctx, request, rows)
		default:
			go func() { recorded <- e.settle(ctx, request, rows, answer.refusal, sent) }()
			continue
		}
		recorded <- nil
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *Endpoint) nextDue(ctx context.Context) (time.Time, error) {
	var due int64
	err := e.db.QueryRow(ctx, `SELECT COALESCE(MIN(next_try), -1) FROM todevice_outbox WHERE account_id = $1 AND state = 'pending'`, e.accountID).Scan(&due)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the outbox: %w", err)
	}
	if due < 0 {
		return time.Time{}, nil
	}
	return time.UnixMilli(due), nil
}

// due lists the oldest requests that are to be sent now. Their ids are UUIDv7, so they sort by age.
func (e *Endpoint) due(ctx context.Context) ([]string, error) {
	rows, err := e.db.Query(ctx, `SELECT DISTINCT request FROM todevice_outbox
		WHERE account_id = $1 AND state = 'pending' AND next_try <= $2 ORDER BY request LIMIT 64`, e.accountID, e.now().UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var due []string
	for rows.Next() {
		var request string
		if err := rows.Scan(&request); err != nil {
			return nil, fmt.Errorf("reading the outbox: %w", err)
		}
		due = append(due, request)
	}
	return due, rows.Err()
}

func (e *Endpoint) messages(ctx context.Context, request string) ([]outboxRow, error) {
	rows, err := e.db.Query(ctx, `SELECT id, key, recipient_user, recipient_device, content, tries FROM todevice_outbox
		WHERE account_id = $1 AND request = $2 AND state = 'pending' ORDER BY id`, e.accountID, request)
	if err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var messages []outboxRow
	for rows.Next() {
		var row outboxRow
		if err := rows.Scan(&row.id, &row.key, &row.to.user, &row.to.device, &row.content, &row.tries); err != nil {
			return nil, fmt.Errorf("reading the outbox: %w", err)
		}
		messages = append(messages, row)
	}
	return messages, rows.Err()
}

// errHeldBack ends a Flush: the homeserver asked for a pause, or does not answer.
var errHeldBack = errors.New("the homeserver takes nothing now")

// send sends a request, and says what the answer means; without rows nothing of it is pending any more.
func (e *Endpoint) send(ctx context.Context, request string) ([]outboxRow, answer, error) {
	rows, err := e.messages(ctx, request)
	if err != nil || len(rows) == 0 {
		return nil, answer{}, err
	}
	messages := map[id.UserID]map[id.DeviceID]json.RawMessage{}
	for _, row := range rows {
		if messages[row.to.user] == nil {
			messages[row.to.user] = map[id.DeviceID]json.RawMessage{}
		}
		messages[row.to.user][row.to.device] = json.RawMessage(row.content)
	}
	url := e.client.BuildClientURL("v3", "sendToDevice", event.ToDeviceEncrypted.Type, request)
	_, sendErr := e.client.MakeRequest(ctx, http.MethodPut, url, map[string]any{"messages": messages}, nil)
	if ctx.Err() != nil {
		return nil, answer{}, ctx.Err()
	}
	said := judge(sendErr, rows[0].tries+1)
	switch {
	case said.again:
		e.log.Warn().Err(sendErr).Str("transaction", request).Int("messages", len(rows)).Dur("wait", said.wait).Msg("To-device messages will be sent again")
	case said.refusal != "" && len(rows) > 1:
		e.log.Warn().Err(sendErr).Str("transaction", request).Int("messages", len(rows)).Msg("The homeserver refused a request: it is split to find the message at fault")
	}
	return rows, said, nil
}

// hold leaves a request for later, and where the homeserver takes nothing at all, ends the Flush.
func (e *Endpoint) hold(ctx context.Context, request string, answer answer) error {
	later := e.now().Add(answer.wait)
	if answer.pause {
		e.pausedUntil = later
	}
	until := later.UnixMilli()
	_, err := e.db.Exec(ctx, `UPDATE todevice_outbox SET tries = tries + 1, next_try = $1, error = $2 WHERE account_id = $3 AND request = $4 AND state = 'pending'`,
		until, answer.problem, e.accountID, request)
	if err == nil && answer.pause {
		_, err = e.db.Exec(ctx, `UPDATE todevice_outbox SET next_try = $1 WHERE account_id = $2 AND state = 'pending' AND next_try < $1`, until, e.accountID)
	}
	if err != nil {
		return fmt.Errorf("postponing messages: %w", err)
	}
	if answer.pause || answer.silent {
		return errHeldBack
	}
	return nil
}

// split divides a request that was refused as a whole: nothing of it was delivered, so its halves go under transaction
// ids of their own, the same bytes.
func (e *Endpoint) split(ctx context.Context, request string, rows []outboxRow) error {
	return e.InTxn(ctx, func(ctx context.Context) error {
		middle := rows[len(rows)/2].id
		for _, half := range []string{`id < $4`, `id >= $4`} {
			fresh, err := newID()
			if err != nil {
				return err
			}
			_, err = e.db.Exec(ctx, `UPDATE todevice_outbox SET request = $1, tries = 0, next_try = 0 WHERE account_id = $2 AND request = $3 AND state = 'pending' AND `+half,
				fresh, e.accountID, request, middle)
			if err != nil {
				return fmt.Errorf("splitting a request: %w", err)
			}
		}
		return nil
	})
}

// settle records what the homeserver answered.
func (e *Endpoint) settle(ctx context.Context, request string, rows []outboxRow, refusal string, sent Sent) error {
	return e.InTxn(ctx, func(ctx context.Context) error {
		state := "sent"
		if refusal != "" {
			state = "refused"
		}
		_, err := e.db.Exec(ctx, `UPDATE todevice_outbox SET state = $1, sent_at = $2, error = $3, tries = tries + 1 WHERE account_id = $4 AND request = $5 AND state = 'pending'`,
			state, e.now().UnixMilli(), refusal, e.accountID, request)
		if err != nil {
			return fmt.Errorf("recording sent messages: %w", err)
		}
		if sent == nil {
			return nil
		}
		keys := make([]string, len(rows))
		for i, row := range rows {
			keys[i] = row.key
		}
		return sent(ctx, keys, refusal)
	})
}

// answer is what the homeserver's word means for a request.
type answer struct {
	// refusal, if not empty, is for good.
	refusal string
	// again after wait, because of a problem.
	again   bool
	wait    time.Duration
	problem string
	// pause means that the homeserver asked for one, silent that nobody answered: others would fare no better now.
	pause, silent bool
}

// What a homeserver answers to an application service that acts as a device which is not there (MSC4326); Synapse still
// says the unstable code.
var (
	errUnknownDevice         = mautrix.RespError{ErrCode: "M_UNKNOWN_DEVICE"}
	errUnknownDeviceUnstable = mautrix.RespError{ErrCode: "ORG.MATRIX.MSC4326.M_UNKNOWN_DEVICE"}
)

// DeviceGone reports whether a request failed because the device that the application service acts as was deleted.
func DeviceGone(err error) bool {
	return errors.Is(err, errUnknownDevice) || errors.Is(err, errUnknownDeviceUnstable)
}

// judge reads the outcome of a request. A dead token (401, 403) or device is ours to mend, not the messages' fault.
func judge(err error, tries int) answer {
	if err == nil {
		return answer{}
	}
	later := answer{again: true, wait: backoff(tries), problem: err.Error()}
	var httpErr mautrix.HTTPError
	if !errors.As(err, &httpErr) || httpErr.Response == nil {
		later.silent = true
		return later
	}
	switch code := httpErr.Response.StatusCode; {
	case code == http.StatusTooManyRequests:
		later.pause = true
		if seconds, err := strconv.Atoi(httpErr.Response.Header.Get("Retry-After")); err == nil && seconds > 0 {
			later.wait = time.Duration(seconds) * time.Second
		} else if httpErr.RespError != nil {
			if ms, ok := httpErr.RespError.ExtraData["retry_after_ms"].(float64); ok && ms > 0 {
				later.wait = time.Duration(ms) * time.Millisecond
			}
		}
		return later
	case code == http.StatusUnauthorized || code == http.StatusForbidden || code >= 500 || DeviceGone(err):
		return later
	default:
		return answer{refusal: httpErr.Error()}
	}
}

// backoff doubles from half a second to five minutes, with jitter, so that a fleet does not come back at once.
func backoff(tries int) time.Duration {
	wait := min(500*time.Millisecond<<min(tries-1, 10), 5*time.Minute)
	return wait/2 + rand.N(wait/2)
}
