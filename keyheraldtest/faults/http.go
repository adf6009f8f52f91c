package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// Proxy is a reverse proxy that lets writes pass the recorder. A lost request does not reach its target; of one that
// persisted the answer is dropped. Either way the caller's connection breaks.
type Proxy struct {
	// URL is where the proxy listens.
	URL    string
	server *http.Server
}

// Namer names a request that is a write; the empty name lets it pass uncounted.
type Namer func(*http.Request) string

// Proxy starts a proxy in front of target. name begins the labels; seen, which may be nil, gets every request that
// reaches the target, with its body.
func (r *Recorder) Proxy(name, target string, namer Namer, seen func(req *http.Request, body []byte)) (*Proxy, error) {
	to, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("starting a proxy: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting a proxy: %w", err)
	}
	forward := &httputil.ReverseProxy{
		Rewrite: func(out *httputil.ProxyRequest) { out.SetURL(to) },
		ModifyResponse: func(res *http.Response) error {
			if res.Request.Context().Value(dropKey{}) != nil {
				return finish(res)
			}
			if !delivers(res) {
				return nil
			}
			// The request for more is what acknowledges, so a lost answer must come again. Nothing can be lost before it.
			if _, mode := r.visit(name+": GET sync with messages", Persisted); mode == Persisted {
				return finish(res)
			}
			return nil
		},
		// What cannot be answered is a broken connection, never an answer of the proxy's own.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		if !strings.HasSuffix(req.URL.Path, "/sync") {
			// A caller may be stopped while his request is on its way; that it arrives whole is decided here and not by
			// a race.
			req = req.WithContext(context.WithoutCancel(req.Context()))
		}
		if label := namer(req); label != "" {
			switch _, mode := r.visit(name+": "+label, Lost, Persisted); mode {
			case Lost:
				panic(http.ErrAbortHandler)
			case Persisted:
				req = req.WithContext(context.WithValue(req.Context(), dropKey{}, true))
			}
		}
		if seen != nil {
			seen(req, body)
		}
		forward.ServeHTTP(w, req)
	})
	p := &Proxy{URL: "http://" + listener.Addr().String(), server: &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}}
	go func() { _ = p.server.Serve(listener) }()
	return p, nil
}

// Close ends the proxy and every connection through it.
func (p *Proxy) Close() error { return p.server.Close() }

type dropKey struct{}

// finish waits for the whole answer, so that the target has done what it was asked for, and drops it.
func finish(res *http.Response) error {
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	return ErrInjected
}

func delivers(res *http.Response) bool {
	if !strings.HasSuffix(res.Request.URL.Path, "/sync") || res.StatusCode != http.StatusOK {
		return false
	}
	body, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(body))
	var sync struct {
		ToDevice struct {
			Events []json.RawMessage `json:"events"`
		} `json:"to_device"`
	}
	return err == nil && json.Unmarshal(body, &sync) == nil && len(sync.ToDevice.Events) > 0
}

var (
	matrixPrefix = regexp.MustCompile(`^/_matrix/client/[^/]+/`)
	storageKey   = regexp.MustCompile(`(m\.secret_storage\.key)\..*`)
	variable     = regexp.MustCompile(`^[0-9a-f-]{36}$|^[0-9]+$|[@!:]`)
)

// Homeserver names what writes to a homeserver: every PUT, POST and DELETE but the query of keys and the upload of
// none, which asks for their count.
func Homeserver(req *http.Request) string {
	path := storageKey.ReplaceAllString(matrixPrefix.ReplaceAllString(req.URL.Path, ""), "$1")
	if req.Method == http.MethodGet || path == "keys/query" || (path == "keys/upload" && req.ContentLength <= int64(len("{}"))) {
		return ""
	}
	parts := []string{}
	for part := range strings.SplitSeq(path, "/") {
		if !variable.MatchString(part) {
			parts = append(parts, part)
		}
	}
	return req.Method + " " + strings.Join(parts, "/")
}

// EveryRequest names all of them, as a KMS's reads matter too.
func EveryRequest(req *http.Request) string {
	return req.Method + " " + strings.Trim(req.URL.Path, "/")
}
