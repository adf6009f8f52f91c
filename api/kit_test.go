package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

var cluster *keyheraldtest.Postgres

func TestMain(m *testing.M) { os.Exit(keyheraldtest.RunWithPostgres(&cluster, m.Run)) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// server is the API on a real database, with an API token for each role. Every answer is held against the document.
type server struct {
	t        testing.TB
	db       *postgres.DB
	database *keyheraldtest.Database
	engine   *relay.Engine
	enforcer *enforce.Enforcer
	url      string
	clock    *keyheraldtest.Clock
	tokens   map[api.Role]string
	http     *http.Client
	tried    *tried
	api      *api.Handler
	end      context.CancelFunc
}

const logName = "example.org/test"

func newServer(t testing.TB, change ...func(*api.Config, *api.Deps)) *server {
	t.Helper()
	db, database := newDatabase(t)
	s := &server{t: t, db: db, database: database, clock: &keyheraldtest.Clock{}, tokens: map[api.Role]string{}, tried: &tried{parsed(t)}}
	s.http = &http.Client{Transport: s.tried}
	var err error
	s.engine, err = relay.New(relay.Config{DB: db, BotUserID: "@keyherald:example.org", BotMasterKey: "bWFzdGVyIGtleSBvZiB0aGUgYm90IGluIHRlc3RzLi4", Now: s.clock.Now, Log: zerolog.Nop()})
	check(t, err)
	approval, err := campaign.ParseApproval("above 20")
	check(t, err)
	s.enforcer, err = enforce.New(enforce.Config{DB: db, Engine: s.engine, StatusInterval: time.Hour, Approval: approval, Now: s.clock.Now, Log: zerolog.Nop()})
	check(t, err)
	log, err := reader.New(reader.Config{Read: db, Write: db, Name: logName, Now: s.clock.Now})
	check(t, err)
	config := api.Config{Rate: api.RateConfig{PerCaller: 1000, FailuresPerAddress: 1000}}
	deps := api.Deps{DB: db, Engine: s.engine, Enforcer: s.enforcer, Reader: log, Version: "test", Now: s.clock.Now, Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.InfoLevel),
		Keys: func(context.Context, id.UserID) (*mautrix.RespQueryKeys, error) { return &mautrix.RespQueryKeys{}, nil }}
	for _, f := range change {
		f(&config, &deps)
	}
	s.api, err = api.New(config, deps)
	check(t, err)
	web := echo.New()
	s.api.Register(web)
	listening := httptest.NewServer(web)
	t.Cleanup(listening.Close)
	s.url = listening.URL
	ctx, cancel := context.WithCancel(context.Background())
	s.end = cancel
	var running sync.WaitGroup
	running.Go(func() { s.api.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	for _, role := range api.Roles {
		s.tokens[role] = s.token(string(role), role)
	}
	return s
}

// on is the same people's API on another connection to the database.
func (s *server) on(db *postgres.DB, engine *relay.Engine) *server {
	s.t.Helper()
	other := *s
	enforcer, err := enforce.New(enforce.Config{DB: db, Engine: engine, Now: s.clock.Now})
	check(s.t, err)
	log, err := reader.New(reader.Config{Read: db, Write: db, Name: logName, Now: s.clock.Now})
	check(s.t, err)
	handler, err := api.New(api.Config{Rate: api.RateConfig{PerCaller: 1000, FailuresPerAddress: 1000}}, api.Deps{DB: db, Engine: engine, Enforcer: enforcer, Reader: log, Now: s.clock.Now, Log: zerolog.Nop()})
	check(s.t, err)
	web := echo.New()
	handler.Register(web)
	listening := httptest.NewServer(web)
	s.t.Cleanup(listening.Close)
	other.url = listening.URL
	return &other
}

func newDatabase(t testing.TB) (*postgres.DB, *keyheraldtest.Database) {
	t.Helper()
	ctx := context.Background()
	database, err := cluster.NewDatabase(ctx)
	check(t, err)
	owner, err := postgres.Open(ctx, database.OwnerURL)
	check(t, err)
	check(t, owner.Migrate(ctx, database.Roles(), keyheraldtest.Admin(), ""))
	check(t, owner.Close())
	db, err := postgres.Open(ctx, database.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db, database
}

func (s *server) token(name string, role api.Role) string {
	s.t.Helper()
	secret, err := api.CreateToken(context.Background(), s.db, s.clock.Now, name, role, time.Hour, keyheraldtest.Admin())
	check(s.t, err)
	return secret.Reveal()
}

// answer is what came back. The body is read.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) problem(t testing.TB) api.Problem {
	t.Helper()
	var p api.Problem
	check(t, json.Unmarshal(a.body, &p))
	return p
}

func into[T any](t testing.TB, a answer, status int) T {
	t.Helper()
	var v T
	if a.status != status {
		t.Fatalf("got %d and not %d: %s", a.status, status, a.body)
	}
	if len(a.body) > 0 {
		check(t, json.Unmarshal(a.body, &v))
	}
	return v
}

// as calls as the role's token; headers are in pairs.
func (s *server) as(role api.Role, method, path string, body any, headers ...string) answer {
	s.t.Helper()
	return s.with("Bearer "+s.tokens[role], method, path, body, headers...)
}

func (s *server) with(authorization, method, path string, body any, headers ...string) answer {
	s.t.Helper()
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
	default:
		encoded, err := json.Marshal(body)
		check(s.t, err)
		reader = bytes.NewReader(encoded)
	}
	request, err := http.NewRequest(method, s.url+api.Prefix+path, reader)
	check(s.t, err)
	if reader != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := s.http.Do(request)
	check(s.t, err)
	defer func() { _ = response.Body.Close() }()
	read, err := io.ReadAll(response.Body)
	check(s.t, err)
	return answer{response.StatusCode, response.Header, read}
}

// rotation opens a rotation of a user.
func (s *server) rotation(user id.UserID) uuid.UUID {
	s.t.Helper()
	key, err := s.engine.Rotate(context.Background(), relay.RotateRequest{UserID: user, KMS: "corporate", Path: "keyherald/" + user.Localpart()}, keyheraldtest.Admin())
	check(s.t, err)
	return key
}

// ended puts a rotation into a state, as a device's reports would.
func (s *server) ended(key uuid.UUID, state rotation.State) {
	s.t.Helper()
	ctx := context.Background()
	r, _, err := s.db.Rotation(ctx, key)
	check(s.t, err)
	r.Facts.State, r.Facts.Pushed = state, state == rotation.Done
	check(s.t, s.db.UpdateRotation(ctx, r, s.clock.Now()))
}

func (s *server) device(user id.UserID, device id.DeviceID) uuid.UUID {
	s.t.Helper()
	key, err := uuid.NewV7()
	check(s.t, err)
	check(s.t, s.db.PutDevice(context.Background(), postgres.Device{ID: key, UserID: user, DeviceID: device, IdentityKey: id.Curve25519(user.String() + device.String()), SigningKey: "s", MasterKey: "m", Name: "managed",
		EnrolledAt: s.clock.Now()}))
	check(s.t, s.db.SawDevice(context.Background(), key, s.clock.Now(), []byte(`{"holds_key":true}`)))
	return key
}

// log counts the events of an action.
func (s *server) log(action string, outcome string) (lines []postgres.LogLine) {
	s.t.Helper()
	all, err := s.db.Log(context.Background(), "", 100_000)
	check(s.t, err)
	for _, line := range all {
		if line.Action == action && line.Outcome == outcome {
			lines = append(lines, line)
		}
	}
	return lines
}

// tried holds every answer against the document.
type tried struct{ document validator.Validator }

var parsed = func() func(t testing.TB) validator.Validator {
	var once sync.Once
	var v validator.Validator
	return func(t testing.TB) validator.Validator {
		t.Helper()
		once.Do(func() { v = newValidator(t) })
		return v
	}
}()

func newValidator(t testing.TB) validator.Validator {
	t.Helper()
	raw, err := os.ReadFile("openapi.yaml")
	check(t, err)
	document, err := libopenapi.NewDocument(raw)
	check(t, err)
	v, errs := validator.NewValidator(document)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return v
}

var validating sync.Mutex // the validator is one for the package

func (d *tried) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil || strings.HasPrefix(response.Header.Get("Content-Type"), "text/event-stream") {
		return response, err
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return response, err
	}
	_ = response.Body.Close()
	response.Body = io.NopCloser(bytes.NewReader(body))
	validating.Lock()
	defer validating.Unlock()
	if response.StatusCode != http.StatusNotFound && response.StatusCode != http.StatusMethodNotAllowed || strings.Contains(string(body), "rotation") {
		if fine, wrong := d.document.ValidateHttpResponse(request, response); !fine {
			return nil, fmt.Errorf("%s %s is answered with %d and %s, which is not what the document says: %v %v", request.Method, request.URL, response.StatusCode, body, wrong[0].Message, wrong[0].SchemaValidationErrors)
		}
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, nil
}
