package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/enrollment"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
)

const audience = "keyherald.example.org"

// granted is a world whose server knows three proofs: of an issuer over TLS, of a cluster whose keys are in a file, and of an
// authority's certificates.
type granted struct {
	*world
	issuer, cluster *keyheraldtest.Issuer
	authority       *keyheraldtest.Authority
	people          int
}

func newGranted(t *testing.T) *granted {
	t.Helper()
	w := &granted{world: newParts(t)}
	w.trust(t)
	w.serve(t, w.hs.URL)
	return w
}

// trust makes the issuers and the authority, and has the server know them.
func (w *granted) trust(t *testing.T) {
	t.Helper()
	var err error
	w.issuer, err = keyheraldtest.StartIssuer()
	check(t, err)
	t.Cleanup(func() { _ = w.issuer.Close() })
	w.cluster, err = keyheraldtest.StartIssuer()
	check(t, err)
	t.Cleanup(func() { _ = w.cluster.Close() })
	check(t, w.issuer.WriteCA(filepath.Join(w.dir, "issuer.pem")))
	set, err := w.cluster.JWKS()
	check(t, err)
	check(t, os.WriteFile(filepath.Join(w.dir, "cluster.json"), set, 0o600))
	w.authority, err = keyheraldtest.NewAuthority(filepath.Join(w.dir, "devices.pem"))
	check(t, err)
	user := "@{user}:" + keyheraldtest.ServerName
	w.proofs, err = enrollment.New(enrollment.Config{Proofs: map[string]enrollment.Proof{
		"workload": {Type: protocol.ProofOIDC, Issuer: w.issuer.URL(), KeysURL: w.issuer.KeysURL(), CAFile: filepath.Join(w.dir, "issuer.pem"), Audience: audience,
			Claim: "preferred_username", Pattern: `(?P<user>[a-z0-9]+)`, User: user},
		"cluster": {Type: protocol.ProofKubernetes, Issuer: w.cluster.URL(), KeysFile: filepath.Join(w.dir, "cluster.json"), Audience: audience,
			Pattern: `system:serviceaccount:keyherald:device-(?P<user>[a-z0-9]+)`, User: user},
		"laptops": {Type: protocol.ProofMTLS, CAFile: filepath.Join(w.dir, "devices.pem"), Pattern: `(?P<user>[a-z0-9]+)@example\.org`, User: user},
	}}, enrollment.Deps{Now: w.clock.Now})
	check(t, err)
}

// person is a user without anything: no identity, no device.
func (w *granted) person(t *testing.T) id.UserID {
	t.Helper()
	w.people++
	user, err := w.hs.CreateUser(t.Context(), fmt.Sprintf("person%d", w.people), password)
	check(t, err)
	return user
}

func (w *granted) grant(t *testing.T, proof, users string, most int, life time.Duration) postgres.Grant {
	t.Helper()
	grant, _, err := w.engine.NewGrant(t.Context(), relay.GrantRequest{Users: users, Proof: proof, Max: most, Life: life}, keyheraldtest.Admin())
	check(t, err)
	return grant
}

// device is an account that makes its user's identity and enrolls by what proof writes into its file.
func (w *granted) device(t *testing.T, user id.UserID, name string, proof device.EnrollmentProof) *device.Account {
	t.Helper()
	account := w.open(t, name, w.selfMade(user, proof))
	_, err := account.Verify(t.Context(), nil)
	check(t, err)
	return account
}

func (w *granted) selfMade(user id.UserID, proof device.EnrollmentProof) func(*device.AccountConfig) {
	return func(c *device.AccountConfig) {
		c.UserID, c.Verification = user, device.Verification{BootstrapTo: filepath.Join(w.dir, user.Localpart()+".recovery")}
		if recovery, err := os.Stat(filepath.Join(w.dir, user.Localpart()+".recovery")); err == nil && recovery.Size() > 0 {
			c.Verification = device.Verification{RecoveryKeyFile: filepath.Join(w.dir, user.Localpart()+".recovery")}
		}
		c.Server = device.Server{UserID: w.identity.UserID, MasterKey: w.masterKey}
		c.Enrollment = device.Enrollment{Proof: proof}
	}
}

// token writes a token for a user, as change made its claims, and is the proof of it.
func (w *granted) token(t *testing.T, user id.UserID, change map[string]any) device.EnrollmentProof {
	t.Helper()
	claims := map[string]any{"aud": audience, "sub": "1137", "preferred_username": user.Localpart()}
	for name, value := range change {
		claims[name] = value
	}
	token, err := w.issuer.Token(claims)
	check(t, err)
	return w.tokenFile(t, user, protocol.ProofOIDC, token)
}

func (w *granted) tokenFile(t *testing.T, user id.UserID, kind protocol.ProofType, token string) device.EnrollmentProof {
	t.Helper()
	path := filepath.Join(w.dir, user.Localpart()+".token")
	check(t, os.WriteFile(path, []byte(token), 0o600))
	return device.EnrollmentProof{Type: kind, TokenFile: path}
}

func (w *granted) certificate(t *testing.T, user id.UserID, by *keyheraldtest.Authority, email string) device.EnrollmentProof {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	proof := device.EnrollmentProof{Type: protocol.ProofMTLS, CertFile: filepath.Join(w.dir, user.Localpart()+".pem"), KeyFile: filepath.Join(w.dir, user.Localpart()+".key")}
	check(t, by.Give(email, proof.CertFile, proof.KeyFile, key, nil))
	return proof
}

// enrolls tries, and wants the refusal; empty is none.
func (w *granted) enrolls(t *testing.T, account *device.Account, want protocol.Refusal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if want.Later() {
		// It asks on and on, and must have had an answer by then.
		ctx, cancel = context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
	}
	err := account.EnrollByGrant(ctx)
	refused := device.Refused{}
	switch {
	case want == "":
		check(t, err)
	case !errors.As(err, &refused) || refused.Reason != want:
		t.Errorf("got %v, want %s", err, want)
	case !w.logHas(t, "grant.refused", string(want)):
		t.Errorf("the audit log has no refusal %s", want)
	}
}

func (w *granted) used(t *testing.T, grant postgres.Grant) int {
	t.Helper()
	grants, err := w.db.Grants(t.Context(), postgres.GrantFilter{})
	check(t, err)
	for _, g := range grants {
		if g.ID == grant.ID {
			return g.Used
		}
	}
	t.Fatal("the grant is gone")
	return 0
}
