// Package keyheraldtest is the real parts that tests, the demo and the benchmarks stand on: a private PostgreSQL
// cluster, a Dendrite homeserver, and users with stock clients on it. Nothing here is part of the product.
package keyheraldtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	_ "github.com/lib/pq" // the driver "postgres"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
)

// Postgres is a private cluster in a temporary directory. As root it runs as the user postgres or nobody.
type Postgres struct {
	dir        string
	port       int
	credential *syscall.Credential
	settings   []string
	process    *Process
}

// Database is a fresh database with roles of its own.
type Database struct {
	Name                                                 string
	Owner, Writer, Signer, Auditor                       string
	SuperURL, OwnerURL, WriterURL, SignerURL, AuditorURL string
}

// Roles are the roles as Migrate grants to them.
func (d *Database) Roles() postgres.Roles {
	return postgres.Roles{Writer: d.Writer, Signer: d.Signer, Auditor: d.Auditor}
}

// Admin is who acts where a test plays an admin.
func Admin() audit.Actor { return audit.ByLocal("test", "test") }

// RunWithPostgres runs a package's tests with a cluster of their own, which *cluster is while they run, and returns what
// the test program exits with: TestMain's last line.
func RunWithPostgres(cluster **Postgres, run func() int, settings ...string) int {
	var err error
	if *cluster, err = StartPostgres(context.Background(), settings...); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = (*cluster).Close() }()
	return run()
}

// SettingsForHomeservers are for RunWithPostgres where homeservers have their databases there, too: processes are killed in
// tests and the machine is not, so nothing has to be forced to the disk.
var SettingsForHomeservers = []string{"fsync=off", "max_connections=500"}

// StartPostgres starts a cluster, with settings such as max_connections=200; Close ends it and removes everything.
func StartPostgres(ctx context.Context, settings ...string) (*Postgres, error) {
	initdbProgram, err := postgresProgram("initdb")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "keyherald-postgres-")
	if err != nil {
		return nil, fmt.Errorf("making PostgreSQL's directory: %w", err)
	}
	credential, err := unprivileged(dir)
	if err != nil {
		return nil, err
	}
	p := &Postgres{dir: dir, credential: credential, settings: settings}
	data := filepath.Join(dir, "data")
	initdb := exec.CommandContext(ctx, initdbProgram, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
	initdb.Dir, initdb.SysProcAttr = dir, &syscall.SysProcAttr{Credential: credential}
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("running initdb: %w: %s", err, out)
	}
	if p.port, err = FreePort(); err != nil {
		return nil, err
	}
	return p, p.Start(ctx)
}

// Start starts the cluster again after Kill, with the data it has.
func (p *Postgres) Start(ctx context.Context) error {
	serverProgram, err := postgresProgram("postgres")
	if err != nil {
		return err
	}
	db, err := sql.Open("postgres", p.url("postgres", "postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	// After a SIGKILL the backends hold the shared memory until they notice, and a start fails meanwhile.
	err = Until(ctx, 2*time.Minute, func() error {
		if p.process == nil || p.process.Ended() {
			if err := p.launch(serverProgram); err != nil {
				return err
			}
		}
		return db.PingContext(ctx)
	})
	if err != nil {
		return errors.Join(fmt.Errorf("waiting for PostgreSQL: %w", err), p.Close())
	}
	return nil
}

func (p *Postgres) launch(program string) error {
	log, err := os.OpenFile(p.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("making PostgreSQL's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(program, "-D", filepath.Join(p.dir, "data"), "-k", p.dir, "-p", strconv.Itoa(p.port), "-c", "listen_addresses=127.0.0.1")
	for _, setting := range p.settings {
		cmd.Args = append(cmd.Args, "-c", setting)
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, log, log
	// A test that is killed must not leave a cluster behind: SIGQUIT is its immediate shutdown.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.credential, Pdeathsig: syscall.SIGQUIT}
	process, err := StartProcess(cmd)
	if err != nil {
		return fmt.Errorf("starting PostgreSQL: %w", err)
	}
	p.process = process
	return nil
}

// Kill ends the cluster with SIGKILL, as a crash does.
func (p *Postgres) Kill() error { return p.process.Kill() }

// Close stops the cluster and removes it.
func (p *Postgres) Close() error {
	p.process.Stop(syscall.SIGQUIT, 0)
	return os.RemoveAll(p.dir)
}

// LogFile is where the cluster logs.
func (p *Postgres) LogFile() string { return filepath.Join(p.dir, "postgres.log") }

// Dump is the whole of a database as pg_dump writes it.
func (p *Postgres) Dump(ctx context.Context, database string) ([]byte, error) {
	program, err := postgresProgram("pg_dump")
	if err != nil {
		return nil, err
	}
	dump, err := exec.CommandContext(ctx, program, "--dbname", p.url("postgres", database)).Output()
	if err != nil {
		return nil, fmt.Errorf("dumping %s: %w", database, err)
	}
	return dump, nil
}

// Restore puts a database back to what Dump made of it; whoever is connected is thrown out.
func (p *Postgres) Restore(ctx context.Context, database *Database, dump []byte) error {
	err := execAll(ctx, p.url("postgres", "postgres"), "DROP DATABASE "+database.Name+" WITH (FORCE)", "CREATE DATABASE "+database.Name+" OWNER "+database.Owner)
	if err != nil {
		return err
	}
	program, err := postgresProgram("psql")
	if err != nil {
		return err
	}
	psql := exec.CommandContext(ctx, program, "--dbname", database.SuperURL, "--quiet", "--no-psqlrc", "--single-transaction", "--set", "ON_ERROR_STOP=1")
	psql.Stdin = bytes.NewReader(dump)
	if out, err := psql.CombinedOutput(); err != nil {
		return fmt.Errorf("restoring %s: %w: %s", database.Name, err, out)
	}
	return nil
}

// Copy makes a database that is what of is now, with the same roles; whoever is connected to of is thrown out.
func (p *Postgres) Copy(ctx context.Context, of *Database) (*Database, error) {
	name, err := freshName()
	if err != nil {
		return nil, err
	}
	d := &Database{Name: name, Owner: of.Owner, Writer: of.Writer, Signer: of.Signer, Auditor: of.Auditor}
	d.setURLs(p)
	return d, execAll(ctx, p.url("postgres", "postgres"), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '"+of.Name+"'",
		"CREATE DATABASE "+name+" OWNER "+of.Owner+" TEMPLATE "+of.Name)
}

// Drop removes a database; whoever is connected is thrown out.
func (p *Postgres) Drop(ctx context.Context, d *Database) error {
	return execAll(ctx, p.url("postgres", "postgres"), "DROP DATABASE "+d.Name+" WITH (FORCE)")
}

// Pgbench runs PostgreSQL's own benchmark program on a database and returns its report.
func (p *Postgres) Pgbench(ctx context.Context, database string, args ...string) ([]byte, error) {
	program, err := postgresProgram("pgbench")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program, append(args, "--host", "127.0.0.1", "--port", strconv.Itoa(p.port), "--username", "postgres", database)...)
	report, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("running pgbench: %w: %s", err, report)
	}
	return report, nil
}

func (p *Postgres) url(role, database string) string {
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", role, p.port, database)
}

// NewDatabase makes a database with an owner, a writer, a signer and an auditor role of its own.
func (p *Postgres) NewDatabase(ctx context.Context) (*Database, error) {
	name, err := freshName()
	if err != nil {
		return nil, err
	}
	d := &Database{Name: name, Owner: name + "_owner", Writer: name + "_writer", Signer: name + "_signer", Auditor: name + "_auditor"}
	d.setURLs(p)
	if err := execAll(ctx, p.url("postgres", "postgres"), "CREATE ROLE "+d.Owner+" LOGIN", "CREATE ROLE "+d.Writer+" LOGIN",
		"CREATE ROLE "+d.Signer+" LOGIN", "CREATE ROLE "+d.Auditor+" LOGIN", "CREATE DATABASE "+name+" OWNER "+d.Owner); err != nil {
		return nil, err
	}
	return d, execAll(ctx, d.SuperURL, "ALTER SCHEMA public OWNER TO "+d.Owner)
}

func freshName() (string, error) {
	raw := make([]byte, 6)
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	return "k" + hex.EncodeToString(raw), nil
}

func (d *Database) setURLs(p *Postgres) {
	d.SuperURL, d.OwnerURL = p.url("postgres", d.Name), p.url(d.Owner, d.Name)
	d.WriterURL, d.SignerURL, d.AuditorURL = p.url(d.Writer, d.Name), p.url(d.Signer, d.Name), p.url(d.Auditor, d.Name)
}

func execAll(ctx context.Context, url string, statements ...string) error {
	db, err := sql.Open("postgres", url)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	for _, statement := range statements {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// postgresProgram prefers the newest of Debian's versions, whose programs belong together, over what is in the path.
func postgresProgram(name string) (string, error) {
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name); len(found) > 0 {
		return found[len(found)-1], nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("PostgreSQL's %s is missing (apt-get install postgresql): %w", name, err)
	}
	return path, nil
}

// unprivileged gives dir away and returns the user PostgreSQL runs as, since it refuses to run as root.
func unprivileged(dir string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.Atoi(account.Uid)
		gid, _ := strconv.Atoi(account.Gid)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), NoSetGroups: true}, os.Chown(dir, uid, gid)
	}
	return nil, errors.New("neither a user postgres nor nobody exists to run PostgreSQL as")
}

// FreePort finds a port of the loopback address that is free now, and stays so for a minute for a program that is told to
// take it: a connection that this side ended keeps the port in TIME_WAIT, in which the system gives it to nobody who asks
// for any port, and to whoever names it with SO_REUSEADDR, as servers do. A port that was only let go may be another
// server's before the program that it was found for has begun.
func FreePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("finding a free port: %w", err)
	}
	defer func() { _ = listener.Close() }()
	dialed, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return 0, fmt.Errorf("keeping a free port: %w", err)
	}
	defer func() { _ = dialed.Close() }()
	accepted, err := listener.Accept()
	if err != nil {
		return 0, fmt.Errorf("keeping a free port: %w", err)
	}
	// Who ends a connection first has it in TIME_WAIT: the other end may follow only once it has read that.
	if err := accepted.Close(); err != nil {
		return 0, fmt.Errorf("keeping a free port: %w", err)
	}
	if _, err := dialed.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("keeping a free port: the other end ended with %w", err)
	}
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// Until repeats check until it succeeds, and returns its last error when time is up.
func Until(ctx context.Context, limit time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// Soon at first; a check that asks databases must not take the processor from what it waits for.
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 40*time.Millisecond) {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", limit, err)
		case <-time.After(pause):
		}
	}
}

func unpadded(raw []byte) string { return base64.RawStdEncoding.EncodeToString(raw) }
