package report_test

import (
	"bytes"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/integrity"
	"github.com/keyherald/keyherald/audit/report"
	"github.com/keyherald/keyherald/keyheraldtest/sealedlog"
)

var update = flag.Bool("update", false, "write the golden files")

var november = report.Period{From: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)}

// story writes a log by hand.
type story struct{ records []audit.Record }

func (s *story) tell(at, actor string, action audit.Action, subject, rotation string, outcome audit.Outcome, detail string) {
	t, err := time.Parse("2006-01-02 15:04", at)
	if err != nil {
		panic(err)
	}
	s.records = append(s.records, sealedlog.Record(int64(len(s.records)), t, actor, action, subject, rotation, outcome, detail))
}

func (s *story) rows() iter.Seq2[audit.Record, error] {
	return func(yield func(audit.Record, error) bool) {
		for _, r := range s.records {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func rotationID(n int) string { return fmt.Sprintf("01939aa0-1111-7000-8000-%012d", n) }

// begin tells that a user got a new key.
func (s *story) begin(at, user string, rotation, version int) {
	name, _, _ := strings.Cut(user[1:], ":")
	s.tell(at, "source:corporate-kms", audit.NotificationAccepted, user, rotationID(rotation), audit.Accepted,
		fmt.Sprintf(`{"id":"n%d","path":"keyherald/%s/backup-key","version":"%d"}`, rotation, name, version))
}

// novemberStory is a month of a small company, with what came before it and after it.
func novemberStory() *story {
	s := &story{}
	const alice, bob, carol, dave, eve = "@alice:example.org", "@bob:example.org", "@carol:example.org", "@dave:example.org", "@eve:example.org"
	s.tell("2026-10-01 08:00", "signer", audit.SigningKeysChanged, sealedlog.Name, "", audit.Accepted, `{"keys":["k"]}`)
	for _, user := range []string{alice, bob, carol, dave, eve} {
		s.tell("2026-10-01 09:00", user+"/MANAGED", audit.DeviceEnrolled, user+"/MANAGED", "", audit.Accepted, `{}`)
	}
	s.begin("2026-10-05 10:00", carol, 1, 1)
	s.tell("2026-10-05 10:01", "relay", audit.RotationDone, carol, rotationID(1), audit.Accepted, `{"backup_version":"3"}`)
	s.begin("2026-10-31 23:59", alice, 2, 1)
	// November.
	s.tell("2026-11-01 00:00", alice+"/MANAGED", audit.DeliveryReported, alice+"/PHONE", rotationID(2), audit.Reported, `{"outcome":"sent"}`)
	s.tell("2026-11-01 00:00", alice+"/MANAGED", audit.DeliveryReported, alice+"/LAPTOP", rotationID(2), audit.Reported, `{"outcome":"skipped_unverified"}`)
	s.tell("2026-11-01 00:01", "relay", audit.RotationDone, alice, rotationID(2), audit.Accepted, `{"backup_version":"4"}`)
	s.tell("2026-11-02 11:00", alice+"/PHONE", audit.DeliveryReported, alice+"/PHONE", rotationID(2), audit.Reported, `{"outcome":"adopted"}`)
	s.begin("2026-11-09 12:00", bob, 3, 1)
	s.tell("2026-11-09 12:01", "relay", audit.RotationFailed, bob, rotationID(3), audit.Accepted, `{"error":"key_not_usable"}`)
	s.begin("2026-11-15 07:00", alice, 4, 2)
	s.tell("2026-11-15 07:02", "relay", audit.RotationDone, alice, rotationID(4), audit.Accepted, `{"backup_version":"9"}`)
	s.tell("2026-11-16 08:00", "source:corporate-kms", audit.NotificationRefused, "corporate-kms", "", audit.Refused, `{"count":12,"minute":1794816000000,"reason":"bad_signature"}`)
	s.tell("2026-11-17 09:30", "@mallory:example.org/EVIL", audit.EnrollmentRefused, "@mallory:example.org/EVIL", "", audit.Refused, `{"reason":"wrong_code"}`)
	s.tell("2026-11-18 10:00", "local:root@kms1", audit.DeviceRevoked, eve+"/MANAGED", "", audit.Accepted, `{"reason_given":true}`)
	s.tell("2026-11-19 10:00", "local:<b>root</b>@kms1", audit.TriggersFrozen, "triggers", "", audit.Accepted, `{}`)
	s.begin("2026-11-20 10:00", dave, 5, 7)
	s.tell("2026-11-20 10:00", "relay", audit.RotationHeld, dave, rotationID(5), audit.Accepted, `{}`)
	s.tell("2026-11-30 23:59", "local:auditor@kms1", audit.LogExported, "audit_log", "", audit.Accepted, `{"format":"bundle"}`)
	// December.
	s.tell("2026-12-01 00:00", "relay", audit.RotationDone, dave, rotationID(5), audit.Accepted, `{}`)
	s.begin("2026-12-02 10:00", bob, 6, 2)
	redacted := &s.records[len(s.records)-5]
	redacted.Detail, redacted.Salt = nil, nil
	return s
}

func collect(t *testing.T, s *story, period report.Period) report.Facts {
	t.Helper()
	facts, err := report.Collect(s.rows(), period)
	if err != nil {
		t.Fatal(err)
	}
	return facts
}

func TestAMonthIsTold(t *testing.T) {
	f := collect(t, novemberStory(), november)
	names := func(users []report.User) (names []string) {
		for _, u := range users {
			names = append(names, u.ID)
		}
		return names
	}
	if got := names(f.Rotated); !slices.Equal(got, []string{"@alice:example.org"}) {
		t.Errorf("rotated: %v", got)
	}
	if alice := f.Rotated[0]; alice.Done != 2 || !alice.Last.Equal(time.Date(2026, 11, 15, 7, 2, 0, 0, time.UTC)) || alice.Managed != 1 {
		t.Errorf("alice is %+v", alice)
	}
	// Eve's only device was revoked, so she is not asked for.
	if got := names(f.NotRotated); !slices.Equal(got, []string{"@bob:example.org", "@carol:example.org", "@dave:example.org"}) {
		t.Errorf("not rotated: %v", got)
	}
	for i, want := range []struct {
		open string
		last time.Time
	}{{"failed", time.Time{}}, {"", time.Date(2026, 10, 5, 10, 1, 0, 0, time.UTC)}, {"held", time.Time{}}} {
		if u := f.NotRotated[i]; u.Open != want.open || !u.Last.Equal(want.last) {
			t.Errorf("%s is %+v", u.ID, u)
		}
	}
	var states []string
	for _, r := range f.Rotations {
		states = append(states, r.ID[len(r.ID)-1:]+" "+r.User+" "+r.Version+" "+r.State)
	}
	if want := []string{"2 @alice:example.org 1 done", "3 @bob:example.org 1 failed", "4 @alice:example.org 2 done", "5 @dave:example.org  held"}; !slices.Equal(states, want) {
		t.Errorf("the rotations are %q", states)
	}
	if d := f.Rotations[0].Deliveries; len(d) != 2 || d["adopted"] != 1 || d["skipped_unverified"] != 1 {
		t.Errorf("the deliveries are %v", d)
	}
	if len(f.Refused) != 2 || f.Refused[1].Why != "wrong_code" || len(f.Admin) != 2 || len(f.Reads) != 1 || f.Redacted != 1 || f.Events != 15 {
		t.Errorf("refused %v, admin %v, reads %v, redacted %d, events %d", f.Refused, f.Admin, f.Reads, f.Redacted, f.Events)
	}
}

func TestWhatWasRefusedChangedNothing(t *testing.T) {
	s := &story{}
	s.tell("2026-11-01 09:00", "@bob:example.org/M", audit.DeviceEnrolled, "@bob:example.org/M", "", audit.Accepted, `{}`)
	s.begin("2026-11-02 10:00", "@bob:example.org", 1, 1)
	s.tell("2026-11-02 10:01", "local:root@x", audit.RotationCancelled, "@bob:example.org", rotationID(1), audit.Refused, `{"refusal":"ended"}`)
	s.tell("2026-11-02 10:02", "local:root@x", audit.DeviceRevoked, "@bob:example.org/M", "", audit.Refused, `{"refusal":"unusable_reason"}`)
	f := collect(t, s, november)
	if f.Rotations[0].State != "open" || f.NotRotated[0].Managed != 1 || len(f.Refused) != 2 || f.Refused[0].Why != "ended" || len(f.Admin) != 0 {
		t.Errorf("it is told as %+v", f)
	}
}

func TestAFailedRotationThatIsRetriedIsOpenAgain(t *testing.T) {
	s := &story{}
	s.begin("2026-11-02 10:00", "@bob:example.org", 1, 1)
	s.tell("2026-11-02 10:01", "relay", audit.RotationFailed, "@bob:example.org", rotationID(1), audit.Accepted, `{}`)
	s.tell("2026-11-02 10:02", "local:root@x", audit.RotationRetried, "@bob:example.org", rotationID(1), audit.Accepted, `{}`)
	if f := collect(t, s, november); f.Rotations[0].State != "open" || !f.Rotations[0].Ended.IsZero() {
		t.Errorf("it is %+v", f.Rotations[0])
	}
}

func TestManyRotationsOfBeforeAreForgottenAndTheirUsersAreNot(t *testing.T) {
	s := &story{}
	s.tell("2025-01-01 08:00", "@bob:example.org/M", audit.DeviceEnrolled, "@bob:example.org/M", "", audit.Accepted, `{}`)
	for i := range 12_000 {
		s.begin("2025-01-02 10:00", "@bob:example.org", i, i)
		s.tell("2025-01-02 10:01", "relay", audit.RotationDone, "@bob:example.org", rotationID(i), audit.Accepted, `{}`)
	}
	s.begin("2026-11-02 10:00", "@bob:example.org", 30_000, 30_000)
	f := collect(t, s, november)
	if len(f.Rotations) != 1 || len(f.NotRotated) != 1 || f.NotRotated[0].Last.Year() != 2025 || f.NotRotated[0].Open != "open" {
		t.Errorf("%d rotations, not rotated: %+v", len(f.Rotations), f.NotRotated)
	}
}

func TestAnErrorOfTheRowsAndAnUnreadableEventAreErrors(t *testing.T) {
	broken := errors.New("the database went away")
	if _, err := report.Collect(func(yield func(audit.Record, error) bool) { yield(audit.Record{}, broken) }, november); !errors.Is(err, broken) {
		t.Error(err)
	}
	s := novemberStory()
	s.records[3].Body = nil
	if _, err := report.Collect(s.rows(), november); err == nil || !strings.Contains(err.Error(), s.records[3].ID.String()) {
		t.Error(err)
	}
}

func page(f report.Facts) report.Page {
	return report.Page{
		Log: sealedlog.Name, By: "local:auditor@kms1", At: time.Date(2026, 12, 3, 9, 0, 0, 0, time.UTC), Facts: f, Unsealed: 2,
		Integrity: integrity.Report{Verdict: integrity.Unchanged, Headline: "unchanged since example.org/keyherald size 27, which the sink minutes has", Log: sealedlog.Name, Size: 27, Epoch: 1,
			Checked: integrity.Counts{Leaves: 27, Details: 26, Redacted: 1, Checkpoints: 9, Earlier: 1, EarlierMatched: 1}, Closing: integrity.Closing,
			Findings: []integrity.Finding{{Verdict: integrity.Remark, Check: "redaction", First: 23, Last: 23, Event: "01939aa0-0000-7000-8000-000000000023", Text: "its detail was redacted by event 24"}}},
		Sinks: []report.Sink{{Name: "minutes", Type: "directory", Place: "/mnt/checkpoints", HeldBy: "the auditors of Example & Sons", Newest: "size 27"},
			{Name: "log", Type: "syslog", Newest: "cannot be read back"}},
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what was written (-update writes it anew)", path)
	}
}

func TestThePageIsWritten(t *testing.T) {
	var out bytes.Buffer
	if err := report.HTML(&out, page(collect(t, novemberStory(), november))); err != nil {
		t.Fatal(err)
	}
	golden(t, "november.html", out.Bytes())
	text := out.String()
	for _, want := range []string{"not proof of use", "unchanged since", "keyherald-verify", "the auditors of Example &amp; Sons", "the configuration does not say", "&lt;b&gt;root&lt;/b&gt;", "not in this report: 2."} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q", want)
		}
	}
}

func TestThePeriodIsToldInDaysOnlyWhereItIsOfDays(t *testing.T) {
	part := november
	part.To = part.To.Add(-time.Second)
	for period, want := range map[report.Period]string{november: "2026-11-01 to 2026-11-30 (both days included)", part: "2026-11-01 00:00:00 to 2026-11-30 23:59:59."} {
		var out bytes.Buffer
		if err := report.HTML(&out, page(collect(t, novemberStory(), period))); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %s", want)
		}
	}
}

// The page is opened by people whose browser should ask nobody for anything, and run nothing.
func TestThePageIsSelfContainedAndRunsNothing(t *testing.T) {
	s := novemberStory()
	s.tell("2026-11-21 10:00", `local:\"><script>alert(1)</script><img src=x onerror=alert(1)>`, audit.TriggersThawed, `javascript:alert(1)`, "", audit.Accepted, `{}`)
	var out bytes.Buffer
	if err := report.HTML(&out, page(collect(t, s, november))); err != nil {
		t.Fatal(err)
	}
	document, err := html.Parse(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	elements := 0
	for node := range document.Descendants() {
		if node.Type != html.ElementNode {
			continue
		}
		elements++
		if slices.Contains([]string{"script", "link", "img", "iframe", "object", "embed", "form", "base", "a", "use", "image", "foreignObject"}, node.Data) {
			t.Errorf("the page has a <%s>", node.Data)
		}
		for _, attribute := range node.Attr {
			if strings.HasPrefix(attribute.Key, "on") || slices.Contains([]string{"src", "href", "srcset", "action"}, attribute.Key) {
				t.Errorf("<%s> has %s=%q", node.Data, attribute.Key, attribute.Val)
			}
		}
		if node.Data == "style" && regexp.MustCompile(`url\(|@import`).MatchString(node.FirstChild.Data) {
			t.Error("the style loads something")
		}
	}
	if elements < 200 {
		t.Errorf("the page has only %d elements", elements)
	}
}

func TestEveryVerdictHasASignOfItsOwn(t *testing.T) {
	for verdict, sign := range map[integrity.Verdict]string{integrity.Unchanged: "✓", integrity.SelfConsistent: "!", integrity.DeclaredGap: "!", integrity.RolledBack: "✗", integrity.Altered: "✗"} {
		p := page(collect(t, &story{}, november))
		p.Integrity.Verdict = verdict
		p.Sinks = nil
		var out bytes.Buffer
		if err := report.HTML(&out, p); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), `aria-hidden="true">`+sign+`<`) || !strings.Contains(out.String(), "names no sink") {
			t.Errorf("%s is not marked by %s", verdict, sign)
		}
	}
}

func TestAListTooLongForPaperIsCutAndSaysSo(t *testing.T) {
	s := &story{}
	for i := range 450 {
		s.begin("2026-11-02 10:00", fmt.Sprintf("@u%d:example.org", i), i, 1)
		s.tell("2026-11-02 10:00", "source:x", audit.NotificationRefused, "x", "", audit.Refused, `{}`)
	}
	f := collect(t, s, november)
	var out bytes.Buffer
	if err := report.HTML(&out, page(f)); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "and 50 more"); n != 3 {
		t.Errorf("%d lists are cut", n)
	}
	var table bytes.Buffer
	if err := report.CSV(&table, f); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&table).ReadAll()
	if err != nil || len(rows) != 1+450+450 {
		t.Errorf("the CSV has %d rows (%v)", len(rows), err)
	}
}

func TestTheCSVIsWritten(t *testing.T) {
	var out bytes.Buffer
	if err := report.CSV(&out, collect(t, novemberStory(), november)); err != nil {
		t.Fatal(err)
	}
	golden(t, "november.csv", out.Bytes())
}

// The picture has to hold whatever the period is.
func TestThePictureFitsEveryPeriod(t *testing.T) {
	for days := 0; days < 800; days += 1 + days/10 {
		period := report.Period{From: november.From, To: november.From.Add(time.Duration(days) * 24 * time.Hour)}
		f := collect(t, novemberStory(), period)
		var out bytes.Buffer
		if err := report.HTML(&out, page(f)); err != nil {
			t.Fatal(err)
		}
		bars := strings.Count(out.String(), "<g><title>")
		if bars < 1 || bars > 62 {
			t.Fatalf("%d bars for %d days", bars, days)
		}
		for _, x := range regexp.MustCompile(`<text x="(\d+)"`).FindAllStringSubmatch(out.String(), -1) {
			if len(x[1]) > 3 || x[1] > "715" && len(x[1]) == 3 {
				t.Fatalf("a label is at %s", x[1])
			}
		}
	}
}
