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
	mautrixbackup "maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
)

var dendrite *keyheraldtest.Dendrite

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "keyherald-backup-")
		if err == nil {
			defer func() { _ = os.RemoveAll(dir) }()
			dendrite, err = keyheraldtest.StartDendrite(context.Background(), dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "starting the homeserver:", err)
			return 1
		}
		defer func() { _ = dendrite.Close() }()
		return m.Run()
	}())
}

const password = "correct horse"

var users atomic.Int64

// user logs a fresh user in on one stock client.
func user(t *testing.T) *keyheraldtest.Client {
	t.Helper()
	userID, err := dendrite.CreateUser(t.Context(), fmt.Sprintf("user%d", users.Add(1)), password)
	check(t, err)
	client, err := keyheraldtest.Login(t.Context(), dendrite.URL, userID, password, "DEVICE")
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
	again, created, err := b.Ensure(t.Context(), key, "", deviceSigner(c), masterSigner(c))
	check(t, err)
	if created || again.ID != version.ID || again.ETag != version.ETag {
		t.Fatalf("created=%v, version %s again, not %s", created, again.ID, version.ID)
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

// fill puts n room keys with unknown fields into a version, in several rooms.
func fill(t *testing.T, c *keyheraldtest.Client, version id.KeyBackupVersion, key backupkey.Key, n int) {
	t.Helper()
	type sessions struct {
		Sessions map[id.SessionID]any `json:"sessions"`
	}
	body := map[id.RoomID]sessions{}
	for i := range n {
		room := id.RoomID(fmt.Sprintf("!room%d:%s", i%3, keyheraldtest.ServerName))
		if body[room].Sessions == nil {
			body[room] = sessions{map[id.SessionID]any{}}
		}
		plaintext := json.RawMessage(fmt.Sprintf(`{"algorithm":"m.megolm.v1.aes-sha2","session_key":"key%d","shared_history":%t,"org.example.new":%d}`, i, i%2 == 0, i))
		sealed, err := mautrixbackup.EncryptSessionData(&mautrixbackup.MegolmBackupKey{PrivateKey: key.Private()}, plaintext)
		check(t, err)
		body[room].Sessions[id.SessionID(fmt.Sprintf("session/+%d", i))] = map[string]any{"first_message_index": i % 4, "forwarded_count": i % 3, "is_verified": i%2 == 1,
			"session_data": map[string]any{"ciphertext": sealed.Ciphertext, "ephemeral": &sealed.Ephemeral, "mac": sealed.MAC}}
	}
	putKeys(t, c, version, body)
}

func putKeys(t *testing.T, c *keyheraldtest.Client, version id.KeyBackupVersion, rooms any) {
	t.Helper()
	_, err := c.MakeRequest(t.Context(), http.MethodPut, c.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "room_keys", "keys"}, map[string]string{"version": version.String()}), map[string]any{"rooms": rooms}, nil)
	check(t, err)
}

type plainKey struct {
	First, Forwarded int
	Verified         bool
	Plaintext        string
}

// plain reads a version as a stock client would, and decrypts it.
func plain(t *testing.T, c *keyheraldtest.Client, version id.KeyBackupVersion, key backupkey.Key) map[string]plainKey {
	t.Helper()
	var body mautrix.RespRoomKeys[mautrixbackup.EncryptedSessionData[json.RawMessage]]
	_, err := c.MakeRequest(t.Context(), http.MethodGet, c.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "room_keys", "keys"}, map[string]string{"version": version.String()}), nil, &body)
	check(t, err)
	read := map[string]plainKey{}
	for room, sessions := range body.Rooms {
		for sessionID, data := range sessions.Sessions {
			plaintext, err := data.SessionData.Decrypt(&mautrixbackup.MegolmBackupKey{PrivateKey: key.Private()})
			check(t, err)
			read[room.String()+" "+sessionID.String()] = plainKey{data.FirstMessageIndex, data.ForwardedCount, data.IsVerified, string(*plaintext)}
		}
	}
	return read
}

func TestEveryRoomKeyIsCarriedOverAsItWas(t *testing.T) {
	c, oldKey, key := user(t), newKey(t), newKey(t)
	old := ensure(t, c, oldKey)
	fill(t, c, old.ID, oldKey, 40)
	want := plain(t, c, old.ID, oldKey)
	version := ensure(t, c, key)
	requests := 0
	job := backup.CarryOver{From: old.ID, To: version.ID, FromKey: oldKey, ToKey: key.PublicKey(), MaxBodyBytes: 4000, Progress: func(backup.Carried) { requests++ }}
	result, err := backup.New(c.Client).CarryOver(t.Context(), job)
	check(t, err)
	if !result.Complete || result.Total != 40 || result.Carried != 40 || requests < 3 {
		t.Fatalf("got %+v in %d requests", result, requests)
	}
	if got := plain(t, c, version.ID, key); len(got) != 40 || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("the room keys are %v, not %v", got, want)
	}
	current, err := backup.New(c.Client).Current(t.Context())
	check(t, err)
	if !current.HeldBy(key) || current.Count != 40 {
		t.Fatalf("the version after it is %+v", current)
	}
	requests = 0
	if result, err = backup.New(c.Client).CarryOver(t.Context(), job); err != nil || !result.Complete || requests != 0 {
		t.Fatalf("once more: %+v in %d requests, %v", result, requests, err)
	}
	if after, err := backup.New(c.Client).Current(t.Context()); err != nil || after.ETag != current.ETag {
		t.Fatalf("once more changed the version: %+v, %v", after, err)
	}
}

func TestAnEmptyBackupIsCarriedOverWithoutARequest(t *testing.T) {
	c, oldKey, key := user(t), newKey(t), newKey(t)
	old := ensure(t, c, oldKey)
	version := ensure(t, c, key)
	result, err := backup.New(c.Client).CarryOver(t.Context(), backup.CarryOver{From: old.ID, To: version.ID, FromKey: oldKey, ToKey: key.PublicKey()})
	if err != nil || !result.Complete || result.Total != 0 {
		t.Fatalf("got %+v, %v", result, err)
	}
	// Dendrite wipes auth_data on a PUT without rooms.
	if current, err := backup.New(c.Client).Current(t.Context()); err != nil || !current.HeldBy(key) {
		t.Fatalf("the version after it is %+v, %v", current, err)
	}
}

func TestACarryOverStopsWhereTheBackupWasChanged(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, c *keyheraldtest.Client, version id.KeyBackupVersion){
		"by another version": func(t *testing.T, c *keyheraldtest.Client, _ id.KeyBackupVersion) { ensure(t, c, newKey(t)) },
		"by deleting it": func(t *testing.T, c *keyheraldtest.Client, version id.KeyBackupVersion) {
			check(t, deleteVersion(t, c, version))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, oldKey, key := user(t), newKey(t), newKey(t)
			old := ensure(t, c, oldKey)
			fill(t, c, old.ID, oldKey, 4)
			version := ensure(t, c, key)
			// In the midst of it: after the first request.
			changed := false
			_, err := backup.New(c.Client).CarryOver(t.Context(), backup.CarryOver{From: old.ID, To: version.ID, FromKey: oldKey, ToKey: key.PublicKey(), MaxBodyBytes: 1,
				Progress: func(backup.Carried) {
					if !changed {
						changed = true
						change(t, c, version.ID)
					}
				}})
			if !errors.Is(err, backup.ErrChanged) {
				t.Fatalf("got %v", err)
			}
			_, err = backup.New(c.Client).CarryOver(t.Context(), backup.CarryOver{From: old.ID, To: version.ID, FromKey: oldKey, ToKey: key.PublicKey()})
			if !errors.Is(err, backup.ErrChanged) {
				t.Fatalf("from the start: got %v", err)
			}
		})
	}
}

func TestAnOldVersionThatIsGoneIsSaidToBe(t *testing.T) {
	c, oldKey, key := user(t), newKey(t), newKey(t)
	old := ensure(t, c, oldKey)
	version := ensure(t, c, key)
	check(t, deleteVersion(t, c, old.ID))
	_, err := backup.New(c.Client).CarryOver(t.Context(), backup.CarryOver{From: old.ID, To: version.ID, FromKey: oldKey, ToKey: key.PublicKey()})
	if !errors.Is(err, backup.ErrGone) {
		t.Fatalf("got %v", err)
	}
}

// losing is the homeserver behind a proxy that cuts the connection instead of giving the answer to the first count
// requests that are chosen; they have taken effect.
func losing(t *testing.T, c *keyheraldtest.Client, count int32, chosen func(*http.Request) bool) (*mautrix.Client, *atomic.Int32) {
	t.Helper()
	target, err := url.Parse(dendrite.URL)
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
			version, made, err := b.Ensure(t.Context(), key, old.ID, deviceSigner(c))
			if alsoTheReadBack {
				if err == nil || errors.Is(err, backup.ErrChanged) {
					t.Fatalf("got %v, where nothing could be known", err)
				}
				version, made, err = b.Ensure(t.Context(), key, old.ID, deviceSigner(c))
				if made {
					t.Fatal("the repeat made a version")
				}
			}
			check(t, err)
			if !version.HeldBy(key) || posts != 1 || lost.Load() < count {
				t.Fatalf("version %+v after %d creations, %d answers were to be lost", version, posts, lost.Load())
			}
		})
	}
}

func TestACarryOverWhoseAnswersAreLostResumes(t *testing.T) {
	c, oldKey, key := user(t), newKey(t), newKey(t)
	old := ensure(t, c, oldKey)
	fill(t, c, old.ID, oldKey, 12)
	want := plain(t, c, old.ID, oldKey)
	version := ensure(t, c, key)
	client, lost := losing(t, c, 3, func(req *http.Request) bool { return req.Method == http.MethodPut })
	job := backup.CarryOver{From: old.ID, To: version.ID, FromKey: oldKey, ToKey: key.PublicKey(), MaxBodyBytes: 1}
	failures := 0
	var result backup.Carried
	for {
		var err error
		if result, err = backup.New(client).CarryOver(t.Context(), job); err == nil {
			break
		}
		if failures++; failures > 3 || errors.Is(err, backup.ErrChanged) || result.Complete {
			t.Fatalf("failure %d: %+v, %v", failures, result, err)
		}
	}
	// 12 keys, each written once: what had taken effect was not written again.
	if failures != 3 || lost.Load() != 12 || !result.Complete || result.Carried != 12 {
		t.Fatalf("%d failures, %d requests, %+v", failures, lost.Load(), result)
	}
	if got := plain(t, c, version.ID, key); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("the room keys are %v, not %v", got, want)
	}
}

func TestTheRecoveryCopyIsRewrittenForTheKeyInHandAlone(t *testing.T) {
	c := user(t)
	b := backup.New(c.Client)
	state := func(want backup.RecoveryCopy) {
		t.Helper()
		if got, err := b.RecoveryCopyState(t.Context()); err != nil || got != want {
			t.Fatalf("the recovery copy is %q (%v), not %q", got, err, want)
		}
	}
	if has, err := b.HasStorage(t.Context()); err != nil || has {
		t.Fatalf("has=%v, %v", has, err)
	}
	state(backup.RecoveryCopyNone)
	recoveryKey, err := c.Bootstrap(t.Context(), password)
	check(t, err)
	state(backup.RecoveryCopyBlank)
	keyID, metadata, err := c.Machine.SSSS.GetDefaultKeyData(t.Context())
	check(t, err)
	stock, err := metadata.VerifyRecoveryKey(keyID, recoveryKey)
	check(t, err)
	fourS, err := b.CheckWritable(t.Context(), stock.Key)
	check(t, err)
	if _, ok, err := b.ReadRecoveryCopy(t.Context(), fourS); err != nil || ok {
		t.Fatalf("read a copy that is not there: %v", err)
	}
	// An old copy for two 4S keys, of which one is not in hand.
	oldKey, key := newKey(t), newKey(t)
	second, err := ssss.NewKey("")
	check(t, err)
	check(t, c.Machine.SSSS.SetEncryptedAccountData(t.Context(), event.AccountDataMegolmBackupKey, oldKey.Reveal(), stock, second))
	for range 2 {
		check(t, b.WriteRecoveryCopy(t.Context(), key, fourS))
	}
	state(backup.RecoveryCopyPresent)
	read, err := c.Machine.SSSS.GetDecryptedAccountData(t.Context(), event.AccountDataMegolmBackupKey, stock)
	if err != nil || !bytes.Equal(read, key.Reveal()) {
		t.Fatalf("a stock client does not read the new key: %v", err)
	}
	if _, err := c.Machine.SSSS.GetDecryptedAccountData(t.Context(), event.AccountDataMegolmBackupKey, second); !errors.Is(err, ssss.ErrNotEncryptedForKey) {
		t.Fatalf("the other 4S key still opens the old key: %v", err)
	}
	if back, ok, err := b.ReadRecoveryCopy(t.Context(), fourS); err != nil || !ok || !back.Fits(key.PublicKey()) {
		t.Fatalf("ok=%v, %v", ok, err)
	}
	if err := b.WriteRecoveryCopy(t.Context(), backupkey.Key{}, fourS); err == nil {
		t.Fatal("no key was written")
	}
	for _, blank := range []any{map[string]any{}, map[string]any{"encrypted": nil}, map[string]any{"encrypted": map[string]any{fourS.ID: nil}}} {
		check(t, c.SetAccountData(t.Context(), event.AccountDataMegolmBackupKey.Type, blank))
		state(backup.RecoveryCopyBlank)
		if _, ok, err := b.ReadRecoveryCopy(t.Context(), fourS); err != nil || ok {
			t.Fatalf("%v: ok=%v, %v", blank, ok, err)
		}
	}
}

func TestOnlyTheKeyOfTheDefaultStorageMayWrite(t *testing.T) {
	c := user(t)
	recoveryKey, err := c.Bootstrap(t.Context(), password)
	check(t, err)
	b := backup.New(c.Client)
	keyID, metadata, err := c.Machine.SSSS.GetDefaultKeyData(t.Context())
	check(t, err)
	held, err := metadata.VerifyRecoveryKey(keyID, recoveryKey)
	check(t, err)
	refused := func(name string, raw []byte) {
		t.Helper()
		if _, err := b.CheckWritable(t.Context(), raw); !errors.Is(err, backup.ErrNotWritable) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	refused("no key", nil)
	refused("a short key", held.Key[:16])
	refused("another key", newKey(t).Reveal())
	if ok, err := b.CheckWritable(t.Context(), held.Key); err != nil || ok.ID != keyID {
		t.Fatalf("the right key: %v", err)
	}
	seed, err := b.Secret(t.Context(), event.AccountDataCrossSigningMaster, held)
	if err != nil || !bytes.Equal(seed, c.Machine.CrossSigningKeys.MasterKey.Seed()) {
		t.Fatalf("the master key's seed does not come out of secret storage: %v", err)
	}
	// The user makes a new secret storage: the key in hand is the old one.
	fresh, err := c.Machine.SSSS.GenerateAndUploadKey(t.Context(), "")
	check(t, err)
	check(t, c.Machine.SSSS.SetDefaultKeyID(t.Context(), fresh.ID))
	refused("the key of the storage before", held.Key)
	if ok, err := b.CheckWritable(t.Context(), fresh.Key); err != nil || ok.ID != fresh.ID {
		t.Fatalf("the key of the new storage: %v", err)
	}
	unproved := *fresh.Metadata
	unproved.MAC = ""
	check(t, c.Machine.SSSS.SetKeyData(t.Context(), fresh.ID, &unproved))
	refused("a key that no MAC proves", fresh.Key)
	check(t, c.Machine.SSSS.SetDefaultKeyID(t.Context(), "nowhere"))
	refused("a default key that is not described", fresh.Key)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
