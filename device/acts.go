package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/keyherald/keyherald/protocol"
)

// did journals an act in the caller's transaction, if there is one. The next status carries it.
func (a *Account) did(ctx context.Context, act protocol.Act) error {
	act.At = protocol.At(a.now())
	encoded, err := json.Marshal(act)
	if err != nil {
		return fmt.Errorf("journaling an act: %w", err)
	}
	if _, err := a.store.db.Exec(ctx, `INSERT INTO act (content) VALUES ($1)`, string(encoded)); err != nil {
		return fmt.Errorf("journaling an act: %w", err)
	}
	return nil
}

// takeActs takes the oldest acts out of the journal, in the transaction that queues the status they go with.
func (a *Account) takeActs(ctx context.Context) ([]protocol.Act, error) {
	rows, err := a.store.db.Query(ctx, `SELECT id, content FROM act ORDER BY id LIMIT $1`, protocol.MaxActs)
	if err != nil {
		return nil, fmt.Errorf("reading the acts: %w", err)
	}
	var acts []protocol.Act
	var last int64
	for rows.Next() {
		var act protocol.Act
		var content string
		err := rows.Scan(&last, &content)
		if err == nil {
			err = json.Unmarshal([]byte(content), &act)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("reading the acts: %w", err), rows.Close())
		}
		acts = append(acts, act)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || len(acts) == 0 {
		return nil, err
	}
	if _, err := a.store.db.Exec(ctx, `DELETE FROM act WHERE id <= $1`, last); err != nil {
		return nil, fmt.Errorf("taking the acts: %w", err)
	}
	return acts, nil
}
