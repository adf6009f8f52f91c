package device

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// wayOut is what people have to do with a store that went back.
const wayOut = "this account's store went back to an earlier state (a restored snapshot or backup, or a copy) and is not used any more: " +
	"move it (its .db file and those beside it with the same name) away, log its old device out of the user's account, " +
	"and enroll again with a new code, which logs in as a new device"

// standstill is the journal's mark of a store that went back. Rotation and Attempt are of the trigger that showed it,
// if it was one; Told means that the server knows.
type standstill struct {
	Rotation uuid.UUID `json:"rotation"`
	Attempt  int       `json:"attempt"`
	Told     bool      `json:"told"`
}

func (s *store) standstill(ctx context.Context) (still standstill, is bool, err error) {
	text, err := s.get(ctx, "went_back")
	if err != nil || text == "" {
		return still, false, err
	}
	if err := json.Unmarshal([]byte(text), &still); err != nil {
		return still, false, fmt.Errorf("reading why the account stands still: %w", err)
	}
	return still, true, nil
}

func (s *store) setStandstill(ctx context.Context, still standstill) error {
	encoded, err := json.Marshal(still)
	if err != nil {
		return fmt.Errorf("keeping why the account stands still: %w", err)
	}
	return s.set(ctx, "went_back", string(encoded))
}

// counted is how many reports and statuses this store has counted.
func (s *store) counted(ctx context.Context) (int64, error) {
	text, err := s.get(ctx, "reports")
	if err != nil || text == "" {
		return 0, err
	}
	count, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading how many reports there were: %w", err)
	}
	return count, nil
}

// beginRun draws the mark of this use of the store.
func (a *Account) beginRun(ctx context.Context) error {
	base, err := a.store.counted(ctx)
	if err != nil {
		return err
	}
	run, err := uuid.NewRandom()
	if err != nil {
		return fmt.Errorf("drawing a run's id: %w", err)
	}
	a.run = protocol.StoreMark{Run: run, Base: base}
	return nil
}

// mark is the present mark of the store.
func (a *Account) mark(ctx context.Context) (protocol.StoreMark, error) {
	mark := a.run
	var err error
	mark.Count, err = a.store.counted(ctx)
	return mark, err
}

// nextMark counts a report, in the transaction that queues it.
func (a *Account) nextMark(ctx context.Context) (*protocol.StoreMark, error) {
	mark, err := a.mark(ctx)
	if err != nil {
		return nil, err
	}
	mark.Count++
	return &mark, a.store.set(ctx, "reports", strconv.FormatInt(mark.Count, 10))
}

// standStill stops the account for good, within InTxn: nothing of this store is acted on or sent to anybody any more.
// Its Olm ratchets may have been used already, so no word leaves through them either; see confess.
func (a *Account) standStill(ctx context.Context, still standstill) error {
	p, err := a.pin(ctx)
	if err != nil {
		return err
	}
	p.Accepted = false
	if err := a.setPin(ctx, p); err != nil {
		return err
	}
	if err := a.store.setStandstill(ctx, still); err != nil {
		return err
	}
	a.log.Error().Msg("The account stops: " + wayOut)
	return a.endAll(ctx, string(protocol.StoreWentBackwards))
}

// confess tells the server why the account stands still, through an Olm session that begins with it: a fresh session
// has no past that the store could have forgotten.
func (a *Account) confess(ctx context.Context) error {
	still, is, err := a.store.standstill(ctx)
	if err != nil || !is || still.Told {
		return err
	}
	p, err := a.pin(ctx)
	if err != nil {
		return err
	}
	bot, err := a.bot(ctx, p)
	if err != nil {
		return err
	}
	claims, err := a.endpoint.Claim(ctx, true, bot)
	if err != nil {
		return err
	}
	if _, ok := claims[bot.IdentityKey]; !ok {
		return fmt.Errorf("telling the server that the store went back: %w", todevice.ErrNoOneTimeKey)
	}
	reportID, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("making a report id: %w", err)
	}
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		mark, err := a.nextMark(ctx)
		if err != nil {
			return err
		}
		still.Told = true
		if err := a.store.setStandstill(ctx, still); err != nil {
			return err
		}
		return a.endpoint.Queue(ctx, todevice.Outgoing{Key: "went_back/" + reportID.String(), To: bot, Type: protocol.TypeProgress.Type, Content: protocol.Progress{
			ReportID: reportID, RotationID: still.Rotation, Attempt: still.Attempt, Stage: protocol.StageRejected,
			Error: &protocol.ErrorReport{Code: protocol.StoreWentBackwards}, Store: mark, At: protocol.At(a.now())}}, claims)
	})
}
