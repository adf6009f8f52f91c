package tamper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/tree"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/company"
	"github.com/keyherald/keyherald/postgres"
)

// resign is what becomes of the checkpoints where the tree is written anew.
type resign int

const (
	leaveCheckpoints resign = iota
	signWithAnother
	signWithTheKey
)

// rewrite alters events and computes every hash of the tree anew, and the checkpoints as how says.
func (c *copied) rewrite(ctx context.Context, how resign, alter ...string) error {
	return c.tamper(ctx, func(ctx context.Context) error {
		if err := c.run(ctx, alter...); err != nil {
			return err
		}
		grown, err := c.regrow(ctx)
		if err != nil {
			return err
		}
		keys := c.keys
		switch how {
		case leaveCheckpoints:
			return nil
		case signWithAnother:
			if _, keys, err = c.freshKey(); err != nil {
				return err
			}
		}
		return c.forgeCheckpoints(ctx, keys, grown)
	})
}

// regrow writes leaves and nodes anew, over the events in the order that they have.
func (c *copied) regrow(ctx context.Context) (tree.Grown, error) {
	var ids []uuid.UUID
	var leaves []tlog.Hash
	for record, err := range c.super.Leaves(ctx, 0, c.size) {
		if err != nil {
			return tree.Grown{}, err
		}
		ids, leaves = append(ids, record.ID), append(leaves, tree.LeafHash(record.Body))
	}
	grown, err := tree.Append(ctx, 0, leaves, nil)
	if err != nil {
		return grown, err
	}
	if err := c.run(ctx, `DELETE FROM audit_node`, `DELETE FROM audit_leaf`); err != nil {
		return grown, err
	}
	return grown, c.super.Grow(ctx, ids, grown)
}

// forgeCheckpoints signs a checkpoint for every size that there was one for.
func (c *copied) forgeCheckpoints(ctx context.Context, keys checkpoint.Keys, grown tree.Grown) error {
	forged, err := c.super.CheckpointsBetween(ctx, 0, grown.Size)
	if err != nil {
		return err
	}
	if err := c.run(ctx, `DELETE FROM audit_checkpoint`); err != nil {
		return err
	}
	stored := map[tree.Node]tlog.Hash{}
	for _, node := range grown.Added {
		stored[tree.Node{Level: node.Level, N: node.N}] = node.Hash
	}
	read := func(_ context.Context, nodes []tree.Node) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(nodes))
		for i, node := range nodes {
			var ok bool
			if hashes[i], ok = stored[node]; !ok {
				return nil, fmt.Errorf("there is no node %d of level %d", node.N, node.Level)
			}
		}
		return hashes, nil
	}
	for _, signed := range forged {
		of := signed.Checkpoint
		if of.Root, err = tree.Root(ctx, of.Size, read); err != nil {
			return err
		}
		note, err := checkpoint.Sign(company.LogName, of, keys.Signers...)
		if err != nil {
			return err
		}
		if err := c.super.PutCheckpoint(ctx, of, note, signed.At); err != nil {
			return err
		}
	}
	return nil
}

// forgeAndLose writes the tree anew with the key, and declares a loss to have it signed on.
func (c *copied) forgeAndLose(ctx context.Context, alter string) error {
	if err := c.rewrite(ctx, signWithTheKey, alter); err != nil {
		return err
	}
	return c.acceptLoss(ctx)
}

// acceptLoss declares a loss as an operator does, and goes on signing.
func (c *copied) acceptLoss(ctx context.Context) error {
	if _, err := c.operate(ctx, "audit", "accept-loss", "--reason", "the disk failed"); err != nil {
		return err
	}
	return c.mustSeal(ctx, c.keys)
}

// restoreAndDeclare is what an honest operator does after he lost the database.
func (c *copied) restoreAndDeclare(ctx context.Context) error {
	if err := c.restore(ctx); err != nil {
		return err
	}
	if _, err := c.operate(ctx, "restore", "--reason", "the disk failed"); err != nil {
		return err
	}
	return c.mustSeal(ctx, c.keys)
}

// restoreAndForget restores, makes the sink forget, and lets the log grow beyond what was lost.
func (c *copied) restoreAndForget(ctx context.Context) error {
	if err := errors.Join(c.restore(ctx), c.emptySink()); err != nil {
		return err
	}
	events := make([]audit.Event, c.harness.size-c.size)
	for i := range events {
		events[i] = audit.Event{Time: time.Now(), Actor: keyheraldtest.Admin(), Action: audit.TriggersThawed, Subject: audit.OfTriggers(), Outcome: audit.Accepted}
	}
	if err := errors.Join(c.append(ctx, events...), c.mustSeal(ctx, c.keys)); err != nil {
		return err
	}
	return c.resetSink()
}

// restoreAndDeclareLess restores, and declares only a part of the loss: the sink was made to forget the rest.
func (c *copied) restoreAndDeclareLess(ctx context.Context) error {
	all, err := c.super.CheckpointsBetween(ctx, 0, c.size)
	if err != nil {
		return err
	}
	if err := c.restore(ctx); err != nil {
		return err
	}
	for _, signed := range all {
		if signed.Size > c.size && signed.Size < c.harness.size {
			return errors.Join(c.remember(signed.Note), c.acceptLoss(ctx))
		}
	}
	return fmt.Errorf("there is no checkpoint between the backup's %d events and the log's %d", c.size, c.harness.size)
}

// remember makes the sink remember another checkpoint as its newest.
func (c *copied) remember(note string) error {
	return os.WriteFile(filepath.Join(c.path(c.file(sinkDir)), "latest"), []byte(note), 0o600)
}

// redact redacts the detail of the victim as it should be.
func (c *copied) redact(ctx context.Context) error {
	id, err := c.idAt(ctx, c.victim)
	if err != nil {
		return err
	}
	if _, err := c.operate(ctx, "audit", "redact", id, "--reason", "it named somebody"); err != nil {
		return err
	}
	return c.mustSeal(ctx, c.keys)
}

// redactAndPutBack redacts, and then puts another detail in its place.
func (c *copied) redactAndPutBack(ctx context.Context) error {
	if err := c.redact(ctx); err != nil {
		return err
	}
	return c.exec(ctx, fmt.Sprintf(`INSERT INTO audit_detail SELECT %s, salt, detail FROM audit_detail WHERE event_id = %s`, leafID(c.victim), leafID(c.victim+1)))
}

// changeKeys replaces the signing key as docs/audit-log.md says: both sign, then the new one alone.
func (c *copied) changeKeys(ctx context.Context) error {
	file, _, err := c.freshKey()
	if err != nil {
		return err
	}
	for _, files := range [][]string{{file, keyFile}, {file}} {
		if err := c.configure(files...); err != nil {
			return err
		}
		keys, err := checkpoint.LoadKeys(company.LogName, c.paths(files)...)
		if err != nil {
			return err
		}
		c.present = keys
		if err := c.mustSeal(ctx, keys); err != nil {
			return err
		}
	}
	return nil
}

func (c *copied) paths(files []string) []string {
	paths := make([]string, len(files))
	for i, file := range files {
		paths[i] = c.path(file)
	}
	return paths
}

// takeOver goes on under a key of somebody else's, as his own signer would: an event that announces the key, its leaf, and
// a checkpoint that the key signs.
func (c *copied) takeOver(ctx context.Context) error {
	_, keys, err := c.freshKey()
	if err != nil {
		return err
	}
	announced, err := announcement(keys)
	if err != nil {
		return err
	}
	return c.tamper(ctx, func(ctx context.Context) error {
		ids, err := c.super.AppendAll(ctx, []audit.Event{announced})
		if err != nil {
			return err
		}
		record, _, err := c.super.Event(ctx, ids[0])
		if err != nil {
			return err
		}
		grown, err := tree.Append(ctx, c.size, []tlog.Hash{tree.LeafHash(record.Body)}, c.super.TreeNodes)
		if err != nil {
			return err
		}
		of := checkpoint.Checkpoint{Epoch: 1, Size: grown.Size, Root: grown.Root}
		note, err := checkpoint.Sign(company.LogName, of, keys.Signers...)
		if err != nil {
			return err
		}
		return errors.Join(c.super.Grow(ctx, ids, grown), c.super.PutCheckpoint(ctx, of, note, time.Now()))
	})
}

// announcement is the event that a log is signed by these keys from now on.
func announcement(keys checkpoint.Keys) (audit.Event, error) {
	public := make([]audit.VerifierKey, len(keys.Public))
	for i, text := range keys.Public {
		var err error
		if public[i], err = audit.ParseVerifierKey(text); err != nil {
			return audit.Event{}, err
		}
	}
	return audit.Event{Time: time.Now(), Actor: audit.BySigner(), Action: audit.SigningKeysChanged, Subject: audit.OfLog(company.LogName), Outcome: audit.Accepted,
		Detail: audit.Detail{audit.VerifierKeys("keys", public)}}, nil
}

// smuggleKey appends, as everybody may who has the writer's role, that the log is signed by a key of somebody else's from
// now on. Were it sealed, what that key signs would count.
func (c *copied) smuggleKey(ctx context.Context) error {
	_, keys, err := c.freshKey()
	if err != nil {
		return err
	}
	announced, err := announcement(keys)
	if err != nil {
		return err
	}
	return c.append(ctx, announced)
}

// append appends events as the writer.
func (c *copied) append(ctx context.Context, events ...audit.Event) error {
	writer, err := postgres.Open(ctx, c.database.WriterURL)
	if err != nil {
		return err
	}
	return errors.Join(writer.Append(ctx, events...), writer.Close())
}

// deletePending deletes an event in the moment before it is sealed, and returns its id.
func (c *copied) deletePending(ctx context.Context) (string, error) {
	writer, err := postgres.Open(ctx, c.database.WriterURL)
	if err != nil {
		return "", err
	}
	defer func() { _ = writer.Close() }()
	ids, err := writer.AppendAll(ctx, []audit.Event{{Time: time.Now(), Actor: keyheraldtest.Admin(), Action: audit.TriggersFrozen, Subject: audit.OfTriggers(), Outcome: audit.Accepted}})
	if err != nil {
		return "", err
	}
	id := ids[0].String()
	return id, c.exec(ctx, `DELETE FROM audit_detail WHERE event_id = '`+id+`'`, `DELETE FROM audit_event WHERE id = '`+id+`'`)
}
