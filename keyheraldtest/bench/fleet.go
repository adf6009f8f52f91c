package bench

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/msc4385"
)

// fleetInterval is the sync.interval that a fleet is measured with, and fleetWindow how long each is: twice the interval,
// and five times what a request is held open without one.
const (
	fleetInterval = time.Minute
	fleetWindow   = 2 * time.Minute
)

// Fleet measures n enrolled accounts that are at rest in one process of keyherald-device, which is in programs: the
// resident memory of each, beside a process for one account; and the requests to the homeserver and the processor's time
// with a sync.interval of a minute, beside the long poll.
func Fleet(ctx context.Context, programs string, n, rounds int) (rows []Row, err error) {
	f, err := newFleet(ctx, programs, n)
	defer func() { err = errors.Join(err, f.close()) }()
	if err != nil {
		return nil, fmt.Errorf("preparing fleet/%d: %w", n, err)
	}
	type figures struct{ memory, requests, cpu []float64 }
	var long, short figures
	var alone []float64
	for round := range rounds {
		empty, err := f.rest(ctx, "none", 0, 0)
		if err != nil {
			return nil, fmt.Errorf("fleet/%d, round %d, no account: %w", n, round, err)
		}
		one, err := f.rest(ctx, "one", 0, 0)
		if err != nil {
			return nil, fmt.Errorf("fleet/%d, round %d, one account: %w", n, round, err)
		}
		alone = append(alone, one.residentKB)
		for _, kind := range []struct {
			interval time.Duration
			into     *figures
		}{{0, &long}, {fleetInterval, &short}} {
			all, err := f.rest(ctx, "all", kind.interval, fleetWindow)
			if err != nil {
				return nil, fmt.Errorf("fleet/%d, round %d, sync.interval %s: %w", n, round, kind.interval, err)
			}
			kind.into.memory = append(kind.into.memory, (all.residentKB-empty.residentKB)/float64(n))
			kind.into.requests = append(kind.into.requests, all.requests)
			kind.into.cpu = append(kind.into.cpu, all.cpu)
		}
	}
	name := fmt.Sprintf("fleet/%d", n)
	return []Row{
		Compare(name+" memory", "KB/account", Less, long.memory, map[string][]float64{"a_process_each": alone, "sync.interval": short.memory}),
		Compare(name+" requests", "1/s", Less, short.requests, map[string][]float64{"long_poll": long.requests}),
		Compare(name+" cpu", "% of a core", Less, short.cpu, map[string][]float64{"long_poll": long.cpu}),
	}, nil
}

// fleet is n enrolled accounts whose homeserver is behind a proxy that counts.
type fleet struct {
	*crowded
	program, dir string
	n            int
	// requests are all that came, others those that did not ask for messages.
	requests, others atomic.Int64
}

// atRest is a process whose accounts have nothing to do.
type atRest struct{ residentKB, requests, cpu float64 }

func newFleet(ctx context.Context, programs string, n int) (*fleet, error) {
	f := &fleet{program: filepath.Join(programs, "keyherald-device"), n: n}
	var err error
	if f.crowded, err = newCrowded(ctx, 0); err != nil {
		return f, err
	}
	if f.dir, err = os.MkdirTemp("", "keyherald-bench-"); err != nil {
		return f, err
	}
	f.closers = append(f.closers, func() error { return os.RemoveAll(f.dir) })
	proxy, err := f.count(f.hs.URL)
	if err != nil {
		return f, err
	}
	f.closers = append(f.closers, func() error { proxy.CloseClientConnections(); proxy.Close(); return nil })
	for _, sub := range []string{"none", "one", "all"} {
		if err := os.Mkdir(filepath.Join(f.dir, sub), 0o700); err != nil {
			return f, err
		}
	}
	pickleKey := make([]byte, 32)
	if err := os.WriteFile(filepath.Join(f.dir, "pickle.key"), []byte(base64.RawStdEncoding.EncodeToString(pickleKey)), 0o600); err != nil {
		return f, err
	}
	failed := make(chan error, n)
	var workers sync.WaitGroup
	for worker := range 4 {
		workers.Go(func() {
			for i := worker; i < n; i += 4 {
				if err := f.account(ctx, i, pickleKey, proxy.URL); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	workers.Wait()
	close(failed)
	return f, <-failed
}

// account enrolls one account and writes its file.
func (f *fleet) account(ctx context.Context, i int, pickleKey []byte, homeserver string) error {
	name := fmt.Sprintf("crowdfleet%d", i)
	m, err := f.manage(ctx, f.dir, name, pickleKey, msc4385.FormSend, msc4385.FormPush)
	if err != nil {
		return err
	}
	m.config.Homeserver = homeserver
	encoded, err := yaml.Marshal(m.config)
	if err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(f.dir, "all", name+".yaml"), encoded, 0o600)
	if i == 0 {
		err = errors.Join(err, os.WriteFile(filepath.Join(f.dir, "one", name+".yaml"), encoded, 0o600))
	}
	return err
}

func (f *fleet) close() error {
	if f.crowded == nil {
		return nil
	}
	return f.crowded.close()
}

// count is a proxy that counts what it hands on.
func (f *fleet) count(target string) (*httptest.Server, error) {
	to, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	forward := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport:    &http.Transport{MaxIdleConnsPerHost: 2 * f.n},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.requests.Add(1)
		if !strings.HasSuffix(r.URL.Path, "/sync") {
			f.others.Add(1)
		}
		forward.ServeHTTP(w, r)
	})), nil
}

// rest runs the accounts of a directory until they have come to rest, and looks at them for a while.
func (f *fleet) rest(ctx context.Context, accounts string, interval, window time.Duration) (found atRest, err error) {
	config := fmt.Sprintf("accounts_dir: %s\nstate_dir: state\npickle_key_file: pickle.key\nsync: {interval: %s}\n", accounts, interval)
	path := filepath.Join(f.dir, "device.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return found, err
	}
	before := f.requests.Load()
	process, err := startMeasured(ctx, filepath.Join(f.dir, "device.log"), f.program, "run", "-c", path)
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, process.end()) }()
	if err := f.settle(ctx, accounts, before, process); err != nil {
		return found, err
	}
	requests, began := f.requests.Load(), time.Now()
	used, err := process.cpu()
	if err != nil {
		return found, err
	}
	select {
	case <-ctx.Done():
		return found, ctx.Err()
	case <-time.After(window):
	}
	seconds := max(time.Since(began).Seconds(), 1)
	found.requests = float64(f.requests.Load()-requests) / seconds
	after, err := process.cpu()
	if err != nil {
		return found, err
	}
	found.cpu = 100 * (after - used).Seconds() / seconds
	found.residentKB, err = residentKB(process.pid())
	return found, err
}

// calm is how long nobody must have asked for anything but messages before a fleet is at rest.
const calm = 10 * time.Second

// settle waits until every account runs and has said what it had to say.
func (f *fleet) settle(ctx context.Context, accounts string, before int64, process *measuredProcess) error {
	files, err := filepath.Glob(filepath.Join(f.dir, accounts, "*.yaml"))
	if err != nil {
		return err
	}
	last, since := int64(-1), time.Now()
	return keyheraldtest.Until(ctx, 10*time.Minute, func() error {
		if err := process.running(); err != nil {
			return err
		}
		if now := f.others.Load(); now != last {
			last, since = now, time.Now()
		}
		if asked := f.requests.Load() - before; asked < int64(len(files)) {
			return fmt.Errorf("%d requests came of %d accounts", asked, len(files))
		}
		if quiet := time.Since(since); quiet < calm {
			return fmt.Errorf("for %s nothing but messages was asked for", quiet)
		}
		return nil
	})
}
