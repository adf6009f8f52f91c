package campaign

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/campaign"
)

// Every command of `keyherald campaign`, as admins run them beside a server.
func TestTheCommandsOfCampaigns(t *testing.T) {
	ctx := t.Context()
	var out bytes.Buffer
	w, err := newWorld(ctx, Config{Programs: programs(t), Dir: t.TempDir(), Users: 100, Out: &out})
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	run := func(args ...string) string {
		t.Helper()
		said, err := w.keyherald(ctx, append([]string{"campaign"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return said
	}
	refused := func(want string, args ...string) {
		t.Helper()
		if _, err := w.keyherald(ctx, append([]string{"campaign"}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v gave %v, and not %q", args, err, want)
		}
	}
	ten := []string{"start", "--users", "@user0001?:" + serverName, "--except", "*user00019:*", "--kms", "corporate", "--path", "keyherald/{user}/key", "--reason", "a test", "--rate", "1",
		"--idempotency-key", "once"}
	plan := run(append(ten, "--dry-run")...)
	if !strings.Contains(plan, "10 users: 9 get a rotation") || !strings.Contains(plan, "1 are left out") || !strings.Contains(plan, "Nothing was touched.") {
		t.Errorf("the dry run says:\n%s", plan)
	}
	if list := run("list", "--json"); list != "" {
		t.Errorf("after the dry run there is %s", list)
	}
	refused("nobody matches @nobody*:example.org", "start", "--users", "@nobody*:example.org", "--reason", "a test")
	refused("nobody matches *user0019?:*", "start", "--all", "--except", "*user0019?:*", "--reason", "a test")
	refused("there is no campaign", "show", "01890000-0000-7000-8000-000000000000")
	var started struct {
		ID    string
		State campaign.State
		Users int
		Hash  string
	}
	if err := json.Unmarshal([]byte(run(append(ten, "--json")...)), &started); err != nil {
		t.Fatal(err)
	}
	if started.State != campaign.Running || started.Users != 9 || !strings.Contains(plan, started.Hash) {
		t.Fatalf("it is %+v, and the dry run said:\n%s", started, plan)
	}
	if again := run(ten...); !strings.Contains(again, "started before") || !strings.Contains(again, started.ID) {
		t.Errorf("started again it says:\n%s", again)
	}
	refused("a new request needs a new key", append(ten, "--ticket", "T-1")...)
	refused("while it waits for approval or is paused", "change", started.ID, "--rate", "2")
	for _, step := range []struct {
		args []string
		want string
	}{
		{[]string{"pause", started.ID}, "is paused"}, {[]string{"change", started.ID, "--rate", "600"}, "is paused"}, {[]string{"resume", started.ID}, "is running"},
	} {
		if said := run(step.args...); !strings.Contains(said, step.want) {
			t.Errorf("%v says:\n%s", step.args, said)
		}
	}
	if err := w.until(ctx, 3*time.Minute, func() error {
		var view struct{ Counts campaign.Counts }
		if err := json.Unmarshal([]byte(run("show", started.ID, "--json")), &view); err != nil {
			return err
		}
		if view.Counts.Done == 0 {
			return errNobodyDone
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if said := run("abort", started.ID, "--cancel-running"); !strings.Contains(said, "is aborted") {
		t.Errorf("abort says:\n%s", said)
	}
	if said := run("watch", started.ID); !strings.HasPrefix(said[len("2006-01-02 15:04:05  "):], "aborted, wave ") || strings.Count(said, "\n") != 1 {
		t.Errorf("watch says:\n%s", said)
	}
	if said := run("watch", started.ID, "--json"); !strings.Contains(said, `"state":"aborted"`) {
		t.Errorf("watch --json says:\n%s", said)
	}
	if said := run("list"); !strings.Contains(said, started.ID) || !strings.Contains(said, "a test") {
		t.Errorf("list says:\n%s", said)
	}
	refused("it cannot be resumed now", "resume", started.ID)
}
