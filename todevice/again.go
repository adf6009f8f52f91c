package todevice

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/keyherald/keyherald/crosssigning"
)

// keptFor is how long the content of a message is kept that may be needed again, and mostKept how many are queued again.
const (
	keptFor  = 24 * time.Hour
	mostKept = 200
)

// QueueAgain encrypts anew, within InTxn, the messages that may be wanted of those that were queued for the device in the
// last day and kept (Outgoing.Again), the newest 200 of them. A device begins an Olm session where it could not read a
// message (client-server API, "Recovering from undecryptable messages"): that one is lost, those sent with the same session
// after it are lost too, and nobody says which they were. Whoever reads them tells from their content what he has already.
// There must be a session with the device.
func (e *Endpoint) QueueAgain(ctx context.Context, to crosssigning.Device, wanted func(eventType string, content []byte) bool) (n int, err error) {
	state, err := e.state(ctx)
	if err != nil {
		return 0, err
	}
	kept, err := e.kept(ctx, to)
	if err != nil {
		return 0, err
	}
	for _, m := range kept {
		if !wanted(m.eventType, []byte(m.content)) {
			continue
		}
		ciphertext, err := e.encrypt(ctx, to, m.eventType, json.RawMessage(m.content), nil)
		if err != nil {
			return n, err
		}
		request, err := state.requests.place(recipient{to.UserID, to.DeviceID}, len(ciphertext))
		if err != nil {
			return n, err
		}
		// Under another transaction id: the homeserver would let the same one go by. A Flush that is just sending the old
		// bytes finds nothing left to settle.
		_, err = e.db.Exec(ctx, `UPDATE todevice_outbox SET content = $1, request = $2, state = 'pending', error = '', tries = 0, next_try = 0 WHERE id = $3`,
			string(ciphertext), request, m.id)
		if err != nil {
			return n, fmt.Errorf("queueing a message again: %w", err)
		}
		n++
	}
	state.queued = state.queued || n > 0
	return n, nil
}

type keptMessage struct{ id, eventType, content string }

// kept are the messages to a device that may be needed again, oldest first.
func (e *Endpoint) kept(ctx context.Context, to crosssigning.Device) ([]keptMessage, error) {
	rows, err := e.db.Query(ctx, `SELECT id, type, again FROM todevice_outbox WHERE account_id = $1 AND again <> '' AND created_at >= $2
		AND recipient_user = $3 AND recipient_device = $4 AND state IN ('sent', 'pending') ORDER BY id DESC LIMIT $5`,
		e.accountID, e.now().Add(-keptFor).UnixMilli(), to.UserID, to.DeviceID, mostKept)
	if err != nil {
		return nil, fmt.Errorf("looking for what was sent: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var kept []keptMessage
	for rows.Next() {
		var m keptMessage
		if err := rows.Scan(&m.id, &m.eventType, &m.content); err != nil {
			return nil, fmt.Errorf("looking for what was sent: %w", err)
		}
		kept = append(kept, m)
	}
	slices.Reverse(kept)
	return kept, rows.Err()
}

// Forget lets go of the contents that were kept for QueueAgain and are too old for it.
func (e *Endpoint) Forget(ctx context.Context) error {
	_, err := e.db.Exec(ctx, `UPDATE todevice_outbox SET again = '' WHERE account_id = $1 AND again <> '' AND created_at < $2`,
		e.accountID, e.now().Add(-keptFor).UnixMilli())
	if err != nil {
		return fmt.Errorf("forgetting what was sent long ago: %w", err)
	}
	return nil
}
