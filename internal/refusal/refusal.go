// Package refusal is what becomes of what somebody asked for and is not given: a code for whoever answers him, a word for
// the audit log, and an error that says what to do instead.
package refusal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyherald/keyherald/audit"
)

// Code is what kind of refusal it is. There are few, so that each way in maps them once.
type Code string

// The codes: what was asked cannot be understood or is out of bounds, is about something that is not there, does not go
// with how things stand, was changed since he who asked has looked at it, or is not for him.
const (
	Invalid   Code = "invalid"
	NotFound  Code = "not_found"
	Conflict  Code = "conflict"
	Changed   Code = "precondition_failed"
	Forbidden Code = "forbidden"
)

type refused struct {
	code Code
	why  audit.Refusal
	error
}

func (r refused) Unwrap() error { return r.error }

// New is a refusal; the format is that of fmt.Errorf, and says what to do instead.
func New(code Code, why audit.Refusal, format string, args ...any) error {
	return refused{code, why, fmt.Errorf(format, args...)}
}

// Of reports why an error is a refusal; ok is false where it is none.
func Of(err error) (code Code, why audit.Refusal, ok bool) {
	var r refused
	ok = errors.As(err, &r)
	return r.code, r.why, ok
}

// Reason reads what somebody wrote as his reason; an unusable one is refused.
func Reason(text string) (audit.Reason, error) {
	reason, err := audit.NewReason(text)
	if err != nil {
		err = refused{Invalid, audit.WhyNoReason(err), err}
	}
	return reason, err
}

// Log is the database as Asked uses it.
type Log interface {
	Txn(ctx context.Context, do func(ctx context.Context) error) error
	Append(ctx context.Context, events ...audit.Event) error
}

// Asked does in a transaction what somebody asked for. Where that is refused nothing else happened, and an event of its
// own says so: of is the event but for time, outcome and detail, and do may complete it. Appending the event of what was
// done is do's own.
func Asked(ctx context.Context, log Log, now func() time.Time, of *audit.Event, do func(ctx context.Context) error) error {
	err := log.Txn(ctx, do)
	_, why, ok := Of(err)
	if !ok {
		return err
	}
	of.Time, of.Outcome, of.Detail = now(), audit.Refused, audit.Detail{audit.Word("refusal", why)}
	return errors.Join(err, log.Append(ctx, *of))
}
