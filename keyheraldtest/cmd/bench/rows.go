package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/bench"
	"github.com/keyherald/keyherald/keyheraldtest/demo"
	"github.com/keyherald/keyherald/keyheraldtest/interop"
)

// setting is what a run was told.
type setting struct {
	// programs is the absolute path of the directory with the programs.
	programs string
	rounds   int
}

// measured is a name that -rows knows, and what measures its rows.
type measured struct {
	name string
	do   func(ctx context.Context, s setting) ([]bench.Row, error)
}

// all is the whole run, in its order. Some rows have fewer rounds than a run is told, since theirs take long.
func all() []measured {
	return []measured{
		{"rotation", rotation},
		{"intake", func(ctx context.Context, s setting) ([]bench.Row, error) { return bench.Intake(ctx, s.rounds) }},
		{"triggers", func(ctx context.Context, s setting) ([]bench.Row, error) {
			return bench.Triggers(ctx, 2000, min(s.rounds, 5))
		}},
		{"reconcile", func(ctx context.Context, s setting) ([]bench.Row, error) {
			return bench.Reconcile(ctx, 10_000, min(s.rounds, 5))
		}},
		{"compliance", func(ctx context.Context, s setting) ([]bench.Row, error) {
			return bench.Compliance(ctx, 20_000, s.rounds)
		}},
		{"api_list", func(ctx context.Context, s setting) ([]bench.Row, error) {
			return bench.APIList(ctx, 10_000, s.rounds)
		}},
		{"delivery/10", func(ctx context.Context, s setting) ([]bench.Row, error) {
			sdk, err := interop.InstallJS(ctx, os.Stderr)
			if err != nil {
				return nil, err
			}
			return bench.Delivery(ctx, 10, s.rounds, &sdk)
		}},
		{"delivery/100", func(ctx context.Context, s setting) ([]bench.Row, error) {
			return bench.Delivery(ctx, 100, min(s.rounds, 3), nil)
		}},
		{"fanout", func(ctx context.Context, s setting) ([]bench.Row, error) { return bench.Fanout(ctx, 100, s.rounds) }},
		{"fleet", func(ctx context.Context, s setting) ([]bench.Row, error) {
			return bench.Fleet(ctx, s.programs, 1000, min(s.rounds, 3))
		}},
		{"carryover", func(ctx context.Context, s setting) ([]bench.Row, error) { return bench.Carry(ctx, min(s.rounds, 5)) }},
		{"audit", func(ctx context.Context, s setting) ([]bench.Row, error) { return bench.Audit(ctx, min(s.rounds, 9)) }},
		{"audit_verify", func(ctx context.Context, s setting) ([]bench.Row, error) {
			return bench.AuditVerify(ctx, 1_000_000, min(s.rounds, 5))
		}},
		{"memory", memory},
	}
}

// meant reports whether a name on the list is this one's, or what several begin with: delivery is delivery/10 and delivery/100.
func (m measured) meant(name string) bool {
	return m.name == name || strings.HasPrefix(m.name, name+"/")
}

// choose gives the rows that a comma-separated list names, in the order of a whole run; an empty list is a whole run.
func choose(list string, from []measured) ([]measured, error) {
	if list == "" {
		return from, nil
	}
	wanted := strings.Split(list, ",")
	var names []string
	for _, m := range from {
		names = append(names, m.name)
	}
	for _, name := range wanted {
		if !slices.ContainsFunc(from, func(m measured) bool { return m.meant(name) }) {
			return nil, fmt.Errorf("there is no row %q: write some of %s, with commas between them", name, strings.Join(names, ","))
		}
	}
	return slices.DeleteFunc(slices.Clone(from), func(m measured) bool { return !slices.ContainsFunc(wanted, m.meant) }), nil
}

func rotation(ctx context.Context, s setting) ([]bench.Row, error) {
	return inCompany(s, func(config demo.Config) (bench.Row, error) { return demo.BenchRotation(ctx, config, s.rounds) })
}

func memory(ctx context.Context, s setting) ([]bench.Row, error) {
	return inCompany(s, func(config demo.Config) (bench.Row, error) { return demo.BenchMemory(ctx, config, 10_000) })
}

// inCompany measures a row in a company of make demo's.
func inCompany(s setting, measure func(config demo.Config) (bench.Row, error)) (rows []bench.Row, err error) {
	dir, err := os.MkdirTemp("", "keyherald-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	row, err := measure(demo.Config{Programs: s.programs, Dir: dir, Homeserver: keyheraldtest.StartDendrite, Out: os.Stderr})
	return []bench.Row{row}, err
}
