package backup

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"runtime"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"

	"github.com/keyherald/keyherald/backup/backupkey"
)

// homeserver keeps two key-backup versions by the rule that Synapse and Dendrite share, and fails as it is told.
type homeserver struct {
	*httptest.Server
	current  id.KeyBackupVersion
	versions map[id.KeyBackupVersion]rooms[session]
	limit    int
	// fail says what goes wrong with the next PUT: nothing, it is lost, or its answer is.
	fail   func() string
	broken []string
	// changes is the old version's etag; arrive is called with each PUT, and may put a key into the old version.
	changes int
	arrive  func()
}

func newHomeserver(t interface{ Cleanup(func()) }) *homeserver {
	h := &homeserver{current: "2", versions: map[id.KeyBackupVersion]rooms[session]{"1": {}, "2": {}}, fail: func() string { return "" }}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

func (h *homeserver) client() *Client {
	matrix, err := mautrix.NewClient(h.URL, "@alice:example.org", "token")
	if err != nil {
		panic(err)
	}
	return New(matrix)
}

type wireRooms struct {
	Rooms map[id.RoomID]struct {
		Sessions map[id.SessionID]session `json:"sessions"`
	} `json:"rooms"`
}

func (h *homeserver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	refuse := func(status int, code string) {
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"errcode":%q,"error":"refused"}`, code)
	}
	version := id.KeyBackupVersion(req.URL.Query().Get("version"))
	keys, ok := h.versions[version]
	switch {
	case strings.Contains(req.URL.Path, "/room_keys/version/"):
		of := id.KeyBackupVersion(path.Base(req.URL.Path))
		keys, ok := h.versions[of]
		if !ok {
			refuse(404, "M_NOT_FOUND")
			return
		}
		count := 0
		for _, sessions := range keys {
			count += len(sessions)
		}
		_, _ = fmt.Fprintf(w, `{"version":%q,"algorithm":"m.megolm_backup.v1.curve25519-aes-sha2","auth_data":{},"count":%d,"etag":"%d"}`, of, count, h.changes)
	case strings.HasSuffix(req.URL.Path, "/room_keys/version"):
		_, _ = fmt.Fprintf(w, `{"version":%q,"algorithm":"m.megolm_backup.v1.curve25519-aes-sha2","auth_data":{},"count":0,"etag":""}`, h.current)
	case !ok:
		refuse(404, "M_NOT_FOUND")
	case req.Method == http.MethodGet:
		body := wireRooms{Rooms: map[id.RoomID]struct {
			Sessions map[id.SessionID]session `json:"sessions"`
		}{}}
		for room, sessions := range keys {
			entry := body.Rooms[room]
			entry.Sessions = sessions
			body.Rooms[room] = entry
		}
		_ = json.NewEncoder(w).Encode(body)
	case version != h.current:
		refuse(403, "M_WRONG_ROOM_KEYS_VERSION")
	default:
		raw, _ := io.ReadAll(req.Body)
		var body wireRooms
		if err := json.Unmarshal(raw, &body); err != nil || len(body.Rooms) == 0 {
			h.broken = append(h.broken, "a PUT without rooms")
		}
		sent := 0
		for _, room := range body.Rooms {
			sent += len(room.Sessions)
		}
		if sent > 1 && len(raw) > h.limit {
			h.broken = append(h.broken, fmt.Sprintf("a PUT of %d bytes and %d keys over the limit of %d", len(raw), sent, h.limit))
		}
		what := h.fail()
		if h.arrive != nil {
			h.arrive()
		}
		if what != "lost" {
			for room, sessions := range body.Rooms {
				for sessionID, key := range sessions.Sessions {
					if keys[room] == nil {
						keys[room] = map[id.SessionID]session{}
					}
					present, ok := keys[room][sessionID]
					if !ok || (key.IsVerified && !present.IsVerified) || key.FirstMessageIndex < present.FirstMessageIndex || key.ForwardedCount < present.ForwardedCount {
						keys[room][sessionID] = key
					}
				}
			}
		}
		if what != "" {
			refuse(502, "M_UNKNOWN")
			return
		}
		_, _ = io.WriteString(w, `{"count":1,"etag":"x"}`)
	}
}

func generate(t interface{ Fatal(...any) }) backupkey.Key {
	key, err := backupkey.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sealFor(t interface{ Fatal(...any) }, key backupkey.Key, plaintext string) json.RawMessage {
	to, err := publicKey(key.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	data, err := seal(json.RawMessage(plaintext), to)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestACarryOverLosesNoKeyWhateverTheHomeserverHasAndLoses(t *testing.T) {
	oldKey, newKey := generate(t), generate(t)
	rapid.Check(t, func(t *rapid.T) {
		h := newHomeserver(t)
		h.limit = rapid.IntRange(1, 4000).Draw(t, "limit")
		failures := rapid.SliceOfN(rapid.SampledFrom([]string{"", "lost", "answer lost"}), 0, 6).Draw(t, "failures")
		h.fail = func() string {
			if len(failures) == 0 {
				return ""
			}
			defer func() { failures = failures[1:] }()
			return failures[0]
		}
		genSession := rapid.Custom(func(t *rapid.T) session {
			return session{FirstMessageIndex: rapid.IntRange(0, 3).Draw(t, "index"), ForwardedCount: rapid.IntRange(0, 2).Draw(t, "forwarded"), IsVerified: rapid.Bool().Draw(t, "verified")}
		})
		genRooms := rapid.MapOfN(rapid.SampledFrom([]id.RoomID{"!a:x", "!b<&>:x", "!c\"\n:x"}), rapid.MapOfN(rapid.SampledFrom([]id.SessionID{"s1", "s2", "s3", "s4"}), genSession, 0, 4), 0, 3)
		fill := func(version id.KeyBackupVersion, by backupkey.Key, name string) {
			for room, sessions := range genRooms.Draw(t, name) {
				for sessionID, key := range sessions {
					key.SessionData = sealFor(t, by, fmt.Sprintf(`{"session_key":%q,"from":%q}`, string(room)+string(sessionID), version))
					if h.versions[version][room] == nil {
						h.versions[version][room] = map[id.SessionID]session{}
					}
					h.versions[version][room][sessionID] = key
				}
			}
		}
		fill("1", oldKey, "old")
		fill("2", newKey, "new")
		late := rapid.IntRange(0, 3).Draw(t, "late")
		h.arrive = func() {
			if h.changes < late && h.versions["1"]["!a:x"] != nil {
				h.changes++
				h.versions["1"]["!a:x"][id.SessionID(fmt.Sprint("late", h.changes))] = session{SessionData: sealFor(t, oldKey, `{"from":"1"}`)}
			}
		}
		before := rooms[session]{}
		for room, sessions := range h.versions["2"] {
			before[room] = maps.Clone(sessions)
		}
		var result Carried
		var err error
		for range 8 {
			result, err = h.client().CarryOver(t.Context(), CarryOver{From: "1", To: "2", FromKey: oldKey, ToKey: newKey.PublicKey(), MaxBodyBytes: h.limit})
			if err == nil {
				break
			}
			if result.Complete {
				t.Fatal("a failed carry-over says it is complete")
			}
		}
		if err != nil || len(h.broken) > 0 {
			t.Fatalf("%v; %v", err, h.broken)
		}
		total := 0
		for room, sessions := range h.versions["1"] {
			total += len(sessions)
			for sessionID, old := range sessions {
				now, was := h.versions["2"][room][sessionID], before[room][sessionID]
				_, had := before[room][sessionID]
				plaintext, err := open(now.SessionData, newKey)
				if err != nil {
					t.Fatalf("the new key does not open %s: %v", sessionID, err)
				}
				from := "2"
				if !had || was.FirstMessageIndex > old.FirstMessageIndex {
					from, was = "1", old
				}
				if now.FirstMessageIndex != was.FirstMessageIndex || now.ForwardedCount != was.ForwardedCount || now.IsVerified != was.IsVerified {
					t.Fatalf("%s should be the one of version %s: %+v", sessionID, from, now)
				}
				if !strings.Contains(string(plaintext), fmt.Sprintf(`"from":%q`, from)) {
					t.Fatalf("%s is %s, not the one of version %s", sessionID, plaintext, from)
				}
			}
		}
		for room, sessions := range before {
			for sessionID := range sessions {
				if _, ok := h.versions["2"][room][sessionID]; !ok {
					t.Fatalf("%s is gone from the new version", sessionID)
				}
			}
		}
		if !result.Complete || result.Total != total || result.Carried != total || len(result.Undecrypted) != 0 {
			t.Fatalf("%d room keys were carried, and it says %+v", total, result)
		}
	})
}

func TestAKeyThatCannotBeOpenedIsNamedAndTheOthersAreCarried(t *testing.T) {
	oldKey, newKey, stranger := generate(t), generate(t), generate(t)
	good := sealFor(t, oldKey, `{"session_key":"x"}`)
	h := newHomeserver(t)
	h.limit = defaultMaxBody
	h.versions["1"] = rooms[session]{"!r:x": {
		"good":              {SessionData: good},
		"padded":            {SessionData: pad(t, good)},
		"of-another-key":    {SessionData: sealFor(t, stranger, `{}`)},
		"not-an-object":     {SessionData: json.RawMessage(`"x"`)},
		"empty":             {SessionData: json.RawMessage(`{}`)},
		"no-point":          {SessionData: json.RawMessage(`{"ephemeral":"` + strings.Repeat("A", 43) + `","ciphertext":"AAAA","mac":"AAAA"}`)},
		"theirs-by-another": {SessionData: json.RawMessage(`{}`), FirstMessageIndex: 5},
	}}
	h.versions["2"] = rooms[session]{"!r:x": {"theirs-by-another": {SessionData: sealFor(t, newKey, `{}`), FirstMessageIndex: 5}}}
	var seen []Carried
	result, err := h.client().CarryOver(t.Context(), CarryOver{From: "1", To: "2", FromKey: oldKey, ToKey: newKey.PublicKey(), Progress: func(c Carried) { seen = append(seen, c) }})
	if err != nil {
		t.Fatal(err)
	}
	if result.Complete || result.Total != 7 || result.Carried != 3 || fmt.Sprint(result.Undecrypted) != "[empty no-point not-an-object of-another-key]" {
		t.Fatalf("got %+v", result)
	}
	if len(seen) != 1 || seen[0].Total != 7 || seen[0].Carried != 3 {
		t.Fatalf("the progress was %+v", seen)
	}
}

// pad is session data as a client writes it that pads its base64.
func pad(t *testing.T, data json.RawMessage) json.RawMessage {
	t.Helper()
	var s sealed
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	for _, field := range []*string{&s.Ciphertext, &s.Ephemeral, &s.MAC} {
		raw, err := base64.RawStdEncoding.DecodeString(*field)
		if err != nil {
			t.Fatal(err)
		}
		*field = base64.StdEncoding.EncodeToString(raw)
	}
	padded, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return padded
}

func TestWhatIsInARoomKeyStaysToTheLastField(t *testing.T) {
	oldKey, newKey := generate(t), generate(t)
	const inner = `{"algorithm":"m.megolm.v1.aes-sha2","shared_history":true,"org.example.unknown":{"n":12345678901234567890,"list":[1,null]},"session_key":"AQ"}`
	to, err := publicKey(newKey.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	plaintext, err := open(sealFor(t, oldKey, inner), oldKey)
	if err != nil {
		t.Fatal(err)
	}
	data, err := seal(plaintext, to)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := open(data, newKey); err != nil || string(back) != inner {
		t.Fatalf("it came out as %s (%v)", back, err)
	}
	if _, err := open(data, oldKey); err == nil {
		t.Fatal("the old key opens what was sealed for the new one")
	}
	again, err := seal(plaintext, to)
	if err != nil || string(again) == string(data) {
		t.Fatalf("the ephemeral key is not fresh (%v)", err)
	}
}

func TestTheVersionsOfACarryOverMayBeGone(t *testing.T) {
	oldKey, newKey := generate(t), generate(t)
	job := CarryOver{From: "1", To: "2", FromKey: oldKey, ToKey: newKey.PublicKey()}
	for name, c := range map[string]struct {
		change func(*homeserver)
		want   error
	}{
		"the old version was deleted":           {func(h *homeserver) { delete(h.versions, "1") }, ErrGone},
		"the new version was deleted":           {func(h *homeserver) { delete(h.versions, "2"); h.current = "1" }, ErrChanged},
		"another version was created meanwhile": {func(h *homeserver) { h.current = "3" }, ErrChanged},
		"it was deleted while the keys were put, and the homeserver says only that it failed": {func(h *homeserver) {
			h.fail = func() string { h.current = "1"; return "lost" }
		}, ErrChanged},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHomeserver(t)
			h.limit = defaultMaxBody
			h.versions["1"] = rooms[session]{"!r:x": {"s": {SessionData: sealFor(t, oldKey, `{}`)}}}
			c.change(h)
			if _, err := h.client().CarryOver(t.Context(), job); !errors.Is(err, c.want) {
				t.Fatalf("got %v, not %v", err, c.want)
			}
		})
	}
}

func TestACarryOverThatCannotWorkIsRefused(t *testing.T) {
	h := newHomeserver(t)
	key := generate(t)
	for name, job := range map[string]CarryOver{
		"no old key": {From: "1", To: "2", ToKey: key.PublicKey()}, "no new key": {From: "1", To: "2", FromKey: key},
		"a new key that is no base64": {From: "1", To: "2", FromKey: key, ToKey: "!"}, "a short new key": {From: "1", To: "2", FromKey: key, ToKey: "AAAA"},
	} {
		if _, err := h.client().CarryOver(t.Context(), job); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestRoomKeysAreReadAsAStream(t *testing.T) {
	for name, c := range map[string]struct {
		body string
		want int
		ok   bool
	}{
		"no rooms":                         {`{"rooms":{}}`, 0, true},
		"nothing":                          {`{}`, 0, true},
		"null":                             {`{"rooms":null}`, 0, true},
		"a room without sessions":          {`{"rooms":{"!a:x":{"sessions":{}},"!b:x":{}}}`, 0, true},
		"unknown fields, before and after": {`{"x":[{}],"rooms":{"!a:x":{"y":1,"sessions":{"s":{"first_message_index":3,"z":{}}}}},"w":"v"}`, 1, true},
		"an answer cut between rooms":      {`{"rooms":{"!a:x":{"sessions":{"s":{}}}`, 1, false},
		"an answer cut inside a room":      {`{"rooms":{"!a:x":{"sess`, 0, false},
		"an empty answer":                  {``, 0, false},
		"a list":                           {`[]`, 0, false},
		"a page":                           {`<html>`, 0, false},
	} {
		read := 0
		err := decodeKeys(strings.NewReader(c.body), func(id.RoomID, id.SessionID, indexed) error { read++; return nil })
		if (err == nil) != c.ok || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
		if read != c.want {
			t.Errorf("%s: %d keys, not %d", name, read, c.want)
		}
	}
}

// A client that has not heard of the new version goes on uploading to the old one: what it adds is carried as well, and
// where it never stops, the carry-over does not say that it is complete.
func TestKeysThatArriveInTheOldVersionMeanwhileAreCaughtUp(t *testing.T) {
	for _, arrivals := range []int{0, 1, 3, 1000} {
		oldKey, newKey := generate(t), generate(t)
		h := newHomeserver(t)
		h.limit = defaultMaxBody
		h.versions["1"]["!r:x"] = map[id.SessionID]session{"first": {SessionData: sealFor(t, oldKey, `{}`)}}
		h.arrive = func() {
			if h.changes < arrivals {
				h.changes++
				h.versions["1"]["!r:x"][id.SessionID(fmt.Sprint("late", h.changes))] = session{SessionData: sealFor(t, oldKey, `{}`)}
			}
		}
		result, err := h.client().CarryOver(t.Context(), CarryOver{From: "1", To: "2", FromKey: oldKey, ToKey: newKey.PublicKey()})
		if err != nil {
			t.Fatal(err)
		}
		if endless := arrivals == 1000; result.Complete == endless || !endless && (result.Carried != arrivals+1 || len(h.versions["2"]["!r:x"]) != arrivals+1) {
			t.Errorf("with %d arrivals it is %+v, and the new version has %d", arrivals, result, len(h.versions["2"]["!r:x"]))
		}
	}
}

// A write that fails for good ends every part of a carry-over, with keys of all of them on their way.
func TestACarryOverThatFailsLeavesNothingRunning(t *testing.T) {
	oldKey, newKey := generate(t), generate(t)
	h := newHomeserver(t)
	h.limit = 600
	h.versions["1"]["!r:x"] = map[id.SessionID]session{}
	data := sealFor(t, oldKey, `{}`)
	for i := range 500 {
		h.versions["1"]["!r:x"][id.SessionID(fmt.Sprint("s", i))] = session{SessionData: data}
	}
	puts := 0
	h.fail = func() string {
		if puts++; puts > 3 {
			return "lost"
		}
		return ""
	}
	before := runtime.NumGoroutine()
	for range 20 {
		puts = 0
		if _, err := h.client().CarryOver(t.Context(), CarryOver{From: "1", To: "2", FromKey: oldKey, ToKey: newKey.PublicKey(), MaxBodyBytes: h.limit, Workers: 4}); err == nil {
			t.Fatal("it did not fail")
		}
	}
	http.DefaultClient.CloseIdleConnections()
	for range 3000 {
		if runtime.NumGoroutine() <= before+10 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines were there before, and %d are now", before, runtime.NumGoroutine())
}
