package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/bearer"
	"github.com/keyherald/keyherald/postgres"
)

// Role is what a caller may do.
type Role = audit.APIRole

// caller is who calls. key names him for good, for what is kept of his.
type caller struct {
	key   string
	actor audit.Actor
	roles []Role
}

// tokenPrefix begins every API token, so that secret scanners and the audit log know one.
const tokenPrefix = "kht1."

// usedEvery is how exact the last use of a token is.
const usedEvery = time.Minute

// Secret is an API token itself, which is shown once.
type Secret struct{ text string }

// Reveal is for whoever shows it to its owner.
func (s Secret) Reveal() string { return s.text }

// String keeps a token out of logs.
func (Secret) String() string { return "(an API token)" }

// newSecret makes a token of 256 random bits.
func newSecret() (Secret, error) {
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return Secret{}, err
	}
	return Secret{tokenPrefix + base64.RawURLEncoding.EncodeToString(raw)}, nil
}

// hash is what the server keeps of a token. With 256 random bits behind it no slow hash is needed.
func (s Secret) hash() [32]byte { return sha256.Sum256([]byte(s.text)) }

// authenticate finds out who calls, and refuses who is not known or calls too often.
func (c *call) authenticate() *Problem {
	if problem := c.rate.stranger(c); problem != nil {
		return problem
	}
	header := c.echo.Request().Header.Values("Authorization")
	if len(header) != 1 {
		return c.unknown(audit.RefusedNoCredentials, "this needs a bearer token: an API token (`keyherald token create`) or one of the identity provider's (`keyherald login`)")
	}
	token, ok := bearer.Token(header[0])
	if !ok {
		return c.unknown(audit.RefusedNoCredentials, "the Authorization header has no bearer token")
	}
	var problem *Problem
	if strings.HasPrefix(token, tokenPrefix) {
		problem = c.byToken(Secret{token})
	} else {
		problem = c.byPerson(token)
	}
	if problem != nil {
		return problem
	}
	return c.rate.caller(c)
}

func (c *call) byToken(secret Secret) *Problem {
	token, ok, err := c.deps.DB.TokenByHash(c.ctx, secret.hash())
	now := c.deps.Now()
	switch {
	case err != nil:
		return c.problemOf(err)
	case !ok:
		return c.unknown(audit.RefusedCredentials, "there is no such API token")
	case !token.RevokedAt.IsZero():
		return c.unknown(audit.RefusedRevoked, "the API token is revoked")
	case !now.Before(token.ExpiresAt):
		return c.unknown(audit.RefusedExpired, "the API token has expired: `keyherald token create` makes another")
	}
	c.caller = callerOf(token)
	if now.Sub(token.LastUsedAt) >= usedEvery {
		if err := c.deps.DB.UsedToken(c.ctx, token.ID, now); err != nil {
			return c.problemOf(err)
		}
	}
	return nil
}

func callerOf(t postgres.Token) caller {
	return caller{key: "token:" + t.ID.String(), actor: audit.ByToken(audit.TokenName(t.Name)), roles: []Role{t.Role}}
}

func (c *call) byPerson(token string) *Problem {
	if c.oidc == nil {
		return c.unknown(audit.RefusedCredentials, "this is no API token, and the server knows no identity provider (api.oidc)")
	}
	who, err := c.oidc.caller(c.ctx, token)
	switch {
	case errors.Is(err, bearer.ErrUnavailable):
		c.deps.Log.Warn().Err(err).Msg("The identity provider's keys cannot be read")
		return unavailable("the identity provider's keys cannot be read now, so that nobody's token can be judged")
	case errors.Is(err, bearer.ErrExpired):
		return c.unknown(audit.RefusedExpired, "the token has expired: log in again")
	case errors.Is(err, bearer.ErrClaims):
		return c.unknown(audit.RefusedClaims, "the token is not for this server: its issuer or audience is another than api.oidc names")
	case err != nil:
		return c.unknown(audit.RefusedToken, "the token is not one that the identity provider signed")
	}
	c.caller = who
	return nil
}

// unknown refuses a caller whom nobody knows.
func (c *call) unknown(why audit.Refusal, detail string) *Problem {
	c.rate.failed(c)
	c.refuse(refusedCall{actor: audit.ByAnybody(), why: why})
	return &Problem{Status: http.StatusUnauthorized, Code: CodeUnauthenticated, Detail: detail, Refusal: string(why)}
}

// authorize looks whether the caller's role may.
func (c *call) authorize() *Problem {
	may := c.route.allowed(c.caller.roles)
	switch {
	case len(c.caller.roles) == 0:
		return c.forbid(audit.RefusedNoRole, "you are known and have no role here: api.oidc.roles says which claims give one")
	case len(may) == 0:
		return c.forbid(audit.RefusedRole, "this is for "+joined(c.route.Roles)+", and you are "+joined(c.caller.roles))
	case c.route.OneUser && !slices.ContainsFunc(may, func(r Role) bool { return r != audit.APIHelpdesk }) && c.echo.QueryParam("user_id") == "":
		return c.forbid(audit.RefusedSeveralUsers, "helpdesk sees one user at a time: name him with user_id")
	}
	return nil
}

func (c *call) forbid(why audit.Refusal, detail string) *Problem {
	c.refuse(refusedCall{actor: c.caller.actor, route: c.route.Operation, why: why})
	return &Problem{Status: http.StatusForbidden, Code: CodeForbidden, Detail: detail, Refusal: string(why)}
}

func joined(roles []Role) string {
	texts := make([]string, len(roles))
	for i, r := range roles {
		texts[i] = string(r)
	}
	return strings.Join(texts, ", ")
}

// refuse counts a refused call, and tells of the first of its kind in a minute at once.
func (h *Handler) refuse(r refusedCall) {
	minute, first := h.refused.Add(r, h.deps.Now())
	if !first {
		return
	}
	// The refusal stands whether the caller waits for its event or not.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	h.tell(ctx, r, minute, 1)
}

func (h *Handler) tell(ctx context.Context, r refusedCall, minute time.Time, n int) {
	detail := audit.Detail{audit.Word("refusal", r.why), audit.Time("minute", minute), audit.Number("count", n)}
	if r.route != "" {
		detail = append(detail, audit.ID("route", audit.RouteName(r.route)))
	}
	err := h.deps.DB.Append(ctx, audit.Event{Time: h.deps.Now(), Actor: r.actor, Action: audit.AccessRefused, Subject: audit.OfAPI(), Outcome: audit.Refused, Detail: detail})
	if err != nil {
		h.refused.Untold(r, minute, n)
		h.deps.Log.Warn().Err(err).Msg("Refused calls of the API could not be recorded; they will be")
	}
}

func (h *Handler) tellRefused(ctx context.Context, at time.Time) {
	for _, over := range h.refused.Over(at) {
		h.tell(ctx, over.Key, over.Minute, over.N)
	}
}
