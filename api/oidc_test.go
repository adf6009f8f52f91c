package api_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/keyheraldtest/identity"
)

// newProvider is a real provider, and a server that takes its tokens.
func newProvider(t *testing.T, change ...func(*api.Config, *api.Deps)) (*identity.Provider, *server) {
	t.Helper()
	p, err := identity.Start(map[string][]string{"alice": {"staff", "keyherald-admins"}, "bob": {"keyherald-helpdesk", "revision"}, "carol": {"staff"}})
	check(t, err)
	t.Cleanup(p.Close)
	return p, newServer(t, append([]func(*api.Config, *api.Deps){func(c *api.Config, d *api.Deps) {
		c.OIDC = &api.OIDCConfig{Issuer: p.Issuer, Audience: identity.ClientID, RolesClaim: identity.GroupsClaim, NameClaim: "name",
			Roles: map[string]api.Role{"keyherald-admins": "admin", "keyherald-helpdesk": "helpdesk", "revision": "auditor"}}
		d.Roots = p.Roots
	}}, change...)...)
}

func logIn(t *testing.T, p *identity.Provider, name string) string {
	t.Helper()
	token, err := p.LogIn(t.Context(), name)
	check(t, err)
	return "Bearer " + token
}

func TestPeopleOfARealProviderCallInTheirRoles(t *testing.T) {
	p, s := newProvider(t)
	alice, bob, carol := logIn(t, p, "alice"), logIn(t, p, "bob"), logIn(t, p, "carol")
	who := into[api.Whoami](t, s.with(alice, http.MethodGet, "/whoami", nil), http.StatusOK)
	if who.Actor != "admin:alice@"+p.Issuer || len(who.Roles) != 1 || who.Roles[0] != "admin" {
		t.Errorf("alice is %+v", who)
	}
	if who := into[api.Whoami](t, s.with(bob, http.MethodGet, "/whoami", nil), http.StatusOK); len(who.Roles) != 2 {
		t.Errorf("bob is %+v", who)
	}
	into[api.Freeze](t, s.with(alice, http.MethodPut, "/freeze", nil), http.StatusOK)
	if lines := s.log("triggers.frozen", "accepted"); len(lines) != 1 || lines[0].Actor != "admin:alice@"+p.Issuer {
		t.Errorf("the log has %v", lines)
	}
	if got := s.with(bob, http.MethodDelete, "/freeze", nil); got.status != http.StatusForbidden {
		t.Errorf("bob thaws and gets %d", got.status)
	}
	// As an auditor bob may list everybody's, though helpdesk alone may not.
	into[api.Page[api.Rotation]](t, s.with(bob, http.MethodGet, "/rotations", nil), http.StatusOK)
	if got := s.with(carol, http.MethodGet, "/whoami", nil); got.status != http.StatusForbidden || got.problem(t).Refusal != "no_role" {
		t.Errorf("carol has no role and gets %d: %s", got.status, got.body)
	}
	if lines := s.log("access.refused", "refused"); len(lines) != 2 {
		t.Errorf("the log has %v", lines)
	}
	login := into[api.Login](t, s.with("", http.MethodGet, "/login", nil), http.StatusOK)
	if login.Issuer != p.Issuer || login.Audience != identity.ClientID {
		t.Errorf("programs are told %+v", login)
	}
}

func TestTheProvidersKeysRotate(t *testing.T) {
	p, s := newProvider(t)
	old := logIn(t, p, "alice")
	into[api.Whoami](t, s.with(old, http.MethodGet, "/whoami", nil), http.StatusOK)
	check(t, p.NewKey())
	fresh := logIn(t, p, "alice")
	s.clock.Advance(31 * time.Second) // the issuer is asked again after half a minute
	into[api.Whoami](t, s.with(fresh, http.MethodGet, "/whoami", nil), http.StatusOK)
	if got := s.with(old, http.MethodGet, "/whoami", nil); got.status != http.StatusUnauthorized && got.status != http.StatusServiceUnavailable {
		t.Errorf("the key that is gone still counts: %d", got.status)
	}
}

func TestNobodyIsRefusedWhileTheProviderIsDown(t *testing.T) {
	p, s := newProvider(t)
	alice := logIn(t, p, "alice")
	config := api.OIDCConfig{Issuer: p.Issuer, Audience: identity.ClientID}
	check(t, config.Reach(t.Context(), api.Deps{Roots: p.Roots}))
	p.SetDown(true)
	if err := config.Reach(t.Context(), api.Deps{Roots: p.Roots}); err == nil {
		t.Error("the keys of a provider that is down can be read")
	}
	if got := s.with(alice, http.MethodGet, "/whoami", nil); got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
		t.Errorf("got %d: %s", got.status, got.body)
	}
	into[api.Whoami](t, s.as("admin", http.MethodGet, "/whoami", nil), http.StatusOK)
	p.SetDown(false)
	s.clock.Advance(31 * time.Second)
	into[api.Whoami](t, s.with(alice, http.MethodGet, "/whoami", nil), http.StatusOK)
	p.SetDown(true)
	into[api.Whoami](t, s.with(alice, http.MethodGet, "/whoami", nil), http.StatusOK) // the keys are kept
}

func TestTokensThatAreNotForThisServerAreRefused(t *testing.T) {
	p, s := newProvider(t)
	alice := logIn(t, p, "alice")
	_, elsewhere := newProvider(t, func(c *api.Config, _ *api.Deps) { c.OIDC.Audience = "another" })
	parts := strings.Split(strings.TrimPrefix(alice, "Bearer "), ".")
	for name, token := range map[string]string{"a token of another issuer": alice, "one without a signature": "Bearer " + parts[0] + "." + parts[1] + "."} {
		if got := elsewhere.with(token, http.MethodGet, "/whoami", nil); got.status != http.StatusUnauthorized {
			t.Errorf("%s gets %d", name, got.status)
		}
	}
	other := newServer(t, func(c *api.Config, d *api.Deps) {
		c.OIDC = &api.OIDCConfig{Issuer: p.Issuer, Audience: "another", RolesClaim: identity.GroupsClaim, Roles: map[string]api.Role{"keyherald-admins": "admin"}}
		d.Roots = p.Roots
	})
	if got := other.with(alice, http.MethodGet, "/whoami", nil); got.status != http.StatusUnauthorized || got.problem(t).Refusal != "wrong_claims" {
		t.Errorf("one for another audience gets %d: %s", got.status, got.body)
	}
	s.clock.Advance(24 * time.Hour)
	if got := s.with(alice, http.MethodGet, "/whoami", nil); got.status != http.StatusUnauthorized && got.status != http.StatusServiceUnavailable {
		t.Errorf("one of yesterday gets %d: %s", got.status, got.body)
	}
}
