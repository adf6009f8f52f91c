package api

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
)

// tokenName keeps a name from passing for a person's, and from being the token itself.
var tokenName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,38}$`)

// maxTokenLife bounds a token's life: one that is forgotten ends.
const maxTokenLife = 366 * 24 * time.Hour

// CreateToken makes an API token. Only its hash is kept; the caller shows it to its owner once.
func CreateToken(ctx context.Context, db *postgres.DB, now func() time.Time, name string, role Role, life time.Duration, actor audit.Actor) (Secret, error) {
	var secret Secret
	event := audit.Event{Actor: actor, Action: audit.TokenCreated, Subject: audit.OfToken(audit.TokenName(name)), Outcome: audit.Accepted}
	err := refusal.Asked(ctx, db, now, &event, func(ctx context.Context) error {
		switch {
		case !tokenName.MatchString(name):
			return refusal.New(refusal.Invalid, audit.RefusedName, "%q is no name for a token: write up to 39 small letters, digits, dots, underscores and hyphens, such as ci-deploy", name)
		case !slices.Contains(Roles, role):
			return refusal.New(refusal.Invalid, audit.RefusedUnknownRole, "%q is no role: write %s", role, joined(Roles))
		case life <= 0 || life > maxTokenLife:
			return refusal.New(refusal.Invalid, audit.RefusedLife, "a token lives between a moment and 366 days, and not %s", life)
		}
		key, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("making a token's id: %w", err)
		}
		if secret, err = newSecret(); err != nil {
			return fmt.Errorf("making a token: %w", err)
		}
		event.Time = now()
		row := postgres.Token{ID: key, Name: name, SHA256: secret.hash(), Role: role, CreatedAt: event.Time, CreatedBy: actor.String(), ExpiresAt: event.Time.Add(life)}
		made, err := db.PutToken(ctx, row)
		if err != nil {
			return err
		}
		if !made {
			return refusal.New(refusal.Conflict, audit.RefusedAlreadySo, "there is, or was, a token named %s, and the audit log knows it by that name: write another", name)
		}
		event.Detail = audit.Detail{audit.Word("role", role), audit.Time("expires_at", row.ExpiresAt)}
		return db.Append(ctx, event)
	})
	if err != nil {
		return Secret{}, err
	}
	return secret, nil
}

// RevokeToken ends an API token at once.
func RevokeToken(ctx context.Context, db *postgres.DB, now func() time.Time, name string, actor audit.Actor) error {
	event := audit.Event{Actor: actor, Action: audit.TokenRevoked, Subject: audit.OfToken(audit.TokenName(name)), Outcome: audit.Accepted}
	return refusal.Asked(ctx, db, now, &event, func(ctx context.Context) error {
		event.Time = now()
		known, revoked, err := db.RevokeToken(ctx, name, event.Time)
		switch {
		case err != nil:
			return err
		case !known:
			return refusal.New(refusal.NotFound, audit.RefusedUnknownToken, "there is no token named %q: `keyherald token list` shows them", name)
		case !revoked:
			return refusal.New(refusal.Conflict, audit.RefusedAlreadySo, "the token %s is revoked already", name)
		}
		return db.Append(ctx, event)
	})
}
