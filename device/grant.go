package device

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/enrollment"
	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/protocol"
)

// Server is the Keyherald server that a device enrolls with where no code names it: its bot, and the fingerprint of the bot's
// master key, as `keyherald bot keygen` printed it.
type Server struct {
	UserID    id.UserID  `yaml:"user_id,omitempty"`
	MasterKey id.Ed25519 `yaml:"master_key,omitempty"`
}

// Enrollment is how a device enrolls without a code, where an admin granted that.
type Enrollment struct {
	Proof EnrollmentProof `yaml:"proof,omitempty"`
}

// EnrollmentProof is what the device shows: a token, from a file that somebody else keeps fresh, or a certificate by whose key
// it signs who it is.
type EnrollmentProof struct {
	Type      protocol.ProofType `yaml:"type,omitempty"`
	TokenFile string             `yaml:"token_file,omitempty"`
	CertFile  string             `yaml:"cert_file,omitempty"`
	KeyFile   string             `yaml:"key_file,omitempty"`
}

func (c AccountConfig) validateEnrollment() error {
	p := c.Enrollment.Proof
	switch p.Type {
	case "":
		if p != (EnrollmentProof{}) {
			return errors.New("enrollment.proof.type is missing: write oidc, kubernetes or mtls")
		}
	case protocol.ProofOIDC, protocol.ProofKubernetes:
		if p.TokenFile == "" || p.CertFile != "" || p.KeyFile != "" {
			return errors.New("enrollment.proof: write token_file, the file that the token is put into, and neither cert_file nor key_file")
		}
	case protocol.ProofMTLS:
		if p.CertFile == "" || p.KeyFile == "" || p.TokenFile != "" {
			return errors.New("enrollment.proof: write cert_file and key_file, of the device's client certificate, and no token_file")
		}
	default:
		return fmt.Errorf("enrollment.proof.type is %q: write oidc, kubernetes or mtls", p.Type)
	}
	if c.Server == (Server{}) {
		if p.Type != "" {
			return errors.New("server is missing: without a code nothing else names the bot; write its user_id and master_key, the fingerprint that `keyherald bot keygen` printed")
		}
		return nil
	}
	if _, _, err := c.Server.UserID.Parse(); err != nil {
		return fmt.Errorf("server.user_id is %q: write the bot's, such as @keyherald:example.org", c.Server.UserID)
	}
	if _, err := protocol.ParseMasterKey(string(c.Server.MasterKey)); err != nil {
		return fmt.Errorf("server.master_key: %w", err)
	}
	return nil
}

// Refused is an enrollment that the server refused.
type Refused struct{ Reason protocol.Refusal }

func (r Refused) Error() string {
	return fmt.Sprintf("the server refused the enrollment (%s): %s", r.Reason, r.Reason.Explain())
}

// enrollPause is how long a device waits before it asks once more what the server could not judge.
const enrollPause = 5 * time.Second

// EnrollByGrant enrolls the device with the server of its configuration by what it can show of itself. It must be
// cross-signed (Verify) before. What the server cannot judge now is asked again until ctx ends, with a fresh proof.
func (a *Account) EnrollByGrant(ctx context.Context) error {
	if a.config.Enrollment.Proof.Type == "" {
		return errors.New("enrollment.proof is missing in the account file: it says what the device shows instead of a code")
	}
	for {
		err := a.askToEnroll(ctx, a.config.Server.UserID, a.config.Server.MasterKey, a.prove)
		refused := Refused{}
		if !errors.As(err, &refused) || !refused.Reason.Later() {
			return err
		}
		a.log.Warn().Err(err).Msg("The enrollment is tried again")
		if loop.Pause(ctx, enrollPause); ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
	}
}

// prove adds the proof to a request.
func (a *Account) prove(request *protocol.EnrollRequest) error {
	config := a.config.Enrollment.Proof
	proof := &protocol.Proof{Type: config.Type, At: protocol.At(a.now())}
	request.Proof = proof
	if config.Type != protocol.ProofMTLS {
		var err error
		proof.Token, err = readSecret(config.TokenFile)
		return err
	}
	pair, err := tls.LoadX509KeyPair(config.CertFile, config.KeyFile)
	if err != nil {
		return fmt.Errorf("enrollment.proof: reading the certificate and its key: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return errors.New("enrollment.proof: the certificate's key signs nothing")
	}
	proof.Certificates = pair.Certificate
	statement, err := protocol.Statement(a.config.UserID, *request, proof.At)
	if err != nil {
		return fmt.Errorf("enrollment.proof: %w", err)
	}
	proof.Signature, err = enrollment.Sign(key, statement)
	return err
}
