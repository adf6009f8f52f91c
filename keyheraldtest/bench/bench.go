// Package bench is the frame of `make bench`: what Keyherald does beside what it should be compared with, in
// interleaved rounds of one run, so that a busy machine is busy for both. Figures are medians.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
)

// Row is one benchmark's result. A ratio is turned so that more is better for us.
type Row struct {
	Name   string             `json:"name"`
	Unit   string             `json:"unit"`
	Ours   float64            `json:"ours"`
	Beside map[string]float64 `json:"beside"`
	Ratio  map[string]float64 `json:"ratio"`
	Rounds int                `json:"rounds"`
}

// Side is something that is measured: Run does it once and returns the figure of that round, in the row's unit.
type Side struct {
	Name string
	Run  func(ctx context.Context) (float64, error)
}

// Better says which figure is the better one.
type Better int

// A duration is better if it is less, a rate if it is more.
const (
	Less Better = iota
	More
)

// Measure runs every side once to warm up, and then all of them in turn, rounds times.
func Measure(ctx context.Context, name, unit string, better Better, rounds int, ours Side, beside ...Side) (Row, error) {
	if rounds < 1 {
		return Row{}, errors.New("a benchmark needs a round")
	}
	sides := append([]Side{ours}, beside...)
	figures := make([][]float64, len(sides))
	for round := range rounds + 1 {
		for i, side := range sides {
			figure, err := side.Run(ctx)
			if err != nil {
				return Row{}, fmt.Errorf("%s, round %d, %s: %w", name, round, side.Name, err)
			}
			if round > 0 {
				figures[i] = append(figures[i], figure)
			}
		}
	}
	others := map[string][]float64{}
	for i, side := range beside {
		others[side.Name] = figures[i+1]
	}
	return Compare(name, unit, better, figures[0], others), nil
}

// Compare makes the row of figures that were taken in the same rounds.
func Compare(name, unit string, better Better, ours []float64, beside map[string][]float64) Row {
	row := Row{Name: name, Unit: unit, Ours: median(ours), Beside: map[string]float64{}, Ratio: map[string]float64{}, Rounds: len(ours)}
	for side, figures := range beside {
		row.compare(better, side, figures)
	}
	return row
}

// compare adds a side's figures of the same rounds.
func (row Row) compare(better Better, side string, figures []float64) {
	other := median(figures)
	row.Beside[side] = other
	row.Ratio[side] = row.Ours / other
	if better == Less {
		row.Ratio[side] = other / row.Ours
	}
}

func median(figures []float64) float64 {
	sorted := slices.Sorted(slices.Values(figures))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// Print writes the rows as a table for people.
func Print(out io.Writer, rows []Row) error {
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "benchmark\tours\tunit\tbeside\tfigure\tratio (more is better)\trounds\t")
	for _, row := range rows {
		for _, name := range slices.Sorted(maps.Keys(row.Beside)) {
			_, _ = fmt.Fprintf(table, "%s\t%.1f\t%s\t%s\t%.1f\t%.3f\t%d\t\n", row.Name, row.Ours, row.Unit, name, row.Beside[name], row.Ratio[name], row.Rounds)
		}
	}
	return table.Flush()
}

// Write keeps the rows as JSON. The rows of an earlier run that are not among them stay.
func Write(path string, rows []Row) error {
	kept, err := read(path)
	if err != nil {
		return err
	}
	for _, row := range rows {
		if i := slices.IndexFunc(kept, func(old Row) bool { return old.Name == row.Name }); i >= 0 {
			kept[i] = row
		} else {
			kept = append(kept, row)
		}
	}
	encoded, err := json.MarshalIndent(kept, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	if err := os.WriteFile(path, append(encoded, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	return nil
}

func read(path string) (rows []Row, err error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading the results of earlier runs: %w", err)
	}
	if err := json.Unmarshal(raw, &rows); err != nil {
		return nil, fmt.Errorf("reading the results of earlier runs in %s (remove it to begin anew): %w", path, err)
	}
	return rows, nil
}
