package intake

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/keyherald/keyherald/internal/bearer"
	"github.com/keyherald/keyherald/internal/cidr"
	"github.com/keyherald/keyherald/internal/pinned"
)

// minSecret is the least length of a secret that a sender shows or signs with, in bytes.
const minSecret = 24

func (b *builder) sourceAddress() error {
	if len(b.SourceAddress) == 0 {
		return nil
	}
	allowed, err := cidr.Parse(b.at+".source_address", b.SourceAddress)
	if err != nil {
		return err
	}
	b.source.address = sourceAddress(allowed, b.outside.proxies)
	b.mode(false, b.source.address)
	return nil
}

func (b *builder) mtls() error {
	if b.MTLS == nil {
		return nil
	}
	if b.MTLS.CAFile == "" {
		return fmt.Errorf("%s.mtls.ca_file is missing: write the file with the certificates of the authority that issues the sender's", b.at)
	}
	if len(b.MTLS.Names) == 0 || slices.Contains(b.MTLS.Names, "") {
		return fmt.Errorf("%s.mtls.names is missing: write the DNS, email or URI names of the certificates that may notify", b.at)
	}
	if b.MTLS.ForwardedHeader != "" && !headerName.MatchString(b.MTLS.ForwardedHeader) {
		return fmt.Errorf("%s.mtls.forwarded_header is %q: write the name of the header in which your proxy puts the certificate", b.at, b.MTLS.ForwardedHeader)
	}
	if b.MTLS.ForwardedHeader != "" && len(b.outside.proxies) == 0 {
		return fmt.Errorf("%s.mtls.forwarded_header is there and trusted_proxies is not: write the address of the proxy that sets the header, since anybody else may set it too", b.at)
	}
	authorities, err := b.pool("mtls.ca_file", b.MTLS.CAFile)
	if err != nil {
		return err
	}
	b.mode(true, clientCertificate(authorities, b.MTLS.Names, b.MTLS.ForwardedHeader, b.outside.proxies), b.MTLS.ForwardedHeader)
	return nil
}

func (b *builder) basic() error {
	if b.Basic == nil {
		return nil
	}
	if b.Basic.Username == "" || strings.Contains(b.Basic.Username, ":") {
		return fmt.Errorf("%s.basic.username is %q: write the user name that the sender shows, without a colon", b.at, b.Basic.Username)
	}
	if b.JWT != nil {
		return fmt.Errorf("%s.basic is there beside jwt, and both come in the header Authorization: remove one", b.at)
	}
	keys, err := b.secrets("basic.keys", b.Basic.Keys)
	if err != nil {
		return err
	}
	b.mode(true, basic(b.Basic.Username, keys), "Authorization")
	return nil
}

func (b *builder) header() error {
	if b.Header == nil {
		return nil
	}
	name := b.Header.Name
	if !headerName.MatchString(name) {
		return fmt.Errorf("%s.header.name is %q: write the name of the header that has the secret, such as X-Keyherald-Key", b.at, name)
	}
	if strings.EqualFold(name, "Authorization") && (b.JWT != nil || b.Basic != nil) {
		return fmt.Errorf("%s.header.name is %q, where jwt and basic come too: choose another header", b.at, name)
	}
	keys, err := b.secrets("header.keys", b.Header.Keys)
	if err != nil {
		return err
	}
	b.mode(true, staticHeader(name, keys), name)
	return nil
}

func (b *builder) jwt() error {
	if b.JWT == nil {
		if b.Format == "gcp-pubsub" {
			return fmt.Errorf("%s.jwt is missing: a push subscription proves by its token that it is one; docs/intake.md shows what to write", b.at)
		}
		return nil
	}
	c := *b.JWT
	if c.Issuer == "" {
		return fmt.Errorf("%s.jwt.issuer is missing: write the issuer as the token's iss has it, such as https://accounts.google.com", b.at)
	}
	if c.Audience == "" {
		return fmt.Errorf("%s.jwt.audience is missing: write what the token's aud is for this server", b.at)
	}
	host, err := hostOf(c.KeysURL)
	if err != nil {
		return fmt.Errorf("%s.jwt.keys_url is %q: write the https address of the issuer's JSON Web Key Set", b.at, c.KeysURL)
	}
	for i, algorithm := range c.Algorithms {
		if !slices.Contains(bearer.Algorithms, algorithm) {
			return fmt.Errorf("%s.jwt.algorithms[%d] is %q: write some of %s, or leave it out for RS256", b.at, i, algorithm, strings.Join(bearer.Algorithms, ", "))
		}
	}
	if len(c.Claims) == 0 {
		return fmt.Errorf("%s.jwt.claims is missing: whoever gets a token for this audience could notify; write what the token says of the sender, such as {email: …} or {appid: …}", b.at)
	}
	if b.Format == "gcp-pubsub" && c.Claims["email"] == "" {
		return fmt.Errorf("%s.jwt.claims.email is missing: write the service account that the push subscription uses", b.at)
	}
	roots, err := b.pool("jwt.ca_file", c.CAFile)
	if err != nil {
		return err
	}
	// A company's own issuer may be at a private address; whoever keeps keys elsewhere than at the issuer may not.
	issuer, err := hostOf(c.Issuer)
	client := b.outside.client(pinned.Host{Name: host, Private: err == nil && issuer == host, Roots: roots})
	v := bearer.New(bearer.Config{Issuer: c.Issuer, Audience: c.Audience, KeysURL: c.KeysURL, Algorithms: c.Algorithms, Claims: c.Claims},
		client.Get, b.outside.now)
	b.source.reach = func(ctx context.Context) error { return v.Reach(ctx) }
	b.mode(true, token(v), "Authorization")
	return nil
}

// signature is the last mode, since it may cost the most.
func (b *builder) signature() error {
	switch b.Format {
	case "aws-sns":
		if len(b.Keys) > 0 {
			return fmt.Errorf("%s.keys is for senders that sign with a secret, and SNS has certificates: remove it", b.at)
		}
		verifier, err := b.snsVerifier()
		if err != nil {
			return err
		}
		f := snsFormat{verifier}
		b.source.format = f
		b.mode(true, f.signature)
		return nil
	case "cloudevents", "generic":
	default:
		if len(b.Keys) > 0 {
			return fmt.Errorf("%s.keys is for senders that sign, and %s does not: write jwt, header or basic as docs/intake.md shows", b.at, b.Format)
		}
		return nil
	}
	if len(b.Keys) == 0 && b.Signature == nil {
		return nil
	}
	if b.Signature == nil {
		keys, err := b.webhookKeys()
		if err != nil {
			return err
		}
		b.mode(true, standardWebhooks{keys}.check, "Webhook-Id", "Webhook-Timestamp", "Webhook-Signature")
		return nil
	}
	keys, err := b.secrets("keys", b.Keys)
	if err != nil {
		return err
	}
	scheme, err := b.Signature.compile(b.at, b.Mapping.ID, keys)
	if err != nil {
		return err
	}
	timestamp, _ := strings.CutPrefix(scheme.Timestamp, headerOf)
	b.mode(true, scheme.check, scheme.Header, scheme.id, timestamp)
	return nil
}

// webhookKeys reads the keys of Standard Webhooks.
func (b *builder) webhookKeys() ([]key, error) {
	var keys []key
	for i, k := range b.Keys {
		secret, known, err := b.secret(fmt.Sprintf("keys[%d]", i), k)
		if err != nil {
			return nil, err
		}
		decoded, err := decodeSecret(secret)
		if k.ID == "" || known && err != nil {
			return nil, fmt.Errorf("%s.keys[%d]: an id, and a secret of the form whsec_<base64 of 24 bytes or more> are needed", b.at, i)
		}
		keys = append(keys, key{k.ID, decoded, k.NotBefore, k.NotAfter})
	}
	return keys, nil
}

// secrets reads keys whose secrets are as the sender has them.
func (b *builder) secrets(at string, list []Key) ([]key, error) {
	if len(list) == 0 {
		return nil, fmt.Errorf("%s.%s is empty: write an id and a secret_file", b.at, at)
	}
	var keys []key
	for i, k := range list {
		secret, known, err := b.secret(fmt.Sprintf("%s[%d]", at, i), k)
		if err != nil {
			return nil, err
		}
		if k.ID == "" || known && len(secret) < minSecret {
			return nil, fmt.Errorf("%s.%s[%d]: an id, and a secret of %d characters or more are needed", b.at, at, i, minSecret)
		}
		keys = append(keys, key{k.ID, []byte(secret), k.NotBefore, k.NotAfter})
	}
	return keys, nil
}

// secret reads one secret; known is false where it is in a file that is not to be read.
func (b *builder) secret(at string, k Key) (secret string, known bool, err error) {
	if k.SecretFile == "" {
		return k.Secret, true, nil
	}
	if b.read == nil {
		return "", false, nil
	}
	raw, err := b.read(k.SecretFile)
	if err != nil {
		return "", false, fmt.Errorf("%s.%s.secret_file: %w", b.at, at, err)
	}
	return strings.TrimSpace(string(raw)), true, nil
}

// pool reads certificates; no file is no pool.
func (b *builder) pool(at, path string) (*x509.CertPool, error) {
	if path == "" || b.read == nil {
		return nil, nil
	}
	raw, err := b.read(path)
	if err != nil {
		return nil, fmt.Errorf("%s.%s: %w", b.at, at, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("%s.%s: %s has no certificate in PEM", b.at, at, path)
	}
	return pool, nil
}

// hostOf returns the host, with its port, of an https address.
func hostOf(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return "", fmt.Errorf("%q is not an https address", address)
	}
	return u.Host, nil
}
