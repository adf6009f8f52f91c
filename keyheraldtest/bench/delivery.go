package bench

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/interop"
	"github.com/keyherald/keyherald/msc4385"
)

// Delivery measures how long it takes from the managed device's start of a push until the last of n cross-signed devices
// has the key, and how many to-device messages come to these devices, beside request_broadcast: the way that MSC4385 has
// among its alternatives. With sdk also beside js_sdk_reset: a reset by one device of another user, who has n more, all of
// them unmodified matrix-js-sdk.
func Delivery(ctx context.Context, n, rounds int, sdk *interop.Tools) (rows []Row, err error) {
	p, err := newPushing(ctx, n, []msc4385.Form{msc4385.FormSend, msc4385.FormPush})
	defer func() { err = errors.Join(err, p.close()) }()
	if err != nil {
		return nil, fmt.Errorf("preparing delivery/%d: %w", n, err)
	}
	b := newBroadcast(ctx, p)
	var ours []float64
	messages := map[string][]float64{}
	beside := []Side{{"request_broadcast", func(ctx context.Context) (float64, error) {
		delivered, came, err := b.round(ctx)
		messages["request_broadcast"] = append(messages["request_broadcast"], float64(came))
		return milliseconds(delivered), err
	}}}
	times := map[string][]float64{}
	if sdk != nil {
		s, err := newSDKReset(ctx, p.crowded, *sdk, n)
		if err != nil {
			return nil, fmt.Errorf("preparing js_sdk_reset: %w", err)
		}
		beside = append(beside, Side{"js_sdk_reset", func(ctx context.Context) (float64, error) {
			took, came, err := s.round(ctx)
			messages["js_sdk_reset"] = append(messages["js_sdk_reset"], float64(came))
			times["js_sdk_reset_handed_out"] = append(times["js_sdk_reset_handed_out"], milliseconds(took.handedOut))
			times["js_sdk_reset_whole"] = append(times["js_sdk_reset_whole"], milliseconds(took.whole))
			return milliseconds(took.held), err
		}})
	}
	row, err := Measure(ctx, fmt.Sprintf("delivery/%d", n), "ms", Less, rounds,
		Side{"push", func(ctx context.Context) (float64, error) {
			delivered, _, came, err := p.push(ctx)
			ours = append(ours, float64(came))
			return milliseconds(delivered), err
		}}, beside...)
	if err != nil {
		return nil, err
	}
	// The first round warmed up.
	for side, figures := range times {
		row.compare(Less, side, figures[1:])
	}
	count := Compare(row.Name+" messages", "messages", Less, ours[1:], nil)
	for side, figures := range messages {
		count.compare(Less, side, figures[1:])
	}
	return []Row{row, count}, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// broadcast is what the light devices do where nobody pushes: each notices the new key-backup version, asks all of the
// user's devices for the key, and cancels the request when it has it. Who has the key answers. It is as good as it can
// be: all notice in the same moment, and whoever has no key yet drops a request instead of answering it later.
type broadcast struct {
	*pushing
	askers map[id.DeviceID]*asker
	secret string
	// sent counts a message for each device that it goes to, before it leaves.
	sent      atomic.Int64
	cancelled atomic.Int64
}

type asker struct {
	light *keyheraldtest.Light
	wake  chan struct{}

	mu        sync.Mutex // guards the rest
	held      bool
	cancel    bool
	requestID string
	open      []event.SecretRequestEventContent
}

func newBroadcast(ctx context.Context, p *pushing) *broadcast {
	b := &broadcast{pushing: p, askers: map[id.DeviceID]*asker{}}
	for _, l := range p.lights {
		a := &asker{light: l, wake: make(chan struct{}, 1)}
		b.askers[l.DeviceID] = a
		p.run(ctx, func(ctx context.Context) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-a.wake:
				}
				if err := b.work(ctx, a); err != nil && ctx.Err() == nil {
					p.fail(err)
					return err
				}
			}
		})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.others = b.take
	return b
}

// round gives the first device a new key, has all others notice it, and waits until they are done with each other.
func (b *broadcast) round(ctx context.Context) (time.Duration, int64, error) {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw)
	b.secret = base64.RawStdEncoding.EncodeToString(raw)
	for _, l := range b.lights {
		a := b.askers[l.DeviceID]
		a.mu.Lock()
		a.held, a.cancel, a.open, a.requestID = l == b.lights[0], false, nil, uuid.NewString()
		a.mu.Unlock()
	}
	before := b.received()
	b.sent.Store(before)
	b.cancelled.Store(0)
	asking := b.lights[1:]
	all := b.begin(asking)
	began := time.Now()
	for _, l := range asking {
		go func() { b.fail(b.notice(ctx, b.askers[l.DeviceID])) }()
	}
	took, err := b.wait(ctx, began, all)
	if err != nil {
		return 0, 0, err
	}
	err = keyheraldtest.Until(ctx, patience, func() error {
		if n := b.cancelled.Load(); int(n) != len(asking) {
			return fmt.Errorf("%d of %d requests are cancelled", n, len(asking))
		}
		// What is sent is counted before what came.
		sent := b.sent.Load()
		if received := b.received(); received != sent {
			return fmt.Errorf("%d messages came of %d", received-before, sent-before)
		}
		return nil
	})
	return took, b.received() - before, err
}

// notice is the moment that a device sees the new key-backup version.
func (b *broadcast) notice(ctx context.Context, a *asker) error {
	if _, err := a.light.MakeRequest(ctx, http.MethodGet, a.light.BuildClientURL("v3", "room_keys", "version"), nil, nil); err != nil {
		return err
	}
	return b.toAll(ctx, a, event.SecretRequestEventContent{Action: event.SecretRequestRequest, Name: id.SecretMegolmBackupV1, RequestID: a.requestID, RequestingDeviceID: a.light.DeviceID})
}

func (b *broadcast) toAll(ctx context.Context, a *asker, content event.SecretRequestEventContent) error {
	b.sent.Add(int64(len(b.lights)))
	return a.light.Send(ctx, "*", event.ToDeviceSecretRequest.Type, content)
}

// take is given all that came in one answer of the homeserver, so a request that is cancelled in it is not answered.
func (b *broadcast) take(l *keyheraldtest.Light, messages []keyheraldtest.LightMessage) {
	a := b.askers[l.DeviceID]
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, message := range messages {
		switch message.Type {
		case event.ToDeviceSecretRequest.Type:
			var request event.SecretRequestEventContent
			if err := json.Unmarshal(message.Content, &request); err != nil {
				b.fail(err)
			}
			if request.Action == event.SecretRequestCancellation {
				a.drop(request.RequestID)
			} else if a.held && request.RequestingDeviceID != l.DeviceID {
				a.open = append(a.open, request)
			}
		case event.ToDeviceSecretSend.Type:
			var answer event.SecretSendEventContent
			if message.Encrypted && json.Unmarshal(message.Content, &answer) == nil && answer.RequestID == a.requestID && answer.Secret == b.secret && !a.held {
				a.held, a.cancel = true, true
				b.has(l)
			}
		}
	}
	if a.cancel || len(a.open) > 0 {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}

func (a *asker) drop(requestID string) {
	for i, request := range a.open {
		if request.RequestID == requestID {
			a.open = append(a.open[:i], a.open[i+1:]...)
			return
		}
	}
}

// next is what the device does next: it cancels its own request first.
func (a *asker) next() (cancel bool, answer event.SecretRequestEventContent, more bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cancel {
		a.cancel = false
		return true, answer, true
	}
	if len(a.open) == 0 {
		return false, answer, false
	}
	answer, a.open = a.open[0], a.open[1:]
	return false, answer, true
}

func (b *broadcast) work(ctx context.Context, a *asker) error {
	for {
		cancel, request, more := a.next()
		switch {
		case !more:
			return nil
		case cancel:
			err := b.toAll(ctx, a, event.SecretRequestEventContent{Action: event.SecretRequestCancellation, RequestID: a.requestID, RequestingDeviceID: a.light.DeviceID})
			if err != nil {
				return err
			}
			b.cancelled.Add(1)
			continue
		}
		b.sent.Add(1)
		encrypted, err := a.light.Encrypt(ctx, b.askers[request.RequestingDeviceID].light, event.ToDeviceSecretSend.Type,
			event.SecretSendEventContent{RequestID: request.RequestID, Secret: b.secret})
		if err != nil {
			return err
		}
		if err := a.light.Send(ctx, request.RequestingDeviceID, event.ToDeviceEncrypted.Type, encrypted); err != nil {
			return err
		}
	}
}
