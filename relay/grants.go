package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/enrollment"
	"github.com/keyherald/keyherald/internal/glob"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

const (
	// maxGrant is how many devices a grant is for at most, and maxGrantLife how long it lives.
	maxGrant     = 1_000_000
	maxGrantLife = 365 * 24 * time.Hour
	// grantAfterlife is how long whoever a grant was for is still told that it ended.
	grantAfterlife = 24 * time.Hour
)

// GrantRequest is a grant that somebody asks for: whose first device may enroll, how many of them, by which proof of the
// configuration, and how long.
type GrantRequest struct {
	Users string
	Proof string
	Max   int
	Life  time.Duration
}

// NewGrant makes a grant: until it ends, the first managed device of a user whose id its pattern matches enrolls by a proof
// instead of a code. The warnings are for whoever asked: where there is a roster and the pattern matches nobody of it, nobody
// can enroll until he is added.
func (e *Engine) NewGrant(ctx context.Context, request GrantRequest, actor audit.Actor) (grant postgres.Grant, warnings []string, err error) {
	event := audit.Event{Actor: actor, Action: audit.GrantCreated, Subject: audit.OfGrants(), Outcome: audit.Accepted}
	err = refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		if err := e.checkGrant(request); err != nil {
			return err
		}
		var err error
		if warnings, err = e.warnOf(ctx, request); err != nil {
			return err
		}
		key, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("making a grant's id: %w", err)
		}
		now := e.now()
		grant = postgres.Grant{ID: key, Users: request.Users, Proof: request.Proof, Max: request.Max, CreatedAt: now, CreatedBy: actor.String(), ExpiresAt: now.Add(request.Life)}
		if err := e.db.PutGrant(ctx, grant); err != nil {
			return err
		}
		event.Time, event.Detail = now, audit.Detail{audit.ID("grant", key), audit.ID("users", audit.UserPattern(grant.Users)), audit.ID("proof", audit.ProofName(grant.Proof)),
			audit.Number("max", grant.Max), audit.Time("expires_at", grant.ExpiresAt)}
		return e.db.Append(ctx, event)
	})
	return grant, warnings, err
}

// warnOf says what may be a mistake in a grant that can be made: a pattern may be for users who are added to the roster later.
func (e *Engine) warnOf(ctx context.Context, request GrantRequest) ([]string, error) {
	roster, err := e.db.RosterUserIDs(ctx)
	matched := slices.ContainsFunc(roster, func(user id.UserID) bool { return glob.Match(request.Users, user.String()) })
	if err != nil || len(roster) == 0 || matched {
		return nil, err
	}
	return []string{"nobody of the roster matches " + request.Users + ": nobody enrolls by this grant until somebody is added who does (keyherald roster add)"}, nil
}

func (e *Engine) checkGrant(request GrantRequest) error {
	if err := glob.Check(request.Users); err != nil {
		return refusal.New(refusal.Invalid, audit.RefusedPattern, "the pattern of users: %w", err)
	}
	if _, server, ok := strings.Cut(request.Users, ":"); ok && !glob.Match(server, e.bot.Homeserver()) && !glob.Match("*:"+server, "@x:"+e.bot.Homeserver()) {
		return refusal.New(refusal.Invalid, audit.RefusedPattern, "the pattern %q matches nobody on %s", request.Users, e.bot.Homeserver())
	}
	if e.proofs[request.Proof] == nil {
		known := "it has none"
		if len(e.proofs) > 0 {
			known = "it has " + strings.Join(slices.Sorted(maps.Keys(e.proofs)), ", ")
		}
		return refusal.New(refusal.Invalid, audit.RefusedUnknownProof, "the configuration has no proof %q under enrollment.proofs: %s", request.Proof, known)
	}
	if request.Max < 1 || request.Max > maxGrant {
		return refusal.New(refusal.Invalid, audit.RefusedBounds, "a grant is for 1 to %d devices, and not for %d", maxGrant, request.Max)
	}
	if request.Life <= 0 || request.Life > maxGrantLife {
		return refusal.New(refusal.Invalid, audit.RefusedLife, "a grant lives between a moment and a year, and not %s", request.Life)
	}
	return nil
}

// RevokeGrant ends a grant at once. Whoever enrolled by it stays enrolled.
func (e *Engine) RevokeGrant(ctx context.Context, key uuid.UUID, reason string, actor audit.Actor) error {
	event := audit.Event{Actor: actor, Action: audit.GrantRevoked, Subject: audit.OfGrants(), Outcome: audit.Accepted}
	return refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		event.Time, event.Detail = e.now(), audit.Detail{audit.ID("grant", key)}
		if reason != "" {
			why, err := refusal.Reason(reason)
			if err != nil {
				return err
			}
			event.Detail = append(event.Detail, audit.Text("reason", why))
		}
		grant, ok, err := e.db.LockGrant(ctx, key)
		if err != nil {
			return err
		}
		if !ok {
			return refusal.New(refusal.NotFound, audit.RefusedUnknownGrant, "there is no grant %s: `keyherald grant list` shows them", key)
		}
		if !grant.RevokedAt.IsZero() {
			return refusal.New(refusal.Conflict, audit.RefusedAlreadySo, "grant %s is revoked already: %w", key, ErrNotPossible)
		}
		if err := e.db.RevokeGrant(ctx, key, event.Time, actor.String()); err != nil {
			return err
		}
		event.Detail = append(event.Detail, audit.Number("used", grant.Used))
		return e.db.Append(ctx, event)
	})
}

// grantsFor are the grants for a user that are open or ended lately, those that end first at the front.
func (e *Engine) grantsFor(ctx context.Context, user id.UserID) ([]postgres.Grant, error) {
	if len(e.proofs) == 0 {
		return nil, nil
	}
	grants, err := e.db.RecentGrants(ctx, e.now().Add(-grantAfterlife))
	return slices.DeleteFunc(grants, func(g postgres.Grant) bool { return !glob.Match(g.Users, user.String()) }), err
}

// ready has issuers' keys read that the next message of a user may be judged by, since nothing is read inside of a
// transaction. What cannot be read is found then.
func (s *Session) ready(ctx context.Context, grants []postgres.Grant) {
	for _, g := range grants {
		v := s.proofs[g.Proof]
		if v == nil || g.State(s.now()) != postgres.GrantOpen {
			continue
		}
		if err := v.Ready(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn().Err(err).Str("proof", g.Proof).Msg("The keys of the issuer cannot be read: nobody can enroll by this proof now")
		}
	}
}

// byProof decides on an enrollment by a grant and, if it is accepted, keeps the device. As with codes, the proof comes before
// everything else: whoever has none learns nothing about the user.
func (s *Session) byProof(ctx context.Context, message *todevice.Message, request protocol.EnrollRequest, now time.Time) (verdict, error) {
	if existing, known, err := s.db.DeviceByKey(ctx, message.Sender, message.SenderKey); err != nil {
		return verdict{}, err
	} else if known && existing.State == postgres.Enrolled && existing.SigningKey == message.SenderSigningKey && request.UserMasterKey == existing.MasterKey {
		// The answer was lost, and the device asks once more.
		_, granted, err := s.db.GrantOf(ctx, existing.ID)
		if err != nil || granted {
			return verdict{device: existing, repeated: true}, err
		}
	}
	grant, verified, why, err := s.proved(ctx, message.Sender, request, now)
	if err != nil || why != "" {
		return verdict{refusal: why, grant: grant.ID}, err
	}
	own, err := s.db.ShowProof(ctx, verified.Unique, message.Sender, message.SenderKey, now, verified.Expiry)
	if err != nil {
		return verdict{}, err
	}
	if !own {
		return verdict{refusal: protocol.RefusedProofUsed, grant: grant.ID}, s.wrongProof(ctx, message.Sender, []postgres.Grant{grant}, now)
	}
	if why := s.fits(message, request); why != "" {
		return verdict{refusal: why, grant: grant.ID}, nil
	}
	if has, err := s.db.HasDevice(ctx, message.Sender); err != nil || has {
		return verdict{refusal: protocol.RefusedNotFirstDevice, grant: grant.ID}, err
	}
	if off, err := s.db.OffRoster(ctx, message.Sender); err != nil || off {
		return verdict{refusal: protocol.RefusedNotOnRoster, grant: grant.ID}, err
	}
	// Only now: whoever revokes it waits for this transaction, or this one sees that he did.
	locked, ok, err := s.db.LockGrant(ctx, grant.ID)
	if err != nil {
		return verdict{}, err
	}
	if why := ended(locked, now); !ok || why != "" {
		return verdict{refusal: why, grant: grant.ID}, nil
	}
	device, why, err := s.keep(ctx, message, request, now)
	if err != nil || why != "" {
		return verdict{refusal: why, grant: grant.ID}, err
	}
	used, err := s.db.UseGrant(ctx, grant.ID, device.ID)
	if err != nil {
		return verdict{}, err
	}
	return verdict{device: device, grant: grant.ID}, s.db.Append(ctx, audit.Event{Time: now, Actor: audit.ByDevice(message.Sender, request.DeviceID), Action: audit.GrantUsed,
		Subject: audit.OfDevice(message.Sender, request.DeviceID), Outcome: audit.Accepted,
		Detail: audit.Detail{audit.ID("grant", grant.ID), audit.ID("proof", audit.ProofName(grant.Proof)), audit.Number("used", used), audit.Number("max", grant.Max)}})
}

func ended(g postgres.Grant, now time.Time) protocol.Refusal {
	switch g.State(now) {
	case postgres.GrantRevoked:
		return protocol.RefusedGrantRevoked
	case postgres.GrantUsedUp:
		return protocol.RefusedGrantUsedUp
	case postgres.GrantExpired:
		return protocol.RefusedGrantExpired
	}
	return ""
}

// proved finds the grant that a user's proof is good for. A wrong proof counts against every grant that it could have been
// for.
func (s *Session) proved(ctx context.Context, user id.UserID, request protocol.EnrollRequest, now time.Time) (postgres.Grant, enrollment.Verified, protocol.Refusal, error) {
	var none enrollment.Verified
	grants, err := s.grantsFor(ctx, user)
	if err != nil {
		return postgres.Grant{}, none, "", err
	}
	wrong, err := s.db.WrongProofs(ctx, user)
	if err != nil {
		return postgres.Grant{}, none, "", err
	}
	var tried []postgres.Grant
	why, last := protocol.RefusedNoGrant, postgres.Grant{}
	for _, g := range grants {
		verifier := s.proofs[g.Proof]
		if verifier == nil || verifier.Type() != request.Proof.Type {
			continue
		}
		if over := ended(g, now); over != "" || wrong[g.ID] >= wrongTries {
			if len(tried) == 0 {
				if why, last = over, g; over == "" {
					why = protocol.RefusedGrantBarred
				}
			}
			continue
		}
		verified, err := verifier.Verify(ctx, user, request)
		refused := enrollment.Refusal{}
		switch {
		case err == nil:
			return g, verified, "", nil
		case !errors.As(err, &refused):
			return g, none, "", fmt.Errorf("judging a proof: %w", err)
		case len(tried) == 0 || why == protocol.RefusedProof:
			// With several issuers, the one that knows the token says more about it than the others.
			why, last = refused.Why, g
		}
		tried = append(tried, g)
	}
	if len(tried) > 0 && isWrong(why) {
		err = s.wrongProof(ctx, user, tried, now)
	}
	return last, none, why, err
}

// isWrong reports whether a proof is to be counted: one that expired, or cannot be judged now, is not.
func isWrong(why protocol.Refusal) bool {
	return slices.Contains([]protocol.Refusal{protocol.RefusedProof, protocol.RefusedProofElsewhere, protocol.RefusedProofOtherUser, protocol.RefusedProofUsed}, why)
}

// wrongProof counts a wrong proof, and bars the user from a grant at the fifth.
func (s *Session) wrongProof(ctx context.Context, user id.UserID, grants []postgres.Grant, now time.Time) error {
	for _, g := range grants {
		wrong, err := s.db.WrongProof(ctx, g.ID, user)
		if err != nil {
			return err
		}
		if wrong != wrongTries {
			continue
		}
		err = s.db.Append(ctx, audit.Event{Time: now, Actor: audit.BySender(user), Action: audit.GrantBarred, Subject: audit.OfUser(user), Outcome: audit.Refused,
			Detail: audit.Detail{audit.Word("refusal", audit.RefusedWrongTries), audit.ID("grant", g.ID)}})
		if err != nil {
			return err
		}
	}
	return nil
}
