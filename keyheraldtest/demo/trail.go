package demo

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"time"

	"github.com/keyherald/keyherald/keyheraldtest/company"
)

// trail prints what `keyherald audit list` tells.
func (w *World) trail(ctx context.Context, s screen, result *Result) error {
	out, err := w.Keyherald(ctx, "audit", "list", "--json", "--limit", "1000")
	if err != nil {
		return err
	}
	for text := range strings.Lines(out) {
		var line struct {
			Time                            time.Time
			Actor, Action, Subject, Outcome string
			Detail                          json.RawMessage
		}
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			return err
		}
		result.AuditEvents++
		s.line("%s  %-23s %-18s %s → %s  %s", s.paint("2", line.Time.UTC().Format("15:04:05.000")), line.Action, line.Outcome, line.Actor, line.Subject, s.paint("2", string(line.Detail)))
	}
	return nil
}

// Rotate rotates once more, for a person who plays on.
func (w *World) Rotate(ctx context.Context) error {
	s := screen{out: w.config.Out, color: w.config.Color}
	s.title("Another rotation")
	_, err := w.rotate(ctx, s)
	return err
}

func (w *World) playOn(s screen) {
	program := filepath.Join(w.config.Programs, "keyherald") + " -c " + filepath.Join(w.config.Dir, "config.yaml")
	s.title("Everything is still running")
	s.line("Press Enter to rotate once more, Ctrl-C to end it all. In another terminal:")
	for _, command := range []string{"rotations list", "devices list", "audit list", "audit verify", "check", "enroll --user " + w.alice.String()} {
		s.line("  %s %s", program, command)
	}
	s.line("  %s -c %s status", filepath.Join(w.config.Programs, "keyherald-device"), filepath.Join(w.config.Dir, "device.yaml"))
	s.line("  psql '%s' -c 'select time, actor, action, outcome from audit_log order by id'", w.Database.AuditorURL)
	s.line("The homeserver: %s (user alice, password %q); files and logs: %s", w.Homeserver.URL, company.Password, w.config.Dir)
}
