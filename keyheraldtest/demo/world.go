package demo

import (
	"context"
	"net/url"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/company"
)

var kmsPath = company.KMSPath("alice")

// World is the company with its people, who are real as well.
type World struct {
	*company.Company
	config Config
	// deviceTap is between the KMS and the managed devices.
	deviceTap *keyheraldtest.Tap
	deviceKMS string

	alice, bob      id.UserID
	stock, stranger *keyheraldtest.Client
	bobs            *keyheraldtest.Client
	recoveryKey     string
	// keys are all that were Alice's, the newest last.
	keys       []backupkey.Key
	room       id.RoomID
	message    id.EventID
	oldVersion id.KeyBackupVersion
	found      found
}

func (w *World) newest() backupkey.Key { return w.keys[len(w.keys)-1] }

// build starts the company. What was started is returned with an error as well.
func build(ctx context.Context, config Config, s screen) (*World, error) {
	c, err := company.Start(ctx, company.Config{Programs: config.Programs, Dir: config.Dir, Homeserver: config.Homeserver, KMS: config.KMS, Reconcile: config.reconcile}, s.step)
	w := &World{Company: c, config: config}
	if err != nil {
		return w, err
	}
	deviceURL, err := c.DeviceKMS("alice")
	if err != nil {
		return w, err
	}
	u, err := url.Parse(deviceURL)
	if err != nil {
		return w, err
	}
	if w.deviceTap, err = keyheraldtest.StartTap(u.Host); err != nil {
		return w, err
	}
	c.OnClose(w.deviceTap.Close)
	w.deviceKMS, err = w.deviceTap.Through(deviceURL)
	return w, err
}

// tellLogs helps where something did not come about.
func (w *World) tellLogs(s screen) error {
	for _, name := range []string{"keyherald", "keyherald-device", "homeserver"} {
		text, err := w.Log(name)
		if err != nil {
			continue
		}
		s.title(name + ".log")
		s.lines(text)
	}
	return nil
}
