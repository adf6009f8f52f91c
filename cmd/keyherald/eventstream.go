package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/kms/kmsconfig"
	"github.com/keyherald/keyherald/kms/vaultevents"
)

// eventsConfig is how a KMS's event stream is heard, and what an event's path says: pattern, user, and perhaps path.
type eventsConfig struct {
	kmsconfig.Events `yaml:",inline"`
	Mapping          intake.Mapping `yaml:"mapping"`
}

// stream is the event stream of one KMS. The replica that reconciles with the KMS hears it.
type stream struct {
	kms    string
	client *vaultevents.Client
	// keep takes an event the way of every notification.
	keep func(ctx context.Context, kms string, heard intake.Heard) error
	log  zerolog.Logger

	open     prometheus.Gauge
	openings prometheus.Counter
	failures prometheus.Counter

	mu     sync.Mutex // guards failed
	failed error      // why it is not heard, where this replica should
}

// newStreams makes one for each KMS whose events are to be heard.
func newStreams(c config, notifications *intake.Handler, log zerolog.Logger, metrics prometheus.Registerer) (map[string]*stream, error) {
	streams := map[string]*stream{}
	for _, name := range slices.Sorted(maps.Keys(c.KMS)) {
		k := c.KMS[name]
		if k.Events == nil {
			continue
		}
		config, err := k.Config.Events(k.Events.Events)
		if err != nil {
			return nil, fmt.Errorf("kms.%s.%w", name, err)
		}
		client, err := vaultevents.New(config)
		if err != nil {
			return nil, fmt.Errorf("kms.%s.events: %w", name, err)
		}
		labels := prometheus.Labels{"kms": name}
		s := &stream{kms: name, client: client, keep: notifications.Hear, log: log.With().Str("kms", name).Logger(),
			open:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "keyherald_event_stream_open", Help: "1 where this replica hears the KMS's event stream.", ConstLabels: labels}),
			openings: prometheus.NewCounter(prometheus.CounterOpts{Name: "keyherald_event_stream_openings_total", Help: "How often the KMS's event stream was opened.", ConstLabels: labels}),
			failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "keyherald_event_stream_failures_total", Help: "Streams that could not be opened or ended, and events that could not be read.", ConstLabels: labels})}
		if err := errors.Join(metrics.Register(s.open), metrics.Register(s.openings), metrics.Register(s.failures)); err != nil {
			return nil, fmt.Errorf("kms.%s.events: %w", name, err)
		}
		streams[name] = s
	}
	return streams, nil
}

// hear is a Reconciliation's Hear.
func (s *stream) hear(ctx context.Context, opened func()) {
	defer s.is(nil, 0)
	s.client.Watch(ctx, vaultevents.Handler{
		Opened: func(context.Context) {
			s.openings.Inc()
			s.is(nil, 1)
			s.log.Info().Msg("The KMS's event stream is open")
			opened()
		},
		Changed: s.change,
		Closed: func(err error) {
			s.failures.Inc()
			s.is(err, 0)
			s.log.Warn().Err(err).Msg("The KMS's event stream is not open, and is opened again")
		},
		Unreadable: func(err error) {
			s.failures.Inc()
			s.log.Warn().Err(err).Msg("An event of the KMS's stream was passed over")
		},
	})
}

// change keeps an event, again and again until it is kept: nobody tells it a second time. Where that lasts so long that the
// stream ends, everybody's key is looked at when it is open again.
func (s *stream) change(ctx context.Context, event vaultevents.Event) {
	for ctx.Err() == nil {
		if s.keep(ctx, s.kms, intake.Heard{ID: event.ID, Path: event.Path, Version: event.Version}) == nil {
			return
		}
		loop.Pause(ctx, 2*time.Second)
	}
}

func (s *stream) is(failed error, open float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = failed
	s.open.Set(open)
}

// problem is why the stream is not heard, on the replica that should.
func (s *stream) problem() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}
