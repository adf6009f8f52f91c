package company

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
)

// Login logs a stock client in, which Close ends.
func (c *Company) Login(ctx context.Context, user id.UserID, device id.DeviceID) (*keyheraldtest.Client, error) {
	client, err := keyheraldtest.Login(ctx, c.Homeserver.URL, user, Password, device)
	if err == nil {
		c.OnClose(func() error { client.Close(); return nil })
	}
	return client, err
}

// Fleet makes a configuration of keyherald-device by a name, and runs it until Close or stop.
func (c *Company) Fleet(name string, statusInterval time.Duration) (stop func() error, err error) {
	config := fmt.Sprintf("accounts_dir: %[1]s/accounts.d\nstate_dir: %[1]s/state\npickle_key_file: %[1]s-pickle.key\nstatus_interval: %[2]s\n", name, statusInterval)
	if err := c.Write(name+".yaml", config); err != nil {
		return nil, err
	}
	return c.Run("keyherald-device", "run", "-c", name+".yaml")
}

// Account is a managed device to be enrolled.
type Account struct {
	// Name is the account's, in Fleet.
	Name, Fleet string
	User        id.UserID
	RecoveryKey string
	// KMS is the URL that DeviceKMS gave, or one that leads there.
	KMS string
}

// Enroll sets an account up as its operator would, and returns when the fleet that runs has found it and it has reported.
func (c *Company) Enroll(ctx context.Context, account Account) (postgres.Device, error) {
	var found postgres.Device
	name := "Keyherald (" + account.Name + ")"
	secrets := filepath.Join(c.config.Dir, account.Name)
	kms, err := c.kms.device(ctx, c, account.User.Localpart(), account.Name)
	if err != nil {
		return found, err
	}
	for file, content := range map[string]string{
		account.Name + ".password": Password, account.Name + ".recovery-key": account.RecoveryKey,
		filepath.Join(account.Fleet, "accounts.d", account.Name+".yaml"): fmt.Sprintf(`user_id: "%[1]s"
homeserver: %[2]s
device_name: %[3]s
login: {password_file: "%[4]s.password"}
verification: {recovery_key_file: "%[4]s.recovery-key"}
kms: {name: corporate, %[7]s, url: "%[5]s", path: %[6]s}
`, account.User, c.Homeserver.URL, name, secrets, account.KMS, KMSPath(account.User.Localpart()), kms),
	} {
		if err := c.Write(file, content); err != nil {
			return found, err
		}
	}
	code, err := c.Keyherald(ctx, "enroll", "--user", account.User.String())
	if err != nil {
		return found, err
	}
	if err := c.Write("code", code); err != nil {
		return found, err
	}
	if _, err := c.Command(ctx, "keyherald-device", "enroll", "-c", account.Fleet+".yaml", "--account", account.Name, "--code-file", "code"); err != nil {
		return found, err
	}
	return found, keyheraldtest.Until(ctx, 2*time.Minute, func() error {
		devices, err := c.DB.Devices(ctx, account.User)
		if err != nil {
			return err
		}
		for _, d := range devices {
			if d.Name == name && !d.LastSeen.IsZero() {
				found = d
				return nil
			}
		}
		return errors.New("the managed device has not reported yet")
	})
}

// Notify sends the signed CloudEvent that a user's key has a new version, and returns the rotation it opened.
func (c *Company) Notify(ctx context.Context, user id.UserID, version string) (uuid.UUID, error) {
	c.notifications++
	body, err := json.Marshal(map[string]any{"specversion": "1.0", "type": "com.example.secret.rotated", "source": "/kms", "id": fmt.Sprintf("notification-%d", c.notifications),
		"subject": KMSPath(user.Localpart()), "datacontenttype": "application/json", "data": map[string]string{"version": version}})
	if err != nil {
		return uuid.Nil, err
	}
	now, message := time.Now(), uuid.NewString()
	signature, err := intake.Sign(c.signingKey, message, now, body)
	if err != nil {
		return uuid.Nil, err
	}
	door := "http://" + c.ServerTaps["its own door"].Address()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, door+"/notify/corporate-kms", strings.NewReader(string(body)))
	if err != nil {
		return uuid.Nil, err
	}
	req.Header.Set("Content-Type", "application/cloudevents+json")
	req.Header.Set("Webhook-Id", message)
	req.Header.Set("Webhook-Timestamp", strconv.FormatInt(now.Unix(), 10))
	req.Header.Set("Webhook-Signature", signature)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return uuid.Nil, fmt.Errorf("notifying: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusAccepted {
		return uuid.Nil, fmt.Errorf("the notification was answered %s", resp.Status)
	}
	rotations, err := c.DB.Rotations(ctx, user, false)
	if err != nil || len(rotations) == 0 {
		return uuid.Nil, errors.Join(err, errors.New("the notification was accepted and opened no rotation"))
	}
	return rotations[0].ID, nil
}
