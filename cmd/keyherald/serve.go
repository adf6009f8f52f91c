package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/enrollment"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/notice"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/todevice"
)

// sweepArgs is the periodic job that ends what timed out and wakes the bot's holder: the safety net behind NOTIFY.
type sweepArgs struct{}

func (sweepArgs) Kind() string { return "sweep" }

type sweepWorker struct {
	river.WorkerDefaults[sweepArgs]
	engine *relay.Engine
}

func (w *sweepWorker) Work(ctx context.Context, _ *river.Job[sweepArgs]) error {
	return w.engine.Sweep(ctx)
}

// policyArgs and campaignArgs are the periodic jobs that do what the company's will asks for by itself.
type policyArgs struct{}

func (policyArgs) Kind() string { return "policy" }

type campaignArgs struct{}

func (campaignArgs) Kind() string { return "campaign" }

// onceOnly leaves what a job did not do to the next one.
func onceOnly(args river.JobArgs, every time.Duration) *river.PeriodicJob {
	return river.NewPeriodicJob(river.PeriodicInterval(every), func() (river.JobArgs, *river.InsertOpts) { return args, &river.InsertOpts{MaxAttempts: 1} }, &river.PeriodicJobOpts{RunOnStart: true})
}

// openDatabase connects as the writer and refuses a schema that does not fit; development mode migrates by itself.
func openDatabase(ctx context.Context, c config) (*postgres.DB, error) {
	if c.Development && c.Database.OwnerURLFile != "" {
		if err := migrate(ctx, c); err != nil {
			return nil, err
		}
	}
	url, err := readFile(c.Database.URLFile)
	if err != nil {
		return nil, err
	}
	db, err := postgres.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	if err := db.CheckSchema(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func migrate(ctx context.Context, c config) error {
	url, err := readFile(c.Database.OwnerURLFile)
	if err != nil {
		return err
	}
	db, err := postgres.Open(ctx, url)
	if err != nil {
		return err
	}
	return errors.Join(db.Migrate(ctx, c.Database.Roles, localActor(), softwareVersion()), db.Close())
}

func newEngine(c config, db *postgres.DB, notices *notice.Notices, log zerolog.Logger) (*relay.Engine, appservice.Identity, error) {
	identity, err := c.identity()
	if err != nil {
		return nil, identity, err
	}
	proofs, err := enrollment.New(c.Enrollment, enrollment.Deps{})
	if err != nil {
		return nil, identity, err
	}
	engine, err := relay.New(relay.Config{DB: db, Proofs: proofs, BotUserID: identity.UserID, BotMasterKey: identity.MasterKey(), AckTimeout: c.AckTimeout, Storm: c.Storm.Limit, Sealed: c.Audit.on(), Log: log,
		Restored: func(ctx context.Context, r relay.Restored) error { return tellRestored(ctx, db, notices, r) }})
	return engine, identity, err
}

// serve runs the server until ctx ends: HTTP, the bot where this replica holds it, and River's jobs.
func serve(ctx context.Context, c config, log zerolog.Logger) error {
	registration, err := appservice.LoadRegistration(c.Registration)
	if err != nil {
		return err
	}
	if err := registration.CheckTokens(); err != nil {
		return err
	}
	pickleKey, err := c.pickleKey()
	if err != nil {
		return err
	}
	db, err := openDatabase(ctx, c)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	notices, err := newNotices(c, db, log)
	if err != nil {
		return err
	}
	engine, identity, err := newEngine(c, db, notices, log)
	if err != nil {
		return err
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	arrivals := relay.NewArrivals(engine, 0)
	notifications, err := intake.New(c.intake(), intake.Deps{Recorder: arrivals, Log: log, Metrics: metrics})
	if err != nil {
		return err
	}
	streams, err := newStreams(c, notifications, log, metrics)
	if err != nil {
		return err
	}
	latency, err := newLatencies(metrics)
	if err != nil {
		return fmt.Errorf("preparing the metrics: %w", err)
	}
	reconcilers, err := newReconcilers(ctx, c, engine, streams, latency.kms, metrics)
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	var speaker func(*mautrix.Client, func(ctx context.Context) error) appservice.Speaker
	if notices != nil {
		speaker = func(client *mautrix.Client, fence func(ctx context.Context) error) appservice.Speaker {
			return notices.Session(client, fence)
		}
	}
	bot, err := appservice.NewBot(appservice.BotConfig{
		HomeserverURL: c.Homeserver, ASToken: registration.ASToken, Login: c.Bot.Login, Identity: identity, PickleKey: pickleKey,
		Holder: host + "/" + uuid.NewString(), Host: hostName(), DB: db, Log: log,
		NewWorker:  func(endpoint *todevice.Endpoint) appservice.Worker { return engine.Session(endpoint) },
		NewSpeaker: speaker, Transport: measured{http.DefaultTransport, latency.homeserver},
	})
	if err != nil {
		return err
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &sweepWorker{engine: engine})
	enforcer, err := newEnforcer(c, db, engine, notices, log)
	if err != nil {
		return err
	}
	river.AddWorker(workers, river.WorkFunc(func(ctx context.Context, _ *river.Job[policyArgs]) error { return enforcer.StepPolicy(ctx) }))
	river.AddWorker(workers, river.WorkFunc(func(ctx context.Context, _ *river.Job[campaignArgs]) error { return enforcer.StepCampaigns(ctx) }))
	jobs, err := river.NewClient(riverdatabasesql.New(db.RawDB), &river.Config{
		Workers: workers, Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 4}},
		PeriodicJobs: []*river.PeriodicJob{
			river.NewPeriodicJob(river.PeriodicInterval(30*time.Second), func() (river.JobArgs, *river.InsertOpts) { return sweepArgs{}, nil }, &river.PeriodicJobOpts{RunOnStart: true}),
			onceOnly(policyArgs{}, enforce.PolicyInterval), onceOnly(campaignArgs{}, enforce.CampaignInterval),
		},
	})
	if err != nil {
		return fmt.Errorf("preparing the background jobs: %w", err)
	}
	sealer, closeSealer, err := newSealer(ctx, c, log)
	if err != nil {
		return err
	}
	defer closeSealer()
	metrics.MustRegister(gauges{db, bot, arrivals, sealer}, newCoverage(enforcer))
	watched := condition{sealer, streams}
	web := newWeb(registration, notifications, bot, watched, db, metrics)
	rest, err := newAPI(c, registration, engine, enforcer, bot, watched, db, log, metrics)
	if err != nil {
		return err
	}
	listeners, err := listenAll(c, web, rest)
	if err != nil {
		return err
	}
	if err := started(ctx, db, c, identity, notices); err != nil {
		return errors.Join(err, listeners.close())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := jobs.Start(ctx); err != nil {
		return fmt.Errorf("starting the background jobs: %w", err)
	}
	// Arrivals go on until the web server has answered everybody.
	answering, answered := context.WithCancel(context.WithoutCancel(ctx))
	var parts sync.WaitGroup
	parts.Go(func() { arrivals.Run(answering) })
	parts.Go(func() { notifications.Run(ctx) })
	// It ends the streams of events, for which the web servers wait.
	parts.Go(func() { rest.Run(ctx) })
	if sealer != nil {
		parts.Go(func() { sealer.Run(ctx) })
	}
	for _, r := range reconcilers {
		parts.Go(func() { r.Run(ctx) })
		// A login that cannot be repeated must not die between two looks, or where another replica looks.
		if kept, ok := r.Metadata.(interface {
			KeepAlive(ctx context.Context, failed func(error))
		}); ok {
			parts.Go(func() {
				kept.KeepAlive(ctx, func(err error) { log.Warn().Err(err).Str("kms", r.KMS).Msg("The login to the KMS could not be kept") })
			})
		}
	}
	for name, s := range streams {
		parts.Go(func() {
			s.client.KeepAlive(ctx, func(err error) {
				log.Warn().Err(err).Str("kms", name).Msg("The login to the KMS's events could not be kept")
			})
		})
	}
	parts.Go(func() {
		if err := bot.Run(ctx); err != nil {
			cancel(fmt.Errorf("the bot: %w", err))
		}
	})
	parts.Go(func() {
		if err := db.Listen(ctx, relay.WorkChannel, func(string) { bot.Wake(); notices.Wake(); rest.Wake() }); err != nil {
			cancel(err)
		}
	})
	parts.Go(func() {
		if err := db.Listen(ctx, enforce.CampaignChannel, func(string) { rest.Wake() }); err != nil {
			cancel(err)
		}
	})
	parts.Go(func() {
		if err := db.Listen(ctx, relay.MovedChannel, func(payload string) { rest.Wake(relay.Moved(payload)...) }); err != nil {
			cancel(err)
		}
	})
	for _, l := range listeners {
		parts.Go(func() {
			if err := l.server.Serve(l.listener); !errors.Is(err, http.ErrServerClosed) {
				cancel(err)
			}
		})
		log.Info().Str("address", l.listener.Addr().String()).Msg("Keyherald is listening")
	}
	<-ctx.Done()
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer done()
	err = errors.Join(listeners.shutdown(stop), jobs.Stop(stop))
	answered()
	parts.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = cause
	}
	last, lastDone := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer lastDone()
	return stopped(last, db, err)
}

// newSealer is nil where the log is not sealed, which the configuration allows in development alone.
func newSealer(ctx context.Context, c config, log zerolog.Logger) (*signer.Signer, func(), error) {
	if !c.Audit.on() {
		log.Warn().Msg("The audit log is not signed: the configuration has no audit section")
		return nil, func() {}, nil
	}
	sealer, db, err := c.openSigner(ctx, log)
	return sealer, func() { _ = db.Close() }, err
}
