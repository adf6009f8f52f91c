package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// A user's identity that was reset is another one: the device obeys nobody and answers nobody until it is enrolled with it.
// As soon as the new identity has signed the device, it asks for that by itself, and an admin decides.

// askAgainIfReset asks the server to be enrolled with a new identity of the user, once for each. Until it is accepted the
// old one stays pinned: nothing of the new one is trusted.
func (a *Account) askAgainIfReset(ctx context.Context, identity crosssigning.Identity) error {
	p, err := a.pin(ctx)
	if err != nil {
		return err
	}
	own, there := identity.Devices[a.client.DeviceID]
	if !p.Accepted || identity.MasterKey == "" || identity.PinnedTo(p.OwnMasterKey) || !there || !own.CrossSigned {
		return nil
	}
	a.log.Warn().Msg("The user's identity was reset, and the new one has signed this device: the server is asked to enroll it again")
	// Two statuses may be made at once, and both come here: the second finds that it was asked.
	return a.queueAgain(ctx, p, identity.MasterKey, func(now pin) bool { return now == p })
}

// EnrollAgain asks the server that the device is enrolled with to enroll it with the user's identity of now, after that was
// reset. It reports whether it waits for an admin: the device is told then, while it runs, and goes on by itself.
func (a *Account) EnrollAgain(ctx context.Context) (waits bool, err error) {
	p, err := a.pin(ctx)
	if err != nil {
		return false, err
	}
	if p.BotUserID == "" {
		return false, errors.New("the device was never enrolled: it needs a code, or a grant")
	}
	identity, err := a.endpoint.RefreshOwnKeys(ctx)
	if err != nil {
		return false, err
	}
	if !identity.Devices[a.client.DeviceID].CrossSigned {
		return false, errors.New("the device is not cross-signed by the user's new identity: verify it first")
	}
	if err := a.queueAgain(ctx, p, identity.MasterKey, nil); err != nil {
		return false, err
	}
	err = a.awaitAnswer(ctx, &answerWait{account: a, again: true})
	refused := Refused{}
	if errors.As(err, &refused) && refused.Reason == protocol.RefusedQueued {
		return true, nil
	}
	return false, err
}

func (a *Account) queueAgain(ctx context.Context, p pin, master id.Ed25519, still func(pin) bool) error {
	request, err := a.request(ctx, p, master)
	if err != nil {
		return err
	}
	request.Again = true
	p.Accepted, p.Asked = false, master
	return a.send(ctx, p, request, still)
}

// reenrolled is the server's word about a device that asked again; the last one may come days after the first.
func (a *Account) reenrolled(ctx context.Context, message *todevice.Message) error {
	p, err := a.pin(ctx)
	if err != nil {
		return err
	}
	var answer protocol.EnrollResponse
	if !a.fromPinnedBot(message, p) || json.Unmarshal(message.Content, &answer) != nil {
		return fmt.Errorf("%w: an answer that is not the pinned bot's", todevice.ErrUnusable)
	}
	if !answer.Again || p.Asked == "" || answer.UserMasterKey != p.Asked {
		// An answer that came before, or to something that is not asked any more.
		return nil
	}
	switch {
	case answer.Accepted:
		p.OwnMasterKey, p.Asked = p.Asked, ""
		return a.accept(ctx, p, message, answer)
	case answer.Reason == protocol.RefusedQueued:
		a.log.Warn().Msg("The device waits to be enrolled again: " + answer.Reason.Explain())
		return nil
	}
	a.log.Error().Str("reason", string(answer.Reason)).Msg("The device is not enrolled again: " + answer.Reason.Explain())
	p.Asked = ""
	return a.setPin(ctx, p)
}
