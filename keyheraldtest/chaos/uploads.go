package chaos

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// keepUploading is one of the user's clients, which makes a room key now and then and puts it into the version that is the
// current one, again and again until the homeserver has said that it has it.
func (u *user) keepUploading(ctx context.Context, random *rand.Rand, stop <-chan struct{}) {
	waiting := map[keyName]roomKey{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-stop:
			return
		case <-time.After(time.Duration(500+random.IntN(2500)) * time.Millisecond):
		}
		maps.Copy(waiting, u.history.make(1+random.IntN(3)))
		if err := u.upload(ctx, waiting); err == nil {
			waiting = map[keyName]roomKey{}
		}
	}
}

// roomKeysInto is the version that a request puts room keys into, empty for any other request.
func roomKeysInto(r *http.Request) string {
	if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/room_keys/keys") {
		return ""
	}
	return r.URL.Query().Get("version")
}

// lateKeys is how many room keys arrive in an old version when the carry-over from it is under way.
const lateKeys = 2

// arriveLate has room keys arrive in the version before this one, while the first of its keys are put into this one. Dendrite
// looks which version is current in one transaction and writes in the next, so that an upload which is under way when a
// version is made lands in the one before. No request can be timed to do so, so this writes into Dendrite's database what
// Dendrite would.
func (w *world) arriveLate(ctx context.Context, u *user, version string) error {
	db, err := sql.Open("postgres", w.hs.DatabaseURL)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	txn, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = txn.Rollback() }()
	var before, auth string
	err = txn.QueryRowContext(ctx, `SELECT version, auth_data FROM userapi_key_backup_versions
		WHERE user_id = $1 AND version < CAST($2 AS bigint) AND deleted = 0 ORDER BY version DESC LIMIT 1`, u.id, version).Scan(&before, &auth)
	if err != nil {
		return fmt.Errorf("looking for the version before: %w", err)
	}
	var data struct {
		PublicKey string `json:"public_key"`
	}
	if err := json.Unmarshal([]byte(auth), &data); err != nil {
		return err
	}
	to, err := versionKey(data.PublicKey)
	if err != nil {
		return err
	}
	keys := u.history.make(lateKeys)
	rooms, err := seal(keys, to)
	if err != nil {
		return err
	}
	for room, sessions := range rooms {
		for session, key := range sessions.Sessions {
			_, err := txn.ExecContext(ctx, `INSERT INTO userapi_key_backups(user_id, room_id, session_id, version, first_message_index, forwarded_count, is_verified, session_data)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`, u.id, room, session, before, key.FirstMessageIndex, key.ForwardedCount, key.IsVerified, string(key.SessionData))
			if err != nil {
				return err
			}
		}
	}
	_, err = txn.ExecContext(ctx, `UPDATE userapi_key_backup_versions SET etag = CAST(CAST(etag AS bigint) + 1 AS text) WHERE user_id = $1 AND version = $2`, u.id, before)
	if err != nil {
		return err
	}
	if err := txn.Commit(); err != nil {
		return err
	}
	u.history.took(keys)
	u.history.cameLate(len(keys))
	return nil
}
