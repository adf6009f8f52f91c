package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/keyherald/keyherald/internal/loop"
)

// patience is how long a command waits for the fleet to let go of an account, which looks every two seconds.
const patience = 30 * time.Second

// Borrow opens one account for a command, also while a fleet in another process runs it: whoever holds the lock of
// <account>.db.wanted has the fleet put the account down, and pick it up again when the lock is free. The file is empty,
// and the kernel frees the lock of a command that was killed. The account is closed by giving it back.
func (f *Fleet) Borrow(ctx context.Context, name string) (account *Account, giveBack func() error, err error) {
	if err := os.MkdirAll(f.config.State, 0o700); err != nil {
		return nil, nil, fmt.Errorf("making the state directory: %w", err)
	}
	lock, err := os.OpenFile(f.wantedPath(name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("asking for the account: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			break
		}
		if limited.Err() != nil {
			return nil, nil, errors.Join(fmt.Errorf("another command uses %s: %w", name, errInUse), lock.Close())
		}
		loop.Pause(limited, 100*time.Millisecond)
	}
	for {
		// The command's own context: what it does next may take longer than it waits for the fleet.
		account, err = f.Open(ctx, name)
		if err == nil {
			return account, func() error { return errors.Join(account.Close(), lock.Close()) }, nil
		}
		if !errors.Is(err, errInUse) || limited.Err() != nil {
			return nil, nil, errors.Join(err, lock.Close())
		}
		loop.Pause(limited, 100*time.Millisecond)
	}
}

func (f *Fleet) wantedPath(name string) string {
	return filepath.Join(f.config.State, name+".db.wanted")
}

// wanted reports whether a command asks for the account.
func (f *Fleet) wanted(name string) bool {
	lock, err := os.OpenFile(f.wantedPath(name), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer func() { _ = lock.Close() }()
	return syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil
}
