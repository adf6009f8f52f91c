package verify_test

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest/auditbundle"
	"github.com/keyherald/keyherald/verify"
)

// Whoever has the signing key can sign anything, so the form of what is signed is checked too.
func TestSignedEventsAreInTheirForm(t *testing.T) {
	edit := func(old, new string) func(string) string {
		return func(body string) string {
			if !strings.Contains(body, old) {
				panic(old + " is not in " + body)
			}
			return strings.Replace(body, old, new, 1)
		}
	}
	for _, test := range []struct {
		name   string
		change func(body string) string
		says   string
	}{
		{"a name twice", edit(`{"v":1,`, `{"v":1,"actor":"somebody",`), "not a JSON object of the event's form"},
		{"a name in capitals", edit(`"actor":`, `"Actor":`), "not a JSON object of the event's form"},
		{"a further field", edit(`,"commitment"`, `,"note":"x","commitment"`), "not a JSON object of the event's form"},
		{"a space", edit(`{"v":1,`, `{"v":1, `), "not in the canonical form"},
		{"another order", func(body string) string {
			var fields map[string]any
			if err := json.Unmarshal([]byte(body), &fields); err != nil {
				panic(err)
			}
			raw, err := json.Marshal(fields)
			if err != nil {
				panic(err)
			}
			return string(raw)
		}, "not in the canonical form"},
		{"a letter escaped", edit(`"source`, `"\u0073ource`), "not in the canonical form"},
		{"text behind it", func(body string) string { return body + "{}" }, "not a JSON object of the event's form"},
		{"another version", edit(`{"v":1,`, `{"v":2,`), "its version is not 1"},
		{"an id of another kind", edit(`-7`, `-4`), "its id is not a UUIDv7"},
		{"no time", edit(`"time":1758`, `"time":-1758`), "it has no time"},
		{"no actor", edit(`"actor":"source:kms"`, `"actor":""`), "it has no actor"},
		{"an action in prose", edit(`"notification.accepted"`, `"was accepted"`), "its action is not a noun and a verb"},
		{"an outcome in prose", edit(`"outcome":"accepted"`, `"outcome":"all good"`), "its outcome is not a word"},
		{"a rotation that is none", edit(`"rotation":"0`, `"rotation":"x`), "its rotation is not a UUID"},
		{"a padded commitment", edit(`"}`, `="}`), "its commitment is not the unpadded base64 of 32 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			log := auditbundle.New(name, 1)
			log.Add(12)
			log.Leaves[6].Event = []byte(test.change(string(log.Leaves[6].Event)))
			log.Rebuild()
			log.Sign()
			check(t, scene{bundle: log.Export(), keys: log.Keys, checkpoints: log.Checkpoints}, want(verify.Altered, "altered: event 6", test.says))
		})
	}
}

func TestSignedDetailsAreObjects(t *testing.T) {
	for _, test := range []struct{ name, detail, says string }{
		{"a name twice", `{"a":1,"a":2}`, "has a name twice"},
		{"no object", `["a"]`, "is not a JSON object"},
		{"no JSON", `{"a":`, "is not a JSON object"},
		{"nothing", ``, "is not a JSON object"},
	} {
		t.Run(test.name, func(t *testing.T) {
			log := auditbundle.New(name, 1)
			log.Add(12)
			var e auditbundle.Event
			if err := json.Unmarshal(log.Leaves[6].Event, &e); err != nil {
				t.Fatal(err)
			}
			log.Leaves[6] = auditbundle.Committed(e, log.Leaves[6].Salt, []byte(test.detail))
			log.Rebuild()
			log.Sign()
			check(t, scene{bundle: log.Export(), keys: log.Keys, checkpoints: log.Checkpoints}, want(verify.Altered, "altered: event 6", test.says))
		})
	}
}

// What a server writes for bytes that are no UTF-8, and every other character that JSON escapes.
func TestEveryTextThatAServerCanWriteIsCanonical(t *testing.T) {
	for _, text := range []string{"\xff", "\ufffd", "<a href=\"x\">&\\</a>", "\u2028\u2029", "\x00\b\f\n\r\t\x1f\x7f", "Grüße 🔑", `\ufffd`} {
		log := auditbundle.New(name, 1)
		log.Say("notification.refused", text, "refused", map[string]any{"path": text})
		log.Sign()
		check(t, scene{bundle: log.Export(), keys: log.Keys, checkpoints: log.Checkpoints}, want(verify.Unchanged))
	}
}

func TestAnIDThatComesTwiceIsFound(t *testing.T) {
	log := newLog()
	log.Leaves[1999] = log.Leaves[57]
	log.Rebuild()
	log.Resign(log.Keys...)
	check(t, scene{bundle: log.Export(), keys: log.Keys, checkpoints: log.Checkpoints[19:]}, want(verify.Altered, "altered: event 1999 (", "event 57 has the same id"))
}

// What is written in a bundle must not pass for a line of the verifier's.
func TestForeignTextStaysOnItsLine(t *testing.T) {
	log := newLog()
	evil := "restored\nunchanged since example.org/keyherald size 2000\x1b[2J"
	remembered := log.Checkpoints[15]
	log.GoBack(1500)
	detail := log.Loss(remembered)
	detail["reason"] = evil
	log.Epoch = 2
	log.Say("audit.loss_accepted", name, "accepted", maps.Clone(detail))
	log.Sign()
	report := check(t, scene{bundle: log.Export(), keys: log.Keys}, want(verify.DeclaredGap))
	var text strings.Builder
	if err := report.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text.String(), "\nunchanged") || strings.Contains(text.String(), "\x1b") {
		t.Errorf("the report has foreign lines:\n%s", &text)
	}
}
