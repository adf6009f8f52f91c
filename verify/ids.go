package verify

import (
	"hash/maphash"
	"math/bits"
)

// idSet finds event ids that come twice. It keeps 64 bits of a randomly keyed hash of each id; where two ids collide, a
// second look tells. Its memory is bounded: a log too large for it is gone through several times, each time for another
// part of the ids.
type idSet struct {
	seed        maphash.Seed
	part, parts uint64
	slots       []uint64
}

// maxIDSlots are 256 MiB, filled to three quarters.
const maxIDSlots = 1 << 25

// newIDSet makes a set for the ids of a log with so many leaves, of the first of its parts if one is not enough.
func newIDSet(leaves uint64, maxSlots uint64) *idSet {
	s := &idSet{seed: maphash.MakeSeed(), parts: leaves/(maxSlots/16*11) + 1}
	// A sixteenth more than the mean, and some: the hash spreads the ids over the parts whatever they are.
	held := leaves/s.parts + leaves/s.parts/16 + 1024
	s.slots = make([]uint64, min(1<<bits.Len64(held/3*4), maxSlots))
	return s
}

// next turns to the next part, and is false after the last one.
func (s *idSet) next() bool {
	clear(s.slots)
	s.part++
	return s.part < s.parts
}

// add reports whether the id was there already. Ids of other parts are not looked at.
func (s *idSet) add(id eventID) bool {
	sum := max(maphash.Bytes(s.seed, id[:]), 1)
	if s.parts > 1 && (sum>>32)%s.parts != s.part {
		return false
	}
	mask := uint64(len(s.slots) - 1)
	for i := sum & mask; ; i = (i + 1) & mask {
		switch s.slots[i] {
		case 0:
			s.slots[i] = sum
			return false
		case sum:
			return true
		}
	}
}
