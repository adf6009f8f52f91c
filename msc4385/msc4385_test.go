package msc4385

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name, eventType, content string
		want                     Kind
	}{
		{"m.secret.send events may be sent without a corresponding m.secret.request event", "m.secret.send", `{"name":"m.megolm_backup.v1","secret":"s"}`, Unsolicited},
		{"the later form is unsolicited", "io.element.msc4385.secret.push", `{"name":"n","secret":"s"}`, Unsolicited},
		{"m.secret.send events with a request_id property are handled as before", "m.secret.send", `{"request_id":"r","secret":"s"}`, Response},
		{"MUST include a name property", "m.secret.send", `{"secret":"s"}`, 0},
		{"an empty request_id is neither form", "m.secret.send", `{"request_id":"","name":"n","secret":"s"}`, 0},
		{"a null request_id is neither form", "m.secret.send", `{"request_id":null,"name":"n","secret":"s"}`, 0},
		{"a request_id that is no string is neither form", "m.secret.send", `{"request_id":1,"name":"n","secret":"s"}`, 0},
		{"a secret that is missing is neither form", "m.secret.send", `{"name":"n"}`, 0},
		{"a property given twice is neither form", "m.secret.send", `{"name":"n","secret":"s","secret":"t"}`, 0},
		{"an array is neither form", "m.secret.send", `[]`, 0},
		{"another event type is neither form", "m.room.message", `{"name":"n","secret":"s"}`, 0},
		{"unknown properties are ignored", "m.secret.send", `{"name":"n","secret":"s","x":{"y":[1]}}`, Unsolicited},
		{"truncated JSON is neither form", "m.secret.send", `{"name":"n","secret":"s"`, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			message, err := Parse(test.eventType, []byte(test.content))
			if test.want == 0 {
				if !errors.Is(err, ErrNeither) {
					t.Fatalf("got %v, want ErrNeither", err)
				}
				return
			}
			if err != nil || message.Kind != test.want {
				t.Fatalf("got kind %v, error %v", message.Kind, err)
			}
		})
	}
}

func TestBuildHasNameAndSecretAndNothingElse(t *testing.T) {
	for _, form := range []Form{FormSend, FormPush} {
		content, err := Build(form, "m.megolm_backup.v1", NewSecret("c2VjcmV0"))
		if err != nil {
			t.Fatal(err)
		}
		if want := `{"name":"m.megolm_backup.v1","secret":"c2VjcmV0"}`; string(content) != want {
			t.Errorf("%s: got %s", form, content)
		}
		message, err := Parse(string(form), content)
		if err != nil || message.Kind != Unsolicited || message.Secret.Reveal() != "c2VjcmV0" {
			t.Errorf("%s does not come back: %v", form, err)
		}
	}
	if _, err := Build("m.secret.push", "n", NewSecret("s")); err == nil {
		t.Error("an unknown form was built")
	}
}

func TestDecide(t *testing.T) {
	policy := map[string]Verdict{"m.megolm_backup.v1": Accept, "m.cross_signing.master": Refuse, "x.ask": Ask}
	tests := []struct {
		name   string
		sender Sender
		secret string
		want   Verdict
	}{
		{"accepted from a cross-signed device belonging to the same user", Sender{UserID: "@a:x", CrossSigned: true}, "m.megolm_backup.v1", Accept},
		{"must only be accepted from cross-signed devices", Sender{UserID: "@a:x"}, "m.megolm_backup.v1", Refuse},
		{"must only be accepted from devices belonging to the same user", Sender{UserID: "@b:x", CrossSigned: true}, "m.megolm_backup.v1", Refuse},
		{"the client MAY prompt the user before accepting", Sender{UserID: "@a:x", CrossSigned: true}, "x.ask", Ask},
		{"the client MAY also only accept certain secrets", Sender{UserID: "@a:x", CrossSigned: true}, "m.cross_signing.master", Refuse},
		{"a secret no policy names is refused", Sender{UserID: "@a:x", CrossSigned: true}, "m.other", Refuse},
		{"a device does not push to itself", Sender{UserID: "@a:x", CrossSigned: true, ThisDevice: true}, "m.megolm_backup.v1", Refuse},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got, reason := Decide("@a:x", test.sender, test.secret, policy); got != test.want {
				t.Errorf("got %s (%s), want %s", got, reason, test.want)
			}
		})
	}
}

func TestASecretNeverPrints(t *testing.T) {
	secret := NewSecret("hunter2")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		if printed := fmt.Sprintf(verb, secret); strings.Contains(printed, "hunter2") || strings.Contains(printed, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("%s printed the secret", verb)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("m.secret.send", []byte(`{"name":"n","secret":"s"}`))
	f.Add("m.secret.send", []byte(`{"request_id":"r","secret":"s"}`))
	f.Fuzz(func(t *testing.T, eventType string, content []byte) {
		message, err := Parse(eventType, content)
		if err != nil {
			return
		}
		if message.Secret.Reveal() == "" || (message.Kind == Unsolicited) == (message.Name == "") || (message.Kind == Response) != (message.RequestID != "") {
			t.Errorf("an inconsistent message came out of %q", content)
		}
	})
}
