package relay

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
)

// Reconciliation is how one KMS is looked at by itself, since a notification may be lost, and some systems send none.
type Reconciliation struct {
	// KMS is its name, as mappings have it.
	KMS      string
	Metadata kms.Metadata
	// Path is where a user's key is who had no rotation yet, with {user} for the localpart; empty leaves such users out.
	Path string
	// Interval is how long a look at everybody takes, and so about how late a change is found at the latest.
	Interval time.Duration
	// MostPerSecond bounds the questions to the KMS; 0 means 50.
	MostPerSecond int
	// Hear, where it is there, hears of changes until ctx ends, while this replica is the one that reconciles. It calls
	// opened each time after which nothing is missed any more: then everybody's key is looked at once, at once.
	Hear func(ctx context.Context, opened func())
}

const (
	reconcileBatch   = 200
	reconcileWorkers = 8
	// sourceReconcile is the source of rotations that nobody notified of.
	sourceReconcile = "reconcile"
)

// Reconciler looks at one KMS again and again; one replica at a time does.
type Reconciler struct {
	*Engine
	Reconciliation
	looks *prometheus.CounterVec
	last  prometheus.Gauge
}

// NewReconciler makes a Reconciler; metrics may be nil.
func (e *Engine) NewReconciler(r Reconciliation, metrics prometheus.Registerer) (*Reconciler, error) {
	if r.KMS == "" || r.Metadata == nil || r.Interval <= 0 {
		return nil, errors.New("relay: a KMS, its metadata and an interval are needed to reconcile")
	}
	if r.MostPerSecond == 0 {
		r.MostPerSecond = 50
	}
	labels := prometheus.Labels{"kms": r.KMS}
	c := &Reconciler{Engine: e, Reconciliation: r,
		looks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "keyherald_reconcile_looks_total", Help: "Questions to a KMS about a user's current version, by what came of it: same, baseline, notified, found, no_key, failed.", ConstLabels: labels}, []string{"result"}),
		last:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "keyherald_reconcile_last_success_timestamp_seconds", Help: "When the last look at every user in a KMS ended, without a failure.", ConstLabels: labels})}
	if metrics != nil {
		if err := errors.Join(metrics.Register(c.looks), metrics.Register(c.last)); err != nil {
			return nil, fmt.Errorf("relay: %w", err)
		}
	}
	return c, nil
}

// Run reconciles at once and then in every interval, while this replica is the one that does, until ctx ends.
func (c *Reconciler) Run(ctx context.Context) {
	loop.Persist(ctx, nil, min(c.Interval, 30*time.Second), func() error {
		lock, err := c.db.TryLock(ctx, "reconcile "+c.KMS)
		if err != nil || lock == nil {
			return err
		}
		defer func() { _ = lock.Close() }()
		defer c.hear(ctx)()
		for ctx.Err() == nil {
			if err := lock.Held(ctx); err != nil {
				return err
			}
			began := c.now()
			c.pass(ctx, c.Interval)
			loop.Pause(ctx, c.Interval-c.now().Sub(began))
		}
		return nil
	})
}

func (c *Reconciler) pass(ctx context.Context, spread time.Duration) {
	if err := c.Pass(ctx, spread); err != nil && ctx.Err() == nil {
		c.log.Warn().Err(err).Str("kms", c.KMS).Msg("Reconciling with the KMS is not complete, and goes on in the next interval")
	}
}

// hear begins to hear of changes, and returns what ends that. A look that an opened stream asks for does not wait for the
// one that is spread over the interval, and one that is asked for meanwhile comes after it.
func (c *Reconciler) hear(ctx context.Context) (stop func()) {
	if c.Hear == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	opened := make(chan struct{}, 1)
	var parts sync.WaitGroup
	parts.Go(func() {
		c.Hear(ctx, func() {
			select {
			case opened <- struct{}{}:
			default:
			}
		})
	})
	parts.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-opened:
				c.pass(ctx, 0)
			}
		}
	})
	return func() { cancel(); parts.Wait() }
}

// Pass looks at every enrolled user's key once, spread over about the time given; 0 means as fast as MostPerSecond lets
// it. A user who fails does not stop the others: the error is how many did, and the first of them.
func (c *Reconciler) Pass(ctx context.Context, spread time.Duration) error {
	users, err := c.db.EnrolledUsers(ctx)
	if err != nil {
		return err
	}
	perSecond := rate.Limit(c.MostPerSecond)
	if spread > 0 {
		// A tenth of the time is left for what is slow.
		perSecond = min(perSecond, max(rate.Limit(float64(users)/(0.9*spread.Seconds())), 0.1))
	}
	limiter := rate.NewLimiter(perSecond, reconcileWorkers)
	var first error
	failed := 0
	for after := id.UserID(""); ; {
		watched, err := c.db.Watched(ctx, c.KMS, protocol.SecretMegolmBackup, c.template, after, reconcileBatch)
		if err != nil {
			return err
		}
		if len(watched) == 0 {
			break
		}
		after = watched[len(watched)-1].UserID
		n, err := c.look(ctx, watched, limiter)
		if failed += n; first == nil {
			first = err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d users could not be looked at, the first: %w", failed, first)
	}
	c.last.Set(float64(c.now().Unix()))
	return nil
}

func (c *Reconciler) template(user id.UserID) string {
	return strings.ReplaceAll(c.Path, "{user}", user.Localpart())
}

// look asks the KMS about these users, and relays what is new.
func (c *Reconciler) look(ctx context.Context, watched []postgres.Watched, limiter *rate.Limiter) (failed int, first error) {
	var mu sync.Mutex // guards what follows
	var seen []postgres.Watched
	var changed []postgres.Watched
	places := make(chan postgres.Watched)
	var workers sync.WaitGroup
	for range reconcileWorkers {
		workers.Go(func() {
			for w := range places {
				version, err := c.current(ctx, w)
				mu.Lock()
				switch known := w.Version; {
				case errors.Is(err, kms.ErrNotFound):
					c.looks.WithLabelValues("no_key").Inc()
				case err != nil:
					c.looks.WithLabelValues("failed").Inc()
					if failed++; first == nil {
						first = fmt.Errorf("%s: %w", w.UserID, err)
					}
				case known == version && w.Seen:
					c.looks.WithLabelValues("same").Inc()
				case known == version, known == "":
					// The first look is a baseline, but for a change since what was relayed last: what was before is none of ours.
					w.Version = version
					c.looks.WithLabelValues("baseline").Inc()
					seen = append(seen, w)
				default:
					w.Version = version
					changed = append(changed, w)
				}
				mu.Unlock()
			}
		})
	}
	for _, w := range watched {
		if w.Path == "" || limiter.Wait(ctx) != nil {
			continue
		}
		places <- w
	}
	close(places)
	workers.Wait()
	if err := c.db.PutReconciled(ctx, seen, c.now()); err != nil {
		return failed + 1, errors.Join(first, err)
	}
	for _, w := range changed {
		if err := c.relay(ctx, w); err != nil {
			failed++
			first = errors.Join(first, fmt.Errorf("%s: %w", w.UserID, err))
		}
	}
	return failed, first
}

func (c *Reconciler) current(ctx context.Context, w postgres.Watched) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	described, err := c.Metadata.Current(ctx, w.Path)
	return described.Version, err
}

// relay opens the rotation of a version that was found, unless a notification did meanwhile, and keeps in the same
// transaction that it was seen.
func (c *Reconciler) relay(ctx context.Context, w postgres.Watched) error {
	found := false
	err := c.db.Txn(ctx, func(ctx context.Context) error {
		now := c.now()
		if err := c.db.LockArrivals(ctx, nil, []id.UserID{w.UserID}); err != nil {
			return err
		}
		standing, err := c.db.RotationsAt(ctx, []postgres.Place{w.Place})
		if err != nil {
			return err
		}
		found = true
		for _, r := range standing {
			found = found && r.KMS.Version != w.Version
		}
		if err := c.db.PutReconciled(ctx, []postgres.Watched{w}, now); err != nil || !found {
			return err
		}
		rotations, events, err := c.open(ctx, []Change{{Source: sourceReconcile, Actor: audit.ByReconciler(audit.KMSName(c.KMS)), UserID: w.UserID, Secret: w.Secret,
			KMS: protocol.KMSRef{Name: w.KMS, Path: w.Path, Version: w.Version}}}, now)
		if err != nil {
			return err
		}
		events = append(events, audit.Event{Time: now, Actor: audit.ByReconciler(audit.KMSName(c.KMS)), Action: audit.ChangeFound, Subject: audit.OfUser(w.UserID), Rotation: rotations[0],
			Outcome: audit.Accepted, Detail: audit.Detail{audit.ID("kms", audit.KMSName(w.KMS)), audit.ID("path", audit.KMSPath(w.Path)), audit.ID("version", audit.KMSVersion(w.Version))}})
		return c.db.Append(ctx, events...)
	})
	if err == nil {
		result := "notified"
		if found {
			result = "found"
		}
		c.looks.WithLabelValues(result).Inc()
	}
	return err
}
