package msc4385

import (
	"encoding/json"
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
		{"a request_id is ignored in the later form, which gives it no meaning", "io.element.msc4385.secret.push", `{"request_id":"r","name":"n","secret":"s"}`, Unsolicited},
		{"an empty name is neither form", "m.secret.send", `{"name":"","secret":"s"}`, 0},
		{"an empty secret is neither form", "m.secret.send", `{"name":"n","secret":""}`, 0},
		{"a name that is no string is neither form", "m.secret.send", `{"name":["n"],"secret":"s"}`, 0},
		{"the later form without a name is neither form", "io.element.msc4385.secret.push", `{"secret":"s"}`, 0},
		{"a response without a secret is neither form", "m.secret.send", `{"request_id":"r"}`, 0},
		{"a request_id given twice is neither form", "m.secret.send", `{"request_id":"r","request_id":"q","secret":"s"}`, 0},
		{"a property given twice in two spellings of JSON is neither form", "m.secret.send", `{"name":"n","secret":"s","\u006eame":"m"}`, 0},
		{"a property in capitals is another property", "m.secret.send", `{"Name":"n","Secret":"s"}`, 0},
		{"data after the object is neither form", "m.secret.send", `{"name":"n","secret":"s"}{}`, 0},
		{"invalid UTF-8 is neither form", "m.secret.send", "{\"name\":\"n\",\"secret\":\"\xff\"}", 0},
		{"the type that never shipped is neither form", "m.secret.push", `{"name":"n","secret":"s"}`, 0},
		{"null is neither form", "m.secret.send", `null`, 0},
		{"no content is neither form", "m.secret.send", ``, 0},
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
	const own = "@alice:example.org"
	policy := map[string]Verdict{"m.megolm_backup.v1": Accept, "m.cross_signing.master": Refuse, "x.ask": Ask, "x.typo": "acept"}
	trusted := Sender{UserID: own, CrossSigned: true}
	tests := []struct {
		name, own string
		sender    Sender
		secret    string
		want      Verdict
		reason    string
	}{
		{"m.secret.send events without a request_id must only be accepted from cross-signed devices belonging to the same user: such a device", own,
			trusted, "m.megolm_backup.v1", Accept, ""},
		{"m.secret.send events without a request_id must only be accepted from cross-signed devices belonging to the same user: a device not cross-signed", own,
			Sender{UserID: own}, "m.megolm_backup.v1", Refuse, "device_not_cross_signed"},
		{"m.secret.send events without a request_id must only be accepted from cross-signed devices belonging to the same user: another user's device", own,
			Sender{UserID: "@bob:example.org", CrossSigned: true}, "m.megolm_backup.v1", Refuse, "another_user"},
		{"the attacker cannot just create a new device and send out secrets", own,
			Sender{UserID: own}, "x.ask", Refuse, "device_not_cross_signed"},
		{"the client MAY prompt the user before accepting the m.secret.send event", own,
			trusted, "x.ask", Ask, ""},
		{"The client MAY also only accept certain secrets", own,
			trusted, "m.cross_signing.master", Refuse, "secret_not_accepted"},
		{"a secret that no policy names is refused", own,
			trusted, "m.other", Refuse, "secret_not_accepted"},
		{"a verdict that is misspelt refuses", own,
			trusted, "x.typo", Refuse, "secret_not_accepted"},
		{"a device does not push to itself", own,
			Sender{UserID: own, CrossSigned: true, ThisDevice: true}, "m.megolm_backup.v1", Refuse, "from_this_device"},
		{"a dehydrated device has nothing to send", own,
			Sender{UserID: own, CrossSigned: true, Dehydrated: true}, "m.megolm_backup.v1", Refuse, "dehydrated_device"},
		{"an unknown own user accepts nobody", "",
			Sender{CrossSigned: true}, "m.megolm_backup.v1", Refuse, "another_user"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, reason := Decide(test.own, test.sender, test.secret, policy)
			if got != test.want || reason != test.reason {
				t.Errorf("got %s (%s), want %s (%s)", got, reason, test.want, test.reason)
			}
		})
	}
}

func TestPick(t *testing.T) {
	push := func(secret string) Message {
		return Message{Kind: Unsolicited, Form: FormPush, Name: "n", Secret: NewSecret(secret)}
	}
	is := func(want string) func(Secret) bool { return func(s Secret) bool { return s.Reveal() == want } }
	response := Message{Kind: Response, Form: FormSend, RequestID: "r", Secret: NewSecret("b")}
	newestForm := Message{Kind: Unsolicited, Form: FormSend, Name: "n", Secret: NewSecret("b")}
	tests := []struct {
		name   string
		pushes []Message
		fits   func(Secret) bool
		want   Message
		ok     bool
	}{
		{"If a client is offline while a secret is changed multiple times, it will have to determine which one is the current one", []Message{push("a"), push("b"), push("c")}, is("b"), push("b"), true},
		{"the newest of those that fit is taken", []Message{push("b"), newestForm, push("c")}, is("b"), newestForm, true},
		{"none fits", []Message{push("a"), push("c")}, is("b"), Message{}, false},
		{"nothing was received", nil, is("b"), Message{}, false},
		{"a response is no push", []Message{response}, is("b"), Message{}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, ok := Pick(test.pushes, test.fits)
			if ok != test.ok || got != test.want {
				t.Errorf("got %s, %v", got.Form, ok)
			}
		})
	}
}

func TestAnErrorNeverRepeatsTheContent(t *testing.T) {
	for _, content := range []string{`{"hunter2":1,"hunter2":2}`, `{"secret":"hunter2"}`, `{"name":"n","secret":"hunter2`, `{"request_id":["hunter2"],"secret":"hunter2"}`} {
		if _, err := Parse("m.secret.send", []byte(content)); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got %v", err)
		}
	}
}

func TestASecretNeverPrints(t *testing.T) {
	secret := NewSecret("hunter2")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		if printed := fmt.Sprintf(verb, secret); strings.Contains(printed, "hunter2") || strings.Contains(printed, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("%s printed the secret", verb)
		}
	}
	for _, value := range []any{secret, &secret, Message{Secret: secret}, map[string]Secret{"k": secret}} {
		if encoded, err := json.Marshal(value); err != nil || strings.Contains(string(encoded), "hunter2") {
			t.Errorf("encoding/json told the secret of a %T (error %v)", value, err)
		}
		if printed := fmt.Sprintf("%+v %#v", value, value); strings.Contains(printed, "hunter2") {
			t.Errorf("fmt printed the secret of a %T", value)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("io.element.msc4385.secret.push", []byte(`{"name":"n","secret":"s","request_id":null}`))
	f.Add("m.secret.send", []byte(`{"request_id":"","name":"n","secret":"\ud800"}`))
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
		if message.Kind != Unsolicited {
			return
		}
		rebuilt, err := Build(message.Form, message.Name, message.Secret)
		if err != nil {
			t.Fatalf("a parsed push does not build: %v", err)
		}
		if again, err := Parse(eventType, rebuilt); err != nil || again != message {
			t.Errorf("%q does not come back from %q (error %v)", content, rebuilt, err)
		}
	})
}
