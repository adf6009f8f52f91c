package tamper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/company"
	"github.com/keyherald/keyherald/postgres"
)

// What the company's configuration names.
const (
	configFile = "config.yaml"
	keyFile    = "audit.key"
	sinkDir    = "checkpoints"
)

// copied is what a case works on: a copy of the database and of the sink, with a configuration that leads to both.
type copied struct {
	*harness
	// dir is the case's own directory, relative to the company's.
	dir      string
	database *keyheraldtest.Database
	super    *postgres.DB
	// size is how many events are sealed in the copy as it was made.
	size int64
	// present are the keys that sign by now, and pendingGone the event that was deleted before it was sealed.
	present     checkpoint.Keys
	pendingGone string
}

// copy makes the copy for case number n.
func (h *harness) copy(ctx context.Context, n int) (c *copied, err error) {
	c = &copied{harness: h, dir: fmt.Sprintf("case-%02d", n), size: h.size, present: h.keys}
	if c.database, err = h.Postgres.Copy(ctx, h.Database); err != nil {
		return nil, err
	}
	if c.super, err = postgres.Open(ctx, c.database.SuperURL); err != nil {
		return nil, errors.Join(err, h.Postgres.Drop(ctx, c.database))
	}
	return c, errors.Join(c.write("owner.url", c.database.OwnerURL), c.write("writer.url", c.database.WriterURL), c.write("signer.url", c.database.SignerURL),
		c.write("auditor.url", c.database.AuditorURL), c.resetSink(), c.configure(keyFile))
}

func (c *copied) close(ctx context.Context) error {
	return errors.Join(c.super.Close(), c.Postgres.Drop(ctx, c.database), os.RemoveAll(c.path(c.dir)))
}

func (c *copied) write(name, content string) error {
	return c.Write(filepath.Join(c.dir, name), content)
}

// file is a file of the case, relative to the company's directory.
func (c *copied) file(name string) string { return filepath.Join(c.dir, name) }

// resetSink makes the case's sink what the company's remembers.
func (c *copied) resetSink() error {
	return errors.Join(c.emptySink(), os.CopyFS(c.path(c.file(sinkDir)), os.DirFS(c.path(sinkDir))))
}

func (c *copied) emptySink() error { return os.RemoveAll(c.path(c.file(sinkDir))) }

// configure writes the case's configuration: the company's, on the copy and its sink. Key files are relative to the
// company's directory; the first is the present key.
func (c *copied) configure(keyFiles ...string) error {
	raw, err := os.ReadFile(c.path(configFile))
	if err != nil {
		return err
	}
	text := string(raw)
	for _, replaced := range [][2]string{
		{"{url_file: writer.url", "{url_file: " + c.file("writer.url")}, {"owner_url_file: owner.url", "owner_url_file: " + c.file("owner.url")},
		{"signer_url_file: signer.url", "signer_url_file: " + c.file("signer.url")}, {"auditor_url_file: auditor.url", "auditor_url_file: " + c.file("auditor.url")},
		{"path: " + sinkDir, "path: " + c.file(sinkDir)}, {"[" + keyFile + "]", "[" + strings.Join(keyFiles, ", ") + "]"},
	} {
		if strings.Count(text, replaced[0]) != 1 {
			return fmt.Errorf("the company's configuration has not %q once: it has another form by now", replaced[0])
		}
		text = strings.Replace(text, replaced[0], replaced[1], 1)
	}
	return c.Write(c.configFile(), text)
}

func (c *copied) configFile() string { return c.dir + ".yaml" }

// operate runs a command of keyherald on the copy.
func (c *copied) operate(ctx context.Context, args ...string) (string, error) {
	return c.Keyherald(ctx, append(args, "-c", c.configFile())...)
}

// tamper runs do in a transaction of a superuser with every trigger and foreign key off.
func (c *copied) tamper(ctx context.Context, do func(ctx context.Context) error) error {
	return c.super.Txn(ctx, func(ctx context.Context) error {
		// The role of a replica turns off foreign keys, and the other triggers but those that fire always.
		if _, err := c.super.Exec(ctx, `SET LOCAL session_replication_role = replica`); err != nil {
			return err
		}
		back, err := c.triggersOff(ctx)
		if err != nil {
			return err
		}
		if err := do(ctx); err != nil {
			return err
		}
		for _, statement := range back {
			if _, err := c.super.Exec(ctx, statement); err != nil {
				return fmt.Errorf("%s: %w", statement, err)
			}
		}
		return nil
	})
}

// triggersOff switches off the triggers of the log's tables, and returns the statements that switch them on again.
func (c *copied) triggersOff(ctx context.Context) (back []string, err error) {
	rows, err := c.super.Query(ctx, `SELECT format('ALTER TABLE %s DISABLE TRIGGER %I', tgrelid::regclass, tgname), format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', tgrelid::regclass, tgname)
		FROM pg_trigger WHERE NOT tgisinternal AND tgenabled = 'A' AND tgrelid::regclass::text LIKE 'audit\_%'`)
	if err != nil {
		return nil, err
	}
	var away []string
	for rows.Next() {
		var off, on string
		if err := rows.Scan(&off, &on); err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		away, back = append(away, off), append(back, on)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, err
	}
	if len(away) == 0 {
		return nil, errors.New("the log's tables have no triggers: then there is nothing to switch off")
	}
	for _, statement := range away {
		if _, err := c.super.Exec(ctx, statement); err != nil {
			return nil, fmt.Errorf("%s: %w", statement, err)
		}
	}
	return back, nil
}

// exec tampers by statements, each of which must alter something.
func (c *copied) exec(ctx context.Context, statements ...string) error {
	return c.tamper(ctx, func(ctx context.Context) error { return c.run(ctx, statements...) })
}

// run is exec within tamper.
func (c *copied) run(ctx context.Context, statements ...string) error {
	for _, statement := range statements {
		result, err := c.super.Exec(ctx, statement)
		if err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return errors.Join(fmt.Errorf("the attack altered nothing: %s", statement), err)
		}
	}
	return nil
}

// restore puts the copy back to the backup.
func (c *copied) restore(ctx context.Context) error {
	if err := errors.Join(c.super.Close(), c.Postgres.Restore(ctx, c.database, c.dump)); err != nil {
		return err
	}
	var err error
	if c.super, err = postgres.Open(ctx, c.database.SuperURL); err != nil {
		return err
	}
	state, err := c.super.TreeState(ctx)
	if err == nil && (state.Size < c.early || state.Size >= c.harness.size) {
		err = fmt.Errorf("the backup has %d events: it is to lose some of %d, and none of the first %d", state.Size, c.harness.size, c.early)
	}
	c.size = state.Size
	return err
}

// leafID is the id of the event at a leaf, as an SQL expression.
func leafID(leaf int64) string {
	return fmt.Sprintf(`(SELECT event_id FROM audit_leaf WHERE leaf_index = %d)`, leaf)
}

// idAt is the id of the event at a leaf.
func (c *copied) idAt(ctx context.Context, leaf int64) (id string, err error) {
	err = c.super.QueryRow(ctx, `SELECT event_id FROM audit_leaf WHERE leaf_index = $1`, leaf).Scan(&id)
	return id, err
}

// freshKey makes another key for the log, and returns its file and the keys.
func (c *copied) freshKey() (file string, keys checkpoint.Keys, err error) {
	file = c.file("another.key")
	if _, err := checkpoint.WriteKeys(c.path(file), company.LogName); err != nil {
		return "", keys, err
	}
	keys, err = checkpoint.LoadKeys(company.LogName, c.path(file))
	return file, keys, err
}
