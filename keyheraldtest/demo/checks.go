package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/crypto/utils"
	"maunium.net/go/mautrix/event"

	"github.com/keyherald/keyherald/keyheraldtest"
)

// checks look at what came about from the receiving side, and search for the keys where they must not be.
func (w *World) checks(ctx context.Context, s screen, result *Result) {
	recovery := utils.DecodeBase58RecoveryKey(strings.Join(strings.Fields(w.recoveryKey), ""))
	secrets := map[string][]byte{"the newest key": w.newest().Reveal(), "the recovery key": recovery}
	for i, key := range w.keys[:len(w.keys)-1] {
		secrets[fmt.Sprintf("key %d", i+1)] = key.Reveal()
	}
	search := keyheraldtest.NewSearch(secrets)
	for _, check := range []struct {
		what string
		do   func() error
	}{
		{"every target has its outcome, and the second managed device adopted", func() error { return w.checkOutcomes(result.Outcomes) }},
		{"the device that nobody verified got nothing, and neither did Bob", func() error {
			if n := len(w.stranger.Pushes()) + len(w.bobs.Pushes()); n > 0 {
				return fmt.Errorf("%d pushes came to them", n)
			}
			return nil
		}},
		{"the stock client reads history that only the old key backup held", func() error { return w.checkHistory(ctx, w.stock) }},
		{"a new login with the recovery key finds the new key and reads it too", func() error { return w.checkNewLogin(ctx) }},
		{"the old key backup is still there", func() error {
			_, err := w.stock.GetKeyBackupVersion(ctx, w.oldVersion)
			return err
		}},
		{"the change that nobody told of was found, and came to its end alike", func() error { return w.checkFound(ctx) }},
		{"the server's credentials cannot read the key in the KMS (keyherald check)", func() error {
			out, err := w.Keyherald(ctx, "check")
			if err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			return nil
		}},
		{"the KMS and the audit log know of the same versions (keyherald audit completeness)", func() error {
			out, err := w.Keyherald(ctx, "audit", "completeness")
			if err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			return nil
		}},
		{"no key is in the database", func() error {
			dump, err := w.Postgres.Dump(ctx, w.Database.Name)
			if err == nil && !bytes.Contains(dump, []byte(w.alice)) {
				err = errors.New("the dump does not even name Alice")
			}
			return errors.Join(err, clean(search, "the database", dump))
		}},
		{"no key is in a log", func() error { return w.checkLogs(search) }},
		{"no key is in what the server said or heard", func() error {
			var all error
			for _, name := range slices.Sorted(maps.Keys(w.ServerTaps)) {
				seen := w.ServerTaps[name].Bytes()
				if len(seen) == 0 {
					all = errors.Join(all, fmt.Errorf("nothing was seen of its traffic with %s", name))
				}
				all = errors.Join(all, clean(search, "the traffic with "+name, seen))
			}
			return all
		}},
		{"the same search does find the new key on its way from the KMS to the device", func() error {
			if found := search.In(w.deviceTap.Bytes()); !slices.ContainsFunc(found, func(form string) bool { return strings.HasPrefix(form, "the newest key") }) {
				return errors.New("it does not: the search proves nothing")
			}
			return nil
		}},
	} {
		if err := s.step(check.what, check.do); err != nil {
			s.line("  %s", err)
			result.Failed = append(result.Failed, check.what)
		}
	}
}

func clean(search *keyheraldtest.Search, where string, haystack []byte) error {
	if found := search.In(haystack); len(found) > 0 {
		return fmt.Errorf("%s: found %s", where, strings.Join(found, ", "))
	}
	return nil
}

func (w *World) checkOutcomes(outcomes map[string]int) error {
	want := map[string]int{"sent": 1, "adopted": 1, "skipped_unverified": 1}
	if !maps.Equal(outcomes, want) {
		return fmt.Errorf("the outcomes are %v and not %v", outcomes, want)
	}
	return nil
}

func (w *World) checkHistory(ctx context.Context, client *keyheraldtest.Client) error {
	key, err := backup.MegolmBackupKeyFromBytes(w.newest().Reveal())
	if err != nil {
		return err
	}
	text, err := client.ReadHistory(ctx, w.room, w.message, key)
	if err != nil {
		return err
	}
	if text != history {
		return fmt.Errorf("it reads %q", text)
	}
	return nil
}

func (w *World) checkNewLogin(ctx context.Context) error {
	fresh, err := w.Login(ctx, w.alice, "FRESH")
	if err != nil {
		return err
	}
	if err := fresh.Verify(ctx, w.recoveryKey); err != nil {
		return err
	}
	keyID, metadata, err := fresh.Machine.SSSS.GetDefaultKeyData(ctx)
	if err != nil {
		return err
	}
	fourS, err := metadata.VerifyRecoveryKey(keyID, w.recoveryKey)
	if err != nil {
		return err
	}
	copied, err := fresh.Machine.SSSS.GetDecryptedAccountData(ctx, event.AccountDataMegolmBackupKey, fourS)
	if err != nil {
		return err
	}
	if !bytes.Equal(copied, w.newest().Reveal()) {
		return errors.New("secret storage has another key")
	}
	return w.checkHistory(ctx, fresh)
}

// checkLogs searches every log, and what the homeserver keeps: it carried the pushes, and may not know what was in them.
func (w *World) checkLogs(search *keyheraldtest.Search) error {
	var all error
	searched := 0
	for _, pattern := range []string{"*.log", "*.db", "*.db-wal"} {
		files, err := filepath.Glob(filepath.Join(w.config.Dir, pattern))
		if err != nil {
			return err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			searched++
			all = errors.Join(all, clean(search, filepath.Base(file), text))
		}
	}
	text, err := os.ReadFile(w.Postgres.LogFile())
	if err != nil || searched < 4 {
		return errors.Join(err, fmt.Errorf("only %d files were searched", searched))
	}
	return errors.Join(all, clean(search, "PostgreSQL's log", text))
}
