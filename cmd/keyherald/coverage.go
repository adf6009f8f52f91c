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

// coverageEvery is how old the numbers of the roster may be: counting reads every user.
const coverageEvery = time.Minute

// coverage tells where the users of the roster stand. count says how many are in each state.
type coverage struct {
	count func(ctx context.Context) (map[string]int, error)

	mu     sync.Mutex // guards the rest
	states map[string]int
	at     time.Time
}

// newCoverage counts by the enforcer; a state without anybody is told as 0.
func newCoverage(enforcer *enforce.Enforcer) *coverage {
	return &coverage{count: func(ctx context.Context) (map[string]int, error) {
		compliance, _, err := enforcer.Compliance(ctx)
		if err != nil {
			return nil, err
		}
		states := map[string]int{}
		for _, state := range roster.States() {
			states[string(state)] = compliance.States[state]
		}
		return states, nil
	}}
}

// Describe implements prometheus.Collector.
func (c *coverage) Describe(ch chan<- *prometheus.Desc) { ch <- rosterDesc }

// Collect implements prometheus.Collector. What cannot be counted now is not told, rather than told as it was.
func (c *coverage) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at) >= coverageEvery {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		states, err := c.count(ctx)
		if err != nil {
			return
		}
		c.states, c.at = states, time.Now()
	}
	for state, n := range c.states {
		ch <- prometheus.MustNewConstMetric(rosterDesc, prometheus.GaugeValue, float64(n), state)
	}
}
