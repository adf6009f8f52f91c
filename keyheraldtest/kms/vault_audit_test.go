//go:build kms

package kms_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest/senders"
	"github.com/keyherald/keyherald/kms/policy"
	"github.com/keyherald/keyherald/kms/vaultmeta"
	"github.com/keyherald/keyherald/kms/vaultsecret"
)

// What a real Vault's audit device writes of a read, sent on as it is, is understood by the source that docs/intake.md shows.
func TestVaultsOwnWordThatSomebodyReadAKeyIsUnderstood(t *testing.T) {
	ctx := t.Context()
	e := newEngine(t, vault)
	const path = "keyherald/alice/backup-key"
	key, err := backupkey.Generate()
	check(t, err)
	e.put(t, path, "the first one", "")
	e.put(t, path, key.RevealBase64(), key.PublicKey())
	device := policy.VaultDevice(e.mount, policy.Place{Path: "keyherald/{user}/backup-key"}, "alice")
	own, foreign := e.role(t, "alice-device", device), e.role(t, "mallory-device", device)
	stranger := e.role(t, "bob-device", policy.VaultDevice(e.mount, policy.Place{Path: "keyherald/{user}/backup-key"}, "bob"))

	file := filepath.Join(t.TempDir(), "audit.log")
	e.call(t, http.MethodPut, "sys/audit/"+e.mount, map[string]any{"type": "file", "options": map[string]string{"file_path": file}})
	read := func(config vaultmeta.Config, version string) error {
		client, err := vaultsecret.New(config, nil)
		check(t, err)
		_, err = client.Fetch(ctx, path, version)
		return err
	}
	check(t, read(own, ""))
	check(t, read(foreign, ""))
	check(t, read(foreign, "2"))
	if read(stranger, "") == nil {
		t.Fatal("a stranger could read the key")
	}
	e.call(t, http.MethodDelete, "sys/audit/"+e.mount, nil)

	page, err := os.ReadFile("../../docs/intake.md")
	check(t, err)
	block := regexp.MustCompile(`(?m)^    vault-audit:\n(?:      .*\n)+`).FindString(string(page))
	block = strings.NewReplacer("secret_file: shipper.secret", "secret: shipper-0123456789abcdef0123", "secret/data/", e.mount+"/data/").Replace(block)
	w, memory := senders.New(t), senders.NewMemory()
	handler, err := intake.New(w.Read("sources:\n"+block), w.Deps(memory))
	check(t, err)
	web := echo.New()
	handler.Register(web)
	lines, err := os.ReadFile(file)
	check(t, err)
	if strings.Contains(string(lines), key.RevealBase64()) {
		t.Error("the audit device shows the key")
	}
	answers := map[string]int{}
	for line := range strings.Lines(string(lines)) {
		req := httptest.NewRequest(http.MethodPost, "/notify/vault-audit", strings.NewReader(line))
		req.Header.Set("Content-Type", "application/json")
		req.SetBasicAuth("shipper", "shipper-0123456789abcdef0123")
		answer := httptest.NewRecorder()
		web.ServeHTTP(answer, req)
		answers[strings.TrimSpace(answer.Body.String())]++
	}
	if len(memory.Accepted) != 2 || answers[`{"result":"expected_reader"}`] != 1 || answers[`{"result":"accepted"}`] != 2 || len(answers) != 3 {
		t.Fatalf("the answers are %v, and accepted was %+v, of\n%s", answers, memory.Accepted, lines)
	}
	for _, n := range memory.Accepted {
		if !n.Read || n.Reader != "mallory-device" || n.User != "@alice:example.org" || n.Path != path || n.Version != "2" {
			t.Errorf("a read is %+v", n)
		}
	}
}
