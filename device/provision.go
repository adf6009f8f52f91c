package device

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/protocol"
)

const (
	// provisioning is how many accounts of a fleet come into being at once.
	provisioning = 8
	// provisionTime bounds one of them: the server may not run, or not answer strangers.
	provisionTime = 3 * time.Minute
	// provisionPause is between two tries where something did not answer, refusedPause where the server said no: an admin
	// may give another grant.
	provisionPause = 20 * time.Second
	refusedPause   = 10 * time.Minute
)

// provisions reports whether the file of an account says how it enrolls by itself.
func (f *Fleet) provisions(name string) bool {
	config, err := LoadAccount(filepath.Join(f.config.Accounts, name+".yaml"))
	return err == nil && config.Enrollment.Proof.Type != ""
}

// open opens an account. One that is not there yet logs in, which takes a place.
func (f *Fleet) open(ctx context.Context, name string, fresh bool) (*Account, error) {
	if fresh {
		release, err := f.place(ctx)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	return f.Open(ctx, name)
}

func (f *Fleet) place(ctx context.Context) (release func(), err error) {
	select {
	case f.places <- struct{}{}:
		return func() { <-f.places }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// provision makes an account a managed device without anybody there: verified by its recovery key, or by an identity that it
// makes, and enrolled by a grant. Each step may be repeated, and the next try goes on where this one was stopped.
func (f *Fleet) provision(ctx context.Context, account *Account) error {
	release, err := f.place(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, provisionTime)
	defer cancel()
	if _, err := account.Verify(ctx, nil); err != nil {
		return err
	}
	return account.EnrollByGrant(ctx)
}

// unprovisioned says why an account did not come into being, and waits until it is worth another try. A proof that is
// wrong is not shown again by itself, since five bar the user: the account's file must be saved anew.
func (f *Fleet) unprovisioned(ctx context.Context, log zerolog.Logger, err error) {
	if ctx.Err() != nil {
		return
	}
	refused := Refused{}
	if !errors.As(err, &refused) {
		log.Error().Err(err).Msg("The account did not enroll yet, and tries again")
		loop.Pause(ctx, provisionPause)
		return
	}
	switch refused.Reason {
	case protocol.RefusedProof, protocol.RefusedProofElsewhere, protocol.RefusedProofOtherUser:
		log.Error().Err(err).Msg("The account does not enroll by this proof: put it in order, and save the account's file anew")
		<-ctx.Done()
	default:
		log.Error().Err(err).Msg("The account does not enroll, and tries again in ten minutes")
		loop.Pause(ctx, refusedPause)
	}
}
