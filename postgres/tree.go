package postgres

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/tree"
)

// TreeState is how far the audit log is sealed.
type TreeState struct {
	// Size is the number of leaves.
	Size int64
	// Epoch is the present one, and EpochEvent the event that it begins with; none in the first.
	Epoch      int
	EpochEvent uuid.UUID
	// Newest is the newest checkpoint of any epoch; its size is zero where there is none.
	Newest checkpoint.Checkpoint
	// Note is the newest checkpoint as it was signed.
	Note string
}

// LockTree makes the transaction the only one that seals, until it ends.
func (db *DB) LockTree(ctx context.Context) error {
	if _, err := db.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('keyherald audit tree', 0))`); err != nil {
		return fmt.Errorf("locking the audit tree: %w", err)
	}
	return nil
}

// TreeState reads how far the log is sealed.
func (db *DB) TreeState(ctx context.Context) (state TreeState, err error) {
	state.Epoch = 1
	err = db.QueryRow(ctx, `SELECT COALESCE(MAX(leaf_index) + 1, 0) FROM audit_leaf`).Scan(&state.Size)
	if err != nil {
		return state, fmt.Errorf("reading the size of the audit tree: %w", err)
	}
	err = db.QueryRow(ctx, `SELECT epoch, event_id FROM audit_epoch ORDER BY epoch DESC LIMIT 1`).Scan(&state.Epoch, &state.EpochEvent)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return state, fmt.Errorf("reading the epoch of the audit log: %w", err)
	}
	var root []byte
	err = db.QueryRow(ctx, `SELECT epoch, tree_size, root_hash, note FROM audit_checkpoint ORDER BY epoch DESC, tree_size DESC LIMIT 1`).
		Scan(&state.Newest.Epoch, &state.Newest.Size, &root, &state.Note)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return state, fmt.Errorf("reading the newest checkpoint: %w", err)
	}
	copy(state.Newest.Root[:], root)
	return state, nil
}

// PendingEvent is an event that is not sealed yet. Body is nil where it is queued and not in the log any more.
type PendingEvent struct {
	ID   uuid.UUID
	Body []byte
}

// PendingEvents lists the oldest events that are not sealed, first before all others.
func (db *DB) PendingEvents(ctx context.Context, first uuid.UUID, limit int) ([]PendingEvent, error) {
	rows, err := db.Query(ctx, `SELECT p.event_id, e.body FROM audit_pending p LEFT JOIN audit_event e ON e.id = p.event_id
		WHERE NOT EXISTS (SELECT 1 FROM audit_leaf l WHERE l.event_id = p.event_id) ORDER BY p.event_id <> $1, p.event_id LIMIT $2`, first, limit)
	if err != nil {
		return nil, fmt.Errorf("reading the events to seal: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var pending []PendingEvent
	for rows.Next() {
		var p PendingEvent
		if err := rows.Scan(&p.ID, &p.Body); err != nil {
			return nil, fmt.Errorf("reading the events to seal: %w", err)
		}
		pending = append(pending, p)
	}
	return pending, rows.Err()
}

// Requeue queues the events since a time that are neither sealed nor queued, of which there are none as long as nobody
// touched the queue or its trigger, and returns how many there were.
func (db *DB) Requeue(ctx context.Context, since time.Time) (int64, error) {
	result, err := db.Exec(ctx, `INSERT INTO audit_pending SELECT id FROM audit_event e WHERE id >= $1
		AND NOT EXISTS (SELECT 1 FROM audit_leaf l WHERE l.event_id = e.id) ON CONFLICT DO NOTHING`, firstOf(since))
	if err != nil {
		return 0, fmt.Errorf("looking for events that nobody queued: %w", err)
	}
	return result.RowsAffected()
}

// firstOf is the lowest UUIDv7 of a time.
func firstOf(at time.Time) uuid.UUID {
	var key uuid.UUID
	if ms := at.UnixMilli(); ms > 0 {
		binary.BigEndian.PutUint64(key[:8], uint64(ms)<<16)
	}
	return key
}

// Unsealed is how many events wait to be sealed, and since when the oldest does; zero where none waits.
func (db *DB) Unsealed(ctx context.Context) (n int, oldest time.Time, err error) {
	var first uuid.NullUUID
	if err := db.QueryRow(ctx, `SELECT COUNT(*), MIN(event_id::text)::uuid FROM audit_pending`).Scan(&n, &first); err != nil {
		return 0, oldest, fmt.Errorf("counting the events to seal: %w", err)
	}
	if first.Valid {
		oldest = timeOf(first.UUID)
	}
	return n, oldest, nil
}

// OldestUnsealed is since when an event waits to be sealed; zero where none waits. Unlike Unsealed it counts nothing.
func (db *DB) OldestUnsealed(ctx context.Context) (time.Time, error) {
	var first uuid.UUID
	err := db.QueryRow(ctx, `SELECT event_id FROM audit_pending ORDER BY event_id LIMIT 1`).Scan(&first)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	} else if err != nil {
		return time.Time{}, fmt.Errorf("looking for events to seal: %w", err)
	}
	return timeOf(first), nil
}

// TreeNodes is a tree.Reader of what is stored.
func (db *DB) TreeNodes(ctx context.Context, nodes []tree.Node) ([]tlog.Hash, error) {
	levels, numbers := make([]int64, len(nodes)), make([]int64, len(nodes))
	for i, n := range nodes {
		levels[i], numbers[i] = int64(n.Level), n.N
	}
	rows, err := db.Query(ctx, `SELECT COALESCE(l.leaf_hash, n.hash) FROM unnest($1::integer[], $2::bigint[]) WITH ORDINALITY AS wanted (level, n, place)
		LEFT JOIN audit_leaf l ON wanted.level = 0 AND l.leaf_index = wanted.n
		LEFT JOIN audit_node n ON n.level = wanted.level AND n.n = wanted.n ORDER BY wanted.place`, pq.Array(levels), pq.Array(numbers))
	if err != nil {
		return nil, fmt.Errorf("reading nodes of the audit tree: %w", err)
	}
	defer func() { _ = rows.Close() }()
	hashes := make([]tlog.Hash, 0, len(nodes))
	for rows.Next() {
		var raw []byte
		if err := rows.Scan(&raw); err != nil {
			return nil, fmt.Errorf("reading nodes of the audit tree: %w", err)
		}
		if len(raw) != tlog.HashSize {
			missing := nodes[len(hashes)]
			return nil, fmt.Errorf("node %d of level %d of the audit tree is not there: %w", missing.N, missing.Level, ErrTreeDamaged)
		}
		hashes = append(hashes, tlog.Hash(raw))
	}
	return hashes, rows.Err()
}

// ErrTreeDamaged means that the stored tree is not what the signer left: somebody changed it.
var ErrTreeDamaged = errors.New("the audit tree in the database is damaged")

// Grow keeps what a batch of events added to the tree, and takes them from the queue; ids are in the order of the leaves.
func (db *DB) Grow(ctx context.Context, ids []uuid.UUID, grown tree.Grown) error {
	first := grown.Size - int64(len(ids))
	indexes, leaves := make([]int64, 0, len(ids)), make([][]byte, 0, len(ids))
	var levels, numbers []int64
	var hashes [][]byte
	for _, node := range grown.Added {
		if node.Level == 0 {
			indexes, leaves = append(indexes, node.N), append(leaves, node.Hash[:])
			continue
		}
		levels, numbers, hashes = append(levels, int64(node.Level)), append(numbers, node.N), append(hashes, node.Hash[:])
	}
	if len(indexes) != len(ids) || (len(ids) > 0 && indexes[0] != first) {
		return fmt.Errorf("%d leaves for %d events of the audit log", len(indexes), len(ids))
	}
	_, err := db.Exec(ctx, `INSERT INTO audit_leaf (leaf_index, event_id, leaf_hash) SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::bytea[])`,
		pq.Array(indexes), pq.Array(ids), pq.Array(leaves))
	if err == nil && len(levels) > 0 {
		_, err = db.Exec(ctx, `INSERT INTO audit_node (level, n, hash) SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bytea[])`,
			pq.Array(levels), pq.Array(numbers), pq.Array(hashes))
	}
	if err == nil {
		_, err = db.Exec(ctx, `DELETE FROM audit_pending WHERE event_id = ANY($1)`, pq.Array(ids))
	}
	if err != nil {
		return fmt.Errorf("keeping the leaves of the audit tree: %w", err)
	}
	return nil
}

// ForgetPending takes events from the queue that are not in the log any more.
func (db *DB) ForgetPending(ctx context.Context, ids []uuid.UUID) error {
	if _, err := db.Exec(ctx, `DELETE FROM audit_pending WHERE event_id = ANY($1)`, pq.Array(ids)); err != nil {
		return fmt.Errorf("taking events from the queue: %w", err)
	}
	return nil
}

// PutCheckpoint keeps a checkpoint as it was signed.
func (db *DB) PutCheckpoint(ctx context.Context, c checkpoint.Checkpoint, note string, at time.Time) error {
	_, err := db.Exec(ctx, `INSERT INTO audit_checkpoint (epoch, tree_size, root_hash, note, signed_at) VALUES ($1, $2, $3, $4, $5)`,
		c.Epoch, c.Size, c.Root[:], note, at)
	if err != nil {
		return fmt.Errorf("keeping a checkpoint: %w", err)
	}
	return nil
}

// BeginEpoch keeps the event that a new epoch begins with.
func (db *DB) BeginEpoch(ctx context.Context, epoch int, event uuid.UUID, at time.Time) error {
	if _, err := db.Exec(ctx, `INSERT INTO audit_epoch (epoch, event_id, started_at) VALUES ($1, $2, $3)`, epoch, event, at); err != nil {
		return fmt.Errorf("beginning an epoch of the audit log: %w", err)
	}
	return nil
}

// SigningKeys are the verifier keys that the log names as its own now, one a line; empty before the first.
func (db *DB) SigningKeys(ctx context.Context) (keys string, err error) {
	err = db.QueryRow(ctx, `SELECT keys FROM audit_signing_keys ORDER BY event_id DESC LIMIT 1`).Scan(&keys)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("reading the audit log's signing keys: %w", err)
	}
	return keys, nil
}

// PutSigningKeys keeps the keys that sign from an event on.
func (db *DB) PutSigningKeys(ctx context.Context, event uuid.UUID, keys string) error {
	if _, err := db.Exec(ctx, `INSERT INTO audit_signing_keys (event_id, keys) VALUES ($1, $2)`, event, keys); err != nil {
		return fmt.Errorf("keeping the audit log's signing keys: %w", err)
	}
	return nil
}
