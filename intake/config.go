package intake

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
)

// Config names the sources.
type Config struct {
	Sources map[string]Source `yaml:"sources"`
}

// Source is one system that notifies.
type Source struct {
	Format  string  `yaml:"format"`
	Keys    []Key   `yaml:"keys"`
	Mapping Mapping `yaml:"mapping"`
}

// Key is one valid signing key of Standard Webhooks; several overlap during a change.
type Key struct {
	ID         string    `yaml:"id"`
	Secret     string    `yaml:"secret"`
	SecretFile string    `yaml:"secret_file"`
	NotBefore  time.Time `yaml:"not_before"`
	NotAfter   time.Time `yaml:"not_after"`
}

// Mapping turns a notification into user, path and version. Pattern is matched against Attribute (subject by default,
// or a field of the data as data.NAME) with the named groups user, and optionally path and version; Version may come
// from a field of the data instead. User is a template with {user}.
type Mapping struct {
	Attribute string `yaml:"attribute"`
	Pattern   string `yaml:"pattern"`
	User      string `yaml:"user"`
	KMS       string `yaml:"kms"`
	Path      string `yaml:"path"`
	Version   string `yaml:"version"`
}

type source struct {
	keys    []key
	mapping Mapping
	pattern *regexp.Regexp
}

// Validate checks what can be checked without reading a file. Errors begin with the key they are about.
func (s Source) Validate(name string) error {
	at := "sources." + name
	if s.Format != "" && s.Format != "cloudevents" {
		return fmt.Errorf("%s.format is %q: write cloudevents", at, s.Format)
	}
	if len(s.Keys) == 0 {
		return fmt.Errorf("%s.keys is empty: every source signs; make a key with `head -c 32 /dev/urandom | base64` and write whsec_<it>", at)
	}
	for i, k := range s.Keys {
		if _, err := decodeSecret(k.Secret); k.ID == "" || (k.SecretFile == "" && err != nil) {
			return keyError(at, i)
		}
	}
	if pattern, err := s.Mapping.compile(); err != nil || s.Mapping.Pattern == "" || pattern.SubexpIndex("user") < 0 {
		return fmt.Errorf("%s.mapping.pattern must be a regular expression with a group (?P<user>…), such as keyherald/(?P<user>[^/]+)/backup-key", at)
	}
	if !strings.Contains(s.Mapping.User, "{user}") {
		return fmt.Errorf("%s.mapping.user is %q: write a Matrix user id with {user} in it, such as @{user}:example.org", at, s.Mapping.User)
	}
	if s.Mapping.KMS == "" {
		return fmt.Errorf("%s.mapping.kms is missing: write the KMS's name as the devices' account files have it", at)
	}
	return nil
}

func keyError(at string, i int) error {
	return fmt.Errorf("%s.keys[%d]: an id, and a secret of the form whsec_<base64 of 24 bytes or more> are needed", at, i)
}

func (m Mapping) compile() (*regexp.Regexp, error) { return regexp.Compile(`^(?:` + m.Pattern + `)$`) }

// compile validates and reads the secrets.
func (s Source) compile(name string) (*source, error) {
	if err := s.Validate(name); err != nil {
		return nil, err
	}
	at := "sources." + name
	compiled := &source{mapping: s.Mapping}
	for i, k := range s.Keys {
		secret := k.Secret
		if k.SecretFile != "" {
			raw, err := os.ReadFile(k.SecretFile)
			if err != nil {
				return nil, fmt.Errorf("%s.keys[%d].secret_file: %w", at, i, err)
			}
			secret = strings.TrimSpace(string(raw))
		}
		decoded, err := decodeSecret(secret)
		if err != nil {
			return nil, keyError(at, i)
		}
		compiled.keys = append(compiled.keys, key{k.ID, decoded, k.NotBefore, k.NotAfter})
	}
	var err error
	compiled.pattern, err = s.Mapping.compile()
	return compiled, err
}

// apply fills in what the notification is about. mapped is false for a path that is none of ours, which is normal for
// a shared KMS.
func (s *source) apply(event *cloudevents.Event, n *Notification) (mapped bool, wrong Problem) {
	var data map[string]json.RawMessage
	_ = json.Unmarshal(event.Data(), &data)
	subject := attribute(event, data, s.mapping.Attribute)
	match := s.pattern.FindStringSubmatch(subject)
	if match == nil {
		return false, wrong
	}
	group := func(name string) string {
		if i := s.pattern.SubexpIndex(name); i >= 0 {
			return match[i]
		}
		return ""
	}
	n.User = strings.ReplaceAll(s.mapping.User, "{user}", group("user"))
	n.KMS, n.Secret = s.mapping.KMS, "m.megolm_backup.v1"
	if n.Path = group("path"); n.Path == "" {
		n.Path = subject
		if s.mapping.Path != "" {
			n.Path = strings.ReplaceAll(s.mapping.Path, "{user}", group("user"))
		}
	}
	if n.Version = group("version"); n.Version == "" {
		field := s.mapping.Version
		if field == "" {
			field = "data.version"
		}
		n.Version = attribute(event, data, field)
	}
	if _, _, err := id.UserID(n.User).ParseAndValidateStrict(); err != nil {
		return true, Problem{audit.RefusedNoUserID, fmt.Sprintf("the mapping gives %q, which is no Matrix user id", n.User)}
	}
	if n.Version == "" || len(n.Version) > 128 || len(n.Path) > 1024 {
		return true, Problem{audit.RefusedNoUsableVersion, "the notification names no usable version of " + n.Path}
	}
	return true, wrong
}

func attribute(event *cloudevents.Event, data map[string]json.RawMessage, name string) string {
	switch name {
	case "", "subject":
		return event.Subject()
	case "source":
		return event.Source()
	}
	raw := data[strings.TrimPrefix(name, "data.")]
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var number json.Number
	if json.Unmarshal(raw, &number) == nil {
		return number.String()
	}
	return ""
}
