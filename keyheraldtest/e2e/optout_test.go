package e2e

import (
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
)

func TestAUserWhoSwitchedKeyBackupOffIsLeftAloneUntilHeSwitchesItOn(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		accountData string
		off, on     map[string]any
	}{
		"in the account data of the specification": {"m.key_backup", map[string]any{"enabled": false}, map[string]any{"enabled": true}},
		"in the older one of Element":              {"m.org.matrix.custom.backup_disabled", map[string]any{"disabled": true}, map[string]any{"disabled": false}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			ctx := t.Context()
			w.newKey(t, "1")
			w.manage(t, "managed")
			check(t, w.stock.SetAccountData(ctx, test.accountData, test.off))
			w.notify(t, "n1", "1")
			w.caused(t, protocol.RejectedUserOptedOut)
			if _, err := w.stock.GetKeyBackupLatestVersion(ctx); err == nil {
				t.Error("a key-backup version was created")
			}
			if n := w.inStore(t, "managed", `SELECT COUNT(*) FROM journal WHERE NOT ended`); n != 0 {
				t.Error("the device goes on working on it")
			}
			check(t, w.stock.SetAccountData(ctx, test.accountData, test.on))
			check(t, w.engine.Retry(ctx, w.onlyRotation(t).ID, keyheraldtest.Admin()))
			w.waitDone(t)
		})
	}
}
