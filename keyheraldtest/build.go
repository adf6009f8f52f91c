package keyheraldtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

// once makes a directory of the user's cache unless it is there, whoever else may be at it.
func once(dir string, make func() error) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("making the cache directory: %w", err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("locking the cache directory: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("locking the cache directory: %w", err)
	}
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	return make()
}

// buildInto builds packages of one of the test tools' own modules, beside this file, and gives dir its name when they
// are all there.
func buildInto(ctx context.Context, progress io.Writer, module, dir string, args ...string) error {
	_, source, _, _ := runtime.Caller(0)
	temporary := fmt.Sprintf("%s.%d", dir, os.Getpid())
	if err := os.MkdirAll(temporary, 0o755); err != nil {
		return fmt.Errorf("making the build directory: %w", err)
	}
	build := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", temporary + "/"}, args...)...)
	build.Dir = filepath.Join(filepath.Dir(source), module)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = progress, progress
	if err := build.Run(); err != nil {
		return fmt.Errorf("building %s: %w", module, err)
	}
	return os.Rename(temporary, dir)
}

// trusting is a client that trusts the CAs of a PEM file, or the system's where there is none.
func trusting(caFile string) (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("reading a CA: %w", err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{Transport: transport}, nil
}
