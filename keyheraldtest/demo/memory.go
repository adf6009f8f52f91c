package demo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/bench"
	"github.com/keyherald/keyherald/keyheraldtest/company"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
)

// BenchMemory opens n rotations of n users at a running server, has it work through them all, and returns the most
// resident memory it was seen with, in MB, beside what it had before.
func BenchMemory(ctx context.Context, config Config, n int) (row bench.Row, err error) {
	w, err := build(ctx, config, screen{out: config.Out, color: config.Color})
	if w != nil {
		defer func() { err = errors.Join(err, w.Close()) }()
	}
	if err != nil {
		return row, err
	}
	idle, err := w.resident(ctx)
	if err != nil {
		return row, err
	}
	engine, err := relay.New(relay.Config{DB: w.DB, BotUserID: id.NewUserID(company.BotName, keyheraldtest.ServerName), BotMasterKey: "not asked for"})
	if err != nil {
		return row, err
	}
	if err := openMany(ctx, engine, n); err != nil {
		return row, err
	}
	// The storm limit held nearly all of them: released, they are all due at once.
	if _, err := engine.Release(ctx, nil, keyheraldtest.Admin()); err != nil {
		return row, err
	}
	most := idle
	err = keyheraldtest.Until(ctx, 5*time.Minute, func() error {
		now, err := w.resident(ctx)
		if err != nil {
			return err
		}
		most = max(most, now)
		due, err := w.DB.DueRotations(ctx, time.Now(), time.Minute, [16]byte{}, 1)
		if err == nil && len(due) > 0 {
			err = errors.New("rotations are still due")
		}
		return err
	})
	if err != nil {
		return row, err
	}
	open, err := openRotations(ctx, w.DB)
	if err != nil {
		return row, err
	}
	if open != n {
		return row, fmt.Errorf("%d rotations are open, and %d were opened", open, n)
	}
	return bench.Compare(fmt.Sprintf("memory/%d", n), "MB", bench.Less, []float64{most}, map[string][]float64{"idle": {idle}}), nil
}

// openMany has the KMS tell of a new key of n users, some at once.
func openMany(ctx context.Context, engine *relay.Engine, n int) error {
	const at = 8
	failed := make(chan error, at)
	var senders sync.WaitGroup
	for sender := range at {
		senders.Go(func() {
			for i := sender; i < n; i += at {
				name := fmt.Sprintf("somebody%d", i)
				_, err := engine.Accept(ctx, intake.Notification{Source: "corporate-kms", ID: name, User: id.NewUserID(name, keyheraldtest.ServerName).String(),
					Secret: protocol.SecretMegolmBackup, KMS: "corporate", Path: "keyherald/" + name + "/backup-key", Version: "1"})
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	senders.Wait()
	close(failed)
	return <-failed
}

func openRotations(ctx context.Context, db *postgres.DB) (open int, err error) {
	err = db.QueryRow(ctx, `SELECT COUNT(*) FROM rotation WHERE ended_at IS NULL`).Scan(&open)
	return open, err
}

// resident is the server's resident memory in MB, as its own metrics say.
func (w *World) resident(ctx context.Context) (float64, error) {
	bytes, err := w.metric(ctx, "process_resident_memory_bytes")
	if err == nil && bytes == 0 {
		err = errors.New("the metrics do not tell the resident memory")
	}
	return bytes / 1e6, err
}
