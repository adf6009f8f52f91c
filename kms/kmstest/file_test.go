package kmstest_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/filemeta"
	"github.com/keyherald/keyherald/kms/filesecret"
	"github.com/keyherald/keyherald/kms/kmstest"
)

func TestTheDirectoryKMSConforms(t *testing.T) {
	kmstest.Run(t, kmstest.Traits{HasPublicKey: true, Local: true, Absent: "99"}, func(t *testing.T) kmstest.KMS {
		dir := t.TempDir()
		metadata, err := filemeta.New(filemeta.Config{Dir: dir})
		check(t, err)
		secrets, err := filesecret.New(filesecret.Config{Dir: dir})
		check(t, err)
		return kmstest.KMS{Metadata: unprivileged{metadata, dir}, Privileged: metadata, Secrets: secrets, ReadOnly: readOnly{secrets, dir}, Put: directory(dir).put}
	})
}

type directory string

func (d directory) put(t *testing.T, path, value, public string) string {
	t.Helper()
	dir := filepath.Join(string(d), filepath.FromSlash(path))
	check(t, os.MkdirAll(dir, 0o755))
	present, err := filepath.Glob(filepath.Join(dir, "*.key"))
	check(t, err)
	version := strconv.Itoa(len(present) + 1)
	if public != "" {
		check(t, os.WriteFile(filepath.Join(dir, version+".pub"), []byte(public+"\n"), 0o644))
	}
	check(t, os.WriteFile(filepath.Join(dir, version+".key"), []byte(value), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "current"), []byte(version+"\n"), 0o644))
	return version
}

// unprivileged is the metadata client as somebody who may not open the keys.
type unprivileged struct {
	*filemeta.Client
	dir string
}

func (u unprivileged) CanReadSecret(ctx context.Context, path string) (readable bool, err error) {
	keys, err := filepath.Glob(filepath.Join(u.dir, path, "*.key"))
	if err != nil {
		return false, err
	}
	err = refused(keys, func() (err error) {
		readable, err = u.Client.CanReadSecret(ctx, path)
		return err
	})
	return readable, err
}

// readOnly is the secrets' client as somebody who may not write.
type readOnly struct {
	*filesecret.Client
	dir string
}

func (r readOnly) Write(ctx context.Context, path, after string, key backupkey.Key) (version string, err error) {
	err = refused([]string{filepath.Join(r.dir, path), r.dir}, func() (err error) {
		version, err = r.Client.Write(ctx, path, after, key)
		return err
	})
	return version, err
}

func (r readOnly) Create(ctx context.Context, path, value string) error {
	return refused([]string{r.dir}, func() error { return r.Client.Create(ctx, path, value) })
}

// refused does something while the files have no rights for anybody, or as nobody where the tests run as root, whom no
// file mode stops.
func refused(files []string, do func() error) (err error) {
	if os.Geteuid() == 0 {
		// The thread's file-system identity alone is changed, and only while this goroutine has the thread to itself.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		const nobody = 65534
		if err := syscall.Setfsuid(nobody); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, syscall.Setfsuid(0)) }()
		return do()
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		if err := os.Chmod(file, 0); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.Chmod(file, info.Mode())) }()
	}
	return do()
}

func TestAKeyThatOthersMayReadIsRefused(t *testing.T) {
	dir := t.TempDir()
	key, err := backupkey.Generate()
	check(t, err)
	directory(dir).put(t, "alice", key.RevealBase64(), key.PublicKey())
	check(t, os.Chmod(filepath.Join(dir, "alice", "1.key"), 0o640))
	secrets, err := filesecret.New(filesecret.Config{Dir: dir})
	check(t, err)
	if _, err := secrets.Fetch(t.Context(), "alice", ""); !errors.Is(err, kms.ErrForbidden) || !strings.Contains(err.Error(), "chmod 0600") {
		t.Fatalf("got %v, which must say what to do", err)
	}
}

func TestALinkOutOfTheDirectoryIsNotFollowed(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	key, err := backupkey.Generate()
	check(t, err)
	directory(outside).put(t, "alice", key.RevealBase64(), key.PublicKey())
	check(t, os.Symlink(filepath.Join(outside, "alice"), filepath.Join(dir, "alice")))
	secrets, err := filesecret.New(filesecret.Config{Dir: dir})
	check(t, err)
	if value, err := secrets.Fetch(t.Context(), "alice", "1"); err == nil {
		t.Fatalf("version %s was read through a link", value.Version)
	}
}

func TestACurrentFileThatNamesAPathIsMalformed(t *testing.T) {
	dir := t.TempDir()
	key, err := backupkey.Generate()
	check(t, err)
	directory(dir).put(t, "alice", key.RevealBase64(), key.PublicKey())
	check(t, os.WriteFile(filepath.Join(dir, "alice", "current"), []byte("../alice/1"), 0o644))
	metadata, err := filemeta.New(filemeta.Config{Dir: dir})
	check(t, err)
	if _, err := metadata.Current(t.Context(), "alice"); !errors.Is(err, kms.ErrMalformed) {
		t.Fatalf("got %v", err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
