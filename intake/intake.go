// Package intake is what a key-management system calls: POST /notify/{source}. It authenticates a notification,
// normalises it, and answers only after the Recorder made it durable. A notification is a hint: nothing in it is
// fetched, and the key itself never comes this way.
//
// A source has a format, which turns a request into what it says, and the authentication modes that its configuration
// names, all of which a request must pass.
package intake

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/cidr"
	"github.com/keyherald/keyherald/internal/perminute"
	"github.com/keyherald/keyherald/internal/pinned"
	"github.com/keyherald/keyherald/internal/sabotage"
)

// MaxBody is the limit of a notification's body, in bytes, and MaxHeader what a server should take of headers.
const (
	MaxBody   = 64 << 10
	MaxHeader = 64 << 10
)

// maxID is the limit of a notification's id, in bytes: it is a key in the database.
const maxID = 1024

// Notification is an authentic, normalised notification. (Source, ID) names it for good: ID is the sender's id of the
// event. KeyID names what authenticated it. BodySHA256 is over what the event says.
//
// Read marks word that somebody other than the user's device read the secret: Version is empty where the KMS does not say
// which version that was, and Reader where it does not say who.
type Notification struct {
	Source, ID, KeyID                string
	BodySHA256                       [32]byte
	User, Secret, KMS, Path, Version string
	Read                             bool
	Reader                           string
}

// Answer is what the Recorder knew of a notification.
type Answer int

// Fresh was kept now, Duplicate before with the same body, Conflict before with another. Outdated was not kept: it tells
// of a read of a version that is not the current one any more.
const (
	Fresh Answer = iota + 1
	Duplicate
	Conflict
	Outdated
)

// Receipt is what a sender gets back.
type Receipt struct {
	Answer     Answer
	RotationID string
}

// ErrBusy is a Recorder's answer where too much is waiting already.
var ErrBusy = errors.New("too many notifications are waiting")

// Problem is what is wrong with an authentic notification: Why for the audit log, Text for its sender and for people.
type Problem struct {
	Why  audit.Refusal
	Text string
}

// Recorder makes things durable before it returns; an error means nothing was kept, and the sender is asked to come
// again. Handshake is called before an authentic request for a subscription, or about one, is answered. Refused and
// Ignored are called for the first of a kind in a minute at once with count 1, and once more for the rest of them when
// the minute is over. Refused names no source where there is none of the name that was called.
type Recorder interface {
	Accept(ctx context.Context, n Notification) (Receipt, error)
	Unusable(ctx context.Context, n Notification, problem Problem) (Receipt, error)
	Handshake(ctx context.Context, source audit.SourceName, key audit.CredentialID, kind audit.Handshake) error
	Refused(ctx context.Context, source audit.SourceName, why audit.Refusal, minute time.Time, count int) error
	Ignored(ctx context.Context, source audit.SourceName, how audit.Ignored, minute time.Time, count int) error
}

// Deps are what a Handler stands on.
type Deps struct {
	Recorder Recorder
	Now      func() time.Time
	Log      zerolog.Logger
	Metrics  prometheus.Registerer
	// BodyTime is how long a sender may take for its body; 0 means 10 seconds.
	BodyTime time.Duration
	// Dial and Roots are for tests: how the hosts that are asked for keys and certificates are reached, and who vouches
	// for them. Nil are connections that avoid private addresses, and the system's roots.
	Dial  pinned.Dial
	Roots *x509.CertPool
}

// Handler answers /notify/:source.
type Handler struct {
	sources  map[string]*source
	streams  map[string]*source // heard, and not called
	deps     Deps
	answers  *prometheus.CounterVec
	reading  chan struct{}
	inFlight chan struct{}

	floods perminute.Counts[flood]

	mu     sync.Mutex           // guards logged
	logged map[string]time.Time // what was logged of a source, and when
}

const (
	// maxReading bounds how many bodies are being read: so much memory strangers may take.
	maxReading = 1024
	// maxInFlight bounds what is verified and waits for the database; beyond it the answer is 503.
	maxInFlight = 256
)

// New checks the configuration.
func New(config Config, deps Deps) (*Handler, error) {
	if deps.Recorder == nil {
		return nil, errors.New("intake: a recorder is needed")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.BodyTime == 0 {
		deps.BodyTime = 10 * time.Second
	}
	h := &Handler{sources: map[string]*source{}, deps: deps, reading: make(chan struct{}, maxReading), inFlight: make(chan struct{}, maxInFlight), logged: map[string]time.Time{},
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "keyherald_notifications_total", Help: "Notifications by source and answer: accepted, duplicate, unmapped, expected_reader, old_version, handshake, or the HTTP status."}, []string{"source", "answer"})}
	if deps.Metrics != nil {
		if err := deps.Metrics.Register(h.answers); err != nil {
			return nil, fmt.Errorf("intake: %w", err)
		}
	}
	proxies, err := cidr.Parse("trusted_proxies", config.TrustedProxies)
	if err != nil {
		return nil, err
	}
	outside := &outside{proxies: proxies, now: deps.Now, dial: deps.Dial, roots: deps.Roots}
	for name, sourceConfig := range config.Sources {
		s, err := sourceConfig.compile(name, outside)
		if err != nil {
			return nil, err
		}
		h.sources[name] = s
	}
	if h.streams, err = config.streams(); err != nil {
		return nil, err
	}
	return h, nil
}

// Register adds the routes.
func (h *Handler) Register(e *echo.Echo) {
	e.POST("/notify/:source", h.notify)
	e.OPTIONS("/notify/:source", h.preflight)
}

// Reach reads what sources need from elsewhere to verify anything, to find early that it cannot be done.
func (h *Handler) Reach(ctx context.Context) error {
	var all error
	for name, s := range h.sources {
		if s.reach == nil {
			continue
		}
		if err := s.reach(ctx); err != nil {
			all = errors.Join(all, fmt.Errorf("sources.%s.jwt.keys_url: %w", name, err))
		}
	}
	return all
}

// notify answers as the design says: 202 only after the commit, and never a 4xx for a fault of ours.
func (h *Handler) notify(c echo.Context) error {
	name := c.Param("source")
	s, ok := h.sources[name]
	if !ok {
		return h.deny(c, "", unknownSource())
	}
	r, denied := h.read(c)
	if denied != nil {
		return h.deny(c, name, denied)
	}
	select {
	case h.inFlight <- struct{}{}:
		defer func() { <-h.inFlight }()
	default:
		return h.unavailable(c, name, ErrBusy)
	}
	ctx := c.Request().Context()
	keyID, denied := s.authenticate(ctx, r)
	if denied != nil {
		return h.deny(c, name, denied)
	}
	said, denied := s.format.read(ctx, r)
	if denied != nil {
		return h.deny(c, name, denied)
	}
	if said.handshake != nil {
		return h.shake(c, name, keyID, said.handshake)
	}
	outcomes := make([]outcome, len(said.events))
	for i, e := range said.events {
		var err error
		if outcomes[i], err = h.record(ctx, name, keyID, s, e); err != nil {
			return h.unavailable(c, name, err)
		}
	}
	if len(outcomes) == 1 {
		o := outcomes[0]
		return h.answer(c, name, o.status, o.word, &o.receipt)
	}
	return h.answerAll(c, name, outcomes)
}

// outcome is what became of one event: the status and the word that answer a request with this event alone.
type outcome struct {
	status  int
	word    string
	receipt Receipt
}

// record maps an event and makes it durable.
func (h *Handler) record(ctx context.Context, name, keyID string, s *source, e event) (outcome, error) {
	notification := Notification{Source: name, ID: e.id, KeyID: keyID, BodySHA256: e.sum}
	ignored, wrong := s.mapping.apply(e, &notification)
	switch {
	case ignored != "":
		err := h.flood(ctx, flood{source: audit.SourceName(name), ignored: ignored})
		return outcome{http.StatusAccepted, string(ignored), Receipt{}}, err
	case wrong != Problem{}:
		receipt, err := h.deps.Recorder.Unusable(ctx, notification, wrong)
		if err == nil && receipt.Answer == Conflict {
			return outcome{http.StatusConflict, "conflict", receipt}, nil
		}
		return outcome{http.StatusUnprocessableEntity, wrong.Text, Receipt{}}, err
	}
	if sabotage.AckBeforeCommit {
		go func() { _, _ = h.deps.Recorder.Accept(context.WithoutCancel(ctx), notification) }()
		return outcome{http.StatusAccepted, "accepted", Receipt{}}, nil
	}
	receipt, err := h.deps.Recorder.Accept(ctx, notification)
	switch {
	case err != nil:
		return outcome{}, err
	case receipt.Answer == Conflict:
		return outcome{http.StatusConflict, "conflict", receipt}, nil
	case receipt.Answer == Duplicate:
		err := h.flood(ctx, flood{source: audit.SourceName(name), ignored: audit.IgnoredRepeated})
		return outcome{http.StatusAccepted, "duplicate", receipt}, err
	case receipt.Answer == Outdated:
		err := h.flood(ctx, flood{source: audit.SourceName(name), ignored: audit.IgnoredOldVersion})
		return outcome{http.StatusAccepted, string(audit.IgnoredOldVersion), receipt}, err
	}
	return outcome{http.StatusAccepted, "accepted", receipt}, nil
}

// shake answers a handshake once it is audited, and did what it asks for.
func (h *Handler) shake(c echo.Context, name, keyID string, asked *handshake) error {
	ctx := c.Request().Context()
	if err := h.deps.Recorder.Handshake(ctx, audit.SourceName(name), audit.CredentialID(keyID), asked.kind); err != nil {
		return h.unavailable(c, name, err)
	}
	h.deps.Log.Info().Str("source", name).Str("handshake", string(asked.kind)).Msg("A sender's subscription is being answered")
	if asked.effect != nil {
		if err := asked.effect(ctx); err != nil {
			return h.deny(c, name, later("subscription_not_confirmed", err))
		}
	}
	h.answers.WithLabelValues(name, "handshake").Inc()
	return c.JSON(http.StatusOK, asked.body)
}

// preflight answers OPTIONS for the formats that begin with it.
func (h *Handler) preflight(c echo.Context) error {
	name := c.Param("source")
	s, ok := h.sources[name]
	if !ok {
		return h.deny(c, "", unknownSource())
	}
	asks, ok := s.format.(preflighter)
	if !ok {
		c.Response().Header().Set("Allow", http.MethodPost)
		return h.answer(c, name, http.StatusMethodNotAllowed, "post_only", nil)
	}
	r := &request{header: c.Request().Header, remote: c.Request().RemoteAddr, now: h.deps.Now()}
	if denied := r.once(s.headers); denied != nil {
		return h.deny(c, name, denied)
	}
	if s.address != nil {
		if _, denied := s.address(c.Request().Context(), r); denied != nil {
			return h.deny(c, name, denied)
		}
	}
	headers, denied := asks.preflight(r)
	if denied != nil {
		return h.deny(c, name, denied)
	}
	for header, value := range headers {
		c.Response().Header().Set(header, value)
	}
	h.answers.WithLabelValues(name, "handshake").Inc()
	return c.NoContent(http.StatusOK)
}

// answerAll answers a request with several events, all of which are recorded: what each of them came to is in the body.
// A conflict is nothing that coming again could mend, and nothing else is to come again.
func (h *Handler) answerAll(c echo.Context, source string, outcomes []outcome) error {
	status, word := http.StatusAccepted, "accepted"
	results := make([]map[string]string, len(outcomes))
	for i, o := range outcomes {
		results[i] = result(o.word, &o.receipt)
		h.count(source, o.status, o.word)
		if o.status == http.StatusConflict {
			status, word = o.status, o.word
		}
	}
	return c.JSON(status, map[string]any{"result": word, "results": results})
}

func (h *Handler) answer(c echo.Context, source string, status int, word string, receipt *Receipt) error {
	if source != "" {
		h.count(source, status, word)
	}
	return c.JSON(status, result(word, receipt))
}

func (h *Handler) count(source string, status int, word string) {
	label := fmt.Sprint(status)
	if status == http.StatusAccepted {
		label = word // accepted, duplicate or why it is ignored: a fixed few, while problems are free text
	}
	h.answers.WithLabelValues(source, label).Inc()
}

func result(word string, receipt *Receipt) map[string]string {
	body := map[string]string{"result": strings.TrimSpace(word)}
	if receipt != nil && receipt.RotationID != "" {
		body["rotation_id"] = receipt.RotationID
	}
	return body
}
