package enrollment_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/enrollment"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
)

const alice = id.UserID("@alice:example.org")

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func request() protocol.EnrollRequest {
	return protocol.EnrollRequest{ProtocolVersion: 1, BotUserID: "@keyherald:example.org", BotMasterKey: "bot", UserMasterKey: "user", DeviceID: "DEVICE", IdentityKey: "curve", SigningKey: "ed"}
}

func why(err error) protocol.Refusal {
	refused := enrollment.Refusal{}
	if errors.As(err, &refused) {
		return refused.Why
	}
	return ""
}

func TestAStatementIsVerifiedByTheCertificatesKey(t *testing.T) {
	dir := t.TempDir()
	authority, err := keyheraldtest.NewAuthority(filepath.Join(dir, "ca.pem"))
	check(t, err)
	other, err := keyheraldtest.NewAuthority(filepath.Join(dir, "other.pem"))
	check(t, err)
	verifiers, err := enrollment.New(enrollment.Config{Proofs: map[string]enrollment.Proof{
		"laptops": {Type: protocol.ProofMTLS, CAFile: filepath.Join(dir, "ca.pem"), Pattern: `(?P<user>[a-z]+)@example\.org`, User: "@{user}:example.org"}}}, enrollment.Deps{})
	check(t, err)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	check(t, err)
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	check(t, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	const good = protocol.Refusal("")
	for _, test := range []struct {
		name   string
		key    crypto.Signer
		email  string
		change func(*x509.Certificate)
		by     *keyheraldtest.Authority
		at     time.Duration
		alter  func(*protocol.EnrollRequest)
		want   protocol.Refusal
	}{
		{"ECDSA", ec, "alice@example.org", nil, authority, 0, nil, good},
		{"RSA", long, "alice@example.org", nil, authority, 0, nil, good},
		{"Ed25519", ed, "alice@example.org", nil, authority, 0, nil, good},
		{"a statement of half an hour ago, that waited at the homeserver", ec, "alice@example.org", nil, authority, -30 * time.Minute, nil, good},
		{"one of two hours ago", ec, "alice@example.org", nil, authority, -2 * time.Hour, nil, protocol.RefusedProofExpired},
		{"one of the future", ec, "alice@example.org", nil, authority, time.Hour, nil, protocol.RefusedProofExpired},
		{"a certificate of another authority", ec, "alice@example.org", nil, other, 0, nil, protocol.RefusedProof},
		{"a certificate of another user", ec, "bob@example.org", nil, authority, 0, nil, protocol.RefusedProofOtherUser},
		{"a name that the pattern does not know", ec, "alice@example.org.evil", nil, authority, 0, nil, protocol.RefusedProofOtherUser},
		{"a certificate that has expired", ec, "alice@example.org", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, authority, 0, nil, protocol.RefusedProofExpired},
		{"a certificate of a server", ec, "alice@example.org", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, authority, 0, nil, protocol.RefusedProof},
		{"a short RSA key", short, "alice@example.org", nil, authority, 0, nil, protocol.RefusedProof},
		{"a short curve", p224, "alice@example.org", nil, authority, 0, nil, protocol.RefusedProof},
		{"the statement of another device", ec, "alice@example.org", nil, authority, 0, func(r *protocol.EnrollRequest) { r.IdentityKey = "mallory" }, protocol.RefusedProof},
		{"the statement for another server", ec, "alice@example.org", nil, authority, 0, func(r *protocol.EnrollRequest) { r.BotMasterKey = "mallory" }, protocol.RefusedProof},
		{"the statement of another identity", ec, "alice@example.org", nil, authority, 0, func(r *protocol.EnrollRequest) { r.UserMasterKey = "mallory" }, protocol.RefusedProof},
		{"a time that was changed", ec, "alice@example.org", nil, authority, 0, func(r *protocol.EnrollRequest) { r.Proof.At++ }, protocol.RefusedProof},
		{"no signature", ec, "alice@example.org", nil, authority, 0, func(r *protocol.EnrollRequest) { r.Proof.Signature = []byte{1} }, protocol.RefusedProof},
		{"a certificate that is none", ec, "alice@example.org", nil, authority, 0, func(r *protocol.EnrollRequest) { r.Proof.Certificates = [][]byte{{1}} }, protocol.RefusedProof},
		{"another kind of proof", ec, "alice@example.org", nil, authority, 0, func(r *protocol.EnrollRequest) { r.Proof.Type = protocol.ProofOIDC }, protocol.RefusedProof},
		{"a line break in an id", ec, "alice@example.org", nil, authority, 0, func(r *protocol.EnrollRequest) { r.DeviceID = "DEVICE\nX" }, protocol.RefusedProof},
	} {
		t.Run(test.name, func(t *testing.T) {
			cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "c.key")
			check(t, test.by.Give(test.email, cert, key, test.key, test.change))
			raw, err := os.ReadFile(cert)
			check(t, err)
			private, err := os.ReadFile(key)
			check(t, err)
			pair, err := tls.X509KeyPair(raw, private)
			if err != nil {
				// Go's TLS does not load such a key at all; what counts is that the server does not take it.
				t.Logf("as a TLS key it is refused already: %v", err)
			}
			r := request()
			r.Proof = &protocol.Proof{Type: protocol.ProofMTLS, Certificates: pair.Certificate, At: protocol.At(time.Now().Add(test.at))}
			statement, err := protocol.Statement(alice, r, r.Proof.At)
			check(t, err)
			if r.Proof.Signature, err = enrollment.Sign(test.key, statement); err != nil {
				if test.want == good {
					t.Fatal(err)
				}
				r.Proof.Signature = signAnyway(t, test.key, statement)
			}
			if test.alter != nil {
				test.alter(&r)
			}
			verified, err := verifiers["laptops"].Verify(t.Context(), alice, r)
			if got := why(err); got != test.want || test.want == good && (err != nil || verified.User != alice) {
				t.Errorf("got %v of %s, want %q", err, verified.User, test.want)
			}
		})
	}
}

// signAnyway signs with a key that Sign refuses.
func signAnyway(t *testing.T, key crypto.Signer, statement []byte) []byte {
	t.Helper()
	digest := crypto.SHA256.New()
	digest.Write(statement)
	var options crypto.SignerOpts = crypto.SHA256
	if _, ok := key.(*rsa.PrivateKey); ok {
		options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	}
	signature, err := key.Sign(rand.Reader, digest.Sum(nil), options)
	check(t, err)
	return signature
}

func TestAnIssuerThatDoesNotAnswerIsNoFaultOfTheDevices(t *testing.T) {
	issuer, err := keyheraldtest.StartIssuer()
	check(t, err)
	t.Cleanup(func() { _ = issuer.Close() })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	check(t, issuer.WriteCA(ca))
	clock := &keyheraldtest.Clock{}
	verifiers, err := enrollment.New(enrollment.Config{Proofs: map[string]enrollment.Proof{"workload": {Type: protocol.ProofOIDC, Issuer: issuer.URL(), KeysURL: issuer.KeysURL(), CAFile: ca,
		Audience: "keyherald", Pattern: "(?P<user>[a-z]+)", User: "@{user}:example.org"}}}, enrollment.Deps{Now: clock.Now})
	check(t, err)
	v := verifiers["workload"]
	verify := func(want protocol.Refusal) enrollment.Verified {
		t.Helper()
		token, err := issuer.Token(map[string]any{"aud": "keyherald", "sub": "alice", "exp": clock.Now().Add(time.Hour).Unix()})
		check(t, err)
		r := request()
		r.Proof = &protocol.Proof{Type: protocol.ProofOIDC, Token: token}
		verified, err := v.Verify(t.Context(), alice, r)
		if why(err) != want || want == "" && err != nil {
			t.Fatalf("got %v, want %q", err, want)
		}
		return verified
	}
	issuer.Down(true)
	if v.Ready(t.Context()) == nil {
		t.Error("an issuer that is down is ready")
	}
	verify(protocol.RefusedProofUnavailable)
	issuer.Down(false)
	clock.Advance(time.Minute)
	check(t, v.Ready(t.Context()))
	first := verify("")
	if again := verify(""); again.Unique == first.Unique {
		t.Error("two tokens have one name")
	}
	// A new key of the issuer's is asked for when somebody showed it, and not at once.
	check(t, issuer.Rotate())
	verify(protocol.RefusedProofUnavailable)
	clock.Advance(time.Minute)
	check(t, v.Ready(t.Context()))
	verify("")
	// A key that the issuer does not have is wrong, once it was asked.
	stranger, err := keyheraldtest.StartIssuer()
	check(t, err)
	t.Cleanup(func() { _ = stranger.Close() })
	for range 5 {
		check(t, stranger.Rotate())
	}
	token, err := stranger.Token(map[string]any{"iss": issuer.URL(), "aud": "keyherald", "sub": "alice", "exp": clock.Now().Add(time.Hour).Unix()})
	check(t, err)
	r := request()
	r.Proof = &protocol.Proof{Type: protocol.ProofOIDC, Token: token}
	if _, err := v.Verify(t.Context(), alice, r); why(err) != protocol.RefusedProofUnavailable {
		t.Errorf("an unknown key: got %v", err)
	}
	clock.Advance(time.Minute)
	check(t, v.Ready(t.Context()))
	if _, err := v.Verify(t.Context(), alice, r); why(err) != protocol.RefusedProof {
		t.Errorf("a key that the issuer does not have: got %v", err)
	}
}

func TestAWrongProofConfigurationIsRefused(t *testing.T) {
	oidc := enrollment.Proof{Type: protocol.ProofOIDC, Issuer: "https://login.example.org", KeysURL: "https://login.example.org/keys", Audience: "keyherald", Pattern: "(?P<user>[a-z]+)", User: "@{user}:example.org"}
	mtls := enrollment.Proof{Type: protocol.ProofMTLS, CAFile: "ca.pem", Pattern: "(?P<user>[a-z]+)", User: "@{user}:example.org"}
	for _, good := range []enrollment.Proof{oidc, mtls} {
		check(t, enrollment.Config{Proofs: map[string]enrollment.Proof{"x": good}}.Validate())
	}
	for _, test := range []struct {
		name   string
		of     enrollment.Proof
		change func(*enrollment.Proof)
		want   string
	}{
		{"no type", oidc, func(p *enrollment.Proof) { p.Type = "" }, "type"},
		{"no issuer", oidc, func(p *enrollment.Proof) { p.Issuer = "" }, "issuer"},
		{"no audience, so that every server's token would do", oidc, func(p *enrollment.Proof) { p.Audience = "" }, "audience"},
		{"keys in clear", oidc, func(p *enrollment.Proof) { p.KeysURL = "http://login.example.org/keys" }, "keys_url"},
		{"no keys", oidc, func(p *enrollment.Proof) { p.KeysURL = "" }, "keys_url"},
		{"a symmetric algorithm", oidc, func(p *enrollment.Proof) { p.Algorithms = []string{"HS256"} }, "algorithms[0]"},
		{"a pattern without a user", oidc, func(p *enrollment.Proof) { p.Pattern = ".*" }, "pattern"},
		{"one user for all", oidc, func(p *enrollment.Proof) { p.User = "@alice:example.org" }, "user"},
		{"no authority", mtls, func(p *enrollment.Proof) { p.CAFile = "" }, "ca_file"},
		{"an audience of certificates", mtls, func(p *enrollment.Proof) { p.Audience = "x" }, "type is mtls"},
	} {
		proof := test.of
		test.change(&proof)
		if err := (enrollment.Config{Proofs: map[string]enrollment.Proof{"x": proof}}).Validate(); err == nil || !strings.HasPrefix(err.Error(), "proofs.x."+test.want) {
			t.Errorf("%s: got %v", test.name, err)
		}
	}
}
