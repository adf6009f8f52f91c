package verify

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	stdjson "encoding/json"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/transparency-dev/merkle/rfc6962"
)

// strict is how everything foreign is decoded: unknown and repeated names, names in another case, and invalid UTF-8 are
// errors, since two readers may read them differently.
var strict = json.JoinOptions(json.RejectUnknownMembers(true), jsontext.AllowDuplicateNames(false), jsontext.AllowInvalidUTF8(false))

// line is a line of leaves.jsonl.
type line struct {
	Index    *uint64 `json:"index"`
	LeafHash *string `json:"leaf_hash"`
	Event    *string `json:"event"`
	Salt     *string `json:"salt"`
	Detail   *string `json:"detail"`
}

// event is the canonical form: encoding/json writes this struct as the log's events are.
type event struct {
	V          int    `json:"v"`
	ID         string `json:"id"`
	Time       int64  `json:"time"`
	Actor      string `json:"actor"`
	Action     string `json:"action"`
	Subject    string `json:"subject"`
	Rotation   string `json:"rotation,omitempty"`
	Outcome    string `json:"outcome"`
	Commitment string `json:"commitment"`
}

// The actions that say something about the log itself. Only an accepted one does: a refused redaction is an event too.
const (
	actionRedacted     = "audit.redacted"
	actionLossAccepted = "audit.loss_accepted"
	actionKeysChanged  = "audit.signing_keys_changed"
	outcomeAccepted    = "accepted"
)

// eventID is an event's UUID.
type eventID [16]byte

func (id eventID) String() string {
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// leaf is what became of one line.
type leaf struct {
	index    uint64
	hasIndex bool
	// hash is the leaf hash of the event's bytes, and stored is the one that the line has.
	hash, stored       hash
	hasHash, hasStored bool
	id                 eventID
	hasID              bool
	// detailGone: neither salt nor detail is there.
	detailGone, detailChecked bool
	says                      *statement
	faults                    []fault
}

// statement is an event about the log itself.
type statement struct {
	action, subject string
	// detail is nil where it is gone or is not what the event commits to.
	detail []byte
}

// fault is something wrong with a leaf on its own.
type fault struct{ check, text string }

func (l *leaf) fault(check, text string) { l.faults = append(l.faults, fault{check, text}) }

// readLeaf checks all that can be said of one line without the others. With idsOnly it only looks for the event's id and
// whether the detail is there.
func readLeaf(raw []byte, idsOnly bool) leaf {
	var in line
	if err := json.Unmarshal(raw, &in, strict); err != nil {
		return leaf{faults: []fault{{"line", "its line is not the JSON object of a leaf: " + oneLine(err)}}}
	}
	l := checkLeaf(in, idsOnly)
	if in.Index == nil {
		l.fault("line", "its line has no index")
	} else {
		l.index, l.hasIndex = *in.Index, true
	}
	if in.LeafHash == nil {
		l.fault("leaf hash", "its line has no leaf_hash")
	} else if l.hasStored = decodeHash(&l.stored, base64.StdEncoding, *in.LeafHash); !l.hasStored {
		l.fault("leaf hash", "its leaf_hash is not the base64 of 32 bytes")
	}
	return l
}

// checkLeaf is readLeaf for what a proof has too.
func checkLeaf(in line, idsOnly bool) (l leaf) {
	l.detailGone = in.Salt == nil && in.Detail == nil
	if in.Event == nil {
		return l
	}
	body := []byte(*in.Event)
	if !idsOnly {
		l.hash, l.hasHash = hash(rfc6962.DefaultHasher.HashLeaf(body)), true
	}
	var e event
	if err := json.Unmarshal(body, &e, strict); err != nil {
		l.fault("event", "it is not a JSON object of the event's form: "+oneLine(err))
		return l
	}
	l.id, l.hasID = parseID(e.ID)
	if idsOnly {
		return l
	}
	l.checkEvent(body, &e)
	detail := l.checkDetail(in, &e)
	switch e.Action {
	case actionRedacted, actionLossAccepted, actionKeysChanged:
		if l.detailGone {
			l.fault("detail", "the detail of "+e.Action+" is missing, and cannot be redacted")
			l.detailGone = false
		}
		if e.Outcome == outcomeAccepted {
			l.says = &statement{action: e.Action, subject: e.Subject, detail: detail}
		}
	}
	return l
}

func (l *leaf) checkEvent(body []byte, e *event) {
	// What decodes and is then written differently had spaces, another order, or other escapes. encoding/json writes
	// invalid UTF-8 as \ufffd and the character of that number as it is; after decoding they are the same.
	canonical, err := stdjson.Marshal(e)
	if err != nil || !bytes.Equal(canonical, body) && !bytes.Equal(bytes.ReplaceAll(canonical, []byte("\ufffd"), []byte(`\ufffd`)), body) {
		l.fault("event", "its bytes are not in the canonical form")
	}
	if e.V != 1 {
		l.fault("event", "its version is not 1, the only one that this program knows")
	}
	if !l.hasID || l.id[6]>>4 != 7 || l.id[8]>>6 != 2 {
		l.fault("event", "its id is not a UUIDv7")
	}
	if e.Time <= 0 {
		l.fault("event", "it has no time")
	}
	if e.Actor == "" {
		l.fault("event", "it has no actor")
	}
	if noun, verb, _ := strings.Cut(e.Action, "."); !isWord(noun) || !isWord(verb) {
		l.fault("event", "its action is not a noun and a verb")
	}
	if !isWord(e.Outcome) {
		l.fault("event", "its outcome is not a word")
	}
	if _, ok := parseID(e.Rotation); e.Rotation != "" && !ok {
		l.fault("event", "its rotation is not a UUID")
	}
}

// checkDetail returns the detail if it is the one that the event commits to.
func (l *leaf) checkDetail(in line, e *event) []byte {
	var commitment, salt hash
	if !decodeHash(&commitment, base64.RawStdEncoding, e.Commitment) {
		l.fault("event", "its commitment is not the unpadded base64 of 32 bytes")
		return nil
	}
	if l.detailGone {
		return nil
	}
	if in.Salt == nil || in.Detail == nil {
		l.fault("detail", "it has a salt or a detail without the other")
		return nil
	}
	// The length matters: HMAC takes a key and the same key with zeros behind it for one.
	if !decodeHash(&salt, base64.StdEncoding, *in.Salt) {
		l.fault("detail", "its salt is not the base64 of 32 bytes")
		return nil
	}
	detail := []byte(*in.Detail)
	mac := hmac.New(sha256.New, salt[:])
	mac.Write(detail)
	if !hmac.Equal(mac.Sum(nil), commitment[:]) {
		l.fault("detail", "detail and salt are not those that the event commits to")
		return nil
	}
	if !isObject(detail) {
		l.fault("detail", "its detail is not a JSON object, or has a name twice")
		return nil
	}
	l.detailChecked = true
	return detail
}

// isObject is false for an object with repeated names too, which readers read differently.
func isObject(raw []byte) bool {
	return len(raw) > 0 && raw[0] == '{' && jsontext.Value(raw).IsValid()
}

// decodeHash accepts one encoding of 32 bytes. The length is checked because the decoder skips line breaks, and a text of
// that length may still hold a byte more.
func decodeHash(into *hash, encoding *base64.Encoding, text string) bool {
	var decoded [len(into) + 1]byte
	if len(text) != encoding.EncodedLen(len(into)) {
		return false
	}
	n, err := encoding.Strict().Decode(decoded[:], []byte(text))
	copy(into[:], decoded[:])
	return err == nil && n == len(into)
}

// parseID accepts the lower-case form only, the one that is written.
func parseID(text string) (id eventID, ok bool) {
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' || strings.ToLower(text) != text {
		return id, false
	}
	n, err := hex.Decode(id[:], []byte(text[:8]+text[9:13]+text[14:18]+text[19:23]+text[24:]))
	return id, err == nil && n == len(id)
}

func isWord(text string) bool {
	for _, c := range []byte(text) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return text != ""
}

// oneLine keeps what an error quotes from foreign bytes out of the terminal.
func oneLine(err error) string {
	text := strings.ToValidUTF8(err.Error(), "?")
	if len(text) > 200 {
		text = text[:200] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f {
			return '?'
		}
		return r
	}, text)
}
