package verify

import (
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
)

// loss is an accepted loss, with which an epoch begins.
type loss struct {
	place
	epoch         uint64
	survivingSize uint64
	survivingRoot hash
	// remembered is the newest checkpoint that had been published.
	rememberedEpoch, rememberedSize uint64
	rememberedRoot                  hash
	reason                          string
}

// lossDetail is the detail of audit.loss_accepted. It may have further fields.
type lossDetail struct {
	Epoch            *uint64 `json:"epoch"`
	SurvivingSize    *uint64 `json:"surviving_size"`
	SurvivingRoot    *string `json:"surviving_root"`
	RememberedSize   *uint64 `json:"remembered_size"`
	RememberedRoot   *string `json:"remembered_root"`
	RememberedOrigin *string `json:"remembered_origin"`
	Reason           string  `json:"reason"`
}

func parseLoss(detail []byte, name string) (loss, error) {
	var d lossDetail
	if err := json.Unmarshal(detail, &d); err != nil {
		return loss{}, fmt.Errorf("its detail cannot be read: %s", oneLine(err))
	}
	if d.Epoch == nil || d.SurvivingSize == nil || d.SurvivingRoot == nil || d.RememberedSize == nil || d.RememberedRoot == nil || d.RememberedOrigin == nil {
		return loss{}, errors.New("its detail does not name the gap: epoch, surviving_size, surviving_root, remembered_size, remembered_root and remembered_origin are needed")
	}
	lost := loss{epoch: *d.Epoch, survivingSize: *d.SurvivingSize, rememberedSize: *d.RememberedSize, reason: d.Reason}
	var ok bool
	if lost.rememberedEpoch, ok = epochOf(*d.RememberedOrigin, name); !ok {
		return loss{}, fmt.Errorf("its remembered_origin %s is not one of this log", quoted(*d.RememberedOrigin))
	}
	if !decodeHash(&lost.rememberedRoot, base64.StdEncoding, *d.RememberedRoot) || !decodeHash(&lost.survivingRoot, base64.StdEncoding, *d.SurvivingRoot) {
		return loss{}, errors.New("its surviving_root or remembered_root is not the base64 of 32 bytes")
	}
	return lost, nil
}

// checkLoss compares what a loss says with the log before it.
func (w *walk) checkLoss(lost *loss, wrong func(format string, args ...any)) error {
	epoch := uint64(1)
	if len(w.losses) > 0 {
		epoch = w.losses[len(w.losses)-1].epoch
	}
	// Where the database went back to before an earlier loss was accepted, that event is lost too: the remembered
	// checkpoint tells of its epoch, which is then passed over.
	if want := max(epoch, lost.rememberedEpoch) + 1; lost.epoch != want {
		wrong("it begins epoch %d where epoch %d would come next", lost.epoch, want)
	}
	if lost.survivingSize != lost.index {
		wrong("it says that %d events survived and is itself event %d: an epoch begins right after what survived", lost.survivingSize, lost.index)
		return nil
	}
	here, err := w.tree.roots()
	if err != nil {
		return fmt.Errorf("computing the root of %d events: %w", lost.index, err)
	}
	if here.recomputed != lost.survivingRoot {
		wrong("the root of the %d events before it is not the surviving_root that it names", lost.index)
	}
	return nil
}

// segment is an epoch of the log: its leaves from begin to end, end not included. The first one has no loss.
type segment struct {
	epoch, begin, end uint64
	loss              *loss
}

// segments cuts a log of size leaves at the losses.
func segments(losses []loss, size uint64) []segment {
	cut := []segment{{epoch: 1}}
	for i := range losses {
		cut[len(cut)-1].end = losses[i].index
		cut = append(cut, segment{epoch: losses[i].epoch, begin: losses[i].index, loss: &losses[i]})
	}
	cut[len(cut)-1].end = size
	return cut
}

// standing is what a checkpoint of some epoch and size is to a log.
type standing int

const (
	// within: the log has these leaves, and the root can be compared.
	within standing = iota
	// beforeItsEpoch: its size is of before the epoch that it names began.
	beforeItsEpoch
	// lostDeclared: the leaves are lost, and an accepted loss says so.
	lostDeclared
	// lostUndeclared: the leaves are lost, and the accepted loss says that less was.
	lostUndeclared
	// beyond: the log ends before.
	beyond
	// laterEpoch: the log has not come to that epoch.
	laterEpoch
)

// stand is pure: where a checkpoint stands in a log of these segments. The segment is the one whose loss lost it, where
// one did.
func stand(epoch, size uint64, log []segment) (standing, segment) {
	for i, s := range log {
		if s.epoch < epoch && i < len(log)-1 {
			continue
		}
		switch {
		case s.epoch < epoch:
			return laterEpoch, s
		case s.epoch == epoch && epoch > 1 && size <= s.begin:
			return beforeItsEpoch, s
		case s.epoch == epoch && size <= s.end:
			return within, s
		case s.epoch == epoch && i == len(log)-1:
			return beyond, s
		}
		// What comes after it in the log is of a later epoch.
		if s.epoch == epoch {
			s = log[i+1]
		} else if size <= s.begin {
			// Its own epoch was lost as a whole, but not these leaves.
			return within, s
		}
		if epoch < s.loss.rememberedEpoch || epoch == s.loss.rememberedEpoch && size <= s.loss.rememberedSize {
			return lostDeclared, s
		}
		return lostUndeclared, s
	}
	return laterEpoch, segment{}
}

// gap says in words what an accepted loss lost.
func (l *loss) gap(name string) string {
	remembered := fmt.Sprintf("%s size %d", originOf(name, l.rememberedEpoch), l.rememberedSize)
	if l.rememberedSize > l.survivingSize {
		return fmt.Sprintf("epoch %d begins here: events %d to %d of before are lost (the newest checkpoint that had been published is %s), reason %q",
			l.epoch, l.survivingSize, l.rememberedSize-1, remembered, l.reason)
	}
	return fmt.Sprintf("epoch %d begins here: the log had diverged from the newest checkpoint that had been published, %s, reason %q", l.epoch, remembered, l.reason)
}
