package keyheraldtest

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
)

// Tap is a TCP proxy that keeps every byte of both directions, so that a search can tell what went over the wire.
type Tap struct {
	target   string
	listener net.Listener

	mu    sync.Mutex // guards bytes and conns
	bytes []byte
	conns []net.Conn
}

// StartTap listens on a free port of the loopback address and forwards to target, host:port.
func StartTap(target string) (*Tap, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting a tap: %w", err)
	}
	t := &Tap{target: target, listener: listener}
	go t.serve()
	return t, nil
}

// Address is where the tap listens, host:port.
func (t *Tap) Address() string { return t.listener.Addr().String() }

// Through is a URL of the target, led through the tap.
func (t *Tap) Through(target string) (string, error) {
	u, err := url.Parse(target)
	if err != nil {
		return "", fmt.Errorf("leading %q through a tap: %w", target, err)
	}
	u.Host = t.Address()
	return u.String(), nil
}

// Bytes is what was seen so far. The parts of several connections are mixed as they came.
func (t *Tap) Bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]byte(nil), t.bytes...)
}

// Close ends the tap and every connection through it.
func (t *Tap) Close() error {
	err := t.listener.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, conn := range t.conns {
		_ = conn.Close()
	}
	return err
}

func (t *Tap) serve() {
	for {
		client, err := t.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", t.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		t.mu.Lock()
		t.conns = append(t.conns, client, server)
		t.mu.Unlock()
		go t.copy(server, client)
		go t.copy(client, server)
	}
}

func (t *Tap) copy(to, from net.Conn) {
	_, _ = io.Copy(io.MultiWriter(recorder{t}, to), from)
	_ = to.Close()
	_ = from.Close()
}

type recorder struct{ tap *Tap }

func (r recorder) Write(p []byte) (int, error) {
	r.tap.mu.Lock()
	defer r.tap.mu.Unlock()
	r.tap.bytes = append(r.tap.bytes, p...)
	return len(p), nil
}
