package api

import (
	"net/http"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/postgres"
)

func getDocumentJSON(c *call) (answer, error) {
	return answer{status: http.StatusOK, raw: c.document, kind: "application/json"}, nil
}

func getDocumentYAML(*call) (answer, error) {
	return answer{status: http.StatusOK, raw: document, kind: "application/yaml"}, nil
}

// Login is what a program needs to log its user in; empty where the server knows API tokens alone.
type Login struct {
	Issuer   string   `json:"issuer,omitempty"`
	ClientID string   `json:"client_id,omitempty"`
	Audience string   `json:"audience,omitempty"`
	Scopes   []string `json:"scopes,omitempty"`
}

func getLogin(c *call) (answer, error) {
	if c.oidc == nil {
		return ok(Login{}), nil
	}
	o := c.oidc.config
	return ok(Login{o.Issuer, o.ClientID, o.Audience, o.Scopes}), nil
}

// Whoami is the caller as the audit log names him, and his roles.
type Whoami struct {
	Actor string `json:"actor"`
	Roles []Role `json:"roles"`
}

func getWhoami(c *call) (answer, error) {
	return ok(Whoami{c.caller.actor.String(), c.caller.roles}), nil
}

// Freeze is who stopped all triggers, and since when.
type Freeze struct {
	Frozen bool       `json:"frozen"`
	At     *time.Time `json:"at,omitempty"`
	By     string     `json:"by,omitempty"`
}

// Status is how the server stands. Problems are what people should look at.
type Status struct {
	Time      time.Time      `json:"time"`
	Version   string         `json:"version"`
	Leading   bool           `json:"leading"`
	Freeze    Freeze         `json:"freeze"`
	Problems  []string       `json:"problems"`
	Rotations map[string]int `json:"rotations"`
	Attention map[string]int `json:"needs_attention"`
	Devices   map[string]int `json:"devices"`
	Held      int            `json:"held"`
	Outbox    int            `json:"outbox"`
}

func getStatus(c *call) (answer, error) {
	counts, err := c.deps.DB.Counts(c.ctx)
	if err != nil {
		return answer{}, err
	}
	frozen, err := c.frozen()
	if err != nil {
		return answer{}, err
	}
	status := Status{Time: c.deps.Now().UTC(), Version: c.deps.Version, Freeze: frozen, Problems: []string{}, Rotations: counts.Rotations, Attention: counts.Attention,
		Devices: counts.Devices, Held: counts.Held, Outbox: counts.Outbox}
	if c.deps.Leading != nil {
		status.Leading = c.deps.Leading()
	}
	if c.deps.Problems != nil {
		status.Problems = append(status.Problems, c.deps.Problems()...)
	}
	return ok(status), nil
}

func (c *call) frozen() (Freeze, error) {
	f, frozen, err := c.deps.DB.Frozen(c.ctx, false)
	return Freeze{frozen, optional(f.At), f.By}, err
}

func getFreeze(c *call) (answer, error) {
	f, err := c.frozen()
	return ok(f), err
}

func freeze(c *call) (answer, error) {
	if err := c.none(); err != nil {
		return answer{}, err
	}
	if err := c.deps.Engine.Freeze(c.ctx, c.caller.actor); err != nil {
		return answer{}, err
	}
	f, err := c.frozen()
	return ok(f), err
}

func thaw(c *call) (answer, error) {
	if err := c.none(); err != nil {
		return answer{}, err
	}
	return done(), c.deps.Engine.Thaw(c.ctx, c.caller.actor)
}

// Token is an API token as it is shown: never itself.
type Token struct {
	Name       string     `json:"name"`
	Role       Role       `json:"role"`
	CreatedAt  time.Time  `json:"created_at"`
	CreatedBy  string     `json:"created_by"`
	ExpiresAt  time.Time  `json:"expires_at"`
	RevokedAt  *time.Time `json:"revoked_at,omitempty"`
	LastUsedAt *time.Time `json:"last_used_at,omitempty"`
}

func listTokens(c *call) (answer, error) {
	q := c.query()
	var f postgres.TokenFilter
	limit, filters := q.page(&f.After)
	if err := q.end(); err != nil {
		return answer{}, err
	}
	f.Limit = limit + 1
	rows, err := c.deps.DB.Tokens(c.ctx, f)
	if err != nil {
		return answer{}, err
	}
	page, err := pageOf(rows, limit, filters, TokenOf, func(t postgres.Token) any { return t.Name })
	return ok(page), err
}

// TokenOf is a token as it is shown.
func TokenOf(t postgres.Token) Token {
	return Token{t.Name, t.Role, t.CreatedAt, t.CreatedBy, t.ExpiresAt, optional(t.RevokedAt), optional(t.LastUsedAt)}
}

func revokeToken(c *call) (answer, error) {
	if err := c.none(); err != nil {
		return answer{}, err
	}
	return done(), RevokeToken(c.ctx, c.deps.DB, c.deps.Now, c.param("name"), c.caller.actor)
}

// Bot is whom devices pin when they enroll; codes name it.
type Bot struct {
	UserID    id.UserID  `json:"user_id"`
	MasterKey id.Ed25519 `json:"master_key"`
}

func getBot(c *call) (answer, error) {
	user, key := c.deps.Engine.Bot()
	return ok(Bot{user, key}), nil
}
