package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/keyheraldtest/identity"
)

// A person logs in at a real provider by the device flow, and acts as himself from then on.
func TestAPersonLogsInByTheDeviceFlow(t *testing.T) {
	t.Parallel()
	p, err := identity.Start(map[string][]string{"alice": {"keyherald-admins"}})
	check(t, err)
	t.Cleanup(p.Close)
	r := withBot(t, newRoom(t))
	check(t, os.WriteFile(r.path("provider.pem"), p.CertificatePEM(), 0o600))
	r.provider = &api.OIDCConfig{Issuer: p.Issuer, Audience: identity.DeviceClientID, CAFile: r.path("provider.pem"), RolesClaim: identity.GroupsClaim, Roles: map[string]api.Role{"keyherald-admins": "admin"},
		ClientID: identity.DeviceClientID, Scopes: []string{"openid", "profile"}}
	server := r.server(t)
	program := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
		// As another user's machine: it trusts the provider, and has nothing of the server's.
		cmd.Env = []string{runAsProgram + "=1", "SSL_CERT_FILE=" + r.path("provider.pem"), "HOME=" + r.path("home"), "XDG_CONFIG_HOME=" + r.path("home")}
		cmd.Dir = t.TempDir()
		return cmd
	}
	if said, err := program("rotations", "list").CombinedOutput(); err == nil || !strings.Contains(string(said), "keyherald login --server") {
		t.Errorf("before the login it says: %s", said)
	}
	cmd := program("login", "--server", server)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	said, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	lines := bufio.NewScanner(said)
	if !lines.Scan() {
		t.Fatalf("it says nothing: %v, %s", cmd.Wait(), complaint.String())
	}
	var address, code string
	if _, err := fmt.Sscanf(lines.Text(), "Open %s and write %s there.", &address, &code); err != nil {
		t.Fatalf("it says %q: %v", lines.Text(), err)
	}
	check(t, p.Allow(t.Context(), code, "alice"))
	rest := ""
	for lines.Scan() {
		rest += lines.Text()
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(rest, "You are admin:alice@"+p.Issuer+", with the roles [admin]") {
		t.Fatalf("the login ends with %v, %s, %s", err, rest, complaint.String())
	}
	kept := filepath.Join(r.path("home"), "keyherald", "login.json")
	if info, err := os.Stat(kept); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the login is kept as %v, %v", info.Mode(), err)
	}
	if said, err := program("freeze").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	var by string
	check(t, r.Super.QueryRow(t.Context(), `SELECT frozen_by FROM trigger_freeze`).Scan(&by))
	if by != "admin:alice@"+p.Issuer {
		t.Errorf("it was %s", by)
	}
	if said, err := program("logout").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	if said, err := program("thaw").CombinedOutput(); err == nil {
		t.Errorf("after the logout it says: %s", said)
	}
}

func TestATokenGoesNowhereInClear(t *testing.T) {
	for address, good := range map[string]bool{"https://keyherald.example.org": true, "https://keyherald.example.org/": true, "http://127.0.0.1:8009": true, "http://localhost:8009": true, "http://[::1]:8009": true,
		"http://keyherald.example.org": false, "http://192.0.2.1:8009": false, "http://localhost.example.org": false, "keyherald.example.org": false, "https://": false, "https://x@y": false, "ftp://127.0.0.1": false} {
		if _, err := serverAddress(address); (err == nil) != good {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// A redirect would take the token elsewhere.
func TestATokenFollowsNoRedirect(t *testing.T) {
	followed := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			followed = true
		}
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	}))
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "token")
	check(t, os.WriteFile(file, []byte("kht1.x"), 0o600))
	c, err := remote{server: server.URL, tokenFile: file}.connect()
	check(t, err)
	if err := c.do(t.Context(), http.MethodGet, "/status", nil, nil); err == nil || followed {
		t.Errorf("it is answered %v, and the redirect was followed: %t", err, followed)
	}
}
