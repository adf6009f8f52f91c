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
		return "", errors.New("url must be the server's address, such as https://kms.example.com")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("url must be the server's address alone: take out the user, the query and the fragment")
	}
	return strings.TrimRight(text, "/"), nil
}

// Options are files in PEM form. CAFile has the only CAs to trust; empty means the system's. CertFile and KeyFile are
// the certificate to show; they are read for each handshake, so that they can be renewed.
type Options struct {
	CAFile   string
	CertFile string
	KeyFile  string
}

// New makes a client for SDKs that read an answer's status themselves, as Around says.
func New(options Options) (*http.Client, error) {
	next, err := options.transport()
	if err != nil {
		return nil, err
	}
	return Around(next), nil
}

// NewStream makes a client for a WebSocket's handshake: it follows no redirect, and the stream's own limits are the
// caller's.
func NewStream(options Options) (*http.Client, error) {
	next, err := options.transport()
	if err != nil {
		return nil, err
	}
	// WebSockets are of HTTP/1.1.
	next.ForceAttemptHTTP2 = false
	return &http.Client{Transport: next, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

func (o Options) transport() (*http.Transport, error) {
	next := http.DefaultTransport.(*http.Transport).Clone()
	// Over HTTP/1.1 each question under way has a connection, which the next one should find.
	next.MaxIdleConnsPerHost = 16
	next.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: %s has no certificate in PEM form", o.CAFile)
		}
		next.TLSClientConfig.RootCAs = pool
	}
	if o.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("cert_file and key_file: %w", err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		next.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return next, nil
}

// Around makes a client of a transport. A failure to reach the KMS, also while the body is read, is kms.ErrUnavailable; a
// redirect, and a body that is too long, are kms.ErrMalformed.
func Around(next http.RoundTripper) *http.Client {
	return &http.Client{Transport: transport{next, timeout}}
}

// Client is for APIs that are spoken here without an SDK.
type Client struct{ http *http.Client }

// NewClient makes a Client.
func NewClient(options Options) (*Client, error) {
	client, err := New(options)
	return &Client{client}, err
}

// Do is (*http.Client).Do of a client by New, where the KMS's saying that it cannot answer now is kms.ErrUnavailable
// too, and 401 is kms.ErrForbidden.
func (c *Client) Do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return nil, errors.Join(fmt.Errorf("%w: it answered %d", kms.ErrUnavailable, resp.StatusCode), resp.Body.Close())
	case resp.StatusCode == http.StatusUnauthorized:
		return nil, errors.Join(fmt.Errorf("%w: it answered 401", kms.ErrForbidden), resp.Body.Close())
	}
	return resp, nil
}

// transport keeps the time itself: a Timeout of http.Client would put its own error in the place of ours where it ends
// the reading of a body.
type transport struct {
	next    http.RoundTripper
	timeout time.Duration
}

func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(req.Context(), t.timeout)
	resp, err := t.next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, unavailable(err)
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 400 && resp.StatusCode != http.StatusNotModified {
		err := errors.Join(fmt.Errorf("%w: it answered %d, and redirects are not followed", kms.ErrMalformed, resp.StatusCode), resp.Body.Close())
		cancel()
		return nil, err
	}
	resp.Body = &limited{ReadCloser: resp.Body, cancel: cancel, left: maxResponse}
	return resp, nil
}

// CloseIdleConnections is what http.Client's asks for: the next request shakes hands anew.
func (t transport) CloseIdleConnections() {
	if closer, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
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
	cancel context.CancelFunc
	left   int
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

func (l *limited) Close() error {
	l.cancel()
	return l.ReadCloser.Close()
}
