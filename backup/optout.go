package backup

import (
	"context"
	"errors"
	"fmt"

	"maunium.net/go/mautrix"
)

// The account data by which a user's clients remember that he wants no key backup: MSC4287, and what Element wrote before.
const (
	accountDataKeyBackup      = "m.key_backup"
	accountDataBackupDisabled = "m.org.matrix.custom.backup_disabled"
)

// OptedOut reports whether the user switched key backup off. The older account data counts only where the newer one says
// nothing; without either he has not.
func (c *Client) OptedOut(ctx context.Context) (bool, error) {
	var wish struct {
		Enabled *bool `json:"enabled"`
	}
	if err := c.accountData(ctx, accountDataKeyBackup, &wish); err != nil {
		return false, err
	}
	if wish.Enabled != nil {
		return !*wish.Enabled, nil
	}
	var older struct {
		Disabled bool `json:"disabled"`
	}
	err := c.accountData(ctx, accountDataBackupDisabled, &older)
	return older.Disabled, err
}

// accountData leaves into as it is where there is none of the type.
func (c *Client) accountData(ctx context.Context, name string, into any) error {
	err := c.matrix.GetAccountData(ctx, name, into)
	if err != nil && !errors.Is(err, mautrix.MNotFound) {
		return fmt.Errorf("reading the account data %s: %w", name, err)
	}
	return nil
}
