package keyheraldtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
)

// Cached returns a directory of the user's cache that is made once: whoever finds it missing makes it, in a temporary
// directory that gets the name when it is complete, and processes that come at once wait for him.
func Cached(name string, fill func(temporary string) error) (string, error) {
	dir, err := cachePath(name)
	if err != nil {
		return "", err
	}
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
	temporary := fmt.Sprintf("%s.%d", dir, os.Getpid())
	if err := os.MkdirAll(temporary, 0o755); err != nil {
		return "", fmt.Errorf("making the cache directory: %w", err)
	}
	if err := fill(temporary); err != nil {
		return "", errors.Join(err, os.RemoveAll(temporary))
	}
	return dir, os.Rename(temporary, dir)
}

// cachePath is where Cached keeps what has this name; it may not be there yet.
func cachePath(name string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache directory: %w", err)
	}
	return filepath.Join(cache, "keyherald", name), nil
}

// builtTool is a program for tests that is built from a module of its own, the folder of its name beside this file, so
// that nothing of it is in the product's graph.
type builtTool struct {
	name, version string
	// flags are for go build, beside those that every tool is built with.
	flags    []string
	packages []string
}

// cacheName is the tool's in Cached.
func (b builtTool) cacheName() string { return b.name + "-" + b.version }

// build returns the directory with the tool's programs, in the user's cache.
func (b builtTool) build(ctx context.Context, progress io.Writer) (string, error) {
	return Cached(b.cacheName(), func(temporary string) error {
		_, source, _, _ := runtime.Caller(0)
		_, _ = fmt.Fprintf(progress, "building %s %s (once, some minutes) …\n", b.name, b.version)
		args := slices.Concat([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", temporary + "/"}, b.flags, b.packages)
		build := exec.CommandContext(ctx, "go", args...)
		build.Dir = filepath.Join(filepath.Dir(source), b.name)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stdout, build.Stderr = progress, progress
		if err := build.Run(); err != nil {
			return fmt.Errorf("building %s: %w", b.name, err)
		}
		return nil
	})
}

// PythonEnvironment returns the Python of an environment in the user's cache that has what the requirements pin, which
// is installed the first time. Packages are run with -m: the scripts beside it name the directory they were installed in.
func PythonEnvironment(ctx context.Context, name string, requirements []byte, progress io.Writer) (string, error) {
	dir, err := Cached(name+"-"+ShortHash(requirements), func(temporary string) error {
		_, _ = fmt.Fprintf(progress, "installing %s with pip (once, a minute) …\n", name)
		pins := filepath.Join(temporary, "requirements.txt")
		if err := os.WriteFile(pins, requirements, 0o600); err != nil {
			return fmt.Errorf("installing %s: %w", name, err)
		}
		for _, args := range [][]string{
			{"python3", "-m", "venv", temporary},
			{filepath.Join(temporary, "bin", "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", pins},
		} {
			cmd := exec.CommandContext(ctx, args[0], args[1:]...)
			cmd.Stdout, cmd.Stderr = progress, progress
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("installing %s (it needs Python 3.10 or newer with venv; on Debian: apt-get install python3-venv): %w", name, err)
			}
		}
		return nil
	})
	return filepath.Join(dir, "bin", "python"), err
}

// ShortHash names content in a cache.
func ShortHash(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:6])
}
