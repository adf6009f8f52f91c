package bearer

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// go-oidc has a remote key set of its own. It asks the issuer again for every token that does not verify, so a stranger
// decides how often; and its errors do not tell a forged token from an issuer that does not answer.

const (
	// fresh is how long keys are used without asking for them again, and stale how long where the issuer does not answer.
	fresh = time.Hour
	stale = 24 * time.Hour
	// again is the least time between two readings, whoever asks for what.
	again = 30 * time.Second

	maxKeySet = 512 << 10
	maxKeys   = 100
	readTime  = 10 * time.Second
)

type keySet struct {
	config Config
	fetch  Fetch
	now    func() time.Time

	reading sync.Mutex // held while the issuer is asked: whoever waits for it finds what was read

	mu     sync.RWMutex // guards what follows
	keys   map[string][]jose.JSONWebKey
	readAt time.Time // when keys were read
	asked  time.Time // when the issuer was last asked
	times  int       // how often it was asked
	failed error     // what came of it the last time
}

func newKeySet(config Config, fetch Fetch, now func() time.Time) *keySet {
	return &keySet{config: config, fetch: fetch, now: now}
}

// find returns the keys of a name; there may be several, of different kinds. An unknown name is a reason to ask the
// issuer, but not more often than again; where that cannot be done now the error is ErrUnavailable, since the issuer may
// have a key of that name by now.
func (s *keySet) find(ctx context.Context, name string) ([]jose.JSONWebKey, error) {
	s.mu.RLock()
	keys, age, times := s.keys[name], s.now().Sub(s.readAt), s.times
	s.mu.RUnlock()
	if len(keys) > 0 && age < fresh {
		return keys, nil
	}
	err := s.read(ctx, times)
	s.mu.RLock()
	defer s.mu.RUnlock()
	keys, age = s.keys[name], s.now().Sub(s.readAt)
	switch {
	case len(keys) > 0 && age < stale:
		return keys, nil
	case err != nil:
		return nil, err
	}
	return nil, ErrToken
}

// read asks the issuer for its keys, unless somebody has asked since the caller saw that it was asked so many times.
func (s *keySet) read(ctx context.Context, times int) error {
	s.reading.Lock()
	defer s.reading.Unlock()
	now := s.now()
	s.mu.Lock()
	meanwhile, recent, failed := s.times != times, !s.asked.IsZero() && now.Sub(s.asked) < again, s.failed
	if !meanwhile && !recent {
		s.asked = now
		s.times++
	}
	s.mu.Unlock()
	if meanwhile || failed != nil && recent {
		return failed
	}
	if recent {
		return fmt.Errorf("%w: they were read a moment ago", ErrUnavailable)
	}
	// A sender that leaves takes nothing from the others who wait for the same keys.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTime)
	defer cancel()
	keys, err := s.ask(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failed = fmt.Errorf("%w: %w", ErrUnavailable, err)
		return s.failed
	}
	s.keys, s.readAt, s.failed = keys, now, nil
	return nil
}

func (s *keySet) ask(ctx context.Context) (map[string][]jose.JSONWebKey, error) {
	body, err := s.fetch(ctx, s.config.KeysURL, maxKeySet)
	if err != nil {
		return nil, err
	}
	return parseKeys(body, s.config.Algorithms)
}

// parseKeys takes what can verify one of the algorithms out of a JSON Web Key Set (RFC 7517). Other keys are left out,
// as section 5 says.
func parseKeys(body []byte, algorithms []string) (map[string][]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, errors.New("the answer is no JSON Web Key Set")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("the key set has %d keys, more than %d", len(set.Keys), maxKeys)
	}
	keys := map[string][]jose.JSONWebKey{}
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if err := json.Unmarshal(raw, &key); err != nil || key.KeyID == "" || !usable(key, algorithms) {
			continue
		}
		keys[key.KeyID] = append(keys[key.KeyID], key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("the key set has no key with a name that verifies %v", algorithms)
	}
	return keys, nil
}

func usable(key jose.JSONWebKey, algorithms []string) bool {
	if !key.Valid() || (key.Use != "" && key.Use != "sig") || (key.Algorithm != "" && !slices.Contains(algorithms, key.Algorithm)) {
		return false
	}
	switch public := key.Key.(type) {
	case *rsa.PublicKey:
		return public.N.BitLen() >= 2048
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false // a symmetric or private key is nobody's to verify with
}
