package main

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/roster"
)

var rosterDesc = prometheus.NewDesc("keyherald_roster_users", "Users of the roster by where they stand: current, in_progress, overdue, needs_attention, not_covered, exempt, unknown.", []string{"state"}, nil)

// A user whose key is too old counts as overdue only where nothing stands above that, such as a device that is silent.
var pastMaxAgeDesc = prometheus.NewDesc("keyherald_roster_past_max_age_users", "Users of the roster whose key is older than their policy allows, in whatever state they are, but for who is exempt.", nil, nil)

// coverageEvery is how old the numbers of the roster may be: counting reads every user.
const coverageEvery = time.Minute

// coverage tells where the users of the roster stand; a state without anybody is told as 0.
type coverage struct {
	count func(ctx context.Context) (roster.Compliance, error)

	mu     sync.Mutex // guards the rest
	counts roster.Compliance
	at     time.Time
}

// newCoverage counts by the enforcer.
func newCoverage(enforcer *enforce.Enforcer) *coverage {
	return &coverage{count: func(ctx context.Context) (roster.Compliance, error) {
		counts, _, err := enforcer.Compliance(ctx)
		return counts, err
	}}
}

// Describe implements prometheus.Collector.
func (c *coverage) Describe(ch chan<- *prometheus.Desc) {
	ch <- rosterDesc
	ch <- pastMaxAgeDesc
}

// Collect implements prometheus.Collector. What cannot be counted now is not told, rather than told as it was.
func (c *coverage) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at) >= coverageEvery {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		counts, err := c.count(ctx)
		if err != nil {
			return
		}
		c.counts, c.at = counts, time.Now()
	}
	for _, state := range roster.States() {
		ch <- prometheus.MustNewConstMetric(rosterDesc, prometheus.GaugeValue, float64(c.counts.States[state]), string(state))
	}
	ch <- prometheus.MustNewConstMetric(pastMaxAgeDesc, prometheus.GaugeValue, float64(c.counts.PastMaxAge))
}
