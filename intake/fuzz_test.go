package intake

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/internal/cidr"
	"github.com/keyherald/keyherald/internal/strictjson"
)

func fuzzRequest(contentType, body string, headers ...string) *request {
	req := httptest.NewRequest(http.MethodPost, "/notify/x", nil)
	req.Header = http.Header{"Content-Type": {contentType}}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return &request{http: req, header: req.Header, remote: "10.1.0.1:1", body: []byte(body), now: exampleTime}
}

// sound checks what a format made of a request: an answer to give, or events that the database and the devices can keep.
func sound(t *testing.T, m *mapping, s said, denied *denial) {
	t.Helper()
	if denied != nil {
		if denied.status < 400 || denied.reason == "" || len(s.events) > 0 || s.handshake != nil {
			t.Errorf("denied with %+v, and said %+v", denied, s)
		}
		return
	}
	if (len(s.events) == 0) == (s.handshake == nil) {
		t.Errorf("said %+v", s)
	}
	for _, e := range s.events {
		if e.id == "" || len(e.id) > maxID || !keepable(e.id) || e.sum == [32]byte{} {
			t.Errorf("an event with the id %q and the sum %x", e.id, e.sum)
		}
		n := Notification{ID: e.id}
		ignored, wrong := m.apply(e, &n)
		if wrong != (Problem{}) && ignored != "" || len(n.User) > maxUser || len(n.Path) > maxPath || len(n.Version) > maxVersion {
			t.Errorf("%q, %v: %+v", ignored, wrong, n)
		}
		if ignored != "" || wrong != (Problem{}) {
			continue
		}
		local, server, err := id.UserID(n.User).ParseAndValidateStrict()
		if err != nil || server != "example.org" || local == "" || n.Version == "" && !n.Read || n.Read != (e.read || m.disclosure.marks(e)) || n.Read && m.disclosure.expects(n.Reader, local) || !printable(n.Version+n.Path) || strings.Contains(n.Path, "/../") {
			t.Errorf("%+v: %v", n, err)
		}
	}
}

func fuzzMapping(f *testing.F, format string, m Mapping) *mapping {
	f.Helper()
	m.Pattern, m.User, m.KMS = `(?s)(?:.*[/-])?(?P<user>[^/-]*?)(?:/backup-key)?`, "@{user}:example.org", "k"
	compiled, err := m.compile("sources.x")
	if err != nil {
		f.Fatal(err)
	}
	if compiled.disclosure, err = (&Disclosure{Rotate: true, Readers: []string{"device/{user}", "*@contoso.example"}}).compile(format); err != nil {
		f.Fatal(err)
	}
	return compiled
}

func FuzzCloudEvents(f *testing.F) {
	f.Add("application/cloudevents+json", `{"specversion":"1.0","type":"t","source":"/s","id":"1","subject":"keyherald/alice/backup-key","data":{"version":1}}`, "", "")
	f.Add("application/cloudevents+json; charset=utf-8", `{"specversion":"0.3"}`, "", "")
	f.Add("application/cloudevents+json", `{"specversion":"1.0","type":"t","source":"/s","id":"1","subject":"a","data_base64":"eyJ2ZXJzaW9uIjoiOSJ9"}`, "", "")
	f.Add("application/json", `{"version":"7"}`, "b1", "keyherald/bob/backup-key")
	f.Add("application/cloudevents+json", `{"specversion":"1.0","type":"io.keyherald.secret.read","source":"/s","id":"1","subject":"keyherald/alice/backup-key","data":{"reader":"device/alice"}}`, "", "")
	m := fuzzMapping(f, "cloudevents", Mapping{}.or("subject", "data.version"))
	f.Fuzz(func(t *testing.T, contentType, body, ceID, subject string) {
		r := fuzzRequest(contentType, body)
		if ceID != "" {
			r = fuzzRequest(contentType, body, "Ce-Specversion", "1.0", "Ce-Type", "t", "Ce-Source", "/s", "Ce-Id", ceID, "Ce-Subject", subject)
		}
		s, denied := cloudEvents{binary: true}.read(t.Context(), r)
		sound(t, m, s, denied)
		if s, denied := (cloudEvents{}).read(t.Context(), r); denied == nil && r.mediaType() != "application/cloudevents+json" {
			t.Errorf("a binary event was taken: %+v", s)
		}
	})
}

func FuzzEventGrid(f *testing.F) {
	f.Add(`[{"id":"1","topic":"/t","subject":"s","eventType":"Microsoft.KeyVault.SecretNewVersionCreated","data":{"ObjectName ":"keyherald-alice","Version":" ee"}}]`)
	f.Add(`{"id":"1","source":"/t","type":"Microsoft.KeyVault.SecretNewVersionCreated","specversion":"1.0","data":{"objectname":"alice","VERSION":7}}`)
	f.Add(`[{"id":"1","eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","data":{"validationCode":"512d","validationUrl":"https://x"}}]`)
	f.Add(`[{"Id":"1"," id ":"2"}]`)
	m := fuzzMapping(f, "cloudevents", Mapping{}.or("data.ObjectName", "data.Version"))
	f.Fuzz(func(t *testing.T, body string) {
		s, denied := eventGrid{eventGridOrigin}.read(t.Context(), fuzzRequest("application/json", body))
		sound(t, m, s, denied)
		if denied == nil && s.handshake != nil && !validationCode.MatchString(s.handshake.body["validationResponse"]) {
			t.Errorf("answered %q", s.handshake.body)
		}
		if s, denied := (eventGrid{eventGridOrigin}).preflight(fuzzRequest("", "", "Webhook-Request-Origin", body)); denied == nil && s["WebHook-Allowed-Origin"] != eventGridOrigin {
			t.Errorf("%q was allowed", s)
		}
	})
}

func FuzzEventBridge(f *testing.F) {
	f.Add(`{"id":"1","detail-type":"Secret Label Updated","source":"aws.secretsmanager","detail":{"name":"keyherald/alice","labelUpdated":"AWSCURRENT","versionId":"v"}}`)
	f.Add(`{"id":"1","detail-type":"Secret Label Updated","source":"aws.secretsmanager","detail.name":"x","detail":{"name":"y"}}`)
	f.Add(`{"id":"1","detail-type":"AWS API Call via CloudTrail","source":"aws.secretsmanager","detail":{"eventSource":"secretsmanager.amazonaws.com","eventName":"GetSecretValue","userIdentity":{"arn":"device/alice"},"requestParameters":{"secretId":"arn:aws:secretsmanager:eu-central-1:123456789012:secret:keyherald/alice-a1b2c3","versionId":"v"}}}`)
	f.Add(`{"id":"1","detail-type":"AWS API Call via CloudTrail","source":"aws.secretsmanager","detail":{"eventSource":"secretsmanager.amazonaws.com","eventName":"BatchGetSecretValue","requestParameters":{"secretIdList":["keyherald/alice","keyherald/bob",7]}}}`)
	m := fuzzMapping(f, "aws-eventbridge", Mapping{}.or("detail.name", "detail.versionId"))
	f.Fuzz(func(t *testing.T, body string) {
		s, denied := eventBridge{}.read(t.Context(), fuzzRequest("application/json", body))
		sound(t, m, s, denied)
	})
}

func FuzzPubSub(f *testing.F) {
	f.Add(`{"subscription":"s","message":{"messageId":"1","data":"eyJuYW1lIjoicHJvamVjdHMvMS9zZWNyZXRzL2tleWhlcmFsZC1hbGljZS92ZXJzaW9ucy81In0=","attributes":{"eventType":"SECRET_VERSION_ADD","secretId":"projects/1/secrets/keyherald-alice","versionId":"projects/1/secrets/keyherald-alice/versions/5"}}}`)
	f.Add(`{"subscription":"s","message":{"messageId":"1","attributes":{"eventType":"TOPIC_CONFIGURED"}}}`)
	f.Add(`{"subscription":"s","message":{"messageId":"1","data":"eyJwcm90b1BheWxvYWQiOnsic2VydmljZU5hbWUiOiJzZWNyZXRtYW5hZ2VyLmdvb2dsZWFwaXMuY29tIiwibWV0aG9kTmFtZSI6Imdvb2dsZS5jbG91ZC5zZWNyZXRtYW5hZ2VyLnYxLlNlY3JldE1hbmFnZXJTZXJ2aWNlLkFjY2Vzc1NlY3JldFZlcnNpb24iLCJyZXNvdXJjZU5hbWUiOiJwcm9qZWN0cy8xL3NlY3JldHMva2V5aGVyYWxkLWFsaWNlL3ZlcnNpb25zLzUifX0="}}`)
	m := fuzzMapping(f, "gcp-pubsub", Mapping{}.or("secretId", "version"))
	f.Fuzz(func(t *testing.T, body string) {
		s, denied := pubSub{}.read(t.Context(), fuzzRequest("application/json", body))
		sound(t, m, s, denied)
		for _, e := range s.events {
			if !e.irrelevant && (strings.Trim(e.field("version"), "0123456789") != "" || e.field("version") == "" && !e.read) {
				t.Errorf("a version %q", e.field("version"))
			}
		}
	})
}

// The mapping of the format generic: any body, and any names of fields.
func FuzzGeneric(f *testing.F) {
	f.Add(`{"a":{"b":"keyherald/alice/backup-key"},"v":7,"i":"x"}`, "a.b", "v", "field:i", "v", "7")
	f.Add(`{"a.b":"keyherald/alice/backup-key","a":{"b":"keyherald/bob/backup-key"}}`, "a.b", "none", "body", "x", "")
	f.Add(`{"a":"keyherald/alice/backup-key"}`, "a", "none", "arrival", "", "")
	f.Add(`{"a":"keyherald/alice/backup-key","v":"read","i":"device/alice"}`, "a", "v", "i", "v", "read")
	f.Fuzz(func(t *testing.T, body, attribute, version, names, where, is string) {
		if attribute == "" || version == "" || names == "" {
			return
		}
		m := Mapping{Attribute: attribute, Version: version, Where: map[string]string{where: is}, Pattern: `(?s)(?:.*/)?(?P<user>[^/]*?)(?:/backup-key)?`, User: "@{user}:example.org", KMS: "k"}
		compiled, err := m.compile("sources.x")
		if err != nil {
			t.Fatal(err)
		}
		if compiled.disclosure, err = (&Disclosure{Rotate: true, Readers: []string{"device/{user}"}, Reader: names, Where: map[string]string{version: is}}).compile("generic"); err != nil {
			t.Fatal(err)
		}
		s, denied := generic{names}.read(t.Context(), fuzzRequest("application/json", body, "X-Id", names))
		sound(t, compiled, s, denied)
	})
}

// Whatever the headers say, only the MAC over what is to be signed makes a notification authentic.
func FuzzSignature(f *testing.F) {
	keys := []key{{id: "k", secret: []byte("0123456789abcdef01234567")}}
	schemes := make([]*macScheme, 0, 3)
	for _, s := range []struct {
		signature Signature
		id        string
	}{
		{Signature{Header: "X-Signature", Value: "t={timestamp};{mac}", Timestamp: "field:timestamp", TimestampUnit: "ms"}, "body"},
		{Signature{Header: "X-Signature", Value: "v1={mac}", Encoding: "base64", Signed: "v1:{id}:{timestamp}:{body}", Timestamp: "header:X-Timestamp", TimestampUnit: "rfc3339"}, "header:X-Id"},
		{Signature{Header: "X-Signature", Value: "t={timestamp},v1={mac}", Signed: "{timestamp}.{body}", Timestamp: "value"}, "body"},
	} {
		scheme, err := s.signature.compile("sources.x", s.id, keys)
		if err != nil {
			f.Fatal(err)
		}
		schemes = append(schemes, scheme)
	}
	f.Add("t=1614265330000;00", "2021-02-25T15:02:10Z", "id", `{"timestamp":1614265330000}`)
	f.Add("v1=AAAA", "2021-02-25T15:02:10.5+01:00", "a:b", `{}`)
	f.Add("t=1614265330,v1=00", "", "", `{}`)
	f.Fuzz(func(t *testing.T, signature, timestamp, name, body string) {
		for _, scheme := range schemes {
			if who, denied := scheme.check(t.Context(), fuzzRequest("application/json", body, "X-Signature", signature, "X-Timestamp", timestamp, "X-Id", name)); denied == nil {
				t.Errorf("%q by %q at %q with %q was taken for one of %s", body, signature, timestamp, name, who)
			}
		}
	})
}

// Only what one of our own proxies says counts, and of that only what it heard itself.
func FuzzClient(f *testing.F) {
	f.Add("10.1.0.1:1", "198.51.100.1", "10.1.0.0/16")
	f.Add("203.0.113.1:1", "198.51.100.1", "10.1.0.0/16")
	f.Add("10.1.0.1:1", "198.51.100.1, 203.0.113.1 ,10.1.0.2", "10.1.0.0/16")
	f.Add("[::ffff:10.1.0.1]:1", "::1", "10.1.0.0/16")
	f.Fuzz(func(t *testing.T, remote, forwarded, proxy string) {
		proxies, err := cidr.Parse("x", []string{proxy})
		if err != nil {
			return
		}
		r := fuzzRequest("", "", "X-Forwarded-For", forwarded)
		r.remote = remote
		address, ok := client(r, proxies)
		if !ok {
			return
		}
		direct, _ := peer(r)
		if within(address, proxies) || !within(direct, proxies) && address != direct {
			t.Errorf("%s, forwarded for %q, is %s", remote, forwarded, address)
		}
		if address != direct && !strings.Contains(forwarded, last(forwarded, address)) {
			t.Errorf("%s is not in %q", address, forwarded)
		}
	})
}

// last is the text of an address among others, the last one if it is there several times.
func last(list string, address netip.Addr) string {
	found := "none"
	for text := range strings.SplitSeq(list, ",") {
		if parsed, err := netip.ParseAddr(strings.TrimSpace(text)); err == nil && parsed.Unmap().WithZone("") == address {
			found = strings.TrimSpace(text)
		}
	}
	return found
}

func FuzzForwardedCertificate(f *testing.F) {
	f.Add("-----BEGIN%20CERTIFICATE-----%0AAAAA%0A-----END%20CERTIFICATE-----%0A")
	f.Add("%")
	mode := clientCertificate(nil, []string{"x"}, "X-Client-Cert", []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")})
	f.Fuzz(func(t *testing.T, value string) {
		if who, denied := mode(context.Background(), fuzzRequest("", "", "X-Client-Cert", value)); denied == nil {
			t.Errorf("%q was taken for %s", value, who)
		}
	})
}

// A template of the mapping, and what stands in its place, never lead out of the server or to another path's rotation.
func FuzzMapping(f *testing.F) {
	f.Add("keyherald/alice/backup-key", "7")
	f.Add("keyherald/alice:evil.example/backup-key", "7\u202e")
	f.Add("keyherald/../backup-key", "")
	m, err := Mapping{Attribute: "a", Version: "v", Pattern: `keyherald/(?P<user>[^/]*)/backup-key`, User: "@{user}:example.org", KMS: "k", Path: "vault/{user}/key"}.compile("sources.x")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path, version string) {
		value := map[string]any{"a": path, "v": version}
		sound(t, m, said{events: []event{{id: "1", sum: [32]byte{1}, field: func(name string) string {
			found, _ := strictjson.Lookup(value, name)
			text, _ := strictjson.Text(found)
			return text
		}}}}, nil)
	})
}

func FuzzAuthorization(f *testing.F) {
	f.Add("Basic a2V5aGVyYWxkOmJhc2ljLTAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5")
	f.Add("bearer x")
	f.Add("Basic :")
	f.Fuzz(func(t *testing.T, value string) {
		mode := basic("keyherald", []key{{id: "k", secret: []byte("what-nobody-will-guess-0123456789"), notAfter: time.Time{}}})
		if who, denied := mode(t.Context(), fuzzRequest("", "", "Authorization", value)); denied == nil {
			t.Errorf("%q was taken for %s", value, who)
		}
	})
}
