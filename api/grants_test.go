package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/enrollment"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
)

func TestAGrantForNobodyOfTheRosterIsAnsweredWithAWarning(t *testing.T) {
	proofs, err := enrollment.New(enrollment.Config{Proofs: map[string]enrollment.Proof{"workload": {Type: protocol.ProofOIDC, Issuer: "https://localhost:1", KeysURL: "https://localhost:1/keys",
		Audience: "keyherald", Pattern: "(?P<user>[a-z]+)", User: "@{user}:example.org"}}}, enrollment.Deps{})
	check(t, err)
	s := newServer(t, func(_ *api.Config, deps *api.Deps) {
		deps.Engine, err = relay.New(relay.Config{DB: deps.DB, Proofs: proofs, BotUserID: "@keyherald:example.org", BotMasterKey: "bWFzdGVyIGtleSBvZiB0aGUgYm90IGluIHRlc3RzLi4", Now: deps.Now})
		check(t, err)
	})
	grant := func(users string) api.CreatedGrant {
		t.Helper()
		return into[api.CreatedGrant](t, s.as("admin", http.MethodPost, "/grants", `{"users":"`+users+`","proof":"workload","max":3}`), http.StatusCreated)
	}
	if g := grant("@nobody:example.org"); len(g.Warnings) != 0 || g.State != "open" {
		t.Errorf("without a roster it is %+v", g)
	}
	into[enforce.RosterChange](t, s.as("admin", http.MethodPut, "/roster", csv, "Content-Type", "text/csv"), http.StatusOK)
	if g := grant("@alic?:example.org"); len(g.Warnings) != 0 {
		t.Errorf("for somebody of the roster it is %+v", g)
	}
	if g := grant("@nobody:example.org"); len(g.Warnings) != 1 || !strings.Contains(g.Warnings[0], "nobody of the roster matches @nobody:example.org") || g.State != "open" {
		t.Errorf("for nobody of the roster it is %+v", g)
	}
	if all := walk[api.Grant](t, s, "admin", "/grants", 10, nil); len(all) != 3 {
		t.Errorf("there are %+v", all)
	}
	if lines := s.log("grant.created", "accepted"); len(lines) != 3 {
		t.Errorf("the log has %v", lines)
	}
}
