package backup_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
)

var hs *keyheraldtest.Homeserver

func TestMain(m *testing.M) {
	var cluster *keyheraldtest.Postgres
	os.Exit(keyheraldtest.RunWithPostgres(&cluster, func() int {
		dir, err := os.MkdirTemp("", "keyherald-backup-")
		if err == nil {
			defer func() { _ = os.RemoveAll(dir) }()
			hs, err = keyheraldtest.StartWanted(context.Background(), cluster, dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "starting the homeserver:", err)
			return 1
		}
		defer func() { _ = hs.Close() }()
		return m.Run()
	}, keyheraldtest.SettingsForHomeservers...))
}

const password = "correct horse"

var users atomic.Int64

// user logs a fresh user in on one stock client.
func user(t *testing.T) *keyheraldtest.Client {
	t.Helper()
	userID, err := hs.CreateUser(t.Context(), fmt.Sprintf("user%d", users.Add(1)), password)
	check(t, err)
	client, err := keyheraldtest.Login(t.Context(), hs.URL, userID, password, "DEVICE")
	check(t, err)
	t.Cleanup(client.Close)
	return client
}

func deviceSigner(c *keyheraldtest.Client) backup.Signer {
	return func(_ context.Context, obj any) (id.KeyID, string, error) {
		signature, err := c.Machine.GetAccount().SignJSON(obj)
		return id.NewKeyID(id.KeyAlgorithmEd25519, c.DeviceID.String()), signature, err
	}
}

func masterSigner(c *keyheraldtest.Client) backup.Signer {
	return func(_ context.Context, obj any) (id.KeyID, string, error) {
		master := c.Machine.CrossSigningKeys.MasterKey
		signature, err := master.SignJSON(obj)
		return id.NewKeyID(id.KeyAlgorithmEd25519, master.PublicKey().String()), signature, err
	}
}

func newKey(t *testing.T) backupkey.Key {
	t.Helper()
	key, err := backupkey.Generate()
	check(t, err)
	return key
}

// ensure creates a version, whatever is current.
func ensure(t *testing.T, c *keyheraldtest.Client, key backupkey.Key) *backup.Version {
	t.Helper()
	b := backup.New(c.Client)
	current, err := b.Current(t.Context())
	check(t, err)
	var expected id.KeyBackupVersion
	if current != nil {
		expected = current.ID
	}
	version, _, err := b.Ensure(t.Context(), key, expected, deviceSigner(c))
	check(t, err)
	return version
}

func TestAUserWithoutAKeyBackupHasNoVersion(t *testing.T) {
	b := backup.New(user(t).Client)
	if current, err := b.Current(t.Context()); err != nil || current != nil {
		t.Fatalf("got %+v, %v", current, err)
	}
	if version, err := b.Get(t.Context(), "99999"); err != nil || version != nil {
		t.Fatalf("got %+v, %v", version, err)
	}
}

func TestAVersionIsCreatedSignedByDeviceAndMasterKeyAndUsedAgain(t *testing.T) {
	c := user(t)
	_, err := c.Bootstrap(t.Context(), password)
	check(t, err)
	b, key := backup.New(c.Client), newKey(t)
	version, created, err := b.Ensure(t.Context(), key, "", deviceSigner(c), masterSigner(c))
	check(t, err)
	if !created || !version.HeldBy(key) || version.HeldBy(newKey(t)) || version.PublicKey != key.PublicKey() {
		t.Fatalf("created=%v, version %+v", created, version)
	}
	// The signatures are verified by other code than that which made them.
	raw := readAuthData(t, c.Client, version.ID)
	if strings.Contains(string(raw), "=") {
		t.Fatalf("auth_data has padding: %s", raw)
	}
	master := c.Machine.CrossSigningKeys.MasterKey.PublicKey()
	for name, signing := range map[string]id.Ed25519{c.DeviceID.String(): c.Machine.GetAccount().SigningKey(), master.String(): master} {
		if ok, err := signatures.VerifySignatureJSON(raw, c.UserID, name, signing); err != nil || !ok {
			t.Fatalf("the signature of %s does not verify: %v", name, err)
		}
	}
	// Who knows of the version finds it; who does not was stopped before he could note that he made it.
	for expected, made := range map[id.KeyBackupVersion]bool{version.ID: false, "": true} {
		again, created, err := b.Ensure(t.Context(), key, expected, deviceSigner(c), masterSigner(c))
		check(t, err)
		if created != made || again.ID != version.ID || again.ETag != version.ETag {
			t.Fatalf("created=%v, version %s again, not %s", created, again.ID, version.ID)
		}
	}
}

func readAuthData(t *testing.T, c *mautrix.Client, version id.KeyBackupVersion) json.RawMessage {
	t.Helper()
	var body struct {
		AuthData json.RawMessage `json:"auth_data"`
	}
	_, err := c.MakeRequest(t.Context(), http.MethodGet, c.BuildClientURL("v3", "room_keys", "version", version.String()), nil, &body)
	check(t, err)
	return body.AuthData
}

func TestAVersionThatIsOursAndUnsignedGetsOurSignatureAndKeepsItsFields(t *testing.T) {
	c, key := user(t), newKey(t)
	body := map[string]any{"algorithm": id.KeyBackupAlgorithmMegolmBackupV1, "auth_data": map[string]any{
		"public_key": key.PublicKey(), "private_key_salt": "salt", "signatures": map[string]any{c.UserID.String(): map[string]any{"ed25519:OTHER": "sig"}}}}
	var made struct {
		Version id.KeyBackupVersion `json:"version"`
	}
	_, err := c.MakeRequest(t.Context(), http.MethodPost, c.BuildClientURL("v3", "room_keys", "version"), body, &made)
	check(t, err)
	version, created, err := backup.New(c.Client).Ensure(t.Context(), key, "", deviceSigner(c))
	check(t, err)
	if created || version.ID != made.Version {
		t.Fatalf("created=%v, version %s instead of %s", created, version.ID, made.Version)
	}
	raw := readAuthData(t, c.Client, version.ID)
	if ok, err := signatures.VerifySignatureJSON(raw, c.UserID, c.DeviceID.String(), c.Machine.GetAccount().SigningKey()); err != nil || !ok {
		t.Fatalf("our signature is not on %s: %v", raw, err)
	}
	if !bytes.Contains(raw, []byte(`"private_key_salt":"salt"`)) || !bytes.Contains(raw, []byte(`"ed25519:OTHER":"sig"`)) {
		t.Fatalf("what was there is gone: %s", raw)
	}
}

func TestAVersionThatSomebodyElseMadeStopsUs(t *testing.T) {
	c := user(t)
	first := ensure(t, c, newKey(t))
	theirs := ensure(t, c, newKey(t))
	b := backup.New(c.Client)
	for name, expected := range map[string]id.KeyBackupVersion{"another version was seen": first.ID, "none was seen": ""} {
		if _, created, err := b.Ensure(t.Context(), newKey(t), expected, deviceSigner(c)); !errors.Is(err, backup.ErrChanged) || created {
			t.Errorf("%s: created=%v, %v", name, created, err)
		}
	}
	if current, err := b.Current(t.Context()); err != nil || current.ID != theirs.ID {
		t.Fatalf("the current version is %+v, %v", current, err)
	}
	check(t, deleteVersion(t, c, theirs.ID))
	if _, _, err := b.Ensure(t.Context(), newKey(t), theirs.ID, deviceSigner(c)); !errors.Is(err, backup.ErrChanged) {
		t.Fatalf("the version seen was deleted: %v", err)
	}
}

func deleteVersion(t *testing.T, c *keyheraldtest.Client, version id.KeyBackupVersion) error {
	return c.DeleteKeyBackupVersion(t.Context(), version)
}

// losing is the homeserver behind a proxy that cuts the connection instead of giving the answer to the first count
// requests that are chosen; they have taken effect.
func losing(t *testing.T, c *keyheraldtest.Client, count int32, chosen func(*http.Request) bool) (*mautrix.Client, *atomic.Int32) {
	t.Helper()
	target, err := url.Parse(hs.URL)
	check(t, err)
	lost := &atomic.Int32{}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, ModifyResponse: func(resp *http.Response) error {
		if chosen(resp.Request) && lost.Add(1) <= count {
			if resp.StatusCode != http.StatusOK {
				t.Errorf("the request that was to lose its answer failed: %s", resp.Status)
			}
			return errors.New("lost")
		}
		return nil
	}, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			err = conn.Close()
		}
		if err != nil {
			t.Error(err)
		}
	}}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	client, err := mautrix.NewClient(server.URL, c.UserID, c.AccessToken)
	check(t, err)
	client.DeviceID = c.DeviceID
	return client, lost
}

func TestAVersionWhoseCreationWasNotAnsweredIsFoundAndNotMadeTwice(t *testing.T) {
	for name, alsoTheReadBack := range map[string]bool{"the answer to the creation is lost": false, "the read-back after it too": true} {
		t.Run(name, func(t *testing.T) {
			c, key := user(t), newKey(t)
			old := ensure(t, c, newKey(t))
			created, posts := false, 0
			count := int32(1)
			if alsoTheReadBack {
				count = 2
			}
			client, lost := losing(t, c, count, func(req *http.Request) bool {
				if req.Method == http.MethodPost {
					created = true
					posts++
				}
				return created
			})
			b := backup.New(client)
			version, _, err := b.Ensure(t.Context(), key, old.ID, deviceSigner(c))
			if alsoTheReadBack {
				if err == nil || errors.Is(err, backup.ErrChanged) {
					t.Fatalf("got %v, where nothing could be known", err)
				}
				var made bool
				if version, made, err = b.Ensure(t.Context(), key, old.ID, deviceSigner(c)); err == nil && !made {
					t.Fatal("the version is said to be found, and it was made here")
				}
			}
			check(t, err)
			if !version.HeldBy(key) || posts != 1 || lost.Load() < count {
				t.Fatalf("version %+v after %d creations, %d answers were to be lost", version, posts, lost.Load())
			}
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
