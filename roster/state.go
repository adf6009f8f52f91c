package roster

import (
	"cmp"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// State is where a user of the roster stands. Everybody is in exactly one.
type State string

// The states, in the order in which the rules are asked.
const (
	Exempt         State = "exempt"
	NotCovered     State = "not_covered"
	NeedsAttention State = "needs_attention"
	Unknown        State = "unknown"
	InProgress     State = "in_progress"
	Overdue        State = "overdue"
	Current        State = "current"
)

// States are all of them.
func States() []State {
	return []State{Exempt, NotCovered, NeedsAttention, Unknown, InProgress, Overdue, Current}
}

// Facts are what is known of one user of the roster, from one look at the database.
type Facts struct {
	Entry Entry `json:"entry"`
	// Devices are how many managed devices there are, by their states.
	Devices Devices `json:"devices"`
	// Status is the newest status of the user's enrolled devices; its At is zero where none came.
	Status Status `json:"status"`
	// Key is the version that Status names; its Since is zero where it names none.
	Key Key `json:"key"`
	// Open is an open rotation, one that needs somebody before others; its ID is zero where there is none.
	Open Rotation `json:"open"`
	// Last is the newest rotation, open or ended, that was neither superseded nor cancelled.
	Last Rotation `json:"last"`
}

// Devices counts a user's managed devices.
type Devices struct {
	Enrolled        int `json:"enrolled"`
	NeedsEnrollment int `json:"needs_enrollment"`
	Revoked         int `json:"revoked"`
}

// Status is what matters here of what a device said of itself.
type Status struct {
	At            time.Time          `json:"at"`
	BackupVersion string             `json:"backup_version"`
	HoldsKey      bool               `json:"holds_key"`
	Drift         protocol.DriftKind `json:"drift"`
}

// Key is a key-backup version: when it was created, or first seen where nobody told of its creation.
type Key struct {
	Since    time.Time `json:"since"`
	OnlySeen bool      `json:"only_seen"`
}

// KeyCreated is when a key-backup version was created, of which a device tells by its own clock: told, if that is between the
// rotation's begin and now. A clock that says otherwise is wrong, and the report's arrival is taken.
func KeyCreated(told, begun, now time.Time) time.Time {
	if told.Before(begun) || told.After(now) {
		return now
	}
	return told
}

// Rotation is what matters here of a rotation.
type Rotation struct {
	ID         uuid.UUID          `json:"id"`
	State      rotation.State     `json:"state"`
	Held       bool               `json:"held"`
	HeldFor    rotation.Hold      `json:"held_for"`
	Attention  protocol.ErrorCode `json:"attention"`
	Failure    protocol.ErrorCode `json:"failure"`
	NextAction string             `json:"next_action"`
}

// Config is what the rules go by.
type Config struct {
	// StatusInterval is how often a device sends a status; default one hour, as the devices' own (status_interval).
	StatusInterval time.Duration
	// ToldOnce is for how long a status that says nothing new is left out of what Facts are from; 0 for the database, which
	// has them all.
	ToldOnce time.Duration
}

// silence is for how many intervals no status came until nothing is known of a user any more.
const silence = 3

// Silence is for how long no status may have come.
func (c Config) Silence() time.Duration {
	interval := c.StatusInterval
	if interval <= 0 {
		interval = time.Hour
	}
	return silence*interval + c.ToldOnce
}

// Standing is where a user stands, why, and what is to be done about it.
type Standing struct {
	UserID id.UserID `json:"user_id"`
	State  State     `json:"state"`
	// Cause and NextAction are empty where nothing is to be done.
	Cause      Cause  `json:"cause,omitempty"`
	NextAction string `json:"next_action,omitempty"`
	// Rotation is the one that the state is about.
	Rotation uuid.UUID `json:"rotation,omitzero"`
	// KeySince is when the current key-backup version was created, or first seen where OnlySeen. It is zero where that is not
	// known, and there is no key age then.
	KeySince time.Time `json:"key_since,omitzero"`
	OnlySeen bool      `json:"only_seen,omitempty"`
	// PastMaxAge says that the key is older than the user's policy allows, in whatever state he is for it.
	PastMaxAge bool `json:"past_max_age,omitempty"`
	// LastStatus is when an enrolled device last sent one.
	LastStatus time.Time `json:"last_status,omitzero"`
	// Exemption is there where the state is Exempt.
	Exemption Exemption `json:"exemption,omitzero"`
}

// Classify puts a user into exactly one state. maxAge is how old his key may be, with every grace in it; zero is no bound.
//
// The order is that of docs/enforcement.md: what an admin decided; then whether anybody can act for the user at all; then what
// waits for a person, since nothing else will move it; then whether what follows would rest on what a device said long ago;
// then what is under way; and what the newest status says last.
func (c Config) Classify(facts Facts, maxAge time.Duration, now time.Time) Standing {
	standing := Standing{UserID: facts.Entry.UserID, KeySince: facts.Key.Since, OnlySeen: facts.Key.OnlySeen, LastStatus: facts.Status.At}
	standing.PastMaxAge = maxAge > 0 && !facts.Key.Since.IsZero() && now.Sub(facts.Key.Since) > maxAge
	is := func(state State, cause Cause, of Rotation, nextAction string) Standing {
		standing.State, standing.Cause, standing.Rotation, standing.NextAction = state, cause, of.ID, nextAction
		if nextAction == "" {
			standing.NextAction = NextAction(cause)
		}
		return standing
	}
	open, last, status := facts.Open, facts.Last, facts.Status
	none := Rotation{}
	switch {
	case facts.Entry.Exemption.At(now):
		standing.Exemption = facts.Entry.Exemption
		return is(Exempt, "", none, "")

	case facts.Devices.Enrolled == 0 && open.Attention == protocol.StoreWentBackwards:
		return is(NotCovered, Cause(open.Attention), open, open.NextAction)
	case facts.Devices.Enrolled == 0 && facts.Devices.NeedsEnrollment > 0:
		return is(NotCovered, DeviceNeedsEnrollment, open, "")
	case facts.Devices.Enrolled == 0 && facts.Devices.Revoked > 0:
		return is(NotCovered, DeviceRevoked, open, "")
	case facts.Devices.Enrolled == 0:
		return is(NotCovered, NeverEnrolled, open, "")

	case open.Attention != "":
		return is(NeedsAttention, Cause(open.Attention), open, open.NextAction)
	case open.Held && open.HeldFor != rotation.HoldLogUnsigned && open.HeldFor != rotation.HoldWindow:
		return is(NeedsAttention, HeldForRelease, open, open.NextAction)
	case open.ID == uuid.Nil && last.State == rotation.Failed:
		return is(NeedsAttention, cmp.Or(Cause(last.Failure), RotationFailed), last, nextActionOf(RotationFailed))
	case open.ID == uuid.Nil && last.State == rotation.TimedOut:
		return is(NeedsAttention, RotationTimedOut, last, "")

	case status.At.IsZero():
		return is(Unknown, NoStatusYet, open, "")
	case now.Sub(status.At) > c.Silence():
		return is(Unknown, DeviceSilent, open, "")

	case open.ID != uuid.Nil && open.Held && open.HeldFor == rotation.HoldWindow:
		return is(InProgress, HeldForWindow, open, open.NextAction)
	case open.ID != uuid.Nil && open.Held:
		return is(InProgress, HeldForSigning, open, open.NextAction)
	case open.ID != uuid.Nil:
		return is(InProgress, "", open, "")

	case status.Drift != "":
		return is(NeedsAttention, Cause(status.Drift), last, "")
	case status.BackupVersion == "":
		return is(NeedsAttention, NoKeyBackup, last, "")
	case !status.HoldsKey:
		return is(NeedsAttention, KeyNotHeld, last, "")

	case maxAge > 0 && facts.Key.Since.IsZero():
		return is(Overdue, AgeUnknown, last, "")
	case standing.PastMaxAge:
		return is(Overdue, PastMaxAge, last, "")
	}
	return is(Current, "", last, "")
}
