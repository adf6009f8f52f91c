package keyheraldtest

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

// builtTool is a program for tests that is built from a module of its own, the folder of its name beside this file, so
// that nothing of it is in the product's graph.
type builtTool struct {
	name, version string
	packages      []string
}

// build returns the directory with the tool's programs, in the user's cache. The first time they are built; processes
// that come at once wait for the one that builds.
func (b builtTool) build(ctx context.Context, progress io.Writer) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache directory: %w", err)
	}
	dir := filepath.Join(cache, "keyherald", b.name+"-"+b.version)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("making the cache directory: %w", err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", fmt.Errorf("locking the cache directory: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("locking the cache directory: %w", err)
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	_, source, _, _ := runtime.Caller(0)
	_, _ = fmt.Fprintf(progress, "building %s %s (once, some minutes) …\n", b.name, b.version)
	temporary := fmt.Sprintf("%s.%d", dir, os.Getpid())
	build := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", temporary + "/"}, b.packages...)...)
	build.Dir = filepath.Join(filepath.Dir(source), b.name)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = progress, progress
	if err := os.MkdirAll(temporary, 0o755); err != nil {
		return "", fmt.Errorf("making the build directory: %w", err)
	}
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("building %s: %w", b.name, err)
	}
	return dir, os.Rename(temporary, dir)
}
