// Package interop is `make interop`: the main job on every homeserver with every kind of client at the other end, each
// unmodified, checked by the client's own API.
package interop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/company"
)

// Config is what Run needs. Programs is a directory with the built keyherald and keyherald-device; Dir is an empty
// directory for everything else. Only, if not empty, is the one homeserver to run.
type Config struct {
	Programs, Dir string
	Tools         Tools
	Out           io.Writer
	Only          string
}

// Result is the last line of a run.
type Result struct {
	Cells    int    `json:"cells"`
	Failed   int    `json:"failed"`
	Failures []Cell `json:"failures"`
}

// Cell is one check of one client on one homeserver. Error is empty where it held.
type Cell struct {
	Homeserver string `json:"homeserver"`
	Client     string `json:"client"`
	Check      string `json:"check"`
	Error      string `json:"error,omitempty"`
	took       time.Duration
}

// ErrFailed means that a cell failed; the result names it.
var ErrFailed = errors.New("not every cell held")

// ground is a homeserver, and the bot's way to its device on it.
type ground struct {
	name  string
	start keyheraldtest.StartHomeserver
	login appservice.Login
	// botOnly where nobody else can log in.
	botOnly bool
}

var grounds = []ground{
	{"dendrite", keyheraldtest.StartDendrite, appservice.LoginAuto, false},
	{"synapse", keyheraldtest.StartSynapse, appservice.LoginAppservice, false},
	{"synapse-msc4190", keyheraldtest.StartSynapse, appservice.LoginMSC4190, false},
	{"synapse-delegated", keyheraldtest.StartDelegatedSynapse, appservice.LoginAuto, true},
}

// Grounds are the names that Config.Only may have.
func Grounds() []string {
	names := make([]string, len(grounds))
	for i, g := range grounds {
		names[i] = g.name
	}
	return names
}

// record gathers the cells of a ground.
type record struct {
	ground string
	out    io.Writer
	mu     sync.Mutex // guards cells and out
	cells  []Cell
}

func (r *record) cell(client, check string, do func() error) {
	began := time.Now()
	err := do()
	c := Cell{Homeserver: r.ground, Client: client, Check: check, took: time.Since(began)}
	mark := "✓"
	if err != nil {
		c.Error, mark = err.Error(), "✗"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cells = append(r.cells, c)
	_, _ = fmt.Fprintf(r.out, "   %s %-17s %-45s %s\n", mark, client, check, c.took.Round(10*time.Millisecond))
	if err != nil {
		_, _ = fmt.Fprintf(r.out, "     %s\n", strings.ReplaceAll(c.Error, "\n", "\n     "))
	}
}

// Run runs every ground and prints the table. Its last line on Out is the result as one JSON object.
func Run(ctx context.Context, config Config) (Result, error) {
	result := Result{Failures: []Cell{}}
	var table strings.Builder
	for _, g := range grounds {
		if config.Only != "" && config.Only != g.name {
			continue
		}
		dir := filepath.Join(config.Dir, g.name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return result, err
		}
		r := &record{ground: g.name, out: config.Out}
		title, err := g.run(ctx, config, dir, r)
		if err != nil {
			// What the homeserver could not be asked any more counts as failed.
			r.cell(botName, "the run", func() error { return err })
		}
		if ctx.Err() != nil {
			return result, ctx.Err()
		}
		draw(&table, title, r.cells)
		result.Cells += len(r.cells)
		for _, c := range r.cells {
			if c.Error != "" {
				result.Failures = append(result.Failures, c)
			}
		}
	}
	result.Failed = len(result.Failures)
	line, err := json.Marshal(result)
	if err != nil {
		return result, fmt.Errorf("encoding the result: %w", err)
	}
	_, _ = fmt.Fprintf(config.Out, "%s\n%s\n", table.String(), line)
	if result.Failed > 0 {
		return result, ErrFailed
	}
	return result, nil
}

// run does everything on one ground. An error is one that ended it early.
func (g ground) run(ctx context.Context, config Config, dir string, r *record) (title string, err error) {
	title = g.name
	_, _ = fmt.Fprintf(config.Out, "\n── %s\n", g.name)
	quiet := func(what string, do func() error) error {
		if err := do(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	var c *company.Company
	r.cell(botName, checkBot, func() error {
		c, err = company.Start(ctx, company.Config{Programs: config.Programs, Dir: dir, Homeserver: g.start, BotLogin: g.login}, quiet)
		return err
	})
	defer func() { err = errors.Join(err, c.Close()) }()
	if err != nil {
		return title, nil
	}
	title = fmt.Sprintf("%s, bot.login: %s", c.Homeserver.Name, g.login)
	w := &world{Company: c}
	devices := w.botDevices
	if g.botOnly {
		title += ", logins delegated to a Matrix Authentication Service that is not there"
		devices = func(ctx context.Context) ([]id.DeviceID, error) { return w.devicesByToken(ctx, dir) }
	} else if err := w.people(ctx, config.Tools, dir); err != nil {
		return title, err
	} else if err := w.main(ctx, r); err != nil {
		return title, err
	}
	before, err := devices(ctx)
	if err != nil {
		return title, err
	}
	r.cell(botName, checkRestarted, func() error {
		if err := w.restored(ctx, before, devices); err != nil || g.botOnly {
			return err
		}
		return w.rotate(ctx)
	})
	return title, nil
}

// devicesByToken asks as the bot, where nobody else is there to ask.
func (w *world) devicesByToken(ctx context.Context, dir string) ([]id.DeviceID, error) {
	registration, err := appservice.LoadRegistration(filepath.Join(dir, "registration.yaml"))
	if err != nil {
		return nil, err
	}
	client, err := mautrix.NewClient(w.Homeserver.URL, id.NewUserID(company.BotName, keyheraldtest.ServerName), registration.ASToken)
	if err != nil {
		return nil, err
	}
	client.SetAppServiceUserID = true
	answer, err := client.GetDevicesInfo(ctx)
	if err != nil {
		return nil, err
	}
	var devices []id.DeviceID
	for _, device := range answer.Devices {
		devices = append(devices, device.DeviceID)
	}
	return devices, nil
}

// draw draws a ground's cells: a check a row, a client a column.
func draw(table *strings.Builder, title string, cells []Cell) {
	_, _ = fmt.Fprintf(table, "\n%s\n%-46s", title, "")
	for _, column := range columns {
		_, _ = fmt.Fprintf(table, " %-16s", column)
	}
	rows := slices.Clone(checks)
	for _, c := range cells {
		if !slices.Contains(rows, c.Check) {
			rows = append(rows, c.Check)
		}
	}
	for _, check := range rows {
		line := fmt.Sprintf("\n%-46s", check)
		any := false
		for _, column := range columns {
			mark := "·"
			for _, c := range cells {
				if c.Check == check && c.Client == column {
					any, mark = true, "✓"
					if c.Error != "" {
						mark = "✗"
					}
				}
			}
			line += fmt.Sprintf(" %-16s", mark)
		}
		if any {
			table.WriteString(strings.TrimRight(line, " "))
		}
	}
	table.WriteString("\n")
}
