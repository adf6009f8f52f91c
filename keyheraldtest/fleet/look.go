package fleet

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/keyheraldtest/company"
)

// each does something for every user, so many at a time, and ends with the first error.
func (f *run) each(atOnce int, do func(user id.UserID) error) error {
	errs := make(chan error, len(f.users))
	var workers sync.WaitGroup
	for worker := range atOnce {
		workers.Go(func() {
			for i := worker; i < len(f.users); i += atOnce {
				if err := do(f.users[i]); err != nil {
					errs <- fmt.Errorf("%s: %w", f.users[i], err)
					return
				}
			}
		})
	}
	workers.Wait()
	close(errs)
	return <-errs
}

// look asks the audit log, the homeserver and the KMS what there is, each by itself and none of them the fleet.
func (f *run) look(ctx context.Context, result *Result) error {
	var err error
	if result.Enrolled, err = f.count(ctx, "device.enrolled"); err != nil {
		return err
	}
	// What people did about a single user or device; a grant and the server's start are about none, and one command put
	// everybody on the roster.
	err = f.auditor.QueryRow(ctx, `SELECT COUNT(*) FROM audit_log WHERE actor LIKE 'local:%' AND subject LIKE '@%' AND action <> 'roster.user_added'`).Scan(&result.ManualSteps)
	if err != nil {
		return err
	}
	if err := f.compliance(ctx, result); err != nil {
		return err
	}
	told, err := f.told(ctx)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	return f.each(4, func(user id.UserID) error {
		var wrong error
		for _, action := range []string{"grant.used", "device.enrolled", "rotation.done"} {
			if n := told[action][user]; n != 1 {
				wrong = errors.Join(wrong, fmt.Errorf("the audit log has %s %d times", action, n))
			}
		}
		wrong = errors.Join(wrong, f.recoverable(ctx, user))
		mu.Lock()
		defer mu.Unlock()
		if wrong == nil {
			result.Recoverable++
		} else {
			result.Wrong = append(result.Wrong, fmt.Sprintf("%s: %s", user, wrong))
		}
		return nil
	})
}

// compliance asks the server who of the roster is current, and of how many.
func (f *run) compliance(ctx context.Context, result *Result) error {
	printed, err := f.Keyherald(ctx, "compliance", "--json")
	if err != nil {
		return err
	}
	var view struct {
		Current int            `json:"current"`
		Of      int            `json:"of"`
		States  map[string]int `json:"states"`
	}
	if err := json.Unmarshal([]byte(printed), &view); err != nil {
		return fmt.Errorf("reading what keyherald compliance prints: %w", err)
	}
	result.Current = view.Current
	if view.Current != f.Accounts || view.Of != f.Accounts {
		result.Wrong = append(result.Wrong, fmt.Sprintf("%d of %d are current: %v", view.Current, view.Of, view.States))
	}
	return nil
}

// told counts what the audit log tells of each user.
func (f *run) told(ctx context.Context) (map[string]map[id.UserID]int, error) {
	rows, err := f.auditor.Query(ctx, `SELECT action, split_part(subject, '/', 1) FROM audit_log WHERE action IN ('grant.used', 'device.enrolled', 'rotation.done') AND outcome = 'accepted'`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	told := map[string]map[id.UserID]int{}
	for rows.Next() {
		var action string
		var user id.UserID
		if err := rows.Scan(&action, &user); err != nil {
			return nil, err
		}
		if told[action] == nil {
			told[action] = map[id.UserID]int{}
		}
		told[action][user]++
	}
	return told, rows.Err()
}

// recoverable logs a new device of a user in, and takes the way of a new hire with it: the recovery key that the KMS has
// opens his secret storage, in which are the identity that the homeserver presents, and the key of his key backup, which is the
// KMS's. The managed device is signed by that identity.
func (f *run) recoverable(ctx context.Context, user id.UserID) error {
	client, err := mautrix.NewClient(f.Homeserver.URL, "", f.asToken)
	if err != nil {
		return err
	}
	_, err = client.Login(ctx, &mautrix.ReqLogin{Type: mautrix.AuthTypeAppservice, DeviceID: id.DeviceID("LOOK" + rand.Text()[:8]), StoreCredentials: true,
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: user.String()}})
	if err != nil {
		return err
	}
	keys, err := client.QueryKeys(ctx, &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{user: {}}})
	if err != nil {
		return err
	}
	identity := crosssigning.Read(keys, user)
	if managed, there := identity.Devices[deviceID(user)]; !there || !managed.CrossSigned {
		return errors.New("the homeserver does not present the managed device as cross-signed")
	}
	kept, err := f.recovery.Get(ctx, recoveryPath(user))
	if err != nil {
		return fmt.Errorf("the KMS has no recovery key: %w", err)
	}
	storage := ssss.NewSSSSMachine(client)
	keyID, metadata, err := storage.GetDefaultKeyData(ctx)
	if err != nil {
		return err
	}
	fourS, err := metadata.VerifyRecoveryKey(keyID, string(kept.Value))
	if err != nil {
		return errors.New("the recovery key of the KMS does not open the secret storage")
	}
	seed, err := storage.GetDecryptedAccountData(ctx, event.AccountDataCrossSigningMaster, fourS)
	if err != nil {
		return err
	}
	master, err := olm.NewPKSigningFromSeed(seed)
	if err != nil || !identity.PinnedTo(master.PublicKey()) {
		return errors.New("the identity in secret storage is not the one that the homeserver presents")
	}
	return f.backedUp(ctx, client, storage, fourS, user)
}

// backedUp compares the key backup, its copy in secret storage, and the KMS.
func (f *run) backedUp(ctx context.Context, client *mautrix.Client, storage *ssss.Machine, fourS *ssss.Key, user id.UserID) error {
	current, err := client.GetKeyBackupLatestVersion(ctx)
	if err != nil {
		return err
	}
	held, err := f.Setec.Current(ctx, company.KMSPath(user.Localpart()))
	if err != nil {
		return err
	}
	key, err := backupkey.Parse(held)
	if err != nil {
		return err
	}
	if !key.Fits(current.AuthData.PublicKey.String()) {
		return errors.New("the key backup is not of the KMS's key")
	}
	copied, err := storage.GetDecryptedAccountData(ctx, event.AccountDataMegolmBackupKey, fourS)
	if err != nil {
		return err
	}
	inStorage, err := backupkey.FromBytes(copied)
	if err != nil || !inStorage.Fits(current.AuthData.PublicKey.String()) {
		return errors.New("the recovery copy is not the key of the key backup")
	}
	return nil
}
