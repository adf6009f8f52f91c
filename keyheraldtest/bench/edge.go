package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"
)

// edge is a proxy before the homeserver that counts the to-device messages of the devices of one user, who writes to
// nobody else.
type edge struct {
	*httptest.Server
	// devices is how many of them "*" stands for.
	devices int

	mu   sync.Mutex // guards the rest
	seen edgeCount
	err  error
}

// edgeCount is what went through an edge so far.
type edgeCount struct {
	// sent counts a message for each device that it is for, before it leaves; received when a device has asked for it.
	sent, received int64
	// created is when the homeserver last answered that it has a new key-backup version, handedOut when it last answered a
	// sync with to-device messages.
	created, handedOut time.Time
}

func newEdge(homeserver string, devices int) (*edge, error) {
	to, err := url.Parse(homeserver)
	if err != nil {
		return nil, err
	}
	e := &edge{devices: devices}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			// What the transport asks for compressed by itself it also unpacks.
			r.Out.Header.Del("Accept-Encoding")
		},
		Transport:      &http.Transport{MaxIdleConnsPerHost: 4 * devices},
		ModifyResponse: func(response *http.Response) error { return e.answered(response) },
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/sendToDevice/") {
			e.asked(r)
		}
		forward.ServeHTTP(w, r)
	}))
	return e, nil
}

// count is what was seen so far; an error is one that makes it worth nothing.
func (e *edge) count() (edgeCount, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.seen, e.err
}

func (e *edge) close() error {
	e.CloseClientConnections()
	e.Close()
	return nil
}

func (e *edge) failed(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil {
		e.err = err
	}
}

// asked counts what a device sends.
func (e *edge) asked(r *http.Request) {
	body, err := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	var request struct {
		Messages map[id.UserID]map[id.DeviceID]json.RawMessage `json:"messages"`
	}
	if err == nil {
		err = json.Unmarshal(body, &request)
	}
	if err != nil {
		e.failed(fmt.Errorf("reading to-device messages that are sent: %w", err))
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, devices := range request.Messages {
		for device := range devices {
			if device == "*" {
				e.seen.sent += int64(e.devices)
			} else {
				e.seen.sent++
			}
		}
	}
}

// answered counts what comes to a device.
func (e *edge) answered(response *http.Response) error {
	path := response.Request.URL.Path
	if response.StatusCode != http.StatusOK {
		return nil
	}
	switch {
	case response.Request.Method == http.MethodPost && strings.HasSuffix(path, "/room_keys/version"):
		e.mu.Lock()
		defer e.mu.Unlock()
		e.seen.created = time.Now()
	case strings.HasSuffix(path, "/sync"):
		body, err := io.ReadAll(response.Body)
		if err != nil {
			return err
		}
		response.Body = io.NopCloser(bytes.NewReader(body))
		var answer struct {
			ToDevice struct {
				Events []json.RawMessage `json:"events"`
			} `json:"to_device"`
		}
		if err := json.Unmarshal(body, &answer); err != nil {
			e.failed(fmt.Errorf("reading to-device messages that came: %w", err))
		}
		if n := len(answer.ToDevice.Events); n > 0 {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.seen.received += int64(n)
			e.seen.handedOut = time.Now()
		}
	}
	return nil
}
