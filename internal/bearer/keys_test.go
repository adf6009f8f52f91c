package bearer

import (
	"crypto"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"sync"
	"testing"
	"time"
)

// hmacToken signs by HMAC, with the PEM of a public key as the secret: what a verifier that takes the algorithm from the
// token would believe.
func hmacToken(t testing.TB, key crypto.Signer, header, payload any) string {
	t.Helper()
	public, ok := key.Public().(*rsa.PublicKey)
	if !ok {
		t.Fatal("not an RSA key")
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	text := tokenOf(t, header, payload)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func (i *issuer) wait(d time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.clock = i.clock.Add(d)
}

func (i *issuer) setDown(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

func (i *issuer) times() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

func long(all map[string]any) { all["exp"] = now.Add(1000 * time.Hour).Unix() }

func TestKeysAreKeptAndRotate(t *testing.T) {
	i := newIssuer(t)
	v := i.verifier()
	verify := func(token string, want error) {
		t.Helper()
		if _, err := v.Verify(t.Context(), token); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	asked := func(want int) {
		t.Helper()
		if got := i.times(); got != want {
			t.Errorf("the issuer was asked %d times, want %d", got, want)
		}
	}
	old := i.keys["a"]
	first := sign(t, old, header(), claims(long))
	for range 100 {
		verify(first, nil)
	}
	asked(1)

	i.addRSA("b", 2048)
	second := sign(t, i.keys["b"], header(set("kid", "b")), claims(long))
	verify(second, ErrUnavailable) // nobody can know yet whether there is such a key
	asked(1)
	i.wait(again)
	verify(second, nil)
	asked(2)

	for range 100 {
		verify(sign(t, old, header(set("kid", "made up")), claims(long)), ErrUnavailable)
	}
	asked(2)
	i.wait(again)
	verify(sign(t, old, header(set("kid", "made up")), claims(long)), ErrToken)
	asked(3)

	delete(i.keys, "a")
	verify(first, nil) // kept for an hour
	i.wait(fresh)
	verify(first, ErrToken)
	verify(second, nil)
	asked(4)

	i.setDown(true)
	i.wait(fresh)
	verify(second, nil) // the issuer does not answer, and yesterday's keys do
	asked(5)
	for range 100 {
		verify(second, nil)
	}
	asked(5)
	i.wait(stale)
	verify(second, ErrUnavailable)
	asked(6)
	i.setDown(false)
	i.wait(again)
	verify(second, nil)
	asked(7)
}

func TestAnIssuerThatDoesNotAnswerIsNotTheSendersFault(t *testing.T) {
	i := newIssuer(t)
	i.setDown(true)
	v := i.verifier()
	for range 100 {
		if _, err := v.Verify(t.Context(), sign(t, i.keys["a"], header(), claims())); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("got %v", err)
		}
	}
	if i.times() != 1 {
		t.Errorf("it was asked %d times", i.times())
	}
	if err := v.Reach(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if err := newIssuer(t).verifier().Reach(t.Context()); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestManyAtOnceAskOnce(t *testing.T) {
	i := newIssuer(t)
	v, token := i.verifier(), sign(t, i.keys["a"], header(), claims())
	unknown := sign(t, i.keys["a"], header(set("kid", "b")), claims())
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			if _, err := v.Verify(t.Context(), unknown); !errors.Is(err, ErrToken) && !errors.Is(err, ErrUnavailable) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if i.times() != 1 {
		t.Errorf("the issuer was asked %d times", i.times())
	}
}
