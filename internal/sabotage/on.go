//go:build sabotage

// Package sabotage is the faults that the programs have on purpose when they are built with -tags sabotage, to prove
// that `make chaos` finds such faults. In every other build nothing is left of it.
package sabotage

import "os"

// The faults: the environment variable KEYHERALD_SABOTAGE names the one that is on.
var (
	AckBeforeCommit = os.Getenv("KEYHERALD_SABOTAGE") == "ack-before-commit"
	EncryptAgain    = os.Getenv("KEYHERALD_SABOTAGE") == "encrypt-again"
	EventLeftOut    = os.Getenv("KEYHERALD_SABOTAGE") == "event-left-out"
	CarryBelieved   = os.Getenv("KEYHERALD_SABOTAGE") == "carry-believed"
	CatchUpLeftOut  = os.Getenv("KEYHERALD_SABOTAGE") == "catch-up-left-out"
)
