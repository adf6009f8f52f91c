//go:build !sabotage

// Package sabotage is the faults that the programs have on purpose when they are built with -tags sabotage, to prove
// that `make chaos` finds such faults. In every other build nothing is left of it.
package sabotage

// The faults.
const (
	AckBeforeCommit = false
	EncryptAgain    = false
	EventLeftOut    = false
	CarryBelieved   = false
	CatchUpLeftOut  = false
)
