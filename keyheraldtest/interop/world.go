package interop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/company"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
)

const history = "Written before the rotations: only the first key backup can open this."

// How long the clients are given.
const (
	adoptLimit = 20 * time.Second
	readLimit  = 20 * time.Second
	lateLimit  = 90 * time.Second
)

// The devices of each kind of client.
const (
	online   = "ONLINE"
	stranger = "STRANGER" // never verified
	excluded = "EXCLUDED"
	away     = "AWAY" // offline during three rotations
	late     = "LATE" // verified after them
	fresh    = "FRESH"
)

// world is the company with Alice, who has every kind of client.
type world struct {
	*company.Company
	alice       id.UserID
	recoveryKey string
	// stock writes what the others read, and is nobody's concern otherwise.
	stock   *keyheraldtest.Client
	old     message
	key     backupkey.Key // the KMS's current one
	version id.KeyBackupVersion
	clients []kind
	nio     *driver
	nioKeys keys
	managed map[string]postgres.Device
	// stopAway takes the fleet of the managed device that is offline away.
	stopAway  func() error
	rotations []uuid.UUID
}

// kind is a kind of client and what its devices' ids begin with.
type kind struct {
	name, prefix string
	client
}

func (k kind) device(role string) id.DeviceID { return id.DeviceID(k.prefix + role) }

func (w *world) credentials(device id.DeviceID) map[string]any {
	return map[string]any{"homeserver": w.Homeserver.URL, "user": w.alice, "password": company.Password, "device": device}
}

// people makes Alice, her history, and her devices.
func (w *world) people(ctx context.Context, tools Tools, dir string) error {
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"making Alice", w.makeAlice},
		{"starting the clients", func(context.Context) error { return w.startClients(tools, dir) }},
		{"making the clients' devices", w.makeDevices},
		{"making matrix-nio's device", func(ctx context.Context) error { return w.makeNio(ctx, dir) }},
		{"enrolling managed devices", w.enrollManaged},
		{"having a device of each kind of client excluded", w.exclude},
		{"taking devices offline", w.takeOffline},
		{"looking that nobody can read the history yet", w.unread},
	} {
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

func (w *world) makeAlice(ctx context.Context) (err error) {
	if w.alice, err = w.Homeserver.CreateUser(ctx, "alice", company.Password); err != nil {
		return err
	}
	if w.stock, err = w.Login(ctx, w.alice, "STOCK"); err != nil {
		return err
	}
	if w.recoveryKey, err = w.stock.Bootstrap(ctx, company.Password); err != nil {
		return err
	}
	if w.key, err = backupkey.Generate(); err != nil {
		return err
	}
	first, err := backup.MegolmBackupKeyFromBytes(w.key.Reveal())
	if err != nil {
		return err
	}
	version, err := w.stock.CreateBackup(ctx, first, w.recoveryKey)
	if err != nil {
		return err
	}
	w.old.body = history
	if w.old.room, w.old.id, err = w.stock.WriteHistory(ctx, version, first, history); err != nil {
		return err
	}
	_, err = w.Setec.PutKey(ctx, company.KMSPath("alice"), w.key)
	return err
}

func (w *world) startClients(tools Tools, dir string) error {
	js, err := tools.startJS(dir)
	if err != nil {
		return err
	}
	w.OnClose(js.close)
	w.clients = []kind{
		{"matrix-js-sdk", "JS", jsClient{w, js}},
		{"mautrix", "MX", mautrixClient{w, map[id.DeviceID]*keyheraldtest.Client{}, map[id.DeviceID]backupkey.Key{}}},
	}
	if w.nio, err = tools.startNio(dir); err != nil {
		return err
	}
	w.OnClose(w.nio.close)
	return nil
}

func (w *world) makeDevices(ctx context.Context) error {
	for _, c := range w.clients {
		for _, role := range []string{online, stranger, excluded, away, late} {
			if _, err := c.login(ctx, c.device(role)); err != nil {
				return err
			}
		}
		// The one that is online never has the first key, and so reads nothing old but through the new one; the one that
		// goes away has it, and must let go of it.
		for role, withBackup := range map[string]bool{online: false, excluded: false, away: true} {
			if err := c.verify(ctx, c.device(role), withBackup); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeNio logs matrix-nio in and has its device cross-signed by another, since it knows no cross-signing itself.
func (w *world) makeNio(ctx context.Context, dir string) error {
	parameters := w.credentials("NIO")
	parameters["store"] = dir + "/nio/store"
	if err := os.MkdirAll(parameters["store"].(string), 0o700); err != nil {
		return err
	}
	if err := w.nio.do(ctx, "login", parameters, &w.nioKeys); err != nil {
		return err
	}
	devices, err := w.stock.OwnDevices(ctx)
	if err != nil {
		return err
	}
	device, ok := devices[w.nioKeys.DeviceID]
	if !ok || device.SigningKey != w.nioKeys.Ed25519 || device.IdentityKey != w.nioKeys.Curve25519 {
		return errors.New("the homeserver does not tell matrix-nio's keys")
	}
	return w.stock.Machine.SignOwnDevice(ctx, device)
}

func (w *world) enrollManaged(ctx context.Context) error {
	kms, err := w.DeviceKMS("alice")
	if err != nil {
		return err
	}
	if _, err = w.Fleet("device", 5*time.Second); err != nil {
		return err
	}
	if w.stopAway, err = w.Fleet("away", 5*time.Second); err != nil {
		return err
	}
	w.managed = map[string]postgres.Device{}
	for name, fleet := range map[string]string{"alice": "device", "alice-receiver": "device", "alice-excluded": "device", "alice-away": "away"} {
		account := company.Account{Name: name, Fleet: fleet, User: w.alice, RecoveryKey: w.recoveryKey, KMS: kms}
		if w.managed[name], err = w.Enroll(ctx, account); err != nil {
			return err
		}
	}
	return nil
}

// exclude has each kind of client speak the enrollment protocol with its own Olm and then revokes the device, which puts
// it on every trigger's exclude list: that is what excludes a device without its being logged out.
func (w *world) exclude(ctx context.Context) error {
	devices := []id.DeviceID{w.managed["alice-excluded"].DeviceID}
	for _, c := range w.clients {
		device := c.device(excluded)
		if err := w.enrollClient(ctx, c, device); err != nil {
			return fmt.Errorf("%s: %w", device, err)
		}
		devices = append(devices, device)
	}
	for _, device := range devices {
		if _, err := w.Keyherald(ctx, "devices", "revoke", "--user", w.alice.String(), "--device", device.String(), "--reason", "to be excluded"); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) enrollClient(ctx context.Context, c kind, device id.DeviceID) error {
	text, err := w.Keyherald(ctx, "enroll", "--user", w.alice.String())
	if err != nil {
		return err
	}
	code, err := protocol.ParseCode(text)
	if err != nil {
		return err
	}
	bot, err := w.botDevices(ctx)
	if err != nil {
		return err
	}
	answer, err := queryKeys(ctx, w.stock, w.alice)
	if err != nil {
		return err
	}
	identity := crosssigning.Read(answer, w.alice)
	own := identity.Devices[device]
	request := protocol.EnrollRequest{ProtocolVersion: protocol.Version, Code: code.RevealRandom(), BotUserID: code.BotUserID, BotMasterKey: code.BotMasterKey,
		UserMasterKey: identity.MasterKey, DeviceID: device, IdentityKey: own.IdentityKey, SigningKey: own.SigningKey, Name: "a client"}
	if err := c.send(ctx, device, recipient{code.BotUserID, bot[0]}, protocol.TypeEnrollRequest, request); err != nil {
		return err
	}
	return keyheraldtest.Until(ctx, adoptLimit, func() error {
		devices, err := w.DB.Devices(ctx, w.alice)
		if err != nil {
			return err
		}
		for _, d := range devices {
			if d.DeviceID == device && d.State == postgres.Enrolled {
				return nil
			}
		}
		return errors.New("the server did not enroll it")
	})
}

func (w *world) takeOffline(ctx context.Context) error {
	for _, c := range w.clients {
		if err := c.offline(ctx, c.device(away)); err != nil {
			return err
		}
	}
	if err := w.stopAway(); err != nil {
		return err
	}
	// Whoever was seen last is triggered, and one that is gone would have ten minutes to answer.
	return keyheraldtest.Until(ctx, adoptLimit, func() error {
		devices, err := w.DB.Devices(ctx, w.alice)
		if err != nil {
			return err
		}
		var gone, there time.Time
		for _, d := range devices {
			switch d.ID {
			case w.managed["alice-away"].ID:
				gone = d.LastSeen
			case w.managed["alice"].ID:
				there = d.LastSeen
			}
		}
		if !there.After(gone) {
			return errors.New("the device that is away was seen last")
		}
		return nil
	})
}

// unread makes sure that what will be read was not to be read before.
func (w *world) unread(ctx context.Context) error {
	for _, c := range w.clients {
		if _, err := c.read(ctx, c.device(online), w.old, time.Second); err == nil {
			return fmt.Errorf("%s reads it without the backup", c.device(online))
		}
	}
	return nil
}

// rotate puts a new key into the KMS and waits until the rotation is done.
func (w *world) rotate(ctx context.Context) error {
	var err error
	if w.key, err = backupkey.Generate(); err != nil {
		return err
	}
	version, err := w.Setec.PutKey(ctx, company.KMSPath("alice"), w.key)
	if err != nil {
		return err
	}
	rotationID, err := w.Notify(ctx, w.alice, version)
	if err != nil {
		return err
	}
	w.rotations = append(w.rotations, rotationID)
	err = keyheraldtest.Until(ctx, time.Minute, func() error {
		r, _, err := w.DB.Rotation(ctx, rotationID)
		switch {
		case err != nil:
			return err
		case r.Facts.Attention != "":
			return fmt.Errorf("it needs attention: %s: %s", r.Facts.Attention, r.NextAction)
		case !r.Facts.State.Ended():
			return fmt.Errorf("it is %s", r.Facts.State)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("rotation %d: %w", len(w.rotations), err)
	}
	current, err := w.stock.GetKeyBackupLatestVersion(ctx)
	if err != nil {
		return err
	}
	if !w.key.Fits(current.AuthData.PublicKey.String()) {
		return errors.New("the current key-backup version is not of the new key")
	}
	w.version = current.Version
	return nil
}

// botDevices are the bot's devices that its own identity has cross-signed.
func (w *world) botDevices(ctx context.Context) ([]id.DeviceID, error) {
	bot := id.NewUserID(company.BotName, keyheraldtest.ServerName)
	answer, err := queryKeys(ctx, w.stock, bot)
	if err != nil {
		return nil, err
	}
	var devices []id.DeviceID
	for device, d := range crosssigning.Read(answer, bot).Devices {
		if !d.CrossSigned {
			return nil, fmt.Errorf("the bot's device %s is not cross-signed", device)
		}
		devices = append(devices, device)
	}
	if len(devices) == 0 {
		return nil, errors.New("the bot has no device")
	}
	return devices, nil
}

// status is what a managed device last reported of itself.
func (w *world) status(ctx context.Context, name string) (protocol.Status, error) {
	var status protocol.Status
	devices, err := w.DB.Devices(ctx, w.alice)
	if err != nil {
		return status, err
	}
	for _, d := range devices {
		if d.DeviceID == w.managed[name].DeviceID {
			return status, json.Unmarshal(d.Status, &status)
		}
	}
	return status, fmt.Errorf("there is no managed device %s", name)
}
