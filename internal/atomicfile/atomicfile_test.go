package atomicfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/keyherald/keyherald/internal/atomicfile"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// names are all files of a directory.
func names(t *testing.T, dir string) (found []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	for _, entry := range entries {
		found = append(found, entry.Name())
	}
	return found
}

func TestAFileIsThereOnlyWhenItIsCommitted(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	f, err := atomicfile.Create(path, 0o600)
	check(t, err)
	_, err = f.WriteString("new")
	check(t, err)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is there before: %v", err)
	}
	check(t, f.Commit(false))
	content, err := os.ReadFile(path)
	check(t, err)
	info, err := os.Stat(path)
	check(t, err)
	if string(content) != "new" || info.Mode().Perm() != 0o600 || len(names(t, dir)) != 1 {
		t.Errorf("it is %q with mode %v, beside %v", content, info.Mode(), names(t, dir))
	}
	check(t, f.Abort()) // after Commit: nothing
	if f.Commit(true) == nil {
		t.Error("it is committed twice")
	}
}

func TestWhatIsThereIsReplacedOnlyOnPurpose(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	check(t, atomicfile.Replace(path, []byte("old"), 0o644))
	f, err := atomicfile.Create(path, 0o600)
	check(t, err)
	if err := f.Commit(false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("it says %v", err)
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "old" || len(names(t, dir)) != 1 {
		t.Errorf("it is %q (%v), beside %v", content, err, names(t, dir))
	}
	check(t, atomicfile.Replace(path, []byte("new"), 0o644))
	if content, err := os.ReadFile(path); err != nil || string(content) != "new" {
		t.Errorf("it is %q (%v)", content, err)
	}
}

func TestAnAbortedFileLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	f, err := atomicfile.Create(filepath.Join(dir, "out"), 0o600)
	check(t, err)
	check(t, f.Abort())
	if found := names(t, dir); len(found) != 0 {
		t.Errorf("there are %v", found)
	}
}
