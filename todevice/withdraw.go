package todevice

import (
	"context"
	"fmt"
	"slices"
)

// Withdraw takes the messages with these keys out of the outbox, within InTxn, and returns the keys of those it took:
// the homeserver is not known to have them, and they are never sent from now on. One whose request is under way at this
// moment may arrive all the same. What was sent or refused stays so.
func (e *Endpoint) Withdraw(ctx context.Context, keys []string) (withdrawn []string, err error) {
	if _, err := e.state(ctx); err != nil {
		return nil, err
	}
	for _, key := range slices.Compact(slices.Sorted(slices.Values(keys))) {
		result, err := e.db.Exec(ctx, `UPDATE todevice_outbox SET state = 'withdrawn' WHERE account_id = $1 AND key = $2 AND state = 'pending'`, e.accountID, key)
		if err != nil {
			return nil, fmt.Errorf("withdrawing a message: %w", err)
		}
		if n, err := result.RowsAffected(); err != nil {
			return nil, fmt.Errorf("withdrawing a message: %w", err)
		} else if n > 0 {
			withdrawn = append(withdrawn, key)
		}
	}
	return withdrawn, nil
}
