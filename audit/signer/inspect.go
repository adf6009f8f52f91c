package signer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/integrity"
	"github.com/keyherald/keyherald/internal/loop"
)

// Inspection is a look over the whole log.
type Inspection struct {
	At time.Time
	// Altered says what is wrong with the log and where, empty where nothing is.
	Altered string
	// Findings are behind it.
	Findings []integrity.Finding
}

// inspections looks over the whole log, at once and then at every interval. Sealing reads no more of the tree than its
// edge: what was changed behind that is found here alone. Nothing stops because of it, since what is signed says of
// the old leaves what was always signed of them.
func (s *Signer) inspections(ctx context.Context) {
	for ctx.Err() == nil {
		if _, err := s.Inspect(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn().Err(err).Msg("The audit log could not be looked over and will be later")
			loop.Pause(ctx, time.Minute)
			continue
		}
		loop.Pause(ctx, s.inspectEvery)
	}
}

// Inspect hashes every event of the database anew and holds the tree against it, as `keyherald audit verify` does. What
// it finds is in Status, in the log, and once an event of the audit log.
func (s *Signer) Inspect(ctx context.Context) (Inspection, error) {
	seen := Inspection{At: s.now()}
	published, err := s.remember(ctx)
	if err != nil {
		return seen, err
	}
	options := integrity.Options{Name: s.keys.Name, Keys: s.keys.Public}
	for _, p := range published {
		if p.Size > 0 {
			options.Earlier = append(options.Earlier, integrity.Earlier{Checkpoint: p.Checkpoint, Where: p.where})
		}
	}
	var report integrity.Report
	err = s.db.Snapshot(ctx, func(ctx context.Context) error {
		state, err := s.db.TreeState(ctx)
		if err != nil {
			return err
		}
		options.Size = state.Size
		if state.Newest.Epoch < state.Epoch {
			// A loss was accepted, and the event that says so is not sealed yet: what it excuses is no alteration.
			options.Earlier = slices.DeleteFunc(options.Earlier, func(e integrity.Earlier) bool { return e.Epoch < state.Epoch })
		}
		report, err = integrity.Check(ctx, s.db, options)
		return err
	})
	if err != nil {
		return seen, fmt.Errorf("looking over the audit log: %w", err)
	}
	problems := map[integrity.Verdict]audit.Problem{integrity.Altered: audit.ProblemAltered, integrity.RolledBack: audit.ProblemWentBack}
	problem, found := problems[report.Verdict]
	if found {
		seen.Altered, seen.Findings = report.Headline, report.Findings
	}
	s.mu.Lock()
	before := s.status.Inspection.Altered
	s.mu.Unlock()
	if found && seen.Altered != before {
		s.log.Error().Str("verdict", report.Headline).Int("findings", len(report.Findings)).
			Msg("The audit log in the database was altered; `keyherald audit verify` lists every place")
		if err := s.db.Append(ctx, s.alteration(seen, problem)); err != nil {
			return seen, err
		}
	}
	// Kept when the log has it, so that a word which could not be appended is said in the next round.
	s.mu.Lock()
	s.status.Inspection = seen
	s.mu.Unlock()
	return seen, nil
}

// alteration is the event about what was found first.
func (s *Signer) alteration(seen Inspection, problem audit.Problem) audit.Event {
	gravest := seen.Findings[0]
	detail := audit.Detail{audit.Word("problem", problem), audit.Number("findings", len(seen.Findings))}
	if gravest.First >= 0 {
		detail = append(detail, audit.Number("first", gravest.First), audit.Number("last", gravest.Last))
	}
	return audit.Event{Time: seen.At, Actor: audit.BySigner(), Action: audit.AlterationFound, Subject: s.subject(), Outcome: audit.Failed, Detail: detail}
}
