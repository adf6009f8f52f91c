package intake

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/strictjson"
)

// Signature says how a sender of the format generic signs, by HMAC with the source's keys. Without it such a source
// signs by Standard Webhooks, where it has keys.
type Signature struct {
	// Header has the signature, in the form Value: a text with {mac} in it, and {timestamp} where that is there too.
	Header string `yaml:"header"`
	Value  string `yaml:"value"`
	// Encoding of the MAC is hex or base64, and Hash sha256 or sha512.
	Encoding string `yaml:"encoding"`
	Hash     string `yaml:"hash"`
	// Signed is the text that is signed: {body}, and {timestamp} and {id} where they are.
	Signed string `yaml:"signed"`
	// Timestamp is where the time of the notification stands: value (of the header), header:NAME, field:NAME of the
	// body, or none. It counts where it is signed: as part of the body or of Signed.
	Timestamp string `yaml:"timestamp"`
	// TimestampUnit is s or ms since 1970, or rfc3339.
	TimestampUnit string `yaml:"timestamp_unit"`
}

const (
	timestampValue = "value"
	timestampNone  = "none"
)

// macScheme is a Signature that can be right.
type macScheme struct {
	Signature
	value *regexp.Regexp
	id    string // the header whose text is {id}, or none
	hash  func() hash.Hash
	keys  []key
}

// compile checks the scheme. Errors begin with the key they are about.
func (s Signature) compile(at string, id string, keys []key) (*macScheme, error) {
	at += ".signature"
	orDefault(&s.Value, "{mac}")
	orDefault(&s.Encoding, "hex")
	orDefault(&s.Hash, "sha256")
	orDefault(&s.Signed, "{body}")
	orDefault(&s.TimestampUnit, "s")
	scheme := &macScheme{Signature: s, keys: keys, hash: sha256.New}
	if name, ok := strings.CutPrefix(id, headerOf); ok {
		scheme.id = name
	}
	mac := map[string]string{"hex": `[0-9a-fA-F]{32,128}`, "base64": `[0-9A-Za-z+/]{32,128}={0,2}`}[s.Encoding]
	timestamp := map[string]string{"s": `[0-9]{1,12}`, "ms": `[0-9]{1,15}`, "rfc3339": `[0-9TZ:.+-]{1,40}`}[s.TimestampUnit]
	count := strings.Count
	switch {
	case !headerName.MatchString(s.Header):
		return nil, fmt.Errorf("%s.header is %q: write the name of the header that has the signature, such as X-Signature", at, s.Header)
	case count(s.Value, "{mac}") != 1 || count(s.Value, "{timestamp}") > 1 || strings.Contains(s.Value, "}{"):
		return nil, fmt.Errorf("%s.value is %q: write how the header looks, with {mac} and perhaps {timestamp} in it, such as sha256={mac}", at, s.Value)
	case mac == "":
		return nil, fmt.Errorf("%s.encoding is %q: write hex or base64", at, s.Encoding)
	case s.Hash != "sha256" && s.Hash != "sha512":
		return nil, fmt.Errorf("%s.hash is %q: write sha256 or sha512", at, s.Hash)
	case timestamp == "":
		return nil, fmt.Errorf("%s.timestamp_unit is %q: write s, ms or rfc3339", at, s.TimestampUnit)
	case count(s.Signed, "{body}") != 1 || !strings.HasSuffix(s.Signed, "{body}") || count(s.Signed, "{timestamp}") > 1 || count(s.Signed, "{id}") > 1 || strings.Contains(s.Signed, "{id}{") || strings.Contains(s.Signed, "}{id}"):
		return nil, fmt.Errorf("%s.signed is %q: write what is signed, such as {timestamp}.{body}; {body} comes last", at, s.Signed)
	case strings.Contains(s.Signed, "{id}") != (scheme.id != ""):
		return nil, fmt.Errorf("%s.signed is %q and %s is %q: an id in a header counts where it is signed, so both or neither name it", at, s.Signed, "mapping.id", id)
	}
	if err := s.checkTimestamp(at); err != nil {
		return nil, err
	}
	if s.Hash == "sha512" {
		scheme.hash = sha512.New
	}
	pattern := regexp.QuoteMeta(s.Value)
	pattern = strings.Replace(pattern, regexp.QuoteMeta("{mac}"), `(?P<mac>`+mac+`)`, 1)
	pattern = strings.Replace(pattern, regexp.QuoteMeta("{timestamp}"), `(?P<timestamp>`+timestamp+`)`, 1)
	var err error
	scheme.value, err = regexp.Compile(`^` + pattern + `$`)
	return scheme, err
}

func orDefault(value *string, text string) {
	if *value == "" {
		*value = text
	}
}

// checkTimestamp refuses a time that nobody signed: whoever repeats a notification would write it anew.
func (s Signature) checkTimestamp(at string) error {
	inValue, signed := strings.Contains(s.Value, "{timestamp}"), strings.Contains(s.Signed, "{timestamp}")
	field, isField := strings.CutPrefix(s.Timestamp, fieldOf)
	header, isHeader := strings.CutPrefix(s.Timestamp, headerOf)
	switch {
	case isField && field != "" && !signed:
		return nil
	case isHeader && headerName.MatchString(header) && signed && !inValue, s.Timestamp == timestampValue && signed && inValue:
		return nil
	case s.Timestamp == timestampNone && !signed && !inValue:
		return nil
	}
	return fmt.Errorf("%s.timestamp is %q: write value where {timestamp} is in the header's value, header:NAME, field:NAME for a field of the body, or none; "+
		"but for a field of the body, {timestamp} must be in signed too, since a time that is not signed says nothing", at, s.Timestamp)
}

// check is the authentication mode.
func (s *macScheme) check(_ context.Context, r *request) (string, *denial) {
	parts := s.value.FindStringSubmatch(r.header.Get(s.Header))
	if parts == nil {
		return "", refused(audit.RefusedNotSigned)
	}
	group := func(name string) string {
		if i := s.value.SubexpIndex(name); i >= 0 {
			return parts[i]
		}
		return ""
	}
	got, ok := s.decode(group("mac"))
	if !ok {
		return "", refused(audit.RefusedNotSigned)
	}
	timestamp := group("timestamp")
	if name, ok := strings.CutPrefix(s.Timestamp, headerOf); ok {
		timestamp = r.header.Get(name)
	}
	signsTime := strings.Contains(s.Signed, "{timestamp}")
	at, timed := s.time(timestamp)
	if (signsTime || timestamp != "") && !timed || s.id != "" && r.header.Get(s.id) == "" {
		return "", refused(audit.RefusedNotSigned)
	}
	id := s.signer(r, got, timestamp)
	if id == "" {
		return "", refused(audit.RefusedWrongSignature)
	}
	if name, ok := strings.CutPrefix(s.Timestamp, fieldOf); ok {
		within, ok := s.fieldTime(r.body, name)
		// What the header says beside it is not signed, and must not be another time.
		if !ok || timed && !within.Equal(at) {
			return "", refused(audit.RefusedStale)
		}
		at, timed = within, true
	}
	if timed && (at.Before(r.now.Add(-skew)) || at.After(r.now.Add(skew))) {
		return "", refused(audit.RefusedStale)
	}
	return id, nil
}

// signer returns the id of the key that signed. Every key is tried, so that the time taken does not tell which one counts.
func (s *macScheme) signer(r *request, got []byte, timestamp string) (id string) {
	before, _, _ := strings.Cut(s.Signed, "{body}")
	before = strings.NewReplacer("{timestamp}", timestamp, "{id}", r.header.Get(s.id)).Replace(before)
	for _, k := range s.keys {
		mac := hmac.New(s.hash, k.secret)
		mac.Write([]byte(before))
		mac.Write(r.body)
		if hmac.Equal(got, mac.Sum(nil)) && k.valid(r.now) {
			id = k.id
		}
	}
	return id
}

func (s *macScheme) decode(text string) ([]byte, bool) {
	if s.Encoding == "base64" {
		raw, err := base64.StdEncoding.Strict().DecodeString(text)
		return raw, err == nil
	}
	raw, err := hex.DecodeString(text)
	return raw, err == nil
}

func (s *macScheme) fieldTime(body []byte, name string) (time.Time, bool) {
	value, err := strictjson.Parse(body)
	if err != nil {
		return time.Time{}, false
	}
	return s.time(strictjson.TextAt(value, name))
}

func (s *macScheme) time(text string) (time.Time, bool) {
	if s.TimestampUnit == "rfc3339" {
		at, err := time.Parse(time.RFC3339Nano, text)
		return at, err == nil
	}
	number, err := strconv.ParseInt(text, 10, 64)
	if err != nil || len(text) > 15 || strings.Trim(text, "0123456789") != "" {
		return time.Time{}, false
	}
	if s.TimestampUnit == "ms" {
		return time.UnixMilli(number), true
	}
	return time.Unix(number, 0), true
}
