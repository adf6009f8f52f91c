package sink_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"io"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/audit/sink"
	"github.com/keyherald/keyherald/keyheraldtest"
)

const logName = "example.org/keyherald"

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newKeys(t *testing.T) checkpoint.Keys {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.key")
	_, err := checkpoint.WriteKeys(path, logName)
	check(t, err)
	keys, err := checkpoint.LoadKeys(logName, path)
	check(t, err)
	return keys
}

func signed(t *testing.T, keys checkpoint.Keys, epoch int, size int64, day int) checkpoint.Signed {
	t.Helper()
	c := checkpoint.Checkpoint{Epoch: epoch, Size: size, Root: tlog.Hash{byte(size)}}
	note, err := checkpoint.Sign(logName, c, keys.Signers...)
	check(t, err)
	return checkpoint.Signed{Checkpoint: c, Note: note, At: time.Date(2026, 11, day, 23, 59, 0, 0, time.UTC)}
}

// A sink that can be read back keeps the newest and one a day, whatever order they come in, and tells a place that was
// emptied from one that never had anything.
func TestASinkThatIsReadBackRemembersTheNewestCheckpoint(t *testing.T) {
	keys := newKeys(t)
	for name, open := range map[string]func(t *testing.T) (memory signer.Memory, dir string){
		"directory": func(t *testing.T) (signer.Memory, string) {
			dir := filepath.Join(t.TempDir(), "share", "checkpoints")
			d, err := sink.NewDirectory("minutes", dir, keys)
			check(t, err)
			return d, dir
		},
		"s3": func(t *testing.T) (signer.Memory, string) {
			store, err := keyheraldtest.StartS3(t.Context(), t.TempDir())
			check(t, err)
			t.Cleanup(func() { _ = store.Close() })
			s, err := sink.NewS3(t.Context(), "vault", sink.S3Config{Endpoint: store.Endpoint, Region: store.Region, Bucket: store.Bucket,
				Prefix: "production/", AccessKeyID: store.AccessKeyID, SecretAccessKey: store.SecretAccessKey}, keys)
			check(t, err)
			return s, filepath.Join(store.Dir, "production")
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			memory, dir := open(t)
			newest := func() string {
				t.Helper()
				note, err := memory.Newest(ctx)
				check(t, err)
				return note
			}
			if note := newest(); note != "" {
				t.Errorf("an empty place remembers %q", note)
			}
			first, second, third := signed(t, keys, 1, 10, 1), signed(t, keys, 1, 20, 1), signed(t, keys, 1, 30, 2)
			for _, step := range []struct{ publish, want checkpoint.Signed }{{first, first}, {third, third}, {second, third}, {third, third}} {
				check(t, memory.Publish(ctx, step.publish))
				if newest() != step.want.Note {
					t.Errorf("after %d it remembers another than %d", step.publish.Size, step.want.Size)
				}
			}
			// After a loss a smaller tree of a later epoch is newer.
			later := signed(t, keys, 2, 5, 3)
			check(t, memory.Publish(ctx, later))
			check(t, memory.Publish(ctx, third))
			if newest() != later.Note {
				t.Error("an older epoch was taken for newer")
			}
			for file, want := range map[string]string{"epoch-1-2026-11-01": first.Note, "epoch-1-2026-11-02": third.Note, "epoch-2-2026-11-03": later.Note} {
				if kept, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(kept) != want {
					t.Errorf("%s is not the day's: %v", file, err)
				}
			}
			// Another log's checkpoint is not written over.
			other := newKeys(t)
			foreign := signed(t, other, 1, 99, 1)
			check(t, os.WriteFile(filepath.Join(dir, "latest"), []byte(foreign.Note), 0o644))
			if err := memory.Publish(ctx, later); err == nil {
				t.Error("a checkpoint of another key was written over")
			}
			check(t, os.Remove(filepath.Join(dir, "latest")))
			if _, err := memory.Newest(ctx); err == nil {
				t.Error("a place that was emptied passes for one that never had anything")
			}
		})
	}
}

func TestAStoreThatRefusesOrIsAwayIsAnError(t *testing.T) {
	ctx := t.Context()
	keys := newKeys(t)
	store, err := keyheraldtest.StartS3(ctx, t.TempDir())
	check(t, err)
	t.Cleanup(func() { _ = store.Close() })
	config := sink.S3Config{Endpoint: store.Endpoint, Region: store.Region, Bucket: store.Bucket, AccessKeyID: store.AccessKeyID, SecretAccessKey: "wrong key"}
	refused, err := sink.NewS3(ctx, "vault", config, keys)
	check(t, err)
	if _, err := refused.Newest(ctx); err == nil || strings.Contains(err.Error(), "wrong key") {
		t.Errorf("wrong credentials: %v", err)
	}
	config.SecretAccessKey, config.Bucket = store.SecretAccessKey, "nowhere"
	nowhere, err := sink.NewS3(ctx, "vault", config, keys)
	check(t, err)
	if _, err := nowhere.Newest(ctx); err == nil {
		t.Error("a bucket that is not there passes for an empty one")
	}
}

// lineOf is what sinks that cannot be read back write.
type lineOf struct {
	Checkpoint string    `json:"checkpoint"`
	Size       int64     `json:"size"`
	At         time.Time `json:"at"`
}

func TestEveryCheckpointIsALineInWhatGrows(t *testing.T) {
	ctx := t.Context()
	keys := newKeys(t)
	var out bytes.Buffer
	path := filepath.Join(t.TempDir(), "checkpoints.jsonl")
	listener, err := net.ListenPacket("udp", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	sinks := []signer.Sink{sink.NewStream("out", &out), sink.NewFile("lines", path), sink.NewSyslog("log", "udp", listener.LocalAddr().String())}
	want := []checkpoint.Signed{signed(t, keys, 1, 1, 1), signed(t, keys, 1, 2, 1)}
	var datagrams [2][]byte
	for i, c := range want {
		for _, s := range sinks {
			check(t, s.Publish(ctx, c))
		}
		buffer := make([]byte, 4096)
		check(t, listener.SetReadDeadline(time.Now().Add(time.Minute)))
		n, _, err := listener.ReadFrom(buffer)
		check(t, err)
		if !bytes.HasPrefix(buffer, []byte("<85>")) { // authpriv.notice, RFC 5424, 6.2.1
			t.Errorf("the datagram begins with %.8s", buffer)
		}
		datagrams[i] = buffer[bytes.IndexByte(buffer, '{'):n]
	}
	file, err := os.ReadFile(path)
	check(t, err)
	for name, text := range map[string][]byte{"the stream": out.Bytes(), "the file": file, "syslog": bytes.Join(datagrams[:], nil)} {
		lines := bufio.NewScanner(bytes.NewReader(text))
		for _, c := range want {
			var got lineOf
			if !lines.Scan() || json.Unmarshal(lines.Bytes(), &got) != nil || got.Checkpoint != c.Note || got.Size != c.Size || !got.At.Equal(c.At) {
				t.Errorf("%s has %q", name, lines.Text())
			}
		}
		if lines.Scan() {
			t.Errorf("%s has more: %q", name, lines.Text())
		}
	}
}

func TestAWebhookTakesTheNoteAndNothingButAYesIsOne(t *testing.T) {
	ctx := t.Context()
	c := signed(t, newKeys(t), 1, 1, 1)
	status := http.StatusNoContent
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization")+" "+string(body))
		if status == http.StatusFound {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(server.Close)
	hook := sink.NewWebhook("hook", server.URL+"/take", "Bearer secret")
	check(t, hook.Publish(ctx, c))
	if len(asked) != 1 || asked[0] != "POST /take Bearer secret "+c.Note {
		t.Errorf("it was asked %q", asked)
	}
	for _, status = range []int{http.StatusFound, http.StatusForbidden, http.StatusInternalServerError} {
		asked = nil
		if err := hook.Publish(ctx, c); err == nil || strings.Contains(err.Error(), "secret") || len(asked) != 1 {
			t.Errorf("%d is %v, after %d requests", status, err, len(asked))
		}
	}
}
