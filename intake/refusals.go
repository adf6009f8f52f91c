package intake

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"
)

// denial is why a request is not taken up: a status, and a fixed word or a sentence for the sender. Those of strangers
// are audited, in counts; what an authentic sender does wrong is answered, and a fault of ours asks to come again.
type denial struct {
	status  int
	reason  string
	audited bool
	cause   error // for our log alone
}

// The reasons of refusals that are audited. docs/intake.md says what each means.
const (
	reasonTooLarge         = "too_large"
	reasonAddress          = "wrong_address"
	reasonNoCredentials    = "no_credentials"
	reasonWrongCredentials = "wrong_credentials"
	reasonCertificate      = "wrong_certificate"
	reasonToken            = "wrong_token"
	reasonClaims           = "wrong_claims"
	reasonNotSigned        = "not_signed"
	reasonSignature        = "wrong_signature"
	reasonStale            = "stale"
	reasonTopic            = "wrong_topic"
	reasonOrigin           = "wrong_origin"
)

// refused is the answer to a sender that did not prove who it is.
func refused(reason string) *denial {
	status := http.StatusUnauthorized
	switch reason {
	case reasonTooLarge:
		status = http.StatusRequestEntityTooLarge
	case reasonAddress, reasonTopic, reasonOrigin:
		status = http.StatusForbidden
	}
	return &denial{status: status, reason: reason, audited: true}
}

// malformed is the answer to a request that cannot be read.
func malformed(problem string) *denial {
	return &denial{status: http.StatusBadRequest, reason: problem}
}

// later is the answer where something of ours, or that we depend on, does not work now.
func later(reason string, cause error) *denial {
	return &denial{status: http.StatusServiceUnavailable, reason: reason, cause: cause}
}

// refusals are those of a source, for a reason, in a minute.
type refusals struct {
	source, reason string
	minute         time.Time
}

func (h *Handler) deny(c echo.Context, source string, d *denial) error {
	if d.status == http.StatusServiceUnavailable {
		if d.cause != nil && h.unheard(source+" "+d.reason) {
			h.deps.Log.Error().Err(d.cause).Str("source", source).Str("reason", d.reason).Msg("A request could not be judged; its sender was asked to come again")
		}
		return h.busy(c, source, d.reason)
	}
	if d.audited {
		key := refusals{source, d.reason, h.deps.Now().Truncate(time.Minute)}
		h.mu.Lock()
		h.refusals[key]++
		first := h.refusals[key] == 1
		h.mu.Unlock()
		if first {
			if err := h.deps.Recorder.Refused(c.Request().Context(), source, d.reason, key.minute, 1); err != nil {
				return h.unavailable(c, source, err)
			}
		}
	}
	return h.answer(c, source, d.status, d.reason, nil)
}

// unheard reports whether something was not logged within the last minute, and notes that it is now: strangers must not
// be able to fill the log.
func (h *Handler) unheard(what string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.deps.Now()
	if last, ok := h.logged[what]; ok && now.Sub(last) < time.Minute {
		return false
	}
	h.logged[what] = now
	return true
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

// Run writes the counts of refusals whose minute is over, until ctx ends, and then the rest.
func (h *Handler) Run(ctx context.Context) {
	ticker := time.NewTicker(15 * time.Second)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			h.flushRefusals(ctx, h.deps.Now().Truncate(time.Minute))
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	h.flushRefusals(last, h.deps.Now().Add(time.Hour))
}

func (h *Handler) flushRefusals(ctx context.Context, before time.Time) {
	h.mu.Lock()
	over := map[refusals]int{}
	for key, count := range h.refusals {
		if key.minute.Before(before) {
			over[key] = count
			delete(h.refusals, key)
		}
	}
	h.mu.Unlock()
	for key, count := range over {
		if count > 1 {
			if err := h.deps.Recorder.Refused(ctx, key.source, key.reason, key.minute, count-1); err != nil {
				h.deps.Log.Error().Err(err).Msg("A count of refused notifications was lost")
			}
		}
	}
}
