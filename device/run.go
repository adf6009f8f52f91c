package device

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/protocol"
)

// lookBusy is how often the work loop and the outbox's look by themselves while something is under way. lookIdle is for an
// account with nothing to do, which is nearly all of them nearly always: it catches what no signal told of.
const (
	lookBusy = 2 * time.Second
	lookIdle = 30 * time.Second
)

// Run receives, works and sends for an enrolled account until ctx ends.
func (a *Account) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := a.endpoint.PublishKeys(ctx); err != nil {
		a.log.Warn().Err(err).Msg("The one-time keys could not be topped up yet")
	}
	var loops sync.WaitGroup
	defer loops.Wait()
	loops.Go(func() { a.receiveLoop(ctx, cancel) })
	loops.Go(func() {
		loop.Watch(ctx, a.endpoint.Arrived(), func() time.Duration {
			err := a.endpoint.Process(ctx, a)
			a.warn(ctx, err, "A message could not be handled yet")
			// Only now: a handler runs inside its transaction, and whoever it woke would look before the commit.
			a.wake()
			if waiting, unknown := a.endpoint.Waiting(ctx); err != nil || unknown != nil || waiting {
				return lookBusy
			}
			return lookIdle
		})
	})
	loops.Go(func() {
		loop.Watch(ctx, a.endpoint.Queued(), func() time.Duration {
			next, err := a.endpoint.Flush(ctx, nil)
			a.warn(ctx, err, "The outbox could not be emptied yet")
			if err != nil || !next.IsZero() {
				return lookBusy / 2
			}
			return lookIdle
		})
	})
	loops.Go(func() {
		loop.Watch(ctx, a.work, func() time.Duration {
			a.workOnce(ctx)
			if busy, err := a.busy(ctx); err != nil || busy {
				return lookBusy
			}
			return lookIdle
		})
	})
	loops.Go(func() {
		// Also when the user's devices changed: one that was verified just now is to have the key, and that they changed is
		// told once, so what fails is tried again before the next status is due.
		loop.Persist(ctx, a.endpoint.DevicesChanged(), a.options.StatusInterval, func() error {
			err := a.sendStatus(ctx)
			a.warn(ctx, err, "The status could not be sent")
			a.wake()
			return err
		})
	})
	loops.Go(func() {
		loop.Repeat(ctx, nil, min(cleanUpInterval, a.options.StatusInterval), func() {
			a.warn(ctx, a.cleanUp(ctx), "An old key-backup version is kept for now")
			a.warn(ctx, a.endpoint.Forget(ctx), "What the server was told is kept for now")
		})
	})
	if kept, ok := a.kms.(interface {
		KeepAlive(ctx context.Context, failed func(error))
	}); ok {
		loops.Go(func() {
			kept.KeepAlive(ctx, func(err error) { a.warn(ctx, err, "The login to the KMS could not be kept") })
		})
	}
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func (a *Account) warn(ctx context.Context, err error, message string) {
	if err != nil && ctx.Err() == nil {
		a.log.Warn().Err(err).Msg(message)
	}
}

func (a *Account) receiveLoop(ctx context.Context, cancel context.CancelCauseFunc) {
	first := true
	for failures := 0; ctx.Err() == nil; {
		came, err := a.endpoint.Sync(ctx, a.options.Sync.wait())
		if err == nil {
			failures = 0
			loop.Pause(ctx, a.options.Sync.pause(came, first))
			first = first && came > 0
			continue
		}
		if loggedOut(err) {
			// The new token goes into a new client: Run ends, and the fleet opens the account again.
			cancel(errors.Join(errLoggedOut, a.relogin(ctx)))
			return
		}
		failures++
		a.warn(ctx, err, "Receiving failed and is tried again")
		loop.Pause(ctx, min(time.Duration(failures)*time.Second, 30*time.Second))
	}
}

var errLoggedOut = errors.New("the access token is not valid any more")

// workOnce looks at other devices' secrets and requests, and goes on with the open rotations. What fails is tried again with growing
// delay; what needs somebody's attention is reported once and looked at again all the same, since it may be mended.
func (a *Account) workOnce(ctx context.Context) {
	a.warn(ctx, a.confess(ctx), "The server could not be told that the store went back")
	if enrolled, err := a.Enrolled(ctx); err != nil || !enrolled {
		a.warn(ctx, err, "The pinned server could not be read")
		return
	}
	if !a.spoken.Load() {
		// Before any work of this run, and before a report of it moves an old ratchet.
		if err := a.sendStatus(ctx); err != nil {
			a.warn(ctx, err, "The status could not be sent")
			return
		}
	}
	a.secretsOnce(ctx)
	a.warn(ctx, a.pushAgain(ctx), "The key could not be pushed again yet")
	jobs, err := a.store.jobs(ctx, true)
	if err != nil {
		a.warn(ctx, err, "The journal could not be read")
		return
	}
	for _, j := range jobs {
		if a.now().Before(j.NextTry) {
			continue
		}
		err := a.advance(ctx, j)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			a.warn(ctx, a.sendStatus(ctx), "The status could not be sent")
			continue
		}
		if errors.Is(err, errOvertaken) {
			continue
		}
		a.warn(ctx, err, "A rotation cannot go on yet")
		a.warn(ctx, a.failed(ctx, j, err), "The failure could not be journaled")
	}
}

// busy reports whether the journal has anything that is not done, or the server has yet to be told something.
func (a *Account) busy(ctx context.Context) (busy bool, err error) {
	still, is, err := a.store.standstill(ctx)
	if err != nil || !a.spoken.Load() || is && !still.Told {
		return true, err
	}
	err = a.store.db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM journal WHERE NOT ended) OR EXISTS (SELECT 1 FROM push_round WHERE ended = '')
		OR EXISTS (SELECT 1 FROM received WHERE state = 'new') OR EXISTS (SELECT 1 FROM asked WHERE state = 'open')
		OR EXISTS (SELECT 1 FROM asking WHERE state <> 'closed') OR EXISTS (SELECT 1 FROM act)`).Scan(&busy)
	if err != nil {
		return true, fmt.Errorf("looking for what is under way: %w", err)
	}
	return busy, nil
}

func (a *Account) failed(ctx context.Context, j *job, cause error) error {
	// advance may have changed j without committing it; the journal's row is the truth.
	row, err := a.job(ctx, j.Rotation)
	if err != nil || row == nil || row.Ended || row.Trigger.Sequence != j.Trigger.Sequence {
		return err
	}
	wait := backoff(row.Tries)
	row.Tries++
	row.NextTry, row.LastError = a.now().Add(wait), cause.Error()
	time.AfterFunc(wait, a.wake)
	report := protocol.Progress{Stage: protocol.StageFailed, Error: &protocol.ErrorReport{Code: protocol.FaultInternal, Retryable: true}}
	var s *stopped
	if errors.As(cause, &s) {
		report.Stage, report.Error = protocol.StageNeedsAttention, &protocol.ErrorReport{Code: s.code}
	}
	if err := a.commit(ctx, row, report); !errors.Is(err, errOvertaken) {
		return err
	}
	return nil
}

// backoff is the wait after a failure: it doubles from a second to ten minutes, with jitter.
func backoff(tries int) time.Duration {
	delay := min(time.Second<<min(tries, 10), 10*time.Minute)
	return delay/2 + rand.N(delay/2)
}
