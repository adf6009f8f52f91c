// Package api is /api/v1: what admins, helpdesk, operators and auditors may see and do, over HTTP. It authenticates the
// caller (OIDC or an API token), looks up in one table whether his role may, parses, asks the engine, and prints; what
// happens, and that it stands in the audit log, is the engine's. openapi.yaml is the contract, and a test holds the table
// of routes and every answer against it.
package api

import (
	"context"
	"crypto/x509"
	_ "embed" // the document
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"gopkg.in/yaml.v3"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/internal/perminute"
	"github.com/keyherald/keyherald/internal/pinned"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

// Prefix is where the API stands.
const Prefix = "/api/v1"

//go:embed openapi.yaml
var document []byte

// Config is the API's section of the configuration.
type Config struct {
	// Listen, if it is there, is an address of the API's own, beside which the server's has no API.
	Listen string      `yaml:"listen"`
	OIDC   *OIDCConfig `yaml:"oidc"`
	Rate   RateConfig  `yaml:"rate"`
}

// Deps are what a Handler stands on. Leading says whether this replica holds the bot, and Problems what people should look
// at; each may be nil.
type Deps struct {
	DB       *postgres.DB
	Engine   *relay.Engine
	Enforcer *enforce.Enforcer
	// Reader reads the audit log, of the same database.
	Reader   *reader.Reader
	Version  string // of the software
	Leading  func() bool
	Problems func() []string
	// Keys asks the homeserver for a user's devices and their keys; nil where nobody can.
	Keys func(ctx context.Context, user id.UserID) (*mautrix.RespQueryKeys, error)
	// TrustedProxies are those of our own, in CIDR or as addresses, whose X-Forwarded-For counts.
	TrustedProxies []string
	Now            func() time.Time
	Log            zerolog.Logger
	Metrics        prometheus.Registerer
	// Dial and Roots are for tests, as intake's.
	Dial  pinned.Dial
	Roots *x509.CertPool
}

// Handler answers the routes. Run must run beside it.
type Handler struct {
	deps     Deps
	oidc     *oidcVerifier // nil without one
	rate     *limits
	document []byte // JSON
	refused  perminute.Counts[refusedCall]
	requests *prometheus.CounterVec
	// reading bounds who reads the log at once: each has two connections to the database.
	reading chan struct{}
	// exporting bounds who has a whole log go out, or a report of it, at once.
	exporting chan struct{}

	mu       sync.Mutex                  // guards what follows
	watchers map[chan struct{}]uuid.UUID // each with its rotation, uuid.Nil for everything else
	stopped  bool
}

// New checks the configuration.
func New(config Config, deps Deps) (*Handler, error) {
	if deps.DB == nil || deps.Engine == nil || deps.Enforcer == nil || deps.Reader == nil {
		return nil, errors.New("api: database, engine, enforcer and the audit log's reader are needed")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	h := &Handler{deps: deps, reading: make(chan struct{}, maxReading), exporting: make(chan struct{}, maxExporting), watchers: map[chan struct{}]uuid.UUID{},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "keyherald_api_requests_total", Help: "Calls of the API by operation, as openapi.yaml names it, and HTTP status."}, []string{"operation", "status"})}
	if deps.Metrics != nil {
		if err := deps.Metrics.Register(h.requests); err != nil {
			return nil, fmt.Errorf("api: %w", err)
		}
	}
	if err := config.Validate(); err != nil {
		return nil, err
	}
	var err error
	if config.OIDC != nil {
		if h.oidc, err = config.OIDC.verifier(deps); err != nil {
			return nil, err
		}
	}
	if h.rate, err = config.Rate.limits(deps); err != nil {
		return nil, err
	}
	h.document, err = documentJSON()
	return h, err
}

// Validate returns errors that begin with the key they are about.
func (c Config) Validate() error {
	if c.OIDC != nil {
		if err := c.OIDC.validate(); err != nil {
			return fmt.Errorf("api.oidc.%w", err)
		}
	}
	if err := c.Rate.validate(); err != nil {
		return fmt.Errorf("api.rate.%w", err)
	}
	return nil
}

// Files are the paths in the configuration, to be made relative to it.
func (c *Config) Files() []*string {
	if c.OIDC == nil {
		return nil
	}
	return []*string{&c.OIDC.CAFile}
}

func documentJSON() ([]byte, error) {
	var parsed any
	if err := yaml.Unmarshal(document, &parsed); err != nil {
		return nil, fmt.Errorf("api: reading openapi.yaml: %w", err)
	}
	written, err := json.Marshal(parsed)
	if err != nil {
		return nil, fmt.Errorf("api: writing openapi.json: %w", err)
	}
	return written, nil
}

// Register adds the routes, and has errors below Prefix answered as problems.
func (h *Handler) Register(e *echo.Echo) {
	for _, r := range Routes() {
		e.Add(r.Method, Prefix+r.Path, h.serve(r))
	}
	others := e.HTTPErrorHandler
	e.HTTPErrorHandler = func(err error, c echo.Context) {
		if !strings.HasPrefix(c.Request().URL.Path, Prefix) || c.Response().Committed {
			others(err, c)
			return
		}
		failed := new(echo.HTTPError)
		switch {
		case errors.As(err, &failed) && failed.Code == http.StatusMethodNotAllowed:
			_ = writeProblem(c, &Problem{Status: http.StatusMethodNotAllowed, Code: CodeMethod, Detail: "this address knows other methods: see " + Prefix + "/openapi.json"})
		case errors.As(err, &failed) && failed.Code == http.StatusNotFound:
			_ = writeProblem(c, &Problem{Status: http.StatusNotFound, Code: CodeNotFound, Detail: "there is nothing at this address: see " + Prefix + "/openapi.json"})
		default:
			h.deps.Log.Error().Err(err).Msg("The API failed")
			_ = writeProblem(c, internalProblem())
		}
	}
}

// Run tells of refused calls when their minute is over and forgets old answers, until ctx ends; then every stream of
// events ends.
func (h *Handler) Run(ctx context.Context) {
	defer h.stop()
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			// What was counted must not be lost by stopping in order.
			last, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer done()
			h.tellRefused(last, h.deps.Now().Add(time.Minute))
			return
		case <-tick.C:
			h.tellRefused(ctx, h.deps.Now())
			if err := h.deps.DB.DropAnswersBefore(ctx, h.deps.Now().Add(-answersKept)); err != nil {
				h.deps.Log.Warn().Err(err).Msg("Old answers of the API could not be forgotten")
			}
		}
	}
}

// serve wraps a route: limits and caller, role, effect, answer.
func (h *Handler) serve(r Route) echo.HandlerFunc {
	return func(ec echo.Context) error {
		header := ec.Response().Header()
		header.Set("Cache-Control", "no-store")
		header.Set("X-Content-Type-Options", "nosniff")
		c := &call{Handler: h, echo: ec, route: r, ctx: ec.Request().Context()}
		// Deferred, since an export that breaks off ends in a panic.
		defer func() { h.requests.WithLabelValues(r.Operation, fmt.Sprint(ec.Response().Status)).Inc() }()
		problem := c.do()
		if problem != nil {
			if err := writeProblem(ec, problem); err != nil {
				return err
			}
		}
		return nil
	}
}

// call is one request on its way.
type call struct {
	*Handler
	ctx    context.Context
	echo   echo.Context
	route  Route
	caller caller
	body   []byte
}

// do answers the call, or returns the problem to answer with.
func (c *call) do() *Problem {
	if len(c.route.Roles) > 0 {
		if problem := c.authenticate(); problem != nil {
			return problem
		}
		if problem := c.authorize(); problem != nil {
			return problem
		}
	} else if problem := c.rate.stranger(c); problem != nil {
		return problem
	}
	if problem := c.read(); problem != nil {
		return problem
	}
	if c.route.stream != nil {
		return c.route.stream(c)
	}
	a, err := c.answered()
	if err != nil {
		return c.problemOf(err)
	}
	return a.write(c)
}

// answer is what a call comes to.
type answer struct {
	status int
	body   any // nil for none
	raw    []byte
	kind   string // the media type of raw
	header map[string]string
}

func ok(body any) answer      { return answer{status: http.StatusOK, body: body} }
func created(body any) answer { return answer{status: http.StatusCreated, body: body} }
func done() answer            { return answer{status: http.StatusNoContent} }

func (a answer) write(c *call) *Problem {
	for name, value := range a.header {
		c.echo.Response().Header().Set(name, value)
	}
	var err error
	switch {
	case a.raw != nil:
		err = c.echo.Blob(a.status, a.kind, a.raw)
	case a.body == nil:
		err = c.echo.NoContent(a.status)
	default:
		err = c.echo.JSON(a.status, a.body)
	}
	if err != nil {
		c.deps.Log.Debug().Err(err).Str("operation", c.route.Operation).Msg("An answer of the API did not get through")
	}
	return nil
}

// refusedCall is what refused calls are counted by.
type refusedCall struct {
	actor audit.Actor
	route string
	why   audit.Refusal
}
