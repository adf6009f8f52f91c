package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/relay"
)

// reconcileConfig is how a KMS is looked at by itself.
type reconcileConfig struct {
	// Interval is how long a look at everybody takes, and so about how late a change is found.
	Interval time.Duration `yaml:"interval"`
	// Path is where a user's key is, with {user} for the localpart of his Matrix id: for users who had no rotation yet.
	Path string `yaml:"path"`
	// MostPerSecond bounds the questions.
	MostPerSecond int `yaml:"most_per_second"`
}

// validate returns errors that begin with the key they are about.
func (r reconcileConfig) validate() error {
	switch {
	case r.Interval < 15*time.Second || r.Interval > 24*time.Hour:
		return fmt.Errorf("interval is %s: write between 15s and 24h", r.Interval)
	case r.MostPerSecond < 0:
		return fmt.Errorf("most_per_second is %d: write how many questions a second the KMS may be asked, such as 50", r.MostPerSecond)
	case r.Path == "":
		return errors.New("path is missing: write where a user's key is, such as keyherald/{user}/backup-key")
	case !strings.Contains(r.Path, "{user}"):
		return fmt.Errorf("path is %q: write {user} where the localpart of the Matrix id goes", r.Path)
	}
	if err := kms.CheckPath(strings.ReplaceAll(r.Path, "{user}", "user")); err != nil {
		return fmt.Errorf("path: %w", err)
	}
	return nil
}

// newReconcilers makes one for each KMS that is to be looked at. The event streams are heard by them.
func newReconcilers(ctx context.Context, c config, engine *relay.Engine, streams map[string]*stream, seconds *prometheus.HistogramVec, metrics prometheus.Registerer) ([]*relay.Reconciler, error) {
	var all []*relay.Reconciler
	for _, name := range slices.Sorted(maps.Keys(c.KMS)) {
		k := c.KMS[name]
		if k.Reconcile == nil {
			continue
		}
		metadata, err := k.metadata(ctx)
		if err != nil {
			return nil, fmt.Errorf("kms.%s: %w", name, err)
		}
		looks := relay.Reconciliation{KMS: name, Metadata: timed{metadata, name, seconds}, Path: k.Reconcile.Path, Interval: k.Reconcile.Interval, MostPerSecond: k.Reconcile.MostPerSecond}
		if s, ok := streams[name]; ok {
			looks.Hear = s.hear
		}
		r, err := engine.NewReconciler(looks, metrics)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}
