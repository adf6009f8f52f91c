package bearer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

var now = time.Unix(1_767_225_600, 0)

// issuer signs with keys of its own and publishes their public halves.
type issuer struct {
	t    testing.TB
	keys map[string]crypto.Signer

	mu    sync.Mutex
	clock time.Time
	down  bool
	extra []any // further entries of the key set
	asked int
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{t: t, keys: map[string]crypto.Signer{}, clock: now}
	i.addRSA("a", 2048)
	return i
}

func (i *issuer) addRSA(name string, bits int) {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		i.t.Fatal(err)
	}
	i.keys[name] = key
}

func (i *issuer) fetch(_ context.Context, address string, _ int64) ([]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked++
	if i.down || address != "https://issuer.example/keys" {
		return nil, errors.New("it does not answer")
	}
	set := i.extra
	for name, key := range i.keys {
		set = append(set, jose.JSONWebKey{Key: key.Public(), KeyID: name, Use: "sig"})
	}
	body, err := json.Marshal(map[string]any{"keys": set})
	if err != nil {
		i.t.Fatal(err)
	}
	return body, nil
}

func (i *issuer) verifier(change ...func(*Config)) *Verifier {
	config := Config{Issuer: "https://issuer.example", Audience: "https://keyherald.example/notify/x", KeysURL: "https://issuer.example/keys",
		Claims: map[string]string{"email": "push@project.example"}}
	for _, c := range change {
		c(&config)
	}
	return New(config, i.fetch, func() time.Time { i.mu.Lock(); defer i.mu.Unlock(); return i.clock })
}

func claims(change ...func(map[string]any)) map[string]any {
	all := map[string]any{"iss": "https://issuer.example", "aud": "https://keyherald.example/notify/x", "sub": "1137", "email": "push@project.example",
		"email_verified": true, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	for _, c := range change {
		c(all)
	}
	return all
}

func set(name string, value any) func(map[string]any) {
	return func(all map[string]any) { all[name] = value }
}

func without(name string) func(map[string]any) {
	return func(all map[string]any) { delete(all, name) }
}

// sign makes a compact token with any header.
func sign(t testing.TB, key crypto.Signer, header map[string]any, payload any) string {
	t.Helper()
	part := func(value any) string {
		raw, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	text := part(header) + "." + part(payload)
	digest := crypto.SHA256.New()
	digest.Write([]byte(text))
	signature, err := key.Sign(rand.Reader, digest.Sum(nil), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func header(change ...func(map[string]any)) map[string]any {
	all := map[string]any{"alg": "RS256", "kid": "a", "typ": "JWT"}
	for _, c := range change {
		c(all)
	}
	return all
}

func TestVerify(t *testing.T) {
	i := newIssuer(t)
	i.addRSA("short", 1024)
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	a := i.keys["a"]
	good := sign(t, a, header(), claims())
	parts := strings.Split(good, ".")
	for _, test := range []struct {
		name, token string
		want        error
	}{
		{"the issuer's own token is good", good, nil},
		{"an audience among several", sign(t, a, header(), claims(set("aud", []string{"x", "https://keyherald.example/notify/x"}))), nil},
		{"a token without typ", sign(t, a, header(without("typ")), claims()), nil},
		{"an access token", sign(t, a, header(set("typ", "at+jwt")), claims()), nil},
		{"expired by less than a minute", sign(t, a, header(), claims(set("exp", now.Add(-59*time.Second).Unix()))), nil},
		{"expired by more", sign(t, a, header(), claims(set("exp", now.Add(-61*time.Second).Unix()))), ErrExpired},
		{"no expiry", sign(t, a, header(), claims(without("exp"))), ErrExpired},
		{"not valid yet", sign(t, a, header(), claims(set("nbf", now.Add(10*time.Minute).Unix()))), ErrClaims},
		{"of another issuer", sign(t, a, header(), claims(set("iss", "https://issuer.example.evil"))), ErrClaims},
		{"an issuer in another case", sign(t, a, header(), claims(set("iss", "https://Issuer.example"))), ErrClaims},
		{"no issuer", sign(t, a, header(), claims(without("iss"))), ErrClaims},
		{"for another audience", sign(t, a, header(), claims(set("aud", "https://keyherald.example/notify/y"))), ErrClaims},
		{"an audience that only begins alike", sign(t, a, header(), claims(set("aud", "https://keyherald.example/notify/x/y"))), ErrClaims},
		{"no audience", sign(t, a, header(), claims(without("aud"))), ErrClaims},
		{"of another sender", sign(t, a, header(), claims(set("email", "push@elsewhere.example"))), ErrClaims},
		{"an email nobody verified", sign(t, a, header(), claims(set("email_verified", false))), ErrClaims},
		{"an email of which it is not said", sign(t, a, header(), claims(without("email_verified"))), ErrClaims},
		{"a claim that is an object", sign(t, a, header(), claims(set("email", map[string]any{"push@project.example": true}))), ErrClaims},
		{"claims that are no object", sign(t, a, header(), []string{"x"}), ErrClaims},
		{"signed by a stranger under the issuer's name of a key", sign(t, stranger, header(), claims()), ErrToken},
		{"a key name that nobody has", sign(t, a, header(set("kid", "zzz")), claims()), ErrToken},
		{"no key name", sign(t, a, header(without("kid")), claims()), ErrToken},
		{"a key name that is a path", sign(t, a, header(set("kid", "../../dev/null")), claims()), ErrToken},
		{"a key that is too short", sign(t, i.keys["short"], header(set("kid", "short")), claims()), ErrToken},
		{"a stranger's key in the header", sign(t, stranger, header(set("kid", "s"), set("jwk", jose.JSONWebKey{Key: stranger.Public()})), claims()), ErrToken},
		{"an address of keys in the header", sign(t, stranger, header(set("jku", "https://evil.example/keys")), claims()), ErrToken},
		{"an address of a certificate in the header", sign(t, stranger, header(set("x5u", "https://evil.example/cert")), claims()), ErrToken},
		{"a critical header that nobody knows", sign(t, a, header(set("crit", []string{"exp"}), set("exp", 1)), claims()), ErrToken},
		{"another kind of token", sign(t, a, header(set("typ", "logout+jwt")), claims()), ErrToken},
		{"no algorithm", sign(t, a, header(set("alg", "none")), claims()), ErrToken},
		{"no algorithm and no signature", tokenOf(t, header(set("alg", "none")), claims()) + ".", ErrToken},
		{"an algorithm that was not named", sign(t, a, header(set("alg", "RS512")), claims()), ErrToken},
		{"the public key taken for a secret", hmacToken(t, a, header(set("alg", "HS256")), claims()), ErrToken},
		{"an algorithm in another case", sign(t, a, header(set("alg", "rs256")), claims()), ErrToken},
		{"claims of one under the signature of another", parts[0] + "." + strings.Split(sign(t, a, header(), claims(set("sub", "0"))), ".")[1] + "." + parts[2], ErrToken},
		{"a changed header", strings.Split(sign(t, a, header(set("typ", "jwt")), claims()), ".")[0] + "." + parts[1] + "." + parts[2], ErrToken},
		{"two parts", parts[0] + "." + parts[1], ErrToken},
		{"four parts", good + "." + parts[2], ErrToken},
		{"a line break in it", parts[0] + "." + parts[1] + ".\n" + parts[2], ErrToken},
		{"the JSON serialization", `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, ErrToken},
		{"padding", good + "=", ErrToken},
		{"nothing", "", ErrToken},
		{"far too long", strings.Repeat("a", 10_000) + "." + parts[1] + "." + parts[2], ErrToken},
	} {
		t.Run(test.name, func(t *testing.T) {
			subject, err := i.verifier().Verify(t.Context(), test.token)
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if test.want == nil && subject != "push@project.example" {
				t.Errorf("the sender is %q", subject)
			}
		})
	}
}

func TestAlgorithmAndKeyMustFit(t *testing.T) {
	i := newIssuer(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i.extra = []any{
		map[string]any{"kty": "oct", "kid": "secret", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"},
		jose.JSONWebKey{Key: key, KeyID: "private"},
		jose.JSONWebKey{Key: key.Public(), KeyID: "forES384", Algorithm: "ES384"},
		jose.JSONWebKey{Key: i.keys["a"].Public(), KeyID: "encryption", Use: "enc"},
		map[string]any{"kty": "new", "kid": "future"},
		"no key at all",
	}
	both := func(c *Config) { c.Algorithms = []string{"RS256", "ES256"} }
	for _, name := range []string{"secret", "private", "forES384", "encryption", "future"} {
		if _, err := i.verifier(both).Verify(t.Context(), sign(t, i.keys["a"], header(set("kid", name)), claims())); !errors.Is(err, ErrToken) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := i.verifier(both).Verify(t.Context(), sign(t, i.keys["a"], header(), claims())); err != nil {
		t.Errorf("beside keys that cannot be used the usable one is not: %v", err)
	}
}

func TestClaims(t *testing.T) {
	i := newIssuer(t)
	token := sign(t, i.keys["a"], header(), claims(set("roles", []string{"Reader", "Notifier"}), set("ver", 2), set("tenant", "t")))
	for _, test := range []struct {
		name   string
		claims map[string]string
		want   error
	}{
		{"one of a list", map[string]string{"roles": "Notifier"}, nil},
		{"none of a list", map[string]string{"roles": "Notif"}, ErrClaims},
		{"a number", map[string]string{"ver": "2"}, nil},
		{"all of several", map[string]string{"tenant": "t", "roles": "Reader"}, nil},
		{"one of several is not enough", map[string]string{"tenant": "t", "roles": "Writer"}, ErrClaims},
		{"a claim that is not there", map[string]string{"appid": "x"}, ErrClaims},
	} {
		t.Run(test.name, func(t *testing.T) {
			subject, err := i.verifier(func(c *Config) { c.Claims = test.claims }).Verify(t.Context(), token)
			if !errors.Is(err, test.want) || err == nil && subject != "1137" {
				t.Errorf("got %q, %v, want %v", subject, err, test.want)
			}
		})
	}
}

func tokenOf(t testing.TB, header, payload any) string {
	t.Helper()
	parts := make([]string, 2)
	for i, value := range []any{header, payload} {
		raw, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		parts[i] = base64.RawURLEncoding.EncodeToString(raw)
	}
	return strings.Join(parts, ".")
}

// Whatever a token says, only one that the issuer signed is taken.
func FuzzVerify(f *testing.F) {
	i := newIssuer(f)
	good := sign(f, i.keys["a"], header(), claims())
	f.Add(good)
	f.Add(tokenOf(f, header(set("alg", "none")), claims()) + ".")
	f.Add(hmacToken(f, i.keys["a"], header(set("alg", "HS256")), claims()))
	f.Add(sign(f, i.keys["a"], header(set("jwk", "x"), set("crit", []string{"b64"}), set("b64", false)), claims()))
	f.Add("..")
	v := i.verifier()
	signature := strings.Split(good, ".")[2]
	f.Fuzz(func(t *testing.T, token string) {
		subject, err := v.Verify(t.Context(), token)
		// RSA signatures of version 1.5 are unique, but the last character of base64 has bits to spare.
		if err == nil && !strings.HasPrefix(token, good[:len(good)-1]) {
			t.Errorf("%q was taken, of %s", token, subject)
		}
		if err != nil && !errors.Is(err, ErrToken) && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrClaims) && !errors.Is(err, ErrExpired) {
			t.Errorf("%q: %v", token, err)
		}
		_, _ = Token("Bearer " + signature)
	})
}

func FuzzKeySet(f *testing.F) {
	i := newIssuer(f)
	body, err := i.fetch(f.Context(), "https://issuer.example/keys", maxKeySet)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(`{"keys":[{"kty":"oct","kid":"a","k":"AAAA"},{"kty":"EC","kid":"b","crv":"P-256","x":"AA","y":"AA"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		keys, err := parseKeys(body, []string{"RS256", "ES256"})
		for name, list := range keys {
			for _, key := range list {
				if err != nil || name == "" || !key.IsPublic() {
					t.Errorf("%q: %v %v %v", body, name, key, err)
				}
			}
		}
	})
}
