package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

const intakeRound = 2 * time.Second

// Intake measures notifications a second, durable and audited before they are answered, with 1, 32 and 128 concurrent
// senders: beside the same work in a transaction of its own each, and beside pgbench that inserts the same rows with as
// many clients and does nothing else. The 99th percentiles of the same rounds are rows of their own.
func Intake(ctx context.Context, rounds int) (rows []Row, err error) {
	cluster, err := keyheraldtest.StartPostgres(ctx, "max_connections=200", "fsync=on", "synchronous_commit=on")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	for _, senders := range []int{1, 32, 128} {
		of, err := intakeWith(ctx, cluster, senders, rounds)
		if err != nil {
			return nil, fmt.Errorf("intake/%d: %w", senders, err)
		}
		rows = append(rows, of...)
	}
	return rows, nil
}

func intakeWith(ctx context.Context, cluster *keyheraldtest.Postgres, senders, rounds int) (rows []Row, err error) {
	grouped, err := newReceiving(ctx, cluster, senders, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, grouped.close()) }()
	single, err := newReceiving(ctx, cluster, senders, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, single.close()) }()
	plain, err := newPlainInsert(ctx, cluster, senders)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, plain.close()) }()
	name := "intake/" + strconv.Itoa(senders)
	rate, err := Measure(ctx, name, "1/s", More, rounds, Side{"grouped", grouped.round},
		Side{"one_tx_per_request", single.round}, Side{"pgbench_plain_insert", plain.round})
	if err != nil {
		return nil, err
	}
	if err := sameRows(ctx, grouped.database, single.database, plain.database); err != nil {
		return nil, err
	}
	if err := errors.Join(grouped.kept(ctx), single.kept(ctx)); err != nil {
		return nil, err
	}
	// The first round warmed up.
	return []Row{rate, Compare(name+" p99", "ms", Less, grouped.p99[1:], map[string][]float64{"one_tx_per_request": single.p99[1:]})}, nil
}

// database is a migrated database of its own.
type database struct {
	name string
	db   *postgres.DB
}

func newDatabase(ctx context.Context, cluster *keyheraldtest.Postgres) (database, error) {
	made, _, err := newDatabaseWithSigner(ctx, cluster)
	return made, err
}

func newDatabaseWithSigner(ctx context.Context, cluster *keyheraldtest.Postgres) (made database, signerURL string, err error) {
	fresh, err := cluster.NewDatabase(ctx)
	if err != nil {
		return database{}, "", err
	}
	owner, err := postgres.Open(ctx, fresh.OwnerURL)
	if err != nil {
		return database{}, "", err
	}
	if err := errors.Join(owner.Migrate(ctx, fresh.Roles(), keyheraldtest.Admin(), ""), owner.Close()); err != nil {
		return database{}, "", err
	}
	db, err := postgres.Open(ctx, fresh.WriterURL)
	if err != nil {
		return database{}, "", err
	}
	var fsync, synchronous string
	if err := db.QueryRow(ctx, `SELECT current_setting('fsync'), current_setting('synchronous_commit')`).Scan(&fsync, &synchronous); err != nil {
		return database{}, "", errors.Join(err, db.Close())
	}
	if fsync != "on" || synchronous != "on" {
		return database{}, "", errors.Join(fmt.Errorf("a commit is not durable here: fsync %s, synchronous_commit %s", fsync, synchronous), db.Close())
	}
	return database{fresh.Name, db}, fresh.SignerURL, nil
}

func newEngine(db *postgres.DB) (*relay.Engine, error) {
	// Every sender is another user, and pgbench holds nothing.
	return relay.New(relay.Config{DB: db, BotUserID: "@keyherald:example.org", BotMasterKey: "x", Storm: rotation.StormLimit{Percent: 100}})
}

// receiving is the intake as the program serves it, over HTTP on the loopback, and what sends to it.
type receiving struct {
	database
	server *httptest.Server
	stop   func()
	source *sender
	p99    []float64
	acks   int
}

func newReceiving(ctx context.Context, cluster *keyheraldtest.Postgres, senders int, grouped bool) (*receiving, error) {
	made, err := newDatabase(ctx, cluster)
	if err != nil {
		return nil, err
	}
	engine, err := newEngine(made.db)
	if err != nil {
		return nil, errors.Join(err, made.db.Close())
	}
	r := &receiving{database: made}
	var recorder intake.Recorder = engine
	running, cancel := context.WithCancel(ctx)
	r.stop = cancel
	if grouped {
		arrivals := relay.NewArrivals(engine, 0)
		recorder = arrivals
		done := make(chan struct{})
		go func() { defer close(done); arrivals.Run(running) }()
		r.stop = func() { cancel(); <-done }
	}
	handler, err := intake.New(intake.Config{Sources: map[string]intake.Source{"kms": {Keys: []intake.Key{{ID: "k", Secret: signingSecret}},
		Mapping: intake.Mapping{Pattern: "keyherald/(?P<user>[0-9]+)/backup-key", User: "@{user}:example.org", KMS: "corporate"}}}},
		intake.Deps{Recorder: recorder, Log: zerolog.Nop()})
	if err != nil {
		r.stop()
		return nil, errors.Join(err, made.db.Close())
	}
	web := echo.New()
	handler.Register(web)
	r.server = httptest.NewServer(web)
	r.source = newSender(r.server.URL+"/notify/kms", senders)
	return r, nil
}

func (r *receiving) close() error {
	r.source.close()
	r.server.Close()
	r.stop()
	return r.db.Close()
}

func (r *receiving) round(ctx context.Context) (float64, error) {
	figures, err := r.source.send(ctx, intakeRound)
	r.p99 = append(r.p99, figures.p99)
	r.acks += figures.acks
	return figures.rate, err
}

// kept fails where something acknowledged is not there with its rotation and its audit event.
func (r *receiving) kept(ctx context.Context) error {
	var notifications, rotations, events int
	err := r.db.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM notification WHERE rotation_id IS NOT NULL), (SELECT COUNT(*) FROM rotation),
		(SELECT COUNT(*) FROM audit_log JOIN audit_detail ON event_id = audit_log.id WHERE action = 'notification.accepted')`).Scan(&notifications, &rotations, &events)
	if err != nil {
		return fmt.Errorf("counting what was kept: %w", err)
	}
	if notifications != r.acks || rotations != r.acks || events != r.acks {
		return fmt.Errorf("%d notifications were acknowledged; kept are %d with %d rotations and %d events", r.acks, notifications, rotations, events)
	}
	return nil
}

// plainInsert is pgbench with the rows that one notification leaves.
type plainInsert struct {
	database
	cluster *keyheraldtest.Postgres
	dir     string
	clients int
	rounds  int
}

func newPlainInsert(ctx context.Context, cluster *keyheraldtest.Postgres, clients int) (*plainInsert, error) {
	made, err := newDatabase(ctx, cluster)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "keyherald-pgbench-")
	if err != nil {
		return nil, errors.Join(err, made.db.Close())
	}
	p := &plainInsert{made, cluster, dir, clients, 0}
	script, err := insertScript(ctx, made.db)
	if err == nil {
		err = os.WriteFile(p.script(), []byte(script), 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *plainInsert) script() string { return filepath.Join(p.dir, "insert.sql") }

func (p *plainInsert) close() error { return errors.Join(p.db.Close(), os.RemoveAll(p.dir)) }

var pgbenchRate = regexp.MustCompile(`(?m)^tps = ([0-9.]+) \(without initial connection time\)$`)

func (p *plainInsert) round(ctx context.Context) (float64, error) {
	p.rounds++
	// pgbench counts the time that its connections take.
	seconds := int(intakeRound.Seconds()) + p.clients/32
	report, err := p.cluster.Pgbench(ctx, p.name, "--no-vacuum", "--protocol", "prepared", "--client", strconv.Itoa(p.clients),
		"--jobs", strconv.Itoa(min(p.clients, 2)), "--time", strconv.Itoa(seconds), "--file", p.script(),
		"--define", "n=0", "--define", "round="+strconv.Itoa(p.rounds))
	if err != nil {
		return 0, err
	}
	match := pgbenchRate.FindSubmatch(report)
	if match == nil {
		return 0, fmt.Errorf("pgbench told no rate: %s", report)
	}
	return strconv.ParseFloat(string(match[1]), 64)
}
