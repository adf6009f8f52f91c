package intake

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Disclosure is what a source's word that somebody read a key comes to. Without Rotate it is ignored, like everything that
// is none of ours.
type Disclosure struct {
	Rotate bool `yaml:"rotate"`
	// Readers are the principals that may read a user's key, as the KMS names them: his managed device, and whoever makes
	// the keys. {user} stands for the mapping's group of that name, and * for any characters but a slash. A read by anybody
	// else, or by somebody who is not named, asks for a new key.
	Readers []string `yaml:"readers"`
	// Reader is the field that names who read.
	Reader string `yaml:"reader"`
	// Where is for the format generic alone: what an event says that is a read.
	Where map[string]string `yaml:"where"`
}

// maxReader is the limit of a reader's name, in bytes; a longer one is nobody's that is expected.
const maxReader = 2048

// readerFields are who reads, by the formats whose senders tell it.
var readerFields = map[string]string{"cloudevents": "data.reader", "aws-sns": "detail.userIdentity.arn", "aws-eventbridge": "detail.userIdentity.arn",
	"gcp-pubsub": "protoPayload.authenticationInfo.principalEmail", "generic": ""}

// compile checks it and fills in what the format has; nil stays nil. Errors begin with the key they are about.
func (d *Disclosure) compile(format string) (*Disclosure, error) {
	if d == nil {
		return nil, nil
	}
	field, tells := readerFields[format]
	switch {
	case !tells:
		return nil, fmt.Errorf("disclosure is for formats whose senders tell who read a secret, and %s is none of them: remove it", format)
	case format != "generic" && len(d.Where) > 0:
		return nil, errors.New("disclosure.where is for the format generic: remove it, the others know their reads")
	case format == "generic" && len(d.Where) == 0:
		return nil, errors.New("disclosure.where is missing: write what the body says where it tells of a read, such as {request.operation: read}")
	case format == "generic" && d.Reader == "":
		return nil, errors.New("disclosure.reader is missing: write the field of the body that names who read, such as auth.display_name")
	case d.Rotate && len(d.Readers) == 0:
		return nil, errors.New("disclosure.readers is missing: write the principal of the managed devices, as the KMS names it; without it each of their own reads would ask for another key")
	case slices.Contains(d.Readers, ""):
		return nil, errors.New("disclosure.readers has an empty name: write a principal, with {user} and * where they differ")
	}
	compiled := *d
	orDefault(&compiled.Reader, field)
	return &compiled, nil
}

// marks reports whether the configuration says that an event is a read.
func (d *Disclosure) marks(e event) bool {
	return d != nil && len(d.Where) > 0 && matches(d.Where, e)
}

// heeds reports whether a read asks for anything.
func (d *Disclosure) heeds() bool { return d != nil && d.Rotate }

// expects reports whether this reader may read a user's key.
func (d *Disclosure) expects(reader, user string) bool {
	if len(reader) > maxReader || !printable(reader) {
		return false
	}
	return slices.ContainsFunc(d.Readers, func(pattern string) bool {
		pattern = strings.ReplaceAll(wildcard.Replace(pattern), "{user}", literal.Replace(user))
		matched, err := path.Match(pattern, reader)
		return err == nil && matched
	})
}

// wildcard takes away what path.Match has beside *, and literal all of it.
var (
	wildcard = strings.NewReplacer(`\`, `\\`, `?`, `\?`, `[`, `\[`)
	literal  = strings.NewReplacer(`\`, `\\`, `?`, `\?`, `[`, `\[`, `*`, `\*`)
)
