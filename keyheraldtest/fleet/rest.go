package fleet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/keyherald/keyherald/keyheraldtest"
)

// edge is a proxy between the fleet and the homeserver that counts what it hands on.
type edge struct {
	*httptest.Server
	// requests are all that came, others those that did not ask for messages.
	requests, others atomic.Int64
}

func newEdge(homeserver string, connections int) (*edge, error) {
	to, err := url.Parse(homeserver)
	if err != nil {
		return nil, err
	}
	e := &edge{}
	forward := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport:    &http.Transport{MaxIdleConnsPerHost: connections},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.requests.Add(1)
		if !strings.HasSuffix(r.URL.Path, "/sync") {
			e.others.Add(1)
		}
		forward.ServeHTTP(w, r)
	}))
	return e, nil
}

func (e *edge) close() error { e.CloseClientConnections(); e.Close(); return nil }

// calm is how long nobody must have asked for anything but messages before the fleet is at rest.
const calm = 15 * time.Second

// rest waits until the fleet has nothing to do, and looks at it for a while. What a fleet without accounts uses is taken off.
func (f *run) rest(ctx context.Context, process *keyheraldtest.Process, result *Result) error {
	if err := f.calm(ctx, process); err != nil {
		return err
	}
	empty, err := f.start("empty")
	if err != nil {
		return err
	}
	defer func() { empty.Stop(os.Interrupt, time.Minute) }()
	requests, began := f.edge.requests.Load(), time.Now()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(window):
	}
	result.RequestsAtRest = float64(f.edge.requests.Load()-requests) / time.Since(began).Seconds()
	all, err := residentMB(process.PID())
	if err != nil {
		return err
	}
	none, err := residentMB(empty.PID())
	if err != nil {
		return err
	}
	result.RSSPerAccountMB = (all - none) / float64(f.Accounts)
	return nil
}

func (f *run) calm(ctx context.Context, process *keyheraldtest.Process) error {
	last, since := int64(-1), time.Now()
	return keyheraldtest.Until(ctx, 15*time.Minute, func() error {
		if process.Ended() {
			return errors.New("keyherald-device ended by itself")
		}
		if now := f.edge.others.Load(); now != last {
			last, since = now, time.Now()
		}
		if quiet := time.Since(since); quiet < calm {
			return fmt.Errorf("for %s nothing but messages was asked for", quiet)
		}
		return nil
	})
}

// residentMB is the resident memory of a process (proc_pid_status(5)).
func residentMB(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
			kb, err := strconv.ParseFloat(fields[1], 64)
			return kb / 1024, err
		}
	}
	return 0, errors.New("the system does not tell a process's memory")
}
