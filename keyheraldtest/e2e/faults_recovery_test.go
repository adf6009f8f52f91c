package e2e

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/tailscale/setec/client/setec"
	"maunium.net/go/mautrix/crypto/ssss"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest/faults"
	"github.com/keyherald/keyherald/kms/kmsconfig"
	"github.com/keyherald/keyherald/kms/policy"
)

// replacing is one managed device whose recovery key is replaced over and over, with a fault on the way each time.
type replacing struct {
	*world
	recorder    *faults.Recorder
	reader      setec.Client
	config      device.AccountConfig
	recoveryKey string
	present     *ssss.Key
	replaced    int
	last        string
}

func newReplacing(t *testing.T) *replacing {
	t.Helper()
	w := newWorld(t)
	url, reader := w.recoveryKMS(t, policy.Place{RecoveryReplace: true})
	r := &replacing{world: w, recorder: &faults.Recorder{}, reader: reader, recoveryKey: w.recoveryKey, present: w.fourS(t, w.recoveryKey)}
	r.recorder.Begin()
	toKMS, err := r.recorder.Proxy("device to KMS", url, faults.EveryRequest, nil)
	check(t, err)
	t.Cleanup(func() { _ = toKMS.Close() })
	toHomeserver, err := r.recorder.Proxy("device to homeserver", w.hs.URL, faults.Homeserver, nil)
	check(t, err)
	t.Cleanup(func() { _ = toHomeserver.Close() })
	r.config = w.account(t, "managed", func(c *device.AccountConfig) {
		c.Homeserver, c.Escrow.KMS = toHomeserver.URL, "recovery/alice"
		c.KMS = device.KMS{Name: "dev", Config: kmsconfig.Config{Type: kmsconfig.Setec, URL: toKMS.URL}, Path: kmsPath}
	})
	account := r.open(t)
	w.enroll(t, account)
	check(t, account.Close())
	return r
}

// open opens the account as a program does that was started again.
func (r *replacing) open(t *testing.T) *device.Account {
	t.Helper()
	options := r.options(t, "managed")
	options.OpenSQLite = func(dataSource string) (*sql.DB, error) {
		plain, err := sql.Open("sqlite", "")
		if err != nil {
			return nil, err
		}
		defer func() { _ = plain.Close() }()
		return sql.OpenDB(r.recorder.Connector("SQLite", faults.DriverConnector(plain.Driver(), dataSource))), nil
	}
	account, err := device.Open(t.Context(), r.config, options)
	check(t, err)
	return account
}

// replace is one try, with a fault, and one after it by a program that was started again, as after a kill.
func (r *replacing) replace(t *testing.T, fault faults.Fault, kill bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	account := r.open(t)
	struck := func() {}
	if kill {
		struck = cancel
	}
	r.recorder.Arm(fault, struck)
	replaced, err := account.ReplaceRecoveryKey(ctx, false)
	if r.recorder.Fired() != (fault.Label != "") {
		t.Fatalf("the fault did not happen: %v", r.recorder.Points())
	}
	check(t, account.Close())
	again := r.open(t)
	defer func() { check(t, again.Close()) }()
	if err != nil {
		// Whatever stopped it, the user is whole: one of the two recovery keys opens everything.
		r.wholeByOneKey(t)
		if done := r.done(t); done != r.last {
			// It was done, and nobody was told: the status says so.
			replaced.KeyID = done
		} else if replaced, err = again.ReplaceRecoveryKey(t.Context(), false); err != nil {
			t.Fatalf("the second try: %v", err)
		} else if len(replaced.LeftBehind) != 0 || len(replaced.Rewritten) != 3 {
			t.Errorf("rewritten are %v, left behind %v", replaced.Rewritten, replaced.LeftBehind)
		}
	}
	r.last = replaced.KeyID
	if done := r.done(t); done != r.last {
		t.Errorf("the status names the key %s, and %s was made", done, r.last)
	}
	r.replaced++
	kept, err := r.reader.Get(t.Context(), "recovery/alice/"+replaced.KeyID)
	check(t, err)
	old := r.present
	r.recoveryKey = string(kept.Value)
	r.present = r.fourS(t, r.recoveryKey)
	if r.present.ID != replaced.KeyID {
		t.Errorf("the default key is %s, and %s was made", r.present.ID, replaced.KeyID)
	}
	r.recoveryKeyIs(t, r.recoveryKey, old)
}

// done is the id of the last key that was replaced, by the device's status.
func (r *replacing) done(t *testing.T) string {
	t.Helper()
	status, err := device.Describe(t.Context(), r.store("managed"))
	check(t, err)
	var last struct {
		KeyID string `json:"key_id"`
	}
	if raw, ok := status["recovery_key_replaced"].(json.RawMessage); ok {
		check(t, json.Unmarshal(raw, &last))
	}
	return last.KeyID
}

// wholeByOneKey checks that the key that is the default now, old or new, is one that is kept, and opens every entry.
func (r *replacing) wholeByOneKey(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	keyID, err := r.stock.Machine.SSSS.GetDefaultKeyID(ctx)
	check(t, err)
	recoveryKey := r.recoveryKey
	if keyID != r.present.ID {
		kept, err := r.reader.Get(ctx, "recovery/alice/"+keyID)
		if err != nil {
			t.Fatalf("the default key is one that is kept nowhere: %v", err)
		}
		recoveryKey = string(kept.Value)
	}
	metadata, err := r.stock.Machine.SSSS.GetKeyData(ctx, keyID)
	check(t, err)
	key, err := metadata.VerifyRecoveryKey(keyID, recoveryKey)
	check(t, err)
	check(t, r.stock.Machine.FetchCrossSigningKeysFromSSSS(ctx, key))
}

func TestARecoveryKeyIsReplacedWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	r := newReplacing(t)
	r.replace(t, faults.Fault{}, false)
	first := r.recorder.Points()
	r.replace(t, faults.Fault{}, false)
	table := faults.Table(first, r.recorder.Points())
	if len(table) < 20 {
		t.Fatalf("only %d faults were found: %v", len(table), table)
	}
	for _, fault := range table {
		t.Run(fault.String(), func(t *testing.T) { r.replace(t, fault, false) })
		if fault.Mode == faults.Persisted {
			t.Run(fault.String()+", and the program is killed", func(t *testing.T) { r.replace(t, fault, true) })
		}
	}
	// Each replacement is one act, however many tries it took.
	account := r.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- errors.Join(account.Run(ctx), account.Close()) }()
	wait(t, "every replacement in the log", func() bool { return len(r.acts(t, "recovery_key.replaced")) >= r.replaced })
	cancel()
	if err := <-done; err != nil && !strings.Contains(err.Error(), "context canceled") {
		t.Error(err)
	}
	if n := len(r.acts(t, "recovery_key.replaced")); n != r.replaced {
		t.Errorf("%d replacements are in the log, and %d were made", n, r.replaced)
	}
}
