package chaos

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// link is a TCP connection's way that can be cut and slowed down.
type link struct {
	target   string
	listener net.Listener

	mu    sync.Mutex // guards the rest
	delay time.Duration
	conns map[net.Conn]bool
}

func newLink(target string) (*link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &link{target: target, listener: listener, conns: map[net.Conn]bool{}}
	go l.serve()
	return l, nil
}

func (l *link) address() string { return l.listener.Addr().String() }

// cut ends every connection; new ones may come at once.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn := range l.conns {
		_ = conn.Close()
	}
}

// slow holds every packet back for a while.
func (l *link) slow(delay time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = delay
}

func (l *link) close() error {
	err := l.listener.Close()
	l.cut()
	return err
}

func (l *link) serve() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", l.target)
		if err != nil {
			_ = near.Close()
			continue
		}
		l.mu.Lock()
		l.conns[near], l.conns[far] = true, true
		l.mu.Unlock()
		go l.copy(far, near)
		go l.copy(near, far)
	}
}

func (l *link) copy(to, from net.Conn) {
	_, _ = io.Copy(writer{l, to}, from)
	_ = to.Close()
	_ = from.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, from)
}

type writer struct {
	link *link
	to   net.Conn
}

func (w writer) Write(p []byte) (int, error) {
	w.link.mu.Lock()
	delay := w.link.delay
	w.link.mu.Unlock()
	time.Sleep(delay)
	return w.to.Write(p)
}

// mood is how a gate answers.
type mood int

const (
	calm      mood = iota
	refusing       // 503, and nothing is done
	limiting       // 429 with Retry-After, and nothing is done
	lossy          // done, and answered 502
	hangingUp      // done, and the connection is closed without an answer
)

var moodNames = map[mood]string{refusing: "503", limiting: "429", lossy: "done, answered 502", hangingUp: "done, connection cut"}

// gate stands before an HTTP server and answers in its place at times.
type gate struct {
	url    string
	server *http.Server

	mu   sync.Mutex // guards the rest
	mood mood
	// first, if set, is called once for each key-backup version, before the first request that puts room keys into it
	// reaches the server; putting is how many such requests are under way.
	first   func(version string)
	seen    map[string]bool
	putting int
}

func newGate(target string) (*gate, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	g := &gate{url: "http://" + listener.Addr().String(), seen: map[string]bool{}}
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	g.server = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.pass(proxy, w, r) })}
	go func() { _ = g.server.Serve(listener) }()
	return g, nil
}

func (g *gate) set(m mood) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mood = m
}

// carrying reports whether a request is under way that puts room keys into a version.
func (g *gate) carrying() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.putting > 0
}

func (g *gate) onFirst(first func(version string)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.first = first
}

// put is told of such a request, and returns what is called when it is over.
func (g *gate) put(version string) func() {
	g.mu.Lock()
	first := g.first
	if g.seen[version] {
		first = nil
	}
	g.seen[version] = true
	g.putting++
	g.mu.Unlock()
	if first != nil {
		first(version)
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.putting--
	}
}

func (g *gate) close() error { return g.server.Close() }

func (g *gate) pass(proxy http.Handler, w http.ResponseWriter, r *http.Request) {
	// Read whole before it goes on: where a server answers while the body is still on its way, the proxy's connection to it
	// may be closed with the answer half read, and that would be a fault that the schedule does not have.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	g.mu.Lock()
	m := g.mood
	g.mu.Unlock()
	if version := roomKeysInto(r); version != "" && m != refusing && m != limiting {
		defer g.put(version)()
	}
	switch m {
	case calm:
		proxy.ServeHTTP(w, r)
	case refusing:
		answer(w, http.StatusServiceUnavailable)
	case limiting:
		w.Header().Set("Retry-After", strconv.Itoa(1))
		answer(w, http.StatusTooManyRequests)
	case lossy, hangingUp:
		proxy.ServeHTTP(discard{http.Header{}}, r)
		if m == hangingUp {
			panic(http.ErrAbortHandler)
		}
		answer(w, http.StatusBadGateway)
	}
}

func answer(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `{"errcode":"M_UNKNOWN","error":"chaos"}`)
}

// discard takes an answer that nobody hears.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}
