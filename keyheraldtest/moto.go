package keyheraldtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // the pins
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const motoVersion = "5.2.5"

// MotoRegion is the region that Moto is asked for.
const MotoRegion = "eu-central-1"

//go:embed moto-requirements.txt
var motoRequirements []byte

// MotoEnvironment returns the Python that moto runs with, which is installed the first time.
func MotoEnvironment(ctx context.Context, progress io.Writer) (string, error) {
	return PythonEnvironment(ctx, "moto-"+motoVersion, motoRequirements, progress)
}

// Moto is a server that imitates AWS. It checks signatures, and which actions a user's policies permit, but not on what.
type Moto struct {
	URL     string
	admin   aws.Credentials
	process *Process
}

// StartMoto starts a server with its log in dir.
func StartMoto(ctx context.Context, dir string) (*Moto, error) {
	python, err := MotoEnvironment(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	m := &Moto{URL: fmt.Sprintf("http://127.0.0.1:%d", port)}
	log, err := os.Create(filepath.Join(dir, "moto.log"))
	if err != nil {
		return nil, fmt.Errorf("making moto's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(python, "-m", "moto.server", "-H", "127.0.0.1", "-p", fmt.Sprint(port))
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	if m.process, err = StartProcess(cmd); err != nil {
		return nil, fmt.Errorf("starting moto: %w", err)
	}
	if err := m.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("waiting for moto (see %s/moto.log): %w", dir, err), m.Close())
	}
	return m, nil
}

// prepare makes an administrator, and then has every request checked.
func (m *Moto) prepare(ctx context.Context) error {
	m.admin = aws.Credentials{AccessKeyID: "nobody", SecretAccessKey: "nobody"}
	err := Until(ctx, 60*time.Second, func() (err error) {
		m.admin, err = m.User(ctx, "admin", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`)
		return err
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL+"/moto-api/reset-auth", strings.NewReader("0"))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Close ends the server.
func (m *Moto) Close() error { return m.process.Kill() }

// Admin may do everything.
func (m *Moto) Admin() aws.Credentials { return m.admin }

// User makes a user with one policy, or none, and a key.
func (m *Moto) User(ctx context.Context, name, policy string) (aws.Credentials, error) {
	if _, err := m.iam(ctx, "CreateUser", "UserName", name); err != nil {
		return aws.Credentials{}, err
	}
	if policy != "" {
		if _, err := m.iam(ctx, "PutUserPolicy", "UserName", name, "PolicyName", "keyherald", "PolicyDocument", policy); err != nil {
			return aws.Credentials{}, err
		}
	}
	raw, err := m.iam(ctx, "CreateAccessKey", "UserName", name)
	if err != nil {
		return aws.Credentials{}, err
	}
	var answer struct {
		ID     string `xml:"CreateAccessKeyResult>AccessKey>AccessKeyId"`
		Secret string `xml:"CreateAccessKeyResult>AccessKey>SecretAccessKey"`
	}
	if err := xml.Unmarshal(raw, &answer); err != nil {
		return aws.Credentials{}, fmt.Errorf("reading an access key: %w", err)
	}
	return aws.Credentials{AccessKeyID: answer.ID, SecretAccessKey: answer.Secret}, nil
}

// iam does one request of IAM's query protocol, as the administrator.
func (m *Moto) iam(ctx context.Context, action string, parameters ...string) ([]byte, error) {
	form := url.Values{"Action": {action}, "Version": {"2010-05-08"}}
	for i := 0; i < len(parameters); i += 2 {
		form.Set(parameters[i], parameters[i+1])
	}
	body := []byte(form.Encode())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL+"/", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("making a request to moto: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	hash := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(ctx, m.admin, req, hex.EncodeToString(hash[:]), "iam", "us-east-1", time.Now()); err != nil {
		return nil, fmt.Errorf("signing a request to moto: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: moto answered %s: %s", action, resp.Status, raw)
	}
	return raw, err
}
