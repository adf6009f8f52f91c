package postgres

import (
	"context"
	"database/sql"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/campaign"
)

func splitDevices(devices []campaign.Device) (users, ids []string) {
	users, ids = make([]string, len(devices)), make([]string, len(devices))
	for i, d := range devices {
		users[i], ids[i] = string(d.UserID), string(d.DeviceID)
	}
	return users, ids
}

// ExcludeMany keeps devices of several users from every push to them, from now on, and returns those that were not excluded
// before.
func (db *DB) ExcludeMany(ctx context.Context, devices []campaign.Device, by string, at time.Time) ([]campaign.Device, error) {
	users, ids := splitDevices(devices)
	return collect(ctx, db, "the devices that are excluded", func(row interface{ Scan(...any) error }) (d campaign.Device, err error) {
		err = row.Scan(&d.UserID, &d.DeviceID)
		return d, err
	}, `INSERT INTO excluded_device (user_id, device_id, excluded_at, excluded_by)
		SELECT DISTINCT u, d, $3::timestamptz, $4 FROM unnest($1::text[], $2::text[]) AS x (u, d) ORDER BY u, d ON CONFLICT DO NOTHING RETURNING user_id, device_id`,
		pq.Array(users), pq.Array(ids), at, by)
}

// Exclusion is a device that is excluded, or is to be, beside a rotation of its user.
type Exclusion struct {
	campaign.Device
	// Since is when it was excluded; zero where it is not.
	Since time.Time
	// Rotation is the one by which it gets a key all the same, uuid.Nil for none.
	Rotation uuid.UUID
	Reach    campaign.Reach
}

// Exclusions says of devices whether they are excluded, and whether they get a key by these rotations of their users all the
// same: one that its managed device was told to do before the exclusion is under way with an older list.
func (db *DB) Exclusions(ctx context.Context, devices []campaign.Device, rotations map[id.UserID]uuid.UUID) ([]Exclusion, error) {
	users, ids := splitDevices(devices)
	keys := make([]uuid.NullUUID, len(devices))
	for i, d := range devices {
		keys[i].UUID, keys[i].Valid = rotations[d.UserID], rotations[d.UserID] != uuid.Nil
	}
	return collect(ctx, db, "the excluded devices", func(row interface{ Scan(...any) error }) (x Exclusion, err error) {
		var since sql.NullTime
		var key uuid.NullUUID
		var got, told bool
		err = row.Scan(&x.UserID, &x.DeviceID, &since, &key, &got, &told)
		x.Since = since.Time
		switch {
		case got:
			x.Reach, x.Rotation = campaign.GotKey, key.UUID
		case told:
			x.Reach, x.Rotation = campaign.MayGetKey, key.UUID
		}
		return x, err
	}, `SELECT d.u, d.d, x.excluded_at, d.r, COALESCE(g.outcome IN ('sent', 'adopted'), false), g.outcome IS NULL AND r.ended_at IS NULL AND COALESCE(a.at <= COALESCE(x.excluded_at, 'infinity'), false)
		FROM (SELECT DISTINCT u, d, r FROM unnest($1::text[], $2::text[], $3::uuid[]) AS n (u, d, r)) AS d
		LEFT JOIN excluded_device x ON x.user_id = d.u AND x.device_id = d.d
		LEFT JOIN rotation r ON r.id = d.r
		LEFT JOIN delivery g ON g.rotation_id = d.r AND g.device_id = d.d
		LEFT JOIN LATERAL (SELECT MAX(created_at) AS at FROM attempt a WHERE a.rotation_id = d.r) a ON true
		ORDER BY d.u, d.d`, pq.Array(users), pq.Array(ids), pq.Array(keys))
}

// CampaignRotations are the rotations in a campaign of these users, of those who have one.
func (db *DB) CampaignRotations(ctx context.Context, key uuid.UUID, users []id.UserID) (map[id.UserID]uuid.UUID, error) {
	type row struct {
		user id.UserID
		key  uuid.UUID
	}
	all, err := collect(ctx, db, "a campaign's rotations", func(scanned interface{ Scan(...any) error }) (r row, err error) {
		err = scanned.Scan(&r.user, &r.key)
		return r, err
	}, `SELECT user_id, rotation FROM campaign_user WHERE campaign = $1 AND user_id = ANY($2) AND rotation IS NOT NULL`, key, pq.Array(users))
	rotations := make(map[id.UserID]uuid.UUID, len(all))
	for _, r := range all {
		rotations[r.user] = r.key
	}
	return rotations, err
}
