package postgres

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/tree"
)

const checkpointColumns = `epoch, tree_size, root_hash, note, signed_at`

func (db *DB) checkpoints(ctx context.Context, query string, args ...any) ([]checkpoint.Signed, error) {
	rows, err := db.Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("reading the checkpoints: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var found []checkpoint.Signed
	for rows.Next() {
		var c checkpoint.Signed
		var root []byte
		if err := rows.Scan(&c.Epoch, &c.Size, &root, &c.Note, &c.At); err != nil {
			return nil, fmt.Errorf("reading the checkpoints: %w", err)
		}
		copy(c.Root[:], root)
		found = append(found, c)
	}
	return found, rows.Err()
}

// epochs is a FROM clause that has each epoch once, so that the index of checkpoints serves what follows.
const epochs = `(SELECT 1 AS number UNION SELECT epoch FROM audit_epoch) AS e,
	LATERAL (SELECT * FROM audit_checkpoint WHERE epoch = e.number AND `

// CheckpointCovering is the first checkpoint that covers a leaf; ok is false where there is none.
func (db *DB) CheckpointCovering(ctx context.Context, leaf int64) (c checkpoint.Signed, ok bool, err error) {
	return first(db.checkpoints(ctx, `SELECT `+checkpointColumns+` FROM `+epochs+`tree_size > $1 ORDER BY tree_size LIMIT 1) AS c ORDER BY tree_size, epoch LIMIT 1`, leaf))
}

// NewestCheckpoint is the newest checkpoint of an epoch, or of all for 0; ok is false where there is none.
func (db *DB) NewestCheckpoint(ctx context.Context, epoch int) (c checkpoint.Signed, ok bool, err error) {
	return first(db.checkpoints(ctx, `SELECT `+checkpointColumns+` FROM audit_checkpoint WHERE $1 IN (0, epoch) ORDER BY epoch DESC, tree_size DESC LIMIT 1`, epoch))
}

// CheckpointsAround are the checkpoints of an epoch next to a size: the largest one up to it, and the smallest one from
// it on. Where one has that size it is both, and returned once.
func (db *DB) CheckpointsAround(ctx context.Context, epoch int, size int64) ([]checkpoint.Signed, error) {
	return db.checkpoints(ctx, `(SELECT `+checkpointColumns+` FROM audit_checkpoint WHERE epoch = $1 AND tree_size <= $2 ORDER BY tree_size DESC LIMIT 1)
		UNION (SELECT `+checkpointColumns+` FROM audit_checkpoint WHERE epoch = $1 AND tree_size >= $2 ORDER BY tree_size LIMIT 1) ORDER BY tree_size`, epoch, size)
}

func first(found []checkpoint.Signed, err error) (checkpoint.Signed, bool, error) {
	if err != nil || len(found) == 0 {
		return checkpoint.Signed{}, false, err
	}
	return found[0], true, nil
}

// CheckpointsBetween are the checkpoints of sizes above after, up to and including last, in the order of sizes.
func (db *DB) CheckpointsBetween(ctx context.Context, after, last int64) ([]checkpoint.Signed, error) {
	return db.checkpoints(ctx, `SELECT `+checkpointColumns+` FROM `+epochs+`tree_size > $1 AND tree_size <= $2) AS c ORDER BY tree_size, epoch`, after, last)
}

// SomeCheckpoints are about so many checkpoints for a bundle, evenly over the log, in order. Always among them: the first
// and the newest of each epoch, and those on both sides of each change of the signing keys, by which a verifier that
// knows the former key learns the new one.
func (db *DB) SomeCheckpoints(ctx context.Context, about int) ([]checkpoint.Signed, error) {
	return db.checkpoints(ctx, `WITH bounds AS (SELECT epoch, MIN(tree_size) AS low, MAX(tree_size) AS high, COUNT(*) AS n FROM audit_checkpoint GROUP BY epoch),
		spread AS (SELECT c.epoch, MAX(c.tree_size) AS tree_size FROM audit_checkpoint c JOIN bounds b USING (epoch)
			GROUP BY c.epoch, CASE WHEN b.n <= $1 THEN c.tree_size ELSE (c.tree_size - b.low) / GREATEST(1, (b.high - b.low) / $1) END),
		changed AS (SELECT l.leaf_index FROM audit_signing_keys k JOIN audit_leaf l ON l.event_id = k.event_id),
		around AS (SELECT c.epoch, c.tree_size FROM changed, LATERAL (SELECT epoch, tree_size FROM `+epochs+`tree_size > changed.leaf_index ORDER BY tree_size LIMIT 1) AS next) AS c
			UNION SELECT c.epoch, c.tree_size FROM changed, LATERAL (SELECT epoch, tree_size FROM `+epochs+`tree_size <= changed.leaf_index ORDER BY tree_size DESC LIMIT 1) AS previous) AS c),
		chosen AS (SELECT epoch, tree_size FROM spread UNION SELECT epoch, low FROM bounds UNION SELECT epoch, high FROM bounds UNION SELECT * FROM around)
		SELECT `+checkpointColumns+` FROM audit_checkpoint JOIN chosen USING (epoch, tree_size) ORDER BY epoch, tree_size`, about)
}

// NodesBetween reads the nodes above the leaves that are complete with one of the leaves from first to before end.
func (db *DB) NodesBetween(ctx context.Context, first, end int64) ([]tree.Node, error) {
	// A query for each level, whose range the planner sees: in a join with the ranges it would read the whole table.
	var levels []string
	var args []any
	for level := 1; first>>level < end>>level; level++ {
		n := len(args)
		levels = append(levels, fmt.Sprintf(`SELECT level, n, hash FROM audit_node WHERE level = $%d AND n >= $%d AND n < $%d`, n+1, n+2, n+3))
		args = append(args, level, first>>level, end>>level)
	}
	if len(levels) == 0 {
		return nil, nil
	}
	rows, err := db.Query(ctx, strings.Join(levels, " UNION ALL "), args...)
	if err != nil {
		return nil, fmt.Errorf("reading nodes of the audit tree: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var nodes []tree.Node
	for rows.Next() {
		var node tree.Node
		var hash []byte
		if err := rows.Scan(&node.Level, &node.N, &hash); err != nil {
			return nil, fmt.Errorf("reading nodes of the audit tree: %w", err)
		}
		if len(hash) == tlog.HashSize {
			node.Hash = tlog.Hash(hash)
		}
		nodes = append(nodes, node)
	}
	return nodes, rows.Err()
}

// CountNodes is how many nodes above the leaves are stored.
func (db *DB) CountNodes(ctx context.Context) (n int64, err error) {
	if err := db.QueryRow(ctx, `SELECT COUNT(*) FROM audit_node`).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting the nodes of the audit tree: %w", err)
	}
	return n, nil
}

// SealedEpoch is the epoch of the newest leaf: one that was begun counts when its first event is sealed.
func (db *DB) SealedEpoch(ctx context.Context) (epoch int, err error) {
	err = db.QueryRow(ctx, `SELECT COALESCE(MAX(e.epoch), 1) FROM audit_epoch e JOIN audit_leaf l ON l.event_id = e.event_id`).Scan(&epoch)
	if err != nil {
		return 0, fmt.Errorf("reading the epoch of the audit log: %w", err)
	}
	return epoch, nil
}

// AllSigningKeys are the verifier keys that the log ever named as its own, each once, the newest set first.
func (db *DB) AllSigningKeys(ctx context.Context) ([]string, error) {
	rows, err := db.Query(ctx, `SELECT key FROM (SELECT key, MIN(age) AS age, MIN(place) AS place FROM
			(SELECT keys, ROW_NUMBER() OVER (ORDER BY event_id DESC) AS age FROM audit_signing_keys) AS sets,
			LATERAL unnest(string_to_array(keys, E'\n')) WITH ORDINALITY AS line (key, place) GROUP BY key) AS known ORDER BY age, place`)
	if err != nil {
		return nil, fmt.Errorf("reading the audit log's signing keys: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var keys []string
	for rows.Next() {
		var key string
		if err := rows.Scan(&key); err != nil {
			return nil, fmt.Errorf("reading the audit log's signing keys: %w", err)
		}
		keys = append(keys, key)
	}
	return keys, rows.Err()
}
