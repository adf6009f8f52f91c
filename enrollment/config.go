// Package enrollment judges what a device shows in place of a code: a token of a company's issuer, a projected
// service-account token of Kubernetes, or a statement signed by the key of a client certificate. It says whose it is; whether
// a grant lets him enroll by it, and what the device must be beside, is relay's.
package enrollment

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/keyherald/keyherald/internal/bearer"
	"github.com/keyherald/keyherald/protocol"
)

// Config is the section enrollment of the server's configuration: the proofs that grants may name, by their names.
type Config struct {
	Proofs map[string]Proof `yaml:"proofs"`
}

// Proof is one way in which a device proves whose it is.
type Proof struct {
	Type protocol.ProofType `yaml:"type"`

	// Issuer is the token's iss, and Audience what its aud must name for this server alone. KeysURL or KeysFile is where the
	// issuer's JSON Web Key Set is. Private lets the address be a private one, as that of a cluster's API server.
	Issuer     string   `yaml:"issuer"`
	Audience   string   `yaml:"audience"`
	KeysURL    string   `yaml:"keys_url"`
	KeysFile   string   `yaml:"keys_file"`
	CAFile     string   `yaml:"ca_file"`
	Private    bool     `yaml:"private"`
	Algorithms []string `yaml:"algorithms"`
	// Claims are further ones that the token must have, with these values.
	Claims map[string]string `yaml:"claims"`
	// Claim is the one that says whose the token is; default sub.
	Claim string `yaml:"claim"`

	// Pattern is matched against the claim, or against each name of the certificate, whole. User is a template with its
	// groups, such as @{user}:example.org.
	Pattern string `yaml:"pattern"`
	User    string `yaml:"user"`
}

// Files are the paths of the configuration, to be resolved.
func (p *Proof) Files() []*string { return []*string{&p.KeysFile, &p.CAFile} }

// Validate returns errors that begin with the key they are about.
func (c Config) Validate() error {
	for _, name := range slices.Sorted(maps.Keys(c.Proofs)) {
		if !proofName.MatchString(name) {
			return fmt.Errorf("proofs has %q: name a proof in small letters, digits and -", name)
		}
		if err := c.Proofs[name].validate(); err != nil {
			return fmt.Errorf("proofs.%s.%w", name, err)
		}
	}
	return nil
}

var proofName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

func (p Proof) validate() error {
	switch p.Type {
	case protocol.ProofOIDC, protocol.ProofKubernetes:
		if err := p.validateToken(); err != nil {
			return err
		}
	case protocol.ProofMTLS:
		if p.CAFile == "" {
			return errors.New("ca_file is missing: write the file with the certificates of the authority that gives devices theirs")
		}
		if p.Issuer != "" || p.Audience != "" || p.KeysURL != "" || p.KeysFile != "" || p.Claim != "" || len(p.Claims) > 0 || len(p.Algorithms) > 0 {
			return errors.New("type is mtls, and issuer, audience, keys_url, keys_file, claim, claims and algorithms are of tokens: remove them")
		}
	default:
		return fmt.Errorf("type is %q: write oidc, kubernetes or mtls", p.Type)
	}
	pattern, err := regexp.Compile(`^(?:` + p.Pattern + `)$`)
	if err != nil || p.Pattern == "" || pattern.SubexpIndex("user") < 0 {
		return errors.New("pattern must be a regular expression with a group (?P<user>…) over what the proof says, such as (?P<user>[a-z0-9._-]+)@example\\.org")
	}
	if strings.Count(p.User, "{user}") != 1 || !strings.HasPrefix(p.User, "@") {
		return fmt.Errorf("user is %q: write a Matrix user id with {user} in it, such as @{user}:example.org", p.User)
	}
	return nil
}

func (p Proof) validateToken() error {
	if p.Issuer == "" {
		return errors.New("issuer is missing: write the issuer as the token's iss has it, such as https://login.example.org")
	}
	if p.Audience == "" {
		return errors.New("audience is missing: write what the token's aud is for this server and for no other, such as keyherald.example.org")
	}
	if (p.KeysURL == "") == (p.KeysFile == "") {
		return errors.New("keys_url: write the https address of the issuer's JSON Web Key Set, or keys_file with a copy of it")
	}
	if _, err := hostOf(p.KeysURL); p.KeysURL != "" && err != nil {
		return fmt.Errorf("keys_url is %q: write the https address of the issuer's JSON Web Key Set", p.KeysURL)
	}
	for i, algorithm := range p.Algorithms {
		if !slices.Contains(bearer.Algorithms, algorithm) {
			return fmt.Errorf("algorithms[%d] is %q: write some of %s, or leave it out for RS256", i, algorithm, strings.Join(bearer.Algorithms, ", "))
		}
	}
	return nil
}

// hostOf is the host, with its port, of an https address.
func hostOf(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return "", errors.New("it is no https address")
	}
	return u.Host, nil
}
