package todevice

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/lib/pq"
	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/id"
)

// QueueAll is Queue for many messages at once. On PostgreSQL, where every statement is a round trip, the sessions are
// read and written together, straight in the crypto store's table; SQLite is in the process, and gains nothing by it.
// An error leaves the transaction to be rolled back.
func (e *Endpoint) QueueAll(ctx context.Context, outs []Outgoing, claims Claims) error {
	if e.db.Dialect != dbutil.Postgres {
		for _, out := range outs {
			if err := e.Queue(ctx, out, claims); err != nil {
				return err
			}
		}
		return nil
	}
	state, err := e.state(ctx)
	if err != nil {
		return err
	}
	known, err := e.hasAny(ctx, outs)
	if err != nil {
		return err
	}
	b := &batch{endpoint: e, state: state, latest: map[id.Curve25519]*crypto.OlmSession{}, fresh: map[id.Curve25519]bool{}}
	if err := b.load(ctx, outs); err != nil {
		return err
	}
	for _, out := range outs {
		if known[out.Key] {
			continue
		}
		known[out.Key] = true
		if err := b.add(out, claims); err != nil {
			return err
		}
	}
	return b.write(ctx)
}

// hasAny says which of the messages the outbox knows already.
func (e *Endpoint) hasAny(ctx context.Context, outs []Outgoing) (map[string]bool, error) {
	keys := make([]string, len(outs))
	for i, out := range outs {
		keys[i] = out.Key
	}
	rows, err := e.db.Query(ctx, `SELECT key FROM todevice_outbox WHERE account_id = $1 AND key = ANY($2)`, e.accountID, pq.Array(keys))
	if err != nil {
		return nil, fmt.Errorf("looking into the outbox: %w", err)
	}
	defer func() { _ = rows.Close() }()
	known := map[string]bool{}
	for rows.Next() {
		var key string
		if err := rows.Scan(&key); err != nil {
			return nil, fmt.Errorf("looking into the outbox: %w", err)
		}
		known[key] = true
	}
	return known, rows.Err()
}

// batch gathers what one QueueAll leaves behind.
type batch struct {
	endpoint *Endpoint
	state    *txn
	latest   map[id.Curve25519]*crypto.OlmSession
	// fresh sessions are inserted, the others updated.
	fresh map[id.Curve25519]bool

	ids, keys, users, devices, types, contents, requests, agains []string
}

// load reads the latest session of each recipient, as the crypto store's GetLatestSession does.
func (b *batch) load(ctx context.Context, outs []Outgoing) error {
	keys := make([]string, len(outs))
	for i, out := range outs {
		keys[i] = out.To.IdentityKey.String()
	}
	rows, err := b.endpoint.db.Query(ctx, `SELECT DISTINCT ON (sender_key) sender_key, session, created_at, last_encrypted, last_decrypted
		FROM crypto_olm_session WHERE account_id = $1 AND sender_key = ANY($2) ORDER BY sender_key, last_decrypted DESC`, b.endpoint.accountID, pq.Array(keys))
	if err != nil {
		return fmt.Errorf("loading the latest Olm sessions: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		session := &crypto.OlmSession{Internal: olm.NewBlankSession()}
		var key id.Curve25519
		var pickle []byte
		if err := rows.Scan(&key, &pickle, &session.CreationTime, &session.LastEncryptedTime, &session.LastDecryptedTime); err != nil {
			return fmt.Errorf("loading the latest Olm sessions: %w", err)
		}
		if err := session.Internal.Unpickle(pickle, b.endpoint.pickleKey); err != nil {
			return fmt.Errorf("opening an Olm session (is the pickle key the one it was made with?): %w", err)
		}
		b.latest[key] = session
	}
	return rows.Err()
}

func (b *batch) add(out Outgoing, claims Claims) error {
	content, err := json.Marshal(out.Content)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", out.Type, err)
	}
	session, err := b.session(out, claims)
	if err != nil {
		return err
	}
	ciphertext, err := b.endpoint.seal(b.state, session, out.To, out.Type, content)
	if err != nil {
		return err
	}
	rowID, err := newID()
	if err != nil {
		return err
	}
	request, err := b.state.requests.place(recipient{out.To.UserID, out.To.DeviceID}, len(ciphertext))
	if err != nil {
		return err
	}
	b.ids, b.keys, b.users = append(b.ids, rowID), append(b.keys, out.Key), append(b.users, string(out.To.UserID))
	b.devices, b.types = append(b.devices, string(out.To.DeviceID)), append(b.types, out.Type)
	b.contents, b.requests, b.agains = append(b.contents, string(ciphertext)), append(b.requests, request), append(b.agains, out.again(content))
	return nil
}

func (b *batch) session(out Outgoing, claims Claims) (*crypto.OlmSession, error) {
	key := out.To.IdentityKey
	if claimed, ok := claims[key]; ok {
		session, err := b.endpoint.newSession(b.state, out.To, claimed)
		if err != nil {
			return nil, err
		}
		delete(claims, key)
		b.latest[key], b.fresh[key] = session, true
	}
	session, ok := b.latest[key]
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNoOneTimeKey, out.To.DeviceID)
	}
	return session, nil
}

func (b *batch) write(ctx context.Context) error {
	if len(b.ids) == 0 {
		return nil
	}
	e := b.endpoint
	var insert, update sessionRows
	for key, session := range b.latest {
		rows := &update
		if b.fresh[key] {
			rows = &insert
		}
		if err := rows.add(key, session, e.pickleKey); err != nil {
			return err
		}
	}
	if _, err := e.db.Exec(ctx, `INSERT INTO crypto_olm_session (account_id, session_id, sender_key, session, created_at, last_encrypted, last_decrypted)
		SELECT $1, s, k, p, c, e, d FROM unnest($2::text[], $3::text[], $4::bytea[], $5::timestamp[], $6::timestamp[], $7::timestamp[]) AS fresh (s, k, p, c, e, d)`,
		insert.args(e.accountID)...); err != nil {
		return fmt.Errorf("saving new Olm sessions: %w", err)
	}
	if _, err := e.db.Exec(ctx, `UPDATE crypto_olm_session SET session = p, last_encrypted = e, last_decrypted = d
		FROM unnest($2::text[], $3::text[], $4::bytea[], $5::timestamp[], $6::timestamp[], $7::timestamp[]) AS moved (s, k, p, c, e, d)
		WHERE account_id = $1 AND session_id = moved.s`, update.args(e.accountID)...); err != nil {
		return fmt.Errorf("saving Olm sessions: %w", err)
	}
	_, err := e.db.Exec(ctx, `INSERT INTO todevice_outbox (id, account_id, key, recipient_user, recipient_device, type, content, created_at, request, again)
		SELECT i, $1, k, u, d, t, c, $2, r, a FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[]) AS fresh (i, k, u, d, t, c, r, a)`,
		e.accountID, e.now().UnixMilli(), pq.Array(b.ids), pq.Array(b.keys), pq.Array(b.users), pq.Array(b.devices), pq.Array(b.types), pq.Array(b.contents), pq.Array(b.requests), pq.Array(b.agains))
	if err != nil {
		return fmt.Errorf("keeping messages in the outbox: %w", err)
	}
	b.state.queued = true
	return nil
}

// sessionRows are sessions as the crypto store's table has them.
type sessionRows struct {
	ids, keys                     []string
	pickles                       [][]byte
	created, encrypted, decrypted []time.Time
}

func (r *sessionRows) add(key id.Curve25519, session *crypto.OlmSession, pickleKey []byte) error {
	pickle, err := session.Internal.Pickle(pickleKey)
	if err != nil {
		return fmt.Errorf("pickling an Olm session: %w", err)
	}
	r.ids, r.keys, r.pickles = append(r.ids, session.ID().String()), append(r.keys, key.String()), append(r.pickles, pickle)
	r.created, r.encrypted = append(r.created, session.CreationTime), append(r.encrypted, session.LastEncryptedTime)
	r.decrypted = append(r.decrypted, session.LastDecryptedTime)
	return nil
}

func (r *sessionRows) args(accountID string) []any {
	return []any{accountID, pq.Array(r.ids), pq.Array(r.keys), pq.Array(r.pickles), pq.Array(r.created), pq.Array(r.encrypted), pq.Array(r.decrypted)}
}
