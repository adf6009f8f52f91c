package appservice

import (
	"context"
	"errors"
	"net/http"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
)

// event is an audit event about the bot.
func (b *Bot) event(action audit.Action, detail ...audit.Field) audit.Event {
	return audit.Event{Time: time.Now(), Actor: audit.ByRelay(), Action: action, Subject: audit.OfUser(b.config.Identity.UserID), Outcome: audit.Accepted, Detail: detail}
}

// tell audits what the bot did, or is about to do, at the homeserver.
func (b *Bot) tell(ctx context.Context, action audit.Action, detail ...audit.Field) error {
	return b.config.DB.Append(ctx, b.event(action, detail...))
}

// takeLease takes or prolongs the lease. That another replica's is taken is an event, in the same transaction.
func (b *Bot) takeLease(ctx context.Context) (epoch int64, err error) {
	err = b.config.DB.Txn(ctx, func(ctx context.Context) error {
		var taken bool
		if epoch, taken, err = b.config.DB.TakeLease(ctx, b.config.Holder, leaseLife); err != nil || !taken {
			return err
		}
		return b.tell(ctx, audit.LeaseTaken, audit.Number("epoch", epoch), audit.ID("host", b.config.Host))
	})
	if err != nil {
		return 0, err
	}
	return epoch, nil
}

func (b *Bot) releaseLease(ctx context.Context) error {
	return b.config.DB.Txn(ctx, func(ctx context.Context) error {
		released, err := b.config.DB.ReleaseLease(ctx, b.config.Holder)
		if err != nil || !released {
			return err
		}
		return b.tell(ctx, audit.LeaseReleased, audit.ID("host", b.config.Host))
	})
}

// errLoginRefused means that the homeserver does not let the bot in.
var errLoginRefused = errors.New("the homeserver refuses the bot's login: is the registration that it has the one in the configuration?")

// loginRefused adds errLoginRefused where the homeserver's answer is no for good, and not that it cannot answer now.
func loginRefused(err error) error {
	var answer mautrix.HTTPError
	if errors.As(err, &answer) && answer.Response != nil && (answer.Response.StatusCode == http.StatusUnauthorized || answer.Response.StatusCode == http.StatusForbidden) {
		return errors.Join(errLoginRefused, err)
	}
	return err
}

// tellLogin audits a login, but not those of a bot that stands still and only looks whether it still has to.
func (b *Bot) tellLogin(ctx context.Context, device id.DeviceID) error {
	b.mu.Lock()
	still := errors.Is(b.told, postgres.ErrWentBack)
	b.mu.Unlock()
	if still {
		return nil
	}
	return b.tell(ctx, audit.BotLogin, audit.ID("device", device))
}

// mended says that the bot leads again: the next time that it does not is told anew.
func (b *Bot) mended() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told = nil
}

// tellStopped audits why the bot does not lead, where it is nothing that passes by itself, and once as long as it stays so.
func (b *Bot) tellStopped(ctx context.Context, why error) error {
	var event audit.Event
	var told error
	switch {
	case errors.Is(why, postgres.ErrWentBack):
		told, event = postgres.ErrWentBack, b.event(audit.BotStopped, audit.Word("problem", audit.ProblemWentBack))
		event.Outcome = audit.Failed
	case errors.Is(why, errLoginRefused):
		told, event = errLoginRefused, b.event(audit.BotLogin, audit.Word("refusal", audit.RefusedLoginByHomeserver))
		event.Outcome = audit.Refused
	default:
		return nil
	}
	b.mu.Lock()
	before := b.told
	b.mu.Unlock()
	if errors.Is(told, before) {
		return nil
	}
	if err := b.config.DB.Append(ctx, event); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told = told
	return nil
}
