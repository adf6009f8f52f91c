package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// Enroll pins the server that the code names, sends the code to its bot inside Olm, and waits for the answer. The
// device must be cross-signed (Verify) before.
func (a *Account) Enroll(ctx context.Context, code protocol.Code) error {
	return a.askToEnroll(ctx, code.BotUserID, code.BotMasterKey, func(request *protocol.EnrollRequest) error {
		request.Code = code.RevealRandom()
		return nil
	})
}

// askToEnroll pins a server, asks to be enrolled on what because adds to the request, and waits for the answer.
func (a *Account) askToEnroll(ctx context.Context, bot id.UserID, masterKey id.Ed25519, because func(*protocol.EnrollRequest) error) error {
	if _, still, err := a.store.standstill(ctx); err != nil {
		return err
	} else if still {
		return errors.New(wayOut)
	}
	own, err := a.endpoint.RefreshOwnKeys(ctx)
	if err != nil {
		return err
	}
	if !own.Devices[a.client.DeviceID].CrossSigned {
		return errors.New("the device is not cross-signed: verify it first")
	}
	p := pin{BotUserID: bot, BotMasterKey: masterKey, OwnMasterKey: own.MasterKey}
	key, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("making a request's id: %w", err)
	}
	for tries := 1; ; tries++ {
		request, err := a.request(ctx, p, own.MasterKey)
		if err != nil {
			return err
		}
		request.RequestID = key
		if err := because(&request); err != nil {
			return err
		}
		if err := a.send(ctx, p, request, nil); err != nil {
			return err
		}
		err = a.awaitAnswer(ctx, &answerWait{account: a, request: key})
		if !errors.Is(err, errUnread) || tries == unreadTries {
			return err
		}
		a.log.Warn().Msg("The server could not read the request, or its answer could not be read: it is sent again")
		if loop.Pause(ctx, time.Second); ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
	}
}

// unreadTries is how often a request is sent; more would be somebody who plays.
const unreadTries = 5

// errUnread ends the wait for an answer that may never come: one side could not read what the other sent.
var errUnread = errors.New("what the device and the server write to each other cannot be read: try again in an hour, when a new Olm session may be opened")

// request is one that says who the device is, and not yet why it should be enrolled.
func (a *Account) request(ctx context.Context, p pin, userMasterKey id.Ed25519) (protocol.EnrollRequest, error) {
	signing, identityKey, err := a.endpoint.Keys(ctx)
	return protocol.EnrollRequest{
		ProtocolVersion: protocol.Version, BotUserID: p.BotUserID, BotMasterKey: p.BotMasterKey,
		UserMasterKey: userMasterKey, DeviceID: a.client.DeviceID, IdentityKey: identityKey, SigningKey: signing,
		Name: a.config.DeviceName, SoftwareVersion: SoftwareVersion,
	}, err
}

// send pins the server and queues the request to its bot, unless the pin of then is not one for which still holds.
func (a *Account) send(ctx context.Context, p pin, request protocol.EnrollRequest, still func(pin) bool) error {
	bot, err := a.bot(ctx, p)
	if err != nil {
		return err
	}
	claims, err := a.endpoint.Claim(ctx, false, bot)
	if err != nil {
		return err
	}
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		if still != nil {
			if now, err := a.pin(ctx); err != nil || !still(now) {
				return err
			}
		}
		if err := a.setPin(ctx, p); err != nil {
			return err
		}
		// A code, or the proof for a grant, is nothing to keep in clear: then it is askToEnroll that asks again.
		return a.endpoint.Queue(ctx, todevice.Outgoing{Key: fmt.Sprintf("enroll/%d", a.now().UnixNano()), To: bot, Type: protocol.TypeEnrollRequest.Type,
			Content: request, Again: request.Again}, claims)
	})
}

// awaitAnswer waits for the answer to a request.
func (a *Account) awaitAnswer(ctx context.Context, waiter *answerWait) error {
	for waiter.answer == nil {
		if _, err := a.endpoint.Flush(ctx, nil); err != nil {
			return err
		}
		if _, err := a.endpoint.Sync(ctx, 2*time.Second); err != nil {
			return fmt.Errorf("waiting for the server's answer: %w", err)
		}
		if err := a.endpoint.Process(ctx, waiter); err != nil {
			return err
		}
		if waiter.answer == nil && waiter.unread {
			return errUnread
		}
	}
	if !waiter.answer.Accepted {
		return Refused{waiter.answer.Reason}
	}
	return nil
}

// answerWait handles messages while Enroll waits: the server's answer, and everything else as always.
type answerWait struct {
	account *Account
	// again says that the request was one to be enrolled again; else request is its id.
	again   bool
	request uuid.UUID
	answer  *protocol.EnrollResponse
	// unread is set where the request, or the answer to it, could not be read.
	unread bool
}

func (w *answerWait) Admit(ctx context.Context, envelope todevice.Envelope) (todevice.Admission, error) {
	return w.account.Admit(ctx, envelope)
}

func (w *answerWait) Undecryptable(ctx context.Context, envelope todevice.Envelope, reason string) error {
	p, err := w.account.pin(ctx)
	if err != nil {
		return err
	}
	w.unread = w.unread || !w.again && envelope.Sender == p.BotUserID
	return w.account.Undecryptable(ctx, envelope, reason)
}

func (w *answerWait) Handle(ctx context.Context, message *todevice.Message) error {
	a := w.account
	p, err := a.pin(ctx)
	if err != nil {
		return err
	}
	if message.Type != protocol.TypeEnrollResponse.Type {
		w.unread = w.unread || !w.again && message.Type == event.ToDeviceDummy.Type && message.Began && a.fromPinnedBot(message, p)
		return a.Handle(ctx, message)
	}
	if !a.fromPinnedBot(message, p) {
		return fmt.Errorf("%w: an answer from another than the pinned bot", todevice.ErrUnusable)
	}
	var answer protocol.EnrollResponse
	if err := json.Unmarshal(message.Content, &answer); err != nil {
		return fmt.Errorf("%w: a malformed answer", todevice.ErrUnusable)
	}
	if answer.Again || w.again {
		// What answers another request than the one that is waited for is none of this one's.
		if answer.Again && w.again && answer.UserMasterKey == p.Asked {
			w.answer = &answer
		}
		return a.reenrolled(ctx, message)
	}
	// One that was sent twice has two answers, and the second may come when another is waited for. Older servers name none.
	if answer.RequestID != uuid.Nil && answer.RequestID != w.request {
		return nil
	}
	w.answer = &answer
	if !answer.Accepted {
		return nil
	}
	return a.accept(ctx, p, message, answer)
}

// accept keeps that the server enrolled the device.
func (a *Account) accept(ctx context.Context, p pin, message *todevice.Message, answer protocol.EnrollResponse) error {
	p.Accepted = true
	if err := a.setPin(ctx, p); err != nil {
		return err
	}
	if err := a.store.set(ctx, "sequence", fmt.Sprint(answer.SequenceFloor)); err != nil {
		return err
	}
	sender, _ := message.SenderDevice()
	return a.store.set(ctx, "bot_device", sender.DeviceID.String())
}

// fromPinnedBot checks the whole chain: the bot's user, its pinned master key, and a device cross-signed by it that
// holds both keys the message came with.
func (a *Account) fromPinnedBot(message *todevice.Message, p pin) bool {
	if message.Sender != p.BotUserID || message.Identity == nil || !message.Identity.PinnedTo(p.BotMasterKey) {
		return false
	}
	sender, ok := message.SenderDevice()
	return ok && sender.CrossSigned && !sender.Dehydrated
}

// Admit lets the pinned bot and the user's own devices in, and nobody else.
func (a *Account) Admit(ctx context.Context, envelope todevice.Envelope) (todevice.Admission, error) {
	p, err := a.pin(ctx)
	if err != nil {
		return todevice.Admission{}, err
	}
	if envelope.Type == event.ToDeviceSecretRequest.Type && envelope.Sender == a.config.UserID && p.Accepted {
		return todevice.Admission{Identity: true}, nil
	}
	if envelope.Type != event.ToDeviceEncrypted.Type {
		return todevice.Admission{Drop: "not encrypted"}, nil
	}
	if envelope.Sender != a.config.UserID && envelope.Sender != p.BotUserID {
		// Room keys of other people among them: this device reads no rooms.
		return todevice.Admission{Drop: "neither the pinned bot nor our own user"}, nil
	}
	return todevice.Admission{Identity: true}, nil
}

// Undecryptable has nothing to audit on the device; the envelope is kept with its reason.
func (a *Account) Undecryptable(context.Context, todevice.Envelope, string) error { return nil }
