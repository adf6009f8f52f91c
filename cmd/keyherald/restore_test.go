package main

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/postgres"
)

// restore runs `keyherald restore`, which is a process of its own and works on the database.
func (r *room) restore(t *testing.T) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newCommand()
	cmd.SetArgs([]string{"-c", r.path("config.yaml"), "restore", "--reason", "the disk broke"})
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// withAdminRoom has admins told.
func withAdminRoom(t *testing.T, r *room) *room {
	t.Helper()
	r.write(t, "config.yaml", r.read(t, "config.yaml")+"\nmatrix: {admin_room: {invite: [\"@admin:example.org\"]}}\n")
	return r
}

// running puts a campaign of one user there that is under way.
func (r *room) running(t *testing.T) uuid.UUID {
	t.Helper()
	key, now := uuid.Must(uuid.NewV7()), time.Now()
	check(t, r.Writer.Txn(t.Context(), func(ctx context.Context) error {
		return r.Writer.InsertCampaign(ctx, postgres.Campaign{ID: key, RequestHash: "x", Hash: "x", State: campaign.Running, Users: 1, StartedBy: "anna", CreatedAt: now, AskedAt: now, AskedBy: "anna", BegunAt: now,
			Parameters: campaign.Parameters{Kind: campaign.Rotate, Waves: []int{100}, Reason: "every spring"}}, []campaign.Place{{UserID: "@alice:example.org", Wave: 1, Turn: 1}})
	}))
	return key
}

// toAdmins are the notices for the admin room, by what their keys begin with.
func (r *room) toAdmins(t *testing.T) map[string]string {
	t.Helper()
	rows, err := r.Super.Query(t.Context(), `SELECT split_part(key, '/', 2), plain FROM notice WHERE audience = $1`, postgres.AudienceAdmins)
	check(t, err)
	defer func() { _ = rows.Close() }()
	told := map[string]string{}
	for rows.Next() {
		var key, plain string
		check(t, rows.Scan(&key, &plain))
		told[key] = plain
	}
	check(t, rows.Err())
	return told
}

func TestTheAdminRoomIsToldOfARestoreAndOfTheCampaignsThatItPaused(t *testing.T) {
	t.Parallel()
	r := withAdminRoom(t, withBot(t, newRoom(t)))
	key := r.running(t)
	out, err := r.restore(t)
	if err != nil || !strings.Contains(out, "running are paused: 1") {
		t.Fatalf("%v\n%s", err, out)
	}
	told := r.toAdmins(t)
	for about, says := range map[string][]string{
		"restored": {"The database was restored", "for: the disk broke.", "are paused: 1", "enroll the devices that were enrolled"},
		"campaign": {"A campaign is paused", key.String(), "since: database restored", "every spring"},
	} {
		for _, text := range says {
			if !strings.Contains(told[about], text) {
				t.Errorf("of the %s it is not told %q:\n%s", about, text, told[about])
			}
		}
	}
	if len(told) != 2 {
		t.Errorf("it is told of %v", slices.Sorted(maps.Keys(told)))
	}
	var queued int
	check(t, r.Super.QueryRow(t.Context(), `SELECT COUNT(*) FROM audit_log WHERE action = 'notice.queued' AND detail ->> 'about' IN ('database_restored', 'campaign')`).Scan(&queued))
	if queued != 2 {
		t.Errorf("the log has %d notices", queued)
	}
}

func TestARestoreIsNotDeclaredWhereTheAdminRoomCannotBeTold(t *testing.T) {
	t.Parallel()
	r := withAdminRoom(t, withBot(t, newRoom(t)))
	key := r.running(t)
	_, err := r.Super.Exec(t.Context(), `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no notice is taken now'; END $$;
		CREATE TRIGGER refuse BEFORE INSERT ON notice FOR EACH ROW WHEN (NEW.key LIKE 'admins/campaign/%') EXECUTE FUNCTION refuse()`)
	check(t, err)
	if out, err := r.restore(t); err == nil || !strings.Contains(err.Error(), "no notice is taken now") {
		t.Fatalf("%v\n%s", err, out)
	}
	now, _, err := r.Writer.Campaign(t.Context(), key)
	check(t, err)
	var events int
	check(t, r.Super.QueryRow(t.Context(), `SELECT COUNT(*) FROM audit_log WHERE action IN ('database.restored', 'campaign.paused', 'notice.queued')`).Scan(&events))
	if told := r.toAdmins(t); now.State != campaign.Running || events != 0 || len(told) != 0 {
		t.Errorf("the campaign is %s, the log has %d events, and it is told of %v", now.State, events, told)
	}
}

func TestARestoreIsDeclaredWhereThereIsNoAdminRoom(t *testing.T) {
	t.Parallel()
	r := withBot(t, newRoom(t))
	key := r.running(t)
	if out, err := r.restore(t); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if now, _, err := r.Writer.Campaign(t.Context(), key); err != nil || now.State != campaign.Paused || len(r.toAdmins(t)) != 0 {
		t.Errorf("the campaign is %s (%v), and it is told of %v", now.State, err, r.toAdmins(t))
	}
}
