package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/labstack/echo/v4"

	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/internal/refusal"
)

// Code is what kind of problem an answer tells of; it is stable, and the end of the problem's type.
type Code string

// The codes. The first four are those of refusal.
const (
	CodeInvalid         Code = Code(refusal.Invalid)
	CodeNotFound        Code = Code(refusal.NotFound)
	CodeConflict        Code = Code(refusal.Conflict)
	CodeForbidden       Code = Code(refusal.Forbidden)
	CodeMalformed       Code = "malformed"
	CodeUnauthenticated Code = "unauthenticated"
	CodeMethod          Code = "method_not_allowed"
	CodeTooLarge        Code = "too_large"
	CodeMediaType       Code = "unsupported_media_type"
	CodeKeyReused       Code = "idempotency_key_reused"
	CodeAnsweredBefore  Code = "answered_before"
	CodePrecondition    Code = Code(refusal.Changed)
	CodeTooMany         Code = "too_many_requests"
	CodeInternal        Code = "internal"
	CodeUnavailable     Code = "unavailable"
)

// problemTypes is where docs/api.md explains each code.
const problemTypes = "https://github.com/keyherald/keyherald/blob/main/docs/api.md#"

var titles = map[Code]string{
	CodeInvalid: "What was asked for is out of bounds", CodeNotFound: "It is not there", CodeConflict: "It does not go with how things stand",
	CodeForbidden: "Not for this caller", CodeMalformed: "The request cannot be understood", CodeUnauthenticated: "Nobody knows the caller",
	CodeMethod: "Not with this method", CodeTooLarge: "The body is too large", CodeMediaType: "The body is of another kind",
	CodeKeyReused: "The idempotency key was used for another request", CodeAnsweredBefore: "The answer was given once and is not kept",
	CodePrecondition: "It was changed meanwhile", CodeTooMany: "Too many calls", CodeInternal: "The server failed", CodeUnavailable: "The server cannot answer now",
}

// Problem is an error as RFC 9457 has it. Code and Refusal are for programs, Detail says what to do.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Code   Code   `json:"code"`
	// Refusal is the word that the audit log has for it.
	Refusal string `json:"refusal,omitempty"`
	// Pointer is the place in the body that it is about (RFC 6901).
	Pointer string `json:"pointer,omitempty"`
	// retryAfter is in seconds; 0 for none.
	retryAfter int
}

// Error makes a problem an error for those who call the API.
func (p *Problem) Error() string { return p.Detail }

// statusOf is the one mapping of refusals to HTTP.
var statusOf = map[refusal.Code]int{
	refusal.Invalid: http.StatusUnprocessableEntity, refusal.NotFound: http.StatusNotFound, refusal.Conflict: http.StatusConflict, refusal.Changed: http.StatusPreconditionFailed, refusal.Forbidden: http.StatusForbidden,
}

func isRefusal(err error) bool {
	_, _, ok := refusal.Of(err)
	return ok
}

func malformed(detail string) *Problem {
	return &Problem{Status: http.StatusBadRequest, Code: CodeMalformed, Detail: detail}
}

func internalProblem() *Problem {
	return &Problem{Status: http.StatusInternalServerError, Code: CodeInternal, Detail: "the server failed, and its own log says why; nothing was done"}
}

func unavailable(detail string) *Problem {
	return &Problem{Status: http.StatusServiceUnavailable, Code: CodeUnavailable, Detail: detail, retryAfter: 10}
}

// problemOf says what an error is for the caller. What is no refusal is a fault of ours, told in our own log alone: its
// text may name what is not for callers.
func (c *call) problemOf(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	if code, why, ok := refusal.Of(err); ok {
		return &Problem{Status: statusOf[code], Code: Code(code), Detail: err.Error(), Refusal: string(why)}
	}
	// Who reads the log must hear where it was changed.
	if errors.Is(err, export.ErrUnreadable) {
		return &Problem{Status: http.StatusConflict, Code: CodeConflict, Detail: err.Error()}
	}
	if c.ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		return unavailable("the call took too long, or the caller left; with the same idempotency key it may be made again")
	}
	c.deps.Log.Error().Err(err).Str("operation", c.route.Operation).Msg("The API failed")
	if c.deps.DB.RawDB.PingContext(c.ctx) != nil {
		return unavailable("the database does not answer")
	}
	return internalProblem()
}

func writeProblem(c echo.Context, p *Problem) error {
	p.Type, p.Title = problemTypes+string(p.Code), titles[p.Code]
	header := c.Response().Header()
	if p.retryAfter > 0 {
		header.Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	if p.Status == http.StatusUnauthorized {
		header.Set("WWW-Authenticate", `Bearer realm="keyherald"`)
	}
	header.Set("Content-Type", "application/problem+json")
	return c.JSON(p.Status, p)
}
