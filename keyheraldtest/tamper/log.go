package tamper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/company"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

const (
	// people is how many users rotate side by side, and each how many rotations they make in one go.
	people = 8
	each   = 5
	// rotationPatience is how long one rotation may take.
	rotationPatience = 2 * time.Minute
)

// The auditor's files: two checkpoints that he copied from the sink, and the key that he was handed.
const (
	earlyFile = "early.checkpoint"
	lateFile  = "late.checkpoint"
	vkeyFile  = "auditors.vkey"
)

// makeLog has the company rotate keys until the log is long enough, takes a checkpoint and a backup on the way, and
// stops the server.
func (h *harness) makeLog(ctx context.Context) (rotations int, err error) {
	if h.Company, err = company.Start(ctx, company.Config{Programs: h.config.Programs, Dir: h.config.Dir, Homeserver: keyheraldtest.StartDendrite},
		func(_ string, do func() error) error { return do() }); err != nil {
		return 0, err
	}
	if h.keys, err = checkpoint.LoadKeys(company.LogName, h.path(keyFile)); err != nil {
		return 0, err
	}
	public := h.keys.Public[0] + "\n"
	if err := h.Write(vkeyFile, public); err != nil {
		return 0, err
	}
	stopFleet, err := h.Fleet("device", time.Hour)
	if err != nil {
		return 0, err
	}
	var users []id.UserID
	for i := range people {
		user, err := h.person(ctx, "user"+string(rune('a'+i)))
		if err != nil {
			return 0, err
		}
		users = append(users, user)
	}
	h.say("the company stands; %d people rotate until the log has %d events", people, h.config.Events)
	// The last round is after the first checkpoint, so that there is something for a backup of that time to lose.
	for done := false; !done; {
		done = h.early > 0
		n, err := h.rotate(ctx, users)
		if err != nil {
			return rotations, err
		}
		rotations += n
		state, err := h.DB.TreeState(ctx)
		if err != nil {
			return rotations, err
		}
		h.size = state.Size
		done = done && h.size >= int64(h.config.Events)
		h.say("%d events of %d rotations", h.size, rotations)
		if h.early == 0 && h.size >= int64(h.config.Events)/2 {
			if err := h.takeEarly(ctx); err != nil {
				return rotations, err
			}
		}
	}
	// The copies throw out whoever is connected to the database.
	if err := errors.Join(stopFleet(), h.StopServer(), h.DB.Close()); err != nil {
		return rotations, err
	}
	return rotations, h.takeLate(ctx)
}

// person makes a user with an identity and an enrolled managed device.
func (h *harness) person(ctx context.Context, name string) (id.UserID, error) {
	user, err := h.Homeserver.CreateUser(ctx, name, company.Password)
	if err != nil {
		return "", err
	}
	stock, err := h.Login(ctx, user, "STOCK")
	if err != nil {
		return "", err
	}
	recoveryKey, err := stock.Bootstrap(ctx, company.Password)
	if err != nil {
		return "", err
	}
	kms, err := h.DeviceKMS(name)
	if err != nil {
		return "", err
	}
	_, err = h.Enroll(ctx, company.Account{Name: name, Fleet: "device", User: user, RecoveryKey: recoveryKey, KMS: kms})
	return user, err
}

// rotate makes some rotations for each, side by side, and waits for their end.
func (h *harness) rotate(ctx context.Context, users []id.UserID) (int, error) {
	var all sync.WaitGroup
	var telling sync.Mutex // Notify is for one at a time
	failures := make([]error, len(users))
	for i, user := range users {
		all.Go(func() {
			for range each {
				if failures[i] = h.change(ctx, &telling, user); failures[i] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	return each * len(users), errors.Join(failures...)
}

// change puts a new key into the KMS, tells the server, and waits until that rotation is done.
func (h *harness) change(ctx context.Context, telling *sync.Mutex, user id.UserID) error {
	key, err := backupkey.Generate()
	if err != nil {
		return err
	}
	version, err := h.Setec.PutKey(ctx, company.KMSPath(user.Localpart()), key)
	if err != nil {
		return err
	}
	telling.Lock()
	rotationID, err := h.Notify(ctx, user, version)
	telling.Unlock()
	if err != nil {
		return err
	}
	return keyheraldtest.Until(ctx, rotationPatience, func() error {
		r, _, err := h.DB.Rotation(ctx, rotationID)
		if err == nil && r.Facts.State != rotation.Done {
			err = fmt.Errorf("the rotation %s of %s is %s", rotationID, user, r.Facts.State)
		}
		return err
	})
}

// takeEarly is the auditor's first visit; the operators make a backup of the database just after it.
func (h *harness) takeEarly(ctx context.Context) (err error) {
	if h.early, err = h.keep(earlyFile); err != nil {
		return err
	}
	h.dump, err = h.Postgres.Dump(ctx, h.Database.Name)
	return err
}

// takeLate seals what the server left when it stopped, and is the auditor's last visit.
func (h *harness) takeLate(ctx context.Context) error {
	if did, err := sign(ctx, h.Database, h.keys, h.path(sinkDir)); err != nil || did.word != signs {
		return errors.Join(fmt.Errorf("sealing what the server left: the signer %s: %s", did.word, did.says), err)
	}
	size, err := h.keep(lateFile)
	if err != nil {
		return err
	}
	db, err := postgres.Open(ctx, h.Database.SuperURL)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	state, err := db.TreeState(ctx)
	if err != nil {
		return err
	}
	h.size = state.Size
	if size != state.Size {
		return fmt.Errorf("the sink has a checkpoint of %d events, and the log has %d", size, state.Size)
	}
	return h.chooseVictim(ctx, db)
}

// chooseVictim finds an event in the middle of what the early checkpoint covers, whose detail is long enough to be altered.
func (h *harness) chooseVictim(ctx context.Context, db *postgres.DB) error {
	err := db.QueryRow(ctx, `SELECT leaf_index FROM audit_leaf JOIN audit_event e ON e.id = event_id JOIN audit_detail d ON d.event_id = e.id
		WHERE leaf_index >= $1 AND octet_length(detail) > 20 AND convert_from(body, 'UTF8') LIKE '%"action":"delivery.reported"%' ORDER BY leaf_index LIMIT 1`, h.early/2).Scan(&h.victim)
	if err != nil {
		return fmt.Errorf("choosing the event to alter: %w", err)
	}
	if h.victim+hundred > h.early {
		return fmt.Errorf("the event to alter is %d, too near to the end of the %d that the first checkpoint covers: make a longer log", h.victim, h.early)
	}
	return nil
}

// keep copies the newest checkpoint of the sink, as the auditor does, and returns how many events it covers.
func (h *harness) keep(name string) (int64, error) {
	note, err := os.ReadFile(filepath.Join(h.path(sinkDir), "latest"))
	if err != nil {
		return 0, err
	}
	c, err := checkpoint.Open(company.LogName, string(note), h.keys.Verifiers)
	if err != nil {
		return 0, err
	}
	return c.Size, h.Write(name, string(note))
}

// path is a file of the company's directory.
func (h *harness) path(name string) string { return filepath.Join(h.config.Dir, name) }
