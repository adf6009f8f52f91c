package intake

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/bearer"
)

// check is one authentication mode: whom it recognised, or why the request is refused.
type check func(ctx context.Context, r *request) (who string, denied *denial)

// authenticate passes a request through all modes of its source, the cheap ones first. A request without a mode's
// proof is refused like one with a wrong proof: every mode counts.
func (s *source) authenticate(ctx context.Context, r *request) (keyID string, denied *denial) {
	if denied := r.once(s.headers); denied != nil {
		return "", denied
	}
	var recognised []string
	for _, mode := range s.modes {
		who, denied := mode(ctx, r)
		if denied != nil {
			return "", denied
		}
		if who != "" {
			recognised = append(recognised, who)
		}
	}
	return strings.Join(recognised, "+"), nil
}

// key is a secret with a name, and when it counts.
type key struct {
	id        string
	secret    []byte
	notBefore time.Time
	notAfter  time.Time
}

func (k key) valid(now time.Time) bool {
	return (k.notBefore.IsZero() || !now.Before(k.notBefore)) && (k.notAfter.IsZero() || now.Before(k.notAfter))
}

// matching returns the id of the key whose secret this is. Every key is compared, in constant time.
func matching(keys []key, got string, now time.Time) (id string) {
	sum := sha256.Sum256([]byte(got))
	for _, k := range keys {
		want := sha256.Sum256(k.secret)
		if subtle.ConstantTimeCompare(sum[:], want[:]) == 1 && k.valid(now) {
			id = k.id
		}
	}
	return id
}

// staticHeader recognises a secret in a header.
func staticHeader(name string, keys []key) check {
	return func(_ context.Context, r *request) (string, *denial) {
		value := r.header.Get(name)
		if value == "" {
			return "", refused(audit.RefusedNoCredentials)
		}
		id := matching(keys, value, r.now)
		if id == "" {
			return "", refused(audit.RefusedCredentials)
		}
		return id, nil
	}
}

// basic recognises a user name and a password (RFC 7617).
func basic(username string, keys []key) check {
	return func(_ context.Context, r *request) (string, *denial) {
		name, password, ok := basicAuth(r)
		if !ok {
			return "", refused(audit.RefusedNoCredentials)
		}
		id := matching(keys, password, r.now)
		if sameName := subtle.ConstantTimeCompare([]byte(name), []byte(username)) == 1; id == "" || !sameName {
			return "", refused(audit.RefusedCredentials)
		}
		return id, nil
	}
}

func basicAuth(r *request) (name, password string, ok bool) {
	// Only net/http knows how to take the header apart, and only out of a request.
	req := *r.http
	req.Header = r.header
	return req.BasicAuth()
}

// token recognises a bearer token of an issuer.
func token(v *bearer.Verifier) check {
	return func(ctx context.Context, r *request) (string, *denial) {
		text, ok := bearer.Token(r.header.Get("Authorization"))
		if !ok {
			return "", refused(audit.RefusedNoCredentials)
		}
		subject, err := v.Verify(ctx, text)
		if err != nil {
			return "", tokenDenial(err)
		}
		if !printable(subject) || len(subject) > 256 {
			return "", refused(audit.RefusedClaims)
		}
		return "jwt:" + subject, nil
	}
}

func tokenDenial(err error) *denial {
	switch {
	case errors.Is(err, bearer.ErrUnavailable):
		return later("issuer_unavailable", err)
	case errors.Is(err, bearer.ErrExpired):
		return refused(audit.RefusedStale)
	case errors.Is(err, bearer.ErrClaims):
		return refused(audit.RefusedClaims)
	}
	return refused(audit.RefusedToken)
}

func within(address netip.Addr, ranges []netip.Prefix) bool {
	for _, r := range ranges {
		if r.Contains(address) {
			return true
		}
	}
	return false
}

// sourceAddress recognises where a request comes from. Who may is nobody's name, so it recognises nobody by itself.
func sourceAddress(allowed, proxies []netip.Prefix) check {
	return func(_ context.Context, r *request) (string, *denial) {
		address, ok := client(r, proxies)
		if !ok || !within(address, allowed) {
			return "", refused(audit.RefusedAddress)
		}
		return "", nil
	}
}

// peer is who is connected to us.
func peer(r *request) (netip.Addr, bool) {
	at, err := netip.ParseAddrPort(r.remote)
	return at.Addr().Unmap().WithZone(""), err == nil
}

// client is where a request comes from: the peer, or, where that is one of our own proxies, the nearest address before
// it in X-Forwarded-For that is none of them. What stands further left is the client's own word.
func client(r *request, proxies []netip.Prefix) (netip.Addr, bool) {
	address, ok := peer(r)
	if !ok {
		return address, false
	}
	hops := strings.Split(strings.Join(r.header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; within(address, proxies); i-- {
		if i < 0 {
			return address, false
		}
		next, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			return address, false
		}
		address = next.Unmap().WithZone("")
	}
	return address, true
}
