package signer

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/postgres"
)

// Why nothing is signed: the database is not what checkpoints that were published say it was.
var (
	ErrWentBack = errors.New("the audit log in the database went back to an earlier state")
	ErrDiverged = errors.New("the audit log in the database is not the one that was signed before")
)

// Stops reports whether an error is one that only people can mend: nothing is signed until then.
func Stops(err error) bool {
	return errors.Is(err, ErrWentBack) || errors.Is(err, ErrDiverged) || errors.Is(err, ErrForeignStatement) || errors.Is(err, postgres.ErrTreeDamaged)
}

// remembered is a checkpoint that was published, and where it was found.
type remembered struct {
	checkpoint.Checkpoint
	where string
}

// judge holds what the database has against what was published. rootAt computes the root over the first leaves of the
// database. A checkpoint of an earlier epoch is behind a loss that was accepted, and proves nothing any more.
func judge(ctx context.Context, state postgres.TreeState, published remembered, rootAt func(ctx context.Context, size int64) (tlog.Hash, error)) error {
	switch {
	case published.Epoch < state.Epoch || published.Size == 0:
		return nil
	case published.Epoch > state.Epoch:
		return fmt.Errorf("%w: %s has a checkpoint of epoch %d, and the database is in epoch %d", ErrWentBack, published.where, published.Epoch, state.Epoch)
	case published.Size > state.Size:
		return fmt.Errorf("%w: %s has a checkpoint of %d events, and the database has %d", ErrWentBack, published.where, published.Size, state.Size)
	}
	root, err := rootAt(ctx, published.Size)
	if err != nil {
		return err
	}
	if root != published.Root {
		return fmt.Errorf("%w: the first %d events are not those of the checkpoint that %s has", ErrDiverged, published.Size, published.where)
	}
	return nil
}
