package intake_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest/senders"
)

// listen serves an intake over TCP, with the limits that the server has.
func listen(t *testing.T, w *senders.World, recorder intake.Recorder, bodyTime time.Duration) (address string) {
	t.Helper()
	deps := w.Deps(recorder)
	deps.BodyTime = bodyTime
	handler, err := intake.New(w.Config(), deps)
	if err != nil {
		t.Fatal(err)
	}
	web := echo.New()
	handler.Register(web)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: web, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, MaxHeaderBytes: intake.MaxHeader}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		if err := errors.Join(server.Close(), <-done); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// speak sends bytes as they are, and returns the answer's first line.
func speak(t *testing.T, address string, parts ...string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for _, part := range parts {
		if _, err := io.WriteString(conn, part); err != nil {
			break // it was refused before all of it was sent
		}
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

func TestHostileConnections(t *testing.T) {
	w, memory := senders.New(t), senders.NewMemory()
	address := listen(t, w, memory, 3*time.Second)
	s := w.Sender("kms")
	r := s.Send(s.Event("tcp", "alice", "7"))
	head := "POST /notify/kms HTTP/1.1\r\nHost: x\r\n"
	for _, header := range r.Headers {
		head += header[0] + ": " + header[1] + "\r\n"
	}
	length := fmt.Sprintf("Content-Length: %d\r\n", len(r.Body))
	chunked := fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(r.Body), r.Body)
	for _, test := range []struct {
		name, want string
		parts      []string
	}{
		{"no length at all", "HTTP/1.1 401", []string{head + "Connection: close\r\n\r\n"}}, // so no body, which nobody signed
		{"two lengths", "HTTP/1.1 400", []string{head + length + "Content-Length: 1\r\n\r\n" + r.Body}},
		{"a length that is negative", "HTTP/1.1 400", []string{head + "Content-Length: -1\r\n\r\n" + r.Body}},
		{"a length with a sign", "HTTP/1.1 400", []string{head + "Content-Length: +10\r\n\r\n" + r.Body}},
		{"chunks of which the header comes twice", "HTTP/1.1 501", []string{head + "Transfer-Encoding: chunked\r\n" + chunked}},
		{"an encoding that nobody knows", "HTTP/1.1 501", []string{head + "Transfer-Encoding: x-chunked\r\n\r\n" + r.Body}},
		{"a length larger than 64 KiB, and nothing more", "HTTP/1.1 413", []string{head + "Content-Length: 1000000000\r\n\r\n"}},
		{"chunks without an end", "HTTP/1.1 413", []string{head + "Transfer-Encoding: chunked\r\n\r\n", strings.Repeat("1000\r\n"+strings.Repeat("x", 0x1000)+"\r\n", 40)}},
		{"a chunk that is longer than it says", "HTTP/1.1 400", []string{head + "Transfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n"}},
		{"a header of 80 KiB", "HTTP/1.1 431", []string{head + length + "X: " + strings.Repeat("x", 80<<10) + "\r\n\r\n" + r.Body}},
		{"ten thousand headers", "HTTP/1.1 431", []string{head + length + strings.Repeat("X: 12345678\r\n", 10_000) + "\r\n" + r.Body}},
		{"a header with a space before the colon", "HTTP/1.1 400", []string{head + length + "Webhook-Id : x\r\n\r\n" + r.Body}},
		{"a header with a NUL", "HTTP/1.1 400", []string{head + length + "X: \x00\r\n\r\n" + r.Body}},
		{"a host twice", "HTTP/1.1 400", []string{head + "Host: y\r\n" + length + "\r\n" + r.Body}},
		{"no HTTP", "HTTP/1.1 400", []string{"hello\r\n\r\n"}},
		{"a body that stops", "HTTP/1.1 408", []string{head + length + "\r\n" + r.Body[:10]}},
		{"a body that stops, in chunks", "HTTP/1.1 408", []string{head + "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"spe"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := memory.Count()
			if got := speak(t, address, test.parts...); !strings.HasPrefix(got, test.want) {
				t.Errorf("got %s, want %s", got, test.want)
			}
			if memory.Count() != before {
				t.Error("it was accepted")
			}
		})
	}
	t.Run("an honest sender is heard, in chunks too", func(t *testing.T) {
		if got := speak(t, address, head+chunked); !strings.HasPrefix(got, "HTTP/1.1 202") {
			t.Errorf("got %s", got)
		}
	})
}

// Many who send their bodies slowly take nothing away from a sender who does not.
func TestSlowSendersHoldUpNobody(t *testing.T) {
	w, memory := senders.New(t), senders.NewMemory()
	address := listen(t, w, memory, 2*time.Second)
	const slow = 400 // more than are verified at once
	var started, ended sync.WaitGroup
	started.Add(slow)
	for range slow {
		ended.Go(func() {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				started.Done()
				t.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			_, err = io.WriteString(conn, "POST /notify/kms HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
			started.Done()
			if err != nil {
				t.Error(err)
				return
			}
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil || !strings.HasPrefix(line, "HTTP/1.1 408") {
				t.Errorf("a slow sender got %q, %v", line, err)
			}
		})
	}
	started.Wait()
	s := w.Sender("kms")
	r := s.Send(s.Event("quick", "alice", "7"))
	head := "POST /notify/kms HTTP/1.1\r\nHost: x\r\n"
	for _, header := range r.Headers {
		head += header[0] + ": " + header[1] + "\r\n"
	}
	if got := speak(t, address, head+fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(r.Body), r.Body)); !strings.HasPrefix(got, "HTTP/1.1 202") {
		t.Errorf("got %s", got)
	}
	ended.Wait()
}

// A certificate counts as it comes out of a TLS handshake, too.
func TestClientCertificatesOverTLS(t *testing.T) {
	w, memory := senders.New(t), senders.NewMemory()
	web := newWeb(t, w, memory)
	server, client, stranger := w.TLS()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	s := &http.Server{Handler: web, ReadHeaderTimeout: 10 * time.Second}
	go func() { done <- s.Serve(listener) }()
	defer func() {
		if err := errors.Join(s.Close(), <-done); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	for _, test := range []struct {
		name         string
		certificates []tls.Certificate
		status       int
	}{
		{"the right one", []tls.Certificate{client}, 202},
		{"one of a strange authority", []tls.Certificate{stranger}, 401},
		{"none", nil, 401},
	} {
		t.Run(test.name, func(t *testing.T) {
			roots := x509.NewCertPool()
			roots.AddCert(server.Leaf)
			transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: "keyherald.example.org",
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if len(test.certificates) == 0 {
						return &tls.Certificate{}, nil
					}
					return &test.certificates[0], nil
				}}}
			defer transport.CloseIdleConnections()
			body := w.Sender("machine").Event("tls", "alice", "7")
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+listener.Addr().String()+"/notify/machine", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/cloudevents+json")
			res, err := transport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			if res.StatusCode != test.status {
				t.Errorf("got %d, want %d", res.StatusCode, test.status)
			}
		})
	}
}
