// Package intake is what a key-management system calls: POST /notify/{source}. It authenticates a notification,
// normalises it, and answers only after the Recorder made it durable. A notification is a hint: nothing in it is
// fetched, and the key itself never comes this way.
package intake

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/perminute"
	"github.com/keyherald/keyherald/internal/sabotage"
)

// MaxBody is the limit of a notification's body, in bytes.
const MaxBody = 64 << 10

// maxID is the limit of a CloudEvent's id, in bytes: it is a key in the database.
const maxID = 1024

// Notification is an authentic, normalised notification. (Source, ID) names it for good: ID is the CloudEvent's id.
type Notification struct {
	Source, ID, KeyID                string
	BodySHA256                       [32]byte
	User, Secret, KMS, Path, Version string
}

// Answer is what the Recorder knew of a notification.
type Answer int

// Fresh was kept now, Duplicate before with the same body, Conflict before with another.
const (
	Fresh Answer = iota + 1
	Duplicate
	Conflict
)

// Receipt is what a sender gets back.
type Receipt struct {
	Answer     Answer
	RotationID string
}

// ErrBusy is a Recorder's answer where too much is waiting already.
var ErrBusy = errors.New("too many notifications are waiting")

// Problem is what is wrong with a notification that is ours, as a word for the audit log and for the sender. It is zero
// where nothing is.
type Problem struct {
	Why  audit.Refusal
	Text string
}

// Recorder makes things durable before it returns; an error means nothing was kept, and the sender is asked to come
// again. Refused and Ignored are called for the first of a kind in a minute at once with count 1, and once more for the
// rest of them when the minute is over. Refused names no source where there is none of the name that was called.
type Recorder interface {
	Accept(ctx context.Context, n Notification) (Receipt, error)
	Unusable(ctx context.Context, n Notification, problem Problem) (Receipt, error)
	Refused(ctx context.Context, source audit.SourceName, why audit.Refusal, minute time.Time, count int) error
	Ignored(ctx context.Context, source audit.SourceName, how audit.Ignored, minute time.Time, count int) error
}

// Deps are what a Handler stands on.
type Deps struct {
	Recorder Recorder
	Now      func() time.Time
	Log      zerolog.Logger
	Metrics  prometheus.Registerer
}

// Handler answers POST /notify/:source.
type Handler struct {
	sources  map[string]*source
	deps     Deps
	answers  *prometheus.CounterVec
	inFlight chan struct{}
	floods   perminute.Counts[flood]
}

// flood is what may come as often as somebody likes: either refused or ignored.
type flood struct {
	source  audit.SourceName
	refused audit.Refusal
	ignored audit.Ignored
}

// maxInFlight bounds what waits for the database; beyond it the answer is 503.
const maxInFlight = 256

// New checks the configuration.
func New(config Config, deps Deps) (*Handler, error) {
	if deps.Recorder == nil {
		return nil, errors.New("intake: a recorder is needed")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	h := &Handler{sources: map[string]*source{}, deps: deps, inFlight: make(chan struct{}, maxInFlight),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "keyherald_notifications_total", Help: "Notifications by source and answer: accepted, duplicate, unmapped, or the HTTP status."}, []string{"source", "answer"})}
	if deps.Metrics != nil {
		if err := deps.Metrics.Register(h.answers); err != nil {
			return nil, fmt.Errorf("intake: %w", err)
		}
	}
	for name, sourceConfig := range config.Sources {
		s, err := sourceConfig.compile(name)
		if err != nil {
			return nil, err
		}
		h.sources[name] = s
	}
	return h, nil
}

// Register adds the route.
func (h *Handler) Register(e *echo.Echo) { e.POST("/notify/:source", h.notify) }

// Run writes the counts of minutes that are over, until ctx ends, and then the rest.
func (h *Handler) Run(ctx context.Context) {
	ticker := time.NewTicker(15 * time.Second)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			h.flush(ctx, h.deps.Now())
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	h.flush(last, h.deps.Now().Add(time.Hour))
}

func (h *Handler) flush(ctx context.Context, at time.Time) {
	for _, rest := range h.floods.Over(at) {
		if err := h.tell(ctx, rest.Key, rest.Minute, rest.N); err != nil {
			h.deps.Log.Error().Err(err).Msg("Refused or ignored notifications could not be counted in the audit log yet")
		}
	}
}

// tell audits so many of a kind in a minute. What cannot be told now is told with the rest.
func (h *Handler) tell(ctx context.Context, what flood, minute time.Time, count int) error {
	var err error
	if what.ignored != "" {
		err = h.deps.Recorder.Ignored(ctx, what.source, what.ignored, minute, count)
	} else {
		err = h.deps.Recorder.Refused(ctx, what.source, what.refused, minute, count)
	}
	if err != nil {
		h.floods.Untold(what, minute, count)
	}
	return err
}

// count counts one of a kind, and audits it if it is the first of its minute.
func (h *Handler) count(ctx context.Context, what flood) error {
	minute, first := h.floods.Add(what, h.deps.Now())
	if !first {
		return nil
	}
	return h.tell(ctx, what, minute, 1)
}

// notify answers as the design says: 202 only after the commit, and never a 4xx for a fault of ours.
func (h *Handler) notify(c echo.Context) error {
	name := c.Param("source")
	s, ok := h.sources[name]
	if !ok {
		return h.refuse(c, "", http.StatusNotFound, audit.RefusedUnknownSource)
	}
	select {
	case h.inFlight <- struct{}{}:
		defer func() { <-h.inFlight }()
	default:
		return h.unavailable(c, name, ErrBusy)
	}
	body, err := io.ReadAll(io.LimitReader(c.Request().Body, MaxBody+1))
	if err != nil {
		return h.refuse(c, name, http.StatusBadRequest, audit.RefusedBodyUnreadable)
	}
	if len(body) > MaxBody {
		return h.refuse(c, name, http.StatusRequestEntityTooLarge, audit.RefusedTooLarge)
	}
	keyID, refusal := s.verify(c.Request().Header, body, h.deps.Now())
	if refusal != "" {
		return h.refuse(c, name, http.StatusUnauthorized, refusal)
	}
	event, status, problem := parse(c.Request(), body)
	if problem != "" {
		why := audit.RefusedMalformed
		if status == http.StatusUnsupportedMediaType {
			why = audit.RefusedMediaType
		}
		return h.refuseAs(c, name, status, why, problem)
	}
	notification := Notification{Source: name, ID: event.ID(), KeyID: keyID, BodySHA256: bodyHash(c.Request(), body)}
	mapped, wrong := s.apply(event, &notification)
	ctx := c.Request().Context()
	switch {
	case !mapped:
		return h.ignore(c, name, audit.IgnoredUnmapped, "unmapped", nil)
	case wrong != Problem{}:
		receipt, err := h.deps.Recorder.Unusable(ctx, notification, wrong)
		if err != nil {
			return h.unavailable(c, name, err)
		}
		if receipt.Answer == Conflict {
			return h.answer(c, name, http.StatusConflict, "conflict", &receipt)
		}
		return h.answer(c, name, http.StatusUnprocessableEntity, wrong.Text, nil)
	}
	if sabotage.AckBeforeCommit {
		go func() { _, _ = h.deps.Recorder.Accept(context.WithoutCancel(ctx), notification) }()
		return h.answer(c, name, http.StatusAccepted, "accepted", nil)
	}
	receipt, err := h.deps.Recorder.Accept(ctx, notification)
	switch {
	case err != nil:
		return h.unavailable(c, name, err)
	case receipt.Answer == Conflict:
		return h.answer(c, name, http.StatusConflict, "conflict", &receipt)
	case receipt.Answer == Duplicate:
		return h.ignore(c, name, audit.IgnoredRepeated, "duplicate", &receipt)
	}
	return h.answer(c, name, http.StatusAccepted, "accepted", &receipt)
}

// bodyHash covers the attributes as well where they travel in headers, since they are part of what was said.
func bodyHash(req *http.Request, body []byte) [32]byte {
	hash := sha256.New()
	for _, name := range []string{"Ce-Type", "Ce-Source", "Ce-Subject"} {
		if value := req.Header.Get(name); value != "" {
			_, _ = fmt.Fprintf(hash, "%s:%q\n", name, value)
		}
	}
	hash.Write(body)
	return [32]byte(hash.Sum(nil))
}

// parse reads one CloudEvent, structured or binary. The SDK takes duplicate JSON keys (the last wins) and does not
// validate by itself, so both are done here.
func parse(req *http.Request, body []byte) (event *cloudevents.Event, status int, problem string) {
	mediaType, _, err := mime.ParseMediaType(req.Header.Get("Content-Type"))
	structured := mediaType == cloudevents.ApplicationCloudEventsJSON
	if err != nil || (!structured && (mediaType != "application/json" || req.Header.Get("Ce-Specversion") == "")) {
		return nil, http.StatusUnsupportedMediaType, "send one CloudEvent 1.0: structured as application/cloudevents+json, or binary with ce- headers and application/json"
	}
	if err := strictJSON(body); err != nil {
		return nil, http.StatusBadRequest, err.Error()
	}
	clone := req.Clone(req.Context())
	clone.Body = io.NopCloser(bytes.NewReader(body))
	event, err = binding.ToEvent(req.Context(), cehttp.NewMessageFromHttpRequest(clone))
	if err != nil || event.Validate() != nil || event.SpecVersion() != "1.0" {
		return nil, http.StatusBadRequest, "not a valid CloudEvent 1.0"
	}
	// What the database cannot keep would be answered 503 for ever, and it is not our fault.
	if len(event.ID()) > maxID || !keepable(event.ID()) || !keepable(event.Subject()) || !keepable(event.Source()) {
		return nil, http.StatusBadRequest, "an attribute of the CloudEvent is no UTF-8 text, or its id has more than 1024 bytes"
	}
	return event, 0, ""
}

func keepable(text string) bool { return utf8.ValidString(text) && !strings.ContainsRune(text, 0) }

// strictJSON refuses duplicate keys, NUL characters, nesting over 32 levels and trailing data.
func strictJSON(body []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(body))
	if err := walk(decoder, 0); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is data after the JSON value")
	}
	return nil
}

func walk(decoder *json.Decoder, depth int) error {
	if depth > 32 {
		return errors.New("the JSON is nested too deep")
	}
	token, err := decoder.Token()
	if err != nil {
		return errors.New("the body is not JSON")
	}
	if text, ok := token.(string); ok && strings.ContainsRune(text, 0) {
		return errors.New("a JSON string holds a NUL character")
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for decoder.More() {
		if delim == '{' {
			key, err := decoder.Token()
			name, ok := key.(string)
			if err != nil || !ok {
				return errors.New("the body is not JSON")
			}
			if strings.ContainsRune(name, 0) {
				return errors.New("a JSON string holds a NUL character")
			}
			if seen[name] {
				return errors.New("a JSON key is there twice")
			}
			seen[name] = true
		}
		if err := walk(decoder, depth+1); err != nil {
			return err
		}
	}
	if _, err := decoder.Token(); err != nil {
		return errors.New("the body is not JSON")
	}
	return nil
}

func (h *Handler) refuse(c echo.Context, source string, status int, why audit.Refusal) error {
	return h.refuseAs(c, source, status, why, string(why))
}

func (h *Handler) refuseAs(c echo.Context, source string, status int, why audit.Refusal, text string) error {
	if err := h.count(c.Request().Context(), flood{source: audit.SourceName(source), refused: why}); err != nil {
		return h.unavailable(c, source, err)
	}
	return h.answer(c, source, status, text, nil)
}

func (h *Handler) ignore(c echo.Context, source string, how audit.Ignored, word string, receipt *Receipt) error {
	if err := h.count(c.Request().Context(), flood{source: audit.SourceName(source), ignored: how}); err != nil {
		return h.unavailable(c, source, err)
	}
	return h.answer(c, source, http.StatusAccepted, word, receipt)
}

func (h *Handler) unavailable(c echo.Context, source string, err error) error {
	if errors.Is(err, ErrBusy) {
		return h.busy(c, source, err.Error())
	}
	h.deps.Log.Error().Err(err).Str("source", source).Msg("A notification could not be kept; its sender was asked to come again")
	return h.busy(c, source, "the notification could not be kept")
}

func (h *Handler) busy(c echo.Context, source, message string) error {
	c.Response().Header().Set("Retry-After", "5")
	return h.answer(c, source, http.StatusServiceUnavailable, message, nil)
}

func (h *Handler) answer(c echo.Context, source string, status int, word string, receipt *Receipt) error {
	if source != "" {
		label := fmt.Sprint(status)
		if status == http.StatusAccepted {
			label = word // accepted, duplicate or unmapped: a fixed few, while problems are free text
		}
		h.answers.WithLabelValues(source, label).Inc()
	}
	body := map[string]string{"result": strings.TrimSpace(word)}
	if receipt != nil && receipt.RotationID != "" {
		body["rotation_id"] = receipt.RotationID
	}
	return c.JSON(status, body)
}
