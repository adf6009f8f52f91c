package senders

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// snsAttacks are on the messages of SNS themselves.
func (w *World) snsAttacks() []Attack {
	var all []Attack
	add := func(what string, status int, result string, body func() string) {
		all = append(all, Attack{Name: "sns: " + what, Status: status, Result: result, Request: func() Request { return text("sns", body()) }})
	}
	event := func() string { return w.bridgeEvent("sns", "alice", "v1") }
	signed := func(what string, status int, result string, members object) {
		add(what, status, result, func() string { return w.SignSNS(change(w.notification(event()), members)) })
	}
	altered := func(what string, status int, result string, members object) {
		add(what, status, result, func() string { return w.json(change(w.signedSNS(w.notification(event())), members)) })
	}
	certificateAt := func(what, address string) { signed(what, 401, "wrong_certificate", object{"SigningCertURL": address}) }

	for i, bad := range badCertificates {
		certificateAt(bad.what, snsHost+certificate(i))
	}
	certificateAt("a certificate of a strange authority", snsHost+certificate(100))
	certificateAt("a certificate that is none", snsHost+certificate(101))
	certificateAt("a certificate that is not there", snsHost+certificate(102))
	for what, address := range map[string]string{
		"a certificate of another region":             "https://sns.us-east-1.amazonaws.com" + certPath,
		"a certificate from a host that begins alike": "https://sns.eu-central-1.amazonaws.com.evil.example" + certPath,
		"a certificate from a host behind a user":     "https://sns.eu-central-1.amazonaws.com@evil.example" + certPath,
		"a certificate from a host behind a fragment": "https://evil.example/#" + "https://sns.eu-central-1.amazonaws.com" + certPath,
		"a certificate from a bucket":                 "https://sns.eu-central-1.amazonaws.com.s3.amazonaws.com" + certPath,
		"a certificate without TLS":                   "http://sns.eu-central-1.amazonaws.com" + certPath,
		"a certificate at another port":               "https://sns.eu-central-1.amazonaws.com:8443" + certPath,
		"a certificate with a query":                  snsHost + certPath + "?x",
		"a certificate above the root":                snsHost + "/.." + certPath,
		"a certificate in a folder":                   snsHost + "/evil" + certPath,
		"a certificate with an escaped path":          snsHost + "/%53impleNotificationService-0123456789abcdef0123456789abcdef.pem",
		"the machine's own credentials":               "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
		"a file":                                      "file:///etc/passwd",
		"this server itself":                          "https://localhost/notify/sns",
		"an address in another case":                  "HTTPS://SNS.eu-central-1.amazonaws.com" + certPath,
		"an address that begins with a space":         " " + snsHost + certPath,
		"an action for a certificate":                 snsHost + "/?Action=DeleteTopic&TopicArn=" + Topic,
	} {
		certificateAt(what, address)
	}
	signed("another topic of the account", 403, "wrong_topic", object{"TopicArn": Topic + "2"})
	signed("the topic of another account", 403, "wrong_topic", object{"TopicArn": strings.Replace(Topic, "123456789012", "210987654321", 1)})
	signed("the topic of another region", 403, "wrong_topic", object{"TopicArn": strings.Replace(Topic, "eu-central-1", "us-east-1", 1)})
	signed("the topic in capitals", 403, "wrong_topic", object{"TopicArn": strings.ToUpper(Topic)})
	signed("the topic with a space", 403, "wrong_topic", object{"TopicArn": Topic + " "})
	stamp := func(d time.Duration) func() string {
		return func() string {
			return w.SignSNS(change(w.notification(event()), object{"Timestamp": w.Now().Add(d).UTC().Format(time.RFC3339)}))
		}
	}
	add("an hour and six minutes old", 401, "stale", stamp(-66*time.Minute))
	add("a year old", 401, "stale", stamp(-365*24*time.Hour))
	add("six minutes in the future", 401, "stale", stamp(6*time.Minute))
	altered("another message", 401, "wrong_signature", object{"Message": w.bridgeEvent("sns", "bob", "v1")})
	altered("another id", 401, "wrong_signature", object{"MessageId": "x"})
	altered("another time", 401, "wrong_signature", object{"Timestamp": Start.UTC().Format(time.RFC3339)})
	altered("a subject that nobody signed", 401, "wrong_signature", object{"Subject": "hello"})
	altered("the other hash", 401, "wrong_signature", object{"SignatureVersion": "2"})
	altered("a notification as the end of a subscription", 401, "not_signed", object{"Type": "UnsubscribeConfirmation"})
	altered("no signature", 401, "not_signed", object{"Signature": nil})
	altered("an empty signature", 401, "not_signed", object{"Signature": ""})
	altered("a signature that is no base64", 401, "not_signed", object{"Signature": "!!!"})
	altered("a signature with a line break", 401, "wrong_signature", object{"Signature": "AAAA\nAAAA"})
	altered("a signature of zeros", 401, "wrong_signature", object{"Signature": base64.StdEncoding.EncodeToString(make([]byte, 256))})
	altered("a signature of 8 KiB", 401, "not_signed", object{"Signature": strings.Repeat("A", 8<<10)})
	altered("a list of signatures", 401, "not_signed", object{"Signature": []any{"AAAA"}})
	altered("signature version 0", 401, "not_signed", object{"SignatureVersion": "0"})
	altered("signature version none", 401, "not_signed", object{"SignatureVersion": "none"})
	altered("a signature version that is a number", 401, "not_signed", object{"SignatureVersion": 1})
	altered("no certificate", 401, "not_signed", object{"SigningCertURL": nil})
	altered("the certificate in the message", 401, "not_signed", object{"SigningCertURL": nil, "SigningCert": "-----BEGIN CERTIFICATE-----"})
	altered("no type", 401, "not_signed", object{"Type": nil})
	altered("a type that is none", 401, "not_signed", object{"Type": "Greeting"})
	signed("a topic hidden in the type", 401, "not_signed", object{"Type": "Notification\nTopicArn\nx"})
	signed("a topic hidden in the time", 401, "not_signed", object{"Timestamp": Start.UTC().Format(time.RFC3339) + "\nTopicArn\n" + Topic})
	signed("a subject of two lines", 401, "not_signed", object{"Subject": "a\nTimestamp\nb"})
	add("a key twice in the envelope", 401, "not_signed", func() string {
		return strings.Replace(w.SignSNS(w.notification(event())), `"Message":`, `"Message":"{}","Message":`, 1)
	})
	add("a key in another case beside the right one", 401, "wrong_signature", func() string {
		body := w.signedSNS(w.notification(w.bridgeEvent("sns", "bob", "v1")))
		return w.json(change(body, object{"message": body["Message"], "Message": event()}))
	})
	add("the envelope within the envelope", 400, notBridge, func() string { return w.SignSNS(w.notification(w.SignSNS(w.notification(event())))) })
	add("an envelope that is a list", 401, "not_signed", func() string { return "[" + w.SignSNS(w.notification(event())) + "]" })
	add("raw delivery", 401, "not_signed", event)
	add("a plain message", 400, "within the Message: "+notJSON, func() string { return w.SignSNS(w.notification("ALARM: hello")) })
	return all
}

// eventAttacks are events of authentic senders that say something other than they should.
func (w *World) eventAttacks() []Attack {
	var all []Attack
	add := func(source, what string, status int, result string, body func() string) {
		s := w.Sender(source)
		all = append(all, Attack{Name: source + ": " + what, Status: status, Result: result, Request: func() Request { return s.Send(body()) }})
	}
	grid := func(what string, status int, result string, members object) {
		add("azure", what, status, result, func() string { return w.json([]any{change(w.gridCloudObject(what, "alice", "7"), members)}) })
	}
	grid("an id that is a list", 400, notGrid, object{"id": []any{"x"}})
	grid("no id", 400, notGrid, object{"id": nil})
	grid("an id of spaces", 400, notGrid, object{"id": "   "})
	grid("an id of 2 KiB", 400, longID, object{"id": strings.Repeat("x", 2<<10)})
	grid("another version of CloudEvents", 400, notGrid, object{"specversion": "0.3"})
	grid("both schemas in one", 400, notGrid, object{"eventType": "Microsoft.KeyVault.SecretNewVersionCreated"})
	grid("a type of another object", 202, "unmapped", object{"type": "Microsoft.KeyVault.KeyNewVersionCreated"})
	grid("a type in another case", 202, "unmapped", object{"type": "microsoft.keyvault.secretnewversioncreated"})
	grid("data that is a text", 202, "unmapped", object{"data": `{"ObjectName":"keyherald-alice"}`})
	grid("data of another vault", 202, "unmapped", object{"data": change(gridData("alice", "7"), object{"VaultName": "evil-keys"})})
	grid("an object's name that is an object", 202, "unmapped", object{"data": change(gridData("alice", "7"), object{"ObjectName ": object{"name": "keyherald-alice"}})})
	grid("two keys but for a space", 400, "two JSON keys are the same but for spaces and case", object{"data": change(gridData("alice", "7"), object{"ObjectName": "keyherald-bob"})})
	grid("two keys but for case", 400, "two JSON keys are the same but for spaces and case", object{"data": change(gridData("alice", "7"), object{"VERSION": "8"})})
	grid("two keys but for a wide space", 400, "two JSON keys are the same but for spaces and case", object{"ID\u3000": "x"})
	grid("no version", 422, "the notification names no usable version of keyherald-alice", object{"data": change(gridData("alice", "7"), object{"Version": nil})})
	grid("a version of spaces", 422, "the notification names no usable version of keyherald-alice", object{"data": change(gridData("alice", "7"), object{"Version": "  "})})
	add("azure", "one bad event among good ones", 400, notGrid, func() string {
		return w.json([]any{w.gridCloudObject("g1", "alice", "7"), object{"id": "g2"}, w.gridCloudObject("g3", "bob", "7")})
	})
	bridge := func(what string, status int, result string, members object) {
		add("bridge-basic", what, status, result, func() string { return w.json(change(w.bridgeObject("bridge", "alice", "v1"), members)) })
	}
	bridge("an event of another service", 202, "unmapped", object{"source": "custom.secretsmanager"})
	bridge("another kind of event", 202, "unmapped", object{"detail-type": "Secret Label Deleted"})
	bridge("another label", 202, "unmapped", object{"detail": object{"name": "keyherald/alice", "labelUpdated": "AWSPENDING", "versionId": "v1"}})
	bridge("a list of labels", 202, "unmapped", object{"detail": object{"name": "keyherald/alice", "labelUpdated": []any{"AWSCURRENT"}, "versionId": "v1"}})
	bridge("the detail as text", 202, "unmapped", object{"detail": `{"name":"keyherald/alice","labelUpdated":"AWSCURRENT","versionId":"v1"}`})
	bridge("an id that is an object", 400, notBridge, object{"id": object{"a": "b"}})
	bridge("an id of 2 KiB", 400, longID, object{"id": strings.Repeat("x", 2<<10)})
	bridge("members with a dot for nested ones", 202, "unmapped", object{"detail": nil, "detail.name": "keyherald/alice", "detail.labelUpdated": "AWSPENDING", "detail.versionId": "v1"})
	bridge("a name that is there twice, once with a dot", 202, "unmapped", object{"detail.name": "keyherald/bob"})
	add("sns-strict", "an event of another account", 202, "unmapped", func() string {
		return w.json(change(w.bridgeObject("account", "alice", "v1"), object{"account": "210987654321"}))
	})
	pub := func(what string, status int, result string, members object) {
		add("pubsub", what, status, result, func() string {
			o := w.pubSubObject("pub", "alice", "5")
			return w.json(change(o, object{"message": change(o["message"].(object), members)}))
		})
	}
	const apart = "the message's secretId, versionId and data are not about one version"
	attributes := func(members object) object {
		return object{"attributes": change(object{"eventType": "SECRET_VERSION_ADD", "secretId": "projects/4711/secrets/keyherald-alice", "versionId": "projects/4711/secrets/keyherald-alice/versions/5"}, members)}
	}
	pub("a version of another secret", 400, apart, attributes(object{"versionId": "projects/4711/secrets/keyherald-bob/versions/5"}))
	pub("a version that is no number", 400, apart, attributes(object{"versionId": "projects/4711/secrets/keyherald-alice/versions/latest"}))
	pub("a version with more behind it", 400, apart, attributes(object{"versionId": "projects/4711/secrets/keyherald-alice/versions/5/../6"}))
	pub("no version", 400, apart, attributes(object{"versionId": nil}))
	pub("a secret within a secret", 400, apart, attributes(object{"secretId": "projects/4711/secrets/keyherald-alice/secrets/keyherald-alice"}))
	pub("a secret of another project", 400, apart, attributes(object{"secretId": "projects/4711/secrets/keyherald-bob"}))
	pub("attributes that are a list", 202, "unmapped", object{"attributes": []any{"SECRET_VERSION_ADD"}})
	pub("a list of kinds", 202, "unmapped", attributes(object{"eventType": []any{"SECRET_VERSION_ADD"}}))
	pub("a kind in another case", 202, "unmapped", attributes(object{"eventType": "secret_version_add"}))
	pub("data that is no base64", 400, "the message's data is no base64", object{"data": "!"})
	pub("data that is base64 for URLs", 400, "the message's data is no base64", object{"data": "-_-_"})
	pub("data of another version", 400, apart, object{"data": base64.StdEncoding.EncodeToString([]byte(`{"name":"projects/4711/secrets/keyherald-alice/versions/6"}`))})
	pub("data whose name is a number", 400, apart, object{"data": base64.StdEncoding.EncodeToString([]byte(`{"name":5}`))})
	pub("a key twice within the data", 400, "within the message's data: "+twice, object{"data": base64.StdEncoding.EncodeToString([]byte(`{"name":"a","name":"b"}`))})
	pub("data nested too deep", 400, "within the message's data: "+deep, object{"data": base64.StdEncoding.EncodeToString([]byte(strings.Repeat("[", 40) + strings.Repeat("]", 40)))})
	pub("data that is no JSON", 400, "within the message's data: "+notJSON, object{"data": base64.StdEncoding.EncodeToString([]byte("hello"))})
	pub("no id", 400, notPubSub, object{"messageId": nil})
	pub("an id that is a number", 400, notPubSub, object{"messageId": 5})
	pub("an id of 2 KiB", 400, notPubSub, object{"messageId": strings.Repeat("5", 2<<10)})
	for what, id := range map[string]string{"no id": `null`, "an id that is a list": `["x"]`, "an id that is a fraction": `1.5`, "an id that is empty": `""`, "an id of 2 KiB": `"` + strings.Repeat("x", 2<<10) + `"`} {
		add("soar", what, 400, noID, func() string {
			return `{"incident":` + id + `,"secret":"keyherald/alice/backup-key","version":"7"}`
		})
	}
	add("siem", "another rule", 202, "unmapped", func() string {
		return strings.Replace(w.alert("siem", "alice", "7"), "backup-key-changed", "backup-key-read", 1)
	})
	add("siem", "a rule that is a list", 202, "unmapped", func() string {
		return strings.Replace(w.alert("siem", "alice", "7"), `"backup-key-changed"`, `["backup-key-changed"]`, 1)
	})
	add("infisical", "another environment", 202, "unmapped", func() string {
		return strings.Replace(w.infisicalEvent("x", "alice", ""), `"prod"`, `"dev"`, 1)
	})
	add("doppler", "another project", 202, "unmapped", func() string {
		return strings.Replace(w.dopplerEvent("", "alice", ""), `"keyherald"`, `"evil"`, 1)
	})
	return all
}

// handshakeAttacks ask for subscriptions that nobody wants.
func (w *World) handshakeAttacks() []Attack {
	var all []Attack
	grid := func(what string, status int, result string, send func(Sender) Request) {
		s := w.Sender("azure-header")
		all = append(all, Attack{Name: "azure-header: " + what, Status: status, Result: result, Request: func() Request { return send(s) }})
	}
	const notValidation = "not a validation event of Event Grid"
	for what, code := range map[string]string{"an empty code": "", "a code that is HTML": "<script>alert(1)</script>", "a code that is an address": "https://evil.example/",
		"a code with a line break": "a\r\nSet-Cookie: x=y", "a code of 200 characters": strings.Repeat("a", 200), "a code of JSON": `","x":"`} {
		grid("a validation event with "+what, 400, notValidation, func(s Sender) Request { return s.Send(w.json([]any{w.gridValidation(code)})) })
	}
	grid("two validation events", 400, notValidation, func(s Sender) Request { return s.Send(w.json([]any{w.gridValidation("a"), w.gridValidation("b")})) })
	grid("a validation event among others", 400, notValidation, func(s Sender) Request {
		return s.Send(w.json([]any{w.gridObject("g", "alice", "7"), w.gridValidation("a")}))
	})
	grid("a validation event whose code is a list", 400, notValidation, func(s Sender) Request {
		return s.Send(w.json([]any{change(w.gridValidation("a"), object{"data": object{"validationCode": []any{"a"}}})}))
	})
	grid("a validation event of a stranger", 401, "no_credentials", func(Sender) Request { return json_("azure-header", w.json([]any{w.gridValidation("a")})) })
	grid("a validation event with only its address", 400, notValidation, func(s Sender) Request {
		return s.Send(w.json([]any{change(w.gridValidation("a"), object{"data": object{"validationUrl": "http://169.254.169.254/"}})}))
	})
	for _, source := range []string{"azure", "azure-header"} {
		for what, origin := range map[string]string{"no origin": "", "a stranger's origin": "evil.example", "an origin that ends alike": "evil-eventgrid.azure.net",
			"an origin that begins alike": "eventgrid.azure.net.evil.example", "any origin": "*", "two origins in one": "eventgrid.azure.net, evil.example"} {
			all = append(all, Attack{Name: source + ": OPTIONS with " + what, Status: 403, Result: "wrong_origin", Request: func() Request {
				return Request{Method: "OPTIONS", Source: source}.with("WebHook-Request-Origin", origin)
			}})
		}
		all = append(all, Attack{Name: source + ": OPTIONS with two origins", Status: 400, Result: headers, Request: func() Request {
			return Request{Method: "OPTIONS", Source: source}.with("WebHook-Request-Origin", "eventgrid.azure.net").twice("WebHook-Request-Origin", "evil.example")
		}})
	}
	const elsewhere = "the confirmation's address is not that of the topic's region"
	good := "?Action=ConfirmSubscription&TopicArn=" + url.QueryEscape(Topic) + "&Token=" + confirmToken
	for what, address := range map[string]string{
		"the machine's own credentials":   "http://169.254.169.254/latest/meta-data/",
		"a stranger":                      "https://evil.example/" + good,
		"a host that begins alike":        snsHost + ".evil.example/" + good,
		"a host behind a user":            snsHost + "@evil.example/" + good,
		"another region":                  "https://sns.us-east-1.amazonaws.com/" + good,
		"a host without TLS":              "http://sns.eu-central-1.amazonaws.com/" + good,
		"another port":                    snsHost + ":8443/" + good,
		"another action":                  snsHost + "/?Action=DeleteTopic&TopicArn=" + url.QueryEscape(Topic) + "&Token=" + confirmToken,
		"another topic":                   snsHost + "/?Action=ConfirmSubscription&TopicArn=" + url.QueryEscape(Topic) + "2&Token=" + confirmToken,
		"another token":                   snsHost + "/?Action=ConfirmSubscription&TopicArn=" + url.QueryEscape(Topic) + "&Token=1",
		"two actions, the first harmless": snsHost + "/?Action=ListTopics&Action=ConfirmSubscription&TopicArn=" + url.QueryEscape(Topic) + "&Token=" + confirmToken,
		"nothing that is an address":      "%",
	} {
		all = append(all, Attack{Name: "sns: a confirmation that leads to " + what, Status: 400, Result: elsewhere, Request: func() Request {
			return text("sns", w.SignSNS(change(w.confirmation(), object{"SubscribeURL": address})))
		}})
	}
	confirm := func(what string, status int, result string, body func() string) {
		all = append(all, Attack{Name: "sns: " + what, Status: status, Result: result, Request: func() Request { return text("sns", body()) }})
	}
	confirm("a confirmation of another topic", 403, "wrong_topic", func() string { return w.SignSNS(change(w.confirmation(), object{"TopicArn": Topic + "2"})) })
	confirm("a confirmation that nobody signed", 401, "wrong_signature", func() string {
		return w.json(change(w.confirmation(), object{"Signature": base64.StdEncoding.EncodeToString(make([]byte, 256))}))
	})
	confirm("a notification changed into a confirmation", 401, "wrong_signature", func() string {
		body := w.signedSNS(w.notification("hello"))
		return w.json(change(w.confirmation(), object{"Signature": body["Signature"], "Message": "hello"}))
	})
	confirm("an old confirmation", 401, "stale", func() string {
		return w.SignSNS(change(w.confirmation(), object{"Timestamp": w.Now().Add(-2 * time.Hour).UTC().Format(time.RFC3339)}))
	})
	confirm("a token that is two parameters", 400, elsewhere, func() string {
		return w.SignSNS(change(w.confirmation(), object{"Token": "1&Action=DeleteTopic", "SubscribeURL": snsHost + "/?Action=ConfirmSubscription&TopicArn=" + url.QueryEscape(Topic) + "&Token=" + url.QueryEscape("1&Action=DeleteTopic")}))
	})
	confirm("a confirmation with a subject", 401, "not_signed", func() string { return w.SignSNS(change(w.confirmation(), object{"Subject": "x"})) })
	confirm("a confirmation without a token", 401, "not_signed", func() string { return w.SignSNS(change(w.confirmation(), object{"Token": nil})) })
	return all
}

// mappingAttacks are names, paths and versions of authentic events that should lead to nobody.
func (w *World) mappingAttacks() []Attack {
	var all []Attack
	s := w.Sender("kms")
	number := 0
	subject := func(what, subject string, status int, result string) {
		number++
		body := w.json(object{"specversion": "1.0", "type": "t", "source": "/kms", "id": fmt.Sprintf("mapping-%d", number), "subject": subject, "data": object{"version": "7"}})
		all = append(all, Attack{Name: "kms: the path " + what, Status: status, Result: result, Request: func() Request { return s.Send(body) }})
	}
	noUser := func(user string) string {
		return fmt.Sprintf("the mapping gives %q, which is no Matrix user id", "@"+user+":example.org")
	}
	for _, p := range []struct{ what, subject string }{
		{"of somebody else's secret", "databases/orders/password"}, {"with something before it", "x/keyherald/alice/backup-key"}, {"with something behind it", "keyherald/alice/backup-key/x"},
		{"with a slash before it", "/keyherald/alice/backup-key"}, {"with a slash behind it", "keyherald/alice/backup-key/"}, {"in capitals", "KEYHERALD/ALICE/BACKUP-KEY"},
		{"with a line break behind it", "keyherald/alice/backup-key\n"}, {"with a second line", "keyherald/alice/backup-key\nkeyherald/bob/backup-key"}, {"with a line before it", "x\nkeyherald/alice/backup-key"},
		{"with a way back", "keyherald/alice/../bob/backup-key"}, {"with a way back at its beginning", "../keyherald/alice/backup-key"}, {"with an escaped slash", "keyherald%2Falice%2Fbackup-key"},
		{"with backslashes", `keyherald\alice\backup-key`}, {"with a slash of another width", "keyherald/alice／backup-key"}, {"with a dash of another width", "keyherald/alice/backup‐key"},
		{"with a letter of another alphabet", "kеyherald/alice/backup-key"}, {"with a query", "keyherald/alice/backup-key?version=1"}, {"with an invisible space before it", "\u200bkeyherald/alice/backup-key"},
		{"that is empty", ""}, {"with two users", "keyherald/alice/bob/backup-key"},
	} {
		subject(p.what, p.subject, 202, "unmapped")
	}
	for _, p := range []struct{ what, user string }{
		{"of nobody", ""}, {"of a user in capitals", "Alice"}, {"of a user on another server", "alice:evil.example"}, {"of a user with a colon at the end", "alice:"}, {"of a whole user id", "@alice:example.org"},
		{"of a user with a space", "al ice"}, {"of a user with an umlaut", "älice"}, {"of a user with a letter of another alphabet", "аlice"}, {"of a user written from right to left", "\u202ealice"},
		{"of a user with an invisible character", "ali\u200bce"}, {"of a user with a tab", "alice\t"}, {"of a user that is a dot in another alphabet", "alice。"}, {"of a user that is an emoji", "🙂"},
		{"of a user that is SQL", "x';DROP TABLE rotation;--"}, {"of a user that is HTML", "<b>"}, {"of a user that is a template", "{user}"}, {"of a user with half a surrogate", "alice\ufffd"},
	} {
		subject(p.what, "keyherald/"+p.user+"/backup-key", 422, noUser(p.user))
	}
	subject("with a way back for a user", "keyherald/../backup-key", 422, `the mapping gives the path "keyherald/../backup-key", which is none of a secret`)
	subject("with a dot for a user", "keyherald/./backup-key", 422, `the mapping gives the path "keyherald/./backup-key", which is none of a secret`)
	long := strings.Repeat("a", 400)
	subject("of a user of 400 characters", "keyherald/"+long+"/backup-key", 422, noUser(long)[:0]+fmt.Sprintf("the mapping gives %q, which is no Matrix user id", ("@" + long)[:255]))
	version := func(what, version string) {
		number++
		body := fmt.Sprintf(`{"specversion":"1.0","type":"t","source":"/kms","id":"mapping-%d","subject":"keyherald/alice/backup-key","data":{"version":%s}}`, number, version)
		all = append(all, Attack{Name: "kms: the version " + what, Status: 422, Result: "the notification names no usable version of keyherald/alice/backup-key", Request: func() Request { return s.Send(body) }})
	}
	version("that is empty", `""`)
	version("that is null", `null`)
	version("that is a list", `["7"]`)
	version("that is an object", `{"version":"7"}`)
	version("that is true", `true`)
	version("that is a fraction", `7.5`)
	version("that is a power", `1e3`)
	version("that is negative", `-7`)
	version("that is beyond all numbers", `100000000000000000000000000000`)
	version("with a line break", `"7\n8"`)
	version("with an invisible character", `"7\u200b"`)
	version("written from right to left", `"\u202e7"`)
	version("with a tab", `"7\t"`)
	version("with half a surrogate", `"7\ud800"`)
	version("of 129 characters", `"`+strings.Repeat("7", 129)+`"`)
	version("with a space of another width", `"7\u2003"`)
	bySignature := func() Request { return w.webhook("kms", kmsKey, `{"version":"7"}`) }
	byCertificate := func() Request { return w.Sender("machine").Send(`{"version":"7"}`) }
	prove := byCertificate
	binary := func(what string, status int, result string, change func(Request) Request) {
		proven := prove
		all = append(all, Attack{Name: proven().Source + ": a binary event " + what, Status: status, Result: result, Request: func() Request {
			r := proven().with("Content-Type", "application/json")
			for _, header := range [][2]string{{"Ce-Specversion", "1.0"}, {"Ce-Type", "t"}, {"Ce-Source", "/kms"}, {"Ce-Id", "binary"}, {"Ce-Subject", "keyherald/alice/backup-key"}} {
				r = r.with(header[0], header[1])
			}
			return change(r)
		}})
	}
	binary("with two subjects", 400, headers, func(r Request) Request { return r.twice("Ce-Subject", "keyherald/bob/backup-key") })
	binary("with two ids", 400, headers, func(r Request) Request { return r.twice("Ce-Id", "other") })
	binary("with two of an attribute that nobody knows", 400, headers, func(r Request) Request { return r.twice("Ce-Zz", "1").twice("Ce-Zz", "2") })
	binary("without an id", 400, notCE, func(r Request) Request { return r.with("Ce-Id", "") })
	binary("with an id of 2 KiB", 400, "an attribute of the CloudEvent is no UTF-8 text, or its id has more than 1024 bytes", func(r Request) Request { return r.with("Ce-Id", strings.Repeat("x", 2<<10)) })
	binary("with an id that is no text", 400, "an attribute of the CloudEvent is no UTF-8 text, or its id has more than 1024 bytes", func(r Request) Request { return r.with("Ce-Id", "\xff") })
	binary("of another version of CloudEvents", 400, notCE, func(r Request) Request { return r.with("Ce-Specversion", "0.3") })
	binary("without a subject", 202, "unmapped", func(r Request) Request { return r.with("Ce-Subject", "") })
	binary("with the subject in a header with underscores", 202, "unmapped", func(r Request) Request { return r.with("Ce_Subject", r.header("Ce-Subject")).with("Ce-Subject", "") })
	prove = bySignature
	binary("that was signed, whose headers nobody signed", 415, unproven, func(r Request) Request { return r })
	binary("with another subject than its sender wrote", 415, unproven, func(r Request) Request { return r.with("Ce-Subject", "keyherald/bob/backup-key") })
	binary("of another media type", 415, needsCE, func(r Request) Request { return r.with("Content-Type", "application/vnd.x+json") })
	return all
}

// replays send again what was accepted.
func (w *World) replays() []Attack {
	var all []Attack
	for _, s := range w.Senders() {
		id := "replay-" + s.Source
		honest := func() Request { return s.Send(s.Event(id, "alice", "70")) }
		if s.Source == "doppler" {
			continue // a replay is a second change to it: nothing it signs is ever another
		}
		var kept Request
		first := func() []Request { kept = honest(); return []Request{kept} }
		all = append(all, Attack{Name: s.Source + ": the same again", Before: first, Status: 202, Result: "duplicate", Request: func() Request { return kept }})
		late, lateStatus, lateResult := 6*time.Minute, 401, "stale"
		switch s.Source {
		case "azure-header", "bridge-basic", "soar", "machine":
			lateStatus, lateResult = 202, "duplicate" // the proof has no time, so the id is what tells
		case "azure", "bridge-oauth", "pubsub", "sns", "sns-strict":
			late = 70 * time.Minute
		case "fortress":
			late = 6 * time.Minute
		}
		all = append(all, Attack{Name: s.Source + ": the same again, " + late.String() + " later", Status: lateStatus, Result: lateResult, Request: func() Request { w.Pass(late); return kept }})
		if s.Source == "infisical" || s.Source == "siem" {
			continue // the id is made of the body
		}
		all = append(all, Attack{Name: s.Source + ": the same id with another version", Status: 409, Result: "conflict", Request: func() Request { return s.Send(s.Event(id, "alice", "71")) }})
	}
	siem := w.alert("x", "alice", "70")
	all = append(all, Attack{Name: "siem: the same id with another body", Before: func() []Request { return []Request{w.siem("again", w.Now(), siem)} }, Status: 409, Result: "conflict",
		Request: func() Request { return w.siem("again", w.Now(), w.alert("y", "alice", "70")) }})
	batch := func(version string) string {
		return w.json([]any{w.gridObject("batch-1", "alice", version), w.gridObject("batch-2", "bob", "b")})
	}
	grid := w.Sender("azure-header")
	all = append(all,
		Attack{Name: "azure-header: a batch again", Before: func() []Request { return []Request{grid.Send(batch("a"))} }, Status: 202, Result: "accepted", Request: func() Request { return grid.Send(batch("a")) }},
		Attack{Name: "azure-header: a batch again with another version in it", Status: 409, Result: "conflict", Request: func() Request { return grid.Send(batch("c")) }})
	return all
}
