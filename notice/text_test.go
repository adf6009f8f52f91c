package notice_test

import (
	"encoding/xml"
	"regexp"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/notice"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// linked is what clients make a link or a mention of: a scheme, a host's name, an address, a user, a room.
var linked = regexp.MustCompile(`://|www\.|[\p{L}\p{N}_-]\.\p{L}{2,}|[@#!][^ ]`)

func checkText(t *testing.T, text notice.Text) {
	t.Helper()
	plain, html := text.Plain(), text.HTML()
	if found := linked.FindString(plain); found != "" {
		t.Errorf("a client would make something of %q in:\n%s", found, plain)
	}
	decoder := xml.NewDecoder(strings.NewReader("<all>" + html + "</all>"))
	var shown strings.Builder
	for {
		token, err := decoder.Token()
		if token == nil {
			if err.Error() != "EOF" {
				t.Errorf("%v in:\n%s", err, html)
			}
			break
		}
		switch token := token.(type) {
		case xml.StartElement:
			if len(token.Attr) > 0 || !strings.Contains(" all p strong ul li ", " "+token.Name.Local+" ") {
				t.Errorf("the form has <%s %v>", token.Name.Local, token.Attr)
			}
		case xml.CharData:
			shown.Write(token)
		}
	}
	if squeeze(shown.String()) != squeeze(strings.ReplaceAll(plain, "\n- ", "")) {
		t.Errorf("the form says %q and the plain text %q", shown.String(), plain)
	}
}

func squeeze(text string) string { return strings.Join(strings.Fields(text), "") }

func TestForeignTextIsNeitherALinkNorAMentionNorAForm(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"a plain name", "Element X on Pixel 8", "Element X on Pixel 8"},
		{"a version", "Element Desktop 1.11.96 (Linux)", "Element Desktop 1.11.96 (Linux)"},
		{"letters of other scripts", "Телефон Алисы हिन्दी", "Телефон Алисы हिन्दी"},
		{"a link", "https://evil.example/verify?you", "https evil example verify you"},
		{"a host's name", "evil.example", "evil example"},
		{"a host's name with digits", "1.evil", "1 evil"},
		{"a mention of everybody", "@room", "room"},
		{"a user", "@alice:example.org", "alice example org"},
		{"a room", "#admins:example.org", "admins example org"},
		{"a form", "<a href=x>click</a>&amp;", "a href x click a amp"},
		{"markdown", "**[click](x)** `now` _y_", "click (x) now y"},
		{"several lines", "one\ntwo\r\n\tthree", "one two three"},
		{"invisible and turning characters", "al\u200bi\u202ece\u2066", "al i ce"},
		{"a tower of accents", "a" + strings.Repeat("\u0301", 40), "a\u0301\u0301"},
		{"nothing that can be shown", "\x00\u200b🔑", ""},
		{"too much", strings.Repeat("x", 500), strings.Repeat("x", 48) + "…"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := notice.Foreign(test.text); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func FuzzForeignTextIsHarmless(f *testing.F) {
	f.Add("https://evil.example @room <b> 1.2.3")
	f.Fuzz(func(t *testing.T, text string) {
		got := notice.Foreign(text)
		if len([]rune(got)) > 49+2*49 || linked.MatchString(got) || strings.ContainsAny(got, "<>&\"\n@#:/_*`[]") {
			t.Errorf("%q became %q", text, got)
		}
		checkText(t, notice.Text{Title: "x", Parts: []notice.Part{{Says: "y", Items: []string{got}}}})
	})
}

func target(device, name string, outcome protocol.Outcome) notice.Target {
	return notice.Target{DeviceID: id.DeviceID(device), Name: name, Outcome: outcome}
}

func TestAUserIsToldWhatBecameOfHisKey(t *testing.T) {
	sent, unverified := target("PHONE", "Element on Pixel", protocol.OutcomeSent), target("OLDPC", "https://evil.example", protocol.OutcomeSkippedUnverified)
	done := rotation.Facts{State: rotation.Done}
	for _, test := range []struct {
		name    string
		facts   rotation.Facts
		targets []notice.Target
		// onProblem and always are what he is told about; empty is nothing.
		onProblem, always audit.NoticeAbout
		says              []string
	}{
		{"all devices got it", done, []notice.Target{sent}, "", audit.NoticeKeyGiven, []string{"Element on Pixel (PHONE)", "new key"}},
		{"a managed receiver has it", done, []notice.Target{target("M", "", protocol.OutcomeAdopted)}, "", audit.NoticeKeyGiven, []string{"- M"}},
		{"nobody but the managed device", done, nil, "", audit.NoticeKeyGiven, []string{"nothing else to do"}},
		{"excluded and dehydrated ones are not his to look at", done, []notice.Target{sent, target("X", "", protocol.OutcomeSkippedExcluded), target("D", "", protocol.OutcomeSkippedDehydrated)}, "", audit.NoticeKeyGiven, []string{"PHONE"}},
		{"one is not verified", done, []notice.Target{sent, unverified}, audit.NoticeDevicesWithout, audit.NoticeDevicesWithout, []string{"- Element on Pixel (PHONE)", "not verified", "- https evil example (OLDPC)", "sign it out"}},
		{"one could not be given it", done, []notice.Target{sent, target("TABLET", "Tablet", protocol.OutcomeNoOneTimeKey)}, audit.NoticeDevicesWithout, audit.NoticeDevicesWithout, []string{"Tablet (TABLET)", "later"}},
		{"it failed", rotation.Facts{State: rotation.Failed, Failure: protocol.FaultInternal}, nil, audit.NoticeKeyNotReplaced, audit.NoticeKeyNotReplaced, []string{"no message is lost"}},
		{"it was given up", rotation.Facts{State: rotation.TimedOut}, nil, audit.NoticeKeyNotReplaced, audit.NoticeKeyNotReplaced, []string{"administrators"}},
		{"he must act", rotation.Facts{State: rotation.Working, Attention: protocol.AttentionOldKeyMissing}, nil, audit.NoticeUserMustAct, audit.NoticeUserMustAct, []string{"verified device"}},
		{"an operator must act", rotation.Facts{State: rotation.Working, Attention: protocol.AttentionKMSForbidden}, nil, "", "", nil},
		{"it goes on", rotation.Facts{State: rotation.Working}, nil, "", "", nil},
		{"a newer one took its place", rotation.Facts{State: rotation.Superseded, Attention: protocol.AttentionOldKeyMissing}, nil, "", "", nil},
		{"an admin cancelled it", rotation.Facts{State: rotation.Cancelled}, nil, "", "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			for send, want := range map[notice.Send]audit.NoticeAbout{notice.SendNever: "", notice.SendOnProblem: test.onProblem, notice.SendAlways: test.always} {
				about, text, tell := notice.ForUser(test.facts, test.targets, send)
				if tell != (want != "") || (tell && about != want) {
					t.Errorf("%s tells %v of %q, want %q", send, tell, about, want)
				}
				if !tell {
					continue
				}
				checkText(t, text)
				for _, says := range test.says {
					if !strings.Contains(text.Plain(), says) {
						t.Errorf("it does not say %q:\n%s", says, text.Plain())
					}
				}
			}
		})
	}
}

func TestEveryCauseThatTheUserMendsHasATextForHim(t *testing.T) {
	for _, a := range rotation.Attentions() {
		_, text, tell := notice.ForUser(rotation.Facts{State: rotation.Working, Attention: a.Cause}, nil, notice.SendOnProblem)
		if tell != (a.Who == "user") {
			t.Errorf("%s is the %s's to mend, and the user is told: %v", a.Cause, a.Who, tell)
		}
		if tell {
			checkText(t, text)
		}
	}
}

func TestARestoreIsToldWithWhatIsNotKnownAndWhatToDo(t *testing.T) {
	noon := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	restored := notice.Restore{By: "local:root@admin.example.org", Reason: "the disk of db1.example broke", Since: noon.Add(-time.Hour), At: noon, Retriggers: 3, Campaigns: 2, Again: []string{"look"}}
	for _, test := range []struct {
		name  string
		since time.Time
		says  []string
	}{
		{"a log with events", restored.Since, []string{"by local root admin example org, for: the disk of db1 example broke.", "between 2026-11-25 11:00:00 UTC and 2026-11-25 12:00:00 UTC", "again: 3", "paused: 2", "\n- look"}},
		{"an empty log", time.Time{}, []string{"Nothing from before 2026-11-25 12:00:00 UTC is known"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			restored.Since = test.since
			text := notice.Restored(restored)
			checkText(t, text)
			for _, says := range test.says {
				if !strings.Contains(text.Plain(), says) {
					t.Errorf("it does not say %q:\n%s", says, text.Plain())
				}
			}
		})
	}
}

func TestALongListIsCutAndCounted(t *testing.T) {
	var targets []notice.Target
	for i := range 60 {
		targets = append(targets, target("D"+string(rune('A'+i%26))+string(rune('A'+i/26)), "", protocol.OutcomeSkippedUnverified))
	}
	_, text, _ := notice.ForUser(rotation.Facts{State: rotation.Done}, targets, notice.SendOnProblem)
	checkText(t, text)
	if got := strings.Count(text.Plain(), "\n- "); got != 20 || !strings.Contains(text.Plain(), "and 41 more") {
		t.Errorf("%d lines:\n%s", got, text.Plain())
	}
}

func TestTheAdminRoomIsToldOfChangesAndNotTooOften(t *testing.T) {
	noon := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	two := map[string]int{string(protocol.AttentionKMSForbidden): 2}
	for _, test := range []struct {
		name      string
		told, now notice.Status
		toldAt    time.Time
		tell      bool
		says      []string
	}{
		{"nothing to say at first", notice.Status{}, notice.Status{}, time.Time{}, false, nil},
		{"something at first", notice.Status{}, notice.Status{Held: 3}, time.Time{}, true, []string{"held: 3"}},
		{"nothing changed", notice.Status{Attention: two}, notice.Status{Attention: two}, noon.Add(-time.Hour), false, nil},
		{"too soon", notice.Status{}, notice.Status{Attention: two}, noon.Add(-9 * time.Minute), false, nil},
		{"late enough", notice.Status{}, notice.Status{Attention: two}, noon.Add(-10 * time.Minute), true, []string{"kms forbidden: 2, for the operator to mend"}},
		{"mended", notice.Status{Attention: two}, notice.Status{}, noon.Add(-time.Hour), true, []string{"No rotation needs attention any more"}},
		{"fewer", notice.Status{Attention: two, Failed: 1}, notice.Status{Attention: map[string]int{string(protocol.AttentionKMSForbidden): 1}, Failed: 4}, noon.Add(-time.Hour), true, []string{"1, before 2", "4, before 1"}},
		{"a freeze at once", notice.Status{}, notice.Status{Frozen: "local:root@admin.example.org"}, noon.Add(-time.Second), true, []string{"All triggers are stopped", "local root admin example org"}},
		{"a thaw at once", notice.Status{Frozen: "x"}, notice.Status{}, noon.Add(-time.Second), true, []string{"Triggers go again"}},
		{"the log is not signed", notice.Status{}, notice.Status{Unsigned: true}, noon.Add(-time.Hour), true, []string{"has not been signed for 10 minutes"}},
		{"and is again", notice.Status{Unsigned: true}, notice.Status{}, noon.Add(-time.Hour), true, []string{"signed again"}},
		{"devices to enroll", notice.Status{}, notice.Status{NeedEnrollment: 1}, noon.Add(-time.Hour), true, []string{"enrolled again: 1", "keyherald reenrollments list", "keyherald enroll"}},
		{"a device asks again", notice.Status{NeedEnrollment: 1}, notice.Status{NeedEnrollment: 1, Reenrollments: 1}, noon.Add(-time.Hour), true, []string{"after an identity reset: 1", "keyherald reenrollments release"}},
		{"a cause of another version", notice.Status{}, notice.Status{Attention: map[string]int{"see evil.example": 1}}, noon.Add(-time.Hour), true, []string{"see evil example: 1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			text, tell := notice.Digest(test.told, test.now, test.toldAt, noon)
			if tell != test.tell {
				t.Fatalf("tells: %v", tell)
			}
			if !tell {
				return
			}
			checkText(t, text)
			for _, says := range test.says {
				if !strings.Contains(text.Plain(), says) {
					t.Errorf("it does not say %q:\n%s", says, text.Plain())
				}
			}
		})
	}
	checkText(t, notice.Started("v0.1.0-3-gabcdef", "server.example.org"))
}

func TestACampaignThatMovedIsToldWithItsNumbers(t *testing.T) {
	for _, test := range []struct {
		name     string
		campaign notice.Campaign
		says     []string
	}{
		{"finished", notice.Campaign{ID: "019a-b", State: "finished", Reason: "yearly, see https://tickets.example/1", Done: 990, Failing: 10}, []string{"A campaign is finished", "Campaign 019a-b is finished.", "yearly see https tickets example 1", "Done: 990. Failing: 10. Under way: 0. keyherald campaign show tells who is stuck"}},
		{"stopped", notice.Campaign{ID: "019a-b", State: "stopped", Why: "too_many_failing", Done: 10, Failing: 30, UnderWay: 5}, []string{"is stopped, since: too many failing."}},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := notice.CampaignMoved(test.campaign)
			checkText(t, text)
			for _, says := range test.says {
				if !strings.Contains(text.Plain(), says) {
					t.Errorf("it does not say %q:\n%s", says, text.Plain())
				}
			}
		})
	}
}

func TestAUserWhoLeftIsInvitedAgainSeldom(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name    string
		invites int
		ago     time.Duration
		want    bool
	}{
		{"at once", 1, time.Minute, false},
		{"a month later", 1, 30 * 24 * time.Hour, true},
		{"a month later once more", 2, 30 * 24 * time.Hour, true},
		{"and then never", 3, 365 * 24 * time.Hour, false},
	} {
		if got := notice.MayInvite(test.invites, now.Add(-test.ago), now); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}
