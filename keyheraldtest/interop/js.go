package interop

import (
	"context"
	"errors"
	"fmt"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// JS is a process with clients of the unmodified matrix-js-sdk, for who needs them outside of a run.
type JS struct{ driver *driver }

// StartJS starts one that keeps its files in dir.
func (t Tools) StartJS(dir string) (JS, error) {
	d, err := t.startJS(dir)
	return JS{d}, err
}

// Do has a client do an operation of js/driver.mjs, and reads the result into result unless that is nil.
func (js JS) Do(ctx context.Context, operation string, parameters map[string]any, result any) error {
	return js.driver.do(ctx, operation, parameters, result)
}

// Close ends the process.
func (js JS) Close() error { return js.driver.close() }

// jsClient is the unmodified matrix-js-sdk, which Element Web stands on.
type jsClient struct {
	world  *world
	driver *driver
}

func (c jsClient) do(ctx context.Context, operation string, device id.DeviceID, parameters map[string]any, result any) error {
	all := map[string]any{"name": device}
	for name, value := range parameters {
		all[name] = value
	}
	return c.driver.do(ctx, operation, all, result)
}

func (c jsClient) login(ctx context.Context, device id.DeviceID) (k keys, err error) {
	return k, c.do(ctx, "login", device, c.world.credentials(device), &k)
}

func (c jsClient) verify(ctx context.Context, device id.DeviceID, backup bool) error {
	return c.do(ctx, "verify", device, map[string]any{"recovery_key": c.world.recoveryKey, "backup": backup}, nil)
}

func (c jsClient) offline(ctx context.Context, device id.DeviceID) error {
	return c.do(ctx, "close", device, nil, nil)
}

func (c jsClient) online(ctx context.Context, device id.DeviceID) error {
	return c.do(ctx, "open", device, nil, nil)
}

func (c jsClient) holds(ctx context.Context, device id.DeviceID) (h held, err error) {
	return h, c.do(ctx, "state", device, nil, &h)
}

func (c jsClient) read(ctx context.Context, device id.DeviceID, m message, limit time.Duration) (string, error) {
	var read struct{ Body string }
	err := c.do(ctx, "read", device, map[string]any{"room": m.room, "event": m.id, "seconds": limit.Seconds()}, &read)
	return read.Body, err
}

// whole looks at what Element's device listener looks at before it shows a toast, and restores the backup.
func (c jsClient) whole(ctx context.Context, device id.DeviceID) error {
	var health map[string]bool
	if err := c.do(ctx, "health", device, nil, &health); err != nil {
		return err
	}
	var all error
	for _, needed := range []string{"secret_storage_ready", "cross_signing_ready", "cross_signing_cached", "backup_trusted", "backup_key_matches"} {
		if !health[needed] {
			all = errors.Join(all, fmt.Errorf("not %s", needed))
		}
	}
	var restored struct{ Imported, Total int }
	if err := c.do(ctx, "restore", device, nil, &restored); err != nil {
		return errors.Join(all, err)
	}
	if restored.Total < 1 || restored.Imported != restored.Total {
		all = errors.Join(all, fmt.Errorf("%d of %d room keys were restored", restored.Imported, restored.Total))
	}
	return all
}

func (c jsClient) send(ctx context.Context, device id.DeviceID, to recipient, kind event.Type, content any) error {
	return c.do(ctx, "send", device, map[string]any{"user": to.user, "device": to.device, "type": kind.Type, "content": content}, nil)
}
