package bench

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"maunium.net/go/mautrix"
	mautrixbackup "maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/backup/backupkey"
)

// carryKeys is how many room keys the large carry-over has, and the small one a tenth of it.
const carryKeys = 50_000

// CarryChild is the environment variable that makes the program a carry-over and nothing else, so that its memory is the
// carry-over's; see RunCarryChild.
const CarryChild = "KEYHERALD_BENCH_CARRY"

// Carry measures a carry-over of 50,000 room keys on the loopback, against a store that takes no time: keys a second and
// core, beside the three X25519 operations that each key costs (one to open, two to seal), and beside mautrix's own
// types in one GET and one PUT. The row of the processor's time leaves out the store and the waiting for it: it is how many
// keys the process carries in a second of its own time, beside how many operations that is enough for. carryover memory
// is the peak of a process that carries 50,000 keys beside one that carries 5,000.
func Carry(ctx context.Context, rounds int) (rows []Row, err error) {
	oldKey, newKey := mustKey(), mustKey()
	large, err := newKeyStore(oldKey, carryKeys)
	if err != nil {
		return nil, err
	}
	defer large.Close()
	small, err := newKeyStore(oldKey, carryKeys/10)
	if err != nil {
		return nil, err
	}
	defer small.Close()
	var peaks, smallPeaks, own, primitive []float64
	cores := float64(runtime.GOMAXPROCS(0))
	row, err := Measure(ctx, fmt.Sprintf("carryover/%d", carryKeys), "keys/s/core", More, rounds,
		Side{"streamed", func(ctx context.Context) (float64, error) {
			result, err := carryInChild(ctx, large, oldKey, newKey)
			peaks, own = append(peaks, result.PeakMB), append(own, carryKeys/result.CPU)
			return carryKeys / result.Seconds / cores, err
		}},
		Side{"x25519_primitive", func(context.Context) (float64, error) {
			perCore, perCPU, err := x25519(oldKey, newKey)
			primitive = append(primitive, perCPU)
			return perCore, err
		}},
		Side{"mautrix_bulk", func(ctx context.Context) (float64, error) {
			seconds, err := bulk(ctx, large, oldKey, newKey)
			return carryKeys / seconds / cores, err
		}})
	if err != nil {
		return nil, err
	}
	for range len(peaks) {
		result, err := carryInChild(ctx, small, oldKey, newKey)
		if err != nil {
			return nil, err
		}
		smallPeaks = append(smallPeaks, result.PeakMB)
	}
	memory := Compare(fmt.Sprintf("carryover/%d memory", carryKeys), "MB", Less, peaks, map[string][]float64{fmt.Sprintf("carryover/%d", carryKeys/10): smallPeaks})
	// The first of each was the warm-up.
	cpu := Compare(fmt.Sprintf("carryover/%d processor's time", carryKeys), "keys/s", More, own[1:], map[string][]float64{"x25519_primitive": primitive[1:]})
	return []Row{row, cpu, memory}, nil
}

func mustKey() backupkey.Key {
	key, err := backupkey.Generate()
	if err != nil {
		panic(err) // there is no randomness
	}
	return key
}

// keyStore answers for two key-backup versions: the first is as it was made, the second remembers what was put.
type keyStore struct {
	*httptest.Server
	old  []byte
	want int

	mu   sync.Mutex // guards puts
	puts [][]byte
}

func newKeyStore(key backupkey.Key, keys int) (*keyStore, error) {
	to, err := ecdh.X25519().NewPublicKey(publicBytes(key))
	if err != nil {
		return nil, err
	}
	type session struct {
		FirstMessageIndex int  `json:"first_message_index"`
		ForwardedCount    int  `json:"forwarded_count"`
		IsVerified        bool `json:"is_verified"`
		SessionData       any  `json:"session_data"`
	}
	type room struct {
		Sessions map[string]session `json:"sessions"`
	}
	rooms := map[string]room{}
	for i := range keys {
		name := fmt.Sprintf("!room%d:example.org", i/250)
		if rooms[name].Sessions == nil {
			rooms[name] = room{map[string]session{}}
		}
		// As long as a real one: a session key is 229 bytes in base64.
		data := mautrixbackup.MegolmSessionData{Algorithm: id.AlgorithmMegolmV1, SenderKey: "senderkeysenderkeysenderkeysenderkeysenderke",
			SessionKey: strings.Repeat("k", 305), SenderClaimedKeys: mautrixbackup.SenderClaimedKeys{Ed25519: "ed25519keyed25519keyed25519keyed25519keyed2"}}
		sealed, err := mautrixbackup.EncryptSessionDataWithPubkey(to, data)
		if err != nil {
			return nil, err
		}
		rooms[name].Sessions[fmt.Sprintf("session-%040d", i)] = session{SessionData: sealed}
	}
	s := &keyStore{want: keys}
	if s.old, err = json.Marshal(map[string]any{"rooms": rooms}); err != nil {
		return nil, err
	}
	s.Server = httptest.NewServer(s)
	return s, nil
}

func publicBytes(key backupkey.Key) []byte { return key.Private().PublicKey().Bytes() }

func (s *keyStore) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puts = nil
}

func (s *keyStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch version := r.URL.Query().Get("version"); {
	case strings.Contains(r.URL.Path, "/room_keys/version"):
		of := "2"
		if strings.HasSuffix(r.URL.Path, "/1") {
			of = "1"
		}
		_, _ = fmt.Fprintf(w, `{"version":%q,"algorithm":"m.megolm_backup.v1.curve25519-aes-sha2","auth_data":{},"count":%d,"etag":"x"}`, of, s.want)
	case r.Method == http.MethodPut:
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.puts = append(s.puts, body)
		s.mu.Unlock()
		_, _ = io.WriteString(w, `{"count":1,"etag":"y"}`)
	case version == "1":
		_, _ = w.Write(s.old)
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		// The same room may stand in several of the bodies, which a decoder that streams does not mind.
		_, _ = io.WriteString(w, `{"rooms":{`)
		for i, body := range s.puts {
			inner := strings.TrimSuffix(strings.TrimPrefix(string(body), `{"rooms":{`), `}}`)
			if i > 0 {
				_, _ = io.WriteString(w, ",")
			}
			_, _ = io.WriteString(w, inner)
		}
		_, _ = io.WriteString(w, `}}`)
	}
}

type carryJob struct {
	URL    string
	OldKey string
	NewKey string
}

type carryResult struct {
	Carried int
	Seconds float64
	// CPU is the processor's time of the process, its own and the system's for it, in seconds.
	CPU    float64
	PeakMB float64
	Error  string
}

func carryInChild(ctx context.Context, store *keyStore, oldKey, newKey backupkey.Key) (result carryResult, err error) {
	store.reset()
	job, err := json.Marshal(carryJob{store.URL, oldKey.RevealBase64(), newKey.PublicKey()})
	if err != nil {
		return result, err
	}
	program, err := os.Executable()
	if err != nil {
		return result, err
	}
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = append(os.Environ(), CarryChild+"="+string(job))
	out, err := cmd.Output()
	if err != nil {
		return result, fmt.Errorf("carrying over in a process: %w", err)
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return result, err
	}
	if result.Error != "" || result.Carried != store.want {
		return result, fmt.Errorf("%d of %d keys were carried: %s", result.Carried, store.want, result.Error)
	}
	return result, nil
}

// RunCarryChild carries over as the environment says, prints a line of JSON, and reports whether it was one.
func RunCarryChild(ctx context.Context) bool {
	text := os.Getenv(CarryChild)
	if text == "" {
		return false
	}
	var result carryResult
	if err := result.run(ctx, text); err != nil {
		result.Error = err.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(result)
	return true
}

func (r *carryResult) run(ctx context.Context, text string) error {
	var job carryJob
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		return err
	}
	oldKey, err := backupkey.Parse(job.OldKey)
	if err != nil {
		return err
	}
	client, err := mautrix.NewClient(job.URL, "@alice:example.org", "token")
	if err != nil {
		return err
	}
	before, err := cpuSeconds()
	if err != nil {
		return err
	}
	began := time.Now()
	carried, err := backup.New(client).CarryOver(ctx, backup.CarryOver{From: "1", To: "2", FromKey: oldKey, ToKey: job.NewKey})
	r.Carried, r.Seconds = carried.Carried, time.Since(began).Seconds()
	if err != nil {
		return err
	}
	if !carried.Complete {
		return errors.New("it is not complete")
	}
	after, err := cpuSeconds()
	if err != nil {
		return err
	}
	r.CPU = after - before
	r.PeakMB, err = peakMB()
	return err
}

// peakMB is the highest resident memory of this process.
func peakMB() (float64, error) {
	kb, err := statusKB("self", "VmHWM")
	return kb / 1024, err
}

// cpuSeconds is the processor's time that this process has had, its own and the system's for it.
func cpuSeconds() (float64, error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, fmt.Errorf("reading the processor's time: %w", err)
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9, nil
}

// x25519 is how often a second and core the three operations can be done on all cores, and how often in a second of a
// processor's time.
func x25519(oldKey, newKey backupkey.Key) (perCore, perCPU float64, err error) {
	const each = 5000
	to, sender := newKey.Private().PublicKey(), mustKey().Private().PublicKey()
	before, err := cpuSeconds()
	if err != nil {
		return 0, 0, err
	}
	var all sync.WaitGroup
	began := time.Now()
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for range each {
				_, _ = oldKey.Private().ECDH(sender)
				fresh, err := ecdh.X25519().GenerateKey(rand.Reader)
				if err == nil {
					_, _ = fresh.ECDH(to)
				}
			}
		})
	}
	all.Wait()
	seconds := time.Since(began).Seconds()
	after, err := cpuSeconds()
	return each / seconds, float64(each*runtime.GOMAXPROCS(0)) / (after - before), err
}

// bulk is how mautrix's own calls do it: everything read, opened, sealed and put at once.
func bulk(ctx context.Context, store *keyStore, oldKey, newKey backupkey.Key) (seconds float64, err error) {
	store.reset()
	client, err := mautrix.NewClient(store.URL, "@alice:example.org", "token")
	if err != nil {
		return 0, err
	}
	private, err := mautrixbackup.MegolmBackupKeyFromBytes(oldKey.Reveal())
	if err != nil {
		return 0, err
	}
	to, err := ecdh.X25519().NewPublicKey(publicBytes(newKey))
	if err != nil {
		return 0, err
	}
	began := time.Now()
	old, err := client.GetKeyBackup(ctx, "1")
	if err != nil {
		return 0, err
	}
	request := mautrix.ReqKeyBackup{Rooms: map[id.RoomID]mautrix.ReqRoomKeyBackup{}}
	for room, keys := range old.Rooms {
		sessions := map[id.SessionID]mautrix.ReqKeyBackupData{}
		for sessionID, key := range keys.Sessions {
			plaintext, err := key.SessionData.Decrypt(private)
			if err != nil {
				return 0, err
			}
			sealed, err := mautrixbackup.EncryptSessionDataWithPubkey(to, *plaintext)
			if err != nil {
				return 0, err
			}
			encoded, err := json.Marshal(sealed)
			if err != nil {
				return 0, err
			}
			sessions[sessionID] = mautrix.ReqKeyBackupData{FirstMessageIndex: key.FirstMessageIndex, ForwardedCount: key.ForwardedCount, IsVerified: key.IsVerified, SessionData: encoded}
		}
		request.Rooms[room] = mautrix.ReqRoomKeyBackup{Sessions: sessions}
	}
	if _, err := client.PutKeysInBackup(ctx, "2", &request); err != nil {
		return 0, err
	}
	return time.Since(began).Seconds(), nil
}
