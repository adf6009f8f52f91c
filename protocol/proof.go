package protocol

import (
	"errors"
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"
)

// ProofType is what kind of thing a device shows instead of a code.
type ProofType string

// The proofs: a token of an OpenID Connect issuer, a projected service-account token of Kubernetes, and a statement that
// the private key of a client certificate signed.
const (
	ProofOIDC       ProofType = "oidc"
	ProofKubernetes ProofType = "kubernetes"
	ProofMTLS       ProofType = "mtls"
)

// ProofTypes are all of them.
var ProofTypes = []ProofType{ProofOIDC, ProofKubernetes, ProofMTLS}

// The bounds of a proof, in bytes: to-device content has 64 KiB, and is base64 inside of base64.
const (
	maxProofToken = 8 << 10
	maxProofChain = 8
	maxProofCert  = 4 << 10
	maxSignature  = 1 << 10
)

// Proof is what a device shows to enroll by a grant. Token is of the types oidc and kubernetes; the rest is of mtls:
// Certificates in DER, the device's own first, and Signature over Statement. It prints redacted, since a token is a secret.
type Proof struct {
	Type         ProofType `json:"type"`
	Token        string    `json:"token,omitempty"`
	Certificates [][]byte  `json:"certificates,omitempty"`
	Signature    []byte    `json:"signature,omitempty"`
	At           Millis    `json:"at,omitempty"`
}

// Validate reports the first field that cannot be right. It does not say what is in it.
func (p Proof) Validate() error {
	byToken := p.Type == ProofOIDC || p.Type == ProofKubernetes
	switch {
	case p.Type == "":
		return errors.New("proof.type is missing")
	case byToken && (p.Token == "" || len(p.Token) > maxProofToken):
		return errors.New("proof.token is missing or too long")
	case p.Type == ProofMTLS && (len(p.Certificates) == 0 || len(p.Certificates) > maxProofChain || len(p.Signature) == 0 || len(p.Signature) > maxSignature || p.At <= 0):
		return errors.New("proof.certificates, signature or at is missing or too long")
	}
	for _, certificate := range p.Certificates {
		if len(certificate) > maxProofCert {
			return errors.New("proof.certificates has one that is too long")
		}
	}
	return nil
}

// String redacts.
func (p Proof) String() string { return "proof of type " + string(p.Type) + " (redacted)" }

// GoString redacts.
func (p Proof) GoString() string { return p.String() }

// Format redacts whatever the verb is.
func (p Proof) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(p.String())) }

// Statement is what the key of a client certificate signs to enroll a device: to which bot, for which user with which
// identity, and both keys of the device, so that it is of use to nobody else. It is text with a line for each. An id with
// a line break in it is an error, since two statements could read the same then.
func Statement(user id.UserID, r EnrollRequest, at Millis) ([]byte, error) {
	lines := []string{"keyherald enrollment v1", string(r.BotUserID), string(r.BotMasterKey), string(user), string(r.UserMasterKey),
		string(r.DeviceID), string(r.IdentityKey), string(r.SigningKey), fmt.Sprint(int64(at))}
	for _, line := range lines {
		if strings.ContainsAny(line, "\r\n") {
			return nil, errors.New("an id or a key has a line break in it")
		}
	}
	return []byte(strings.Join(lines, "\n") + "\n"), nil
}
