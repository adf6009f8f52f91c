package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/secret"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// stopped is an error with a word for the server: what needs somebody's attention.
type stopped struct {
	code protocol.ErrorCode
	err  error
}

func (s *stopped) Error() string { return string(s.code) + ": " + s.err.Error() }
func (s *stopped) Unwrap() error { return s.err }

func stop(code protocol.ErrorCode, err error) error { return &stopped{code, err} }

// advance does the order of work for one rotation, from the stage the journal has. Each step first makes sure of its
// effect on the homeserver, which is safe to repeat, and then commits its stage together with its report.
func (a *Account) advance(ctx context.Context, j *job) error {
	p, err := a.pin(ctx)
	if err != nil {
		return err
	}
	own, err := a.endpoint.Identities(ctx, a.config.UserID)
	if err != nil {
		return err
	}
	identity := own[a.config.UserID]
	if !identity.PinnedTo(p.OwnMasterKey) || !identity.Devices[a.client.DeviceID].CrossSigned {
		return stop(protocol.AttentionNotCrossSigned, errors.New("the user's identity is not the pinned one, or this device is not cross-signed by it"))
	}
	if refused, err := a.refuseOptedOut(ctx, j); err != nil || refused {
		return err
	}
	oldKey, err := a.holdOldKey(ctx, j)
	if err != nil {
		return err
	}
	fourS, err := a.checkRecoveryCopy(ctx)
	if err != nil {
		return err
	}
	key, err := a.fetch(ctx, j)
	if err != nil {
		return err
	}
	if err := a.createBackup(ctx, j, key, fourS, identity); err != nil {
		return err
	}
	if err := a.writeRecoveryCopy(ctx, j, key, fourS); err != nil {
		return err
	}
	// The push waits for the carry-over a while, never for its success.
	carryCtx, stopCarrying := context.WithCancel(ctx)
	defer stopCarrying()
	carried := make(chan error, 1)
	go func() { carried <- a.carryOver(carryCtx, j.clone(), oldKey, key) }()
	var carryErr error
	select {
	case carryErr = <-carried:
		carried = nil
	case <-time.After(a.config.Push.WaitForCarry):
	case <-ctx.Done():
		return ctx.Err()
	}
	pushErr := a.push(ctx, j, p)
	if errors.Is(pushErr, errOvertaken) {
		// What is not carried over stays journaled, and goes straight to the newer version.
		stopCarrying()
	}
	if carried != nil {
		carryErr = <-carried
	}
	if err := errors.Join(pushErr, carryErr); err != nil {
		return err
	}
	j.Stage, j.Carried, j.Ended, j.LastError = protocol.StagePushed, true, true, ""
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error { return a.store.keepJob(ctx, j, a.now()) })
}

func (j *job) clone() *job {
	c := *j
	return &c
}

// commit journals the job and queues the report in one transaction.
func (a *Account) commit(ctx context.Context, j *job, report protocol.Progress) error {
	report.RotationID, report.Attempt = j.Rotation, j.Attempt
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		if err := a.store.keepJob(ctx, j, a.now()); err != nil {
			return err
		}
		return a.report(ctx, report)
	})
}

// report queues a progress report to the bot's device that sent the last trigger; there is an Olm session with it, so
// no key is claimed; none is sent any more when the enrollment has ended. It must run inside InTxn. A stage of an attempt is reported once.
func (a *Account) report(ctx context.Context, progress protocol.Progress) error {
	if p, err := a.pin(ctx); err != nil || !p.Accepted {
		return err
	}
	text, err := a.store.get(ctx, "bot_keys")
	if err != nil || text == "" {
		return err
	}
	var bot crosssigning.Device
	if err := json.Unmarshal([]byte(text), &bot); err != nil {
		return fmt.Errorf("reading the bot's device: %w", err)
	}
	if progress.ReportID, err = uuid.NewV7(); err != nil {
		return fmt.Errorf("making a report id: %w", err)
	}
	if progress.Store, err = a.nextMark(ctx); err != nil {
		return err
	}
	progress.At = protocol.At(a.now())
	key := fmt.Sprintf("report/%s/%d/%s", progress.RotationID, progress.Attempt, progress.Stage)
	if count, err := a.reclaims(ctx); err != nil {
		return err
	} else if count > 0 {
		key += fmt.Sprintf("/reclaim/%d", count)
	}
	if progress.Round > 0 {
		key += fmt.Sprintf("/round/%d", progress.Round)
	}
	if progress.Error != nil {
		key += "/" + string(progress.Error.Code)
	}
	if progress.Carried != nil {
		// What was incomplete may be completed later, and that is news; that nothing was left to carry then, is not.
		key += fmt.Sprintf("/%t", progress.Carried.Complete)
		if !progress.Carried.Complete {
			key += fmt.Sprintf("/%d", progress.Carried.Carried)
		}
	}
	return a.endpoint.Queue(ctx, todevice.Outgoing{Key: key, To: bot, Type: protocol.TypeProgress.Type, Content: progress, Again: true}, nil)
}

// holdOldKey is step 2: the private key of the current version, proved by its public key. No version, nothing to hold.
func (a *Account) holdOldKey(ctx context.Context, j *job) (backupkey.Key, error) {
	if !j.OldSeen {
		current, err := a.backup.Current(ctx)
		if err != nil {
			return backupkey.Key{}, err
		}
		j.OldSeen = true
		if current != nil {
			j.OldVersion, j.PublicKey = current.ID.String(), current.PublicKey
		}
		if err := a.endpoint.InTxn(ctx, func(ctx context.Context) error { return a.store.keepJob(ctx, j, a.now()) }); err != nil {
			return backupkey.Key{}, err
		}
	}
	if j.OldVersion == "" {
		return backupkey.Key{}, nil
	}
	oldPublic := j.PublicKey
	key, ok, err := a.findKey(ctx, oldPublic)
	if err != nil {
		return key, err
	}
	if !ok {
		return key, stop(protocol.AttentionOldKeyMissing, fmt.Errorf("the private key of key-backup version %s is not to be had", j.OldVersion))
	}
	return key, nil
}

// searchKey looks for the private key of a public key: in the own store, the KMS's versions, the recovery copy.
func (a *Account) searchKey(ctx context.Context, publicKey string) (backupkey.Key, bool, error) {
	if key, ok, err := a.store.key(ctx, publicKey); err != nil || ok {
		return key, ok, err
	}
	versions, err := a.kms.Versions(ctx, a.config.KMS.Path)
	if err != nil && !errors.Is(err, kms.ErrNotFound) {
		return backupkey.Key{}, false, a.kmsError(err)
	}
	for _, version := range slices.Backward(versions) {
		value, err := a.kms.Fetch(ctx, a.config.KMS.Path, version)
		if err == nil && value.Key.Fits(publicKey) {
			return value.Key, true, a.store.putKey(ctx, value.Key)
		}
	}
	raw, err := a.store.sealedValue(ctx, "4s")
	if err != nil || raw == nil {
		return backupkey.Key{}, false, err
	}
	has, err := a.backup.HasStorage(ctx)
	if err != nil || !has {
		return backupkey.Key{}, false, err
	}
	fourS, err := a.backup.CheckWritable(ctx, raw)
	if errors.Is(err, backup.ErrNotWritable) {
		return backupkey.Key{}, false, nil
	} else if err != nil {
		return backupkey.Key{}, false, err
	}
	key, ok, err := a.backup.ReadRecoveryCopy(ctx, fourS)
	if err != nil || !ok || !key.Fits(publicKey) {
		return backupkey.Key{}, false, nil
	}
	return key, true, a.store.putKey(ctx, key)
}

// checkRecoveryCopy is step 3. The 4S key is nil where the user has no secret storage, or a stale copy is allowed.
func (a *Account) checkRecoveryCopy(ctx context.Context) (*ssss.Key, error) {
	has, err := a.backup.HasStorage(ctx)
	if err != nil || !has {
		return nil, err
	}
	raw, err := a.store.sealedValue(ctx, "4s")
	if err != nil {
		return nil, err
	}
	fourS, err := a.backup.CheckWritable(ctx, raw)
	if errors.Is(err, backup.ErrNotWritable) {
		if a.config.Recovery == "allow_stale" {
			return nil, nil
		}
		return nil, stop(protocol.AttentionRecoveryCopyNotWritable, err)
	}
	return fourS, err
}

// fetch is step 4: the current version, which is meant even if it is newer than the trigger's.
func (a *Account) fetch(ctx context.Context, j *job) (backupkey.Key, error) {
	version := j.KMSVersion
	if version == "" && j.Trigger.Action == protocol.ActionRotate {
		return a.generate(ctx, j)
	}
	if version == "" {
		current, err := a.kms.Current(ctx, a.config.KMS.Path)
		if err != nil {
			return backupkey.Key{}, a.kmsError(err)
		}
		version = j.Trigger.KMS.Version
		newer, err := a.newer(ctx, j, version, current)
		if err != nil {
			return backupkey.Key{}, a.kmsError(err)
		}
		if newer {
			return backupkey.Key{}, fmt.Errorf("%s: the KMS has version %s, and the trigger names %s: %w", a.config.KMS.Path, current, version, kms.ErrUnavailable)
		}
		version = current
	}
	return a.fetchVersion(ctx, j, version)
}

// fetchVersion fetches a version and checks it against the KMS's metadata.
func (a *Account) fetchVersion(ctx context.Context, j *job, version string) (backupkey.Key, error) {
	value, err := a.kms.Fetch(ctx, a.config.KMS.Path, version)
	if err != nil {
		return backupkey.Key{}, a.kmsError(err)
	}
	if err := value.Verify(); err != nil {
		// Some systems show a version a moment before its metadata: that is no reason to call anybody yet.
		if kms.Retryable(err) && j.Tries < 2 {
			return backupkey.Key{}, err
		}
		return backupkey.Key{}, stop(protocol.AttentionKeyMismatch, err)
	}
	if j.KMSVersion == version {
		return value.Key, nil
	}
	j.KMSVersion, j.Stage = version, protocol.StageFetched
	if err := a.store.putKey(ctx, value.Key); err != nil {
		return backupkey.Key{}, err
	}
	return value.Key, a.commit(ctx, j, protocol.Progress{Stage: protocol.StageFetched, KMSVersion: version})
}

// newer reports whether the trigger's version came after what the KMS calls current, so that this answer is a stale one.
// Where names tell no order, the list of versions does, and one that it does not have yet is newer too. But there an older
// version may have been made the current one again, so that is waited for a few times only.
func (a *Account) newer(ctx context.Context, j *job, version, current string) (bool, error) {
	newer, ordered := kms.NewerVersion(version, current)
	if ordered || version == current || version == "" || j.Tries >= 3 {
		return newer, nil
	}
	versions, err := a.kms.Versions(ctx, a.config.KMS.Path)
	if err != nil {
		return false, err
	}
	at := slices.Index(versions, version)
	return at < 0 || at > slices.Index(versions, current), nil
}

func (a *Account) kmsError(err error) error {
	switch {
	case errors.Is(err, backupkey.ErrNotAKey):
		return stop(protocol.AttentionKeyNotUsable, err)
	case errors.Is(err, kms.ErrForbidden), errors.Is(err, kms.ErrNotFound):
		return stop(protocol.AttentionKMSForbidden, err)
	case errors.Is(err, secret.ErrMismatch):
		return stop(protocol.AttentionKeyMismatch, err)
	}
	return err
}

// createBackup is step 5. The master key is read from secret storage for the moment and dropped.
func (a *Account) createBackup(ctx context.Context, j *job, key backupkey.Key, fourS *ssss.Key, identity crosssigning.Identity) error {
	if j.NewVersion != "" {
		current, err := a.backup.Current(ctx)
		if err != nil {
			return err
		}
		if current == nil || current.ID.String() != j.NewVersion || !current.HeldBy(key) {
			return stop(protocol.AttentionBackupChanged, backup.ErrChanged)
		}
		// Reported once more for a new attempt: the server may have lost the first report with its database.
		return a.commit(ctx, j, protocol.Progress{Stage: protocol.StageBackupCreated, KMSVersion: j.KMSVersion, Backup: &protocol.BackupReport{
			Version: j.NewVersion, OldVersion: j.OldVersion, PublicKey: current.PublicKey}})
	}
	signers := []backup.Signer{a.endpoint.SignJSON}
	if fourS != nil {
		master, err := a.crossSigningKey(ctx, event.AccountDataCrossSigningMaster, fourS)
		if err == nil && master.PublicKey() == identity.MasterKey {
			signers = append(signers, func(_ context.Context, obj any) (id.KeyID, string, error) {
				signature, err := master.SignJSON(obj)
				return id.NewKeyID(id.KeyAlgorithmEd25519, master.PublicKey().String()), signature, err
			})
		} else if err != nil && !errors.Is(err, mautrix.MNotFound) {
			return err
		}
	}
	// Before the new version exists: if this work is overtaken just after it does, the old one must not be forgotten.
	if j.OldVersion != "" && !key.Fits(j.PublicKey) {
		if err := a.store.toCarry(ctx, j, j.OldVersion, a.now()); err != nil {
			return err
		}
	}
	// Where the user reset his key backup since, the version that this device made last holds what his own lacks.
	if last, err := a.store.get(ctx, "our_version"); err != nil {
		return err
	} else if last != "" && last != j.OldVersion {
		there, err := a.backup.Get(ctx, id.KeyBackupVersion(last))
		if err != nil {
			return err
		}
		if there != nil {
			if err := a.store.toCarry(ctx, j, last, a.now()); err != nil {
				return err
			}
		}
	}
	version, created, err := a.backup.Ensure(ctx, key, id.KeyBackupVersion(j.OldVersion), signers...)
	if errors.Is(err, backup.ErrChanged) {
		return stop(protocol.AttentionBackupChanged, err)
	} else if err != nil {
		return err
	}
	j.NewVersion, j.Stage = version.ID.String(), protocol.StageBackupCreated
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		for name, value := range map[string]string{"our_version": j.NewVersion, "our_public_key": version.PublicKey, "our_kms_version": j.KMSVersion} {
			if err := a.store.set(ctx, name, value); err != nil {
				return err
			}
		}
		return a.commit(ctx, j, protocol.Progress{Stage: protocol.StageBackupCreated, KMSVersion: j.KMSVersion, Backup: &protocol.BackupReport{
			Version: j.NewVersion, OldVersion: j.OldVersion, PublicKey: version.PublicKey, Created: created}})
	})
}

// writeRecoveryCopy is step 6; it is done again after a restart, which is harmless.
func (a *Account) writeRecoveryCopy(ctx context.Context, j *job, key backupkey.Key, fourS *ssss.Key) error {
	state := protocol.RecoveryCopyNone
	if fourS != nil {
		if err := a.backup.WriteRecoveryCopy(ctx, key, fourS); err != nil {
			return err
		}
		state = protocol.RecoveryCopyWritten
	} else if has, err := a.backup.HasStorage(ctx); err != nil {
		return err
	} else if has {
		state = protocol.RecoveryCopyStale
	}
	j.Stage = protocol.StageRecoveryCopyWritten
	return a.commit(ctx, j, protocol.Progress{Stage: protocol.StageRecoveryCopyWritten, RecoveryCopy: state})
}
