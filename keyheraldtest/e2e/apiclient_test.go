package e2e

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/api/client"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
)

// serveAPI is the server's API, whose campaigns go on by themselves, until the test ends.
func (w *world) serveAPI(t *testing.T, approval string) string {
	t.Helper()
	rule, err := campaign.ParseApproval(approval)
	check(t, err)
	log := zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
	enforcer, err := enforce.New(enforce.Config{DB: w.db, Engine: w.engine, StatusInterval: time.Hour, Approval: rule, Now: w.clock.Now, Log: log})
	check(t, err)
	reads, err := reader.New(reader.Config{Read: w.db, Write: w.db, Name: "example.org/test", Now: w.clock.Now})
	check(t, err)
	handler, err := api.New(api.Config{}, api.Deps{DB: w.db, Engine: w.engine, Enforcer: enforcer, Reader: reads, Now: w.clock.Now, Log: log})
	check(t, err)
	web := echo.New()
	handler.Register(web)
	listening := httptest.NewServer(web)
	t.Cleanup(listening.Close)
	run(t, func(ctx context.Context) error { handler.Run(ctx); return nil })
	run(t, func(ctx context.Context) error {
		for tick := time.NewTicker(200 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return nil
			case <-tick.C:
				if err := enforcer.StepCampaigns(ctx); err != nil && ctx.Err() == nil {
					return err
				}
			}
		}
	})
	return listening.URL + api.Prefix
}

// generated is the client that is generated from the document, with an admin's token.
func (w *world) generated(t *testing.T, address, name string) *client.ClientWithResponses {
	t.Helper()
	secret, err := api.CreateToken(t.Context(), w.db, w.clock.Now, name, "admin", time.Hour, keyheraldtest.Admin())
	check(t, err)
	c, err := client.NewClientWithResponses(address, client.WithRequestEditorFn(func(_ context.Context, request *http.Request) error {
		request.Header.Set("Authorization", "Bearer "+secret.Reveal())
		return nil
	}))
	check(t, err)
	return c
}

// A program that knows nothing but the document enrolls a device and runs a campaign, which another admin approves.
func TestAGeneratedClientRunsAnEnrollmentAndACampaign(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newWorld(t)
	receiver := w.verifiedReceiver(t, "TARGET")
	first := w.newKey(t, "1")
	address := w.serveAPI(t, "required")
	admin, second := w.generated(t, address, "first"), w.generated(t, address, "second")
	alice := string(w.alice)

	applied, err := admin.PutRosterWithResponse(ctx, nil, client.RosterRequest{Entries: []client.RosterEntry{{UserId: alice}}})
	check(t, err)
	if applied.JSON200 == nil || applied.JSON200.Added != 1 {
		t.Fatalf("the roster is answered with %s", applied.Body)
	}
	made, err := admin.CreateCodeWithResponse(ctx, alice, nil, client.CodeRequest{})
	check(t, err)
	if made.JSON201 == nil {
		t.Fatalf("the code is answered with %s", made.Body)
	}
	code, err := protocol.ParseCode(made.JSON201.Code)
	check(t, err)
	account := w.open(t, "managed")
	_, err = account.Verify(ctx, nil)
	check(t, err)
	enrolling, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	check(t, account.Enroll(enrolling, code))
	run(t, account.Run)
	user, err := admin.GetUserWithResponse(ctx, alice)
	check(t, err)
	if user.JSON200 == nil || user.JSON200.ManagedDevices != 1 || !user.JSON200.OnRoster {
		t.Fatalf("the user is answered with %s", user.Body)
	}

	kms, path, everybody, key := "dev", "keyherald/{user}", true, "campaign-"+uuid.NewString()
	request := client.CampaignRequest{Kms: &kms, Path: &path, Reason: "yearly rotation"}
	request.Who.All = &everybody
	started, err := admin.StartCampaignWithResponse(ctx, &client.StartCampaignParams{IdempotencyKey: &key}, request)
	check(t, err)
	if started.JSON201 == nil || started.JSON201.State != client.AwaitingApproval {
		t.Fatalf("the start is answered with %s", started.Body)
	}
	moving := *started.JSON201
	if again, err := admin.StartCampaignWithResponse(ctx, &client.StartCampaignParams{IdempotencyKey: &key}, request); err != nil || again.JSON201 == nil || again.JSON201.Id != moving.Id {
		t.Fatalf("started again it is answered with %v, %s", err, again.Body)
	}
	if own, err := admin.ApproveCampaignWithResponse(ctx, moving.Id, nil, client.ApproveRequest{Hash: moving.Hash}); err != nil || own.JSON200 != nil {
		t.Fatalf("who started it may approve it: %v, %s", err, own.Body)
	}
	approved, err := second.ApproveCampaignWithResponse(ctx, moving.Id, nil, client.ApproveRequest{Hash: moving.Hash})
	check(t, err)
	if approved.JSON200 == nil {
		t.Fatalf("the approval is answered with %s", approved.Body)
	}
	wait(t, "the campaign to finish", func() bool {
		progress, err := admin.GetCampaignWithResponse(ctx, moving.Id)
		check(t, err)
		return progress.JSON200 != nil && progress.JSON200.State == client.Finished
	})
	users, err := admin.ListCampaignUsersWithResponse(ctx, moving.Id, nil)
	check(t, err)
	if users.JSON200 == nil || len(users.JSON200.Items) != 1 || users.JSON200.Items[0].State != client.CampaignUserStateDone {
		t.Fatalf("its users are %s", users.Body)
	}
	newest, version := w.kmsKey(t, "")
	if version == "1" || newest.PublicKey() == first.PublicKey() {
		t.Error("the KMS has the old key")
	}
	wait(t, "the new key", func() bool { return pushesOf(t, receiver, newest) == 2 })
}
