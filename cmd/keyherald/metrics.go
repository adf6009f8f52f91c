package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

// gauges reads the rows when Prometheus asks: they are the truth, also after a takeover by another replica.
type gauges struct {
	db       *postgres.DB
	bot      *appservice.Bot
	arrivals *relay.Arrivals
}

var (
	rotationsDesc = prometheus.NewDesc("keyherald_rotations", "Rotations by state.", []string{"state"}, nil)
	attentionDesc = prometheus.NewDesc("keyherald_rotations_needing_attention", "Open rotations that need somebody, by cause.", []string{"cause"}, nil)
	devicesDesc   = prometheus.NewDesc("keyherald_devices", "Managed devices by state.", []string{"state"}, nil)
	outboxDesc    = prometheus.NewDesc("keyherald_outbox_pending", "Messages of the bot that the homeserver has not taken yet.", nil, nil)
	heldDesc      = prometheus.NewDesc("keyherald_rotations_held", "Rotations held because too many users changed at once.", nil, nil)
	waitingDesc   = prometheus.NewDesc("keyherald_notifications_waiting", "Notifications that wait for their commit.", nil, nil)
	leadingDesc   = prometheus.NewDesc("keyherald_bot_leading", "1 where this replica holds the bot.", nil, nil)
	frozenDesc    = prometheus.NewDesc("keyherald_triggers_frozen", "1 while an admin has stopped all triggers.", nil, nil)
	databaseDesc  = prometheus.NewDesc("keyherald_database_up", "1 if the database answered this scrape.", nil, nil)
)

// Describe implements prometheus.Collector.
func (g gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{rotationsDesc, attentionDesc, devicesDesc, outboxDesc, heldDesc, frozenDesc, waitingDesc, leadingDesc, databaseDesc} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (g gauges) Collect(ch chan<- prometheus.Metric) {
	send := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	leading := 0.0
	if g.bot.Leading() {
		leading = 1
	}
	send(leadingDesc, leading)
	send(waitingDesc, float64(g.arrivals.Waiting()))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	counts, err := g.db.Counts(ctx)
	if err != nil {
		send(databaseDesc, 0)
		return
	}
	send(databaseDesc, 1)
	send(frozenDesc, float64(counts.Frozen))
	send(heldDesc, float64(counts.Held))
	send(outboxDesc, float64(counts.Outbox))
	for state, n := range counts.Rotations {
		send(rotationsDesc, float64(n), state)
	}
	for cause, n := range counts.Attention {
		send(attentionDesc, float64(n), cause)
	}
	for state, n := range counts.Devices {
		send(devicesDesc, float64(n), state)
	}
}
