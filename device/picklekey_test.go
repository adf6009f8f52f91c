package device

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestProcessesThatBeginAtOnceHaveOnePickleKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys", "pickle.key")
	keys, errs := make([][]byte, 32), make([]error, 32)
	begin := make(chan struct{})
	var all sync.WaitGroup
	for i := range keys {
		all.Go(func() {
			<-begin
			keys[i], errs[i] = loadPickleKey(path)
		})
	}
	close(begin)
	all.Wait()
	for i := range keys {
		if errs[i] != nil || len(keys[i]) != 32 || !bytes.Equal(keys[i], keys[0]) {
			t.Fatalf("one has %d bytes (%v), and not the key of the others", len(keys[i]), errs[i])
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info, err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("beside it is %v, %v", left, err)
	}
}
