package intake

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/rotation"
)

// Mapping turns an event into user, path and version. Pattern is matched against Attribute, whole, with the named groups
// user, and optionally path and version. Version may come from a field of the event instead, or be none where the sender
// names none. User and Path are templates with {user}. An event whose fields are not all as Where says is none of ours.
//
// Attribute, Version and Where name fields as the format has them; docs/intake.md lists them. ID is for the format
// generic alone: what names an event for good.
type Mapping struct {
	Attribute string            `yaml:"attribute"`
	Pattern   string            `yaml:"pattern"`
	Where     map[string]string `yaml:"where"`
	User      string            `yaml:"user"`
	KMS       string            `yaml:"kms"`
	Path      string            `yaml:"path"`
	Version   string            `yaml:"version"`
	ID        string            `yaml:"id"`
}

// noVersion is what Mapping.Version says of a sender that names no version.
const noVersion = "none"

// The limits of what an event may say, in bytes.
const (
	maxVersion = 128
	maxPath    = 1024
	maxUser    = 255
)

type mapping struct {
	Mapping
	pattern    *regexp.Regexp
	disclosure *Disclosure // nil where reads are ignored
}

// compile checks the mapping. Errors begin with the key they are about.
func (m Mapping) compile(at string) (*mapping, error) {
	pattern, err := regexp.Compile(`^(?:` + m.Pattern + `)$`)
	if err != nil || m.Pattern == "" || pattern.SubexpIndex("user") < 0 {
		return nil, fmt.Errorf("%s.mapping.pattern must be a regular expression with a group (?P<user>…), such as keyherald/(?P<user>[^/]+)/backup-key", at)
	}
	if !strings.Contains(m.User, "{user}") {
		return nil, fmt.Errorf("%s.mapping.user is %q: write a Matrix user id with {user} in it, such as @{user}:example.org", at, m.User)
	}
	if m.KMS == "" {
		return nil, fmt.Errorf("%s.mapping.kms is missing: write the KMS's name as the devices' account files have it", at)
	}
	return &mapping{Mapping: m, pattern: pattern}, nil
}

// or fills in what a format's events have where the configuration says nothing.
func (m Mapping) or(attribute, version string) Mapping {
	if m.Attribute == "" {
		m.Attribute = attribute
	}
	if m.Version == "" {
		m.Version = version
	}
	return m
}

// apply fills in what the notification is about. ignored says why an event changes nothing: most are none of ours, which
// is normal for a shared KMS. wrong says what is wrong with one that is.
func (m *mapping) apply(e event, n *Notification) (ignored audit.Ignored, wrong Problem) {
	n.Read = e.read || m.disclosure.marks(e)
	if e.irrelevant || n.Read && !m.disclosure.heeds() || !matches(m.Where, e) {
		return audit.IgnoredUnmapped, Problem{}
	}
	subject := e.field(m.Attribute)
	match := m.pattern.FindStringSubmatch(subject)
	if match == nil {
		return audit.IgnoredUnmapped, Problem{}
	}
	group := func(name string) string {
		if i := m.pattern.SubexpIndex(name); i >= 0 {
			return match[i]
		}
		return ""
	}
	n.User = strings.ReplaceAll(m.User, "{user}", group("user"))
	n.KMS, n.Secret = m.KMS, "m.megolm_backup.v1"
	if n.Path = group("path"); n.Path == "" {
		n.Path = subject
		if m.Path != "" {
			n.Path = strings.ReplaceAll(m.Path, "{user}", group("user"))
		}
	}
	if n.Version = group("version"); n.Version == "" {
		n.Version = m.version(e, n)
	}
	if n.Read {
		n.Reader = e.field(m.disclosure.Reader)
	}
	if wrong = n.problem(group("user")); wrong != (Problem{}) {
		n.User, n.Path, n.Version = clip(n.User, maxUser), clip(n.Path, maxPath), clip(n.Version, maxVersion)
		return "", wrong
	}
	if n.Read && m.disclosure.expects(n.Reader, group("user")) {
		return audit.IgnoredExpectedReader, Problem{}
	}
	return "", Problem{}
}

// matches reports whether an event says all of this.
func matches(where map[string]string, e event) bool {
	for name, want := range where {
		if e.field(name) != want {
			return false
		}
	}
	return true
}

// problem says what is wrong with what the mapping made of an event, for its sender and the log.
func (n *Notification) problem(user string) Problem {
	// A name with a colon would move the user to another server.
	if _, _, err := id.UserID(n.User).ParseAndValidateStrict(); err != nil || strings.Contains(user, ":") {
		return Problem{audit.RefusedNoUserID, fmt.Sprintf("the mapping gives %q, which is no Matrix user id", clip(n.User, maxUser))}
	}
	if steps := "/" + n.Path + "/"; !printable(n.Path) || len(n.Path) > maxPath || strings.Contains(steps, "/../") || strings.Contains(steps, "/./") {
		return Problem{audit.RefusedUnusablePath, fmt.Sprintf("the mapping gives the path %q, which is none of a secret", clip(n.Path, maxPath))}
	}
	if n.Version == "" && !n.Read || len(n.Version) > maxVersion || !printable(n.Version) {
		return Problem{audit.RefusedNoUsableVersion, "the notification names no usable version of " + n.Path}
	}
	return Problem{}
}

// clip shortens what is kept of an unusable notification.
func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "")
}

// version is the event's own, or one that is made of its id where the sender names none. What was read is the current
// version there.
func (m *mapping) version(e event, n *Notification) string {
	if m.Version != noVersion {
		return e.field(m.Version)
	}
	if n.Read {
		return ""
	}
	return rotation.UnnamedVersion(n.ID)
}

// printable reports whether a text shows all that it is: no control or formatting characters, no spaces but the plain
// one, and nothing that stands for bytes which are no UTF-8.
func printable(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar })
}
