package sns

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/internal/pinned"
)

var now = time.Unix(1_767_225_600, 0)

const (
	topicARN    = "arn:aws:sns:eu-central-1:123456789012:keyherald"
	host        = "https://sns.eu-central-1.amazonaws.com"
	certAddress = host + "/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"
)

// amazon signs as SNS does, and serves certificates.
type amazon struct {
	t     testing.TB
	ca    *x509.Certificate
	caKey *ecdsa.PrivateKey
	keys  map[string]*rsa.PrivateKey // by the address of their certificate
	serve map[string][]byte
	asked []string
	err   error
}

func newAmazon(t testing.TB) *amazon {
	t.Helper()
	a := &amazon{t: t, keys: map[string]*rsa.PrivateKey{}, serve: map[string][]byte{}}
	a.ca, a.caKey = authority(t)
	a.certify(certAddress, 2048, func(*x509.Certificate) {})
	return a
}

func authority(t testing.TB) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	ca, err := x509.ParseCertificate(der)
	check(t, err)
	return ca, key
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (a *amazon) certify(address string, bits int, change func(*x509.Certificate)) {
	a.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	check(a.t, err)
	a.keys[address] = key
	a.publish(address, key.Public(), change)
}

func (a *amazon) publish(address string, public crypto.PublicKey, change func(*x509.Certificate)) {
	a.t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "sns.amazonaws.com"}, DNSNames: []string{"sns.amazonaws.com"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(200 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, a.ca, public, a.caKey)
	check(a.t, err)
	a.serve[address] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (a *amazon) fetch(_ context.Context, address string, _ int64) ([]byte, error) {
	a.asked = append(a.asked, address)
	if a.err != nil {
		return nil, a.err
	}
	if body, ok := a.serve[address]; ok {
		return body, nil
	}
	return nil, &pinned.StatusError{Code: http.StatusNotFound}
}

func (a *amazon) issuers() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.ca)
	return pool
}

// sign signs the fields as the documentation of SNS says, which is written here anew so that the code under test does
// not vouch for itself.
func (a *amazon) sign(m map[string]any) []byte {
	a.t.Helper()
	var text strings.Builder
	for _, name := range []string{"Message", "MessageId", "Subject", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"} {
		if value, ok := m[name]; ok {
			_, _ = fmt.Fprintf(&text, "%s\n%v\n", name, value)
		}
	}
	hash := crypto.SHA256
	if m["SignatureVersion"] == "1" {
		hash = crypto.SHA1
	}
	digest := hash.New()
	digest.Write([]byte(text.String()))
	address, _ := m["SigningCertURL"].(string)
	key, ok := a.keys[address]
	if !ok {
		key = a.keys[certAddress]
	}
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, hash, digest.Sum(nil))
	check(a.t, err)
	m["Signature"] = base64.StdEncoding.EncodeToString(signature)
	body, err := json.Marshal(m)
	check(a.t, err)
	return body
}
