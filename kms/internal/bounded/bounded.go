// Package bounded makes the HTTP clients that talk to a KMS: bounded in time and size, never redirected, and trusting
// one CA alone where the configuration names it. Failures come back as package kms's errors.
package bounded

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/keyherald/keyherald/kms"
)

const (
	timeout     = 10 * time.Second
	maxResponse = 1 << 20
)

// BaseURL checks a KMS's address and returns it without a trailing slash.
func BaseURL(text string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https"):
		return "", errors.New("url must be the server's address, such as https://setec.example.ts.net")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("url must be the server's address alone: take out the user, the query and the fragment")
	}
	return strings.TrimRight(text, "/"), nil
}

// Client does requests to one KMS.
type Client struct{ http *http.Client }

// New makes a Client. caFile is a PEM file with the only CAs to trust; empty means the system's.
func New(caFile string) (*Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: %s has no certificate in PEM form", caFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &Client{&http.Client{
		Timeout:   timeout,
		Transport: transport,
		// A redirect is then an answer like another, and no answer a KMS gives.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Do is (*http.Client).Do. A failure to reach the KMS, also while the body is read, and its saying that it cannot
// answer now are kms.ErrUnavailable; 401 is kms.ErrForbidden; a body that is too long is kms.ErrMalformed.
func (c *Client) Do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, unavailable(err)
	}
	switch {
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return nil, errors.Join(fmt.Errorf("%w: it answered %d", kms.ErrUnavailable, resp.StatusCode), resp.Body.Close())
	case resp.StatusCode == http.StatusUnauthorized:
		return nil, errors.Join(fmt.Errorf("%w: it answered 401", kms.ErrForbidden), resp.Body.Close())
	}
	resp.Body = &limited{ReadCloser: resp.Body, left: maxResponse}
	return resp, nil
}

// unavailable leaves alone what the caller himself cancelled.
func unavailable(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%w: %w", kms.ErrUnavailable, err)
}

// limited fails a body that is too long, where io.LimitReader would cut it.
type limited struct {
	io.ReadCloser
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left < 0 {
		return 0, fmt.Errorf("%w: it is longer than %d bytes", kms.ErrMalformed, maxResponse)
	}
	// One byte more than allowed is asked for, so that a body of exactly the limit still ends in io.EOF.
	n, err := l.ReadCloser.Read(p[:min(len(p), l.left+1)])
	l.left -= n
	switch {
	case l.left < 0:
		return n, fmt.Errorf("%w: it is longer than %d bytes", kms.ErrMalformed, maxResponse)
	case err != nil && !errors.Is(err, io.EOF):
		return n, unavailable(err)
	}
	return n, err
}
