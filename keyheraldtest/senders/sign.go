package senders

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"time"
)

// object is a JSON object; change makes a copy of one with other members, and nil takes a member away.
type object = map[string]any

func change(o object, members object) object {
	o = maps.Clone(o)
	for name, value := range members {
		if value == nil {
			delete(o, name)
		} else {
			o[name] = value
		}
	}
	return o
}

func (w *World) json(value any) string {
	raw, err := json.Marshal(value)
	w.check(err)
	return string(raw)
}

// token signs claims with a key, under any header.
func (w *World) token(key *rsa.PrivateKey, header, claims object) string {
	text := w.tokenText(header, claims)
	digest := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
	w.check(err)
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func (w *World) tokenText(header, claims object) string {
	return base64.RawURLEncoding.EncodeToString([]byte(w.json(header))) + "." + base64.RawURLEncoding.EncodeToString([]byte(w.json(claims)))
}

// Token makes a token of the issuer at one of the hosts microsoft, google or company.
func (w *World) Token(issuer string, header, claims object) string {
	hosts := map[string]string{"microsoft": microsoft, "google": google, "company": company}
	return w.token(w.issuers[hosts[issuer]], change(object{"alg": "RS256", "kid": "key-1", "typ": "JWT"}, header), claims)
}

func hexMAC(secret, text string) string { return hex.EncodeToString(sum(secret, text)) }

func base64MAC(secret, text string) string {
	return base64.StdEncoding.EncodeToString(sum(secret, text))
}

func sum(secret, text string) []byte {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

const (
	snsHost  = "https://sns.eu-central-1.amazonaws.com"
	certPath = "/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"
)

// certificate is the path of one of SNS's certificates.
func certificate(number int) string {
	return fmt.Sprintf("/SimpleNotificationService-%032x.pem", number)
}

// The certificates that SNS serves beside the good one, each with what is wrong with it.
var badCertificates = []struct {
	what   string
	change func(*x509.Certificate)
}{
	{"an expired certificate", func(c *x509.Certificate) { c.NotAfter = Start.AddDate(0, 0, -1) }},
	{"a certificate that is not valid yet", func(c *x509.Certificate) { c.NotBefore = Start.AddDate(1, 0, 0) }},
	{"a certificate of another service", func(c *x509.Certificate) { c.DNSNames = []string{"sqs.amazonaws.com"} }},
	{"a certificate for everything", func(c *x509.Certificate) { c.DNSNames = []string{"*.amazonaws.com.evil.example"} }},
	{"a certificate that may only encrypt", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }},
	{"an authority's own certificate", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }},
}

func (w *World) signingCertificates() {
	publish := func(path string, from authority, change func(*x509.Certificate)) {
		der := from.issue(w, w.signer.Public(), func(c *x509.Certificate) {
			c.DNSNames = []string{"sns.amazonaws.com"}
			change(c)
		})
		w.pages[amazon+path] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	publish(certPath, w.ca, func(*x509.Certificate) {})
	for i, bad := range badCertificates {
		publish(certificate(i), w.ca, bad.change)
	}
	publish(certificate(100), w.strangerCA, func(*x509.Certificate) {})
	w.pages[amazon+certificate(101)] = []byte("no certificate")
	w.pages[amazon+"/"] = []byte("<ConfirmSubscriptionResponse/>")
}

// notification is what SNS posts around a text.
func (w *World) notification(message string) object {
	return object{"Type": "Notification", "MessageId": "9d2c5580-b61d-550c-8583-37a582870907", "TopicArn": Topic, "Message": message,
		"Timestamp": w.Now().UTC().Format("2006-01-02T15:04:05.000Z"), "SignatureVersion": "1", "SigningCertURL": snsHost + certPath,
		"UnsubscribeURL": snsHost + "/?Action=Unsubscribe&SubscriptionArn=" + Topic + ":1"}
}

const confirmToken = "2336412f37fb687f5d51e6e2425929f52e8e353134fe72d55ef8b330217d82da"

func (w *World) confirmation() object {
	return change(w.notification("You have chosen to subscribe to the topic "+Topic+".\nTo confirm, visit the SubscribeURL."), object{
		"Type": "SubscriptionConfirmation", "Token": confirmToken, "UnsubscribeURL": nil,
		"SubscribeURL": snsHost + "/?Action=ConfirmSubscription&TopicArn=" + url.QueryEscape(Topic) + "&Token=" + confirmToken})
}

// SignSNS signs a message of SNS as its documentation says, and returns the body.
func (w *World) SignSNS(m object) string { return w.json(w.signedSNS(m)) }

func (w *World) signedSNS(m object) object {
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
	signature, err := rsa.SignPKCS1v15(rand.Reader, w.signer, hash, digest.Sum(nil))
	w.check(err)
	return change(m, object{"Signature": base64.StdEncoding.EncodeToString(signature)})
}

// unix is a time as most headers have it.
func unix(at time.Time) string { return fmt.Sprint(at.Unix()) }

// clientCertificate is a certificate in PEM as nginx forwards it.
func (w *World) clientCertificate(from authority, change func(*x509.Certificate)) string {
	der := from.issue(w, w.stranger.Public(), func(c *x509.Certificate) {
		c.DNSNames, c.ExtKeyUsage = []string{"vault.example.org"}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		change(c)
	})
	return url.PathEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}

// GoodToken is what an issuer gives the sender that a source of its expects: microsoft, google or company. changed are
// claims that differ; the issuer stranger signs google's claims with a key of nobody.
func (w *World) GoodToken(issuer string, changed map[string]any) string {
	w.t.Helper()
	switch issuer {
	case "microsoft":
		return w.Token(issuer, nil, change(w.entraClaims(), changed))
	case "google":
		return w.Token(issuer, nil, change(w.pushClaims(), changed))
	case "company":
		return w.Token(issuer, nil, change(w.vaultClaims(), changed))
	case "stranger":
		return w.token(w.stranger, object{"alg": "RS256", "kid": "key-1", "typ": "JWT"}, change(w.pushClaims(), changed))
	}
	w.t.Fatalf("there is no issuer %q", issuer)
	return ""
}

// TLS are the certificates of a handshake, valid at the World's time and now: this server's, which is its own root, the
// one of the sender "machine", and one that a strange authority gave the same name.
func (w *World) TLS() (server, client, stranger tls.Certificate) {
	make := func(from authority, change func(*x509.Certificate)) tls.Certificate {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		w.check(err)
		certificate, err := x509.ParseCertificate(from.issue(w, key.Public(), change))
		w.check(err)
		return tls.Certificate{Certificate: [][]byte{certificate.Raw}, PrivateKey: key, Leaf: certificate}
	}
	sender := func(c *x509.Certificate) {
		c.DNSNames, c.ExtKeyUsage = []string{"vault.example.org"}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	return make(w.ca, func(c *x509.Certificate) { c.DNSNames = []string{"keyherald.example.org"} }), make(w.clientCA, sender), make(w.strangerCA, sender)
}

// Keys is the key set of an issuer: microsoft, google or company.
func (w *World) Keys(issuer string) []byte {
	return w.pages[map[string]string{"microsoft": microsoft + entraKeys, "google": google + "/oauth2/v3/certs", "company": company + "/keys"}[issuer]]
}
