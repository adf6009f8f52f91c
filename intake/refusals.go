package intake

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/keyherald/keyherald/audit"
)

// denial is why a request is not taken up: a status, and a fixed word or a sentence for the sender. why is what the
// audit log says of it, in counts; a fault of ours has none, and asks to come again.
type denial struct {
	status int
	reason string
	why    audit.Refusal
	cause  error // for our log alone
}

// refused is the answer to a sender that did not prove who it is. docs/intake.md says what each word means.
func refused(why audit.Refusal) *denial {
	status := http.StatusUnauthorized
	switch why {
	case audit.RefusedTooLarge:
		status = http.StatusRequestEntityTooLarge
	case audit.RefusedAddress, audit.RefusedTopic, audit.RefusedOrigin:
		status = http.StatusForbidden
	}
	return &denial{status: status, reason: string(why), why: why}
}

// malformed is the answer to a request that cannot be read.
func malformed(problem string) *denial {
	return &denial{status: http.StatusBadRequest, reason: problem, why: audit.RefusedMalformed}
}

// unsupported is the answer to a body of another kind than the format's; instead says what to send.
func unsupported(instead string) *denial {
	return &denial{status: http.StatusUnsupportedMediaType, reason: instead, why: audit.RefusedMediaType}
}

func unknownSource() *denial {
	return &denial{status: http.StatusNotFound, reason: string(audit.RefusedUnknownSource), why: audit.RefusedUnknownSource}
}

// later is the answer where something of ours, or that we depend on, does not work now.
func later(reason string, cause error) *denial {
	return &denial{status: http.StatusServiceUnavailable, reason: reason, cause: cause}
}

// flood is what may come as often as somebody likes: either refused or ignored. source is empty where none has the name
// that was called.
type flood struct {
	source  audit.SourceName
	refused audit.Refusal
	ignored audit.Ignored
}

func (h *Handler) deny(c echo.Context, source string, d *denial) error {
	if d.status == http.StatusServiceUnavailable {
		if d.cause != nil && h.unheard(source+" "+d.reason) {
			h.deps.Log.Error().Err(d.cause).Str("source", source).Str("reason", d.reason).Msg("A request could not be judged; its sender was asked to come again")
		}
		return h.busy(c, source, d.reason)
	}
	if err := h.flood(c.Request().Context(), flood{source: audit.SourceName(source), refused: d.why}); err != nil {
		return h.unavailable(c, source, err)
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

// flood counts one of a kind, and audits it if it is the first of its minute.
func (h *Handler) flood(ctx context.Context, what flood) error {
	minute, first := h.floods.Add(what, h.deps.Now())
	if !first {
		return nil
	}
	return h.tell(ctx, what, minute, 1)
}
