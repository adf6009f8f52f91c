package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/google/uuid"
)

func TestTheLogIsTheSameByTheAPIAndItSaysWhoReadIt(t *testing.T) {
	t.Parallel()
	r, rotation := office(t)
	withBot(t, r).Seal(t)
	remotely := []string{"--server", r.server(t), "--token-file", r.path("admin.token")}
	withoutReadings := func(text string) (events []map[string]any) {
		for _, event := range lines(t, text) {
			if event["action"] != "audit.read" && event["action"] != "api_token.created" {
				events = append(events, event)
			}
		}
		return events
	}
	for _, args := range [][]string{
		{"--limit", "1000"}, {"--rotation", rotation.String()}, {"--user", "@alice:example.org"}, {"--actor", "relay", "--action", "trigger.*,rotation.done"},
		{"--refused"}, {"--outcome", "reported_by_device"}, {"--since", "4h", "--until", "2h"},
	} {
		args = append([]string{"list", "--json"}, args...)
		here, there := withoutReadings(r.must(t, args...)), withoutReadings(r.must(t, append(args, remotely...)...))
		if len(here) == 0 || !reflect.DeepEqual(here, there) {
			t.Errorf("%q lists by the database\n%v\nand by the API\n%v", args, here, there)
		}
	}
	if action, detail := r.told(t); action != "audit.read" || detail["command"] != "list" || detail["since"] == nil {
		t.Errorf("the log says %s of %v", action, detail)
	}
	out := r.must(t, append([]string{"list", "--limit", "1"}, remotely...)...)
	if !strings.Contains(out, "audit.read") || !strings.Contains(out, "admin:token:test-admin") || strings.Count(out, "\n") != 1 {
		t.Errorf("the newest is %s", out)
	}
	key := withoutReadings(r.must(t, "list", "--json", "--action", "rotation.done"))[0]["id"].(string)
	for _, form := range [][]string{{"show", key}, {"show", key, "--json"}} {
		if here, there := r.must(t, form...), r.must(t, append(form, remotely...)...); here != there || !strings.Contains(here, "rotation.done") {
			t.Errorf("%q shows by the database\n%s\nand by the API\n%s", form, here, there)
		}
	}
	if _, said, err := r.run(t, append([]string{"list", "--action", "rotation.failed"}, remotely...)...); err != nil || !strings.Contains(said, "No event is like that") {
		t.Errorf("nothing is told with %q and %v", said, err)
	}
}

func TestWhatTheAPIDoesNotShowOfTheLogIsSaid(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	address := withBot(t, r).server(t)
	r.write(t, "wrong.token", "kht1.AAAA\n")
	for _, test := range []struct {
		name string
		args []string
		says string
	}{
		{"all of it", []string{"list", "--limit", "0"}, "write how many"},
		{"what is no action", []string{"list", "--action", "rotation"}, "is no action"},
		{"a leaf index", []string{"show", "3"}, "no event's id"},
		{"an event that is not there", []string{"show", uuid.NewString()}, "there is no event"},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, _, err := r.run(t, append(test.args, "--server", address, "--token-file", r.path("admin.token"))...)
			if err == nil || !strings.Contains(err.Error(), test.says) || out != "" {
				t.Errorf("it prints %q and ends with %v", out, err)
			}
		})
	}
	if out, _, err := r.run(t, "list", "--server", address, "--token-file", r.path("wrong.token")); err == nil || out != "" || strings.Contains(err.Error(), "AAAA") {
		t.Errorf("a wrong token prints %q and ends with %v", out, err)
	}
}
