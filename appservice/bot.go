package appservice

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/todevice"
)

// Worker is what the bot does while this replica holds its lease: relay's Session.
type Worker interface {
	todevice.Handler
	// Work does what is due: it is called after every commit that may have made something due, and by the sweep.
	Work(ctx context.Context) error
	// Handled is called when all messages that had arrived were handled, each in its committed transaction.
	Handled(ctx context.Context) error
	// Sent is told what the homeserver answered to messages.
	Sent(ctx context.Context, keys []string, refusal string) error
}

// Speaker is what says things in rooms while this replica holds the lease: notice's Session. It runs until ctx ends.
type Speaker interface {
	Run(ctx context.Context)
}

// BotConfig is what a Bot stands on. NewWorker is called once per lease with the endpoint of that lease.
type BotConfig struct {
	HomeserverURL string
	ASToken       string
	// Login is how the bot gets its device; empty is LoginAuto.
	Login     Login
	Identity  Identity
	PickleKey []byte
	// Holder names this process among the replicas; Host is the machine it runs on, for the audit log.
	Holder    string
	Host      audit.HostName
	DB        *postgres.DB
	NewWorker func(*todevice.Endpoint) Worker
	// NewSpeaker, where it is there, is called once per lease with the client of the bot's device, and with what fails a
	// transaction when the lease is lost.
	NewSpeaker func(client *mautrix.Client, fence func(ctx context.Context) error) Speaker
	// Transport carries the bot's requests; nil is Go's own.
	Transport http.RoundTripper
	Log       zerolog.Logger
}

// The lease outlives two missed renewals; a takeover after a SIGKILL comes within leaseLife.
const (
	leaseLife  = 15 * time.Second
	leaseRenew = 5 * time.Second
	syncWait   = 25 * time.Second
)

// Bot holds the lease, logs the one device in, and runs its loops. One replica at a time does.
type Bot struct {
	config    BotConfig
	wake      chan struct{}
	stopwatch *stopwatch

	mu    sync.Mutex // guards what follows
	ready bool
	mark  mark
	// told is what stands in the audit log of why this replica does not lead, so that it stands there once.
	told error
}

// NewBot makes a Bot; Run does everything.
func NewBot(config BotConfig) (*Bot, error) {
	if config.HomeserverURL == "" || config.ASToken == "" || config.DB == nil || config.NewWorker == nil || config.Holder == "" {
		return nil, errors.New("appservice: homeserver, token, holder, database and worker are needed")
	}
	transport := config.Transport
	if transport == nil {
		transport = http.DefaultTransport
	}
	return &Bot{config: config, wake: make(chan struct{}, 1), stopwatch: &stopwatch{next: transport}}, nil
}

// Wake says that something may be due. It never blocks.
func (b *Bot) Wake() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Leading reports whether this replica holds the bot and its device is logged in and cross-signed.
func (b *Bot) Leading() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ready
}

func (b *Bot) setReady(ready bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ready = ready
}

// Run tries for the lease until ctx ends, and serves while it is held.
func (b *Bot) Run(ctx context.Context) error {
	ticker := time.NewTicker(leaseRenew)
	defer ticker.Stop()
	for {
		epoch, err := b.takeLease(ctx)
		if err == nil && epoch > 0 {
			if err = b.lead(ctx, epoch); errors.Is(err, ErrForeignIdentity) {
				return err
			}
		}
		if ctx.Err() != nil {
			release, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return b.releaseLease(release)
		}
		if err != nil {
			err = errors.Join(err, b.tellStopped(ctx, err))
			b.config.Log.Error().Err(err).Msg("The bot stopped and will start again")
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// lead runs the bot until the lease is lost, ctx ends or a loop fails for good.
func (b *Bot) lead(ctx context.Context, epoch int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer b.setReady(false)
	var loops sync.WaitGroup
	defer loops.Wait()
	defer cancel(nil)
	loops.Go(func() { b.renew(ctx, epoch, cancel) })
	client, err := b.login(ctx)
	if err != nil {
		return err
	}
	if err := b.tellLogin(ctx, client.DeviceID); err != nil {
		return err
	}
	if err := b.checkMark(ctx, client); err != nil {
		return err
	}
	b.setMark(mark{Device: client.DeviceID})
	endpoint, err := todevice.New(todevice.Config{
		DB: b.config.DB.Database, Client: client, AccountID: postgres.AccountBot, PickleKey: b.config.PickleKey, Log: b.config.Log,
		Fence: func(ctx context.Context) error { return b.fence(ctx, epoch) },
	})
	if err != nil {
		return err
	}
	if err := endpoint.PublishKeys(ctx); err != nil {
		return err
	}
	if err := b.establish(ctx, client, endpoint); err != nil {
		return err
	}
	if err := b.logOutRetired(ctx, client); err != nil {
		b.config.Log.Warn().Err(err).Msg("A retired device of the bot is still logged in; the next holder of the bot tries again")
	}
	worker := b.config.NewWorker(endpoint)
	b.setReady(true)
	b.mended()
	b.config.Log.Info().Int64("epoch", epoch).Stringer("device", client.DeviceID).Msg("This replica holds the bot")
	loops.Go(func() { b.receive(ctx, endpoint, cancel) })
	loops.Go(func() { b.process(ctx, endpoint, worker) })
	loops.Go(func() { b.work(ctx, worker) })
	loops.Go(func() { b.send(ctx, endpoint, worker) })
	loops.Go(func() { b.remember(ctx, client) })
	if b.config.NewSpeaker != nil {
		speaker := b.config.NewSpeaker(client, func(ctx context.Context) error { return b.fence(ctx, epoch) })
		loops.Go(func() { speaker.Run(ctx) })
	}
	loops.Go(func() { b.tellLatency(ctx) })
	<-ctx.Done()
	return context.Cause(ctx)
}

func (b *Bot) renew(ctx context.Context, epoch int64, cancel context.CancelCauseFunc) {
	ticker := time.NewTicker(leaseRenew)
	defer ticker.Stop()
	deadline := time.Now().Add(leaseLife)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		current, err := b.takeLease(ctx)
		if err == nil && current == epoch && b.Leading() {
			err = b.has(ctx, b.lastMark().Event)
		}
		switch {
		case errors.Is(err, postgres.ErrWentBack):
			cancel(err)
			return
		case err == nil && current == epoch:
			deadline = time.Now().Add(leaseLife)
		case err == nil || time.Now().After(deadline):
			cancel(postgres.ErrLeaseLost)
			return
		}
	}
}

// login makes the client of the bot's one device, which keeps its keys and waiting messages.
func (b *Bot) login(ctx context.Context) (*mautrix.Client, error) {
	fresh, err := NewDeviceID()
	if err != nil {
		return nil, err
	}
	device, err := b.config.DB.BotDevice(ctx, b.config.Identity.UserID, fresh)
	if err != nil {
		return nil, err
	}
	return b.enter(ctx, device)
}

// loginAs logs the device in again: a token that a former holder still has dies with it.
func (b *Bot) loginAs(ctx context.Context, device id.DeviceID) (*mautrix.Client, error) {
	user := b.config.Identity.UserID
	client, err := b.unnamed()
	if err != nil {
		return nil, err
	}
	answer, err := client.Login(ctx, &mautrix.ReqLogin{
		Type:                     mautrix.AuthTypeAppservice,
		Identifier:               mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: user.String()},
		DeviceID:                 device,
		InitialDeviceDisplayName: deviceName,
	})
	if unsupported(err) {
		return nil, fmt.Errorf("%w: %w", errNoAppserviceLogin, err)
	} else if err != nil {
		return nil, loginRefused(fmt.Errorf("logging the bot in: %w", err))
	}
	client.UserID, client.DeviceID, client.AccessToken = user, answer.DeviceID, answer.AccessToken
	return client, nil
}

// unnamed is a client with the as_token, which names neither a user nor a device yet.
func (b *Bot) unnamed() (*mautrix.Client, error) {
	client, err := mautrix.NewClient(b.config.HomeserverURL, "", b.config.ASToken)
	if err != nil {
		return nil, fmt.Errorf("making the bot's client: %w", err)
	}
	client.DefaultHTTPRetries = 0
	if b.stopwatch != nil {
		client.Client = &http.Client{Timeout: client.Client.Timeout, Transport: b.stopwatch}
	}
	return client, nil
}

func (b *Bot) receive(ctx context.Context, endpoint *todevice.Endpoint, cancel context.CancelCauseFunc) {
	for failures := 0; ctx.Err() == nil; {
		_, err := endpoint.Sync(ctx, syncWait)
		if err == nil {
			failures = 0
			continue
		}
		if errors.Is(err, mautrix.MUnknownToken) || todevice.DeviceGone(err) || errors.Is(err, postgres.ErrLeaseLost) {
			cancel(err)
			return
		}
		failures++
		b.config.Log.Warn().Err(err).Msg("Receiving failed and is tried again")
		loop.Pause(ctx, min(time.Duration(failures)*time.Second, 30*time.Second))
	}
}

func (b *Bot) process(ctx context.Context, endpoint *todevice.Endpoint, worker Worker) {
	loop.Repeat(ctx, endpoint.Arrived(), 5*time.Second, func() {
		if err := endpoint.Process(ctx, worker); err != nil && ctx.Err() == nil {
			b.config.Log.Warn().Err(err).Msg("A message could not be handled yet")
		}
		if err := worker.Handled(ctx); err != nil && ctx.Err() == nil {
			b.config.Log.Warn().Err(err).Msg("Who watches could not be told what messages changed")
		}
	})
}

func (b *Bot) work(ctx context.Context, worker Worker) {
	loop.Persist(ctx, b.wake, 30*time.Second, func() error {
		err := worker.Work(ctx)
		if err != nil && ctx.Err() == nil {
			b.config.Log.Warn().Err(err).Msg("Work that is due could not be done yet")
		}
		return err
	})
}

func (b *Bot) send(ctx context.Context, endpoint *todevice.Endpoint, worker Worker) {
	loop.Repeat(ctx, endpoint.Queued(), time.Second, func() {
		if _, err := endpoint.Flush(ctx, worker.Sent); err != nil && ctx.Err() == nil {
			b.config.Log.Warn().Err(err).Msg("The outbox could not be emptied yet")
		}
	})
}
