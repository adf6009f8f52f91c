package todevice

import "time"

// Verdict is what the homeserver's word means for a request that is no to-device message, by the rules of the outbox.
type Verdict struct {
	// Refusal, if not empty, is for good.
	Refusal string
	// Again is to be tried after Wait.
	Again bool
	Wait  time.Duration
	// Pause means that the homeserver takes nothing for this while, Silent that it gave no answer: what was asked for may
	// have been done.
	Pause, Silent bool
}

// Judge reads the outcome of a request after so many tries, 1 or more; nil is taken.
func Judge(err error, tries int) Verdict {
	a := judge(err, tries)
	return Verdict{Refusal: a.refusal, Again: a.again, Wait: a.wait, Pause: a.pause, Silent: a.silent}
}
