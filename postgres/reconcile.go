package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/rotation"
)

// Watched is the place of an enrolled user's key in a KMS, with the version that was seen there last. Before the first look
// that is the version that was relayed last, and empty where none was, or the sender named none.
type Watched struct {
	Place
	Version string
	Seen    bool
}

// Watched lists the places of enrolled users in a KMS, in the order of the users and above after: where their rotations
// were, or for those who had none there, the place that template gives.
func (db *DB) Watched(ctx context.Context, kms, secret string, template func(id.UserID) string, after id.UserID, limit int) ([]Watched, error) {
	rows, err := db.Query(ctx, `WITH enrolled AS (SELECT DISTINCT user_id FROM device WHERE state = 'enrolled' AND user_id > $3 ORDER BY user_id LIMIT $4)
		SELECT e.user_id, COALESCE(r.path, ''), COALESCE(relayed.version, ''), COALESCE(s.path, ''), COALESCE(s.version, '') FROM enrolled e
		LEFT JOIN LATERAL (SELECT path FROM rotation r WHERE r.user_id = e.user_id AND r.secret = $2 AND r.kms = $1 ORDER BY r.id DESC LIMIT 1) r ON true
		LEFT JOIN LATERAL (SELECT version FROM rotation v WHERE v.user_id = e.user_id AND v.secret = $2 AND v.kms = $1 AND v.path = r.path AND v.version NOT LIKE 'pending/%'
			ORDER BY v.id DESC LIMIT 1) relayed ON true
		LEFT JOIN reconciled s ON s.user_id = e.user_id AND s.secret = $2 AND s.kms = $1 ORDER BY e.user_id, s.seen_at`, kms, secret, after, limit)
	if err != nil {
		return nil, fmt.Errorf("reading the places to reconcile: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var watched []Watched
	for rows.Next() {
		w := Watched{Place: Place{Secret: secret, KMS: kms}}
		var relayed, seenPath, version string
		if err := rows.Scan(&w.UserID, &w.Path, &relayed, &seenPath, &version); err != nil {
			return nil, fmt.Errorf("reading the places to reconcile: %w", err)
		}
		if w.Path == "" {
			w.Path = template(w.UserID)
		}
		if n := len(watched); n == 0 || watched[n-1].UserID != w.UserID {
			// One that was made of a notification's id says nothing about what the KMS had.
			if !rotation.IsUnnamed(relayed) {
				w.Version = relayed
			}
			watched = append(watched, w)
		}
		// There is a row for each place that this user's key was seen at.
		if seenPath == w.Path {
			watched[len(watched)-1].Version, watched[len(watched)-1].Seen = version, true
		}
	}
	return watched, rows.Err()
}

// PutReconciled keeps the versions that were seen at places.
func (db *DB) PutReconciled(ctx context.Context, seen []Watched, at time.Time) error {
	if len(seen) == 0 {
		return nil
	}
	users, secrets, kms, paths, versions := make([]string, len(seen)), make([]string, len(seen)), make([]string, len(seen)), make([]string, len(seen)), make([]string, len(seen))
	for i, w := range seen {
		users[i], secrets[i], kms[i], paths[i], versions[i] = string(w.UserID), w.Secret, w.KMS, w.Path, w.Version
	}
	_, err := db.Exec(ctx, `INSERT INTO reconciled (user_id, secret, kms, path, version, seen_at)
		SELECT u, s, k, p, v, $6 FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS seen (u, s, k, p, v)
		ON CONFLICT (user_id, secret, kms, path) DO UPDATE SET version = excluded.version, seen_at = excluded.seen_at`,
		pq.Array(users), pq.Array(secrets), pq.Array(kms), pq.Array(paths), pq.Array(versions), at)
	if err != nil {
		return fmt.Errorf("keeping what was seen in the KMS: %w", err)
	}
	return nil
}

// Seen are the versions that were seen at places when the KMS was looked at last; a place that was not looked at is
// missing.
func (db *DB) Seen(ctx context.Context, places []Place) (map[Place]string, error) {
	users, secrets, kms, paths := columnsOf(places)
	rows, err := db.Query(ctx, `SELECT user_id, secret, kms, path, version FROM reconciled WHERE (user_id, secret, kms, path) IN
		(SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]))`, pq.Array(users), pq.Array(secrets), pq.Array(kms), pq.Array(paths))
	if err != nil {
		return nil, fmt.Errorf("reading what was seen in the KMS: %w", err)
	}
	defer func() { _ = rows.Close() }()
	seen := map[Place]string{}
	for rows.Next() {
		var place Place
		var version string
		if err := rows.Scan(&place.UserID, &place.Secret, &place.KMS, &place.Path, &version); err != nil {
			return nil, fmt.Errorf("reading what was seen in the KMS: %w", err)
		}
		seen[place] = version
	}
	return seen, rows.Err()
}
