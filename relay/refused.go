package relay

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyherald/keyherald/audit"
)

// ErrNotPossible means that the rotation is not in a state for what was asked; the error says what to do instead.
var ErrNotPossible = errors.New("not possible now")

// refused is why something that somebody asked for is refused: a word for the log, and an error for him.
type refused struct {
	why audit.Refusal
	error
}

func (r refused) Unwrap() error { return r.error }

func refuse(why audit.Refusal, format string, args ...any) error {
	return refused{why, fmt.Errorf(format, args...)}
}

// usableReason reads what an admin wrote.
func usableReason(text string) (audit.Reason, error) {
	reason, err := audit.NewReason(text)
	if err != nil {
		err = refused{audit.WhyNoReason(err), err}
	}
	return reason, err
}

// asked does in a transaction what somebody asked for. Where that is refused nothing else happened, and an event of
// its own says so: of is the event but for time, outcome and detail, and do may complete it.
func (e *Engine) asked(ctx context.Context, of *audit.Event, do func(ctx context.Context) error) error {
	err := e.db.Txn(ctx, do)
	var no refused
	if !errors.As(err, &no) {
		return err
	}
	of.Time, of.Outcome, of.Detail = e.now(), audit.Refused, audit.Detail{audit.Word("refusal", no.why)}
	return errors.Join(err, e.db.Append(ctx, *of))
}
