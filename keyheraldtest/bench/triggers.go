package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"gopkg.in/yaml.v3"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

// Triggers measures how fast n rotations become triggers that the homeserver has taken, each encrypted, committed and
// audited, beside homeserver_limit: the same number of prebuilt to-device messages, in the same requests. The first
// contact, which claims a one-time key for each device, is a row of its own.
func Triggers(ctx context.Context, n, rounds int) (rows []Row, err error) {
	c, err := newCrowded(ctx, n)
	if c != nil {
		defer func() { err = errors.Join(err, c.close()) }()
	}
	if err != nil {
		return nil, fmt.Errorf("preparing triggers/%d: %w", n, err)
	}
	var ours, limit []float64
	for round := range rounds + 1 {
		rate, err := c.trigger(ctx, round+1)
		if err != nil {
			return nil, fmt.Errorf("triggers/%d, round %d: %w", n, round, err)
		}
		bare, err := c.resend(ctx)
		if err != nil {
			return nil, fmt.Errorf("homeserver_limit, round %d: %w", round, err)
		}
		if round == 0 {
			rows = append(rows, Compare(fmt.Sprintf("triggers/%d first contact", n), "1/s", More, []float64{rate}, map[string][]float64{"homeserver_limit": {bare}}))
			continue
		}
		ours, limit = append(ours, rate), append(limit, bare)
	}
	return append(rows, Compare(fmt.Sprintf("triggers/%d", n), "1/s", More, ours, map[string][]float64{"homeserver_limit": limit})), nil
}

// crowded is a server with a bot and n users, each with an enrolled device.
type crowded struct {
	closers []func() error
	db      *postgres.DB
	engine  *relay.Engine
	members []keyheraldtest.Member
	sender  *mautrix.Client
	hs      *keyheraldtest.Homeserver
	crowd   *keyheraldtest.Crowd
}

func (c *crowded) close() error {
	var err error
	for i := len(c.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, c.closers[i]())
	}
	return err
}

func newCrowded(ctx context.Context, n int) (*crowded, error) {
	c := &crowded{}
	dir, err := os.MkdirTemp("", "keyherald-bench-")
	if err != nil {
		return c, err
	}
	c.closers = append(c.closers, func() error { return os.RemoveAll(dir) })
	pg, err := keyheraldtest.StartPostgres(ctx)
	if err != nil {
		return c, err
	}
	c.closers = append(c.closers, pg.Close)
	made, err := newDatabase(ctx, pg)
	if err != nil {
		return c, err
	}
	c.db = made.db
	c.closers = append(c.closers, c.db.Close)
	bot := id.NewUserID("keyherald", keyheraldtest.ServerName)
	masterKey, err := appservice.Keygen(dir, bot)
	if err != nil {
		return c, err
	}
	identity, err := appservice.LoadIdentity(filepath.Join(dir, appservice.IdentityFile), filepath.Join(dir, appservice.SelfSigningFile))
	if err != nil {
		return c, err
	}
	registration, err := appservice.NewRegistration(nil, bot, "http://127.0.0.1:1", false)
	if err != nil {
		return c, err
	}
	encoded, err := yaml.Marshal(registration)
	if err != nil {
		return c, err
	}
	if err := os.WriteFile(filepath.Join(dir, "registration.yaml"), encoded, 0o600); err != nil {
		return c, err
	}
	var crowdRegistration string
	if c.crowd, crowdRegistration, err = keyheraldtest.CrowdRegistration(dir); err != nil {
		return c, err
	}
	if c.hs, err = keyheraldtest.StartDendrite(ctx, dir, filepath.Join(dir, "registration.yaml"), crowdRegistration); err != nil {
		return c, err
	}
	c.closers = append(c.closers, c.hs.Close)
	if c.members, err = c.crowd.Make(ctx, c.hs, n); err != nil {
		return c, err
	}
	if c.sender, err = c.crowd.Login(ctx, id.NewUserID("crowdsender", keyheraldtest.ServerName), "SENDER"); err != nil {
		return c, err
	}
	c.sender.DefaultHTTPRetries = 0
	for _, m := range c.members {
		err := c.db.PutDevice(ctx, postgres.Device{ID: uuid.New(), UserID: m.UserID, DeviceID: m.Device.DeviceID, IdentityKey: m.Device.IdentityKey,
			SigningKey: m.Device.SigningKey, MasterKey: m.MasterKey, EnrolledAt: time.Now()})
		if err != nil {
			return c, err
		}
	}
	log := zerolog.New(os.Stderr).Level(zerolog.WarnLevel)
	if c.engine, err = relay.New(relay.Config{DB: c.db, BotUserID: bot, BotMasterKey: masterKey, Log: log, Storm: rotation.StormLimit{Percent: 100, Users: n}}); err != nil {
		return c, err
	}
	b, err := appservice.NewBot(appservice.BotConfig{HomeserverURL: c.hs.URL, ASToken: registration.ASToken, Identity: identity, PickleKey: make([]byte, 32),
		Holder: "bench", DB: c.db, Log: log, NewWorker: func(endpoint *todevice.Endpoint) appservice.Worker { return c.engine.Session(endpoint) }})
	if err != nil {
		return c, err
	}
	c.run(ctx, b.Run)
	c.run(ctx, func(ctx context.Context) error { return c.db.Listen(ctx, relay.WorkChannel, func(string) { b.Wake() }) })
	return c, keyheraldtest.Until(ctx, time.Minute, func() error {
		if !b.Leading() {
			return errors.New("the bot does not lead yet")
		}
		return nil
	})
}

func (c *crowded) run(ctx context.Context, do func(context.Context) error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	c.closers = append(c.closers, func() error { cancel(); <-done; return nil })
}

// trigger opens a rotation for every member while triggers are frozen, lets them go, and returns how many a second
// the homeserver took.
func (c *crowded) trigger(ctx context.Context, version int) (float64, error) {
	if err := c.engine.Freeze(ctx, keyheraldtest.Admin()); err != nil {
		return 0, err
	}
	for i, m := range c.members {
		_, err := c.engine.Accept(ctx, intake.Notification{Source: "bench", ID: fmt.Sprintf("%d-%d", version, i), User: m.UserID.String(),
			Secret: protocol.SecretMegolmBackup, KMS: "corporate", Path: "keyherald/" + m.UserID.Localpart(), Version: fmt.Sprint(version)})
		if err != nil {
			return 0, err
		}
	}
	began := time.Now()
	if err := c.engine.Thaw(ctx, keyheraldtest.Admin()); err != nil {
		return 0, err
	}
	err := keyheraldtest.Until(ctx, 5*time.Minute, func() error {
		// Counting all the time would take a processor from what is measured.
		loop.Pause(ctx, 20*time.Millisecond)
		var sent int
		err := c.db.QueryRow(ctx, `SELECT COUNT(*) FROM attempt a JOIN rotation r ON r.id = a.rotation_id WHERE r.version = $1 AND a.sent_at IS NOT NULL`, fmt.Sprint(version)).Scan(&sent)
		if err == nil && sent < len(c.members) {
			err = fmt.Errorf("%d of %d triggers are sent", sent, len(c.members))
		}
		return err
	})
	return float64(len(c.members)) / time.Since(began).Seconds(), err
}

// resend sends the messages of the last round once more, as they are, under new transaction ids.
func (c *crowded) resend(ctx context.Context) (float64, error) {
	rows, err := c.db.Query(ctx, `SELECT request, recipient_user, recipient_device, content FROM todevice_outbox ORDER BY id DESC LIMIT $1`, len(c.members))
	if err != nil {
		return 0, err
	}
	defer func() { _ = rows.Close() }()
	var order []string
	requests := map[string]map[id.UserID]map[id.DeviceID]json.RawMessage{}
	for rows.Next() {
		var request, content string
		var user id.UserID
		var device id.DeviceID
		if err := rows.Scan(&request, &user, &device, &content); err != nil {
			return 0, err
		}
		if requests[request] == nil {
			requests[request] = map[id.UserID]map[id.DeviceID]json.RawMessage{}
			order = append(order, request)
		}
		requests[request][user] = map[id.DeviceID]json.RawMessage{device: json.RawMessage(content)}
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	began := time.Now()
	for _, request := range order {
		url := c.sender.BuildClientURL("v3", "sendToDevice", event.ToDeviceEncrypted.Type, uuid.NewString())
		if _, err := c.sender.MakeRequest(ctx, http.MethodPut, url, map[string]any{"messages": requests[request]}, nil); err != nil {
			return 0, err
		}
	}
	return float64(len(c.members)) / time.Since(began).Seconds(), nil
}
