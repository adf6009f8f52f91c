package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/roster"
	"github.com/keyherald/keyherald/rotation"
)

// coverageQuery is everything that the rules of package roster ask of a page of users (chosenUsers), in one look. Each table is
// read once for all of the page: whole for everybody, and else by the indexes, since there the page says whose rows are
// wanted, which for everybody would only cost.
func coverageQuery(everybody bool) string {
	ofPage := `user_id IN (SELECT user_id FROM page)`
	if everybody {
		ofPage = `true`
	}
	return `WITH page AS ` + chosenUsers + `
	SELECT r.user_id, r.exempt_reason, r.exempt_until, COALESCE(d.enrolled, 0), COALESCE(d.needs_enrollment, 0), COALESCE(d.revoked, 0),
		s.status_at, COALESCE(s.backup_version, ''), COALESCE(s.holds_key = 'true', false), COALESCE(s.drift, ''),
		k.created_at, COALESCE(k.only_seen, false),
		o.id, COALESCE(o.state, ''), COALESCE(o.held_for, ''), COALESCE(o.held, false), COALESCE(o.needs_attention, ''), COALESCE(o.next_action, ''),
		l.id, COALESCE(l.state, ''), COALESCE(l.failure, '')
	FROM page r
	LEFT JOIN (SELECT user_id, COUNT(*) FILTER (WHERE state = 'enrolled') AS enrolled, COUNT(*) FILTER (WHERE state = 'needs_enrollment') AS needs_enrollment,
		COUNT(*) FILTER (WHERE state = 'revoked') AS revoked FROM device WHERE ` + ofPage + ` GROUP BY user_id) d ON d.user_id = r.user_id
	LEFT JOIN (SELECT DISTINCT ON (user_id) user_id, status_at, status ->> 'backup_version' AS backup_version, status ->> 'holds_key' AS holds_key, status #>> '{drifted,kind}' AS drift
		FROM device WHERE ` + ofPage + ` AND state = 'enrolled' AND status_at IS NOT NULL ORDER BY user_id, status_at DESC) s ON s.user_id = r.user_id
	LEFT JOIN key_version k ON k.user_id = r.user_id AND k.version = s.backup_version
	LEFT JOIN (SELECT DISTINCT ON (user_id) user_id, id, state, held, held_for, needs_attention, next_action FROM rotation WHERE ` + ofPage + ` AND ended_at IS NULL
		ORDER BY user_id, needs_attention <> '' DESC, held DESC, id DESC) o ON o.user_id = r.user_id
	LEFT JOIN (SELECT DISTINCT ON (user_id) user_id, id, state, failure FROM rotation WHERE ` + ofPage + ` AND state NOT IN ('superseded', 'cancelled')
		ORDER BY user_id, id DESC) l ON l.user_id = r.user_id
	ORDER BY r.user_id`
}

// Coverage reads what the rules ask of users of the roster, in the order of user ids. All of it is of one moment.
func (db *DB) Coverage(ctx context.Context, filter RosterFilter) ([]roster.Facts, error) {
	rows, err := db.Query(ctx, coverageQuery(filter.After == "" && filter.Limit == 0 && filter.Users == nil), filter.args()...)
	if err != nil {
		return nil, fmt.Errorf("reading the coverage: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var all []roster.Facts
	for rows.Next() {
		var f roster.Facts
		var until, at, since sql.NullTime
		var open, last uuid.NullUUID
		err := rows.Scan(&f.Entry.UserID, &f.Entry.Exemption.Reason, &until, &f.Devices.Enrolled, &f.Devices.NeedsEnrollment, &f.Devices.Revoked,
			&at, &f.Status.BackupVersion, &f.Status.HoldsKey, &f.Status.Drift, &since, &f.Key.OnlySeen,
			&open, &f.Open.State, &f.Open.HeldFor, &f.Open.Held, &f.Open.Attention, &f.Open.NextAction, &last, &f.Last.State, &f.Last.Failure)
		if err != nil {
			return nil, fmt.Errorf("reading the coverage: %w", err)
		}
		f.Entry.Exemption.Until, f.Status.At, f.Key.Since, f.Open.ID, f.Last.ID = until.Time, at.Time, since.Time, open.UUID, last.UUID
		all = append(all, f)
	}
	return all, rows.Err()
}

// CoverageAt reads from the audit log what the rules ask of who was on the roster at a time, in the order of user ids.
// A status that says nothing new is in the log once a day.
func (db *DB) CoverageAt(ctx context.Context, at time.Time) ([]roster.Facts, error) {
	rows, err := db.Query(ctx, `SELECT user_id, exempt_reason, exempt_until, enrolled, needs_enrollment, revoked, status_at, backup_version, holds_key, drift, key_since, only_seen,
		rotation, state, held_for, needs_attention, failure FROM auditor.coverage_at($1) ORDER BY user_id`, at)
	if err != nil {
		return nil, fmt.Errorf("reading the coverage at %s: %w", at.UTC().Format(time.RFC3339), err)
	}
	defer func() { _ = rows.Close() }()
	var all []roster.Facts
	for rows.Next() {
		var f roster.Facts
		var until, status, since sql.NullTime
		var newest uuid.NullUUID
		var state string
		var r roster.Rotation
		err := rows.Scan(&f.Entry.UserID, &f.Entry.Exemption.Reason, &until, &f.Devices.Enrolled, &f.Devices.NeedsEnrollment, &f.Devices.Revoked,
			&status, &f.Status.BackupVersion, &f.Status.HoldsKey, &f.Status.Drift, &since, &f.Key.OnlySeen, &newest, &state, &r.HeldFor, &r.Attention, &r.Failure)
		if err != nil {
			return nil, fmt.Errorf("reading the coverage at %s: %w", at.UTC().Format(time.RFC3339), err)
		}
		f.Entry.Exemption.Until, f.Status.At, f.Key.Since = until.Time, status.Time, since.Time
		r.ID, r.State, r.Held = newest.UUID, rotation.State(state), state == "held"
		if r.Held {
			r.State = rotation.Received
		}
		switch {
		case !newest.Valid:
		case !r.State.Ended():
			f.Open, f.Last = r, r
		case r.State != rotation.Cancelled && r.State != rotation.Superseded:
			f.Last = r
		}
		all = append(all, f)
	}
	return all, rows.Err()
}
