package msc4385_test

import (
	"fmt"

	"github.com/keyherald/keyherald/msc4385"
)

// A sender pushes the backup key in both forms, for clients of today and of the proposal's first text.
func ExampleBuild() {
	key := msc4385.NewSecret("dGhlIGtleQ")
	for _, form := range []msc4385.Form{msc4385.FormSend, msc4385.FormPush} {
		content, err := msc4385.Build(form, "m.megolm_backup.v1", key)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(form, string(content))
	}
	fmt.Println("logged as", key)
	// Output:
	// m.secret.send {"name":"m.megolm_backup.v1","secret":"dGhlIGtleQ"}
	// io.element.msc4385.secret.push {"name":"m.megolm_backup.v1","secret":"dGhlIGtleQ"}
	// logged as (redacted)
}

// A receiver that accepts the backup key and nothing else was offline during two changes.
func Example_receiving() {
	policy := map[string]msc4385.Verdict{"m.megolm_backup.v1": msc4385.Accept}
	sender := msc4385.Sender{UserID: "@alice:example.org", CrossSigned: true}
	var pushes []msc4385.Message
	for _, content := range []string{
		`{"name":"m.megolm_backup.v1","secret":"first"}`,
		`{"name":"m.megolm_backup.v1","secret":"second"}`,
		`{"name":"m.cross_signing.master","secret":"third"}`,
		`{"name":"m.megolm_backup.v1","secret":"fourth","request_id":""}`,
	} {
		message, err := msc4385.Parse("m.secret.send", []byte(content))
		if err != nil {
			fmt.Println(err)
			continue
		}
		if message.Kind == msc4385.Response {
			continue // Handled as before, by whoever sent the request.
		}
		if verdict, reason := msc4385.Decide("@alice:example.org", sender, message.Name, policy); verdict != msc4385.Accept {
			fmt.Println(message.Name, verdict, reason)
			continue
		}
		pushes = append(pushes, message)
	}
	// A real test derives the public key and compares it with that of the server's current version.
	current, ok := msc4385.Pick(pushes, func(s msc4385.Secret) bool { return s.Reveal() == "second" })
	fmt.Println(ok, current.Name)
	// Output:
	// m.cross_signing.master refuse secret_not_accepted
	// msc4385: neither an unsolicited secret nor a response: request_id is there but is no request's id
	// true m.megolm_backup.v1
}
