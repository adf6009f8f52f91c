package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"iter"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"go.mau.fi/util/dbutil"

	"github.com/keyherald/keyherald/audit"
)

// Snapshot runs fn in a transaction that changes nothing, and in which every query sees the database of one moment: that
// of the first query.
func (db *DB) Snapshot(ctx context.Context, fn func(ctx context.Context) error) error {
	return db.DoTxn(ctx, &dbutil.TxnOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}, fn)
}

// EventFilter chooses events. What is zero chooses all.
type EventFilter struct {
	Rotation uuid.UUID
	// User chooses what a user or one of his devices did or underwent, and all of his rotations.
	User string
	// Actor is whole, or "@user:server" with all of his devices.
	Actor string
	// Actions are noun.verb, or noun.* for all of a noun.
	Actions []string
	Outcome string
	// Since and Until are compared with the events' own times: Since is included, Until is not.
	Since, Until time.Time
	// Before is an event that is not among them, and neither are newer ones: the oldest of the page before.
	Before uuid.UUID
	// Newest is how many are returned at most, the newest ones.
	Newest int
}

// MaxFilter is how long a part of a filter may be, in bytes: it stands in the log.
const MaxFilter = 300

var (
	actionPattern  = regexp.MustCompile(`^[a-z0-9_]+\.([a-z0-9_]+|\*)$`)
	outcomePattern = regexp.MustCompile(`^[a-z0-9_]+$`)
)

// IsActionFilter reports whether a text may be one of a filter's Actions.
func IsActionFilter(text string) bool {
	return len(text) <= MaxFilter && actionPattern.MatchString(text)
}

// IsOutcomeFilter reports whether a text may be a filter's Outcome.
func IsOutcomeFilter(text string) bool {
	return len(text) <= MaxFilter && outcomePattern.MatchString(text)
}

// clockSlack is by how much an event's id may be older or newer than its time, which the same process takes in the same
// step: far more than it ever is, and little enough to leave most of a long log alone.
const clockSlack = 24 * time.Hour

// where is the filter as a condition on the view audit_log.
func (f EventFilter) where() (condition string, args []any) {
	conditions := []string{"true"}
	add := func(condition string, value any) {
		args = append(args, value)
		conditions = append(conditions, strings.ReplaceAll(condition, "?", fmt.Sprintf("$%d", len(args))))
	}
	if f.Rotation != uuid.Nil {
		add("rotation = ?", f.Rotation.String())
	}
	const his = `(subject = ? OR starts_with(subject, ? || '/') OR actor = ? OR starts_with(actor, ? || '/'))`
	if f.User != "" {
		add("("+his+" OR rotation IN (SELECT rotation FROM audit_log WHERE rotation IS NOT NULL AND "+his+"))", f.User)
	}
	if f.Actor != "" {
		add(`(actor = ? OR starts_with(actor, ? || '/'))`, f.Actor)
	}
	if len(f.Actions) > 0 {
		add(`EXISTS (SELECT 1 FROM unnest(?::text[]) AS wanted WHERE action = wanted OR (wanted LIKE '%.*' AND split_part(action, '.', 1) = split_part(wanted, '.', 1)))`, pq.Array(f.Actions))
	}
	if f.Outcome != "" {
		add("outcome = ?", f.Outcome)
	}
	if !f.Since.IsZero() {
		add("time >= ?", f.Since)
		add("id >= ?", firstOf(f.Since.Add(-clockSlack)))
	}
	if !f.Until.IsZero() {
		add("time < ?", f.Until)
		add("id < ?", firstOf(f.Until.Add(clockSlack)))
	}
	if f.Before != uuid.Nil {
		add("id < ?", f.Before)
	}
	return strings.Join(conditions, " AND "), args
}

const recordColumns = `e.id, COALESCE(l.leaf_index, -1), l.leaf_hash, e.body, d.salt, d.detail, r.redaction_id`

func scanRecord(rows interface{ Scan(...any) error }) (audit.Record, error) {
	var r audit.Record
	var redaction uuid.NullUUID
	err := rows.Scan(&r.ID, &r.Index, &r.LeafHash, &r.Body, &r.Salt, &r.Detail, &redaction)
	r.RedactedBy = redaction.UUID
	return r, err
}

// Events yields the events that a filter chooses, sealed or not, in the order of their ids. Within Snapshot nothing else
// may be asked of the database while it yields.
func (db *DB) Events(ctx context.Context, f EventFilter) iter.Seq2[audit.Record, error] {
	where, args := f.where()
	chosen := `SELECT id FROM audit_log WHERE ` + where
	if f.Newest > 0 {
		args = append(args, f.Newest)
		chosen += fmt.Sprintf(` ORDER BY id DESC LIMIT $%d`, len(args))
	}
	return db.records(ctx, `SELECT `+recordColumns+` FROM audit_event e LEFT JOIN audit_detail d ON d.event_id = e.id
		LEFT JOIN audit_leaf l ON l.event_id = e.id LEFT JOIN audit_redaction r ON r.event_id = e.id
		WHERE e.id IN (`+chosen+`) ORDER BY e.id`, args...)
}

// Event reads one event; ok is false where there is none.
func (db *DB) Event(ctx context.Context, key uuid.UUID) (record audit.Record, ok bool, err error) {
	for record, err := range db.records(ctx, `SELECT `+recordColumns+` FROM audit_event e LEFT JOIN audit_detail d ON d.event_id = e.id
		LEFT JOIN audit_leaf l ON l.event_id = e.id LEFT JOIN audit_redaction r ON r.event_id = e.id WHERE e.id = $1`, key) {
		return record, err == nil, err
	}
	return audit.Record{}, false, nil
}

// LeavesBetween reads the leaves with indexes from first to before end, in their order. A leaf whose event was deleted has
// no Body.
func (db *DB) LeavesBetween(ctx context.Context, first, end int64) ([]audit.Record, error) {
	// Subqueries, and not joins: the events of neighbouring leaves are neighbours in the index, which the planner does not
	// know, so that it would read whole tables for each page.
	var page []audit.Record
	for record, err := range db.records(ctx, `SELECT l.event_id, l.leaf_index, l.leaf_hash, (SELECT body FROM audit_event WHERE id = l.event_id),
			(SELECT salt FROM audit_detail WHERE event_id = l.event_id), (SELECT detail FROM audit_detail WHERE event_id = l.event_id),
			(SELECT redaction_id FROM audit_redaction WHERE event_id = l.event_id)
		FROM audit_leaf l WHERE l.leaf_index >= $1 AND l.leaf_index < $2 ORDER BY l.leaf_index`, first, end) {
		if err != nil {
			return nil, err
		}
		page = append(page, record)
	}
	return page, nil
}

// leafPage is how many leaves are in memory at once.
const leafPage = 2000

// Leaves yields the leaves from first to before end, in their order, page by page.
func (db *DB) Leaves(ctx context.Context, first, end int64) iter.Seq2[audit.Record, error] {
	return func(yield func(audit.Record, error) bool) {
		for ; first < end; first += leafPage {
			page, err := db.LeavesBetween(ctx, first, min(first+leafPage, end))
			if err != nil {
				yield(audit.Record{}, err)
				return
			}
			for _, record := range page {
				if !yield(record, nil) {
					return
				}
			}
		}
	}
}

func (db *DB) records(ctx context.Context, query string, args ...any) iter.Seq2[audit.Record, error] {
	return func(yield func(audit.Record, error) bool) {
		fail := func(err error) { yield(audit.Record{}, fmt.Errorf("reading the audit log: %w", err)) }
		rows, err := db.Query(ctx, query, args...)
		if err != nil {
			fail(err)
			return
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			record, err := scanRecord(rows)
			if err != nil {
				fail(err)
				return
			}
			if !yield(record, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			fail(err)
		}
	}
}

// UnsealedRedactions are the events whose detail is gone, while the event that says why is not sealed yet.
func (db *DB) UnsealedRedactions(ctx context.Context) ([]uuid.UUID, error) {
	rows, err := db.Query(ctx, `SELECT r.event_id FROM audit_redaction r JOIN audit_event e ON e.id = r.redaction_id
		WHERE NOT EXISTS (SELECT 1 FROM audit_leaf l WHERE l.event_id = r.redaction_id)`)
	if err != nil {
		return nil, fmt.Errorf("reading the redactions: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var targets []uuid.UUID
	for rows.Next() {
		var target uuid.UUID
		if err := rows.Scan(&target); err != nil {
			return nil, fmt.Errorf("reading the redactions: %w", err)
		}
		targets = append(targets, target)
	}
	return targets, rows.Err()
}

// CountUnsealed is how many events no checkpoint covers yet.
func (db *DB) CountUnsealed(ctx context.Context) (n int64, err error) {
	err = db.QueryRow(ctx, `SELECT COUNT(*) FROM audit_event e WHERE NOT EXISTS (SELECT 1 FROM audit_leaf l WHERE l.event_id = e.id)`).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("counting the events that are not sealed: %w", err)
	}
	return n, nil
}

// CheckAuditor fails unless this connection's role may read the audit log, and may add nothing to it nor change it.
func (db *DB) CheckAuditor(ctx context.Context) error {
	var role string
	var super, reads, changes bool
	err := db.QueryRow(ctx, `SELECT current_user, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
		(SELECT bool_and(has_table_privilege(name, 'SELECT')) FROM unnest(ARRAY['audit_log', 'audit_event', 'audit_detail', 'audit_leaf', 'audit_node', 'audit_checkpoint', 'audit_redaction']) AS name),
		(SELECT bool_or(has_table_privilege(name, right_)) FROM unnest(ARRAY['audit_event', 'audit_detail', 'audit_leaf', 'audit_node', 'audit_checkpoint', 'audit_redaction']) AS name,
			unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS right_)`).Scan(&role, &super, &reads, &changes)
	switch {
	case err != nil:
		return fmt.Errorf("reading the role's rights: %w", err)
	case super || changes:
		return fmt.Errorf("%s could change the audit log: it is no auditor", role)
	case !reads:
		return fmt.Errorf("%s may not read the audit log", role)
	}
	return nil
}
