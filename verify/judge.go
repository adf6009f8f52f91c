package verify

import (
	"cmp"
	"fmt"
	"slices"
)

// judge concludes from what was read. It reads nothing itself.
type judge struct {
	walk        *walk
	manifest    manifest
	checkpoints []*checkpoint
	trust       *trust
	// located are the events that were looked for in a second pass.
	located map[eventID]*located
	found   *findings
	// bundleKey: the keys are the bundle's own, and no earlier checkpoint counts.
	bundleKey bool

	log     []segment
	covered []loss

	matched, redacted int
}

// leaves is the number of leaves that were read.
func (j *judge) leaves() uint64 { return j.walk.tree.size() }

// judge fills the findings and returns the newest earlier checkpoint that matches.
func (j *judge) judge(keys []Key) *checkpoint {
	for _, c := range j.checkpoints {
		if at, ok := j.walk.roots[c.size]; ok && c.size <= j.leaves() {
			c.matches = at.recomputed == c.root
		}
	}
	j.trust = newTrust(keys, j.walk.changes)
	j.trust.signatures(j.checkpoints)
	j.trust.decide(j.checkpoints, j.walk.changes)
	// What no signed checkpoint covers proves nothing, an accepted loss least of all.
	for _, lost := range j.walk.losses {
		if lost.index < j.trust.covered {
			j.covered = append(j.covered, lost)
		}
	}
	j.log = segments(j.covered, j.leaves())

	j.judgeSize()
	j.judgeHashes()
	since := j.judgeCheckpoints()
	if j.bundleKey {
		since = nil
	}
	j.judgeHistories()
	j.judgeCoverage()
	j.judgeKeys()
	j.judgeRedactions()
	j.judgeIDs()
	j.judgeGaps(since)
	return since
}

// counts are those that the report has, but for what was brought.
func (j *judge) counts() Counts {
	w := j.walk
	counts := Counts{Leaves: j.leaves(), Bodies: w.bodies, Details: w.details, Redacted: uint64(j.redacted), EarlierMatched: j.matched,
		Epochs: len(j.log), KeyChanges: len(w.changes)}
	for _, c := range j.checkpoints {
		if c.trusted && !c.given {
			counts.CheckpointsSigned++
		}
	}
	return counts
}

func (j *judge) judgeSize() {
	n := j.leaves()
	if n < j.manifest.Size {
		j.found.between(IncompleteExport, "size", n, j.manifest.Size-1, "missing: the manifest says %d events, and leaves.jsonl has %d", j.manifest.Size, n)
	}
	if j.walk.more {
		j.found.about(Altered, "size", "leaves.jsonl has more lines than the %d of the manifest; the others were not looked at", j.manifest.Size)
	}
	// By all events: an accepted loss that no checkpoint covers is what judgeCoverage is about.
	if said := segments(j.walk.losses, n); said[len(said)-1].epoch != j.manifest.Epoch {
		j.found.about(Altered, "epoch", "the manifest says epoch %d, and the events say epoch %d", j.manifest.Epoch, said[len(said)-1].epoch)
	}
}

// judgeHashes says of each leaf whose bytes and stored hash differ which one the next checkpoint speaks for.
func (j *judge) judgeHashes() {
	for _, m := range j.walk.mismatched {
		id := ""
		if m.named {
			id = m.id.String()
		}
		what := "the event's bytes do not hash to the leaf hash that is stored for it"
		if m.gone {
			what = "the event is missing"
		}
		by, next := "no checkpoint tells which of them is the right one", j.nextCheckpoint(m.index)
		switch {
		case next == nil && m.gone:
			by = "no checkpoint tells whether the leaf hash that stands for it is the right one"
		case next == nil:
		case j.walk.roots[next.size].stored == next.root && m.gone:
			by = "checkpoint " + next.String() + " covers the leaf hash that stands for it"
		case j.walk.roots[next.size].stored == next.root:
			by = "checkpoint " + next.String() + " covers the stored leaf hash: the event's bytes were altered"
		case next.matches:
			by = "checkpoint " + next.String() + " covers the event's bytes: the stored leaf hash was altered"
		case m.gone:
			by = "neither it nor the leaf hash that stands for it is covered by checkpoint " + next.String()
		default:
			by = "checkpoint " + next.String() + " covers neither"
		}
		j.found.at(Altered, "leaf hash", m.index, id, "%s; %s", what, by)
	}
}

// nextCheckpoint is the smallest one that counts and covers a leaf, one of the given before one of the bundle.
func (j *judge) nextCheckpoint(index uint64) *checkpoint {
	var next *checkpoint
	for _, c := range j.checkpoints {
		if !c.trusted || c.size <= index || c.size > j.leaves() {
			continue
		}
		if at, _ := stand(c.epoch, c.size, j.log); at != within {
			continue
		}
		if next == nil || c.size < next.size || c.size == next.size && c.given && !next.given {
			next = c
		}
	}
	return next
}

func (j *judge) judgeCheckpoints() *checkpoint {
	var since *checkpoint
	var mismatched []*checkpoint
	unsigned := 0
	for _, c := range j.checkpoints {
		if !c.trusted {
			j.distrust(c, &unsigned)
			continue
		}
		switch at, by := stand(c.epoch, c.size, j.log); at {
		case within:
			if !c.matches {
				mismatched = append(mismatched, c)
			} else if c.given && c.size > 0 {
				j.matched++
				if since == nil || c.size > since.size {
					since = c
				}
			}
		case beforeItsEpoch:
			j.found.about(Altered, "epoch", "checkpoint %s is of before its epoch began with event %d", c, by.begin)
		case lostDeclared:
			j.judgeLost(c, by.loss)
		case lostUndeclared:
			j.found.between(RolledBack, "epoch", by.begin, c.size-1, "lost, as checkpoint %s shows, though event %d (%s) accepts only the loss of what %s size %d covered", c,
				by.begin, by.loss.id, originOf(j.walk.name, by.loss.rememberedEpoch), by.loss.rememberedSize)
		case beyond:
			// What the manifest claims and the bundle lacks is an incomplete export.
			if c.size > j.manifest.Size {
				j.found.between(RolledBack, "checkpoint", j.leaves(), c.size-1, "missing: checkpoint %s covers them, and the log ends before; either it went back, or this bundle is older than the checkpoint", c)
			}
		case laterEpoch:
			j.found.about(RolledBack, "epoch", "checkpoint %s is of epoch %d, and the log ends in epoch %d; either it went back, or this bundle is older than the checkpoint",
				c, c.epoch, j.log[len(j.log)-1].epoch)
		}
	}
	if unsigned > 1 {
		j.found.about(remark, "signature", "%d checkpoints of the bundle are not signed by a trusted key; they prove nothing", unsigned)
	}
	j.judgeMismatches(mismatched)
	return since
}

// distrust says why a checkpoint does not count.
func (j *judge) distrust(c *checkpoint, unsigned *int) {
	switch {
	case c.wrong != nil && c.given:
		j.found.about(remark, "signature", "checkpoint %s has a wrong signature; it proves nothing", c)
	case c.wrong != nil:
		j.found.about(Altered, "signature", "checkpoint %s has a wrong signature in the name of a trusted key", c)
	case c.retired != "" && c.given:
		j.found.about(remark, "signature", "checkpoint %s is signed by %s alone, which had been replaced by then; it proves nothing", c, quoted(c.retired))
	case c.retired != "":
		j.found.about(Altered, "signature", "checkpoint %s is signed by %s alone, which had been replaced by then", c, quoted(c.retired))
	case c.given:
		j.found.about(remark, "signature", "checkpoint %s is not signed by a trusted key; it proves nothing", c)
	default:
		if *unsigned++; *unsigned == 1 {
			j.found.about(remark, "signature", "checkpoint %s is not signed by a trusted key; it proves nothing", c)
		}
	}
}

// judgeLost is about a checkpoint whose leaves an accepted loss gave up.
func (j *judge) judgeLost(c *checkpoint, by *loss) {
	if c.epoch == by.rememberedEpoch && c.size == by.rememberedSize && c.root != by.rememberedRoot {
		j.found.at(Altered, "epoch", by.index, by.id.String(), "it names another root for %s size %d than checkpoint %s", quoted(c.origin), c.size, c)
	}
	if c.matches {
		j.found.about(Altered, "epoch", "checkpoint %s covers event %d (%s), with which a later epoch begins", c, by.index, by.id)
	}
	if c.given {
		j.found.between(DeclaredGap, "earlier checkpoint", by.index, c.size-1, "lost, which checkpoint %s covered; event %d (%s) says so. It proves nothing of what is left", c, by.index, by.id)
	}
}

// judgeMismatches names the narrowest range. Who has the signing key can sign the bundle's own checkpoints again, so that
// only an earlier one that matches proves that what it covers is not where the fault is.
func (j *judge) judgeMismatches(mismatched []*checkpoint) {
	for _, given := range []bool{true, false} {
		var of []*checkpoint
		for _, c := range mismatched {
			if c.given == given {
				of = append(of, c)
			}
		}
		if len(of) == 0 {
			continue
		}
		first := slices.MinFunc(of, func(a, b *checkpoint) int { return cmp.Compare(a.size, b.size) })
		if first.size == 0 {
			j.found.about(Altered, "checkpoint", "checkpoint %s has no events and another root than a tree without events", first)
			continue
		}
		proven, likely := j.largestMatch(first.size, true), j.largestMatch(first.size, false)
		text := fmt.Sprintf("not what checkpoint %s covers", first)
		if proven > 0 {
			text += fmt.Sprintf("; the first %d events are what an earlier checkpoint covers", proven)
		}
		from := proven
		if !given && likely > proven {
			from = likely
			text += fmt.Sprintf("; before, the bundle's own checkpoints match, the newest with size %d: that narrows it down unless the signing key was misused", likely)
		}
		if len(of) > 1 {
			text += fmt.Sprintf("; %d further checkpoints of larger size do not match either", len(of)-1)
		}
		if last := j.log[len(j.log)-1]; first.epoch < last.epoch {
			text += fmt.Sprintf("; it is of epoch %d, and a later loss was accepted, which does not excuse other leaves where the log goes on", first.epoch)
		}
		j.found.between(Altered, "checkpoint", from, first.size-1, "%s", text)
	}
}

// largestMatch is the size of the largest checkpoint that counts, matches and is smaller.
func (j *judge) largestMatch(below uint64, given bool) uint64 {
	var largest uint64
	for _, c := range j.checkpoints {
		if c.trusted && c.matches && c.size < below && (c.given || !given) {
			largest = max(largest, c.size)
		}
	}
	return largest
}

// judgeHistories looks for two signed roots of one size in one epoch.
func (j *judge) judgeHistories() {
	type at struct{ epoch, size uint64 }
	first := map[at]*checkpoint{}
	for _, c := range j.checkpoints {
		if !c.trusted {
			continue
		}
		other, seen := first[at{c.epoch, c.size}]
		if !seen {
			first[at{c.epoch, c.size}] = c
		} else if other.root != c.root {
			j.found.about(Altered, "two histories", "checkpoints %s and %s are both signed by a trusted key and have different roots", other, c)
		}
	}
}

// judgeCoverage demands that the bundle's newest checkpoint covers all of its leaves.
func (j *judge) judgeCoverage() {
	n, last := j.leaves(), j.log[len(j.log)-1]
	var covered, others uint64
	var mismatch bool
	for _, c := range j.checkpoints {
		switch {
		case c.given:
		case c.trusted && c.matches && c.epoch == last.epoch:
			covered = max(covered, c.size)
		case c.trusted && !c.matches:
			// One that is of what was lost does not match either, and says nothing here.
			at, _ := stand(c.epoch, c.size, j.log)
			mismatch = mismatch || at == within
		case !c.trusted:
			others = max(others, c.size)
		}
	}
	switch {
	case covered == n || mismatch: // a mismatch has a finding of its own
	case others > covered:
		j.found.between(Altered, "coverage", covered, n-1, "not covered by a checkpoint of the bundle that a trusted key signed, though others are there: the signing key was replaced, or your key file is out of date")
	default:
		j.found.between(IncompleteExport, "coverage", covered, n-1, "not covered by a signed checkpoint of the bundle, which has to have the newest one")
	}
}

// judgeKeys says which keys counted that nobody gave.
func (j *judge) judgeKeys() {
	for _, key := range j.trust.keys {
		if key.given {
			continue
		}
		if key.counts {
			j.found.at(remark, "signing key", key.announced.index, key.announced.id.String(), "announces the key %s, under a checkpoint of a key that you gave; add it to your key file: %s", quoted(key.short()), quoted(key.ID))
		} else {
			j.found.at(remark, "signing key", key.announced.index, key.announced.id.String(), "announces the key %s, which does not count: no key that counts has signed both before this event and over it", quoted(key.short()))
		}
	}
}

// judgeGaps names the accepted losses. One that the newest matching checkpoint covers was there when it was signed.
func (j *judge) judgeGaps(since *checkpoint) {
	for i := range j.covered {
		lost := &j.covered[i]
		verdict := DeclaredGap
		if since != nil && since.size > lost.index {
			verdict = remark
		}
		j.found.at(verdict, "accepted loss", lost.index, lost.id.String(), "%s", lost.gap(j.walk.name))
	}
}
