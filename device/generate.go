package device

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/protocol"
)

// generate is step 4 where the device makes the key: it is journaled sealed, with the KMS's version it is to follow,
// before the KMS hears of it, so that every try writes the same one. Where somebody put another version into the KMS
// meanwhile, that one is meant.
func (a *Account) generate(ctx context.Context, j *job) (backupkey.Key, error) {
	key, after, err := a.generated(ctx, j)
	if err != nil {
		return key, err
	}
	version, err := a.kms.Write(ctx, a.config.KMS.Path, after, key)
	if errors.Is(err, kms.ErrConflict) {
		a.log.Warn().Msg("The KMS has another new version meanwhile: the key that was made here is dropped, and that one is used")
		if version, err = a.kms.Current(ctx, a.config.KMS.Path); err != nil {
			return key, a.kmsError(err)
		}
		return a.fetchVersion(ctx, j, version)
	} else if err != nil {
		return key, a.kmsError(err)
	}
	j.KMSVersion, j.Stage = version, protocol.StageFetched
	if err := a.store.putKey(ctx, key); err != nil {
		return key, err
	}
	return key, a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		if err := a.store.forgetSealed(ctx, generatedName(j)); err != nil {
			return err
		}
		return a.commit(ctx, j, protocol.Progress{Stage: protocol.StageFetched, KMSVersion: version})
	})
}

func generatedName(j *job) string { return "generated/" + j.Rotation.String() }

// generated is the key that was made for a rotation, and the version it is to follow.
func (a *Account) generated(ctx context.Context, j *job) (key backupkey.Key, after string, err error) {
	raw, err := a.store.sealedValue(ctx, generatedName(j))
	if err != nil {
		return key, "", err
	}
	if raw != nil {
		if len(raw) < 32 {
			return key, "", errors.New("the key that was made for a rotation is damaged in the store")
		}
		key, err = backupkey.FromBytes(raw[:32])
		return key, string(raw[32:]), err
	}
	after, err = a.kms.Current(ctx, a.config.KMS.Path)
	if errors.Is(err, kms.ErrNotFound) {
		after = ""
	} else if err != nil {
		return key, "", a.kmsError(err)
	}
	if key, err = backupkey.Generate(); err != nil {
		return key, "", err
	}
	return key, after, a.store.putSealed(ctx, generatedName(j), append(key.Reveal(), after...))
}

// forgetSealed removes a sealed value.
func (s *store) forgetSealed(ctx context.Context, name string) error {
	if _, err := s.db.Exec(ctx, `DELETE FROM sealed WHERE name = $1`, name); err != nil {
		return fmt.Errorf("forgetting a sealed value: %w", err)
	}
	return nil
}
