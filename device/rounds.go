package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/protocol"
)

// cause is why the key of a version is pushed again.
type cause string

// The causes. Clients lose a push when their own read of the version fails, so all of them get another one after a
// while; what was not a target then, or may have lost what it had, gets it when that is seen; and the server may ask.
const (
	causeRepeat     cause = "repeat"
	causeVerified   cause = "verified"
	causeNewSession cause = "new_session"
	causeRequest    cause = "request"
)

// round is one more push of a version's key, encrypted anew. Targets is nil for all of the user's devices.
type round struct {
	Version  string
	Round    int
	Cause    cause
	Rotation uuid.UUID
	Attempt  int
	Targets  []id.DeviceID
	Plan     []protocol.Delivery
	Due      time.Time
	Tries    int
}

// againKey names a push of a round for good; those of the rotation itself are roundKey's.
func againKey(r *round, device id.DeviceID, form string) string {
	return fmt.Sprintf("push/%s/again/%d/%s/%s", r.Version, r.Round, device, form)
}

// planRound journals a round, in the caller's transaction, under the next number of its version. One for all targets is
// left out where another one for all is still to come.
func (s *store) planRound(ctx context.Context, r round) error {
	if r.Targets == nil {
		var waiting int
		err := s.db.QueryRow(ctx, `SELECT COUNT(*) FROM push_round WHERE version = $1 AND ended = '' AND targets = '' AND plan = '' AND due <= $2`,
			r.Version, r.Due.UnixMilli()).Scan(&waiting)
		if err != nil {
			return fmt.Errorf("reading the rounds: %w", err)
		}
		if waiting > 0 {
			return nil
		}
	}
	targets := ""
	if r.Targets != nil {
		encoded, err := json.Marshal(r.Targets)
		if err != nil {
			return fmt.Errorf("journaling a round: %w", err)
		}
		targets = string(encoded)
	}
	// The rotation's own push is the first.
	_, err := s.db.Exec(ctx, `INSERT INTO push_round (version, round, cause, rotation_id, attempt, targets, due)
		SELECT $1, COALESCE(MAX(round), 1) + 1, $2, $3, $4, $5, $6 FROM push_round WHERE version = $1`,
		r.Version, r.Cause, r.Rotation.String(), r.Attempt, targets, r.Due.UnixMilli())
	if err != nil {
		return fmt.Errorf("journaling a round: %w", err)
	}
	return nil
}

// rounds lists those that have not ended, in their order.
func (s *store) rounds(ctx context.Context) ([]*round, error) {
	rows, err := s.db.Query(ctx, `SELECT version, round, cause, rotation_id, attempt, targets, plan, due, tries FROM push_round WHERE ended = '' ORDER BY due, round`)
	if err != nil {
		return nil, fmt.Errorf("reading the rounds: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var all []*round
	for rows.Next() {
		r := &round{}
		var rotation, targets, plan string
		var due int64
		err := rows.Scan(&r.Version, &r.Round, &r.Cause, &rotation, &r.Attempt, &targets, &plan, &due, &r.Tries)
		if err == nil {
			r.Due = time.UnixMilli(due)
			r.Rotation, err = uuid.Parse(rotation)
		}
		if err == nil && targets != "" {
			err = json.Unmarshal([]byte(targets), &r.Targets)
		}
		if err == nil && plan != "" {
			err = json.Unmarshal([]byte(plan), &r.Plan)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the rounds: %w", err)
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

func (s *store) keepRound(ctx context.Context, r *round, ended string) error {
	plan := ""
	if r.Plan != nil {
		encoded, err := json.Marshal(r.Plan)
		if err != nil {
			return fmt.Errorf("journaling a round: %w", err)
		}
		plan = string(encoded)
	}
	_, err := s.db.Exec(ctx, `UPDATE push_round SET plan = $3, due = $4, tries = $5, ended = $6 WHERE version = $1 AND round = $2 AND ended = ''`,
		r.Version, r.Round, plan, r.Due.UnixMilli(), r.Tries, ended)
	if err != nil {
		return fmt.Errorf("journaling a round: %w", err)
	}
	return nil
}

// postponeRound has a round tried again when it is due. Its plan stays as it was committed: one that was rolled back has no
// messages in the outbox, and whoever went by it would take them for sent and lost.
func (s *store) postponeRound(ctx context.Context, r *round) error {
	_, err := s.db.Exec(ctx, `UPDATE push_round SET due = $3, tries = $4 WHERE version = $1 AND round = $2 AND ended = ''`, r.Version, r.Round, r.Due.UnixMilli(), r.Tries)
	if err != nil {
		return fmt.Errorf("journaling a round: %w", err)
	}
	return nil
}

// planRepeat plans the repetition that follows every rotation's push.
func (a *Account) planRepeat(ctx context.Context, j *job) error {
	if a.config.Push.RepeatAfter <= 0 {
		return nil
	}
	return a.store.planRound(ctx, round{Version: j.NewVersion, Cause: causeRepeat, Rotation: j.Rotation, Attempt: j.Attempt, Due: a.now().Add(a.config.Push.RepeatAfter)})
}

// lastPush is the rotation whose key is pushed again, with the version it made; ok is false where there is none.
func (a *Account) lastPush(ctx context.Context) (j *job, ok bool, err error) {
	ours, err := a.store.get(ctx, "our_version")
	if err != nil || ours == "" {
		return nil, false, err
	}
	jobs, err := a.store.jobs(ctx, false)
	if err != nil {
		return nil, false, err
	}
	for _, j := range slices.Backward(jobs) {
		if j.NewVersion == ours && j.Stage == protocol.StagePushed {
			return j, true, nil
		}
	}
	return nil, false, nil
}

// again plans a round for these targets of the last push, within a transaction.
func (a *Account) again(ctx context.Context, why cause, targets []id.DeviceID) error {
	j, ok, err := a.lastPush(ctx)
	if err != nil || !ok {
		return err
	}
	return a.store.planRound(ctx, round{Version: j.NewVersion, Cause: why, Rotation: j.Rotation, Attempt: j.Attempt, Targets: targets, Due: a.now()})
}

// began is told, in the transaction of its decryption, that a device of the user began an Olm session.
func (a *Account) began(ctx context.Context, device crosssigning.Device) error {
	j, ok, err := a.lastPush(ctx)
	if err != nil || !ok {
		return err
	}
	// Only who was pushed to may have lost it; who was not is found by newTargets.
	pushed, err := a.wasPushed(ctx, j.NewVersion, device.DeviceID)
	if err != nil || !pushed {
		return err
	}
	result, err := a.store.db.Exec(ctx, `INSERT INTO new_session (device_id, version, day) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
		device.DeviceID, j.NewVersion, a.now().UTC().Format(time.DateOnly))
	if err != nil {
		return fmt.Errorf("journaling a new Olm session: %w", err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return err
	}
	return a.again(ctx, causeNewSession, []id.DeviceID{device.DeviceID})
}

func (a *Account) wasPushed(ctx context.Context, version string, device id.DeviceID) (bool, error) {
	var n int
	err := a.store.db.QueryRow(ctx, `SELECT COUNT(*) FROM todevice_outbox WHERE substr(key, 1, length($1)) = $1 AND recipient_device = $2 AND state <> 'withdrawn'`,
		"push/"+version+"/", device).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("looking for pushes to %s: %w", device, err)
	}
	return n > 0, nil
}

// newTargets plans a round for devices that became targets since the last push: verified later, or let in again. Two
// statuses may be made at once, so what one of them found is looked at again in the transaction that plans, which is
// alone under the Olm state's lock: the other may have planned it meanwhile, and nobody is pushed to twice.
func (a *Account) newTargets(ctx context.Context, identity crosssigning.Identity) error {
	if fresh, err := a.unpushed(ctx, identity); err != nil || len(fresh) == 0 {
		return err
	}
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		fresh, err := a.unpushed(ctx, identity)
		if err != nil || len(fresh) == 0 {
			return err
		}
		return a.again(ctx, causeVerified, fresh)
	})
}

// unpushed are the targets that the last push, once it ended, did not go to, and that no round waits for.
func (a *Account) unpushed(ctx context.Context, identity crosssigning.Identity) (fresh []id.DeviceID, err error) {
	j, ok, err := a.lastPush(ctx)
	if err != nil || !ok || !j.Ended {
		return nil, err
	}
	exclude, err := a.excluded(ctx)
	if err != nil {
		return nil, err
	}
	waiting, err := a.store.rounds(ctx)
	if err != nil {
		return nil, err
	}
	for _, device := range identity.Devices {
		if device.DeviceID == a.client.DeviceID || judgeTarget(device, exclude) != "" {
			continue
		}
		if slices.ContainsFunc(waiting, func(r *round) bool { return r.Version == j.NewVersion && slices.Contains(r.Targets, device.DeviceID) }) {
			continue
		}
		if pushed, err := a.wasPushed(ctx, j.NewVersion, device.DeviceID); err != nil {
			return nil, err
		} else if !pushed {
			fresh = append(fresh, device.DeviceID)
		}
	}
	slices.Sort(fresh)
	return fresh, nil
}

// excluded are the devices that get no key, by any push, repetition or answer: the last accepted trigger says which.
func (a *Account) excluded(ctx context.Context) ([]id.DeviceID, error) {
	text, err := a.store.get(ctx, "exclude")
	if err != nil || text == "" {
		return nil, err
	}
	var exclude []id.DeviceID
	if err := json.Unmarshal([]byte(text), &exclude); err != nil {
		return nil, fmt.Errorf("reading which devices are excluded: %w", err)
	}
	return exclude, nil
}

func (a *Account) setExcluded(ctx context.Context, exclude []id.DeviceID) error {
	encoded, err := json.Marshal(exclude)
	if err != nil {
		return fmt.Errorf("keeping which devices are excluded: %w", err)
	}
	return a.store.set(ctx, "exclude", string(encoded))
}

// PushAgain pushes the key of the last rotation to every target once more, in a round of its own, as a repeat that the
// server asks for does. It returns when the homeserver has taken the pushes and the report of them.
func (a *Account) PushAgain(ctx context.Context) error {
	if _, ok, err := a.lastPush(ctx); err != nil {
		return err
	} else if !ok {
		return errors.New("no key was pushed yet that is the key backup's")
	}
	if err := a.endpoint.InTxn(ctx, func(ctx context.Context) error { return a.again(ctx, causeRequest, nil) }); err != nil {
		return err
	}
	if err := a.pushAgain(ctx); err != nil {
		return err
	}
	_, err := a.endpoint.Flush(ctx, nil)
	return err
}

// pushAgain does the rounds that are due. What fails is tried again, as a rotation is; a round whose version is not the
// current one any more ends, and is never sent.
func (a *Account) pushAgain(ctx context.Context) error {
	rounds, err := a.store.rounds(ctx)
	if err != nil {
		return err
	}
	p, err := a.pin(ctx)
	if err != nil {
		return err
	}
	var all error
	for _, r := range rounds {
		if a.now().Before(r.Due) {
			continue
		}
		err := a.pushRound(ctx, r, p)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var s *stopped
		switch {
		case err == nil:
		case errors.As(err, &s):
			err = errors.Join(err, a.endpoint.InTxn(ctx, func(ctx context.Context) error { return a.endRound(ctx, r, string(s.code)) }))
		default:
			wait := backoff(r.Tries)
			r.Tries, r.Due = r.Tries+1, a.now().Add(wait)
			time.AfterFunc(wait, a.wake)
			err = errors.Join(err, a.store.postponeRound(ctx, r))
		}
		all = errors.Join(all, err)
	}
	return all
}

func (a *Account) pushRound(ctx context.Context, r *round, p pin) error {
	name := func(device id.DeviceID, form string) (string, int, error) {
		return againKey(r, device, form), r.Round, nil
	}
	if r.Plan == nil {
		exclude, err := a.excluded(ctx)
		if err != nil {
			return err
		}
		ready, err := a.prepare(ctx, p, r.Version, exclude, r.Targets)
		if err != nil {
			return err
		}
		// Who is skipped was told with the rotation's own push.
		ready.others = nil
		err = a.endpoint.InTxn(ctx, func(ctx context.Context) error {
			if r.Plan, err = ready.queue(ctx, name); err != nil {
				return err
			}
			return a.store.keepRound(ctx, r, "")
		})
		if err != nil {
			return err
		}
	}
	if _, err := a.endpoint.Flush(ctx, nil); err != nil {
		return err
	}
	if err := a.settle(ctx, r.Plan, name); err != nil {
		return err
	}
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		if err := a.store.keepRound(ctx, r, "pushed"); err != nil || len(r.Plan) == 0 {
			return err
		}
		return a.report(ctx, protocol.Progress{RotationID: r.Rotation, Attempt: r.Attempt, Stage: protocol.StagePushed, Deliveries: r.Plan, Round: r.Round, Cause: string(r.Cause)})
	})
}

// endRound ends a round within InTxn; what the homeserver is not known to have of it is withdrawn.
func (a *Account) endRound(ctx context.Context, r *round, why string) error {
	for _, delivery := range r.Plan {
		var keys []string
		for _, form := range delivery.Forms {
			keys = append(keys, againKey(r, delivery.DeviceID, form))
		}
		if _, err := a.endpoint.Withdraw(ctx, keys); err != nil {
			return err
		}
	}
	return a.store.keepRound(ctx, r, why)
}

// endRounds ends every round, within InTxn.
func (a *Account) endRounds(ctx context.Context, why string) error {
	rounds, err := a.store.rounds(ctx)
	if err != nil {
		return err
	}
	for _, r := range rounds {
		if err := a.endRound(ctx, r, why); err != nil {
			return err
		}
	}
	return nil
}
