package verify

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
)

// located is what a second pass finds of an event.
type located struct {
	indexes []uint64
	times   int
	detail  bool
}

// lookFor lists the ids for which a second pass is needed: those that may come twice, and those that were redacted and
// are not among the events without a detail. An untouched log has none.
func (w *walk) lookFor() map[eventID]*located {
	wanted := map[eventID]*located{}
	for id := range w.repeated {
		wanted[id] = &located{}
	}
	for target := range w.redacted {
		if _, gone := w.missing[target]; !gone {
			wanted[target] = &located{}
		}
	}
	return wanted
}

func locate(wanted map[eventID]*located, l *leaf, at uint64) {
	place, ok := wanted[l.id]
	if !ok || !l.hasID {
		return
	}
	if place.times++; place.times <= 3 {
		place.indexes = append(place.indexes, at)
	}
	place.detail = place.detail || !l.detailGone
}

// judgeRedactions compares the missing details with the redactions.
func (j *judge) judgeRedactions() {
	w := j.walk
	byIndex := func(a, b eventID) int { return cmp.Compare(w.missing[a], w.missing[b]) }
	for _, id := range slices.SortedFunc(maps.Keys(w.missing), byIndex) {
		at := w.missing[id]
		by, redacted := w.redacted[id]
		switch {
		case !redacted:
			j.found.at(Altered, "detail", at, id.String(), "its detail is missing, and no event says that it was redacted")
		case by.index >= j.trust.covered:
			j.found.at(Altered, "detail", at, id.String(), "its detail is missing, and event %d (%s), which says that it was redacted, is not covered by a signed checkpoint", by.index, by.id)
		default:
			j.redacted++
			j.found.at(remark, "redaction", at, id.String(), "its detail was redacted by event %d (%s)", by.index, by.id)
		}
	}
	byRedaction := func(a, b eventID) int { return cmp.Compare(w.redacted[a].index, w.redacted[b].index) }
	for _, target := range slices.SortedFunc(maps.Keys(w.redacted), byRedaction) {
		by, place := w.redacted[target], j.located[target]
		if _, gone := w.missing[target]; gone || place == nil {
			continue
		}
		switch {
		case place.times == 0:
			j.found.at(Altered, "redaction", by.index, by.id.String(), "it redacts the event %s, which is not there", target)
		case place.detail:
			j.found.at(Altered, "redaction", place.indexes[0], target.String(), "its detail is there, though event %d (%s) says that it was redacted", by.index, by.id)
		}
	}
}

// judgeIDs reports the ids that are there twice.
func (j *judge) judgeIDs() {
	byPlace := func(a, b eventID) int { return bytes.Compare(a[:], b[:]) }
	for _, id := range slices.SortedFunc(maps.Keys(j.walk.repeated), byPlace) {
		if place := j.located[id]; place != nil && place.times > 1 {
			j.found.at(Altered, "event id", place.indexes[1], id.String(), "event %d has the same id", place.indexes[0])
		}
	}
}
