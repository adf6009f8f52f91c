package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/postgres"
)

// auditTools are what a command that reads the log stands on. It reads as the auditor, where the configuration has that
// role's URL, and appends as the writer that it read. They are connections apart, also where the role is the same: what
// is appended must not join a transaction that reads.
type auditTools struct {
	config      config
	read, write *postgres.DB
}

func withAuditTools(ctx context.Context, load func() (config, error), do func(*auditTools) error) (err error) {
	c, err := load()
	if err != nil {
		return err
	}
	t := &auditTools{config: c}
	if t.write, err = openDatabase(ctx, c); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.write.Close()) }()
	urlFile := c.Database.AuditorURLFile
	if urlFile == "" {
		urlFile = c.Database.URLFile
	}
	url, err := readFile(urlFile)
	if err != nil {
		return err
	}
	if t.read, err = postgres.Open(ctx, url); err != nil {
		return fmt.Errorf("connecting as the auditor: %w", err)
	}
	defer func() { err = errors.Join(err, t.read.Close()) }()
	return do(t)
}

// replicaLag is how long the database that is read may take to have what the writer appended: it may be a replica.
const replicaLag = 10 * time.Second

// record appends that the log is read or exported, before anything of it is put out: without the event there is no
// output. ctx is not one of a transaction that reads.
func (t *auditTools) record(ctx context.Context, action audit.Action, command audit.Command, asked ...audit.Field) error {
	ids, err := t.write.AppendAll(ctx, []audit.Event{{Time: time.Now(), Actor: localActor(), Action: action, Subject: audit.OfLog(audit.LogName(t.logName())), Outcome: audit.Accepted,
		Detail: append(audit.Detail{audit.Word("command", command)}, asked...)}})
	if err != nil {
		return fmt.Errorf("the log is not read, since that could not be recorded in it: %w", err)
	}
	// What is read must be the log that the event is in.
	for deadline := time.Now().Add(replicaLag); ; {
		if has, err := t.read.HasEvent(ctx, ids[0]); err != nil || has {
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

// logName is what events about the log have as their subject.
func (t *auditTools) logName() string {
	if t.config.Audit.on() {
		return t.config.Audit.Name
	}
	return "audit_log"
}

// verifiers are the keys that sign now, as their public halves.
func (t *auditTools) verifiers() (checkpoint.Keys, error) {
	if !t.config.Audit.on() {
		return checkpoint.Keys{}, errUnsigned
	}
	return checkpoint.LoadVerifierKeys(t.config.Audit.Name, t.config.Audit.SigningKeyFiles...)
}

var errUnsigned = errors.New("the configuration has no audit section, so this log is not signed: config.example.yaml shows one")

// exitError ends the program with a code of its own.
type exitError struct {
	code int
	text string
}

func (e exitError) Error() string { return e.text }

// exitCode is what the program ends with after an error.
func exitCode(err error) int {
	var exit exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	return 1
}

// eventKey reads an argument: an event's id, or its leaf index.
func (t *auditTools) eventKey(ctx context.Context, text string) (record audit.Record, err error) {
	if key, parseErr := uuid.Parse(text); parseErr == nil {
		record, ok, err := t.read.Event(ctx, key)
		if err == nil && !ok {
			err = fmt.Errorf("there is no event %s: `keyherald audit list` shows their ids", key)
		}
		return record, err
	}
	index, err := leafIndex(text)
	if err != nil {
		return record, fmt.Errorf("%q is neither the id of an event nor a leaf index: `keyherald audit list` shows both", text)
	}
	page, err := t.read.LeavesBetween(ctx, index, index+1)
	if err == nil && len(page) == 0 {
		err = fmt.Errorf("there is no leaf %d yet", index)
	}
	if err != nil {
		return record, err
	}
	return page[0], nil
}

// leafIndex reads a leaf index.
func leafIndex(text string) (int64, error) {
	index, err := strconv.ParseInt(text, 10, 64)
	if err != nil || index < 0 || strconv.FormatInt(index, 10) != text {
		return 0, fmt.Errorf("%q is no leaf index: write a number from 0 on", text)
	}
	return index, nil
}

// plain keeps what others wrote from steering the terminal: control and format characters are shown as their codes.
func plain(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			fmt.Fprintf(&b, "\\u%04x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// tool makes a command that reads the log.
func tool(load func() (config, error), use, short string, args cobra.PositionalArgs, run func(cmd *cobra.Command, t *auditTools, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
		return withAuditTools(cmd.Context(), load, func(t *auditTools) error { return run(cmd, t, args) })
	}}
}
