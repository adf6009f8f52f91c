package bearer

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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
	// wanted are names that held did not find, and since when: what was read later says whether the issuer has them.
	wanted map[string]time.Time
}

// finder returns the issuer's keys of a name.
type finder func(ctx context.Context, name string) ([]jose.JSONWebKey, error)

func newKeySet(config Config, fetch Fetch, now func() time.Time) *keySet {
	return &keySet{config: config, fetch: fetch, now: now, wanted: map[string]time.Time{}}
}

// maxWanted bounds what strangers may have it remember.
const maxWanted = 100

// held is find without asking the issuer.
func (s *keySet) held(_ context.Context, name string) ([]jose.JSONWebKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	known := len(s.keys) > 0 && now.Sub(s.readAt) < stale
	if keys := s.keys[name]; known && len(keys) > 0 {
		return keys, nil
	}
	since, before := s.wanted[name]
	if known && before && s.readAt.After(since) {
		delete(s.wanted, name)
		return nil, ErrToken
	}
	if !before && len(s.wanted) < maxWanted {
		s.wanted[name] = now
	}
	return nil, fmt.Errorf("%w: they are not read yet", ErrUnavailable)
}

// ready reads the keys where they are not fresh, or held did not find one.
func (s *keySet) ready(ctx context.Context) error {
	s.mu.RLock()
	now := s.now()
	enough := len(s.keys) > 0 && now.Sub(s.readAt) < fresh
	for _, since := range s.wanted {
		enough = enough && s.readAt.After(since)
	}
	// What was wanted and not found is asked for at once only as often as anybody may ask.
	enough = enough || len(s.keys) > 0 && now.Sub(s.readAt) < again
	times := s.times
	s.mu.RUnlock()
	if enough {
		return nil
	}
	return s.read(ctx, times)
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
	// Whoever asked for these is not coming back.
	maps.DeleteFunc(s.wanted, func(_ string, since time.Time) bool { return now.Sub(since) > fresh })
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
