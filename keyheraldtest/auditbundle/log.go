// Package auditbundle makes audit logs and their bundles for tests of the verifier, good ones and forged ones. It is
// another implementation of docs/audit-log.md than the verifier's and than the server's: trees and proofs are those of
// golang.org/x/mod/sumdb/tlog.
package auditbundle

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Event is the body of an event. Its fields are all open, so that tests can make any of them wrong.
type Event struct {
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

// Bytes are the canonical bytes.
func (e Event) Bytes() []byte { return must(json.Marshal(e)) }

// Leaf is what the server has of a leaf. What it has no more is nil.
type Leaf struct {
	Event, Salt, Detail []byte
	Hash                tlog.Hash
}

// Committed makes a leaf of an event and its detail.
func Committed(e Event, salt, detail []byte) Leaf {
	mac := hmac.New(sha256.New, salt)
	mac.Write(detail)
	e.Commitment = base64.RawStdEncoding.EncodeToString(mac.Sum(nil))
	body := e.Bytes()
	return Leaf{Event: body, Salt: salt, Detail: detail, Hash: tlog.RecordHash(body)}
}

// ID is the event's id.
func (l Leaf) ID() string {
	var e Event
	if err := json.Unmarshal(l.Event, &e); err != nil {
		panic(err)
	}
	return e.ID
}

// Key is a signing key with its verifier key.
type Key struct {
	note.Signer
	Verifier string
}

// NewKey makes a signing key for the log of that name.
func NewKey(name string) Key {
	private, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		panic(err)
	}
	return Key{must(note.NewSigner(private)), public}
}

// Checkpoint is one that was published.
type Checkpoint struct {
	Epoch, Size int
	Root        tlog.Hash
	Note        []byte
}

// Log is a log, with its signing keys and all it remembers.
type Log struct {
	Name        string
	Keys        []Key
	Epoch       int
	Leaves      []Leaf
	Checkpoints []Checkpoint
	tree        Tree
	seed        uint64
	made        uint64
}

// New begins a log. Logs of one seed have the same sample events.
func New(name string, seed uint64) *Log {
	return &Log{Name: name, Keys: []Key{NewKey(name)}, Epoch: 1, seed: seed}
}

// Clone is a log that goes another way from here on.
func (l *Log) Clone() *Log {
	c := *l
	c.Keys, c.Leaves, c.Checkpoints = slices.Clone(l.Keys), slices.Clone(l.Leaves), slices.Clone(l.Checkpoints)
	c.tree.hashes = slices.Clone(l.tree.hashes)
	return &c
}

// Add appends so many sample events.
func (l *Log) Add(n int) {
	for range n {
		l.append(Sample(l.seed, l.made))
		l.made++
	}
}

// Take appends a leaf that was made elsewhere, and hashes it.
func (l *Log) Take(leaf Leaf) int {
	leaf.Hash = tlog.RecordHash(leaf.Event)
	return l.append(leaf)
}

func (l *Log) append(leaf Leaf) int {
	l.Leaves = append(l.Leaves, leaf)
	l.tree.Append(leaf.Hash)
	return len(l.Leaves) - 1
}

// Say appends an event with a detail of one's own, and returns its index.
func (l *Log) Say(action, subject, outcome string, detail map[string]any) int {
	sample := Sample(l.seed, l.made)
	l.made++
	var e Event
	if err := json.Unmarshal(sample.Event, &e); err != nil {
		panic(err)
	}
	e.Actor, e.Action, e.Subject, e.Outcome, e.Rotation = "admin", action, subject, outcome, ""
	return l.append(Committed(e, sample.Salt, must(json.Marshal(detail))))
}

// Sign publishes a checkpoint of what is there.
func (l *Log) Sign() Checkpoint {
	c := l.SignAs(l.Epoch, len(l.Leaves), l.tree.Root(len(l.Leaves)), l.Keys...)
	l.Checkpoints = append(l.Checkpoints, c)
	return c
}

// SignAs makes a checkpoint that says anything.
func (l *Log) SignAs(epoch, size int, root tlog.Hash, keys ...Key) Checkpoint {
	c := Checkpoint{Epoch: epoch, Size: size, Root: root}
	signers := make([]note.Signer, len(keys))
	for i, key := range keys {
		signers[i] = key
	}
	c.Note = must(note.Sign(&note.Note{Text: c.Text(l.Name)}, signers...))
	return c
}

// Origin is the origin line in the log of that name.
func (c Checkpoint) Origin(name string) string {
	if c.Epoch == 1 {
		return name
	}
	return fmt.Sprintf("%s/epoch/%d", name, c.Epoch)
}

// Text is what is signed in the log of that name.
func (c Checkpoint) Text(name string) string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin(name), c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

// Grow appends sample events up to a size, with a checkpoint after each batch.
func (l *Log) Grow(size, batch int) {
	for len(l.Leaves) < size {
		l.Add(min(batch, size-len(l.Leaves)))
		l.Sign()
	}
}

// Redact drops a detail and says so.
func (l *Log) Redact(index int) int {
	l.Forget(index)
	return l.Say("audit.redacted", l.Leaves[index].ID(), "accepted", map[string]any{"reason": "a court says so"})
}

// Forget drops a detail and says nothing.
func (l *Log) Forget(index int) { l.Leaves[index].Salt, l.Leaves[index].Detail = nil, nil }

// GoBack makes the log one of so many leaves, as a restored database is. Newer checkpoints are lost with it.
func (l *Log) GoBack(size int) {
	l.Leaves = append([]Leaf(nil), l.Leaves[:size]...)
	l.Rebuild()
	var left []Checkpoint
	for _, c := range l.Checkpoints {
		if c.Size <= size {
			left = append(left, c)
		}
	}
	l.Checkpoints = left
}

// Loss is the detail of an accepted loss.
func (l *Log) Loss(remembered Checkpoint) map[string]any {
	root := l.Root(len(l.Leaves))
	return map[string]any{"epoch": max(l.Epoch, remembered.Epoch) + 1, "surviving_size": len(l.Leaves), "surviving_root": base64.StdEncoding.EncodeToString(root[:]),
		"remembered_size": remembered.Size, "remembered_root": base64.StdEncoding.EncodeToString(remembered.Root[:]), "remembered_origin": remembered.Origin(l.Name), "reason": "restored"}
}

// AcceptLoss begins the next epoch.
func (l *Log) AcceptLoss(remembered Checkpoint) int {
	detail := l.Loss(remembered)
	l.Epoch = detail["epoch"].(int)
	return l.Say("audit.loss_accepted", l.Name, "accepted", detail)
}

// ChangeKeys says which keys sign from now on. The log still signs with the former ones until Keys is set.
func (l *Log) ChangeKeys(keys ...Key) int {
	var list []string
	for _, key := range keys {
		list = append(list, key.Verifier)
	}
	return l.Say("audit.signing_keys_changed", l.Name, "accepted", map[string]any{"keys": list})
}

// Rebuild recomputes hashes and tree from the leaves, as a forger does.
func (l *Log) Rebuild() {
	l.tree = Tree{}
	for i := range l.Leaves {
		if l.Leaves[i].Event != nil {
			l.Leaves[i].Hash = tlog.RecordHash(l.Leaves[i].Event)
		}
		l.tree.Append(l.Leaves[i].Hash)
	}
}

// Resign signs all checkpoints anew over the leaves as they are now.
func (l *Log) Resign(keys ...Key) {
	for i, c := range l.Checkpoints {
		l.Checkpoints[i] = l.SignAs(c.Epoch, c.Size, l.Root(c.Size), keys...)
	}
}

// Root is the root of the first size leaves.
func (l *Log) Root(size int) tlog.Hash { return l.tree.Root(size) }

// Proof is the C2SP tlog-proof of an event at a checkpoint.
func (l *Log) Proof(index int, at Checkpoint) []byte {
	return l.tree.Proof(index, at, l.Leaves[index])
}

// Verifiers are the log's verifier keys as its key file has them.
func (l *Log) Verifiers() []byte {
	var file []byte
	for _, key := range l.Keys {
		file = append(append(file, key.Verifier...), '\n')
	}
	return file
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}
