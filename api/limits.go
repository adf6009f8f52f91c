package api

import (
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/time/rate"

	"github.com/keyherald/keyherald/internal/cidr"
)

// RateConfig is how many calls a second are answered.
type RateConfig struct {
	// PerCaller is for each caller; twenty times as many may come at once. 0 is 50.
	PerCaller float64 `yaml:"per_caller"`
	// FailuresPerAddress is how often an address may show wrong credentials, or none; twenty times as many at once. Beyond it
	// its calls are refused before they are looked at. 0 is 1.
	FailuresPerAddress float64 `yaml:"failures_per_address"`
}

func (c RateConfig) validate() error {
	for _, r := range []struct {
		key   string
		value float64
	}{{"per_caller", c.PerCaller}, {"failures_per_address", c.FailuresPerAddress}} {
		if r.value < 0 || r.value > 1e6 {
			return fmt.Errorf("%s is %v: write how many calls a second, such as 50", r.key, r.value)
		}
	}
	return nil
}

// burst is how many seconds' worth may come at once.
const burst = 20

// maxBuckets bounds the memory that addresses and callers can take. Who is forgotten for it begins anew.
const maxBuckets = 10_000

func (c RateConfig) limits(deps Deps) (*limits, error) {
	if c.PerCaller == 0 {
		c.PerCaller = 50
	}
	if c.FailuresPerAddress == 0 {
		c.FailuresPerAddress = 1
	}
	l := &limits{now: deps.Now, callers: buckets{rate: c.PerCaller}, addresses: buckets{rate: c.FailuresPerAddress}, address: echo.ExtractIPDirect()}
	proxies, err := cidr.Parse("trusted_proxies", deps.TrustedProxies)
	if err != nil {
		return nil, err
	}
	var trusted []echo.TrustOption
	for _, prefix := range proxies {
		trusted = append(trusted, echo.TrustIPRange(&net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}))
	}
	if len(trusted) > 0 {
		// Only what the configuration names is trusted: not loopback, link-local or private addresses as such.
		l.address = echo.ExtractIPFromXFFHeader(append([]echo.TrustOption{echo.TrustLoopback(false), echo.TrustLinkLocal(false), echo.TrustPrivateNet(false)}, trusted...)...)
	}
	return l, nil
}

// limits are how often callers may call, and addresses may fail.
type limits struct {
	now                func() time.Time
	address            echo.IPExtractor
	callers, addresses buckets
}

// stranger refuses an address that failed too often, before its credentials are looked at.
func (l *limits) stranger(c *call) *Problem {
	if l.addresses.of(l.address(c.echo.Request()), l.now()).TokensAt(l.now()) < 1 {
		return tooMany("too many calls without the right credentials came from your address", 1/l.addresses.rate)
	}
	return nil
}

// failed counts a call whose caller is not known.
func (l *limits) failed(c *call) {
	l.addresses.of(l.address(c.echo.Request()), l.now()).AllowN(l.now(), 1)
}

// caller refuses who calls too often.
func (l *limits) caller(c *call) *Problem {
	if !l.callers.of(c.caller.key, l.now()).AllowN(l.now(), 1) {
		return tooMany("you call too often: wait a moment", 1/l.callers.rate)
	}
	return nil
}

func tooMany(detail string, seconds float64) *Problem {
	return &Problem{Status: http.StatusTooManyRequests, Code: CodeTooMany, Detail: detail, retryAfter: int(seconds) + 1}
}

// buckets are token buckets by name.
type buckets struct {
	rate float64

	mu  sync.Mutex // guards all
	all map[string]*rate.Limiter
}

func (b *buckets) of(name string, now time.Time) *rate.Limiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l, ok := b.all[name]; ok {
		return l
	}
	full := max(1, int(b.rate*burst))
	if b.all == nil || len(b.all) >= maxBuckets {
		// Those that are full say nothing that a new one would not.
		for other, l := range b.all {
			if l.TokensAt(now) >= float64(full) {
				delete(b.all, other)
			}
		}
		if b.all == nil || len(b.all) >= maxBuckets {
			b.all = map[string]*rate.Limiter{}
		}
	}
	l := rate.NewLimiter(rate.Limit(b.rate), full)
	b.all[name] = l
	return l
}
