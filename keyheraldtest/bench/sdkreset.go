package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/interop"
)

// sdkReset is what clients do without Keyherald: one of a user's devices resets the key backup, and pushes the new key to
// his n others. All of them are unmodified matrix-js-sdk behind an edge.
type sdkReset struct {
	edge        *edge
	n           int
	recoveryKey string
	// The device that resets has a process of its own, and the others share one.
	resetter, receivers interop.JS
	held                sdkHeld
	// sent is how many messages were sent when the last round ended.
	sent int64
}

// sdkHeld is the public key of the backup key that a client holds and the version that it backs up to, by its own API.
type sdkHeld struct {
	PublicKey string              `json:"public_key"`
	Version   id.KeyBackupVersion `json:"version"`
}

const (
	sdkPassword = "sdk-reset-password"
	sdkResetter = "RESETTER"
	// sdkSeconds is how long a client may take for anything.
	sdkSeconds = 180
)

func sdkReceiver(i int) string { return fmt.Sprintf("RECEIVER%d", i) }

// newSDKReset makes the user with his devices; they are closed with c.
func newSDKReset(ctx context.Context, c *crowded, tools interop.Tools, n int) (*sdkReset, error) {
	s := &sdkReset{n: n}
	user, err := c.hs.CreateUser(ctx, "sdkalice", sdkPassword)
	if err != nil {
		return nil, err
	}
	first, err := keyheraldtest.Login(ctx, c.hs.URL, user, sdkPassword, "FIRST")
	if err != nil {
		return nil, err
	}
	defer first.Close()
	if s.recoveryKey, err = first.Bootstrap(ctx, sdkPassword); err != nil {
		return nil, err
	}
	if s.edge, err = newEdge(c.hs.URL, n+1); err != nil {
		return nil, err
	}
	c.closers = append(c.closers, s.edge.close)
	if s.resetter, err = startSDK(c, tools); err != nil {
		return nil, err
	}
	if s.receivers, err = startSDK(c, tools); err != nil {
		return nil, err
	}
	// One after the other: Dendrite loses device keys of a user that are uploaded at once.
	err = s.each(func(js interop.JS, name string) error {
		session := map[string]any{"name": name, "homeserver": s.edge.URL, "user": user, "password": sdkPassword, "device": name}
		if err := js.Do(ctx, "login", session, nil); err != nil {
			return err
		}
		return js.Do(ctx, "verify", map[string]any{"name": name, "recovery_key": s.recoveryKey}, nil)
	})
	if err != nil {
		return nil, err
	}
	// From here on the user's devices are those of the SDK alone.
	if _, err := first.Logout(ctx); err != nil {
		return nil, fmt.Errorf("logging the first device out: %w", err)
	}
	return s, s.each(func(js interop.JS, name string) error {
		return js.Do(ctx, "acquainted", map[string]any{"name": name, "devices": n + 1, "seconds": sdkSeconds}, nil)
	})
}

func startSDK(c *crowded, tools interop.Tools) (interop.JS, error) {
	dir, err := os.MkdirTemp("", "keyherald-bench-")
	if err != nil {
		return interop.JS{}, err
	}
	c.closers = append(c.closers, func() error { return os.RemoveAll(dir) })
	js, err := tools.StartJS(filepath.Join(dir, "sdk"))
	if err != nil {
		return js, err
	}
	c.closers = append(c.closers, js.Close)
	return js, nil
}

func (s *sdkReset) each(do func(js interop.JS, name string) error) error {
	if err := do(s.resetter, sdkResetter); err != nil {
		return err
	}
	for i := range s.n {
		if err := do(s.receivers, sdkReceiver(i)); err != nil {
			return err
		}
	}
	return nil
}

// sdkTimes are how long a reset took.
type sdkTimes struct {
	// held is from the homeserver's answer that it has the new version, after which the SDK pushes, until the last device
	// held the key; handedOut ends already when the homeserver has handed the last message out. whole is from the call of
	// resetKeyBackup.
	held, handedOut, whole time.Duration
}

// round resets the backup, and returns also how many to-device messages came to the user's devices.
func (s *sdkReset) round(ctx context.Context) (took sdkTimes, messages int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, sdkSeconds*time.Second)
	defer cancel()
	before, err := s.edge.count()
	if err != nil {
		return took, 0, err
	}
	if before.sent != s.sent {
		return took, 0, fmt.Errorf("%d messages were sent that no round has counted", before.sent-s.sent)
	}
	type adoption struct {
		held sdkHeld
		at   time.Time
		err  error
	}
	old, adopted := s.held, make(chan adoption, s.n)
	for i := range s.n {
		go func() {
			var a adoption
			a.err = s.receivers.Do(ctx, "adopted", map[string]any{"name": sdkReceiver(i), "other_than": old, "seconds": sdkSeconds}, &a.held)
			a.at = time.Now()
			adopted <- a
		}()
	}
	began := time.Now()
	if err := s.resetter.Do(ctx, "reset", map[string]any{"name": sdkResetter, "recovery_key": s.recoveryKey}, &s.held); err != nil {
		return took, 0, err
	}
	var last time.Time
	for range s.n {
		a := <-adopted
		if a.err != nil {
			return took, 0, a.err
		}
		if a.held != s.held {
			return took, 0, fmt.Errorf("a client holds %+v, and the reset made %+v", a.held, s.held)
		}
		if a.at.After(last) {
			last = a.at
		}
	}
	var after edgeCount
	err = keyheraldtest.Until(ctx, time.Minute, func() error {
		if after, err = s.edge.count(); err == nil && after.sent != after.received {
			err = fmt.Errorf("%d messages came of %d", after.received-before.received, after.sent-before.sent)
		}
		return err
	})
	s.sent = after.sent
	return sdkTimes{held: last.Sub(after.created), handedOut: after.handedOut.Sub(after.created), whole: last.Sub(began)}, after.received - before.received, err
}
