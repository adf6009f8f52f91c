package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/campaign"
)

func TestTheDryRunOfACampaignSaysThatTriggersAreFrozen(t *testing.T) {
	t.Parallel()
	r := withBot(t, newRoom(t))
	check(t, os.WriteFile(r.path("users.csv"), []byte("user_id\n@alice:example.org\n@bob:example.org\n"), 0o600))
	r.acted(t, "roster", "apply", r.path("users.csv"))
	dryRun := []string{"campaign", "start", "--all", "--kms", "corporate", "--path", "keyherald/{user}", "--reason", "yearly", "--dry-run"}
	if said := r.acted(t, dryRun...); strings.Contains(said, "frozen") {
		t.Errorf("it says:\n%s", said)
	}
	r.acted(t, "freeze")
	for _, args := range [][]string{dryRun, append(dryRun, "--json")} {
		if said := r.acted(t, args...); !strings.Contains(said, "Triggers are frozen: nobody would begin until `keyherald thaw`.") || !strings.Contains(said, "@bob:example.org") {
			t.Errorf("while triggers are frozen it says:\n%s", said)
		}
	}
}

func TestTheCommandLineShowsWhichDevicesACampaignExcludes(t *testing.T) {
	t.Parallel()
	r := withBot(t, newRoom(t))
	check(t, os.WriteFile(r.path("users.csv"), []byte("user_id\n@alice:example.org\n@bob:example.org\n"), 0o600))
	r.acted(t, "roster", "apply", r.path("users.csv"))
	start := func(device string, more ...string) []string {
		return append([]string{"campaign", "start", "--user", "@alice:example.org", "--kms", "corporate", "--path", "keyherald/{user}", "--reason", "theft", "--exclude-device", device}, more...)
	}
	const line = "@alice:example.org PHONE, from the first wave on"
	if said := r.acted(t, start("@alice:example.org/PHONE", "--dry-run")...); !strings.Contains(said, "No key for "+line+".\n") {
		t.Errorf("the dry run says:\n%s", said)
	}
	for _, more := range []string{"--dry-run", "--json"} {
		if said, err := r.acts(t, start("@bob:example.org/LAPTOP", more)...); err == nil || !strings.Contains(err.Error(), "@bob:example.org/LAPTOP") {
			t.Errorf("with a device of somebody else it gives %v and says:\n%s", err, said)
		}
	}
	var started struct{ ID string }
	check(t, json.Unmarshal([]byte(r.acted(t, start("@alice:example.org/PHONE", "--json")...)), &started))
	if said := r.acted(t, "campaign", "show", started.ID); !strings.Contains(said, "no key for") || !strings.Contains(said, line) {
		t.Errorf("show says:\n%s", said)
	}
}

func TestADeviceWithinReachIsNamedWithWhatToDo(t *testing.T) {
	key := uuid.New()
	x := api.Exclusion{Device: campaign.Device{UserID: "@alice:example.org", DeviceID: "PHONE"}, Rotation: &key}
	for reach, want := range map[campaign.Reach]string{campaign.MayGetKey: "but it may get that of rotation " + key.String(), campaign.GotKey: "but it got that of rotation " + key.String()} {
		x.Reach, x.NextAction = reach, reach.NextAction(x.UserID)
		if text := exclusionText(x, "from the first wave on"); !strings.Contains(text, want) || !strings.Contains(text, "keyherald rotate --user @alice:example.org") {
			t.Errorf("%s is told as %q", reach, text)
		}
	}
}
