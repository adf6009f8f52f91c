package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/roster"
)

// Compliance measures how many users of a roster a second are counted and put into their states, beside bare_sql: a statement
// that brings the same facts of the same users, whose rows are read and thrown away.
func Compliance(ctx context.Context, users, rounds int) (rows []Row, err error) {
	name := fmt.Sprintf("compliance/%d", users)
	c, err := newCounted(ctx, users)
	if c != nil {
		defer func() { err = errors.Join(err, c.close()) }()
	}
	if err != nil {
		return nil, fmt.Errorf("preparing %s: %w", name, err)
	}
	row, err := Measure(ctx, name, "1/s", More, rounds, Side{"ours", c.ours}, Side{"bare_sql", c.bare})
	return []Row{row}, err
}

// counted is a company of which every tenth user has a rotation under way, every twentieth a silent device, and every
// fiftieth no device at all.
type counted struct {
	closers  []func() error
	users    int
	db       *postgres.DB
	enforcer *enforce.Enforcer
}

func (c *counted) close() error {
	var err error
	for i := len(c.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, c.closers[i]())
	}
	return err
}

func newCounted(ctx context.Context, users int) (*counted, error) {
	c := &counted{users: users}
	pg, err := keyheraldtest.StartPostgres(ctx)
	if err != nil {
		return c, err
	}
	c.closers = append(c.closers, pg.Close)
	fresh, err := pg.NewDatabase(ctx)
	if err != nil {
		return c, err
	}
	owner, err := postgres.Open(ctx, fresh.OwnerURL)
	if err != nil {
		return c, err
	}
	if err := errors.Join(owner.Migrate(ctx, fresh.Roles(), keyheraldtest.Admin(), ""), seed(ctx, owner, users), owner.Close()); err != nil {
		return c, err
	}
	if c.db, err = postgres.Open(ctx, fresh.WriterURL); err != nil {
		return c, err
	}
	c.closers = append(c.closers, c.db.Close)
	engine, err := newEngine(c.db)
	if err != nil {
		return c, err
	}
	c.enforcer, err = enforce.New(enforce.Config{DB: c.db, Engine: engine})
	return c, err
}

func seed(ctx context.Context, owner *postgres.DB, users int) error {
	for _, statement := range []string{
		`INSERT INTO roster (user_id, added_at, added_by) SELECT '@user' || n || ':example.org', now(), 'local:bench@bench' FROM generate_series(1, $1::int) n`,
		`INSERT INTO device (id, user_id, device_id, identity_key, signing_key, master_key, state, enrolled_at, last_seen, status_at, status)
			SELECT gen_random_uuid(), '@user' || n || ':example.org', 'MANAGED', 'i' || n, 's', 'm', 'enrolled', now(), seen, seen, jsonb_build_object('report_id', gen_random_uuid(), 'backup_version', '3',
				'public_key', 'hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo', 'holds_key', true, 'count', 3000 + n, 'etag', '12', 'targets_verified', 3, 'targets_unverified', 0,
				'software_version', 'v1.0.0', 'highest_sequence', 1764100000000000 + n, 'at', 1764100000000)
			FROM generate_series(1, $1::int) n, LATERAL (SELECT now() - CASE WHEN n % 20 = 0 THEN interval '1 day' ELSE interval '1 minute' END AS seen) t WHERE n % 50 <> 1`,
		`INSERT INTO key_version (user_id, version, public_key, created_at, only_seen) SELECT '@user' || n || ':example.org', v::text, 'k', now() - interval '30 days', false
			FROM generate_series(1, $1::int) n, generate_series(1, 3) v`,
		// Four that are over and, of some, one that is not.
		`INSERT INTO rotation (id, user_id, secret, kms, path, version, source, state, created_at, updated_at, ended_at)
			SELECT gen_random_uuid(), '@user' || n || ':example.org', 'm.megolm_backup.v1', 'corporate', 'keyherald/user' || n, v::text, 'kms',
				CASE WHEN v = 5 THEN 'working' WHEN v = 2 THEN 'superseded' ELSE 'done' END, now(), now(), CASE WHEN v < 5 THEN now() END
			FROM generate_series(1, $1::int) n, generate_series(1, 5) v WHERE v < 5 OR n % 10 = 0`,
	} {
		if _, err := owner.Exec(ctx, statement, users); err != nil {
			return err
		}
	}
	// As autovacuum does in its time, for both sides.
	_, err := owner.Exec(ctx, `VACUUM (ANALYZE)`)
	return err
}

// ours counts everybody.
func (c *counted) ours(ctx context.Context) (float64, error) {
	began := time.Now()
	counts, standings, err := c.enforcer.Compliance(ctx)
	if err != nil {
		return 0, err
	}
	rate := float64(c.users) / time.Since(began).Seconds()
	// The last digits of a user decide his state, so that what each comes to is known.
	want := map[roster.State]int{roster.NotCovered: c.users / 50, roster.Unknown: c.users / 20, roster.InProgress: c.users / 20, roster.Current: c.users - c.users/50 - 2*(c.users/20)}
	for state, n := range want {
		if counts.States[state] != n {
			err = errors.Join(err, fmt.Errorf("%d users are %s instead of %d", counts.States[state], state, n))
		}
	}
	if len(standings) != c.users || counts.Roster != c.users {
		err = errors.Join(err, fmt.Errorf("%d users were counted, and %d are told, of %d", counts.Roster, len(standings), c.users))
	}
	return rate, err
}

// bareSQL brings the same facts in one statement over whole tables, in the order of users as well.
const bareSQL = `SELECT r.user_id, r.exempt_reason, r.exempt_until, d.enrolled, d.needs_enrollment, d.revoked,
		s.status_at, s.status ->> 'backup_version', s.status ->> 'holds_key', s.status #>> '{drifted,kind}', k.created_at, k.only_seen,
		o.id, o.state, o.held_for, o.held, o.needs_attention, o.next_action, l.id, l.state, l.failure
	FROM roster r
	LEFT JOIN (SELECT user_id, COUNT(*) FILTER (WHERE state = 'enrolled') AS enrolled, COUNT(*) FILTER (WHERE state = 'needs_enrollment') AS needs_enrollment,
		COUNT(*) FILTER (WHERE state = 'revoked') AS revoked FROM device GROUP BY user_id) d ON d.user_id = r.user_id
	LEFT JOIN (SELECT DISTINCT ON (user_id) user_id, status_at, status FROM device WHERE state = 'enrolled' ORDER BY user_id, status_at DESC) s ON s.user_id = r.user_id
	LEFT JOIN key_version k ON k.user_id = r.user_id AND k.version = s.status ->> 'backup_version'
	LEFT JOIN (SELECT DISTINCT ON (user_id) * FROM rotation WHERE ended_at IS NULL ORDER BY user_id, needs_attention <> '' DESC, held DESC, id DESC) o ON o.user_id = r.user_id
	LEFT JOIN (SELECT DISTINCT ON (user_id) * FROM rotation WHERE state NOT IN ('superseded', 'cancelled') ORDER BY user_id, id DESC) l ON l.user_id = r.user_id
	ORDER BY r.user_id`

func (c *counted) bare(ctx context.Context) (rate float64, err error) {
	began := time.Now()
	n, err := throwAway(ctx, c.db.RawDB, bareSQL)
	if err == nil && n != c.users {
		err = fmt.Errorf("there are %d rows for %d users", n, c.users)
	}
	return float64(c.users) / time.Since(began).Seconds(), err
}
