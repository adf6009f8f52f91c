package intake

import (
	"context"
	"errors"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/sns"
	"github.com/keyherald/keyherald/internal/strictjson"
)

// snsFormat reads what Amazon SNS delivers: an event of EventBridge inside a notification, and the messages about the
// subscription itself. A mapping names the same fields as for EventBridge.
type snsFormat struct{ verifier *sns.Verifier }

// signature is the format's authentication mode: the message is signed within the body.
func (f snsFormat) signature(ctx context.Context, r *request) (string, *denial) {
	m, err := sns.Parse(r.body)
	if err == nil {
		err = f.verifier.Verify(ctx, m)
	}
	return "sns", snsDenial(err)
}

func snsDenial(err error) *denial {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sns.ErrMessage):
		return refused(audit.RefusedNotSigned)
	case errors.Is(err, sns.ErrTopic):
		return refused(audit.RefusedTopic)
	case errors.Is(err, sns.ErrCertificate):
		return refused(audit.RefusedCertificate)
	case errors.Is(err, sns.ErrSignature):
		return refused(audit.RefusedWrongSignature)
	case errors.Is(err, sns.ErrStale):
		return refused(audit.RefusedStale)
	}
	return later("sns_unavailable", err)
}

func (f snsFormat) read(_ context.Context, r *request) (said, *denial) {
	m, err := sns.Parse(r.body)
	if err != nil {
		return said{}, refused(audit.RefusedNotSigned)
	}
	switch m.Type {
	case sns.SubscriptionConfirmation:
		if err := f.verifier.CheckConfirmation(m); err != nil {
			return said{}, malformed("the confirmation's address is not that of the topic's region")
		}
		return said{handshake: &handshake{kind: audit.HandshakeSNSSubscribed, body: map[string]string{"result": "confirmed"},
			effect: func(ctx context.Context) error { return f.verifier.Confirm(ctx, m) }}}, nil
	case sns.UnsubscribeConfirmation:
		// Whoever ended it may have been right; the log says that this source is silent from now on.
		return said{handshake: &handshake{kind: audit.HandshakeSNSUnsubscribe, body: map[string]string{"result": "noted"}}}, nil
	}
	body, err := strictjson.Parse([]byte(m.Message))
	if err != nil {
		return said{}, malformed("within the Message: " + err.Error())
	}
	return parseBridgeEvent(body)
}
