package device

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// secretRequest is what decides over another device's request for a secret.
type secretRequest struct {
	// Known, CrossSigned and Dehydrated are of the device that asks; Excluded is the newest trigger's word.
	Known, CrossSigned, Dehydrated, Excluded bool
	Name                                     string
	// Recent counts the requests of the last hour under the limit that this one falls under.
	Recent int
}

// judgeRequest gives the reason why a request is refused; empty means that it is answered. One word each, since they go
// into the server's audit log.
func judgeRequest(r secretRequest, config Answer) string {
	switch {
	case r.Recent >= config.PerHour:
		return "too_many_requests"
	case !r.Known:
		return "device_unknown"
	case r.Dehydrated:
		return "dehydrated_device"
	case !r.CrossSigned:
		return "device_not_cross_signed"
	case r.Excluded:
		return "device_excluded"
	case !slices.Contains(config.Names, r.Name):
		return "secret_not_allowed"
	}
	return ""
}

// maxRequestID bounds ids that others make up.
const maxRequestID = 255

// requested journals a request of another device, or the end of one, in the transaction of its arrival. Requests travel
// outside Olm, so the device that asks is named by its word alone: what is proved is who can read the answer.
func (a *Account) requested(ctx context.Context, message *todevice.Message) error {
	var request event.SecretRequestEventContent
	if err := unmarshal(message.Content, &request); err != nil {
		return err
	}
	p, err := a.pin(ctx)
	if err != nil {
		return err
	}
	device := request.RequestingDeviceID
	switch {
	case !p.Accepted || message.Sender != a.config.UserID || message.Identity == nil:
		return fmt.Errorf("%w: nobody who may ask", todevice.ErrUnusable)
	case device == "" || request.RequestID == "" || len(device) > maxRequestID || len(request.RequestID) > maxRequestID:
		return fmt.Errorf("%w: malformed", todevice.ErrUnusable)
	case device == a.client.DeviceID:
		// Our own, which a client's request to all devices would bring back.
		return nil
	case request.Action == event.SecretRequestCancellation:
		_, err := a.store.db.Exec(ctx, `UPDATE asked SET state = 'cancelled' WHERE device_id = $1 AND request_id = $2 AND state = 'open'`, device, request.RequestID)
		if err != nil {
			return fmt.Errorf("journaling a cancelled request: %w", err)
		}
		return nil
	case request.Action != event.SecretRequestRequest:
		return fmt.Errorf("%w: neither a request nor a cancellation", todevice.ErrUnusable)
	}
	return a.journalRequest(ctx, request, *message.Identity, p)
}

func (a *Account) journalRequest(ctx context.Context, request event.SecretRequestEventContent, identity crosssigning.Identity, p pin) error {
	var again bool
	err := a.store.db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM asked WHERE device_id = $1 AND request_id = $2)`, request.RequestingDeviceID, request.RequestID).Scan(&again)
	if err != nil {
		return fmt.Errorf("looking for a request: %w", err)
	} else if again {
		return nil
	}
	excluded, err := a.excluded(ctx)
	if err != nil {
		return err
	}
	device, known := identity.Devices[request.RequestingDeviceID]
	trusted := known && trustedBy(p, identity, device)
	facts := secretRequest{Known: known, CrossSigned: trusted, Dehydrated: device.Dehydrated, Name: string(request.Name),
		Excluded: slices.Contains(excluded, request.RequestingDeviceID)}
	err = a.store.db.QueryRow(ctx, `SELECT COUNT(*) FROM asked WHERE received_at > $1 AND trusted = $2 AND (NOT trusted OR device_id = $3)`,
		a.now().Add(-time.Hour).UnixMilli(), trusted, request.RequestingDeviceID).Scan(&facts.Recent)
	if err != nil {
		return fmt.Errorf("counting requests: %w", err)
	}
	if facts.Recent > a.config.Answer.PerHour {
		// The first one too many was reported; were all of them, asking would be a way to fill the audit log.
		return fmt.Errorf("%w: too many requests for secrets", todevice.ErrUnusable)
	}
	state, reason := "open", judgeRequest(facts, a.config.Answer)
	if reason != "" {
		state = "refused"
	}
	_, err = a.store.db.Exec(ctx, `INSERT INTO asked (device_id, request_id, name, state, reason, trusted, received_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		request.RequestingDeviceID, request.RequestID, string(request.Name), state, reason, trusted, a.now().UnixMilli())
	if err != nil {
		return fmt.Errorf("journaling a request: %w", err)
	}
	if reason == "" {
		return nil
	}
	return a.refused(ctx, request.RequestingDeviceID, string(request.Name), reason, known)
}

// refused tells the log and the server; whoever asked hears nothing (client-server API, "Secrets").
func (a *Account) refused(ctx context.Context, device id.DeviceID, name, reason string, known bool) error {
	if !known {
		// A made-up id has no place in the server's log.
		device = ""
	}
	name = protocol.KnownSecret(name)
	a.log.Warn().Stringer("device", device).Str("secret", name).Str("reason", reason).Msg("A request for a secret is not answered")
	return a.did(ctx, protocol.Act{Kind: protocol.ActSecretRequestRefused, Secret: name, DeviceID: device, Reason: reason})
}

type openRequest struct {
	device          id.DeviceID
	requestID, name string
}

// answer answers the open requests: each is encrypted once, to a device that is cross-signed and not excluded now.
func (a *Account) answer(ctx context.Context) error {
	open, err := a.openRequests(ctx)
	if err != nil || len(open) == 0 {
		return err
	}
	p, err := a.pin(ctx)
	if err != nil {
		return err
	}
	identities, err := a.endpoint.Identities(ctx, a.config.UserID)
	if err != nil {
		return err
	}
	identity := identities[a.config.UserID]
	peers, err := a.peers(ctx, identity, p)
	if err != nil {
		return err
	}
	claims, err := a.endpoint.Claim(ctx, false, slices.DeleteFunc(slices.Clone(peers), func(peer crosssigning.Device) bool {
		return !slices.ContainsFunc(open, func(r openRequest) bool { return r.device == peer.DeviceID })
	})...)
	if err != nil {
		return err
	}
	for _, request := range open {
		secret, reason, err := a.secretFor(ctx, request.name, identity)
		if err != nil {
			return err
		}
		to := slices.IndexFunc(peers, func(peer crosssigning.Device) bool { return peer.DeviceID == request.device })
		if to < 0 {
			reason = "device_not_cross_signed"
		}
		err = a.endpoint.InTxn(ctx, func(ctx context.Context) error {
			if reason != "" {
				return a.settleRequest(ctx, request, reason)
			}
			return a.answerOne(ctx, request, peers[to], secret, claims)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// answerOne queues the answer, unless the request was cancelled meanwhile.
func (a *Account) answerOne(ctx context.Context, request openRequest, to crosssigning.Device, secret string, claims todevice.Claims) error {
	var open bool
	err := a.store.db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM asked WHERE device_id = $1 AND request_id = $2 AND state = 'open')`, request.device, request.requestID).Scan(&open)
	if err != nil {
		return fmt.Errorf("looking for a request: %w", err)
	} else if !open {
		return nil
	}
	err = a.endpoint.Queue(ctx, todevice.Outgoing{Key: fmt.Sprintf("answer/%s/%s", request.device, request.requestID), To: to, Type: event.ToDeviceSecretSend.Type,
		Content: event.SecretSendEventContent{RequestID: request.requestID, Secret: secret}}, claims)
	if errors.Is(err, todevice.ErrNoOneTimeKey) {
		return a.settleRequest(ctx, request, "no_one_time_key")
	} else if err != nil {
		return err
	}
	return a.settleRequest(ctx, request, "")
}

// settleRequest ends an open request: refused with a reason, or answered.
func (a *Account) settleRequest(ctx context.Context, request openRequest, reason string) error {
	state := "answered"
	if reason != "" {
		state = "refused"
	}
	result, err := a.store.db.Exec(ctx, `UPDATE asked SET state = $1, reason = $2 WHERE device_id = $3 AND request_id = $4 AND state = 'open'`,
		state, reason, request.device, request.requestID)
	if err != nil {
		return fmt.Errorf("journaling an answer: %w", err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return err
	}
	if reason != "" {
		return a.refused(ctx, request.device, request.name, reason, true)
	}
	a.log.Info().Stringer("device", request.device).Str("secret", request.name).Msg("A request for a secret is answered")
	return a.did(ctx, protocol.Act{Kind: protocol.ActSecretRequestAnswered, Secret: request.name, DeviceID: request.device})
}

// secretFor is the secret as it is sent, or why there is none to send. The backup key is the current version's or none.
func (a *Account) secretFor(ctx context.Context, name string, identity crosssigning.Identity) (secret, reason string, err error) {
	if name != protocol.SecretMegolmBackup {
		seed, err := a.crossSigningSeed(ctx, name, identity)
		if err != nil || seed == nil {
			return "", "secret_not_held", err
		}
		return base64.RawStdEncoding.EncodeToString(seed), "", nil
	}
	current, err := a.backup.Current(ctx)
	if err != nil {
		return "", "", err
	} else if current == nil {
		return "", "no_key_backup", nil
	}
	key, ok, err := a.store.key(ctx, current.PublicKey)
	if err != nil || !ok || !current.HeldBy(key) {
		return "", "secret_not_held", err
	}
	return key.RevealBase64(), "", nil
}

func (a *Account) openRequests(ctx context.Context) ([]openRequest, error) {
	rows, err := a.store.db.Query(ctx, `SELECT device_id, request_id, name FROM asked WHERE state = 'open' ORDER BY received_at, request_id`)
	if err != nil {
		return nil, fmt.Errorf("reading the open requests: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var open []openRequest
	for rows.Next() {
		var r openRequest
		if err := rows.Scan(&r.device, &r.requestID, &r.name); err != nil {
			return nil, fmt.Errorf("reading the open requests: %w", err)
		}
		open = append(open, r)
	}
	return open, rows.Err()
}
