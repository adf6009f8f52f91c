package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/tailscale/setec/acl"
	"github.com/tailscale/setec/client/setec"
	"github.com/tailscale/setec/server"
	"maunium.net/go/mautrix"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest/faults"
	"github.com/keyherald/keyherald/keyheraldtest/testsetec"
	"github.com/keyherald/keyherald/kms/kmsconfig"
	"github.com/keyherald/keyherald/kms/policy"
)

// recoveryKMS is a setec where the device has the rights that `keyherald kms policy` prints of a place, for Alice and for many
// persons, and no others; reader is whoever may read all recovery keys, which stand at recovery/{user}.
func (w *world) recoveryKMS(t *testing.T, place policy.Place) (url string, reader setec.Client) {
	t.Helper()
	kms, err := testsetec.Start(t.Context(), w.dir)
	check(t, err)
	t.Cleanup(func() { _ = kms.Close() })
	place.Path, place.RecoveryPath = "keyherald/{user}", "recovery/{user}"
	check(t, place.Check())
	rules := rulesOf(t, policy.SetecDevice(place, "alice"))
	for n := range 100 {
		rules = append(rules, rulesOf(t, policy.SetecDevice(place, fmt.Sprint("person", n)))...)
	}
	url, err = kms.Principal("device", rules...)
	check(t, err)
	readerURL, err := kms.Principal("reader", acl.Rule{Secret: []acl.Secret{"recovery/*"}, Action: []acl.Action{acl.ActionGet}})
	check(t, err)
	return url, setec.Client{Server: readerURL}
}

// rulesOf are the rules of a grant for setec, as a tailnet's policy file has it.
func rulesOf(t *testing.T, grant string) acl.Rules {
	t.Helper()
	var decoded struct {
		App map[string]acl.Rules `json:"app"`
	}
	check(t, json.Unmarshal([]byte(grant), &decoded))
	return decoded.App[string(server.ACLCap)]
}

// A device that makes its user's first identity puts the recovery key into the KMS before anything is uploaded. Every
// write on the way fails once, before and after it took effect. An identity that nobody can recover must not come
// about, and who tries again is through, or is told what to do.
func TestAFirstIdentityIsRecoverableWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	makeIdentities(t, false)
}

// A fleet has nobody who reads what a first try says: where the device may read what it put into the KMS, the second is
// through, whatever stopped the first.
func TestAFirstIdentityComesAboutByItselfWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	makeIdentities(t, true)
}

// makeIdentities has a device make a first identity for each fault. readable is whether it may read the recovery key in the
// KMS, and then the second try has to be through.
func makeIdentities(t *testing.T, readable bool) {
	t.Helper()
	w := newParts(t)
	ctx := t.Context()
	url, reader := w.recoveryKMS(t, policy.Place{RecoveryRead: readable})

	recorder := &faults.Recorder{}
	toKMS, err := recorder.Proxy("device to KMS", url, faults.EveryRequest, nil)
	check(t, err)
	t.Cleanup(func() { _ = toKMS.Close() })
	toHomeserver, err := recorder.Proxy("device to homeserver", w.hs.URL, faults.Homeserver, nil)
	check(t, err)
	t.Cleanup(func() { _ = toHomeserver.Close() })

	people := 0
	// verify is one try, with a fault, and one after it, as of a person who reads what the first one says.
	verify := func(t *testing.T, fault faults.Fault) {
		people++
		name := fmt.Sprintf("person%d", people)
		user, err := w.hs.CreateUser(ctx, name, password)
		check(t, err)
		account := w.open(t, name, func(c *device.AccountConfig) {
			c.UserID, c.Homeserver, c.Verification = user, toHomeserver.URL, device.Verification{BootstrapToKMS: "recovery/" + name}
			c.KMS = device.KMS{Name: "dev", Config: kmsconfig.Config{Type: kmsconfig.Setec, URL: toKMS.URL}, Path: kmsPath}
		})
		recorder.Arm(fault, nil)
		_, first := account.Verify(ctx, nil)
		if recorder.Fired() != (fault.Label != "") {
			t.Fatalf("the fault did not happen: %v", recorder.Points())
		}
		again := first
		if first != nil {
			_, again = account.Verify(ctx, nil)
		}
		if again != nil && readable {
			t.Errorf("the second try is not through: %v", again)
		}
		if again != nil && !strings.Contains(again.Error(), "remove it") && !strings.Contains(again.Error(), "set verification.recovery_key_file") {
			t.Errorf("the second try says nothing to do: %v", again)
		}
		kept, keptErr := reader.Get(ctx, "recovery/"+name)
		if again == nil && keptErr != nil {
			t.Errorf("the device is verified, and the KMS has no recovery key: %v", keptErr)
		}
		later := w.loginAs(t, user, "LATER")
		keys, err := later.QueryKeys(ctx, &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{user: {}}})
		check(t, err)
		if _, identity := keys.MasterKeys[user]; !identity {
			if again == nil {
				t.Error("the device is verified, and there is no identity")
			}
			return
		}
		if keptErr != nil {
			t.Fatalf("there is an identity that nobody can recover: %v", keptErr)
		}
		check(t, later.Verify(ctx, string(kept.Value)))
	}
	verify(t, faults.Fault{})
	table := faults.Table(recorder.Points())
	for _, fault := range table {
		t.Run(fault.String(), func(t *testing.T) { verify(t, fault) })
	}
}
