package device

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"go.mau.fi/util/dbutil"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/internal/atomicfile"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

//go:embed upgrades/*.sql
var upgradeFiles embed.FS

// store is one account's SQLite database: 0600, locked against a second process, secrets sealed with AES-256-GCM
// under a key derived from the pickle key.
type store struct {
	db        *dbutil.Database
	lock      *os.File
	seal      cipher.AEAD
	pickleKey []byte
}

// loadPickleKey reads the file that seals everything, or makes it where there is none yet. Two processes may begin at once:
// the key is whole before it has its name, and whoever comes second takes the first one's.
func loadPickleKey(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if err := makePickleKey(path); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("writing the pickle key: %w", err)
		}
		raw, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the pickle key: %w", err)
	}
	key, err := base64.RawStdEncoding.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(key) < 32 {
		return nil, fmt.Errorf("%s is not a pickle key (32 bytes or more in unpadded base64): remove it to have one made, or restore the right one", path)
	}
	return key, nil
}

func makePickleKey(path string) error {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := atomicfile.Create(path, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(base64.RawStdEncoding.EncodeToString(key) + "\n"); err != nil {
		return errors.Join(err, f.Abort())
	}
	return f.Commit(false)
}

// writeNew writes a secret 0600 and never over an existing file.
func writeNew(path, content string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Sync(), f.Close())
}

func openSQLite(dataSource string) (*sql.DB, error) { return sql.Open("sqlite", dataSource) }

func openStore(ctx context.Context, path string, pickleKey []byte, open func(dataSource string) (*sql.DB, error)) (*store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the account's lock: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("%w: %s", errInUse, path)
	}
	// SQLite takes the file's mode for its WAL as well, so the file is made before the driver does.
	if f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600); err == nil {
		_ = f.Close()
	}
	// A thousand of these stand side by side in a process: SQLite's own cache is 64 KiB, beside the system's, and of the
	// connections that were needed at once one is kept.
	raw, err := open("file:" + path + "?_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(5000)&_pragma=cache_size(-64)")
	if err != nil {
		return nil, fmt.Errorf("opening the account's store: %w", err)
	}
	raw.SetMaxIdleConns(1)
	db, err := dbutil.NewWithDB(raw, "sqlite3")
	if err != nil {
		return nil, fmt.Errorf("opening the account's store: %w", err)
	}
	db.Owner = "keyherald-device"
	db.VersionTable = "device_version"
	db.UpgradeTable = dbutil.BuildUpgradeTable().WithFSPath(upgradeFiles, "upgrades").Finish()
	for _, schema := range append([]*dbutil.Database{db}, todevice.Databases(db)...) {
		if err := schema.Upgrade(ctx); err != nil {
			return nil, fmt.Errorf("preparing the account's store: %w", err)
		}
	}
	sealKey, err := hkdf.Key(sha256.New, pickleKey, nil, "keyherald device sealed values", 32)
	if err != nil {
		return nil, fmt.Errorf("deriving the sealing key: %w", err)
	}
	block, err := aes.NewCipher(sealKey)
	if err != nil {
		return nil, fmt.Errorf("deriving the sealing key: %w", err)
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("deriving the sealing key: %w", err)
	}
	return &store{db: db, lock: lock, seal: seal, pickleKey: pickleKey}, nil
}

// openForReading neither takes the lock nor can write: the account may be running.
func openForReading(path string) (*store, error) {
	raw, err := sql.Open("sqlite", "file:"+path+"?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		return nil, fmt.Errorf("opening the account's store: %w", err)
	}
	db, err := dbutil.NewWithDB(raw, "sqlite3")
	if err != nil {
		return nil, fmt.Errorf("opening the account's store: %w", err)
	}
	return &store{db: db}, nil
}

var errInUse = errors.New("another keyherald-device uses this account")

func (s *store) close() error {
	return errors.Join(s.db.Close(), s.lock.Close())
}

func (s *store) get(ctx context.Context, name string) (value string, err error) {
	err = s.db.QueryRow(ctx, `SELECT COALESCE(MAX(value), '') FROM state WHERE name = $1`, name).Scan(&value)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", name, err)
	}
	return value, nil
}

func (s *store) set(ctx context.Context, name, value string) error {
	_, err := s.db.Exec(ctx, `INSERT INTO state (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value)
	if err != nil {
		return fmt.Errorf("keeping %s: %w", name, err)
	}
	return nil
}

func (s *store) putSealed(ctx context.Context, name string, value []byte) error {
	_, err := s.db.Exec(ctx, `INSERT INTO sealed (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value`,
		name, s.seal.Seal(nil, nil, value, []byte(name)))
	if err != nil {
		return fmt.Errorf("keeping a sealed value: %w", err)
	}
	return nil
}

// sealedValue returns nil where there is none.
func (s *store) sealedValue(ctx context.Context, name string) ([]byte, error) {
	var box []byte
	err := s.db.QueryRow(ctx, `SELECT value FROM sealed WHERE name = $1`, name).Scan(&box)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading a sealed value: %w", err)
	}
	value, err := s.seal.Open(nil, nil, box, []byte(name))
	if err != nil {
		return nil, errors.New("a sealed value does not open: the pickle key is not the one it was sealed with")
	}
	return value, nil
}

// putKey keeps a backup key under its public key.
func (s *store) putKey(ctx context.Context, key backupkey.Key) error {
	return s.putSealed(ctx, "backup/"+key.PublicKey(), key.Reveal())
}

func (s *store) key(ctx context.Context, publicKey string) (backupkey.Key, bool, error) {
	raw, err := s.sealedValue(ctx, "backup/"+publicKey)
	if err != nil || raw == nil {
		return backupkey.Key{}, false, err
	}
	key, err := backupkey.FromBytes(raw)
	return key, err == nil, err
}

// job is a rotation in the journal.
type job struct {
	Rotation   uuid.UUID
	Attempt    int
	Trigger    protocol.Trigger
	KMSVersion string
	Stage      protocol.Stage
	OldVersion string
	OldSeen    bool
	NewVersion string
	PublicKey  string
	Plan       []protocol.Delivery
	Carried    bool
	LastError  string
	Tries      int
	NextTry    time.Time
	Ended      bool
}

func (s *store) putJob(ctx context.Context, j *job, now time.Time) error {
	trigger, err := json.Marshal(j.Trigger)
	if err != nil {
		return fmt.Errorf("journaling: %w", err)
	}
	plan := ""
	if j.Plan != nil {
		encoded, err := json.Marshal(j.Plan)
		if err != nil {
			return fmt.Errorf("journaling: %w", err)
		}
		plan = string(encoded)
	}
	_, err = s.db.Exec(ctx, `INSERT INTO journal (rotation_id, attempt, trigger, kms_version, stage, old_version, old_seen, new_version, public_key, plan,
			carried, last_error, tries, next_try, ended, updated_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
		ON CONFLICT (rotation_id) DO UPDATE SET attempt = excluded.attempt, trigger = excluded.trigger, kms_version = excluded.kms_version,
			stage = excluded.stage, old_version = excluded.old_version, old_seen = excluded.old_seen, new_version = excluded.new_version,
			public_key = excluded.public_key, plan = excluded.plan, carried = excluded.carried, last_error = excluded.last_error,
			tries = excluded.tries, next_try = excluded.next_try, ended = excluded.ended, updated_at = excluded.updated_at`,
		j.Rotation.String(), j.Attempt, string(trigger), j.KMSVersion, j.Stage, j.OldVersion, j.OldSeen, j.NewVersion, j.PublicKey, plan,
		j.Carried, j.LastError, j.Tries, j.NextTry.UnixMilli(), j.Ended, now.UnixMilli())
	if err != nil {
		return fmt.Errorf("journaling rotation %s: %w", j.Rotation, err)
	}
	return nil
}

// jobs returns the rotations in the journal, oldest first; open ones only if open.
func (s *store) jobs(ctx context.Context, open bool) ([]*job, error) {
	rows, err := s.db.Query(ctx, `SELECT rotation_id, attempt, trigger, kms_version, stage, old_version, old_seen, new_version, public_key, plan,
		carried, last_error, tries, next_try, ended FROM journal WHERE NOT ($1 AND ended) ORDER BY rotation_id`, open)
	if err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var jobs []*job
	for rows.Next() {
		j := &job{}
		var key, trigger, plan string
		var next int64
		err := rows.Scan(&key, &j.Attempt, &trigger, &j.KMSVersion, &j.Stage, &j.OldVersion, &j.OldSeen, &j.NewVersion, &j.PublicKey, &plan,
			&j.Carried, &j.LastError, &j.Tries, &next, &j.Ended)
		if err == nil {
			j.NextTry = time.UnixMilli(next)
			j.Rotation, err = uuid.Parse(key)
		}
		if err == nil {
			err = json.Unmarshal([]byte(trigger), &j.Trigger)
		}
		if err == nil && plan != "" {
			err = json.Unmarshal([]byte(plan), &j.Plan)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the journal: %w", err)
		}
		jobs = append(jobs, j)
	}
	return jobs, rows.Err()
}
