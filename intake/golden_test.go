package intake_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest/senders"
)

// sample is a request of testdata/<format>/valid.http or invalid.http, with the answer and what is recorded. The shapes are
// those of the vendors' documentation. In it {token ISSUER CLAIMS} is a token of an issuer whose claims differ by CLAIMS,
// and {signature} a signature of SNS over the body it stands in; everything else is as it is.
type sample struct {
	name, request, answer string
	status                int
	recorded              []string
}

func readSamples(t *testing.T, path string) []sample {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var samples []sample
	for _, part := range strings.Split("\n"+string(raw), "\n=== ")[1:] {
		name, rest, _ := strings.Cut(part, "\n")
		request, want, ok := strings.Cut(rest, "\n--- ")
		lines := strings.Split(strings.TrimRight(want, "\n"), "\n")
		status, err := strconv.Atoi(lines[0])
		if !ok || err != nil || len(lines) < 1 {
			t.Fatalf("%s: %s has no answer", path, name)
		}
		s := sample{name: name, request: request, status: status}
		if len(lines) > 1 {
			s.answer, s.recorded = lines[1], lines[2:]
		}
		samples = append(samples, s)
	}
	return samples
}

var tokenPlace = regexp.MustCompile(`\{token (\w+) ?(\{.*\})?\}`)

// http fills in the places and reads the request as a server would.
func (s sample) http(t *testing.T, w *senders.World) *http.Request {
	t.Helper()
	text := tokenPlace.ReplaceAllStringFunc(s.request, func(place string) string {
		parts := tokenPlace.FindStringSubmatch(place)
		var changed map[string]any
		if parts[2] != "" {
			if err := json.Unmarshal([]byte(parts[2]), &changed); err != nil {
				t.Fatal(err)
			}
		}
		return w.GoodToken(parts[1], changed)
	})
	head, body, _ := strings.Cut(text, "\n\n")
	if strings.Contains(body, `"{signature}"`) {
		var m map[string]any
		if err := json.Unmarshal([]byte(body), &m); err != nil {
			t.Fatal(err)
		}
		delete(m, "Signature")
		body = w.SignSNS(m)
	}
	head += fmt.Sprintf("\nContent-Length: %d", len(body))
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n" + body)))
	if err != nil {
		t.Fatal(err)
	}
	req.RemoteAddr = "10.1.0.1:1234"
	return req
}

var (
	arrival     = regexp.MustCompile(`arrival:[A-Z2-7]+`)
	unversioned = regexp.MustCompile(`unversioned-[0-9a-f]+`)
)

// heard is what the recorder and the hosts heard of the last request, line by line.
type heard struct {
	memory                                *senders.Memory
	world                                 *senders.World
	accepted, unusable, handshakes, asked int
}

func (h *heard) news(t *testing.T) []string {
	t.Helper()
	var lines []string
	tell := func(prefix string, n intake.Notification) {
		text, err := json.Marshal(struct {
			Source, ID, KeyID, User, Secret, KMS, Path, Version string
			Read                                                bool   `json:",omitempty"`
			Reader                                              string `json:",omitempty"`
		}{n.Source, n.ID, n.KeyID, n.User, n.Secret, n.KMS, n.Path, n.Version, n.Read, n.Reader})
		if err != nil {
			t.Fatal(err)
		}
		line := prefix + string(text)
		if arrival.MatchString(line) { // drawn by lot
			line = unversioned.ReplaceAllString(arrival.ReplaceAllString(line, "arrival:…"), "unversioned-…")
		}
		lines = append(lines, line)
	}
	for _, n := range h.memory.Accepted[h.accepted:] {
		tell("", n)
	}
	for _, n := range h.memory.Unusables[h.unusable:] {
		tell("unusable ", n)
	}
	for _, shake := range h.memory.Handshakes[h.handshakes:] {
		lines = append(lines, "handshake "+shake)
	}
	asked := h.world.Asked()
	for _, page := range asked[h.asked:] {
		if strings.HasSuffix(page, "/") {
			lines = append(lines, "asked "+page) // keys and certificates are asked for when they must be
		}
	}
	h.accepted, h.unusable, h.handshakes, h.asked = len(h.memory.Accepted), len(h.memory.Unusables), len(h.memory.Handshakes), len(asked)
	return lines
}

func newWeb(t *testing.T, w *senders.World, recorder intake.Recorder) *echo.Echo {
	t.Helper()
	handler, err := intake.New(w.Config(), w.Deps(recorder))
	if err != nil {
		t.Fatal(err)
	}
	return echoOf(handler)
}

func echoOf(handler *intake.Handler) *echo.Echo {
	web := echo.New()
	handler.Register(web)
	return web
}

func TestSamples(t *testing.T) {
	formats, err := filepath.Glob("testdata/*/valid.http")
	if err != nil || len(formats) != 6 {
		t.Fatalf("%d formats have samples, want 6: %v", len(formats), err)
	}
	for _, valid := range formats {
		format := filepath.Base(filepath.Dir(valid))
		t.Run(format, func(t *testing.T) {
			w, memory := senders.New(t), senders.NewMemory()
			web, listening := newWeb(t, w, memory), &heard{memory: memory, world: w}
			for _, page := range []string{valid, filepath.Join(filepath.Dir(valid), "invalid.http")} {
				for _, s := range readSamples(t, page) {
					t.Run(s.name, func(t *testing.T) {
						answer := httptest.NewRecorder()
						web.ServeHTTP(answer, s.http(t, w))
						if got := string(bytes.TrimSpace(answer.Body.Bytes())); answer.Code != s.status || got != s.answer {
							t.Errorf("got %d %s\nwant %d %s", answer.Code, got, s.status, s.answer)
						}
						if got := listening.news(t); !slices.Equal(got, s.recorded) {
							t.Errorf("recorded %s\nwant %s", strings.Join(got, "\n"), strings.Join(s.recorded, "\n"))
						}
						if strings.Contains(page, "invalid") && len(memory.Accepted) != listening.accepted {
							t.Error("it was accepted")
						}
					})
				}
			}
			if foreign := w.Foreign(); len(foreign) > 0 {
				t.Errorf("%v were asked", foreign)
			}
		})
	}
}

func TestThePreflightOfEventGridIsAnswered(t *testing.T) {
	w := senders.New(t)
	web := newWeb(t, w, senders.NewMemory())
	answer := httptest.NewRecorder()
	web.ServeHTTP(answer, senders.Request{Method: http.MethodOptions, Source: "azure", Headers: [][2]string{{"WebHook-Request-Origin", "eventgrid.azure.net"},
		{"WebHook-Request-Callback", "https://evil.example/callback"}, {"WebHook-Request-Rate", "120"}}}.HTTP())
	if answer.Code != http.StatusOK || answer.Header().Get("WebHook-Allowed-Origin") != "eventgrid.azure.net" || answer.Header().Get("WebHook-Allowed-Rate") != "*" {
		t.Errorf("got %d with %v", answer.Code, answer.Header())
	}
	if len(w.Asked())+len(w.Foreign()) > 0 {
		t.Errorf("%v and %v were asked", w.Asked(), w.Foreign())
	}
	for _, source := range []string{"kms", "sns", "pubsub", "soar"} {
		answer := httptest.NewRecorder()
		web.ServeHTTP(answer, senders.Request{Method: http.MethodOptions, Source: source, Headers: [][2]string{{"WebHook-Request-Origin", "eventgrid.azure.net"}}}.HTTP())
		if answer.Code != http.StatusMethodNotAllowed || answer.Header().Get("Allow") != http.MethodPost {
			t.Errorf("%s: got %d with %v", source, answer.Code, answer.Header())
		}
	}
}
