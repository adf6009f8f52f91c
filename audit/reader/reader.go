// Package reader reads the audit log for somebody: an account on the server's machine, or a caller of the API. Nothing is put
// out before the event that says so is in the log: where it cannot be appended, nothing is read.
package reader

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
)

// Config is what a Reader stands on.
type Config struct {
	// Read has the rights that the log is read with, such as the auditor's, and Write appends. They may be the same. What is
	// appended must not join a transaction that reads, so no method takes the context of one.
	Read, Write *postgres.DB
	// Name is the log's name; empty where it is not sealed.
	Name string
	// Keys are the public halves of the keys that sign now. They are asked for where something is verified alone, since who
	// lists events need not have them.
	Keys func() (checkpoint.Keys, error)
	// Sinks are where copies of the checkpoints go.
	Sinks []Sink
	// SealInterval is the time between batches of the signer.
	SealInterval time.Duration
	Now          func() time.Time
}

// Reader reads one log.
type Reader struct{ Config }

// New fills in what is not there: without keys nothing is verified.
func New(config Config) (*Reader, error) {
	if config.Read == nil || config.Write == nil {
		return nil, errors.New("reader: a database to read and one to append to are needed")
	}
	if config.Keys == nil {
		config.Keys = func() (checkpoint.Keys, error) { return checkpoint.Keys{}, ErrUnsigned }
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Reader{config}, nil
}

// ErrUnsigned is what cannot be done with a log that nobody signs.
var ErrUnsigned = refusal.New(refusal.Conflict, "", "the configuration has no audit section, so this log is not signed: config.example.yaml shows one")

// unnamed is what a log is called that is not sealed.
const unnamed = "audit_log"

// LogName is what events about the log have as their subject.
func (r *Reader) LogName() string {
	if r.Name == "" {
		return unnamed
	}
	return r.Name
}

// Reading is what somebody reads, as the log keeps it.
type Reading struct {
	By      audit.Actor
	Action  audit.Action
	Command audit.Command
	// Rotation is the one that is watched, if any.
	Rotation uuid.UUID
	Asked    []audit.Field
}

// replicaLag is how long the database that is read may take to have what the writer appended: it may be a replica.
const replicaLag = 10 * time.Second

// Record appends that the log is read or exported, before anything of it is put out: without the event there is no output.
func (r *Reader) Record(ctx context.Context, reading Reading) error {
	ids, err := r.Write.AppendAll(ctx, []audit.Event{{Time: r.Now(), Actor: reading.By, Action: reading.Action, Subject: audit.OfLog(audit.LogName(r.LogName())), Rotation: reading.Rotation,
		Outcome: audit.Accepted, Detail: append(audit.Detail{audit.Word("command", reading.Command)}, reading.Asked...)}})
	if err != nil {
		return fmt.Errorf("the log is not read, since that could not be recorded in it: %w", err)
	}
	if r.Read == r.Write {
		return nil
	}
	// What is read must be the log that the event is in.
	for deadline := time.Now().Add(replicaLag); ; {
		if has, err := r.Read.HasEvent(ctx, ids[0]); err != nil || has {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("database.auditor_url_file leads to another database than database.url_file, or to a replica that is far behind: what the writer appends does not come there")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// periodFields are a period as the log keeps it; a zero time is no bound.
func periodFields(since, until time.Time) (fields []audit.Field) {
	if !since.IsZero() {
		fields = append(fields, audit.Time("since", since))
	}
	if !until.IsZero() {
		fields = append(fields, audit.Time("until", until))
	}
	return fields
}

// Checkpoint is a signed checkpoint: the newest, or that of an epoch or a size where they are not 0. It says nothing of what
// is in the log, so that printing one is no reading of it.
func (r *Reader) Checkpoint(ctx context.Context, epoch int, size int64) (note string, err error) {
	newest, ok, err := r.Read.NewestCheckpoint(ctx, epoch)
	switch {
	case err != nil:
		return "", err
	case !ok && epoch > 0:
		return "", refusal.New(refusal.NotFound, "", "there is no checkpoint of epoch %d", epoch)
	case !ok:
		return "", refusal.New(refusal.NotFound, "", "there is no checkpoint yet: `keyherald serve` signs one about a second after the first event")
	case size == 0:
		return newest.Note, nil
	}
	around, err := r.Read.CheckpointsAround(ctx, newest.Epoch, size)
	if err != nil {
		return "", err
	}
	var sizes []string
	for _, c := range around {
		if c.Size == size {
			return c.Note, nil
		}
		sizes = append(sizes, fmt.Sprint(c.Size))
	}
	return "", refusal.New(refusal.NotFound, "", "there is no checkpoint of %d events in epoch %d; next to it are those of %s", size, newest.Epoch, strings.Join(sizes, " and "))
}
