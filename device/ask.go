package device

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/protocol"
)

// asking is a request of our own to the user's other devices. It is over when it has to be cancelled there.
type asking struct {
	requestID, name, publicKey string
	devices                    []id.DeviceID
	state                      string
	sent                       bool
	nextTry                    int64
}

// askAgain is how long a request stands before another one, with a new id, takes its place: a device may have been
// offline, or have lost it. Each one more waits longer.
func askAgain(requests int) time.Duration {
	const first, last = 5 * time.Minute, 12 * time.Hour
	return min(first<<min(max(requests-1, 0), 10), last)
}

// findKey looks for the private key of a key-backup version where it may be without asking anybody, and has the user's
// other devices asked for it where it is not.
func (a *Account) findKey(ctx context.Context, publicKey string) (backupkey.Key, bool, error) {
	key, ok, err := a.searchKey(ctx, publicKey)
	if err != nil || ok {
		return key, ok, err
	}
	return key, false, a.wish(ctx, protocol.SecretMegolmBackup, publicKey, false)
}

// wish journals a request for a secret, unless one stands for it already; now asks at once, whatever stands. The work
// loop sends it.
func (a *Account) wish(ctx context.Context, name, publicKey string, now bool) error {
	requestID, err := uuid.NewRandom()
	if err != nil {
		return fmt.Errorf("making a request id: %w", err)
	}
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		var requests int
		var last int64
		err := a.store.db.QueryRow(ctx, `SELECT COUNT(*), COALESCE(MAX(made_at), 0) FROM asking WHERE public_key = $1`, publicKey).Scan(&requests, &last)
		if err != nil {
			return fmt.Errorf("reading the requests for a secret: %w", err)
		}
		if requests > 0 && !now && a.now().Before(time.UnixMilli(last).Add(askAgain(requests))) {
			return nil
		}
		if err := a.stopAsking(ctx, publicKey); err != nil {
			return err
		}
		_, err = a.store.db.Exec(ctx, `INSERT INTO asking (request_id, name, public_key, state, made_at) VALUES ($1, $2, $3, 'open', $4)`,
			requestID.String(), name, publicKey, a.now().UnixMilli())
		if err != nil {
			return fmt.Errorf("journaling a request for a secret: %w", err)
		}
		return nil
	})
}

// stopAsking ends the open requests for a public key's secret; those that left are cancelled where they went.
func (a *Account) stopAsking(ctx context.Context, publicKey string) error {
	_, err := a.store.db.Exec(ctx, `UPDATE asking SET state = CASE devices WHEN '' THEN 'closed' ELSE 'over' END WHERE public_key = $1 AND state = 'open'`, publicKey)
	if err != nil {
		return fmt.Errorf("ending the requests for a secret: %w", err)
	}
	return nil
}

// ask sends the requests that have not left, to the devices that may be asked now, and cancels those that are over, among
// them each whose key is held by now.
func (a *Account) ask(ctx context.Context, only ...id.DeviceID) error {
	open, err := a.openAsking(ctx)
	if err != nil {
		return err
	}
	for _, r := range open {
		if r.state == "open" && r.name == protocol.SecretMegolmBackup {
			if _, held, err := a.store.key(ctx, r.publicKey); err != nil {
				return err
			} else if held {
				if err := a.stopAsking(ctx, r.publicKey); err != nil {
					return err
				}
			}
		}
	}
	if open, err = a.openAsking(ctx); err != nil {
		return err
	}
	for _, r := range open {
		switch {
		case r.state == "over":
			if err := a.callOff(ctx, r); err != nil {
				return err
			}
		case !r.sent && r.nextTry <= a.now().UnixMilli():
			if err := a.askFor(ctx, r, only); err != nil {
				return err
			}
		}
	}
	return nil
}

// lookAgain is how long a request waits that could not be sent, or that nobody may be asked: a device may be verified.
const lookAgain = 15 * time.Second

// askFor sends one request. Whom it goes to is journaled first, since an answer may come before the homeserver's does, and
// is taken from nobody else.
func (a *Account) askFor(ctx context.Context, r asking, only []id.DeviceID) error {
	if r.devices == nil {
		var err error
		if r.devices, err = a.whomToAsk(ctx, only); err != nil {
			return err
		}
	}
	devices := ""
	if len(r.devices) > 0 {
		encoded, err := json.Marshal(r.devices)
		if err != nil {
			return fmt.Errorf("journaling a request for a secret: %w", err)
		}
		devices = string(encoded)
	}
	_, err := a.store.db.Exec(ctx, `UPDATE asking SET devices = $1, next_try = $2 WHERE request_id = $3 AND state = 'open'`,
		devices, a.now().Add(lookAgain).UnixMilli(), r.requestID)
	if err != nil {
		return fmt.Errorf("journaling a request for a secret: %w", err)
	}
	if devices == "" {
		return nil
	}
	request := event.SecretRequestEventContent{Action: event.SecretRequestRequest, Name: id.Secret(r.name), RequestID: r.requestID, RequestingDeviceID: a.client.DeviceID}
	if err := a.sendPlain(ctx, event.ToDeviceSecretRequest.Type, r.requestID, request, r.devices...); err != nil {
		return err
	}
	if _, err := a.store.db.Exec(ctx, `UPDATE asking SET sent = true WHERE request_id = $1`, r.requestID); err != nil {
		return fmt.Errorf("journaling a request for a secret: %w", err)
	}
	a.log.Info().Str("secret", r.name).Int("devices", len(r.devices)).Msg("The user's other devices are asked for a secret")
	return nil
}

func (a *Account) whomToAsk(ctx context.Context, only []id.DeviceID) ([]id.DeviceID, error) {
	p, err := a.pin(ctx)
	if err != nil {
		return nil, err
	}
	identities, err := a.endpoint.Identities(ctx, a.config.UserID)
	if err != nil {
		return nil, err
	}
	peers, err := a.peers(ctx, identities[a.config.UserID], p)
	if err != nil {
		return nil, err
	}
	var devices []id.DeviceID
	for _, peer := range peers {
		if len(only) == 0 || slices.Contains(only, peer.DeviceID) {
			devices = append(devices, peer.DeviceID)
		}
	}
	return devices, nil
}

// callOff cancels a request where it went.
func (a *Account) callOff(ctx context.Context, r asking) error {
	cancellation := event.SecretRequestEventContent{Action: event.SecretRequestCancellation, RequestID: r.requestID, RequestingDeviceID: a.client.DeviceID}
	if err := a.sendPlain(ctx, event.ToDeviceSecretRequest.Type, r.requestID+"-cancel", cancellation, r.devices...); err != nil {
		return err
	}
	if _, err := a.store.db.Exec(ctx, `UPDATE asking SET state = 'closed' WHERE request_id = $1`, r.requestID); err != nil {
		return fmt.Errorf("journaling a cancelled request: %w", err)
	}
	return nil
}

func (a *Account) openAsking(ctx context.Context) ([]asking, error) {
	rows, err := a.store.db.Query(ctx, `SELECT request_id, name, public_key, devices, state, sent, next_try FROM asking WHERE state <> 'closed' ORDER BY made_at, request_id`)
	if err != nil {
		return nil, fmt.Errorf("reading our own requests: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var open []asking
	for rows.Next() {
		var r asking
		var devices string
		err := rows.Scan(&r.requestID, &r.name, &r.publicKey, &devices, &r.state, &r.sent, &r.nextTry)
		if err == nil && devices != "" {
			err = json.Unmarshal([]byte(devices), &r.devices)
		}
		if err != nil {
			return nil, fmt.Errorf("reading our own requests: %w", err)
		}
		open = append(open, r)
	}
	return open, rows.Err()
}
