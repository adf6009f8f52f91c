package backup_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"maunium.net/go/mautrix"
	mautrixbackup "maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
)

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
