package kmstest

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/secret"
)

// Open makes the clients of a system at an address, with a file of the only CAs to trust or none.
type Open func(t *testing.T, url, caFile string) (kms.Metadata, secret.Store)

// Hostile is the suite of clients that speak HTTP: what they make of a server that is broken or means harm.
func Hostile(t *testing.T, open Open) {
	t.Helper()
	key := generate(t)
	search := keyheraldtest.NewSearch(map[string][]byte{"the key": key.Reveal()})
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		t.Error("a redirect was followed")
		w.WriteHeader(http.StatusTeapot)
	}))
	t.Cleanup(elsewhere.Close)
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) {
			// The worst that a server can do with a value: say it back.
			said, _ := io.ReadAll(req.Body)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
			if status >= http.StatusBadRequest {
				_, _ = w.Write(said)
			}
		}
	}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    error
	}{
		"a server error is unavailable":             {answer(500, "hunter2"), kms.ErrUnavailable},
		"a proxy without its server is unavailable": {answer(503, ""), kms.ErrUnavailable},
		"too many requests is unavailable":          {answer(429, ""), kms.ErrUnavailable},
		"a connection cut is unavailable": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				err = conn.Close()
			}
			if err != nil {
				t.Error(err)
			}
		}, kms.ErrUnavailable},
		"a body cut short is unavailable": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{"Name":`)
		}, kms.ErrUnavailable},
		"an unauthorized request is forbidden": {answer(401, ""), kms.ErrForbidden},
		"a forbidden request is forbidden":     {answer(403, "hunter2"), kms.ErrForbidden},
		"a bad request is malformed":           {answer(400, "hunter2"), kms.ErrMalformed},
		"a page is malformed":                  {answer(200, "<html>hunter2"), kms.ErrMalformed},
		"nothing is malformed":                 {answer(200, ""), kms.ErrMalformed},
		"null is malformed":                    {answer(200, "null"), kms.ErrMalformed},
		"a list is malformed":                  {answer(200, `["hunter2"]`), kms.ErrMalformed},
		"an endless answer is malformed":       {answer(200, `{"Name":"`+strings.Repeat("x", 2<<20)+`"}`), kms.ErrMalformed},
		"an endless error is malformed":        {answer(400, strings.Repeat("x", 2<<20)), kms.ErrMalformed},
		"a nested answer is malformed":         {answer(200, strings.Repeat(`{"data":`, 50_000)+strings.Repeat("}", 50_000)), kms.ErrMalformed},
		"a redirect is malformed, not followed": {func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, elsewhere.URL, http.StatusTemporaryRedirect)
		}, kms.ErrMalformed},
		"a redirect for good is malformed, not followed": {func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, elsewhere.URL, http.StatusMovedPermanently)
		}, kms.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			hs := httptest.NewServer(c.handler)
			t.Cleanup(hs.Close)
			metadata, secrets := open(t, hs.URL, "")
			for call, err := range everyCall(t.Context(), metadata, secrets, key) {
				if call == "CanReadSecret" && (errors.Is(err, errSaysReadable) || err == nil && errors.Is(c.want, kms.ErrForbidden)) {
					continue // a false alarm does no harm, and who is refused cannot read
				}
				if !errors.Is(err, c.want) || kms.Retryable(err) != errors.Is(c.want, kms.ErrUnavailable) {
					t.Errorf("%s: got %v, not %v", call, err, c.want)
				} else if strings.Contains(err.Error(), "hunter2") || len(search.In([]byte(err.Error()))) > 0 {
					t.Errorf("%s: the error quotes the answer: %v", call, err)
				} else if len(err.Error()) > 1000 {
					t.Errorf("%s: the error has %d bytes", call, len(err.Error()))
				}
			}
		})
	}

	t.Run("a server that is not there is unavailable", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		metadata, secrets := open(t, "http://"+listener.Addr().String(), "")
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
		for call, err := range everyCall(t.Context(), metadata, secrets, key) {
			if !kms.Retryable(err) {
				t.Errorf("%s: got %v, which must be retryable", call, err)
			}
		}
	})

	t.Run("only the CA of the configuration is trusted", func(t *testing.T) {
		reached := false
		hs := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			reached = true
			w.WriteHeader(http.StatusForbidden)
		}))
		hs.Config.ErrorLog = log.New(io.Discard, "", 0)
		hs.StartTLS()
		t.Cleanup(hs.Close)
		stranger, secrets := open(t, hs.URL, "")
		for call, err := range everyCall(t.Context(), stranger, secrets, key) {
			if !errors.Is(err, kms.ErrUnavailable) {
				t.Errorf("%s: got %v from a server of an unknown CA", call, err)
			}
		}
		if reached {
			t.Fatal("a request went to a server of an unknown CA")
		}
		file := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hs.Certificate().Raw}), 0o644); err != nil {
			t.Fatal(err)
		}
		metadata, _ := open(t, hs.URL, file)
		if _, err := metadata.Current(t.Context(), path); !errors.Is(err, kms.ErrForbidden) || !reached {
			t.Fatalf("got %v from the server of the CA that is named", err)
		}
	})
}

// Record leads an address through a tap, and returns the address to use and what was seen.
func Record(t *testing.T, target string) (url string, seen func() []byte) {
	t.Helper()
	host := strings.TrimPrefix(target, "http://")
	tap, err := keyheraldtest.StartTap(host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tap.Close() })
	if url, err = tap.Through(target); err != nil {
		t.Fatal(err)
	}
	return url, func() []byte { return bytes.Clone(tap.Bytes()) }
}
