package api

import (
	"context"
	"encoding/hex"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

// Grant lets the first managed devices of users enroll without codes.
type Grant struct {
	postgres.Grant
	State postgres.GrantState `json:"state"`
}

// CreatedGrant is a grant that was made, with what may be a mistake in it.
type CreatedGrant struct {
	Grant
	Warnings []string `json:"warnings,omitempty"`
}

func (c *call) grantOf(g postgres.Grant) Grant { return Grant{g, g.State(c.deps.Now())} }

// GrantRequest asks for a grant.
type GrantRequest struct {
	Users string `json:"users"`
	Proof string `json:"proof"`
	Max   int    `json:"max"`
	// TTL is in seconds; 0 is a week.
	TTL int64 `json:"ttl_seconds,omitempty"`
}

func listGrants(c *call) (answer, error) {
	q := c.query()
	f := postgres.GrantFilter{Open: q.flag("open"), Now: c.deps.Now()}
	limit, filters := q.page(&f.After)
	if err := q.end(); err != nil {
		return answer{}, err
	}
	f.Limit = limit + 1
	rows, err := c.deps.DB.Grants(c.ctx, f)
	if err != nil {
		return answer{}, err
	}
	page, err := pageOf(rows, limit, filters, c.grantOf, func(g postgres.Grant) any { return g.ID })
	return ok(page), err
}

func createGrant(c *call) (answer, error) {
	asked := GrantRequest{TTL: 7 * 24 * 60 * 60}
	if err := c.into(&asked); err != nil {
		return answer{}, err
	}
	grant, warnings, err := c.deps.Engine.NewGrant(c.ctx, relay.GrantRequest{Users: asked.Users, Proof: asked.Proof, Max: asked.Max, Life: seconds(asked.TTL)}, c.caller.actor)
	return created(CreatedGrant{c.grantOf(grant), warnings}), err
}

// seconds is a span that somebody wrote; the engine has the bounds, and this keeps it from overflowing.
func seconds(n int64) time.Duration { return time.Duration(min(max(n, 0), maxGrace)) * time.Second }

// Reason says why something is ended.
type Reason struct {
	Reason string `json:"reason,omitempty"`
}

// decided does to what the path names what needs a reason.
func (c *call) decided(name, what string, do func(ctx context.Context, key uuid.UUID, reason string, actor audit.Actor) error) (answer, error) {
	key, err := c.key(name, what)
	if err != nil {
		return answer{}, err
	}
	var asked Reason
	if err := c.into(&asked); err != nil {
		return answer{}, err
	}
	return done(), do(c.ctx, key, asked.Reason, c.caller.actor)
}

func revokeGrant(c *call) (answer, error) {
	return c.decided("grant_id", "grant", c.deps.Engine.RevokeGrant)
}

func listReenrollments(c *call) (answer, error) {
	q := c.query()
	f := postgres.ReenrollmentFilter{Waiting: q.flag("waiting")}
	limit, filters := q.page(&f.After)
	if err := q.end(); err != nil {
		return answer{}, err
	}
	f.Limit = limit + 1
	rows, err := c.deps.DB.Reenrollments(c.ctx, f)
	if err != nil {
		return answer{}, err
	}
	page, err := pageOf(rows, limit, filters, func(r postgres.Reenrollment) postgres.Reenrollment { return r }, func(r postgres.Reenrollment) any { return r.ID })
	return ok(page), err
}

func releaseReenrollment(c *call) (answer, error) {
	key, err := c.key("reenrollment_id", "request")
	if err == nil {
		err = c.none()
	}
	if err != nil {
		return answer{}, err
	}
	return done(), c.deps.Engine.ReleaseReenrollment(c.ctx, key, c.caller.actor)
}

func rejectReenrollment(c *call) (answer, error) {
	return c.decided("reenrollment_id", "request", c.deps.Engine.RejectReenrollment)
}

// CodesRequest asks for codes of several users.
type CodesRequest struct {
	UserIDs []id.UserID `json:"user_ids"`
	TTL     int64       `json:"ttl_seconds,omitempty"`
}

// UserCode is a code of one of them, which is shown once.
type UserCode struct {
	UserID    id.UserID `json:"user_id"`
	Code      string    `json:"code"`
	ExpiresAt time.Time `json:"expires_at"`
}

// createCodes makes a code for each user, all or none.
func createCodes(c *call) (answer, error) {
	asked := CodesRequest{TTL: 24 * 60 * 60}
	if err := c.into(&asked); err != nil {
		return answer{}, err
	}
	codes, err := c.deps.Engine.NewCodes(c.ctx, asked.UserIDs, seconds(asked.TTL), c.caller.actor)
	if err != nil {
		return answer{}, err
	}
	page := Page[UserCode]{Items: make([]UserCode, len(codes))}
	for i, code := range codes {
		page.Items[i] = UserCode{code.UserID, code.Code.Reveal(), code.ExpiresAt}
	}
	return created(page), nil
}

// KeepRequest are codes that the caller made himself and holds: the server gets to know their hashes alone.
type KeepRequest struct {
	Codes     []CodeHash `json:"codes"`
	ExpiresAt time.Time  `json:"expires_at"`
}

// CodeHash is the SHA-256, in hex, of the random part of a user's code.
type CodeHash struct {
	UserID id.UserID `json:"user_id"`
	SHA256 string    `json:"sha256"`
}

// Kept is how many codes were kept.
type Kept struct {
	Kept int `json:"kept"`
}

func keepCodes(c *call) (answer, error) {
	var asked KeepRequest
	if err := c.into(&asked); err != nil {
		return answer{}, err
	}
	codes := make([]relay.CodeHash, len(asked.Codes))
	for i, code := range asked.Codes {
		raw, err := hex.DecodeString(code.SHA256)
		if err != nil || len(raw) != 32 {
			return answer{}, invalid("codes[%d].sha256 is no SHA-256 in hex", i)
		}
		codes[i] = relay.CodeHash{UserID: code.UserID, SHA256: [32]byte(raw)}
	}
	err := c.deps.Engine.KeepCodes(c.ctx, codes, asked.ExpiresAt, c.caller.actor)
	return created(Kept{len(codes)}), err
}
