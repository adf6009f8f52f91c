package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/postgres"
)

// rotate puts a new key into the KMS, sends the notification of whoever watches it, and watches until the last device has
// adopted.
func (w *World) rotate(ctx context.Context, s screen) (Result, error) {
	return w.follow(ctx, s, func(version string) (uuid.UUID, error) { return w.Notify(ctx, w.alice, version) })
}

// follow is rotate, with another way that the rotation of the new version is opened.
func (w *World) follow(ctx context.Context, s screen, open func(version string) (uuid.UUID, error)) (Result, error) {
	var result Result
	key, err := backupkey.Generate()
	if err != nil {
		return result, err
	}
	before := len(w.stock.Pushes())
	version, err := w.PutKey(ctx, kmsPath, key)
	if err != nil {
		return result, err
	}
	w.keys = append(w.keys, key)
	s.line("%s now has version %s of %s", w.KMSTitle(), version, kmsPath)
	began := time.Now()
	rotationID, err := open(version)
	if err != nil {
		return result, err
	}
	stockAdopted := make(chan time.Time, 1)
	watchCtx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	go w.watchStock(watchCtx, before, key, stockAdopted)
	view := &view{screen: s, began: began}
	var last time.Time
	stock, managed := false, false
	for {
		select {
		case at := <-stockAdopted:
			stock, last, view.stock, result.stock = true, later(last, at), at, at.Sub(began)
		case <-watchCtx.Done():
			return result, fmt.Errorf("the rotation did not come to its end within three minutes (stock client %v, managed receiver %v)", stock, managed)
		case <-time.After(30 * time.Millisecond):
		}
		lines, err := w.DB.Log(ctx, rotationID.String(), 1000)
		if err != nil {
			return result, err
		}
		if at, ok := view.show(lines); ok {
			managed, last = true, later(last, at)
		}
		r, _, err := w.DB.Rotation(ctx, rotationID)
		if err != nil {
			return result, err
		}
		if r.Facts.Attention != "" {
			return result, fmt.Errorf("the rotation needs attention: %s: %s", r.Facts.Attention, r.NextAction)
		}
		if r.Facts.State.Ended() && stock && managed {
			result.RotationState, result.ElapsedMS = string(r.Facts.State), last.Sub(began).Milliseconds()
			result.Outcomes, err = w.DB.Outcomes(ctx, rotationID)
			return result, err
		}
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// watchStock waits until the stock client was pushed a key that is the current version's: that is adoption.
func (w *World) watchStock(ctx context.Context, before int, key backupkey.Key, adopted chan<- time.Time) {
	for ctx.Err() == nil {
		for _, push := range w.stock.Pushes()[before:] {
			if push.Secret != key.RevealBase64() {
				continue
			}
			at := time.Now()
			current, err := w.stock.GetKeyBackupLatestVersion(ctx)
			if err == nil && strings.TrimRight(string(current.AuthData.PublicKey), "=") == key.PublicKey() {
				adopted <- at
				return
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// view prints the audit log while it grows.
type view struct {
	screen
	began time.Time
	shown int
	stock time.Time // when the stock client adopted, until it is told
}

func (v *view) say(at time.Time, who, what, color string) {
	elapsed := at.Sub(v.began).Round(time.Millisecond)
	v.line("%s  %-34s %s", v.paint("2", fmt.Sprintf("%7s", elapsed)), who, v.paint(color, what))
}

// show prints what is new, and returns when a managed receiver said that it holds the key.
func (v *view) show(lines []postgres.LogLine) (adopted time.Time, ok bool) {
	for _, line := range lines[min(v.shown, len(lines)):] {
		if line.Time.After(v.stock) {
			v.tellStock()
		}
		what, color := sentence(line)
		v.say(line.Time, line.Actor, what, color)
		if strings.Contains(string(line.Detail), `"adopted"`) {
			adopted, ok = line.Time, true
		}
	}
	v.shown = len(lines)
	v.tellStock()
	return adopted, ok
}

func (v *view) tellStock() {
	if !v.stock.IsZero() {
		v.say(v.stock, "the stock client", "holds the new key of the current version", "1;32")
		v.stock = time.Time{}
	}
}

// sentence is an event in words.
func sentence(line postgres.LogLine) (text, color string) {
	var detail map[string]any
	_ = json.Unmarshal(line.Detail, &detail)
	field := func(name string) string { return fmt.Sprint(detail[name]) }
	device := line.Subject[strings.LastIndex(line.Subject, "/")+1:]
	switch line.Action {
	case "notification.accepted":
		return "the KMS says: version " + field("version") + " is there", "1"
	case "change.found":
		return "found by looking: version " + field("version") + " is there", "1"
	case "trigger.queued":
		return "triggers " + device, "33"
	case "trigger.sent":
		return "the homeserver took the trigger", "33"
	case "progress.reported":
		text := strings.ReplaceAll(field("stage"), "_", " ")
		switch field("stage") {
		case "backup_created":
			text += ": version " + field("backup_version") + " beside the old " + field("old_backup_version")
		case "carried_over":
			text += ": " + field("carried") + " of " + field("total") + " room keys"
		}
		return text, "36"
	case "delivery.reported":
		return strings.ReplaceAll(field("outcome"), "_", " ") + ": " + device, "32"
	case "rotation.done":
		return "the rotation is done", "1;32"
	}
	return line.Action, "0"
}
