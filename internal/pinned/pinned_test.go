package pinned

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestReachable(t *testing.T) {
	for _, test := range []struct {
		address          string
		public, anywhere bool // reachable as a public host, and as one that may be private
	}{
		{"93.184.215.14", true, true},
		{"2606:2800:21f:cb07:6820:80da:af6b:8b2c", true, true},
		{"127.0.0.1", false, true},
		{"127.8.9.10", false, true},
		{"::1", false, true},
		{"10.0.0.1", false, true},
		{"172.16.0.1", false, true},
		{"172.32.0.1", true, true},
		{"192.168.1.1", false, true},
		{"100.64.0.1", false, true},
		{"fd12::1", false, true},
		{"::ffff:10.0.0.1", false, true},
		{"169.254.169.254", false, false},
		{"::ffff:169.254.169.254", false, false},
		{"fd00:ec2::254", false, false},
		{"fe80::1%eth0", false, false},
		{"0.0.0.0", false, false},
		{"::", false, false},
		{"255.255.255.255", false, false},
		{"224.0.0.1", false, false},
		{"ff02::1", false, false},
		{"198.18.0.1", false, false},
		{"64:ff9b::a9fe:a9fe", false, false},
		{"2002:a9fe:a9fe::1", false, false},
		{"::127.0.0.1", false, false},
	} {
		t.Run(test.address, func(t *testing.T) {
			address := netip.MustParseAddr(test.address)
			if got := reachable(address, false); got != test.public {
				t.Errorf("as a public host: %v", got)
			}
			if got := reachable(address, true); got != test.anywhere {
				t.Errorf("as a host that may be private: %v", got)
			}
		})
	}
}

// server is a TLS server at localhost, with the pool that vouches for it.
func server(t *testing.T, handler http.HandlerFunc) (name string, roots *x509.CertPool) {
	t.Helper()
	s := httptest.NewTLSServer(handler)
	t.Cleanup(s.Close)
	roots = x509.NewCertPool()
	roots.AddCert(s.Certificate())
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host, roots
}

func TestOnlyAPinnedHostIsAsked(t *testing.T) {
	name, roots := server(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/large":
			_, _ = w.Write(make([]byte, 101))
		case "/elsewhere":
			http.Redirect(w, r, "/", http.StatusFound)
		case "/missing":
			w.WriteHeader(http.StatusNotFound)
		case "/headers":
			w.Header().Set("X", strings.Repeat("x", maxHeaderBytes))
		default:
			_, _ = w.Write([]byte("hello"))
		}
	})
	client := New(time.Now, nil, Host{Name: name, Private: true, Roots: roots})
	for _, test := range []struct{ name, address, want string }{
		{"the pinned host answers", "https://" + name + "/", ""},
		{"another host is not asked", "https://example.org/", "not one that may be asked"},
		{"another port is not asked", "https://" + strings.Split(name, ":")[0] + "/", "not one that may be asked"},
		{"not without TLS", "http://" + name + "/", "not one that may be asked"},
		{"a user in the address is refused", "https://" + name + "@example.org/", "not one that may be asked"},
		{"a user before the pinned host is refused", "https://user@" + name + "/", "not one that may be asked"},
		{"the host in another case is another name", "https://LOCALHOST.example/", "not one that may be asked"},
		{"a file is not read", "file:///etc/passwd", "not one that may be asked"},
		{"an address that is none", "https://%zz/", "not one that may be asked"},
		{"a redirect is not followed", "https://" + name + "/elsewhere", "it answered 302"},
		{"an answer that is too large", "https://" + name + "/large", "more than 100 bytes"},
		{"an answer that is no 200", "https://" + name + "/missing?Token=secret", "it answered 404"},
	} {
		t.Run(test.name, func(t *testing.T) {
			body, err := client.Get(t.Context(), test.address, 100)
			if test.want == "" && (err != nil || string(body) != "hello") {
				t.Fatalf("got %q, %v", body, err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret")) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	t.Run("headers that are too large", func(t *testing.T) {
		if _, err := client.Get(t.Context(), "https://"+name+"/headers", 100); err == nil {
			t.Error("they were taken")
		}
	})
	t.Run("a host that is not to be private is not asked at a private address", func(t *testing.T) {
		_, err := New(time.Now, nil, Host{Name: name, Roots: roots}).Get(t.Context(), "https://"+name+"/", 100)
		if !errors.Is(err, ErrNotPinned) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("nobody whom the roots do not vouch for is believed", func(t *testing.T) {
		if _, err := New(time.Now, nil, Host{Name: name, Private: true}).Get(t.Context(), "https://"+name+"/?Token=secret", 100); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v", err)
		}
	})
}

func TestAHostIsNotAskedTooOften(t *testing.T) {
	name, roots := server(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) })
	var mu sync.Mutex
	now, dialed := time.Unix(1_700_000_000, 0), 0
	client := New(func() time.Time { mu.Lock(); defer mu.Unlock(); return now }, func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		dialed++
		mu.Unlock()
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}, Host{Name: name, Roots: roots})
	ask := func(times int) (answered int) {
		for range times {
			if _, err := client.Get(t.Context(), "https://"+name+"/", 100); err == nil {
				answered++
			} else if !errors.Is(err, ErrTooOften) {
				t.Fatal(err)
			}
		}
		return answered
	}
	if got := ask(50); got != burst {
		t.Errorf("%d of 50 requests were made at once, want %d", got, burst)
	}
	now = now.Add(3 * pause)
	if got := ask(50); got != 3 {
		t.Errorf("%d of 50 requests were made after three pauses, want 3", got)
	}
	now = now.Add(1000 * pause)
	if got := ask(50); got != burst {
		t.Errorf("%d of 50 requests were made after a long time, want %d", got, burst)
	}
	if dialed == 0 {
		t.Error("the dialer that was given is not used")
	}
}

func TestASlowHostIsNotWaitedForLongerThanTheSender(t *testing.T) {
	stop := make(chan struct{})
	name, roots := server(t, func(http.ResponseWriter, *http.Request) { <-stop })
	defer close(stop)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := New(time.Now, nil, Host{Name: name, Private: true, Roots: roots}).Get(ctx, "https://"+name+"/", 100); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
