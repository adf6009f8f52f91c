package notice

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// Status is how things stand, as the admin room is told: what somebody may have to act on, and nothing that changes with
// every rotation.
type Status struct {
	// Attention counts the open rotations that need somebody, by cause.
	Attention map[string]int `json:"attention,omitempty"`
	Held      int            `json:"held,omitempty"`
	// Failed counts the rotations that came to nothing.
	Failed int `json:"failed,omitempty"`
	// NeedEnrollment counts the managed devices that are not trusted any more.
	NeedEnrollment int `json:"need_enrollment,omitempty"`
	// Reenrollments counts those of them that asked to be enrolled again, and wait for an admin.
	Reenrollments int `json:"reenrollments,omitempty"`
	// Frozen is who stopped all triggers, empty while they go.
	Frozen string `json:"frozen,omitempty"`
	// Unsigned is set where events of the audit log have waited too long for the signer.
	Unsigned bool `json:"unsigned,omitempty"`
}

// DigestEvery is how long the admin room is left alone after it was told how things stand. Being stopped is told at once.
const DigestEvery = 10 * time.Minute

// UnsignedAfter is for how long an event may wait for its checkpoint until the admin room is told.
const UnsignedAfter = 10 * time.Minute

func (s Status) same(t Status) bool {
	return maps.Equal(s.Attention, t.Attention) && s.Held == t.Held && s.Failed == t.Failed && s.NeedEnrollment == t.NeedEnrollment && s.Reenrollments == t.Reenrollments && s.Frozen == t.Frozen && s.Unsigned == t.Unsigned
}

// Digest is what the admin room is told of how things stand now, if anything, where told is what it was told before. What was
// never told of is measured against a world in which all is well.
func Digest(told, now Status, toldAt, at time.Time) (Text, bool) {
	if told.same(now) || (told.Frozen == now.Frozen && at.Sub(toldAt) < DigestEvery) {
		return Text{}, false
	}
	text := Text{Title: "How things stand"}
	switch {
	case told.Frozen == now.Frozen:
	case now.Frozen != "":
		text.Title = "All triggers are stopped"
		text.Parts = append(text.Parts, Part{Says: "Stopped by " + Foreign(now.Frozen) + ". Notifications are still taken, and wait; keyherald thaw lets triggers go again."})
	default:
		text.Title = "Triggers go again"
	}
	if now.Unsigned != told.Unsigned {
		says := "The audit log is signed again."
		if now.Unsigned {
			says = fmt.Sprintf("The audit log has not been signed for %d minutes: the server's readyz page and its log say why. After a day new rotations wait for it.", int(UnsignedAfter.Minutes()))
		}
		text.Parts = append(text.Parts, Part{Says: says})
	}
	for _, count := range []struct {
		says      string
		told, now int
	}{
		{"Rotations that are held: %s. keyherald rotations list --open shows what for, keyherald rotations release lets them go.", told.Held, now.Held},
		{"Rotations that came to nothing, failed or given up after 30 days: %s. keyherald rotations list shows why, keyherald rotations retry begins again.", told.Failed, now.Failed},
		{"Managed devices that must be enrolled again: %s. keyherald devices list shows them. Who asked again waits for a release (keyherald reenrollments list); the others need to be verified, or a code (keyherald enroll).", told.NeedEnrollment, now.NeedEnrollment},
		{"Devices that asked to be enrolled again after an identity reset: %s. Ask each user whether it was he, then keyherald reenrollments release or reject.", told.Reenrollments, now.Reenrollments},
	} {
		if count.told != count.now {
			text.Parts = append(text.Parts, Part{Says: fmt.Sprintf(count.says, moved(count.told, count.now))})
		}
	}
	if part, ok := attention(told.Attention, now.Attention); ok {
		text.Parts = append(text.Parts, part)
	}
	return text, true
}

// attention lists every cause that is there, since each of them is somebody's to mend, if any of them changed.
func attention(told, now map[string]int) (Part, bool) {
	if maps.Equal(told, now) {
		return Part{}, false
	}
	if len(now) == 0 {
		return Part{Says: "No rotation needs attention any more."}, true
	}
	part := Part{Says: "Rotations that need attention; keyherald rotations list --open shows them and what to do:"}
	for _, cause := range slices.Sorted(maps.Keys(now)) {
		what, known := strings.ReplaceAll(cause, "_", " "), slices.ContainsFunc(rotation.Attentions(), func(a rotation.Attention) bool { return string(a.Cause) == cause })
		if !known {
			what = Foreign(cause) // a word of a device of another version
		}
		who, _, _ := strings.Cut(rotation.NextAction(protocol.ErrorCode(cause)), ":")
		part.Items = append(part.Items, fmt.Sprintf("%s: %s, for the %s to mend", what, moved(told[cause], now[cause]), who))
	}
	return part, true
}

func moved(before, now int) string {
	if before == now || before == 0 {
		return number(now)
	}
	return fmt.Sprintf("%d, before %d", now, before)
}

// Started is told when a replica of the server starts.
func Started(version, host string) Text {
	return Text{Title: "Keyherald starts", Parts: []Part{{Says: "Version " + Foreign(version) + " on " + Foreign(host) + "."}}}
}

// Restore is a declared restore of the database. By is the actor as the log shows him, and Since is zero where nothing is
// known from before. Again is what only people can do again.
type Restore struct {
	By, Reason            string
	Since, At             time.Time
	Retriggers, Campaigns int
	Again                 []string
}

// Restored is told when a restore is declared.
func Restored(r Restore) Text {
	known := "Nothing from before " + moment(r.At) + " is known here."
	if !r.Since.IsZero() {
		known = "What happened between " + moment(r.Since) + " and " + moment(r.At) + " is not known here."
	}
	return Text{Title: "The database was restored", Parts: []Part{
		{Says: "Declared by " + Foreign(r.By) + ", for: " + Foreign(r.Reason) + ". " + known},
		{Says: fmt.Sprintf("Rotations under way that are triggered again: %d. Campaigns that were running and are paused: %d.", r.Retriggers, r.Campaigns)},
		{Says: "Do again, where it applies:", Items: r.Again},
	}}
}

func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// Campaign is how a campaign stands when it ended or goes on no more by itself. State and Why are words of the log; Reason is
// what its initiator wrote.
type Campaign struct {
	ID                      string
	State, Why, Reason      string
	Done, Failing, UnderWay int
}

// CampaignMoved is told when a campaign is finished, stopped, paused or aborted.
func CampaignMoved(c Campaign) Text {
	state := Foreign(strings.ReplaceAll(c.State, "_", " "))
	text := Text{Title: "A campaign is " + state}
	says := "Campaign " + Foreign(c.ID) + " is " + state
	if c.Why != "" {
		says += ", since: " + Foreign(strings.ReplaceAll(c.Why, "_", " "))
	}
	says += "."
	if reason := Foreign(c.Reason); reason != "" {
		says += " It was started for: " + reason + "."
	}
	text.Parts = append(text.Parts, Part{Says: says},
		Part{Says: fmt.Sprintf("Done: %d. Failing: %d. Under way: %d. keyherald campaign show tells who is stuck, why, and what to do.", c.Done, c.Failing, c.UnderWay)})
	return text
}
