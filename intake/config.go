package intake

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keyherald/keyherald/internal/cidr"
	"github.com/keyherald/keyherald/internal/pinned"
	"github.com/keyherald/keyherald/internal/sns"
)

// Config names the sources, and the proxies of ours before this server, whose word about addresses and certificates
// counts. Streams are the mappings of the event streams that the server hears by itself, by their KMS: they have pattern,
// user and perhaps path.
type Config struct {
	Sources        map[string]Source  `yaml:"sources"`
	TrustedProxies []string           `yaml:"trusted_proxies"`
	Streams        map[string]Mapping `yaml:"-"`
}

// Validate checks what can be checked without reading a file. Errors begin with the key they are about.
func (c Config) Validate() error {
	proxies, err := cidr.Parse("trusted_proxies", c.TrustedProxies)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(c.Sources)) {
		if _, err := c.Sources[name].build(name, &outside{now: time.Now, proxies: proxies}, nil); err != nil {
			return err
		}
	}
	_, err = c.streams()
	return err
}

// streams checks the mappings of the event streams, and returns them by their sources' names.
func (c Config) streams() (map[string]*source, error) {
	streams := map[string]*source{}
	for _, kms := range slices.Sorted(maps.Keys(c.Streams)) {
		name := StreamSource(kms)
		if _, taken := c.Sources[name]; taken {
			return nil, fmt.Errorf("sources.%s has the name of the event stream of kms.%s: choose another", name, kms)
		}
		var err error
		if streams[name], err = c.Streams[kms].stream(kms); err != nil {
			return nil, err
		}
	}
	return streams, nil
}

// Source is one system that notifies. Every authentication mode that is configured must be passed, and at least one that
// proves who sends must be there: a signature by Keys (or the format's own), JWT, MTLS, Header or Basic.
type Source struct {
	Format  string  `yaml:"format"`
	Mapping Mapping `yaml:"mapping"`
	// Disclosure says what it comes to that somebody read a key.
	Disclosure *Disclosure `yaml:"disclosure"`

	Keys          []Key         `yaml:"keys"`
	Signature     *Signature    `yaml:"signature"`
	JWT           *JWT          `yaml:"jwt"`
	MTLS          *MTLS         `yaml:"mtls"`
	Header        *StaticHeader `yaml:"header"`
	Basic         *Basic        `yaml:"basic"`
	SourceAddress []string      `yaml:"source_address"`

	// SNS is for aws-sns, WebhookOrigin for azure-eventgrid.
	SNS           *SNS   `yaml:"sns"`
	WebhookOrigin string `yaml:"webhook_origin"`
}

// Key is one valid secret: a signing key, the value of a header, or a password. Several overlap during a change. The
// signing keys of Standard Webhooks are written whsec_<base64>, all others as the sender has them.
type Key struct {
	ID         string    `yaml:"id"`
	Secret     string    `yaml:"secret"`
	SecretFile string    `yaml:"secret_file"`
	NotBefore  time.Time `yaml:"not_before"`
	NotAfter   time.Time `yaml:"not_after"`
}

// JWT demands a bearer token of an issuer, whose keys stand at KeysURL. Claims are what it must say of the sender.
type JWT struct {
	Issuer     string            `yaml:"issuer"`
	KeysURL    string            `yaml:"keys_url"`
	CAFile     string            `yaml:"ca_file"`
	Audience   string            `yaml:"audience"`
	Algorithms []string          `yaml:"algorithms"`
	Claims     map[string]string `yaml:"claims"`
}

// MTLS demands a client certificate of an authority in CAFile with one of the Names. ForwardedHeader is where a trusted
// proxy, at which TLS ends, puts the certificate.
type MTLS struct {
	CAFile          string   `yaml:"ca_file"`
	Names           []string `yaml:"names"`
	ForwardedHeader string   `yaml:"forwarded_header"`
}

// StaticHeader demands a secret in a header.
type StaticHeader struct {
	Name string `yaml:"name"`
	Keys []Key  `yaml:"keys"`
}

// Basic demands a user name and a password.
type Basic struct {
	Username string `yaml:"username"`
	Keys     []Key  `yaml:"keys"`
}

// SNS names the topics that may notify. SignatureVersion "2" refuses version 1, which is SHA-1. With SigningCAFile the
// signing certificates must be issued by one that stands there.
type SNS struct {
	Topics           []string `yaml:"topics"`
	SignatureVersion string   `yaml:"signature_version"`
	SigningCAFile    string   `yaml:"signing_ca_file"`
}

// source is a Source that can be right, with its secrets read.
type source struct {
	format  format
	mapping *mapping
	modes   []check
	address check                       // the mode that counts for OPTIONS as well, or nil
	headers []string                    // that count, so must not be there twice
	reach   func(context.Context) error // where something is read from elsewhere
}

// outside is what sources stand on.
type outside struct {
	proxies []netip.Prefix
	now     func() time.Time
	dial    pinned.Dial
	roots   *x509.CertPool
}

// client asks hosts of one source, and no others.
func (o *outside) client(hosts ...pinned.Host) *pinned.Client {
	for i := range hosts {
		if hosts[i].Roots == nil {
			hosts[i].Roots = o.roots
		}
	}
	return pinned.New(o.now, o.dial, hosts...)
}

var headerName = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// Files are the paths in the configuration, for whoever resolves them.
func (s *Source) Files() []*string {
	var files []*string
	keys := func(keys []Key) {
		for i := range keys {
			files = append(files, &keys[i].SecretFile)
		}
	}
	keys(s.Keys)
	if s.Header != nil {
		keys(s.Header.Keys)
	}
	if s.Basic != nil {
		keys(s.Basic.Keys)
	}
	if s.JWT != nil {
		files = append(files, &s.JWT.CAFile)
	}
	if s.MTLS != nil {
		files = append(files, &s.MTLS.CAFile)
	}
	if s.SNS != nil {
		files = append(files, &s.SNS.SigningCAFile)
	}
	return files
}

// compile validates and reads the secrets.
func (s Source) compile(name string, o *outside) (*source, error) {
	return s.build(name, o, os.ReadFile)
}

// build puts the source together, in the order in which a request passes its modes. Without read no file is read, and
// what came of it is good for nothing but its error.
func (s Source) build(name string, o *outside, read func(path string) ([]byte, error)) (*source, error) {
	b := &builder{Source: s, at: "sources." + name, outside: o, read: read, source: &source{headers: []string{"Content-Type", "Content-Encoding"}}}
	for _, step := range []func() error{b.formatAndMapping, b.sourceAddress, b.mtls, b.basic, b.header, b.jwt, b.signature, b.proven} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return b.source, nil
}

type builder struct {
	Source
	at      string
	outside *outside
	read    func(path string) ([]byte, error)
	source  *source
	proof   bool // a mode that says who sends is there
}

// mode adds an authentication mode, and the headers it reads.
func (b *builder) mode(proof bool, mode check, headers ...string) {
	b.source.modes = append(b.source.modes, mode)
	b.source.headers = append(b.source.headers, canonical(headers...)...)
	b.proof = b.proof || proof
}

func (b *builder) formatAndMapping() error {
	m := b.Mapping
	orDefault(&b.Format, "cloudevents")
	switch b.Format {
	case "cloudevents":
		// Standard Webhooks signs none of the headers that a binary event's attributes are in.
		proven := b.JWT != nil || b.MTLS != nil || b.Header != nil || b.Basic != nil
		b.source.format, m = cloudEvents{binary: proven}, m.or("subject", "data.version")
		b.source.headers = append(b.source.headers, "Ce-")
	case "azure-eventgrid":
		origin := b.WebhookOrigin
		orDefault(&origin, eventGridOrigin)
		b.source.format, m = eventGrid{origin}, m.or("data.ObjectName", "data.Version")
		b.source.headers = append(b.source.headers, "Webhook-Request-Origin")
	case "aws-sns", "aws-eventbridge":
		b.source.format, m = eventBridge{}, m.or("detail.name", "detail.versionId")
	case "gcp-pubsub":
		b.source.format, m = pubSub{}, m.or("secretId", "version")
	case "generic":
		if err := b.generic(); err != nil {
			return err
		}
		b.source.format = generic{m.ID}
	default:
		return fmt.Errorf("%s.format is %q: write cloudevents, azure-eventgrid, aws-sns, aws-eventbridge, gcp-pubsub or generic", b.at, b.Format)
	}
	for _, only := range []struct {
		there       bool
		key, format string
	}{
		{m.ID != "", "mapping.id", "generic"}, {b.Signature != nil, "signature", "generic"},
		{b.SNS != nil, "sns", "aws-sns"}, {b.WebhookOrigin != "", "webhook_origin", "azure-eventgrid"},
	} {
		if only.there && b.Format != only.format {
			return fmt.Errorf("%s.%s is for the format %s: remove it", b.at, only.key, only.format)
		}
	}
	disclosure, err := b.Disclosure.compile(b.Format)
	if err != nil {
		return fmt.Errorf("%s.%w", b.at, err)
	}
	if b.source.mapping, err = m.compile(b.at); err != nil {
		return err
	}
	b.source.mapping.disclosure = disclosure
	return nil
}

func (b *builder) generic() error {
	m := b.Mapping
	if m.Attribute == "" {
		return fmt.Errorf("%s.mapping.attribute is missing: write the field of the body that the pattern is matched against, such as secret.path", b.at)
	}
	if m.Version == "" {
		return fmt.Errorf("%s.mapping.version is missing: write the field of the body that has the version, or none where the sender names none", b.at)
	}
	header, isHeader := strings.CutPrefix(m.ID, headerOf)
	field, isField := strings.CutPrefix(m.ID, fieldOf)
	if named := isField && field != "" || isHeader && headerName.MatchString(header); m.ID != idBody && m.ID != idArrival && !named {
		return fmt.Errorf("%s.mapping.id is %q: write what names a notification for good: field:NAME of the body, header:NAME, body where no two "+
			"notifications are the same bytes, or arrival where they may be", b.at, m.ID)
	}
	if webhooks := len(b.Keys) > 0 && strings.EqualFold(header, "webhook-id"); isHeader && b.Signature == nil && !webhooks {
		return fmt.Errorf("%s.mapping.id is %q, which nobody signs: write field:NAME or body, or a signature with {id} in signed", b.at, m.ID)
	}
	if isHeader {
		b.source.headers = append(b.source.headers, canonical(header)...)
	}
	return nil
}

// proven refuses a source that anybody could speak for.
func (b *builder) proven() error {
	if b.proof {
		return nil
	}
	if b.Format == "cloudevents" || b.Format == "generic" {
		return fmt.Errorf("%s.keys is empty: every source signs, or proves by jwt, mtls, header or basic who it is; make a key with `head -c 32 /dev/urandom | base64` and write whsec_<it>", b.at)
	}
	return fmt.Errorf("%s says not how its sender proves who it is: configure jwt, mtls, header or basic; a source_address alone is no proof", b.at)
}

// snsVerifier is the format's own signature.
func (b *builder) snsVerifier() (*sns.Verifier, error) {
	if b.SNS == nil || len(b.SNS.Topics) == 0 {
		return nil, fmt.Errorf("%s.sns.topics is missing: write the ARNs of the topics that may notify, such as arn:aws:sns:eu-central-1:123456789012:keyherald", b.at)
	}
	config := sns.Config{SHA256: b.SNS.SignatureVersion == "2"}
	if b.SNS.SignatureVersion != "" && !config.SHA256 {
		return nil, fmt.Errorf("%s.sns.signature_version is %q: write \"2\" to refuse version 1, or remove it", b.at, b.SNS.SignatureVersion)
	}
	var hosts []pinned.Host
	for i, arn := range b.SNS.Topics {
		topic, err := sns.ParseTopic(arn)
		if err != nil {
			return nil, fmt.Errorf("%s.sns.topics[%d]: %w", b.at, i, err)
		}
		config.Topics, hosts = append(config.Topics, topic), append(hosts, pinned.Host{Name: topic.Host})
	}
	var err error
	if config.Issuers, err = b.pool("sns.signing_ca_file", b.SNS.SigningCAFile); err != nil {
		return nil, err
	}
	return sns.NewVerifier(config, b.outside.client(hosts...).Get, b.outside.now), nil
}
