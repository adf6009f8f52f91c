package enrollment

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/internal/bearer"
	"github.com/keyherald/keyherald/internal/pinned"
	"github.com/keyherald/keyherald/protocol"
)

// Verified is whose a proof is. Unique names the proof for good, whoever writes it in which bytes, and until Expiry it may
// be shown; what it says is no secret.
type Verified struct {
	User   id.UserID
	Unique [32]byte
	Expiry time.Time
}

// Verifier judges the proofs of one name.
type Verifier struct {
	config  Proof
	pattern *regexp.Regexp
	tokens  *bearer.Verifier // nil for certificates
	roots   *x509.CertPool
	now     func() time.Time
}

// Deps are what New needs beside the configuration. Dial is for tests; nil connects.
type Deps struct {
	Now  func() time.Time
	Dial pinned.Dial
}

// New makes the verifiers of a valid configuration, by name. It reads files, and nothing over the network.
func New(config Config, deps Deps) (map[string]*Verifier, error) {
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("enrollment.%w", err)
	}
	verifiers := make(map[string]*Verifier, len(config.Proofs))
	for name, proof := range config.Proofs {
		v, err := newVerifier(proof, deps)
		if err != nil {
			return nil, fmt.Errorf("enrollment.proofs.%s.%w", name, err)
		}
		verifiers[name] = v
	}
	return verifiers, nil
}

func newVerifier(config Proof, deps Deps) (*Verifier, error) {
	v := &Verifier{config: config, pattern: regexp.MustCompile(`^(?:` + config.Pattern + `)$`), now: deps.Now}
	if v.config.Claim == "" {
		v.config.Claim = "sub"
	}
	var err error
	if config.CAFile != "" {
		if v.roots, err = pool(config.CAFile); err != nil {
			return nil, err
		}
	}
	if config.Type == protocol.ProofMTLS {
		return v, nil
	}
	fetch := func(context.Context, string, int64) ([]byte, error) { return os.ReadFile(config.KeysFile) }
	if config.KeysURL != "" {
		host, err := hostOf(config.KeysURL)
		if err != nil {
			return nil, fmt.Errorf("keys_url: %w", err)
		}
		// A company's own issuer may be at a private address; whoever keeps keys elsewhere than at the issuer may not, unless
		// the configuration says so.
		issuer, err := hostOf(config.Issuer)
		fetch = pinned.New(deps.Now, deps.Dial, pinned.Host{Name: host, Private: config.Private || err == nil && issuer == host, Roots: v.roots}).Get
	}
	v.tokens = bearer.New(bearer.Config{Issuer: config.Issuer, Audience: config.Audience, KeysURL: config.KeysURL, Algorithms: config.Algorithms, Claims: config.Claims}, fetch, deps.Now)
	return v, nil
}

func pool(path string) (*x509.CertPool, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("ca_file: %s has no certificate in PEM", path)
	}
	return roots, nil
}

// Type is what kind of proof it is.
func (v *Verifier) Type() protocol.ProofType { return v.config.Type }

// Ready reads the issuer's keys where Verify would want them. It may take seconds, and Verify takes none.
func (v *Verifier) Ready(ctx context.Context) error {
	if v.tokens == nil {
		return nil
	}
	return v.tokens.Ready(ctx)
}

// Refusal is why a proof is not taken; it is an error. None of its texts has anything of the proof in it.
type Refusal struct{ Why protocol.Refusal }

func (r Refusal) Error() string { return string(r.Why) }

func refused(why protocol.Refusal) (Verified, error) { return Verified{}, Refusal{why} }

// Verify says whose a proof is, or returns a Refusal. The request is the one that the proof came in, from this sender, and it
// is the caller's to see that the keys in it are the sender's. Nothing is read over the network.
func (v *Verifier) Verify(ctx context.Context, sender id.UserID, request protocol.EnrollRequest) (Verified, error) {
	if request.Proof == nil || request.Proof.Type != v.config.Type {
		return refused(protocol.RefusedProof)
	}
	if v.tokens == nil {
		return v.certificate(sender, request)
	}
	claims, err := v.tokens.Held(ctx, request.Proof.Token)
	switch {
	case errors.Is(err, bearer.ErrUnavailable):
		return refused(protocol.RefusedProofUnavailable)
	case errors.Is(err, bearer.ErrExpired):
		return refused(protocol.RefusedProofExpired)
	case errors.Is(err, bearer.ErrClaims):
		return refused(protocol.RefusedProofElsewhere)
	case err != nil:
		return refused(protocol.RefusedProof)
	}
	said, _ := claims.All[v.config.Claim].(string)
	if email, ok := claims.All["email_verified"].(bool); v.config.Claim == "email" && (!ok || !email) {
		return refused(protocol.RefusedProofElsewhere)
	}
	user, ok := v.user(said)
	if !ok || user != sender {
		return refused(protocol.RefusedProofOtherUser)
	}
	return Verified{User: user, Unique: sha256.Sum256([]byte("token\n" + claims.Signed)), Expiry: claims.Expiry}, nil
}

// user is whom a claim or a name of a certificate stands for.
func (v *Verifier) user(said string) (id.UserID, bool) {
	match := v.pattern.FindStringSubmatch(said)
	if match == nil {
		return "", false
	}
	localpart := match[v.pattern.SubexpIndex("user")]
	user := id.UserID(strings.ReplaceAll(v.config.User, "{user}", localpart))
	// A name with a colon would move the user to another server.
	if _, _, err := user.ParseAndValidateStrict(); err != nil || strings.Contains(localpart, ":") {
		return "", false
	}
	return user, true
}
