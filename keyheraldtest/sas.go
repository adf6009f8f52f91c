package keyheraldtest

import (
	"context"
	"sync"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/verificationhelper"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// SAS is mautrix's own verification by emoji, with what it told its person so far.
type SAS struct {
	*verificationhelper.VerificationHelper

	mu        sync.Mutex // guards the rest
	requested []id.VerificationTransactionID
	ready     map[id.VerificationTransactionID]bool
	shown     map[id.VerificationTransactionID]Shown
	done      map[id.VerificationTransactionID]bool
	cancelled map[id.VerificationTransactionID]event.VerificationCancelCode
}

// Shown is what the client shows to be compared.
type Shown struct {
	Emoji    []string
	Decimals []int
}

// noCrypto stands where the helper asks whether its client can encrypt in rooms; it never has it encrypt.
type noCrypto struct{ mautrix.CryptoHelper }

// verifies prepares the client for verifications, before its sync begins.
func (c *Client) verifies(ctx context.Context) error {
	c.SAS = &SAS{ready: map[id.VerificationTransactionID]bool{}, shown: map[id.VerificationTransactionID]Shown{},
		done: map[id.VerificationTransactionID]bool{}, cancelled: map[id.VerificationTransactionID]event.VerificationCancelCode{}}
	c.Crypto = noCrypto{}
	c.SAS.VerificationHelper = verificationhelper.NewVerificationHelper(c.Client, c.Machine, nil, c.SAS, false, false, true)
	c.Crypto = nil
	return c.SAS.Init(ctx)
}

// VerificationRequested implements mautrix's callbacks, as do the following.
func (s *SAS) VerificationRequested(_ context.Context, txn id.VerificationTransactionID, _ id.UserID, _ id.DeviceID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requested = append(s.requested, txn)
}

// VerificationReady implements the callbacks.
func (s *SAS) VerificationReady(_ context.Context, txn id.VerificationTransactionID, _ id.DeviceID, _, _ bool, _ *verificationhelper.QRCode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready[txn] = true
}

// VerificationCancelled implements the callbacks.
func (s *SAS) VerificationCancelled(_ context.Context, txn id.VerificationTransactionID, code event.VerificationCancelCode, _ string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancelled[txn] = code
}

// VerificationDone implements the callbacks.
func (s *SAS) VerificationDone(_ context.Context, txn id.VerificationTransactionID, _ event.VerificationMethod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done[txn] = true
}

// ShowSAS implements the callbacks.
func (s *SAS) ShowSAS(_ context.Context, txn id.VerificationTransactionID, _ []rune, names []string, decimals []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shown[txn] = Shown{names, decimals}
}

// Requested are the verifications that others asked for.
func (s *SAS) Requested() []id.VerificationTransactionID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]id.VerificationTransactionID(nil), s.requested...)
}

// State is how far a verification is: what is shown for it, if anything is, and its end.
func (s *SAS) State(txn id.VerificationTransactionID) (ready bool, shown Shown, done bool, cancelled event.VerificationCancelCode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready[txn], s.shown[txn], s.done[txn], s.cancelled[txn]
}
