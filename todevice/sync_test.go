package todevice_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix"
	_ "modernc.org/sqlite"

	"github.com/keyherald/keyherald/todevice"
)

func database(t *testing.T) *dbutil.Database {
	t.Helper()
	raw, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "x.db")+"?_txlock=immediate&_pragma=journal_mode(WAL)")
	if err != nil {
		t.Fatal(err)
	}
	db, err := dbutil.NewWithDB(raw, "sqlite3")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	for _, schema := range todevice.Databases(db) {
		if err := schema.Upgrade(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

func TestASchemaIsMadeOnSQLite(t *testing.T) { database(t) }

func TestTheHomeserverIsAskedForNothingButToDeviceMessages(t *testing.T) {
	var asked url.Values
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.Query()
		_, _ = w.Write([]byte(`{"next_batch": "s1", "device_one_time_keys_count": {"signed_curve25519": 50},
			"to_device": {"events": [{"type": "m.dummy", "sender": "@alice:example.org", "content": {}}, {"type": "m.dummy", "sender": "@alice:example.org", "content": {}}]}}`))
	}))
	defer server.Close()
	endpoint := newEndpoint(t, server.URL, database(t))
	came, err := endpoint.Sync(t.Context(), 0)
	if err != nil || came != 2 {
		t.Errorf("%d of 2 messages came, %v", came, err)
	}
	var filter struct {
		Room     struct{ Rooms []string }
		Presence struct {
			NotTypes []string `json:"not_types"`
		}
		AccountData struct {
			NotTypes []string `json:"not_types"`
		} `json:"account_data"`
	}
	if err := json.Unmarshal([]byte(asked.Get("filter")), &filter); err != nil {
		t.Fatal(err)
	}
	if filter.Room.Rooms == nil || len(filter.Room.Rooms) != 0 {
		t.Error("it asks for rooms")
	}
	everything := []string{"*"}
	if !slices.Equal(filter.Presence.NotTypes, everything) || !slices.Equal(filter.AccountData.NotTypes, everything) {
		t.Error("it asks for presence or account data")
	}
	if asked.Get("set_presence") != "offline" {
		t.Errorf("it makes its user %q", asked.Get("set_presence"))
	}
}

func newEndpoint(t *testing.T, url string, db *dbutil.Database) *todevice.Endpoint {
	t.Helper()
	client, err := mautrix.NewClient(url, "@alice:example.org", "token")
	if err != nil {
		t.Fatal(err)
	}
	client.DeviceID = "DEVICE"
	endpoint, err := todevice.New(todevice.Config{DB: db, Client: client, AccountID: "device", PickleKey: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	if err := endpoint.InTxn(t.Context(), func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	return endpoint
}

// Synapse keeps the answer to a /sync for two minutes and gives it to whoever asks in the same words, also when the
// messages in it were long acknowledged.
func TestAStoreThatIsOpenedAgainDoesNotAskInTheWordsOfTheLastRun(t *testing.T) {
	const wait, runs = 25 * time.Second, 8
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query().Get("timeout"))
		_, _ = w.Write([]byte(`{"next_batch": "s1", "device_one_time_keys_count": {"signed_curve25519": 50}}`))
	}))
	defer server.Close()
	db := database(t)
	different := map[string]bool{}
	for range runs {
		endpoint := newEndpoint(t, server.URL, db)
		if _, err := endpoint.Sync(t.Context(), wait); err != nil {
			t.Fatal(err)
		}
		last := asked[len(asked)-1]
		different[last] = true
		if ms, err := strconv.Atoi(last); err != nil || ms < int(wait.Milliseconds()) || ms >= int(wait.Milliseconds())+1000 {
			t.Errorf("it waits %q ms, and was told %s", last, wait)
		}
	}
	// All alike by chance is one in 10^21.
	if len(different) == 1 {
		t.Errorf("every run asks with the timeout %v", asked)
	}
}
