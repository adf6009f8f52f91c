package enrollment

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/protocol"
)

// statementLife is how old a statement may be: a message waits at the homeserver while no server holds the bot.
const statementLife = time.Hour

// certificate verifies a statement that the key of a client certificate signed. To-device messages know no TLS, so the
// device proves that it has the key by signing who it is.
func (v *Verifier) certificate(sender id.UserID, request protocol.EnrollRequest) (Verified, error) {
	proof, now := request.Proof, v.now()
	if age := now.Sub(proof.At.Time()); age > statementLife || age < -protocol.Skew {
		return refused(protocol.RefusedProofExpired)
	}
	chain := make([]*x509.Certificate, len(proof.Certificates))
	for i, der := range proof.Certificates {
		var err error
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			return refused(protocol.RefusedProof)
		}
		if weak(chain[i].PublicKey) {
			return refused(protocol.RefusedProof)
		}
	}
	if len(chain) == 0 {
		return refused(protocol.RefusedProof)
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	// What x509 refuses by itself: signatures with SHA-1 and MD5, and authorities that may not be such.
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: v.roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	invalid := new(x509.CertificateInvalidError)
	if errors.As(err, invalid) && invalid.Reason == x509.Expired {
		return refused(protocol.RefusedProofExpired)
	} else if err != nil || chain[0].IsCA {
		return refused(protocol.RefusedProof)
	}
	statement, err := protocol.Statement(sender, request, proof.At)
	if err != nil || !signedBy(chain[0].PublicKey, statement, proof.Signature) {
		return refused(protocol.RefusedProof)
	}
	for _, name := range names(chain[0]) {
		if user, ok := v.user(name); ok && user == sender {
			return Verified{User: user, Unique: sha256.Sum256(append([]byte("statement\n"), statement...)), Expiry: proof.At.Time().Add(statementLife)}, nil
		}
	}
	return refused(protocol.RefusedProofOtherUser)
}

// weak reports whether a key is too short to prove anything, or of a kind that signs no statement.
func weak(public crypto.PublicKey) bool {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return key.N.BitLen() < 2048
	case *ecdsa.PublicKey:
		return key.Curve.Params().BitSize < 256
	case ed25519.PublicKey:
		return false
	}
	return true
}

// signedBy verifies what Sign made.
func signedBy(public crypto.PublicKey, statement, signature []byte) bool {
	digest := sha256.Sum256(statement)
	switch key := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPSS(key, crypto.SHA256, digest[:], signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest[:], signature)
	case ed25519.PublicKey:
		return ed25519.Verify(key, statement, signature)
	}
	return false
}

// Sign signs a statement with the key of a client certificate: Ed25519 as it is, ECDSA over SHA-256 in ASN.1, RSA as PSS
// over SHA-256 with a salt of that length.
func Sign(key crypto.Signer, statement []byte) ([]byte, error) {
	if weak(key.Public()) {
		return nil, errors.New("the certificate's key is too weak: RSA of 2048 bits, ECDSA of 256 or Ed25519 is needed")
	}
	digest := sha256.Sum256(statement)
	var signature []byte
	var err error
	switch key.Public().(type) {
	case ed25519.PublicKey:
		signature, err = key.Sign(rand.Reader, statement, crypto.Hash(0))
	case *rsa.PublicKey:
		signature, err = key.Sign(rand.Reader, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	default:
		signature, err = key.Sign(rand.Reader, digest[:], crypto.SHA256)
	}
	if err != nil {
		return nil, fmt.Errorf("signing the statement: %w", err)
	}
	return signature, nil
}

// names are those that a pattern is matched against: the alternative names, and the common name where there are none.
func names(c *x509.Certificate) []string {
	all := slices.Concat(c.EmailAddresses, c.DNSNames)
	for _, uri := range c.URIs {
		all = append(all, uri.String())
	}
	if len(all) == 0 {
		all = append(all, c.Subject.CommonName)
	}
	return all
}
