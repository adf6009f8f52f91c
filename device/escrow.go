package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
)

// Escrow is where the user's new recovery key goes when it is replaced: files or paths of the KMS whose names begin with
// this one and end with the new key's id in secret storage. Without it, the place of a first identity's recovery key is
// meant.
type Escrow struct {
	File string `yaml:"file,omitempty"`
	KMS  string `yaml:"kms,omitempty"`
}

func (c AccountConfig) escrow() Escrow {
	if c.Escrow == (Escrow{}) {
		return Escrow{File: c.Verification.BootstrapTo, KMS: c.Verification.BootstrapToKMS}
	}
	return c.Escrow
}

// keepReplaced puts a new recovery key where the config says, in a place of its own that its id names: nothing is ever
// written over, and what is there already was put there by an earlier try. It returns the place.
func (a *Account) keepReplaced(ctx context.Context, keyID, recoveryKey string) (string, error) {
	escrow := a.config.escrow()
	if escrow.KMS == "" {
		return escrow.File + "." + keyID, writeWhole(escrow.File+"."+keyID, recoveryKey+"\n")
	}
	place := escrow.KMS + "/" + keyID
	if err := a.kms.Create(ctx, place, recoveryKey); err != nil && !errors.Is(err, kms.ErrExists) {
		return "", fmt.Errorf("keeping the new recovery key: %w", err)
	}
	// The device may well have no right to read there. Where it has, a look costs nothing.
	want, err := backupkey.Parse(recoveryKey)
	if err != nil {
		return "", fmt.Errorf("keeping the new recovery key: %w", err)
	}
	kept, err := a.kms.Fetch(ctx, place, "")
	if err == nil && !want.Fits(kept.Key.PublicKey()) {
		return "", fmt.Errorf("%s of the KMS holds another recovery key than the one that was put there", place)
	}
	return "the KMS's " + place, nil
}

// writeWhole writes a secret's file, 0600, whole or not at all. Where it is there already it must be the same.
func writeWhole(path, content string) error {
	if there, err := os.ReadFile(path); err == nil {
		if string(there) != content {
			return fmt.Errorf("%s is there already and holds something else", path)
		}
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("writing the new recovery key: %w", err)
	}
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("writing the new recovery key: %w", err)
	}
	if err := writeNew(temporary, content); err != nil {
		return fmt.Errorf("writing the new recovery key: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("writing the new recovery key: %w", err)
	}
	// The name must last as well as the content.
	directory, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("writing the new recovery key: %w", err)
	}
	return errors.Join(directory.Sync(), directory.Close())
}
