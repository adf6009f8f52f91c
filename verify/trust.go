package verify

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"
)

// keyChange is a change of the set of signing keys.
type keyChange struct {
	place
	keys []Key
}

// parseKeyList reads the detail of audit.signing_keys_changed. It may have further fields.
func parseKeyList(detail []byte, name string) ([]Key, error) {
	var d struct {
		Keys []string `json:"keys"`
	}
	if err := json.Unmarshal(detail, &d); err != nil {
		return nil, fmt.Errorf("its detail cannot be read: %s", oneLine(err))
	}
	if len(d.Keys) == 0 || len(d.Keys) > 16 {
		return nil, errors.New("its detail does not list the verifier keys, 1 to 16 of them")
	}
	keys := make([]Key, len(d.Keys))
	for i, id := range d.Keys {
		var err error
		if keys[i], err = parseKey(id); err != nil {
			return nil, fmt.Errorf("the key %d that its detail lists: %w", i+1, err)
		}
		if keys[i].name() != name {
			return nil, fmt.Errorf("the key %d that its detail lists is of the log %s", i+1, quoted(keys[i].name()))
		}
	}
	return keys, nil
}

// trust finds out which checkpoints count. Whoever verifies brings keys; a key that an event announces counts too, if a
// key that counts has signed checkpoints both from before the event and over it. That is so forwards only: whoever brings
// a later key alone may have a reason not to trust the former one. A key that was replaced counts no longer.
type trust struct {
	keys []trustedKey
	// covered is the largest size that a checkpoint which counts and matches has: what comes after it is not proven.
	covered uint64
}

type trustedKey struct {
	Key
	// given: the auditor brought it. counts: it is given, or announced by an event that is covered.
	given, counts bool
	// announced is the first event that lists it.
	announced *place
}

func newTrust(given []Key, changes []keyChange) *trust {
	t := &trust{}
	for _, key := range given {
		if t.index(key.ID) < 0 {
			t.keys = append(t.keys, trustedKey{Key: key, given: true, counts: true})
		}
	}
	for i := range changes {
		for _, key := range changes[i].keys {
			if t.index(key.ID) < 0 {
				t.keys = append(t.keys, trustedKey{Key: key, announced: &changes[i].place})
			}
		}
	}
	return t
}

func (t *trust) index(id string) int {
	return slices.IndexFunc(t.keys, func(k trustedKey) bool { return k.ID == id })
}

// signatures notes who signed each checkpoint.
func (t *trust) signatures(checkpoints []*checkpoint) {
	for _, c := range checkpoints {
		for i, key := range t.keys {
			signed, err := key.signed(c.raw)
			if err != nil && key.given {
				c.wrong = err
			} else if signed {
				c.signers = append(c.signers, i)
			}
		}
	}
}

// decide marks the checkpoints that count. Their signatures and whether they match are known.
func (t *trust) decide(checkpoints []*checkpoint, changes []keyChange) {
	ascending := slices.Clone(checkpoints)
	slices.SortStableFunc(ascending, func(a, b *checkpoint) int { return cmp.Compare(a.size, b.size) })
	for learned := true; learned; {
		learned = false
		t.covered = 0
		var previous uint64 // what smaller checkpoints cover
		for _, c := range ascending {
			if c.size > t.covered {
				previous = t.covered
			}
			c.trusted, c.retired = false, ""
			for _, signer := range c.signers {
				if !t.keys[signer].counts {
					continue
				}
				if c.matches && t.retired(signer, previous, c.size, changes, ascending) {
					c.retired = t.keys[signer].short()
					continue
				}
				c.trusted = true
			}
			if c.trusted {
				c.retired = ""
				if c.matches {
					t.covered = max(t.covered, c.size)
				}
			}
		}
		for i := range t.keys {
			key := &t.keys[i]
			if !key.counts && t.vouchedFor(key.announced.index, ascending) {
				key.counts, learned = true, true
			}
		}
	}
}

// vouchedFor tells whether a key that counts has signed both before the event at an index and over it.
func (t *trust) vouchedFor(index uint64, ascending []*checkpoint) bool {
	for signer, key := range t.keys {
		before, over := false, false
		for _, c := range ascending {
			if key.counts && c.matches && c.trusted && c.size > 0 && slices.Contains(c.signers, signer) {
				before, over = before || c.size <= index, over || c.size > index
			}
		}
		if before && over {
			return true
		}
	}
	return false
}

// retired tells whether a key had been replaced when a checkpoint of that size was signed: a change that a smaller
// checkpoint covers leaves out the key, which was in use before the change, and no later one has it. The first checkpoint
// that covers a change may be signed by the former key alone.
func (t *trust) retired(key int, previous, size uint64, changes []keyChange, ascending []*checkpoint) bool {
	retired := false
	for i, change := range changes {
		if change.index >= size {
			break
		}
		has := slices.ContainsFunc(change.keys, func(k Key) bool { return k.ID == t.keys[key].ID })
		switch {
		case has:
			retired = false
		case change.index < previous && t.inUse(key, change.index, changes[:i], ascending):
			retired = true
		}
	}
	return retired
}

// inUse tells whether a key was used before the event at an index: it was in a set, or signed a checkpoint.
func (t *trust) inUse(key int, index uint64, before []keyChange, ascending []*checkpoint) bool {
	for _, change := range before {
		if slices.ContainsFunc(change.keys, func(k Key) bool { return k.ID == t.keys[key].ID }) {
			return true
		}
	}
	return slices.ContainsFunc(ascending, func(c *checkpoint) bool {
		return c.matches && c.size <= index && slices.Contains(c.signers, key)
	})
}
