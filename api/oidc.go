package api

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/bearer"
	"github.com/keyherald/keyherald/internal/pinned"
	"github.com/keyherald/keyherald/internal/strictjson"
)

// OIDCConfig is the identity provider whose tokens are taken.
type OIDCConfig struct {
	// Issuer is as the tokens' iss has it; Audience is what their aud must be or hold.
	Issuer   string `yaml:"issuer"`
	Audience string `yaml:"audience"`
	// KeysURL is where the issuer's keys stand; empty is where its discovery document says, on the issuer's own host.
	KeysURL string `yaml:"keys_url"`
	// CAFile are who may vouch for the issuer's host; empty are the system's.
	CAFile     string   `yaml:"ca_file"`
	Algorithms []string `yaml:"algorithms"`
	// RolesClaim is the claim with a caller's roles, a text or a list; a dot leads into an object.
	RolesClaim string          `yaml:"roles_claim"`
	Roles      map[string]Role `yaml:"roles"`
	// NameClaim is the claim with a caller's name for people; empty leaves names out of the log.
	NameClaim string `yaml:"name_claim"`
	// ClientID and Scopes are what `keyherald login` asks the issuer with.
	ClientID string   `yaml:"client_id"`
	Scopes   []string `yaml:"scopes"`
}

// Roles are all there are, in the order of docs/api.md.
var Roles = []Role{audit.APIAdmin, audit.APIHelpdesk, audit.APIOperator, audit.APIAuditor}

func (c OIDCConfig) validate() error {
	if _, err := httpsHost(c.Issuer); err != nil {
		return fmt.Errorf("issuer is %q: write the https address that the tokens' iss has", c.Issuer)
	}
	if c.Audience == "" {
		return errors.New("audience is missing: write what the tokens' aud is for this server, such as the client's id")
	}
	if c.KeysURL != "" {
		if _, err := httpsHost(c.KeysURL); err != nil {
			return fmt.Errorf("keys_url is %q: write the https address of the issuer's JSON Web Key Set, or leave it out", c.KeysURL)
		}
	}
	for i, algorithm := range c.Algorithms {
		if !slices.Contains(bearer.Algorithms, algorithm) {
			return fmt.Errorf("algorithms[%d] is %q: write some of %s, or leave it out for RS256", i, algorithm, strings.Join(bearer.Algorithms, ", "))
		}
	}
	if c.RolesClaim == "" || len(c.Roles) == 0 {
		return errors.New("roles_claim and roles are needed, or nobody may anything: write roles_claim: groups, and roles: {keyherald-admins: admin}")
	}
	for _, value := range slices.Sorted(maps.Keys(c.Roles)) {
		if !slices.Contains(Roles, c.Roles[value]) {
			return fmt.Errorf("roles.%s is %q: write %s", value, c.Roles[value], joined(Roles))
		}
	}
	return nil
}

func httpsHost(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return "", errors.New("no https address")
	}
	return u.Host, nil
}

// oidcVerifier turns tokens into callers.
type oidcVerifier struct {
	config OIDCConfig
	tokens *bearer.Verifier
	client *pinned.Client
}

func (c OIDCConfig) verifier(deps Deps) (*oidcVerifier, error) {
	host, err := httpsHost(c.Issuer)
	if err != nil {
		return nil, err
	}
	roots := deps.Roots
	if c.CAFile != "" {
		raw, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("api.oidc.ca_file: %w", err)
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(raw) {
			return nil, fmt.Errorf("api.oidc.ca_file: %s has no certificate in PEM", c.CAFile)
		}
	}
	// A company's own issuer may be at a private address; whoever keeps keys elsewhere than at the issuer may not.
	hosts := []pinned.Host{{Name: host, Private: true, Roots: roots}}
	if c.KeysURL != "" {
		if keys, err := httpsHost(c.KeysURL); err == nil && keys != host {
			hosts = append(hosts, pinned.Host{Name: keys, Roots: roots})
		}
	}
	v := &oidcVerifier{config: c, client: pinned.New(deps.Now, deps.Dial, hosts...)}
	v.tokens = bearer.New(bearer.Config{Issuer: c.Issuer, Audience: c.Audience, KeysURL: c.KeysURL, Algorithms: c.Algorithms}, v.keys, deps.Now)
	return v, nil
}

// Reach reads the provider's keys, to find early that it cannot be done.
func (c OIDCConfig) Reach(ctx context.Context, deps Deps) error {
	if deps.Now == nil {
		deps.Now = time.Now
	}
	v, err := c.verifier(deps)
	if err != nil {
		return err
	}
	return v.tokens.Reach(ctx)
}

// keys reads the issuer's keys, where its discovery document says if the configuration does not.
func (v *oidcVerifier) keys(ctx context.Context, address string, most int64) ([]byte, error) {
	if address != "" {
		return v.client.Get(ctx, address, most)
	}
	raw, err := v.client.Get(ctx, strings.TrimSuffix(v.config.Issuer, "/")+"/.well-known/openid-configuration", most)
	if err != nil {
		return nil, err
	}
	var found struct {
		Issuer  string `json:"issuer"`
		KeysURL string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(raw, &found); err != nil || found.KeysURL == "" {
		return nil, errors.New("the issuer's discovery document names no keys")
	}
	// OpenID Connect Discovery 4.3: else a document of another issuer's would decide.
	if found.Issuer != v.config.Issuer {
		return nil, errors.New("the discovery document is of another issuer")
	}
	raw, err = v.client.Get(ctx, found.KeysURL, most)
	if errors.Is(err, pinned.ErrNotPinned) {
		err = fmt.Errorf("the issuer's keys stand on another host: write api.oidc.keys_url: %w", err)
	}
	return raw, err
}

// caller is whom a token names.
func (v *oidcVerifier) caller(ctx context.Context, token string) (caller, error) {
	claims, err := v.tokens.Judge(ctx, token)
	if err != nil {
		return caller{}, err
	}
	subject := claims.Subject
	if subject == "" {
		return caller{}, bearer.ErrClaims
	}
	name := ""
	if v.config.NameClaim != "" {
		name = strictjson.TextAt(claims.All, v.config.NameClaim)
	}
	return caller{key: "person:" + v.config.Issuer + "#" + subject, roles: v.roles(claims.All),
		actor: audit.ByPerson(audit.IssuerName(v.config.Issuer), audit.PersonName(subject), audit.PersonName(name))}, nil
}

// roles are those that the claims give, in the order of Roles.
func (v *oidcVerifier) roles(claims any) []Role {
	found, _ := strictjson.Lookup(claims, v.config.RolesClaim)
	values, isList := found.([]any)
	if !isList {
		values = []any{found}
	}
	var roles []Role
	for _, role := range Roles {
		if slices.ContainsFunc(values, func(value any) bool {
			text, isText := value.(string)
			return isText && v.config.Roles[text] == role
		}) {
			roles = append(roles, role)
		}
	}
	return roles
}
