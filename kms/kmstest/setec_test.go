package kmstest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tailscale/setec/acl"
	"github.com/tailscale/setec/client/setec"
	"github.com/tailscale/setec/server"
	"github.com/tailscale/setec/setectest"
	"github.com/tailscale/setec/types/api"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/tailcfg"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/filesecret"
	"github.com/keyherald/keyherald/kms/kmstest"
	"github.com/keyherald/keyherald/kms/secret"
	"github.com/keyherald/keyherald/kms/setecmeta"
	"github.com/keyherald/keyherald/kms/setecsecret"
)

// serve starts a real setec server on a database for callers with these rights; traffic gets every response body.
func serve(t *testing.T, db *setectest.DB, traffic *recorder, actions ...acl.Action) string {
	t.Helper()
	rule, err := json.Marshal(acl.Rule{Action: actions, Secret: []acl.Secret{"*"}})
	check(t, err)
	s := setectest.NewServer(t, db, &setectest.ServerOptions{WhoIs: func(context.Context, string) (*apitype.WhoIsResponse, error) {
		return &apitype.WhoIsResponse{Node: &tailcfg.Node{Name: "keyherald.example.com"}, UserProfile: &tailcfg.UserProfile{ID: 1, LoginName: "keyherald@example.com"},
			CapMap: tailcfg.PeerCapMap{server.ACLCap: []tailcfg.RawMessage{tailcfg.RawMessage(rule)}}}, nil
	}})
	hs := httptest.NewServer(traffic.record(s.Mux))
	t.Cleanup(hs.Close)
	return hs.URL
}

type recorder struct {
	mu     sync.Mutex
	bodies bytes.Buffer
}

func (r *recorder) record(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		next.ServeHTTP(&recording{w, r}, req)
	})
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bodies.String()
}

type recording struct {
	http.ResponseWriter
	to *recorder
}

func (r *recording) Write(p []byte) (int, error) {
	r.to.mu.Lock()
	r.to.bodies.Write(p)
	r.to.mu.Unlock()
	return r.ResponseWriter.Write(p)
}

func put(db *setectest.DB) func(t *testing.T, path, value, public string) string {
	client := func(t *testing.T) setec.Client {
		return setec.Client{Server: serve(t, db, &recorder{}, acl.ActionGet, acl.ActionInfo, acl.ActionPut, acl.ActionActivate)}
	}
	return func(t *testing.T, path, value, public string) string {
		t.Helper()
		c, ctx := client(t), t.Context()
		store := func(name, value string) string {
			version, err := c.Put(ctx, name, []byte(value))
			check(t, err)
			check(t, c.Activate(ctx, name, version))
			return version.String()
		}
		next := api.SecretVersion(1)
		if info, err := c.Info(ctx, path); err == nil {
			next = info.ActiveVersion + 1
		}
		if public != "" {
			fields := map[string]string{}
			if old, err := c.Get(ctx, path+".metadata"); err == nil {
				check(t, json.Unmarshal(old.Value, &fields))
			}
			fields["public_key."+next.String()] = public
			encoded, err := json.Marshal(fields)
			check(t, err)
			store(path+".metadata", string(encoded))
		}
		return store(path, value)
	}
}

func setecClients(t *testing.T, metadataURL, secretsURL string) (*setecmeta.Client, *setecsecret.Client) {
	t.Helper()
	metadata, err := setecmeta.New(setecmeta.Config{URL: metadataURL})
	check(t, err)
	secrets, err := setecsecret.New(setecsecret.Config{URL: secretsURL})
	check(t, err)
	return metadata, secrets
}

func TestSetecConforms(t *testing.T) {
	kmstest.Run(t, func(t *testing.T) kmstest.KMS {
		db := setectest.NewDB(t, nil)
		readers := serve(t, db, &recorder{}, acl.ActionGet, acl.ActionInfo)
		metadata, secrets := setecClients(t, serve(t, db, &recorder{}, acl.ActionInfo), readers)
		privileged, err := setecmeta.New(setecmeta.Config{URL: readers})
		check(t, err)
		return kmstest.KMS{Metadata: metadata, Privileged: privileged, Secrets: secrets, Put: put(db)}
	})
}

func TestTheMetadataClientNeverCausesSetecToSendAValue(t *testing.T) {
	db, traffic := setectest.NewDB(t, nil), &recorder{}
	key, err := backupkey.Generate()
	check(t, err)
	put(db)(t, "keyherald/alice", key.RevealBase64(), key.PublicKey())
	// These credentials could read, which is the worst case.
	url := serve(t, db, traffic, acl.ActionGet, acl.ActionInfo)
	metadata, secrets := setecClients(t, url, url)
	_, err = metadata.Current(t.Context(), "keyherald/alice")
	check(t, err)
	readable, err := metadata.CanReadSecret(t.Context(), "keyherald/alice")
	check(t, err)
	if !readable {
		t.Fatal("the preflight missed that the credentials could read")
	}
	onWire, err := json.Marshal([]byte(key.RevealBase64()))
	check(t, err)
	if strings.Contains(traffic.String(), string(onWire)) {
		t.Fatal("the value came over the wire")
	}
	_, err = secrets.Fetch(t.Context(), "keyherald/alice", "")
	check(t, err)
	if !strings.Contains(traffic.String(), string(onWire)) {
		t.Fatal("the search does not find the value where it must be: the test proves nothing")
	}
}

func TestTheRightToReadIsSeenBeforeTheSecretExists(t *testing.T) {
	db := setectest.NewDB(t, nil)
	for url, want := range map[string]bool{serve(t, db, &recorder{}, acl.ActionInfo): false, serve(t, db, &recorder{}, acl.ActionInfo, acl.ActionGet): true} {
		metadata, err := setecmeta.New(setecmeta.Config{URL: url})
		check(t, err)
		if readable, err := metadata.CanReadSecret(t.Context(), "keyherald/later"); err != nil || readable != want {
			t.Errorf("readable=%v (%v), not %v", readable, err, want)
		}
	}
}

func TestCredentialsWithoutRightsAreForbidden(t *testing.T) {
	db := setectest.NewDB(t, nil)
	put(db)(t, "alice", "unread", "")
	url := serve(t, db, &recorder{}, acl.ActionPut)
	metadata, secrets := setecClients(t, url, url)
	_, described := metadata.Current(t.Context(), "alice")
	_, readable := metadata.CanReadSecret(t.Context(), "alice")
	_, fetched := secrets.Fetch(t.Context(), "alice", "")
	for _, err := range []error{described, readable, fetched} {
		if !errors.Is(err, kms.ErrForbidden) || kms.Retryable(err) {
			t.Errorf("got %v, which must be a lasting ErrForbidden", err)
		}
	}
}

func TestAnswersThatAreNoneGetTheirWord(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		t.Error("a redirect was followed")
		w.WriteHeader(http.StatusTeapot)
	}))
	t.Cleanup(elsewhere.Close)
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status); _, _ = io.WriteString(w, body) }
	}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    error
	}{
		"a server error is unavailable":             {answer(500, "hunter2"), kms.ErrUnavailable},
		"a proxy without its server is unavailable": {answer(503, ""), kms.ErrUnavailable},
		"too many requests is unavailable":          {answer(429, ""), kms.ErrUnavailable},
		"a connection cut is unavailable": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				err = conn.Close()
			}
			if err != nil {
				t.Error(err)
			}
		}, kms.ErrUnavailable},
		"a body cut short is unavailable": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{"Name":`)
		}, kms.ErrUnavailable},
		"an unauthorized request is forbidden": {answer(401, ""), kms.ErrForbidden},
		"a bad request is malformed":           {answer(400, "hunter2"), kms.ErrMalformed},
		"a page is malformed":                  {answer(200, "<html>hunter2"), kms.ErrMalformed},
		"null is malformed":                    {answer(200, "null"), kms.ErrMalformed},
		"an endless answer is malformed":       {answer(200, `{"Name":"`+strings.Repeat("x", 2<<20)+`"}`), kms.ErrMalformed},
		"a redirect is malformed, not followed": {func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, elsewhere.URL, http.StatusTemporaryRedirect)
		}, kms.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			hs := httptest.NewServer(c.handler)
			t.Cleanup(hs.Close)
			metadata, secrets := setecClients(t, hs.URL, hs.URL)
			_, described := metadata.Current(t.Context(), "alice")
			_, readable := metadata.CanReadSecret(t.Context(), "alice")
			_, current := secrets.Current(t.Context(), "alice")
			for _, err := range []error{described, readable, current} {
				if !errors.Is(err, c.want) || kms.Retryable(err) != errors.Is(c.want, kms.ErrUnavailable) {
					t.Errorf("got %v, not %v", err, c.want)
				} else if strings.Contains(err.Error(), "hunter2") {
					t.Errorf("the error quotes the answer: %v", err)
				}
			}
		})
	}
}

func TestAServerThatIsNotThereIsUnavailable(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	url := "http://" + listener.Addr().String()
	check(t, listener.Close())
	metadata, secrets := setecClients(t, url, url)
	_, described := metadata.Current(t.Context(), "alice")
	_, fetched := secrets.Fetch(t.Context(), "alice", "")
	if !kms.Retryable(described) || !kms.Retryable(fetched) {
		t.Fatalf("got %v and %v, which must be retryable", described, fetched)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := metadata.Current(ctx, "alice"); !errors.Is(err, context.Canceled) || kms.Retryable(err) {
		t.Fatalf("got %v, where the caller cancelled", err)
	}
}

func TestOnlyTheCAOfTheConfigurationIsTrusted(t *testing.T) {
	hs := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"Name":"alice","Versions":[7],"ActiveVersion":7}`)
	}))
	hs.Config.ErrorLog = log.New(io.Discard, "", 0)
	hs.StartTLS()
	t.Cleanup(hs.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	check(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hs.Certificate().Raw}), 0o644))
	trusting, err := setecmeta.New(setecmeta.Config{URL: hs.URL, CAFile: file})
	check(t, err)
	if described, err := trusting.Current(t.Context(), "alice"); err != nil || described.Version != "7" {
		t.Fatalf("got %+v, %v", described, err)
	}
	stranger, err := setecmeta.New(setecmeta.Config{URL: hs.URL})
	check(t, err)
	if _, err := stranger.Current(t.Context(), "alice"); !errors.Is(err, kms.ErrUnavailable) {
		t.Fatalf("got %v from a server of an unknown CA", err)
	}
}

func TestAConfigurationThatCannotWorkIsRefused(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	check(t, os.WriteFile(empty, nil, 0o644))
	for name, c := range map[string]setecmeta.Config{
		"no url":              {},
		"a url without host":  {URL: "https://"},
		"another scheme":      {URL: "ftp://setec.example.com"},
		"a password in it":    {URL: "https://user:pass@setec.example.com"},
		"a CA file not there": {URL: "https://setec.example.com", CAFile: "/nonexistent.pem"},
		"a CA file of none":   {URL: "https://setec.example.com", CAFile: empty},
	} {
		_, metadata := setecmeta.New(c)
		_, secrets := setecsecret.New(setecsecret.Config(c))
		if metadata == nil || secrets == nil {
			t.Errorf("%s: got %v and %v, which must be errors", name, metadata, secrets)
		}
	}
}

func TestWhatIsCreatedIsKeptAndNeverWrittenOver(t *testing.T) {
	db := setectest.NewDB(t, nil)
	url := serve(t, db, &recorder{}, acl.ActionGet, acl.ActionInfo, acl.ActionCreateVersion)
	_, inSetec := setecClients(t, url, url)
	inDirectory, err := filesecret.New(filesecret.Config{Dir: t.TempDir()})
	check(t, err)
	key, err := backupkey.Generate()
	check(t, err)
	for name, store := range map[string]interface {
		secret.Reader
		secret.Creator
	}{"setec": inSetec, "a directory": inDirectory} {
		t.Run(name, func(t *testing.T) {
			const path = "keyherald/alice/recovery-key"
			check(t, store.Create(t.Context(), path, key.RevealBase64()))
			if err := store.Create(t.Context(), path, "another"); !errors.Is(err, kms.ErrExists) {
				t.Errorf("got %v, want ErrExists", err)
			}
			kept, err := store.Fetch(t.Context(), path, "")
			check(t, err)
			if kept.Key.RevealBase64() != key.RevealBase64() || kept.Version != "1" {
				t.Errorf("version %s does not hold what was created", kept.Version)
			}
		})
	}
	_, readOnly := setecClients(t, url, serve(t, db, &recorder{}, acl.ActionInfo))
	if err := readOnly.Create(t.Context(), "keyherald/bob/recovery-key", "x"); !errors.Is(err, kms.ErrForbidden) {
		t.Errorf("got %v without the right to create", err)
	}
}
