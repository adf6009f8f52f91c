package protocol

import "github.com/google/uuid"

// StoreMark says from which state of its store a device reports. Run is drawn whenever the store is opened, Base is how
// many reports and statuses the store had counted by then, and Count is the number of this one: it grows with every
// report and never goes back, in one run and from each run to the next. So the marks of a store that only went on make
// one line, in whatever order they come and however many are lost; a store that was put back to an earlier state, or
// copied, makes a second branch.
type StoreMark struct {
	Run   uuid.UUID `json:"run"`
	Base  int64     `json:"base"`
	Count int64     `json:"count"`
}

// valid reports whether a report can carry the mark.
func (m StoreMark) valid() bool { return m.Run != uuid.Nil && m.Base >= 0 && m.Count > m.Base }

// Forks reports whether two marks of reports prove that one store was on two branches: each of two runs went on from
// before where the other had come to. Within one run the same count under two report ids is the proof.
func (m StoreMark) Forks(other StoreMark) bool {
	return m.Run != other.Run && m.Count > other.Base && other.Count > m.Base
}

// Behind reports whether the store that m is the present mark of is older than a mark that was reported from it.
func (m StoreMark) Behind(reported StoreMark) bool {
	if m.Run == reported.Run {
		return reported.Count > m.Count
	}
	return reported.Count > m.Base
}
