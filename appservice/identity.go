// Package appservice is the Matrix side of the server: the routes the homeserver calls, the registration, and the bot
// with its cross-signed device. The bot acts for nobody but itself.
package appservice

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
)

// Identity is the bot's cross-signing identity as `serve` needs it: the signed public keys and the self-signing seed.
// The master seed is not part of it and stays offline.
type Identity struct {
	UserID      id.UserID
	Public      crosssigning.PublicKeys
	selfSigning olm.PKSigning
}

// MasterKey is what enrollment codes pin.
func (i Identity) MasterKey() id.Ed25519 { return i.Public.Master.FirstKey() }

type identityFile struct {
	UserID id.UserID               `json:"user_id"`
	Public crosssigning.PublicKeys `json:"public"`
}

// The files Keygen writes into its directory.
const (
	IdentityFile    = "bot-identity.json"
	SelfSigningFile = "bot-self-signing.seed"
	MasterFile      = "bot-master.seed"
	UserSigningFile = "bot-user-signing.seed"
)

// Keygen makes the bot's identity: the signed public keys, the self-signing seed for `serve`, and the master and
// user-signing seeds, to be taken offline. It never overwrites a file. Seeds are written 0600 as unpadded base64.
func Keygen(dir string, user id.UserID) (id.Ed25519, error) {
	if _, _, err := user.Parse(); err != nil {
		return "", fmt.Errorf("%q is not a Matrix user id (@name:server): %w", user, err)
	}
	keys, err := crosssigning.Generate()
	if err != nil {
		return "", err
	}
	public, err := keys.Public(user)
	if err != nil {
		return "", err
	}
	encoded, err := json.MarshalIndent(identityFile{UserID: user, Public: public}, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encoding the bot's identity: %w", err)
	}
	files := []struct {
		name    string
		content []byte
		mode    os.FileMode
	}{
		{MasterFile, seedText(keys.Master), 0o600},
		{UserSigningFile, seedText(keys.UserSigning), 0o600},
		{SelfSigningFile, seedText(keys.SelfSigning), 0o600},
		{IdentityFile, append(encoded, '\n'), 0o644},
	}
	for _, file := range files {
		if _, err := os.Lstat(filepath.Join(dir, file.name)); err == nil {
			return "", fmt.Errorf("%s exists already: a bot's identity is made once; move the old files away to make a new one", filepath.Join(dir, file.name))
		}
	}
	for _, file := range files {
		f, err := os.OpenFile(filepath.Join(dir, file.name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, file.mode)
		if err != nil {
			return "", fmt.Errorf("writing the bot's identity: %w", err)
		}
		_, err = f.Write(file.content)
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return "", fmt.Errorf("writing the bot's identity: %w", err)
		}
	}
	return public.Master.FirstKey(), nil
}

func seedText(key olm.PKSigning) []byte {
	return []byte(base64.RawStdEncoding.EncodeToString(key.Seed()) + "\n")
}

// LoadIdentity reads what Keygen wrote, without the master seed, and checks that the parts belong together.
func LoadIdentity(identityPath, selfSigningPath string) (Identity, error) {
	raw, err := os.ReadFile(identityPath)
	if err != nil {
		return Identity{}, fmt.Errorf("reading the bot's identity (`keyherald bot keygen` makes one): %w", err)
	}
	var file identityFile
	if err := json.Unmarshal(raw, &file); err != nil {
		return Identity{}, fmt.Errorf("reading %s: %w", identityPath, err)
	}
	text, err := os.ReadFile(selfSigningPath)
	if err != nil {
		return Identity{}, fmt.Errorf("reading the bot's self-signing seed: %w", err)
	}
	seed, err := base64.RawStdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(seed) != 32 {
		return Identity{}, fmt.Errorf("%s is not a seed of 32 bytes in unpadded base64", selfSigningPath)
	}
	key, err := olm.NewPKSigningFromSeed(seed)
	if err != nil {
		return Identity{}, fmt.Errorf("reading the bot's self-signing seed: %w", err)
	}
	if file.UserID == "" || file.Public.Master.FirstKey() == "" || file.Public.SelfSigning.FirstKey() != key.PublicKey() {
		return Identity{}, fmt.Errorf("%s and %s do not belong together", identityPath, selfSigningPath)
	}
	return Identity{UserID: file.UserID, Public: file.Public, selfSigning: key}, nil
}

// ErrForeignIdentity means that the homeserver has another identity for the bot than the files. It is never replaced.
var ErrForeignIdentity = errors.New("the homeserver has another cross-signing identity for the bot than its identity file")
