// Package senders speaks to the intake as key-management systems do, and as those who pretend to be one. Everything that
// signs is made anew for each World: no key of a real service is here, and no host of one is asked.
package senders

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/intake"
)

// Start is when every World begins.
var Start = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

// The hosts that a World has, under their real names.
const (
	microsoft = "login.microsoftonline.com:443"
	google    = "www.googleapis.com:443"
	company   = "idp.example.org:443"
	amazon    = "sns.eu-central-1.amazonaws.com:443"
)

// World is the senders, their keys, and the hosts where the intake looks for their public halves.
type World struct {
	t   testing.TB
	dir string

	ca, clientCA, strangerCA authority
	roots                    *x509.CertPool
	issuers                  map[string]*rsa.PrivateKey // by host
	stranger                 *rsa.PrivateKey            // of nobody
	signer                   *rsa.PrivateKey            // of SNS
	pages                    map[string][]byte          // what the hosts serve, by host and path
	server                   *httptest.Server

	mu     sync.Mutex // guards what follows
	now    time.Time
	dialed []string
	asked  []string
	down   bool
}

type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// New makes a World; it ends with the test.
func New(t testing.TB) *World {
	t.Helper()
	w := &World{t: t, dir: t.TempDir(), now: Start, pages: map[string][]byte{}}
	w.ca, w.clientCA, w.strangerCA = w.authority("hosts"), w.authority("clients"), w.authority("strangers")
	w.roots = x509.NewCertPool()
	w.roots.AddCert(w.ca.certificate)
	keys := rsaKeys()
	w.stranger, w.signer = keys[0], keys[1]
	w.issuers = map[string]*rsa.PrivateKey{microsoft: keys[2], google: keys[3], company: keys[4]}
	for host, path := range map[string]string{microsoft: entraKeys, google: "/oauth2/v3/certs", company: "/keys"} {
		body, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: w.issuers[host].Public(), KeyID: "key-1", Use: "sig", Algorithm: "RS256"}}})
		w.check(err)
		w.pages[host+path] = body
	}
	w.signingCertificates()
	w.serve()
	return w
}

func (w *World) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// Now is the World's clock.
func (w *World) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// Pass moves the clock on.
func (w *World) Pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

// Deps are an intake's, in this World.
func (w *World) Deps(recorder intake.Recorder) intake.Deps {
	return intake.Deps{Recorder: recorder, Now: w.Now, Log: zerolog.Nop(), Dial: w.dial, Roots: w.roots}
}

// dial leads the World's hosts to its server, notes every other, and reaches none of those.
func (w *World) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	w.dialed = append(w.dialed, address)
	down := w.down
	w.mu.Unlock()
	if down || !slices.Contains([]string{microsoft, google, company, amazon}, address) {
		return nil, fmt.Errorf("%s is not reachable", address)
	}
	return (&net.Dialer{}).DialContext(ctx, network, w.server.Listener.Addr().String())
}

// Foreign are the addresses that the intake tried to reach and that are none of the pinned hosts.
func (w *World) Foreign() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var foreign []string
	for _, address := range w.dialed {
		if !slices.Contains([]string{microsoft, google, company, amazon}, address) {
			foreign = append(foreign, address)
		}
	}
	return foreign
}

// Asked are the addresses, without queries, that the hosts were asked for.
func (w *World) Asked() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.asked)
}

// SetDown makes the hosts unreachable.
func (w *World) SetDown(down bool) {
	w.mu.Lock()
	w.down = down
	w.mu.Unlock()
	if down {
		w.server.CloseClientConnections()
	}
}

func (w *World) serve() {
	w.server = httptest.NewUnstartedServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		page := net.JoinHostPort(r.Host, "443") + r.URL.Path
		w.mu.Lock()
		w.asked = append(w.asked, page)
		body, ok := w.pages[page]
		w.mu.Unlock()
		if !ok {
			out.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = out.Write(body)
	}))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.check(err)
	names := []string{"login.microsoftonline.com", "www.googleapis.com", "idp.example.org", "sns.eu-central-1.amazonaws.com"}
	der := w.ca.issue(w, key.Public(), func(c *x509.Certificate) { c.DNSNames = names })
	w.server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	w.server.StartTLS()
	w.t.Cleanup(w.server.Close)
}

// rsaKeys are made once in a test program: they take longer than everything else here.
var rsaKeys = sync.OnceValue(func() []*rsa.PrivateKey {
	keys := make([]*rsa.PrivateKey, 5)
	for i := range keys {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = key
	}
	return keys
})

func (w *World) authority(name string) authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.check(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA of " + name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: Start.AddDate(-1, 0, 0), NotAfter: Start.AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	w.check(err)
	certificate, err := x509.ParseCertificate(der)
	w.check(err)
	w.check(os.WriteFile(filepath.Join(w.dir, name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return authority{certificate, key}
}

// issue makes a certificate that is good for a server, from a year before the real time or Start to ten years after.
func (a authority) issue(w *World, public crypto.PublicKey, change func(*x509.Certificate)) []byte {
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: Start.AddDate(-1, 0, 0), NotAfter: Start.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, public, a.key)
	w.check(err)
	return der
}

// Memory is a Recorder that keeps what it is told, by the rules of the database.
type Memory struct {
	mu         sync.Mutex
	known      map[[2]string]intake.Notification
	Accepted   []intake.Notification
	Unusables  []intake.Notification
	Handshakes []string
	Refusals   map[string]int // by source and reason
	Ignorances map[string]int // by source and kind
	Fail       bool           // makes every call an error
}

// NewMemory makes an empty one.
func NewMemory() *Memory {
	return &Memory{known: map[[2]string]intake.Notification{}, Refusals: map[string]int{}, Ignorances: map[string]int{}}
}

var errFail = errors.New("the memory fails on purpose")

func (m *Memory) keep(n intake.Notification, list *[]intake.Notification) (intake.Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Fail {
		return intake.Receipt{}, errFail
	}
	key := [2]string{n.Source, n.ID}
	before, ok := m.known[key]
	switch {
	case !ok:
		m.known[key] = n
		*list = append(*list, n)
		return intake.Receipt{Answer: intake.Fresh}, nil
	case before.BodySHA256 == n.BodySHA256:
		return intake.Receipt{Answer: intake.Duplicate}, nil
	}
	return intake.Receipt{Answer: intake.Conflict}, nil
}

// Accept keeps a notification.
func (m *Memory) Accept(_ context.Context, n intake.Notification) (intake.Receipt, error) {
	return m.keep(n, &m.Accepted)
}

// Unusable keeps one that is of no use.
func (m *Memory) Unusable(_ context.Context, n intake.Notification, _ intake.Problem) (intake.Receipt, error) {
	return m.keep(n, &m.Unusables)
}

// Handshake keeps that there was one.
func (m *Memory) Handshake(_ context.Context, source audit.SourceName, key audit.CredentialID, kind audit.Handshake) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Fail {
		return errFail
	}
	m.Handshakes = append(m.Handshakes, string(source)+" "+string(key)+" "+string(kind))
	return nil
}

// Ignored counts.
func (m *Memory) Ignored(_ context.Context, source audit.SourceName, how audit.Ignored, _ time.Time, count int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Fail {
		return errFail
	}
	m.Ignorances[string(source)+" "+string(how)] += count
	return nil
}

// Refused counts.
func (m *Memory) Refused(_ context.Context, source audit.SourceName, why audit.Refusal, _ time.Time, count int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Fail {
		return errFail
	}
	m.Refusals[string(source)+" "+string(why)] += count
	return nil
}

// Count is how many notifications were accepted.
func (m *Memory) Count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.Accepted)
}
