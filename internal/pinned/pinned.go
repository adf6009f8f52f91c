// Package pinned fetches small documents over HTTPS from hosts that were named beforehand, and from nowhere else. It is
// for a server that strangers talk to: whatever they send, no request leaves to a host of their choice, none is
// redirected, and none takes long or brings much.
package pinned

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Host is one that may be asked.
type Host struct {
	// Name is the host's DNS name, with a port where that is not 443.
	Name string
	// Private lets the name lead to a loopback or private address, such as that of a company's own issuer.
	Private bool
	// Roots are who may vouch for the host; nil are the system's.
	Roots *x509.CertPool
}

// The bounds of a request.
const (
	timeout        = 5 * time.Second
	maxHeaderBytes = 16 << 10
	maxAtOnce      = 4
	// A host may be asked so often in a row, and then once in a pause.
	burst = 6
	pause = 10 * time.Second
)

// The errors of Get. Everything else is the host's or the network's fault.
var (
	ErrNotPinned = errors.New("this address is not one that may be asked")
	ErrTooOften  = errors.New("the host was asked too often just now")
)

// StatusError is a host's answer that is not 200.
type StatusError struct{ Code int }

func (e *StatusError) Error() string { return fmt.Sprintf("it answered %d", e.Code) }

// Dial makes a connection, as net.Dialer.DialContext.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Client asks its hosts. It keeps no cookies, sends no credentials, and uses no proxy.
type Client struct {
	now    func() time.Time
	hosts  map[string]*host
	places chan struct{}
}

type host struct {
	http *http.Client

	mu    sync.Mutex // guards what follows
	spent float64    // of burst
	since time.Time
}

// New makes a client of these hosts. Of one that is named twice the last naming counts. dial is for tests; nil
// connects, but never to an address that no public host has, unless the host may be private.
func New(now func() time.Time, dial Dial, hosts ...Host) *Client {
	c := &Client{now: now, hosts: map[string]*host{}, places: make(chan struct{}, maxAtOnce)}
	for _, h := range hosts {
		connect := dial
		if connect == nil {
			connect = (&net.Dialer{Timeout: timeout, ControlContext: h.control}).DialContext
		}
		c.hosts[withPort(h.Name)] = &host{http: &http.Client{
			Timeout: timeout,
			Transport: &http.Transport{
				DialContext:            connect,
				TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: h.Roots},
				TLSHandshakeTimeout:    timeout,
				MaxResponseHeaderBytes: maxHeaderBytes,
				DisableCompression:     true, // what is small packed may be large unpacked
				MaxConnsPerHost:        maxAtOnce,
				MaxIdleConns:           1,
				IdleConnTimeout:        30 * time.Second,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}}
	}
	return c
}

func withPort(name string) string {
	if _, _, err := net.SplitHostPort(name); err != nil {
		return net.JoinHostPort(name, "443")
	}
	return name
}

// Get returns the document at an address, which answers 200 with at most so many bytes. Errors do not show the
// address's query, which may hold a token.
func (c *Client) Get(ctx context.Context, address string, most int64) ([]byte, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.User != nil || u.Opaque != "" || u.Fragment != "" {
		return nil, ErrNotPinned
	}
	h, ok := c.hosts[withPort(u.Host)]
	if !ok {
		return nil, ErrNotPinned
	}
	if !h.afford(c.now()) {
		return nil, fmt.Errorf("asking %s: %w", u.Host, ErrTooOften)
	}
	select {
	case c.places <- struct{}{}:
		defer func() { <-c.places }()
	case <-ctx.Done():
		return nil, fmt.Errorf("asking %s: %w", u.Host, ctx.Err())
	}
	body, err := h.get(ctx, u, most)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", u.Host, withoutURL(err))
	}
	return body, nil
}

func (h *host) get(ctx context.Context, u *url.URL, most int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "keyherald")
	res, err := h.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, &StatusError{res.StatusCode}
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > most {
		return nil, fmt.Errorf("it answered more than %d bytes", most)
	}
	return body, nil
}

// afford takes one request from what the host may be asked.
func (h *host) afford(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if passed := now.Sub(h.since); passed > 0 {
		h.spent, h.since = max(0, h.spent-float64(passed)/float64(pause)), now
	}
	if h.spent > burst-1 {
		return false
	}
	h.spent++
	return true
}

func withoutURL(err error) error {
	var withURL *url.Error
	if errors.As(err, &withURL) {
		return withURL.Err
	}
	return err
}

// control looks at the address that a name led to, after it was resolved and before anything is sent to it.
func (h Host) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !reachable(at.Addr(), h.Private) {
		return fmt.Errorf("%s leads to %s: %w", h.Name, address, ErrNotPinned)
	}
	return nil
}

// never are addresses that nothing worth asking has, among them those where clouds keep a machine's credentials.
var never = prefixes("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
	"224.0.0.0/4", "240.0.0.0/4", "fe80::/10", "ff00::/8", "fd00:ec2::254/128", "100::/64", "2001::/23", "2001:db8::/32",
	// These carry an IPv4 address, which would have to be looked at as well.
	"2002::/16", "64:ff9b::/96", "64:ff9b:1::/48", "::/96")

// private are addresses within a company or a machine.
var private = prefixes("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")

func prefixes(list ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(list))
	for i, text := range list {
		all[i] = netip.MustParsePrefix(text)
	}
	return all
}

func reachable(address netip.Addr, mayBePrivate bool) bool {
	address = address.Unmap().WithZone("")
	within := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(prefix netip.Prefix) bool { return prefix.Contains(address) })
	}
	switch {
	case address == netip.IPv6Loopback():
		return mayBePrivate
	case !address.IsValid() || within(never):
		return false
	}
	return mayBePrivate || !within(private)
}
