package intake_test

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest/senders"
)

// A company's own issuer may be at a private address, and nobody else: here over real connections.
func TestOnlyTheIssuersOwnHostMayBePrivate(t *testing.T) {
	w := senders.New(t)
	asked := 0
	server := httptest.NewTLSServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		asked++
		_, _ = out.Write(w.Keys("company"))
	}))
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, issuer, caFile string
		status, asked        int
	}{
		{"the issuer's own host is asked", server.URL, ca, 202, 1},
		{"another host than the issuer's is not, at a private address", "https://idp.example.org", ca, 503, 0},
		{"nor is one for which nobody vouches", server.URL, "", 503, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := w.Config()
			s := config.Sources["bridge-oauth"]
			s.JWT.Issuer, s.JWT.KeysURL, s.JWT.CAFile = test.issuer, server.URL+"/keys", test.caFile
			deps := intake.Deps{Recorder: senders.NewMemory(), Now: w.Now, Log: zerolog.Nop()}
			handler, err := intake.New(intake.Config{Sources: map[string]intake.Source{"bridge-oauth": s}}, deps)
			if err != nil {
				t.Fatal(err)
			}
			asked = 0
			sender := w.Sender("bridge-oauth")
			r := sender.Send(sender.Event("private", "alice", "7"))
			for i, header := range r.Headers {
				if header[0] == "Authorization" {
					r.Headers[i][1] = "Bearer " + w.GoodToken("company", map[string]any{"iss": test.issuer, "client_id": "eventbridge", "scope": "notify"})
				}
			}
			status, result := r.Answer(echoOf(handler))
			if status != test.status || asked != test.asked {
				t.Errorf("got %d %q, and it was asked %d times", status, result, asked)
			}
			if err := handler.Reach(t.Context()); (err != nil) != (test.status != 202) || err != nil && !strings.Contains(err.Error(), "sources.bridge-oauth.jwt.keys_url") {
				t.Errorf("reaching it: %v", err)
			}
		})
	}
}
