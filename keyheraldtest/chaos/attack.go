package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/keyherald/keyherald/protocol"
)

// hit is one SIGKILL and what it interrupted: the stage of a rotation under way, or nothing.
type hit struct {
	victim, stage string
	inFlight      bool
}

// idle is the stage of a hit that interrupted nothing, received that of a rotation that no device has answered yet.
const (
	idle     = "-"
	received = "received"
)

// carryingOver is the stage of a hit while the device puts room keys into the new version.
const carryingOver = string(protocol.StageCarryingOver)

// stages are those a kill may aim at.
var stages = []string{received, received, string(protocol.StageTriggerAccepted), string(protocol.StageFetched), string(protocol.StageBackupCreated),
	string(protocol.StageRecoveryCopyWritten), carryingOver, string(protocol.StageCarriedOver)}

// attack kills on the schedule that random gives, and makes connections and answers fail in between. Everything is
// started again a moment later, as an init system does.
func (w *world) attack(ctx context.Context, random *rand.Rand, kills int, book *ledger, say func(string, ...any)) (hits []hit, faults map[string]int, err error) {
	faults = map[string]int{}
	var dump []byte
	for n := range kills {
		w.wait(ctx, time.Duration(500+random.IntN(2500))*time.Millisecond)
		if ctx.Err() != nil {
			return hits, faults, ctx.Err()
		}
		switch n {
		case kills * 2 / 5:
			if dump, err = w.pg.Dump(ctx, w.database.Name); err != nil {
				return hits, faults, err
			}
			say("the database is backed up")
		case kills * 7 / 10:
			if err := w.restore(ctx, dump, book, say); err != nil {
				return hits, faults, fmt.Errorf("restoring the database: %w", err)
			}
			faults["database restored"]++
		}
		if random.IntN(2) == 0 || w.config.LoseAnswers {
			faults[w.disturb(ctx, random)]++
		}
		h, err := w.killOne(ctx, random)
		if err != nil {
			return hits, faults, fmt.Errorf("kill %d, %s: %w", n+1, h.victim, err)
		}
		hits = append(hits, h)
		say("kill %d: %s during %s", n+1, h.victim, h.stage)
	}
	return hits, faults, nil
}

func (w *world) wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// disturb makes a connection or a server fail for a while, and returns what it was.
func (w *world) disturb(ctx context.Context, random *rand.Rand) string {
	moods := []mood{refusing, limiting, lossy, hangingUp}
	m := moods[random.IntN(len(moods))]
	span := time.Duration(300+random.IntN(1500)) * time.Millisecond
	kind := random.IntN(4)
	if w.config.LoseAnswers {
		kind, m, span = disturbHomeserver, lossy, 4*time.Second
	}
	switch kind {
	case 0:
		w.pgLink.cut()
		return "PostgreSQL's connections cut"
	case 1:
		w.pgLink.slow(time.Duration(20+random.IntN(80)) * time.Millisecond)
		w.wait(ctx, span)
		w.pgLink.slow(0)
		return "PostgreSQL slow"
	case 2:
		w.gates(ctx, w.kmsGates, m, span)
		return "KMS: " + moodNames[m]
	case disturbHomeserver:
		w.gates(ctx, w.hsGates, m, span)
	}
	return "homeserver: " + moodNames[m]
}

// gates has a server fail for all who ask it.
func (w *world) gates(ctx context.Context, gates []*gate, m mood, span time.Duration) {
	for _, gate := range gates {
		gate.set(m)
	}
	w.wait(ctx, span)
	for _, gate := range gates {
		gate.set(calm)
	}
}

const disturbHomeserver = 3

// killOne chooses a victim and a stage, waits a while for a rotation at that stage, and kills.
func (w *world) killOne(ctx context.Context, random *rand.Rand) (hit, error) {
	aim, dice, pause := stages[random.IntN(len(stages))], random.IntN(100), time.Duration(random.IntN(1500))*time.Millisecond
	if carries := dice >= 40 && dice < 75 || dice >= 88; carries && random.IntN(2) == 0 {
		aim = carryingOver // Only a fleet and the homeserver take part in it.
	}
	switch {
	case dice < 40:
		server := w.servers[dice%2]
		if dice < 25 {
			server = w.leader()
		}
		return w.killProcess(ctx, server, aim, -1)
	case dice < 75:
		fleet := dice % fleetN
		return w.killProcess(ctx, w.fleets[fleet], aim, fleet)
	case dice < 88:
		h := hit{victim: "PostgreSQL"}
		h.stage, h.inFlight = w.awaitStage(ctx, aim, -1)
		if err := w.pg.Kill(); err != nil {
			return h, err
		}
		w.wait(ctx, pause)
		return h, w.pg.Start(ctx)
	default:
		h := hit{victim: "Dendrite"}
		h.stage, h.inFlight = w.awaitStage(ctx, aim, -1)
		if err := w.hs.Kill(); err != nil {
			return h, err
		}
		w.wait(ctx, pause)
		return h, w.hs.Start(ctx)
	}
}

func (w *world) killProcess(ctx context.Context, p *process, aim string, fleet int) (hit, error) {
	h := hit{victim: strings.TrimRight(p.name, "-0123456789")}
	h.stage, h.inFlight = w.awaitStage(ctx, aim, fleet)
	if p.ended() {
		// It is just being started again after it gave up by itself: nothing to kill.
		h.stage, h.inFlight = idle, false
		return h, nil
	}
	return h, p.kill()
}

// awaitStage waits until a rotation is at the stage aimed at, or after a while at any; fleet limits it to its users.
func (w *world) awaitStage(ctx context.Context, aim string, fleet int) (stage string, inFlight bool) {
	began, patience := time.Now(), 2*time.Second
	if aim == carryingOver {
		patience = 6 * time.Second // Most rotations come to it, and it is short.
	}
	for time.Since(began) < 10*time.Second && ctx.Err() == nil {
		open := w.openStages(ctx, fleet)
		for _, stage := range open {
			if stage == aim || time.Since(began) > patience {
				return stage, true
			}
		}
		w.wait(ctx, 5*time.Millisecond)
	}
	return idle, false
}

func (w *world) openStages(ctx context.Context, fleet int) (stages []string) {
	rows, err := w.db.Query(ctx, `SELECT user_id, stage FROM rotation WHERE ended_at IS NULL ORDER BY id`)
	if err != nil {
		return nil
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var userID, stage string
		if rows.Scan(&userID, &stage) != nil {
			return nil
		}
		if stage == "" {
			stage = received
		}
		for _, u := range w.users {
			if u.id.String() == userID && (fleet < 0 || u.fleet == fleet) {
				if u.gate.carrying() {
					stage = carryingOver
				}
				stages = append(stages, stage)
			}
		}
	}
	return stages
}

// leader is the server that holds the bot, or the first if none says so.
func (w *world) leader() *process {
	client := http.Client{Timeout: time.Second}
	for i, door := range w.doors {
		resp, err := client.Get("http://" + door + "/readyz")
		if err != nil {
			continue
		}
		var body bytes.Buffer
		_, _ = body.ReadFrom(resp.Body)
		_ = resp.Body.Close()
		if strings.Contains(body.String(), "holding the bot") {
			return w.servers[i]
		}
	}
	return w.servers[0]
}

// watch starts a program again whenever it ended, until ctx ends.
func (w *world) watch(ctx context.Context, p *process) error {
	for {
		w.wait(ctx, 250*time.Millisecond)
		if ctx.Err() != nil {
			return nil
		}
		if p.ended() {
			if err := p.start(); err != nil {
				return err
			}
		}
	}
}

// restore puts the database back to the dump while everything runs, declares it as an operator does, and has the KMS
// send again what it sent since.
func (w *world) restore(ctx context.Context, dump []byte, book *ledger, say func(string, ...any)) error {
	if dump == nil {
		return errors.New("there is no backup")
	}
	if err := w.pg.Restore(ctx, w.database, dump); err != nil {
		return err
	}
	said, err := w.keyherald(ctx, "restore", "--reason", "chaos: the database was lost")
	if err != nil {
		return err
	}
	say("the database is restored: %s", strings.SplitN(said, "\n", 2)[0])
	for _, a := range book.all() {
		if err := w.notify(ctx, a.body, 0); err != nil {
			return err
		}
	}
	return nil
}
