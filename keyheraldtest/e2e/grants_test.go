package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/todevice"
)

func TestAFirstDeviceEnrollsByEachKindOfProofAndOnlyTheFirst(t *testing.T) {
	t.Parallel()
	w := newGranted(t)
	for _, test := range []struct {
		proof string
		show  func(user id.UserID) device.EnrollmentProof
	}{
		{"workload", func(user id.UserID) device.EnrollmentProof { return w.token(t, user, nil) }},
		{"cluster", func(user id.UserID) device.EnrollmentProof {
			token, err := w.cluster.Token(map[string]any{"aud": []string{audience}, "sub": "system:serviceaccount:keyherald:device-" + user.Localpart(),
				"kubernetes.io": map[string]any{"namespace": "keyherald", "pod": map[string]any{"name": "x"}}})
			check(t, err)
			return w.tokenFile(t, user, protocol.ProofKubernetes, token)
		}},
		{"laptops", func(user id.UserID) device.EnrollmentProof {
			return w.certificate(t, user, w.authority, user.Localpart()+"@example.org")
		}},
	} {
		t.Run(test.proof, func(t *testing.T) {
			grant := w.grant(t, test.proof, "@person*:"+keyheraldtest.ServerName, 5, time.Hour)
			user := w.person(t)
			account := w.device(t, user, test.proof, test.show(user))
			w.enrolls(t, account, "")
			// The answer may have been lost.
			w.enrolls(t, account, "")
			if n := w.used(t, grant); n != 1 {
				t.Errorf("the grant counts %d devices", n)
			}
			second := w.device(t, user, test.proof+"-second", test.show(user))
			w.enrolls(t, second, protocol.RefusedNotFirstDevice)
			if enrolled, err := account.Enrolled(t.Context()); err != nil || !enrolled {
				t.Errorf("the first device is enrolled no more: %v", err)
			}
			devices, err := w.db.Devices(t.Context(), user)
			check(t, err)
			if len(devices) != 1 || !w.logHas(t, "grant.used", grant.ID.String()) || !w.logHas(t, "grant.created", "@person*") {
				t.Errorf("there are %d devices, or the audit log does not tell of the grant", len(devices))
			}
		})
	}
	w.noTokenInTheDatabase(t)
}

// A token is good for an hour: none may stand anywhere in the database, whatever became of it.
func (w *granted) noTokenInTheDatabase(t *testing.T) {
	t.Helper()
	tables, err := w.db.Query(t.Context(), `SELECT tablename FROM pg_tables WHERE schemaname = 'public'`)
	check(t, err)
	defer func() { _ = tables.Close() }()
	var names []string
	for tables.Next() {
		var name string
		check(t, tables.Scan(&name))
		names = append(names, name)
	}
	check(t, tables.Err())
	files, err := filepath.Glob(filepath.Join(w.dir, "*.token"))
	check(t, err)
	if len(files) == 0 || len(names) < 10 {
		t.Fatalf("nothing to look for: %d tokens, %d tables", len(files), len(names))
	}
	for _, file := range files {
		token, err := os.ReadFile(file)
		check(t, err)
		parts := strings.Split(string(token), ".")
		if len(parts) != 3 {
			continue
		}
		part := parts[1]
		for _, name := range names {
			var n int
			check(t, w.db.QueryRow(t.Context(), `SELECT COUNT(*) FROM `+name+` r WHERE r::text LIKE '%' || $1 || '%' OR r::text LIKE '%' || encode($2::bytea, 'hex') || '%'`, part, []byte(part)).Scan(&n))
			if n > 0 {
				t.Errorf("%s has a token in clear", name)
			}
		}
	}
}

func TestAProofThatIsWrongIsRefusedWithItsReason(t *testing.T) {
	t.Parallel()
	w := newGranted(t)
	ctx := t.Context()
	for _, proof := range []string{"workload", "laptops"} {
		w.grant(t, proof, "@person*:"+keyheraldtest.ServerName, 50, time.Hour)
	}
	stranger, err := keyheraldtest.StartIssuer()
	check(t, err)
	defer func() { _ = stranger.Close() }()
	otherCA, err := keyheraldtest.NewAuthority(filepath.Join(w.dir, "other.pem"))
	check(t, err)
	for _, test := range []struct {
		name string
		show func(user id.UserID) device.EnrollmentProof
		want protocol.Refusal
	}{
		{"a token for another server", func(user id.UserID) device.EnrollmentProof {
			return w.token(t, user, map[string]any{"aud": "elsewhere.example.org"})
		}, protocol.RefusedProofElsewhere},
		{"a token of another user", func(user id.UserID) device.EnrollmentProof {
			return w.token(t, user, map[string]any{"preferred_username": "alice"})
		}, protocol.RefusedProofOtherUser},
		{"a token that names a user of another server", func(user id.UserID) device.EnrollmentProof {
			return w.token(t, user, map[string]any{"preferred_username": user.Localpart() + ":evil.org"})
		}, protocol.RefusedProofOtherUser},
		{"a token that expired", func(user id.UserID) device.EnrollmentProof {
			return w.token(t, user, map[string]any{"exp": time.Now().Add(-2 * time.Minute).Unix()})
		}, protocol.RefusedProofExpired},
		{"a token of a stranger under the issuer's name", func(user id.UserID) device.EnrollmentProof {
			token, err := stranger.Token(map[string]any{"iss": w.issuer.URL(), "aud": audience, "preferred_username": user.Localpart()})
			check(t, err)
			return w.tokenFile(t, user, protocol.ProofOIDC, token)
		}, protocol.RefusedProof},
		{"no token at all", func(user id.UserID) device.EnrollmentProof {
			return w.tokenFile(t, user, protocol.ProofOIDC, "hello")
		}, protocol.RefusedProof},
		{"a certificate of another authority", func(user id.UserID) device.EnrollmentProof {
			return w.certificate(t, user, otherCA, user.Localpart()+"@example.org")
		}, protocol.RefusedProof},
		{"a certificate of another user", func(user id.UserID) device.EnrollmentProof {
			return w.certificate(t, user, w.authority, "alice@example.org")
		}, protocol.RefusedProofOtherUser},
		{"a kind of proof that no grant is for", func(user id.UserID) device.EnrollmentProof {
			token, err := w.cluster.Token(map[string]any{"aud": audience, "sub": "system:serviceaccount:keyherald:device-" + user.Localpart()})
			check(t, err)
			return w.tokenFile(t, user, protocol.ProofKubernetes, token)
		}, protocol.RefusedNoGrant},
	} {
		t.Run(test.name, func(t *testing.T) {
			user := w.person(t)
			w.enrolls(t, w.device(t, user, user.Localpart(), test.show(user)), test.want)
			if devices, err := w.db.Devices(ctx, user); err != nil || len(devices) > 0 {
				t.Errorf("there are %d devices: %v", len(devices), err)
			}
		})
	}
	t.Run("where there is a roster, a user who is not on it", func(t *testing.T) {
		user := w.person(t)
		account := w.device(t, user, user.Localpart(), w.token(t, user, nil))
		_, err := w.db.Exec(ctx, `INSERT INTO roster (user_id, added_at, added_by) VALUES ('@somebody:example.org', now(), 'test')`)
		check(t, err)
		w.enrolls(t, account, protocol.RefusedNotOnRoster)
		_, err = w.db.Exec(ctx, `INSERT INTO roster (user_id, added_at, added_by) VALUES ($1, now(), 'test')`, user)
		check(t, err)
		w.enrolls(t, account, "")
		_, err = w.db.Exec(ctx, `DELETE FROM roster`)
		check(t, err)
	})
	t.Run("five wrong ones bar the user from the grant, and nobody else", func(t *testing.T) {
		user := w.person(t)
		account := w.device(t, user, user.Localpart(), w.token(t, user, map[string]any{"aud": "elsewhere.example.org"}))
		for range 5 {
			w.enrolls(t, account, protocol.RefusedProofElsewhere)
		}
		w.token(t, user, nil)
		w.enrolls(t, account, protocol.RefusedGrantBarred)
		if !w.logHas(t, "grant.barred", "wrong_tries") {
			t.Error("the audit log does not tell that the user is barred")
		}
		w.grant(t, "workload", user.String(), 1, time.Hour)
		w.enrolls(t, account, "")
	})
	w.noTokenInTheDatabase(t)
}

func TestAGrantThatIsOverLetsNobodyIn(t *testing.T) {
	t.Parallel()
	w := newGranted(t)
	ctx := t.Context()
	all := "@person*:" + keyheraldtest.ServerName
	first := w.person(t)
	grant := w.grant(t, "workload", all, 1, time.Hour)
	w.enrolls(t, w.device(t, first, "first", w.token(t, first, nil)), "")
	late := w.person(t)
	account := w.device(t, late, "late", w.token(t, late, nil))
	w.enrolls(t, account, protocol.RefusedGrantUsedUp)

	second := w.grant(t, "workload", all, 5, time.Hour)
	check(t, w.engine.RevokeGrant(ctx, second.ID, "a laptop was stolen", keyheraldtest.Admin()))
	w.enrolls(t, account, protocol.RefusedGrantRevoked)
	if err := w.engine.RevokeGrant(ctx, second.ID, "", keyheraldtest.Admin()); err == nil {
		t.Error("a grant was revoked twice")
	}
	if !w.logHas(t, "grant.revoked", "stolen") || !w.logHas(t, "grant.revoked", "already_so") {
		t.Error("the audit log does not tell of the revocation and of the second one, which was refused")
	}

	third := w.grant(t, "workload", all, 5, time.Hour)
	w.clock.Advance(2 * time.Hour)
	w.token(t, late, map[string]any{"exp": w.clock.Now().Add(time.Hour).Unix()})
	w.enrolls(t, account, protocol.RefusedGrantExpired)
	if w.used(t, third) != 0 || w.used(t, grant) != 1 {
		t.Error("a grant counts a device that did not enroll by it")
	}

	// Whoever no grant is for is a stranger: his message is put away unread.
	outsider, err := w.hs.CreateUser(ctx, "outsider", password)
	check(t, err)
	w.grant(t, "workload", all, 5, time.Hour)
	stranger := w.device(t, outsider, "outsider", w.token(t, outsider, nil))
	limited, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- stranger.EnrollByGrant(limited) }()
	wait(t, "the stranger's message to be dropped", func() bool {
		var n int
		check(t, w.db.QueryRow(ctx, `SELECT COUNT(*) FROM todevice_inbox WHERE sender = $1 AND state = 'dropped' AND reason = 'unknown_sender'`, outsider).Scan(&n))
		return n > 0
	})
	cancel()
	if err := <-done; err == nil {
		t.Error("the stranger is enrolled")
	}
}

func TestNobodyMakesAGrantThatMakesNoSense(t *testing.T) {
	t.Parallel()
	w := newGranted(t)
	good := relay.GrantRequest{Users: "@person*:" + keyheraldtest.ServerName, Proof: "workload", Max: 5, Life: time.Hour}
	for name, change := range map[string]func(*relay.GrantRequest){
		"no pattern":              func(g *relay.GrantRequest) { g.Users = "" },
		"a pattern that is none":  func(g *relay.GrantRequest) { g.Users = "person" },
		"users of another server": func(g *relay.GrantRequest) { g.Users = "@*:elsewhere.example.org" },
		"an unknown proof":        func(g *relay.GrantRequest) { g.Proof = "pigeon" },
		"for nobody":              func(g *relay.GrantRequest) { g.Max = 0 },
		"for no time":             func(g *relay.GrantRequest) { g.Life = 0 },
		"for two years":           func(g *relay.GrantRequest) { g.Life = 2 * 365 * 24 * time.Hour },
	} {
		request := good
		change(&request)
		if _, _, err := w.engine.NewGrant(t.Context(), request, keyheraldtest.Admin()); err == nil {
			t.Errorf("%s: it was made", name)
		}
	}
	if n := countedByOutcome(t, w.db)["grant.created refused"]; n != 7 {
		t.Errorf("%d refusals are in the audit log", n)
	}
}

// A device that is not cross-signed must not enroll, though its token is right; and the token is its own from then on, so
// that nobody who got hold of it enrolls another.
func TestATokenIsTheFirstDevicesThatShowedItAndTheDeviceMustBeCrossSigned(t *testing.T) {
	t.Parallel()
	w := newGranted(t)
	ctx := t.Context()
	w.people = 0
	w.world.people(t)
	w.grant(t, "workload", "@*:"+keyheraldtest.ServerName, 5, time.Hour)
	proof := w.token(t, w.alice, nil)
	token, err := os.ReadFile(proof.TokenFile)
	check(t, err)
	answer := w.askUnsigned(t, ctx, string(token))
	if answer.Accepted || answer.Reason != protocol.RefusedNotCrossSigned {
		t.Errorf("the unsigned device got %+v", answer)
	}
	account := w.open(t, "managed", func(c *device.AccountConfig) {
		c.Server = device.Server{UserID: w.identity.UserID, MasterKey: w.masterKey}
		c.Enrollment = device.Enrollment{Proof: proof}
	})
	_, err = account.Verify(ctx, nil)
	check(t, err)
	w.enrolls(t, account, protocol.RefusedProofUsed)
	w.token(t, w.alice, nil)
	w.enrolls(t, account, "")
	w.noTokenInTheDatabase(t)
}

// askUnsigned has a device that is not cross-signed ask by a token: keyherald-device refuses to.
func (w *granted) askUnsigned(t *testing.T, ctx context.Context, token string) protocol.EnrollResponse {
	t.Helper()
	receiver := w.receiver(t, "UNSIGNED")
	endpoint := receiver.Endpoint
	identities, err := endpoint.Identities(ctx, w.alice, w.identity.UserID)
	check(t, err)
	var bot crosssigning.Device
	for _, d := range identities[w.identity.UserID].Devices {
		bot = d
	}
	signing, identity, err := endpoint.Keys(ctx)
	check(t, err)
	claims, err := endpoint.Claim(ctx, false, bot)
	check(t, err)
	check(t, endpoint.InTxn(ctx, func(ctx context.Context) error {
		return endpoint.Queue(ctx, todevice.Outgoing{Key: "enroll", To: bot, Type: protocol.TypeEnrollRequest.Type, Content: protocol.EnrollRequest{
			ProtocolVersion: protocol.Version, Proof: &protocol.Proof{Type: protocol.ProofOIDC, Token: token}, BotUserID: w.identity.UserID, BotMasterKey: w.masterKey,
			UserMasterKey: identities[w.alice].MasterKey, DeviceID: "UNSIGNED", IdentityKey: identity, SigningKey: signing}}, claims)
	}))
	_, err = endpoint.Flush(ctx, nil)
	check(t, err)
	wait(t, "the answer", func() bool {
		check(t, receiver.Receive(ctx))
		return receiver.Payloads()[protocol.TypeEnrollResponse.Type] != ""
	})
	var answer protocol.EnrollResponse
	check(t, json.Unmarshal([]byte(receiver.Payloads()[protocol.TypeEnrollResponse.Type]), &answer))
	return answer
}
