package campaign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// homeserver is a simulated one, in this process: what of the client-server API the bot uses, over HTTP, and nothing behind
// it. Messages of devices come to it by a call and not over HTTP.
type homeserver struct {
	url    string
	server *http.Server
	// deliver is given each message of the bot's to a device.
	deliver func(to id.UserID, device id.DeviceID, content json.RawMessage)

	mu sync.Mutex // guards the rest
	// keys are what /keys/query answers, by user; the bot's are there once it has uploaded them.
	keys      map[id.UserID]*published
	data      map[string]json.RawMessage
	seen      map[string]bool
	inbox     []toBot
	delivered int // how many of the bot's messages it has acknowledged
	arrived   chan struct{}
}

// published is what a user has published.
type published struct {
	master, self, user json.RawMessage
	device             mautrix.DeviceKeys
	deviceID           id.DeviceID
	oneTime            map[string]json.RawMessage
}

type toBot struct {
	Sender  id.UserID       `json:"sender"`
	Type    string          `json:"type"`
	Content json.RawMessage `json:"content"`
}

// atOnce is how many messages a /sync gives, as real homeservers do.
const atOnce = 100

func startHomeserver() (*homeserver, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting the simulated homeserver: %w", err)
	}
	hs := &homeserver{url: "http://" + listener.Addr().String(), keys: map[id.UserID]*published{}, data: map[string]json.RawMessage{}, seen: map[string]bool{}, arrived: make(chan struct{})}
	mux := http.NewServeMux()
	const api = "/_matrix/client/v3"
	for pattern, answer := range map[string]func(r *http.Request) (any, error){
		"POST " + api + "/register":                       func(*http.Request) (any, error) { return map[string]any{}, nil },
		"POST " + api + "/login":                          hs.login,
		"POST " + api + "/keys/upload":                    hs.upload,
		"POST " + api + "/keys/device_signing/upload":     hs.identity,
		"POST " + api + "/keys/signatures/upload":         hs.signatures,
		"POST " + api + "/keys/query":                     hs.query,
		"POST " + api + "/keys/claim":                     hs.claim,
		"PUT " + api + "/sendToDevice/{type}/{txn}":       hs.send,
		"GET " + api + "/user/{user}/account_data/{type}": hs.readData,
		"PUT " + api + "/user/{user}/account_data/{type}": hs.writeData,
		"GET " + api + "/sync":                            hs.sync,
		"GET /_matrix/client/versions":                    func(*http.Request) (any, error) { return map[string]any{"versions": []string{"v1.11"}}, nil },
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			body, err := answer(r)
			w.Header().Set("Content-Type", "application/json")
			var refused matrixError
			if errors.As(err, &refused) {
				w.WriteHeader(refused.status)
				body = map[string]any{"errcode": refused.code, "error": refused.code}
			} else if err != nil {
				w.WriteHeader(http.StatusBadRequest)
				body = map[string]any{"errcode": "M_UNKNOWN", "error": err.Error()}
			}
			_ = json.NewEncoder(w).Encode(body)
		})
	}
	hs.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = hs.server.Serve(listener) }()
	return hs, nil
}

func (hs *homeserver) close() error { return hs.server.Close() }

type matrixError struct {
	status int
	code   string
}

func (e matrixError) Error() string { return e.code }

func read[T any](r *http.Request) (into T, err error) {
	err = json.NewDecoder(r.Body).Decode(&into)
	return into, err
}

// bot is who the requests are of: nobody else makes any.
var bot = id.NewUserID(botName, serverName)

func (hs *homeserver) login(r *http.Request) (any, error) {
	body, err := read[struct {
		DeviceID id.DeviceID `json:"device_id"`
	}](r)
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.keys[bot] == nil {
		hs.keys[bot] = &published{oneTime: map[string]json.RawMessage{}}
	}
	hs.keys[bot].deviceID = body.DeviceID
	return map[string]any{"user_id": bot, "device_id": body.DeviceID, "access_token": "simulated"}, err
}

func (hs *homeserver) upload(r *http.Request) (any, error) {
	body, err := read[struct {
		DeviceKeys  *mautrix.DeviceKeys        `json:"device_keys"`
		OneTimeKeys map[string]json.RawMessage `json:"one_time_keys"`
	}](r)
	hs.mu.Lock()
	defer hs.mu.Unlock()
	mine := hs.keys[bot]
	if mine == nil {
		return nil, matrixError{http.StatusUnauthorized, "M_UNKNOWN_TOKEN"}
	}
	if body.DeviceKeys != nil {
		mine.device = *body.DeviceKeys
	}
	for name, key := range body.OneTimeKeys {
		mine.oneTime[name] = key
	}
	return map[string]any{"one_time_key_counts": map[string]int{"signed_curve25519": len(mine.oneTime)}}, err
}

func (hs *homeserver) identity(r *http.Request) (any, error) {
	body, err := read[struct {
		Master json.RawMessage `json:"master_key"`
		Self   json.RawMessage `json:"self_signing_key"`
		User   json.RawMessage `json:"user_signing_key"`
	}](r)
	hs.mu.Lock()
	defer hs.mu.Unlock()
	mine := hs.keys[bot]
	mine.master, mine.self, mine.user = body.Master, body.Self, body.User
	return map[string]any{}, err
}

func (hs *homeserver) signatures(r *http.Request) (any, error) {
	body, err := read[mautrix.ReqUploadSignatures](r)
	hs.mu.Lock()
	defer hs.mu.Unlock()
	mine := hs.keys[bot]
	for _, object := range body[bot] {
		for user, keys := range object.Signatures {
			for keyID, signature := range keys {
				if mine.device.Signatures[user] == nil {
					mine.device.Signatures[user] = map[id.KeyID]string{}
				}
				mine.device.Signatures[user][keyID] = signature
			}
		}
	}
	return map[string]any{"failures": map[string]any{}}, err
}

func (hs *homeserver) query(r *http.Request) (any, error) {
	body, err := read[struct {
		DeviceKeys map[id.UserID]json.RawMessage `json:"device_keys"`
	}](r)
	devices, masters, selves := map[id.UserID]any{}, map[id.UserID]any{}, map[id.UserID]any{}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for user := range body.DeviceKeys {
		p := hs.keys[user]
		if p == nil || p.device.UserID == "" {
			continue
		}
		devices[user] = map[id.DeviceID]any{p.deviceID: p.device}
		if p.master != nil {
			masters[user], selves[user] = p.master, p.self
		}
	}
	return map[string]any{"device_keys": devices, "master_keys": masters, "self_signing_keys": selves, "failures": map[string]any{}}, err
}

func (hs *homeserver) claim(r *http.Request) (any, error) {
	body, err := read[struct {
		OneTimeKeys map[id.UserID]map[id.DeviceID]string `json:"one_time_keys"`
	}](r)
	hs.mu.Lock()
	defer hs.mu.Unlock()
	claimed := map[id.UserID]any{}
	for user, devices := range body.OneTimeKeys {
		p := hs.keys[user]
		for device := range devices {
			if p == nil || p.deviceID != device {
				continue
			}
			for name, key := range p.oneTime {
				delete(p.oneTime, name)
				claimed[user] = map[id.DeviceID]any{device: map[string]any{name: key}}
				break
			}
		}
	}
	return map[string]any{"one_time_keys": claimed, "failures": map[string]any{}}, err
}

func (hs *homeserver) send(r *http.Request) (any, error) {
	body, err := read[struct {
		Messages map[id.UserID]map[id.DeviceID]json.RawMessage `json:"messages"`
	}](r)
	if err != nil {
		return nil, err
	}
	hs.mu.Lock()
	again := hs.seen[r.PathValue("txn")]
	hs.seen[r.PathValue("txn")] = true
	hs.mu.Unlock()
	if again {
		return map[string]any{}, nil
	}
	for user, devices := range body.Messages {
		for device, content := range devices {
			hs.deliver(user, device, content)
		}
	}
	return map[string]any{}, nil
}

func (hs *homeserver) readData(r *http.Request) (any, error) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if data, ok := hs.data[r.PathValue("type")]; ok {
		return data, nil
	}
	return nil, matrixError{http.StatusNotFound, "M_NOT_FOUND"}
}

func (hs *homeserver) writeData(r *http.Request) (any, error) {
	data, err := read[json.RawMessage](r)
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.data[r.PathValue("type")] = data
	return map[string]any{}, err
}

// post is a message of a device to the bot.
func (hs *homeserver) post(message toBot) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.inbox = append(hs.inbox, message)
	close(hs.arrived)
	hs.arrived = make(chan struct{})
}

// sync gives what is after the token, which acknowledges what was before it, and waits where there is nothing.
func (hs *homeserver) sync(r *http.Request) (any, error) {
	patience, _ := strconv.Atoi(r.URL.Query().Get("timeout"))
	since, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Query().Get("since"), "s"))
	ctx, cancel := context.WithTimeout(r.Context(), time.Duration(patience)*time.Millisecond)
	defer cancel()
	for {
		hs.mu.Lock()
		if since > hs.delivered {
			hs.inbox = append([]toBot(nil), hs.inbox[since-hs.delivered:]...)
			hs.delivered = since
		}
		events := hs.inbox[:min(atOnce, len(hs.inbox))]
		next, arrived, keys := hs.delivered+len(events), hs.arrived, len(hs.keys[bot].oneTime)
		hs.mu.Unlock()
		if len(events) > 0 || ctx.Err() != nil {
			if events == nil {
				events = []toBot{}
			}
			return map[string]any{"next_batch": "s" + strconv.Itoa(next), "to_device": map[string]any{"events": events}, "device_one_time_keys_count": map[string]int{"signed_curve25519": keys}}, nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
		}
	}
}
