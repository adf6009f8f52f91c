package device

import (
	"context"

	"github.com/keyherald/keyherald/protocol"
)

// refuseOptedOut ends a rotation of a user who switched key backup off, before anything of it was done. Once there is a
// version, what its clients do to it is found by the steps after it.
func (a *Account) refuseOptedOut(ctx context.Context, j *job) (refused bool, err error) {
	if j.NewVersion != "" {
		return false, nil
	}
	out, err := a.backup.OptedOut(ctx)
	if err != nil || !out {
		return false, err
	}
	j.Ended, j.LastError = true, string(protocol.RejectedUserOptedOut)
	return true, a.commit(ctx, j, protocol.Progress{Stage: protocol.StageRejected, Error: &protocol.ErrorReport{Code: protocol.RejectedUserOptedOut}})
}
