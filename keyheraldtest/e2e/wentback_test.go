package e2e

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// start opens a managed device's store and runs it until stop, which leaves the store to others.
func (w *world) start(t *testing.T, name string, statusInterval time.Duration) (account *device.Account, stop func()) {
	t.Helper()
	account, err := device.Open(t.Context(), w.account(t, name), device.Options{StorePath: w.store(name), PickleKey: make([]byte, 32),
		StatusInterval: statusInterval, Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)})
	check(t, err)
	if enrolled, err := account.Enrolled(t.Context()); err != nil || !enrolled {
		check(t, err)
		w.enroll(t, account)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- account.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := errors.Join(<-done, account.Close()); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the device ended with: %v", err)
		}
	}
	t.Cleanup(stop)
	return account, stop
}

var storeFiles = []string{"", "-wal", "-shm"}

// copyStore takes the files of a device's store that nobody uses now.
func (w *world) copyStore(t *testing.T, name string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, suffix := range storeFiles {
		content, err := os.ReadFile(w.store(name) + suffix)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		check(t, err)
		files[suffix] = content
	}
	return files
}

func (w *world) putStoreBack(t *testing.T, name string, files map[string][]byte) {
	t.Helper()
	for _, suffix := range storeFiles {
		if err := os.Remove(w.store(name) + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	for suffix, content := range files {
		check(t, os.WriteFile(w.store(name)+suffix, content, 0o600))
	}
}

// forget brings a world to where a device's store is put back to before its last rotation, and says what the receiver
// had by then.
func (w *world) forget(t *testing.T, receiver *keyheraldtest.Receiver) (received int) {
	t.Helper()
	w.newKey(t, "1")
	_, stop := w.start(t, "managed", time.Second)
	w.notify(t, "n1", "1")
	w.waitDone(t)
	stop()
	snapshot := w.copyStore(t, "managed")
	_, stop = w.start(t, "managed", time.Second)
	second := w.newKey(t, "2")
	w.notify(t, "n2", "2")
	w.waitDone(t)
	wait(t, "both keys to arrive", func() bool {
		check(t, receiver.Receive(t.Context()))
		return holds(receiver, second) && len(receiver.Messages()) >= 4
	})
	stop()
	// What is still on its way would come to the server after what a test changes there.
	wait(t, "the server to have all that the device sent", func() bool {
		var has int
		check(t, w.db.QueryRow(t.Context(), `SELECT COUNT(*) FROM report`).Scan(&has))
		return has >= w.inStore(t, "managed", `SELECT COUNT(*) FROM todevice_outbox WHERE state = 'sent' AND (key LIKE 'report/%' OR key LIKE 'status/%')`)
	})
	if w.logHas(t, "device.store_went_backwards", "") {
		t.Fatal("a store that was only stopped and started is suspected")
	}
	w.putStoreBack(t, "managed", snapshot)
	return len(receiver.Messages())
}

// comeBack is the way out: nothing came from the old store, it is not enrolled again, and a new login goes on.
func (w *world) comeBack(t *testing.T, old *device.Account, receiver *keyheraldtest.Receiver, received int) {
	t.Helper()
	ctx := t.Context()
	wait(t, "the device to know", func() bool {
		enrolled, err := old.Enrolled(ctx)
		check(t, err)
		return !enrolled
	})
	wait(t, "the rotation to wait for another device", func() bool { return w.onlyRotation(t).Facts.State == rotation.WaitingForEnrollment })
	code, err := w.engine.NewCode(ctx, w.alice, time.Hour, keyheraldtest.Admin())
	check(t, err)
	if err := old.Enroll(ctx, code); err == nil || !strings.Contains(err.Error(), "went back") {
		t.Errorf("the old store enrolls again, or with another word: %v", err)
	}
	check(t, receiver.Receive(ctx))
	for _, state := range []string{"undecryptable", "duplicate"} {
		if n, err := receiver.PutAway(ctx, state); err != nil || n != 0 {
			t.Errorf("the receiver has %d messages that are %s (%v)", n, state, err)
		}
	}
	if now := len(receiver.Messages()); now != received {
		t.Errorf("the receiver got %d messages from the old store", now-received)
	}
	w.manage(t, "fresh")
	w.waitDone(t)
	wait(t, "the key to arrive", func() bool {
		check(t, receiver.Receive(ctx))
		return len(receiver.Messages()) == received+2
	})
	r := w.onlyRotation(t)
	if outcomes := w.outcomes(t, r.ID); outcomes["skipped_excluded"] != 1 || r.Facts.Attention != "" {
		t.Errorf("the outcomes are %v, and it needs %q", outcomes, r.Facts.Attention)
	}
}

func TestADeviceWhoseStoreWentBackIsFoundByItsStatusAndComesBackAsANewLogin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	receiver := w.verifiedReceiver(t, "WIRE")
	received := w.forget(t, receiver)
	old, _ := w.start(t, "managed", time.Second)
	wait(t, "the server to see that the store went back", func() bool { return w.logHas(t, "device.store_went_backwards", "count") })
	devices, err := w.db.Devices(t.Context(), w.alice)
	check(t, err)
	if d := devices[0]; d.State != postgres.NeedsEnrollment || !d.WentBack {
		t.Errorf("the device is %s", d.State)
	}
	w.newKey(t, "3")
	w.notify(t, "n3", "3")
	w.comeBack(t, old, receiver, received)
}

func TestADeviceWhoseStoreWentBackSeesItInATriggerAndDoesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	receiver := w.verifiedReceiver(t, "WIRE")
	received := w.forget(t, receiver)
	// As if all that came of the lost time were the reports of a much later run: then a report of the old store may be a
	// late one, and proves nothing to the server.
	_, err := w.db.Exec(ctx, `DELETE FROM device_run r WHERE EXISTS (SELECT 1 FROM device_run later WHERE later.device = r.device AND later.base > r.base)`)
	check(t, err)
	_, err = w.db.Exec(ctx, `UPDATE device_run SET base = base + 1000, count = count + 1000`)
	check(t, err)
	old, _ := w.start(t, "managed", time.Hour)
	wait(t, "the first status, through a new Olm session", func() bool {
		var runs int
		check(t, w.db.QueryRow(ctx, `SELECT COUNT(*) FROM device_run`).Scan(&runs))
		return runs == 2
	})
	w.newKey(t, "3")
	w.notify(t, "n3", "3")
	wait(t, "the device to see that its store went back", func() bool {
		return w.inStore(t, "managed", `SELECT COUNT(*) FROM state WHERE name = 'went_back' AND value LIKE $1`, "%"+w.onlyRotation(t).ID.String()+"%") == 1
	})
	wait(t, "the server to know", func() bool { return w.logHas(t, "device.store_went_backwards", "count") })
	wait(t, "the rotation to be taken away", func() bool { return w.onlyRotation(t).Facts.Attention == protocol.StoreWentBackwards })
	happened.Store(protocol.StoreWentBackwards, true)
	if next := w.onlyRotation(t).NextAction; !strings.Contains(next, "enroll it again") {
		t.Errorf("the next action is %q", next)
	}
	lines, err := w.db.Log(ctx, w.onlyRotation(t).ID.String(), 100)
	check(t, err)
	for _, line := range lines {
		if line.Action == "progress.reported" {
			t.Errorf("a report of the old store counts: %s", line.Detail)
		}
	}
	w.comeBack(t, old, receiver, received)
}
