package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

// Rotation is a rotation as callers see it; lists leave out attempts and deliveries. KMS.Version is empty while the device
// has not said which version its key became.
type Rotation struct {
	ID             uuid.UUID           `json:"id"`
	UserID         id.UserID           `json:"user_id"`
	Secret         string              `json:"secret"`
	KMS            protocol.KMSRef     `json:"kms"`
	Source         string              `json:"source"`
	Action         protocol.Action     `json:"action"`
	Reason         rotation.Reason     `json:"reason,omitempty"`
	State          rotation.State      `json:"state"`
	Held           bool                `json:"held,omitempty"`
	Stage          protocol.Stage      `json:"stage,omitempty"`
	BackupVersion  string              `json:"backup_version,omitempty"`
	RecoveryCopy   string              `json:"recovery_copy,omitempty"`
	NeedsAttention string              `json:"needs_attention,omitempty"`
	NextAction     string              `json:"next_action,omitempty"`
	Failure        string              `json:"failure,omitempty"`
	CreatedAt      time.Time           `json:"created_at"`
	UpdatedAt      time.Time           `json:"updated_at"`
	EndedAt        *time.Time          `json:"ended_at,omitempty"`
	Attempts       []Attempt           `json:"attempts,omitempty"`
	Deliveries     []protocol.Delivery `json:"deliveries,omitempty"`
}

// Attempt is one trigger of a rotation. SentAt is nil while the homeserver has not taken it.
type Attempt struct {
	Number   int            `json:"attempt"`
	DeviceID id.DeviceID    `json:"device_id"`
	Sequence int64          `json:"sequence"`
	Stage    protocol.Stage `json:"stage,omitempty"`
	SentAt   *time.Time     `json:"sent_at,omitempty"`
}

// RotationOf is a rotation without attempts and deliveries.
func RotationOf(r postgres.Rotation) Rotation {
	if r.Pending() {
		r.KMS.Version = ""
	}
	return Rotation{ID: r.ID, UserID: r.UserID, Secret: r.Secret, KMS: r.KMS, Source: r.Source, Action: r.Action, Reason: r.Reason, State: r.Facts.State, Held: r.Held, Stage: r.Facts.Stage,
		BackupVersion: r.Facts.BackupVersion, RecoveryCopy: string(r.Facts.RecoveryCopy), NeedsAttention: string(r.Facts.Attention), NextAction: r.NextAction,
		Failure: string(r.Facts.Failure), CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt, EndedAt: optional(r.EndedAt)}
}

func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// ReadRotation reads a rotation with its attempts and the outcome for each target.
func ReadRotation(ctx context.Context, db *postgres.DB, key uuid.UUID) (Rotation, error) {
	r, ok, err := db.Rotation(ctx, key)
	if err != nil {
		return Rotation{}, err
	}
	if !ok {
		return Rotation{}, refusal.New(refusal.NotFound, audit.RefusedUnknownRotation, "there is no rotation %s: `keyherald rotations list` shows them", key)
	}
	view := RotationOf(r)
	attempts, err := db.Attempts(ctx, key)
	if err != nil {
		return view, err
	}
	for _, a := range attempts {
		device, err := db.Device(ctx, a.Device)
		if err != nil {
			return view, err
		}
		view.Attempts = append(view.Attempts, Attempt{a.Number, device.DeviceID, a.Sequence, a.Stage, optional(a.SentAt)})
	}
	view.Deliveries, err = db.Deliveries(ctx, key)
	return view, err
}

func listRotations(c *call) (answer, error) {
	q := c.query()
	f := postgres.RotationFilter{User: q.user("user_id"), Open: q.flag("open"), Attention: q.flag("needs_attention"), Held: q.flag("held"),
		State: word(q, "state", rotation.Received, rotation.WaitingForEnrollment, rotation.Working, rotation.Done, rotation.Failed, rotation.Superseded, rotation.TimedOut, rotation.Cancelled)}
	limit, filters := q.page(&f.Before)
	if err := q.end(); err != nil {
		return answer{}, err
	}
	f.Limit = limit + 1
	rows, err := c.deps.DB.ListRotations(c.ctx, f)
	if err != nil {
		return answer{}, err
	}
	page, err := pageOf(rows, limit, filters, RotationOf, func(r postgres.Rotation) any { return r.ID })
	return ok(page), err
}

func getRotation(c *call) (answer, error) {
	key, err := c.key("rotation_id", "rotation")
	if err != nil {
		return answer{}, err
	}
	view, err := ReadRotation(c.ctx, c.deps.DB, key)
	return ok(view), err
}

// RotationRequest asks for a new key, which the user's managed device makes.
type RotationRequest struct {
	UserID id.UserID `json:"user_id"`
	// KMS and Path are where the key is, where the user had no rotation yet.
	KMS     string          `json:"kms,omitempty"`
	Path    string          `json:"path,omitempty"`
	Exclude []id.DeviceID   `json:"exclude,omitempty"`
	Reason  rotation.Reason `json:"reason,omitempty"`
	// OldBackupGrace is in seconds; nil is as the device's account file says.
	OldBackupGrace     *int64 `json:"old_backup_grace_seconds,omitempty"`
	ReplaceRecoveryKey bool   `json:"replace_recovery_key,omitempty"`
}

func invalid(format string, args ...any) *Problem {
	return &Problem{Status: http.StatusUnprocessableEntity, Code: CodeInvalid, Detail: fmt.Sprintf(format, args...)}
}

// maxGrace is ten years, in seconds: more is a mistake, or an overflow.
const maxGrace = 10 * 366 * 24 * 60 * 60

func startRotation(c *call) (answer, error) {
	var asked RotationRequest
	if err := c.into(&asked); err != nil {
		return answer{}, err
	}
	request := relay.RotateRequest{UserID: asked.UserID, KMS: asked.KMS, Path: asked.Path, Exclude: asked.Exclude, Reason: asked.Reason, ReplaceRecovery: asked.ReplaceRecoveryKey}
	switch asked.Reason {
	case rotation.ReasonChanged, rotation.ReasonCompromise, rotation.ReasonDisclosed:
	default:
		return answer{}, invalid("reason is %q: write compromise or disclosed, or leave it out", asked.Reason)
	}
	if asked.OldBackupGrace != nil {
		if *asked.OldBackupGrace < 0 || *asked.OldBackupGrace > maxGrace {
			return answer{}, invalid("old_backup_grace_seconds is %d: write a number from 0 to %d", *asked.OldBackupGrace, maxGrace)
		}
		grace := time.Duration(*asked.OldBackupGrace) * time.Second
		request.OldBackupGrace = &grace
	}
	key, err := c.deps.Engine.Rotate(c.ctx, request, c.caller.actor)
	if err != nil {
		return answer{}, err
	}
	view, err := ReadRotation(c.ctx, c.deps.DB, key)
	a := created(view)
	a.header = map[string]string{"Location": Prefix + "/rotations/" + key.String()}
	return a, err
}

func retryRotation(c *call) (answer, error)  { return c.change(c.deps.Engine.Retry) }
func cancelRotation(c *call) (answer, error) { return c.change(c.deps.Engine.Cancel) }
func repeatRotation(c *call) (answer, error) { return c.change(c.deps.Engine.Repeat) }

func (c *call) change(do func(ctx context.Context, key uuid.UUID, actor audit.Actor) error) (answer, error) {
	key, err := c.key("rotation_id", "rotation")
	if err != nil {
		return answer{}, err
	}
	if err := c.none(); err != nil {
		return answer{}, err
	}
	if err := do(c.ctx, key, c.caller.actor); err != nil {
		return answer{}, err
	}
	view, err := ReadRotation(c.ctx, c.deps.DB, key)
	return ok(view), err
}

// ReleaseRequest names the rotations to release, or all that are held.
type ReleaseRequest struct {
	Rotations []uuid.UUID `json:"rotations,omitempty"`
	All       bool        `json:"all,omitempty"`
}

// Released is how many rotations were released.
type Released struct {
	Released int `json:"released"`
}

func releaseRotations(c *call) (answer, error) {
	var asked ReleaseRequest
	if err := c.into(&asked); err != nil {
		return answer{}, err
	}
	if asked.All == (len(asked.Rotations) > 0) {
		return answer{}, invalid("name the rotations to release, or write all: true")
	}
	n, err := c.deps.Engine.Release(c.ctx, asked.Rotations, c.caller.actor)
	return ok(Released{n}), err
}
