package keyheraldtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// S3 is a store on a directory: Versity's S3 gateway (Apache-2.0, a test tool alone), with one bucket.
type S3 struct {
	Endpoint, Region, Bucket     string
	AccessKeyID, SecretAccessKey string
	// Dir is where the bucket's objects are files.
	Dir     string
	process *Process
}

// S3Binaries returns the directory with the gateway's program, which is built the first time.
func S3Binaries(ctx context.Context, progress io.Writer) (string, error) {
	return builtTool{name: "s3gateway", version: "v1.0.14", packages: []string{"github.com/versity/versitygw/cmd/versitygw"}}.build(ctx, progress)
}

// StartS3 starts a store in dir; Close ends it.
func StartS3(ctx context.Context, dir string) (*S3, error) {
	bin, err := S3Binaries(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	s := &S3{Endpoint: fmt.Sprintf("http://127.0.0.1:%d", port), Region: "us-east-1", Bucket: "checkpoints", AccessKeyID: "keyherald", SecretAccessKey: "only for a test"}
	s.Dir = filepath.Join(dir, "s3", s.Bucket)
	if err := errors.Join(os.MkdirAll(s.Dir, 0o755), os.MkdirAll(filepath.Join(dir, "metadata-of-s3"), 0o755)); err != nil {
		return nil, fmt.Errorf("making the store's directories: %w", err)
	}
	// Metadata beside the files: not every file system that tests run on has extended attributes.
	cmd := exec.Command(filepath.Join(bin, "versitygw"), "--quiet", "--port", strings.TrimPrefix(s.Endpoint, "http://"), "--access", s.AccessKeyID,
		"--secret", s.SecretAccessKey, "--region", s.Region, "posix", "--sidecar", filepath.Join(dir, "metadata-of-s3"), filepath.Dir(s.Dir))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if s.process, err = StartProcess(cmd); err != nil {
		return nil, fmt.Errorf("starting the store: %w", err)
	}
	err = Until(ctx, 2*time.Minute, func() error {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.Endpoint, "http://"))
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		err = errors.Join(err, s.Close())
		return nil, fmt.Errorf("waiting for the store: %w: %s", err, said.String())
	}
	return s, nil
}

// Close ends the store.
func (s *S3) Close() error { return s.process.Kill() }
