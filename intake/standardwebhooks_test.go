package intake

import (
	"encoding/base64"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/keyherald/keyherald/audit"
)

// The example of the Standard Webhooks specification and its libraries.
const (
	exampleSecret    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	exampleID        = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	exampleBody      = `{"test": 2432232314}`
	exampleSignature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)

var exampleTime = time.Unix(1614265330, 0)

func headers(id, timestamp, signature string) http.Header {
	h := http.Header{}
	h.Set("Webhook-Id", id)
	h.Set("Webhook-Timestamp", timestamp)
	h.Set("Webhook-Signature", signature)
	return h
}

func exampleKeys(t testing.TB, notAfter time.Time) standardWebhooks {
	t.Helper()
	b := &builder{at: "sources.test", Source: Source{Keys: []Key{
		{ID: "next", Secret: "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 32))},
		{ID: "example", Secret: exampleSecret, NotAfter: notAfter},
	}}}
	keys, err := b.webhookKeys()
	if err != nil {
		t.Fatal(err)
	}
	return standardWebhooks{keys}
}

func TestSignatures(t *testing.T) {
	stamp := strconv.FormatInt(exampleTime.Unix(), 10)
	tests := []struct {
		name   string
		header http.Header
		body   string
		now    time.Time
		key    string
		reason audit.Refusal
	}{
		{"the specification's example is authentic", headers(exampleID, stamp, exampleSignature), exampleBody, exampleTime, "example", ""},
		{"one of several signatures is enough", headers(exampleID, stamp, "v1,AAAA v1a,xx v2,yy "+exampleSignature), exampleBody, exampleTime, "example", ""},
		{"five minutes late is still in time", headers(exampleID, stamp, exampleSignature), exampleBody, exampleTime.Add(5 * time.Minute), "example", ""},
		{"later is stale", headers(exampleID, stamp, exampleSignature), exampleBody, exampleTime.Add(5*time.Minute + time.Second), "", "stale"},
		{"another body is not authentic", headers(exampleID, stamp, exampleSignature), exampleBody + " ", exampleTime, "", "wrong_signature"},
		{"another id is not authentic", headers(exampleID+"x", stamp, exampleSignature), exampleBody, exampleTime, "", "wrong_signature"},
		{"a moved timestamp is not authentic", headers(exampleID, stamp+"0", exampleSignature), exampleBody, exampleTime, "", "wrong_signature"},
		{"a signature without its version is none", headers(exampleID, stamp, exampleSignature[3:]), exampleBody, exampleTime, "", "wrong_signature"},
		{"no id", headers("", stamp, exampleSignature), exampleBody, exampleTime, "", "not_signed"},
		{"no timestamp", headers(exampleID, "", exampleSignature), exampleBody, exampleTime, "", "not_signed"},
		{"a timestamp that is no number", headers(exampleID, "now", exampleSignature), exampleBody, exampleTime, "", "not_signed"},
		{"no signature", headers(exampleID, stamp, ""), exampleBody, exampleTime, "", "not_signed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			key, reason := exampleKeys(t, time.Time{}).verify(test.header, []byte(test.body), test.now)
			if key != test.key || reason != test.reason {
				t.Errorf("got %q and %q, want %q and %q", key, reason, test.key, test.reason)
			}
		})
	}
	t.Run("a key whose time is over signs no more", func(t *testing.T) {
		if key, reason := exampleKeys(t, exampleTime).verify(headers(exampleID, stamp, exampleSignature), []byte(exampleBody), exampleTime); key != "" || reason != "wrong_signature" {
			t.Errorf("got %q and %q", key, reason)
		}
	})
	t.Run("our own signature is the specification's", func(t *testing.T) {
		if signature, err := Sign(exampleSecret, exampleID, exampleTime, []byte(exampleBody)); err != nil || signature != exampleSignature {
			t.Errorf("got %q, %v", signature, err)
		}
	})
}

// Whatever the headers say, only the MAC over id, timestamp and body makes a notification authentic.
func FuzzVerify(f *testing.F) {
	f.Add(exampleID, "1614265330", exampleSignature, exampleBody)
	f.Add(exampleID, "1614265330", "v1,"+exampleSignature, exampleBody)
	f.Add("", "-1", "v1, v1,=", "")
	s := exampleKeys(f, time.Time{})
	f.Fuzz(func(t *testing.T, id, timestamp, signature, body string) {
		key, _ := s.verify(headers(id, timestamp, signature), []byte(body), exampleTime)
		if key == "example" && (id != exampleID || timestamp != "1614265330" || body != exampleBody) {
			t.Errorf("%q at %q was taken for authentic", id, timestamp)
		}
	})
}
