// Package report makes the report of a period for people: who rotated when, who did not, what was refused, what admins
// did, and what can be said of the log's integrity. It is pure: events in, a page of HTML and a CSV out.
package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/protocol"
)

// Period is from From on and before To, in UTC.
type Period struct{ From, To time.Time }

func (p Period) has(t time.Time) bool { return !t.Before(p.From) && t.Before(p.To) }

// The states of a rotation at the end of a period, beside those that are actions of the log.
const (
	stateOpen = "open"
	stateDone = "done"
)

// Rotation is what the log tells of one rotation until the end of the period. Version, Path and Source are empty where
// the detail that named them was redacted.
type Rotation struct {
	ID, User, Path, Version, Source string
	// Begun is when its notification was accepted, Ended zero while it is open; State says how it ended.
	Begun, Ended time.Time
	State        string
	// Deliveries counts its targets by their last outcome.
	Deliveries map[string]int

	last    time.Time
	targets map[string]string
}

// User is one who rotated, or should have.
type User struct {
	ID string
	// Managed is how many managed devices he has at the end of the period.
	Managed int
	// Done is how many of his rotations were done in the period, and Last when the newest was, in the period or before.
	Done int
	Last time.Time
	// Open is the state of his newest rotation where it is not done, empty for none.
	Open string
}

// Act is an event as the report lists it; Why is the reason in its detail.
type Act struct {
	Time                                 time.Time
	Actor, Action, Subject, Outcome, Why string
}

// Facts are what the log tells of a period.
type Facts struct {
	Period
	// Events is how many there are in the period, and Redacted how many of them have no detail any more.
	Events, Redacted int
	// Rotated and NotRotated are the users with and without a rotation that was done in the period.
	Rotated, NotRotated []User
	// Rotations are those with an event in the period, oldest first.
	Rotations []Rotation
	// Refused, Admin and Reads are events of the period in their order; Reads are those who read or exported the log.
	Refused, Admin, Reads []Act
	// done and failed are when rotations ended so, for the picture.
	done, failed []time.Time
}

// lateReports is for how long after its end a rotation is remembered for reports that come late.
const lateReports = 30 * 24 * time.Hour

type collector struct {
	Facts
	rotations map[string]*Rotation
	users     map[string]*User
	devices   map[string]bool
	pruned    int
}

// Collect reads the log from its begin, since who has a managed device is told by events of before the period. Events
// that are after it change nothing. Its memory grows with users, devices and the rotations of the period.
func Collect(rows iter.Seq2[audit.Record, error], period Period) (Facts, error) {
	c := &collector{Facts: Facts{Period: period}, rotations: map[string]*Rotation{}, users: map[string]*User{}, devices: map[string]bool{}}
	for record, err := range rows {
		if err != nil {
			return Facts{}, err
		}
		fields, err := audit.ParseBody(record.Body)
		if err != nil {
			return Facts{}, fmt.Errorf("event %s is not as keyherald wrote it (see `keyherald audit verify`): %w", record.ID, err)
		}
		if fields.Time.Before(period.To) {
			c.take(fields, record)
		}
	}
	return c.finish(), nil
}

// details are what of a detail the report shows.
type details struct {
	Path, Version, Outcome, Refusal, Error, Reason string
	KMSVersion                                     string `json:"kms_version"`
}

func (c *collector) take(fields audit.Fields, record audit.Record) {
	var d details
	// What is not as expected is shown empty: the report is no verifier.
	_ = json.Unmarshal(record.Detail, &d)
	now := c.has(fields.Time)
	if now {
		c.Events++
		if record.Detail == nil {
			c.Redacted++
		}
		c.act(fields, d)
	}
	c.device(fields)
	if fields.Rotation != "" {
		c.rotation(fields, d, now)
	}
}

// act sorts an event of the period into the lists.
func (c *collector) act(fields audit.Fields, d details) {
	act := Act{fields.Time, fields.Actor, string(fields.Action), fields.Subject, string(fields.Outcome), cmp.Or(d.Refusal, d.Error, d.Reason)}
	switch {
	case fields.Action == audit.LogRead || fields.Action == audit.LogExported:
		c.Reads = append(c.Reads, act)
	case fields.Outcome == audit.Refused:
		c.Refused = append(c.Refused, act)
	case strings.HasPrefix(fields.Actor, "local:"), strings.HasPrefix(fields.Actor, "admin:"):
		c.Admin = append(c.Admin, act)
	}
}

func (c *collector) user(id string) *User {
	if c.users[id] == nil {
		c.users[id] = &User{ID: id}
	}
	return c.users[id]
}

// device follows who has managed devices; the subject is "@user:server/device".
func (c *collector) device(fields audit.Fields) {
	switch {
	case fields.Action == audit.DeviceEnrolled && fields.Outcome == audit.Accepted && !c.devices[fields.Subject]:
		c.devices[fields.Subject] = true
	case (fields.Action == audit.DeviceRevoked && fields.Outcome == audit.Accepted || fields.Action == audit.DeviceWentBack || fields.Action == audit.DeviceNeedsEnrollment) && c.devices[fields.Subject]:
		c.devices[fields.Subject] = false
	default:
		return
	}
	user, _, _ := strings.Cut(fields.Subject, "/")
	if c.devices[fields.Subject] {
		c.user(user).Managed++
	} else {
		c.user(user).Managed--
	}
}

// ends are the actions that end a rotation, with the state they leave it in.
var ends = map[audit.Action]string{
	audit.RotationDone: stateDone, audit.RotationFailed: "failed", audit.RotationSuperseded: "superseded",
	audit.RotationTimedOut: "timed out", audit.RotationCancelled: "cancelled",
}

// waits are the actions after which a rotation is open and waits.
var waits = map[audit.Action]string{
	audit.RotationWaiting: "waiting for enrollment", audit.RotationHeld: "held", audit.RotationReleased: stateOpen, audit.RotationRetried: stateOpen,
}

func (c *collector) rotation(fields audit.Fields, d details, now bool) {
	r := c.rotations[fields.Rotation]
	if r == nil {
		r = &Rotation{ID: fields.Rotation, State: stateOpen, targets: map[string]string{}}
		c.rotations[fields.Rotation] = r
		c.prune()
	}
	if now || r.last.IsZero() {
		r.last = fields.Time
	}
	if user, _, _ := strings.Cut(fields.Subject, "/"); r.User == "" && strings.HasPrefix(user, "@") && fields.Action != audit.TriggerSent {
		r.User = user
	}
	switch fields.Action {
	case audit.NotificationAccepted, audit.ChangeFound, audit.RotationAsked:
		if r.Begun.IsZero() && fields.Outcome == audit.Accepted {
			r.Begun, r.Path, r.Version, r.Source = fields.Time, d.Path, d.Version, strings.TrimPrefix(fields.Actor, "source:")
		}
	case audit.ProgressReported:
		// The version of a key that the device made itself is known when it wrote it.
		r.Version = cmp.Or(r.Version, d.KMSVersion)
	case audit.DeliveryReported:
		_, device, _ := strings.Cut(fields.Subject, "/")
		if d.Outcome != "" {
			r.targets[device] = d.Outcome
		}
	}
	if fields.Outcome == audit.Refused {
		return // an admin asked for it, and was told no
	}
	if state, ok := ends[fields.Action]; ok {
		r.State, r.Ended = state, fields.Time
		c.ended(r, now)
	} else if state, ok := waits[fields.Action]; ok {
		r.State, r.Ended = state, time.Time{}
	}
}

func (c *collector) ended(r *Rotation, now bool) {
	if r.State == stateDone && r.User != "" {
		user := c.user(r.User)
		user.Last = r.Ended
		if now {
			user.Done++
		}
	}
	switch {
	case now && r.State == stateDone:
		c.done = append(c.done, r.Ended)
	case now && (r.State == "failed" || r.State == "timed out"):
		c.failed = append(c.failed, r.Ended)
	}
}

// prune forgets, now and then, rotations that ended long before the period.
func (c *collector) prune() {
	if len(c.rotations) < c.pruned+10_000 {
		return
	}
	maps.DeleteFunc(c.rotations, func(_ string, r *Rotation) bool {
		return !r.Ended.IsZero() && r.Ended.Before(c.From.Add(-lateReports))
	})
	c.pruned = len(c.rotations)
}

func (c *collector) finish() Facts {
	for _, r := range c.rotations {
		if r.User != "" {
			c.user(r.User)
		}
		if !c.has(r.last) && !r.Ended.IsZero() {
			continue
		}
		r.Deliveries = map[string]int{}
		for _, outcome := range r.targets {
			r.Deliveries[outcome]++
		}
		c.Rotations = append(c.Rotations, *r)
	}
	slices.SortFunc(c.Rotations, func(a, b Rotation) int { return cmp.Or(a.Begun.Compare(b.Begun), cmp.Compare(a.ID, b.ID)) })
	for _, r := range c.Rotations {
		if user := c.users[r.User]; user != nil {
			user.Open = ""
			if r.State != stateDone {
				user.Open = r.State
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.users)) {
		switch user := *c.users[id]; {
		case user.Done > 0:
			c.Rotated = append(c.Rotated, user)
		case user.Managed > 0 || user.Open != "":
			c.NotRotated = append(c.NotRotated, user)
		}
	}
	return c.Facts
}

// sent counts the targets a key was sent to; others had another outcome.
func (r Rotation) sent() (sent, adopted, others int) {
	for outcome, n := range r.Deliveries {
		switch protocol.Outcome(outcome) {
		case protocol.OutcomeSent:
			sent += n
		case protocol.OutcomeAdopted:
			adopted += n
		default:
			others += n
		}
	}
	return sent, adopted, others
}
