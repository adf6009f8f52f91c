package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

// gauges reads the rows when Prometheus asks: they are the truth, also after a takeover by another replica.
type gauges struct {
	db       *postgres.DB
	bot      *appservice.Bot
	arrivals *relay.Arrivals
	sealer   *signer.Signer // nil where the log is not sealed
}

var (
	rotationsDesc = prometheus.NewDesc("keyherald_rotations", "Rotations by state.", []string{"state"}, nil)
	attentionDesc = prometheus.NewDesc("keyherald_rotations_needing_attention", "Open rotations that need somebody, by cause.", []string{"cause"}, nil)
	oldestDesc    = prometheus.NewDesc("keyherald_rotation_oldest_open_seconds", "For how long the oldest rotation that is open in a state has been open. A state without one is not there.", []string{"state"}, nil)
	noticesDesc   = prometheus.NewDesc("keyherald_notices_pending", "Notices to users and admins that the homeserver has not taken yet.", nil, nil)
	devicesDesc   = prometheus.NewDesc("keyherald_devices", "Managed devices by state.", []string{"state"}, nil)
	againDesc     = prometheus.NewDesc("keyherald_reenrollments_waiting", "Devices that asked to be enrolled again after an identity reset, and wait for an admin.", nil, nil)
	outboxDesc    = prometheus.NewDesc("keyherald_outbox_pending", "Messages of the bot that the homeserver has not taken yet.", nil, nil)
	heldDesc      = prometheus.NewDesc("keyherald_rotations_held", "Rotations that are held, for an admin's release or until the audit log is signed again.", nil, nil)
	waitingDesc   = prometheus.NewDesc("keyherald_notifications_waiting", "Notifications that wait for their commit.", nil, nil)
	leadingDesc   = prometheus.NewDesc("keyherald_bot_leading", "1 where this replica holds the bot.", nil, nil)
	frozenDesc    = prometheus.NewDesc("keyherald_triggers_frozen", "1 while an admin has stopped all triggers.", nil, nil)
	unsealedDesc  = prometheus.NewDesc("keyherald_audit_unsealed_events", "Events of the audit log that no checkpoint covers yet.", nil, nil)
	lagDesc       = prometheus.NewDesc("keyherald_audit_signer_lag_seconds", "For how long the oldest event has waited for a checkpoint.", nil, nil)
	sizeDesc      = prometheus.NewDesc("keyherald_audit_tree_size", "Events of the audit log that the newest checkpoint covers.", nil, nil)
	stoppedDesc   = prometheus.NewDesc("keyherald_audit_signer_stopped", "1 where nothing is signed until people act: the database went back, or was changed.", nil, nil)
	problemDesc   = prometheus.NewDesc("keyherald_audit_signer_problem", "1 while nothing can be signed, for whatever reason.", nil, nil)
	alteredDesc   = prometheus.NewDesc("keyherald_audit_altered", "1 where the newest look over the whole audit log found that it was altered.", nil, nil)
	inspectedDesc = prometheus.NewDesc("keyherald_audit_inspected_timestamp_seconds", "When the whole audit log was looked over last by this replica, as Unix time.", nil, nil)
	unpublDesc    = prometheus.NewDesc("keyherald_audit_sinks_behind", "Sinks that did not take the newest checkpoint.", nil, nil)
	databaseDesc  = prometheus.NewDesc("keyherald_database_up", "1 if the database answered this scrape.", nil, nil)
)

// Describe implements prometheus.Collector.
func (g gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{rotationsDesc, oldestDesc, noticesDesc, attentionDesc, devicesDesc, againDesc, outboxDesc, heldDesc, frozenDesc, waitingDesc, leadingDesc, unsealedDesc, lagDesc, sizeDesc, stoppedDesc, problemDesc, alteredDesc, inspectedDesc, unpublDesc, databaseDesc} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (g gauges) Collect(ch chan<- prometheus.Metric) {
	send := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	send(leadingDesc, is(g.bot.Leading()))
	send(waitingDesc, float64(g.arrivals.Waiting()))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	counts, err := g.db.Counts(ctx)
	if err != nil {
		send(databaseDesc, 0)
		return
	}
	send(databaseDesc, 1)
	if g.sealer != nil {
		g.collectSeal(ctx, send)
	}
	send(frozenDesc, float64(counts.Frozen))
	send(heldDesc, float64(counts.Held))
	send(againDesc, float64(counts.Reenrollments))
	send(outboxDesc, float64(counts.Outbox))
	send(noticesDesc, float64(counts.Notices))
	for state, n := range counts.Rotations {
		send(rotationsDesc, float64(n), state)
	}
	for state, age := range counts.Oldest {
		send(oldestDesc, age.Seconds(), state)
	}
	for cause, n := range counts.Attention {
		send(attentionDesc, float64(n), cause)
	}
	for state, n := range counts.Devices {
		send(devicesDesc, float64(n), state)
	}
}

// is is a yes or no as a gauge.
func is(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// collectSeal tells how far the audit log is sealed; the signer's own gauges are of this replica.
func (g gauges) collectSeal(ctx context.Context, send func(*prometheus.Desc, float64, ...string)) {
	status := g.sealer.Status()
	send(stoppedDesc, is(status.Stopped))
	send(problemDesc, is(status.Problem != nil))
	if seen := status.Inspection; !seen.At.IsZero() {
		send(alteredDesc, is(seen.Altered != ""))
		send(inspectedDesc, float64(seen.At.Unix()))
	}
	send(unpublDesc, float64(len(status.Unpublished)))
	if n, oldest, err := g.db.Unsealed(ctx); err == nil {
		lag := 0.0
		if n > 0 {
			lag = max(0, time.Since(oldest).Seconds())
		}
		send(unsealedDesc, float64(n))
		send(lagDesc, lag)
	}
	if state, err := g.db.TreeState(ctx); err == nil {
		send(sizeDesc, float64(state.Newest.Size))
	}
}
