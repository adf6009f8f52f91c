// Package signer seals the audit log: it takes the events that were appended into the Merkle tree, batch by batch, and
// signs a checkpoint for each. One replica at a time does.
//
// A checkpoint is committed with its leaves, and then published to sinks outside the database. Before anything is
// signed, the checkpoints that sinks remember are held against the database: one that was restored to an earlier state,
// or written anew, is never signed, and people are called. Events go on being appended meanwhile. Now and then the whole
// log is looked over, for what was altered in a part that nothing is built on any more.
//
// Trusted are the signing keys and the sinks that can be read back, neither of them in the database. What somebody with
// the rights of a superuser takes out of the database before it was sealed (about a second) cannot be seen, unless he
// forgets the queue.
package signer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/tree"
	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/postgres"
)

// Sink is a place outside the database where checkpoints go. Publish may be called with a checkpoint that it has
// already, and never takes an older one for a newer.
type Sink interface {
	Name() string
	Publish(ctx context.Context, c checkpoint.Signed) error
}

// Memory is a sink that can be read back: Newest is the newest signed note there, empty where there is none.
type Memory interface {
	Sink
	Newest(ctx context.Context) (string, error)
}

const (
	// batchMost bounds a batch: how long its transaction may take.
	batchMost = 8192
	// sinkTimeout is how long one sink may take.
	sinkTimeout = 10 * time.Second
	// requeueInterval is how often events are looked for that never came into the queue.
	requeueInterval = 10 * time.Minute
	// standby is how often a replica that does not seal looks whether it should.
	standby = 5 * time.Second
)

// Config is what a Signer stands on. DB is connected as the signer's role.
type Config struct {
	DB    *postgres.DB
	Keys  checkpoint.Keys
	Sinks []Sink
	// Interval is the time between batches while there are events; default one second.
	Interval time.Duration
	// InspectInterval is the time between looks over the whole log; default one day.
	InspectInterval time.Duration
	Now             func() time.Time
	Log             zerolog.Logger
}

// Signer is safe for concurrent use.
type Signer struct {
	db           *postgres.DB
	keys         checkpoint.Keys
	sinks        []Sink
	interval     time.Duration
	inspectEvery time.Duration
	now          func() time.Time
	log          zerolog.Logger

	mu     sync.Mutex // guards the rest
	status Status
	// published is the newest checkpoint that each sink took from this process.
	published map[string]checkpoint.Checkpoint
	// newest is the newest checkpoint that this process signed: one more memory beside the sinks'.
	newest checkpoint.Checkpoint
}

// Status is how the signer does, for health and metrics.
type Status struct {
	// Leading is true where this replica seals.
	Leading bool
	// Problem is why nothing is signed, nil where all is well; Stopped is true where people must act.
	Problem error
	Stopped bool
	// Unpublished are the sinks that did not take the newest checkpoint.
	Unpublished []string
	// Inspection is this replica's newest look over the whole log; its time is zero where there was none yet.
	Inspection Inspection
}

// New checks the configuration; it does no I/O.
func New(config Config) (*Signer, error) {
	if config.DB == nil || len(config.Keys.Signers) == 0 {
		return nil, errors.New("signer: a database and a signing key are needed")
	}
	if config.Interval == 0 {
		config.Interval = time.Second
	}
	if config.InspectInterval == 0 {
		config.InspectInterval = 24 * time.Hour
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Signer{db: config.DB, keys: config.Keys, sinks: config.Sinks, interval: config.Interval, inspectEvery: config.InspectInterval, now: config.Now, log: config.Log,
		published: map[string]checkpoint.Checkpoint{}}, nil
}

// Status tells how the signer does.
func (s *Signer) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Run seals while this replica is the one that does, until ctx ends.
func (s *Signer) Run(ctx context.Context) {
	loop.Persist(ctx, nil, standby, func() error {
		err := s.lead(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.Warn().Err(err).Msg("Sealing the audit log was interrupted and will begin again")
		}
		return err
	})
}

// lead seals as long as the lock on sealing is held; it returns at once where another replica holds it.
func (s *Signer) lead(ctx context.Context) error {
	lock, err := s.db.TryLock(ctx, "audit signer")
	if err != nil || lock == nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	s.setLeading(true)
	defer s.setLeading(false)
	if err := s.requeue(ctx, time.Time{}); err != nil {
		return err
	}
	inspecting, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); s.inspections(inspecting) }()
	defer func() { stop(); <-ended }()
	looked := s.now()
	for ctx.Err() == nil {
		if now := s.now(); now.Sub(looked) > requeueInterval {
			if err := s.requeue(ctx, looked.Add(-requeueInterval)); err != nil {
				return err
			}
			looked = now
		}
		// A lock ends with its connection: then another replica may seal already.
		if err := lock.Held(ctx); err != nil {
			return err
		}
		if more, err := s.Seal(ctx); err == nil && more {
			continue
		}
		loop.Pause(ctx, s.interval)
	}
	return nil
}

// requeue finds events that never came into the queue: its trigger was off, with the rights of an owner.
func (s *Signer) requeue(ctx context.Context, since time.Time) error {
	n, err := s.db.Requeue(ctx, since)
	if n > 0 {
		s.log.Error().Int64("events", n).Msg("Events of the audit log were not queued for sealing; they are sealed now: somebody changed the queue or its trigger")
	}
	return err
}

func (s *Signer) setLeading(leading bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Leading = leading
}

// Seal seals one batch, if there are events to seal, and publishes the newest checkpoint where it is not yet; more says
// that further events wait. The error is also in Status, and what people must mend stands in the log once.
func (s *Signer) Seal(ctx context.Context) (more bool, err error) {
	newest, more, err := s.seal(ctx)
	if err == nil && newest.Size > 0 {
		s.publish(ctx, newest)
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	return more, errors.Join(err, s.tell(ctx, err))
}

// tell keeps the status, and writes into the audit log when sealing stops for people to mend, and when it goes on.
func (s *Signer) tell(ctx context.Context, problem error) error {
	s.mu.Lock()
	stopped, before := problem != nil && Stops(problem), s.status.Stopped
	said := s.status.Problem
	s.status.Problem, s.status.Stopped = problem, stopped
	s.mu.Unlock()
	if problem != nil && (said == nil || said.Error() != problem.Error()) {
		s.log.Error().Err(problem).Bool("stopped", stopped).Msg("The audit log is not signed")
	}
	if stopped == before {
		return nil
	}
	event := audit.Event{Time: s.now(), Actor: audit.BySigner(), Action: audit.SealingResumed, Subject: s.subject(), Outcome: audit.Accepted}
	if stopped {
		event.Action, event.Outcome, event.Detail = audit.SealingStopped, audit.Failed, audit.Detail{audit.Word("problem", wordOf(problem))}
	}
	return s.db.Append(ctx, event)
}

// subject is the log that the signer signs, as events about it name it.
func (s *Signer) subject() audit.Subject { return audit.OfLog(audit.LogName(s.keys.Name)) }

func wordOf(problem error) audit.Problem {
	switch {
	case errors.Is(problem, ErrWentBack):
		return audit.ProblemWentBack
	case errors.Is(problem, ErrDiverged):
		return audit.ProblemDiverged
	case errors.Is(problem, ErrForeignStatement):
		return audit.ProblemForeignStatement
	default:
		return audit.ProblemTreeDamaged
	}
}

// seal returns the newest checkpoint that the database has then.
func (s *Signer) seal(ctx context.Context) (newest checkpoint.Signed, more bool, err error) {
	published, err := s.remember(ctx)
	if err != nil {
		return newest, false, err
	}
	err = s.db.Txn(ctx, func(ctx context.Context) error {
		newest, more, err = s.batch(ctx, published)
		return err
	})
	if err != nil {
		return checkpoint.Signed{}, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if newest.Compare(s.newest) > 0 {
		s.newest = newest.Checkpoint
	}
	return newest, more, nil
}

// batch is one transaction of sealing, which looks again under the lock.
func (s *Signer) batch(ctx context.Context, published []remembered) (newest checkpoint.Signed, more bool, err error) {
	if err := s.db.LockTree(ctx); err != nil {
		return newest, false, err
	}
	state, err := s.db.TreeState(ctx)
	if err != nil {
		return newest, false, err
	}
	newest = checkpoint.Signed{Checkpoint: state.Newest, Note: state.Note, At: s.now()}
	for _, p := range published {
		if err := judge(ctx, state, p, s.rootAt); err != nil {
			return newest, false, err
		}
	}
	if err := s.checkNote(state); err != nil {
		return newest, false, err
	}
	if err := s.announceKeys(ctx); err != nil {
		return newest, false, err
	}
	pending, err := s.db.PendingEvents(ctx, state.EpochEvent, batchMost)
	if err != nil || len(pending) == 0 {
		return newest, false, err
	}
	if err := s.checkStatements(ctx, state, pending); err != nil {
		return newest, false, err
	}
	ids, leaves, err := s.leaves(ctx, pending)
	if err != nil || len(ids) == 0 {
		return newest, true, err
	}
	grown, err := tree.Append(ctx, state.Size, leaves, s.db.TreeNodes)
	if err != nil {
		return newest, false, err
	}
	if err := checkBefore(state, grown.Before); err != nil {
		return newest, false, err
	}
	if err := s.db.Grow(ctx, ids, grown); err != nil {
		return newest, false, err
	}
	newest = checkpoint.Signed{Checkpoint: checkpoint.Checkpoint{Epoch: state.Epoch, Size: grown.Size, Root: grown.Root}, At: s.now()}
	if newest.Note, err = checkpoint.Sign(s.keys.Name, newest.Checkpoint, s.keys.Signers...); err != nil {
		return newest, false, err
	}
	return newest, len(pending) == batchMost, s.db.PutCheckpoint(ctx, newest.Checkpoint, newest.Note, newest.At)
}

func (s *Signer) rootAt(ctx context.Context, size int64) (tlog.Hash, error) {
	return tree.Root(ctx, size, s.db.TreeNodes)
}

// checkBefore holds the tree that is about to be built upon against the checkpoint in the database itself. The first
// batch of an epoch builds on what survived, which no checkpoint covers; the first epoch's builds on nothing.
func checkBefore(state postgres.TreeState, before tlog.Hash) error {
	if state.Newest.Epoch != state.Epoch && (state.Epoch > 1 || state.Size == 0) {
		return nil
	}
	if state.Newest.Size != state.Size || state.Newest.Root != before {
		return fmt.Errorf("%w: its %d leaves are not those of the newest checkpoint, of %d events", postgres.ErrTreeDamaged, state.Size, state.Newest.Size)
	}
	return nil
}

// leaves hashes the events of a batch. An event that is queued and gone from the log was taken out of it with the rights
// of an owner: that is an event of its own.
func (s *Signer) leaves(ctx context.Context, pending []postgres.PendingEvent) (ids []uuid.UUID, leaves []tlog.Hash, err error) {
	var missing []uuid.UUID
	var events []audit.Event
	for _, p := range pending {
		if p.Body == nil {
			missing = append(missing, p.ID)
			events = append(events, audit.Event{Time: s.now(), Actor: audit.BySigner(), Action: audit.EventMissing, Subject: audit.OfEvent(p.ID), Outcome: audit.Failed})
			continue
		}
		ids, leaves = append(ids, p.ID), append(leaves, tree.LeafHash(p.Body))
	}
	if len(missing) == 0 {
		return ids, leaves, nil
	}
	s.log.Error().Int("events", len(missing)).Msg("Events were deleted from the audit log before they were sealed")
	if err := s.db.Append(ctx, events...); err != nil {
		return nil, nil, err
	}
	return ids, leaves, s.db.ForgetPending(ctx, missing)
}

// announceKeys puts a change of the signing keys into the log, with the first batch that they sign.
func (s *Signer) announceKeys(ctx context.Context) error {
	present := strings.Join(s.keys.Public, "\n")
	if known, err := s.db.SigningKeys(ctx); err != nil || known == present {
		return err
	}
	keys := make([]audit.VerifierKey, len(s.keys.Public))
	for i, text := range s.keys.Public {
		key, err := audit.ParseVerifierKey(text)
		if err != nil {
			return fmt.Errorf("reading the log's public keys: %w", err)
		}
		keys[i] = key
	}
	ids, err := s.db.AppendAll(ctx, []audit.Event{{Time: s.now(), Actor: audit.BySigner(), Action: audit.SigningKeysChanged, Subject: s.subject(),
		Outcome: audit.Accepted, Detail: audit.Detail{audit.VerifierKeys("keys", keys)}}})
	if err != nil {
		return err
	}
	return s.db.PutSigningKeys(ctx, ids[0], present)
}
