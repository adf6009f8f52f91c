package enforce_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

var cluster *keyheraldtest.Postgres

func TestMain(m *testing.M) { os.Exit(keyheraldtest.RunWithPostgres(&cluster, m.Run)) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// company is a database with an engine and an enforcer, whose clock the test moves.
type company struct {
	db       *postgres.DB
	database *keyheraldtest.Database
	clock    *keyheraldtest.Clock
	engine   *relay.Engine
	enforcer *enforce.Enforcer
}

func newCompany(t *testing.T, approval string) *company {
	t.Helper()
	ctx := t.Context()
	database, err := cluster.NewDatabase(ctx)
	check(t, err)
	owner, err := postgres.Open(ctx, database.OwnerURL)
	check(t, err)
	check(t, owner.Migrate(ctx, database.Roles(), keyheraldtest.Admin(), "test"))
	check(t, owner.Close())
	db, err := postgres.Open(ctx, database.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	c := &company{db: db, database: database, clock: &keyheraldtest.Clock{}}
	c.on(t, db, approval)
	return c
}

// on makes engine and enforcer on a database.
func (c *company) on(t *testing.T, db *postgres.DB, approval string) {
	t.Helper()
	rule, err := campaign.ParseApproval(approval)
	check(t, err)
	c.engine, err = relay.New(relay.Config{DB: db, Now: c.clock.Now, BotUserID: "@keyherald:example.org", BotMasterKey: "x", Storm: rotation.StormLimit{Percent: 2, Users: 3}})
	check(t, err)
	c.enforcer, err = enforce.New(enforce.Config{DB: db, Engine: c.engine, Approval: rule, Now: c.clock.Now, Log: zerolog.Nop()})
	check(t, err)
}

func user(i int) id.UserID { return id.UserID(fmt.Sprintf("@user%03d:example.org", i)) }

// people puts users on the roster, each with an enrolled device.
func (c *company) people(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		c.onRoster(t, user(i))
		c.enroll(t, user(i))
	}
}

func (c *company) onRoster(t *testing.T, who id.UserID) {
	t.Helper()
	_, err := c.db.Exec(t.Context(), `INSERT INTO roster (user_id, added_at, added_by) VALUES ($1, now(), 'test')`, who)
	check(t, err)
}

func (c *company) enroll(t *testing.T, who id.UserID) uuid.UUID {
	t.Helper()
	key := uuid.Must(uuid.NewV7())
	check(t, c.db.PutDevice(t.Context(), postgres.Device{ID: key, UserID: who, DeviceID: "DEVICE", IdentityKey: "i", SigningKey: "s", MasterKey: "m", EnrolledAt: c.clock.Now()}))
	check(t, c.db.SawDevice(t.Context(), key, c.clock.Now(), nil))
	return key
}

// everybody asks for a campaign for all of the roster.
func everybody() campaign.Parameters {
	p := campaign.Defaults()
	p.Who, p.KMS, p.Path, p.Rate, p.Reason = campaign.Who{All: true}, "corporate", "keyherald/{user}/key", 60, "a test"
	return p
}

// allHeld asks for a campaign that releases what the storm limit holds.
func allHeld() campaign.Parameters {
	p := campaign.Defaults()
	p.Kind, p.Who, p.Waves, p.Rate, p.Reason = campaign.Release, campaign.Who{All: true}, []int{10, 100}, 60, "it was meant"
	return p
}

// These are three admins.
var initiator, second, third = audit.ByLocal("anna", "test"), audit.ByLocal("bert", "test"), audit.ByLocal("carl", "test")

func (c *company) start(t *testing.T, p campaign.Parameters) postgres.Campaign {
	t.Helper()
	started, fresh, err := c.enforcer.StartCampaign(t.Context(), enforce.CampaignRequest{Parameters: p}, initiator)
	check(t, err)
	if !fresh {
		t.Fatal("the campaign was there before")
	}
	return started
}

func (c *company) step(t *testing.T) {
	t.Helper()
	check(t, c.enforcer.StepCampaigns(t.Context()))
}

// pass moves the clock, a minute at a time, and steps after each.
func (c *company) pass(t *testing.T, minutes int) {
	t.Helper()
	for range minutes {
		c.clock.Advance(time.Minute)
		c.step(t)
	}
}

func (c *company) progress(t *testing.T, key uuid.UUID) enforce.CampaignProgress {
	t.Helper()
	p, err := c.enforcer.CampaignProgress(t.Context(), key)
	check(t, err)
	return p
}

func (c *company) users(t *testing.T, key uuid.UUID, state campaign.UserState) []postgres.CampaignUser {
	t.Helper()
	users, err := c.db.CampaignUsers(t.Context(), postgres.CampaignUserFilter{Campaign: key, State: state, Limit: 10_000})
	check(t, err)
	return users
}

// report moves a rotation as the device's reports do.
func (c *company) report(t *testing.T, key uuid.UUID, facts rotation.Facts) {
	t.Helper()
	check(t, c.db.Txn(t.Context(), func(ctx context.Context) error {
		r, ok, err := c.db.LockRotation(ctx, key)
		if err != nil || !ok {
			return fmt.Errorf("rotation %s: %t, %w", key, ok, err)
		}
		r.Facts, r.NextAction = facts, ""
		if facts.Attention != "" {
			r.NextAction = rotation.NextAction(facts.Attention)
		}
		return c.db.UpdateRotation(ctx, r, c.clock.Now())
	}))
}

// doneFacts and needy are a rotation that is done, and one that needs somebody.
var (
	doneFacts = rotation.Facts{State: rotation.Done, Stage: protocol.StagePushed, BackupVersion: "2"}
	needy     = rotation.Facts{State: rotation.Working, Stage: protocol.StageTriggerAccepted, Attention: protocol.AttentionOldKeyMissing}
	working   = rotation.Facts{State: rotation.Working, Stage: protocol.StageFetched}
)

// finish reports all that are under way as done, but for those that but names.
func (c *company) finish(t *testing.T, key uuid.UUID, but map[id.UserID]rotation.Facts) {
	t.Helper()
	for _, u := range c.users(t, key, campaign.Waiting) {
		facts, other := but[u.UserID]
		if !other {
			facts = doneFacts
		}
		c.report(t, u.Rotation, facts)
	}
}

// change is a KMS that tells of a new version.
func (c *company) change(t *testing.T, who id.UserID, version string) uuid.UUID {
	t.Helper()
	receipt, err := c.engine.Accept(t.Context(), intake.Notification{Source: "kms", ID: string(who) + version, User: string(who),
		Secret: protocol.SecretMegolmBackup, KMS: "corporate", Path: "keyherald/" + who.Localpart() + "/key", Version: version})
	check(t, err)
	return uuid.MustParse(receipt.RotationID)
}

func (c *company) rotation(t *testing.T, key uuid.UUID) postgres.Rotation {
	t.Helper()
	r, ok, err := c.db.Rotation(t.Context(), key)
	check(t, err)
	if !ok {
		t.Fatalf("there is no rotation %s", key)
	}
	return r
}

// told counts the events of the audit log, by action and outcome.
func (c *company) told(t *testing.T) map[string]int {
	t.Helper()
	lines, err := c.db.Log(t.Context(), "", 100_000)
	check(t, err)
	counts := map[string]int{}
	for _, line := range lines {
		counts[line.Action+" "+line.Outcome]++
	}
	return counts
}
