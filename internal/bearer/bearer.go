// Package bearer verifies the JSON Web Tokens that a sender shows as its bearer token (RFC 6750): signed by one issuer,
// whose keys are read from an address in the configuration and never from one in a token.
package bearer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/keyherald/keyherald/internal/strictjson"
)

// Algorithms are those a Config may name; each needs a public key. RS256 is what is meant where none is named.
var Algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// Config is what a token must be.
type Config struct {
	Issuer, Audience string
	// KeysURL is where the issuer's JSON Web Key Set stands.
	KeysURL    string
	Algorithms []string
	// Claims are further ones, with the value each must have, or hold where it is a list. Where email is among them,
	// email_verified must be true too.
	Claims map[string]string
}

// The errors of Verify, each of which is for the sender but the last: then the token may be right, and cannot be judged.
var (
	ErrToken       = errors.New("the token is not one that the issuer signed")
	ErrExpired     = errors.New("the token has expired")
	ErrClaims      = errors.New("the token is not for this server, or not of this sender")
	ErrUnavailable = errors.New("the issuer's keys cannot be read now")
)

const (
	maxToken = 8 << 10
	// leeway is by how much the issuer's clock may be behind ours; go-oidc allows for one that is ahead.
	leeway = time.Minute
)

// Fetch reads a document of at most so many bytes.
type Fetch func(ctx context.Context, address string, most int64) ([]byte, error)

// Verifier verifies the tokens of one issuer. It keeps the issuer's keys.
type Verifier struct {
	config Config
	keys   *keySet
	now    func() time.Time
}

// New makes a verifier, which reads nothing yet.
func New(config Config, fetch Fetch, now func() time.Time) *Verifier {
	if len(config.Algorithms) == 0 {
		config.Algorithms = []string{"RS256"}
	}
	return &Verifier{config: config, now: now, keys: newKeySet(config, fetch, now)}
}

// Reach reads the issuer's keys, to find early that it cannot be done.
func (v *Verifier) Reach(ctx context.Context) error { return v.keys.read(ctx, 0) }

// compact is the only serialization that is taken: a JSON one could have several signatures, and headers nobody signed.
var compact = regexp.MustCompile(`^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$`)

// Verify returns who the issuer says the sender is: the email where one is demanded, else the subject.
func (v *Verifier) Verify(ctx context.Context, token string) (subject string, err error) {
	claims, err := v.claims(ctx, token, v.keys.find)
	if err != nil {
		return "", err
	}
	if v.config.Claims["email"] != "" {
		return v.config.Claims["email"], nil
	}
	return claims.Subject, nil
}

// Claims are what an authentic token says.
type Claims struct {
	Subject string
	Expiry  time.Time
	// All are the members of its payload, as encoding/json makes them of numbers as json.Number.
	All map[string]any
	// Signed is what the issuer signed, header and payload: a token in other bytes may have the same, since some kinds of
	// signature can be written in several ways.
	Signed string
}

// Judge is Verify for whoever wants everything that the issuer says.
func (v *Verifier) Judge(ctx context.Context, token string) (Claims, error) {
	return v.claims(ctx, token, v.keys.find)
}

// Held verifies a token with the keys that are held, and asks nobody: it is for whoever cannot wait. A key that is not
// there, or is too old, is ErrUnavailable, and the next Ready asks for it.
func (v *Verifier) Held(ctx context.Context, token string) (Claims, error) {
	return v.claims(ctx, token, v.keys.held)
}

// Ready has the issuer's keys read where Held would want them.
func (v *Verifier) Ready(ctx context.Context) error { return v.keys.ready(ctx) }

func (v *Verifier) claims(ctx context.Context, token string, find finder) (claims Claims, err error) {
	if len(token) > maxToken || !compact.MatchString(token) {
		return claims, ErrToken
	}
	judged := &verdict{verifier: v, find: find}
	verified, err := oidc.NewVerifier(v.config.Issuer, judged, &oidc.Config{
		ClientID: v.config.Audience, SupportedSigningAlgs: v.config.Algorithms,
		Now: func() time.Time { return v.now().Add(-leeway) },
	}).Verify(ctx, token)
	expired := new(oidc.TokenExpiredError)
	switch {
	case judged.err != nil:
		return claims, judged.err
	case !judged.authentic:
		return claims, ErrToken
	case errors.As(err, &expired):
		return claims, ErrExpired
	case err != nil:
		return claims, ErrClaims
	}
	var payload json.RawMessage
	if err := verified.Claims(&payload); err != nil {
		return claims, ErrClaims
	}
	all, err := strictjson.Parse(payload)
	if err != nil || !v.demanded(all) {
		return claims, ErrClaims
	}
	claims.Subject, claims.Expiry, claims.Signed = verified.Subject, verified.Expiry, token[:strings.LastIndexByte(token, '.')]
	claims.All, _ = all.(map[string]any)
	return claims, nil
}

// verdict is the key set as go-oidc asks it about one token; it remembers what go-oidc's error would only say in words.
type verdict struct {
	verifier  *Verifier
	find      finder
	authentic bool
	err       error
}

func (d *verdict) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	payload, err := d.verifier.signed(ctx, token, d.find)
	d.authentic, d.err = err == nil, err
	return payload, err
}

// signed returns what the issuer signed. Only the header's alg and kid are looked at, and the kid is a name among the
// issuer's keys: jwk, jku and x5u lead nowhere.
func (v *Verifier) signed(ctx context.Context, token string, find finder) ([]byte, error) {
	algorithms := make([]jose.SignatureAlgorithm, len(v.config.Algorithms))
	for i, algorithm := range v.config.Algorithms {
		algorithms[i] = jose.SignatureAlgorithm(algorithm)
	}
	jws, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil || len(jws.Signatures) != 1 {
		return nil, ErrToken
	}
	header := jws.Signatures[0].Protected
	if kind, ok := header.ExtraHeaders[jose.HeaderType]; ok && !slices.Contains([]any{"JWT", "jwt", "at+jwt", "application/at+jwt"}, kind) {
		return nil, ErrToken
	}
	if header.KeyID == "" {
		return nil, ErrToken
	}
	keys, err := find(ctx, header.KeyID)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		if key.Algorithm != "" && key.Algorithm != header.Algorithm {
			continue
		}
		if payload, err := jws.Verify(key.Key); err == nil {
			return payload, nil
		}
	}
	return nil, ErrToken
}

func (v *Verifier) demanded(claims any) bool {
	members, ok := claims.(map[string]any)
	for name, want := range v.config.Claims {
		ok = ok && holds(members[name], want)
	}
	if v.config.Claims["email"] != "" {
		ok = ok && holds(members["email_verified"], "true")
	}
	return ok
}

func holds(value any, want string) bool {
	switch v := value.(type) {
	case string:
		return v == want
	case bool, json.Number:
		return fmt.Sprint(v) == want
	case []any:
		return slices.Contains(v, any(want))
	}
	return false
}

// Token takes the bearer token out of the value of an Authorization header.
func Token(authorization string) (token string, ok bool) {
	scheme, token, ok := strings.Cut(authorization, " ")
	return token, ok && strings.EqualFold(scheme, "Bearer")
}
