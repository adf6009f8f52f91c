// Package demo is `make demo`: a whole company of real parts, one rotation to watch, and the checks that tell whether
// it held what Keyherald promises. A test runs it as well.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/keyherald/keyherald/keyheraldtest"
)

// Config is what Run needs. Programs is a directory with the built keyherald and keyherald-device; Dir is an empty
// directory, which everything the parts write goes into. KMS is setec, the default, or vault. Hold, if set, is called when all
// is checked and still runs.
type Config struct {
	Programs   string
	Dir        string
	Homeserver keyheraldtest.StartHomeserver
	KMS        string
	Out        io.Writer
	Color      bool
	Hold       func(ctx context.Context, w *World) error

	reconcile time.Duration
}

// Result is the demo's last line.
type Result struct {
	OK            bool           `json:"ok"`
	RotationState string         `json:"rotation_state"`
	Outcomes      map[string]int `json:"outcomes"`
	// ElapsedMS is from the notification to the last adoption, in milliseconds.
	ElapsedMS int64 `json:"elapsed_ms"`
	// FoundMS is from a change that nobody told of to the last adoption, in milliseconds.
	FoundMS     int64    `json:"found_ms"`
	AuditEvents int      `json:"audit_events"`
	Failed      []string `json:"failed,omitempty"`

	stock time.Duration // from the notification to the stock client's adoption
}

// ErrNotHeld means that a check failed; the result names it.
var ErrNotHeld = errors.New("not everything held")

// Run makes the company, rotates, shows and checks. Its last line on Out is the result as one JSON object.
func Run(ctx context.Context, config Config) (result Result, err error) {
	s := screen{out: config.Out, color: config.Color}
	s.title("Keyherald: a key-backup key rotates, and every device follows")
	config.reconcile = reconcileInterval
	w, err := build(ctx, config, s)
	if w != nil {
		defer func() { err = errors.Join(err, w.Close()) }()
	}
	if err == nil {
		err = w.people(ctx, s)
	}
	if err != nil {
		return result, errors.Join(err, w.tellLogs(s))
	}
	s.title("The rotation, on " + w.Homeserver.Name + " with " + w.KMSTitle())
	if result, err = w.rotate(ctx, s); err != nil {
		return result, errors.Join(err, w.tellLogs(s))
	}
	s.title("Another change, whose notification is thrown away")
	if result.FoundMS, err = w.unnotified(ctx, s); err != nil {
		return result, errors.Join(err, w.tellLogs(s))
	}
	s.title("The checks")
	w.checks(ctx, s, &result)
	s.title("The audit trail")
	if err := w.trail(ctx, s, &result); err != nil {
		return result, err
	}
	result.OK = len(result.Failed) == 0 && result.RotationState == "done"
	if config.Hold != nil {
		w.playOn(s)
	}
	line, err := json.Marshal(result)
	if err != nil {
		return result, fmt.Errorf("encoding the result: %w", err)
	}
	_, _ = fmt.Fprintf(config.Out, "\n%s\n", line)
	if config.Hold != nil {
		if err := config.Hold(ctx, w); err != nil {
			return result, err
		}
	}
	if !result.OK {
		return result, ErrNotHeld
	}
	return result, nil
}

// screen is what a person watches.
type screen struct {
	out   io.Writer
	color bool
}

func (s screen) paint(code, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s screen) title(text string) {
	_, _ = fmt.Fprintf(s.out, "\n%s\n", s.paint("1;36", "── "+text))
}

func (s screen) line(format string, args ...any) {
	_, _ = fmt.Fprintf(s.out, "   "+format+"\n", args...)
}

func (s screen) lines(text []byte) {
	for line := range strings.Lines(string(text)) {
		s.line("%s", strings.TrimRight(line, "\n"))
	}
}

// step tells what is being done and how long it took.
func (s screen) step(what string, do func() error) error {
	began := time.Now()
	if err := do(); err != nil {
		s.line("%s %s", s.paint("31", "✗"), what)
		return fmt.Errorf("%s: %w", what, err)
	}
	s.line("%s %-62s %s", s.paint("32", "✓"), what, s.paint("2", time.Since(began).Round(10*time.Millisecond).String()))
	return nil
}
