package sns

import (
	"context"
	"crypto"
	"crypto/rsa"
	_ "crypto/sha1" // signature version 1 is SHA-1, and is what topics have unless they were told otherwise
	_ "crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/keyherald/keyherald/internal/pinned"
)

// The errors of Verify and Confirm. All but the last are the sender's.
var (
	ErrSignature   = errors.New("the message is not signed by Amazon SNS")
	ErrCertificate = errors.New("the message names a certificate that does not sign for Amazon SNS")
	ErrTopic       = errors.New("the topic is not one of those that may notify")
	ErrStale       = errors.New("the message is too old, or from the future")
	ErrUnavailable = errors.New("what Amazon SNS has cannot be read now")
)

const (
	// SNS gives up an HTTPS delivery after an hour.
	maxAge = time.Hour
	skew   = 5 * time.Minute

	maxCertificate  = 32 << 10
	maxCertificates = 16
	// kept is how long a certificate is used without being read again, and stale how long where it cannot be: strangers
	// can name certificates that are not there, until no more are asked for.
	kept  = 24 * time.Hour
	stale = 7 * 24 * time.Hour
	// maxAnswer is what the API may answer to a confirmation.
	maxAnswer = 64 << 10
)

// Config says whose messages are taken.
type Config struct {
	Topics []Topic
	// SHA256 refuses signature version 1.
	SHA256 bool
	// Issuers, where they are there, are who may have issued the signing certificates.
	Issuers *x509.CertPool
}

// Fetch reads a document of at most so many bytes.
type Fetch func(ctx context.Context, address string, most int64) ([]byte, error)

// Verifier verifies messages. It keeps the certificates.
type Verifier struct {
	config Config
	fetch  Fetch
	now    func() time.Time

	mu           sync.Mutex // guards certificates
	certificates map[string]certificate
}

type certificate struct {
	*x509.Certificate
	read time.Time
}

// NewVerifier makes one, which reads nothing yet.
func NewVerifier(config Config, fetch Fetch, now func() time.Time) *Verifier {
	return &Verifier{config: config, fetch: fetch, now: now, certificates: map[string]certificate{}}
}

// Verify reports whether SNS sent this message, lately, for one of the topics.
func (v *Verifier) Verify(ctx context.Context, m Message) error {
	topic, err := v.topic(m)
	if err != nil {
		return err
	}
	if m.hash == crypto.SHA1 && v.config.SHA256 {
		return ErrSignature
	}
	address, ok := topic.certificate(m.signingCertURL)
	if !ok {
		return ErrCertificate
	}
	signer, err := v.certificate(ctx, address)
	if err != nil {
		return err
	}
	if err := v.check(signer, topic); err != nil {
		return err
	}
	public, ok := signer.PublicKey.(*rsa.PublicKey)
	if !ok || public.N.BitLen() < 2048 {
		return ErrCertificate
	}
	digest := m.hash.New()
	digest.Write(m.canonical())
	if rsa.VerifyPKCS1v15(public, m.hash, digest.Sum(nil), m.signature) != nil {
		return ErrSignature
	}
	// Only an authentic timestamp says anything.
	if now := v.now(); m.Timestamp.Before(now.Add(-maxAge-skew)) || m.Timestamp.After(now.Add(skew)) {
		return ErrStale
	}
	return nil
}

// Confirm confirms the subscription that a verified message asks about.
func (v *Verifier) Confirm(ctx context.Context, m Message) error {
	topic, err := v.topic(m)
	if err != nil {
		return err
	}
	address, ok := topic.confirmation(m)
	if !ok {
		return ErrMessage
	}
	if _, err := v.fetch(ctx, address, maxAnswer); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// CheckConfirmation reports whether Confirm would know where to ask.
func (v *Verifier) CheckConfirmation(m Message) error {
	topic, err := v.topic(m)
	if err != nil {
		return err
	}
	if _, ok := topic.confirmation(m); !ok {
		return ErrMessage
	}
	return nil
}

func (v *Verifier) topic(m Message) (Topic, error) {
	at := slices.IndexFunc(v.config.Topics, func(t Topic) bool { return t.ARN == m.TopicARN })
	if at < 0 {
		return Topic{}, ErrTopic
	}
	return v.config.Topics[at], nil
}

// certificate returns the certificate at an address, which names it by a hash: it is read once a day.
func (v *Verifier) certificate(ctx context.Context, address string) (certificate, error) {
	v.mu.Lock()
	known, ok := v.certificates[address]
	v.mu.Unlock()
	now := v.now()
	if ok && now.Sub(known.read) < kept {
		return known, nil
	}
	body, err := v.fetch(ctx, address, maxCertificate)
	if missing := new(pinned.StatusError); errors.As(err, &missing) && (missing.Code == http.StatusNotFound || missing.Code == http.StatusForbidden) {
		return certificate{}, ErrCertificate
	} else if err != nil && ok && now.Sub(known.read) < stale {
		return known, nil
	} else if err != nil {
		return certificate{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	block, _ := pem.Decode(body)
	if block == nil || block.Type != "CERTIFICATE" {
		return certificate{}, ErrCertificate
	}
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return certificate{}, ErrCertificate
	}
	read := certificate{parsed, now}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.certificates) >= maxCertificates {
		clear(v.certificates)
	}
	v.certificates[address] = read
	return read, nil
}

// check looks at dates and name, each time, and at who issued the certificate where that is configured. SNS serves the
// certificate alone, without those between it and a root; by default the chain that counts is that of the TLS connection
// over which it came from the pinned host.
func (v *Verifier) check(signer certificate, topic Topic) error {
	now := v.now()
	named := slices.ContainsFunc(topic.names, func(name string) bool { return signer.VerifyHostname(name) == nil })
	if !named || now.Before(signer.NotBefore) || now.After(signer.NotAfter) || signer.IsCA ||
		signer.KeyUsage != 0 && signer.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return ErrCertificate
	}
	if v.config.Issuers == nil {
		return nil
	}
	_, err := signer.Verify(x509.VerifyOptions{Roots: v.config.Issuers, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return ErrCertificate
	}
	return nil
}
