package keyheraldtest

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// Client is a stock mautrix client: its OlmMachine and its sync, with nothing of Keyherald in it.
type Client struct {
	*mautrix.Client
	Machine *crypto.OlmMachine
	// SAS verifies other devices of the user by emoji.
	SAS       *SAS
	store     *crypto.SQLCryptoStore
	directory string
	cancel    context.CancelFunc
	done      chan struct{}

	// own is held over whatever reads or writes the machine's own public keys, which it does not guard itself: by the sync
	// for each response, and by who makes or fetches them meanwhile.
	own sync.Mutex

	mu      sync.Mutex
	pushes  []Push
	arrived chan struct{}
}

// Push is a secret push as the stock client received it.
type Push struct {
	Name, Secret string
	Raw          json.RawMessage
}

// Login logs a new device of the user in and starts its sync.
func Login(ctx context.Context, url string, user id.UserID, password string, device id.DeviceID) (*Client, error) {
	client, err := mautrix.NewClient(url, "", "")
	if err != nil {
		return nil, err
	}
	_, err = client.Login(ctx, &mautrix.ReqLogin{Type: mautrix.AuthTypePassword, Password: password, DeviceID: device, StoreCredentials: true,
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: user.String()}, InitialDeviceDisplayName: string(device)})
	if err != nil {
		return nil, fmt.Errorf("logging %s in as %s: %w", user, device, err)
	}
	return Stock(ctx, client)
}

// Stock makes a stock client of one that is logged in, and starts its sync.
func Stock(ctx context.Context, client *mautrix.Client) (*Client, error) {
	device := client.DeviceID
	state := mautrix.NewMemoryStateStore()
	client.StateStore = state
	// mautrix's memory store is not safe for the sync and a caller at once.
	store, directory, err := cryptoStore(ctx, device)
	if err != nil {
		return nil, err
	}
	log := zerolog.Nop()
	machine := crypto.NewOlmMachine(client, &log, store, state.(crypto.StateStore))
	if err := machine.Load(ctx); err != nil {
		return nil, err
	}
	if err := machine.ShareKeys(ctx, 0); err != nil {
		return nil, fmt.Errorf("sharing the keys of %s: %w", device, err)
	}
	c := &Client{Client: client, Machine: machine, store: store, directory: directory, arrived: make(chan struct{}, 1)}
	machine.SecretPushReceiver = func(_ context.Context, evt *crypto.DecryptedOlmEvent, content *event.SecretPushEventContent) {
		c.mu.Lock()
		c.pushes = append(c.pushes, Push{Name: string(content.Name), Secret: content.Secret, Raw: evt.Content.VeryRaw})
		c.mu.Unlock()
		select {
		case c.arrived <- struct{}{}:
		default:
		}
	}
	if err := c.verifies(ctx); err != nil {
		return nil, err
	}
	syncer := client.Syncer.(*mautrix.DefaultSyncer)
	syncer.OnEvent(client.StateStoreSyncHandler)
	syncer.OnSync(func(ctx context.Context, response *mautrix.RespSync, since string) bool {
		c.own.Lock()
		defer c.own.Unlock()
		return machine.ProcessSyncResponse(ctx, response, since)
	})
	c.GoOnline(ctx)
	return c, nil
}

// GoOnline starts the sync again after GoOffline, from where it was.
func (c *Client) GoOnline(ctx context.Context) {
	syncCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	c.cancel, c.done = cancel, done
	go func() { defer close(done); _ = c.SyncWithContext(syncCtx) }()
}

// GoOffline stops the sync, with everything the device has kept.
func (c *Client) GoOffline() {
	c.cancel()
	<-c.done
}

// Close stops the sync; the device stays logged in.
func (c *Client) Close() {
	c.GoOffline()
	_ = c.store.DB.Close()
	_ = os.RemoveAll(c.directory)
}

func cryptoStore(ctx context.Context, device id.DeviceID) (*crypto.SQLCryptoStore, string, error) {
	directory, err := os.MkdirTemp("", "keyherald-client-")
	if err != nil {
		return nil, "", err
	}
	raw, err := sql.Open("sqlite", "file:"+filepath.Join(directory, "crypto.db")+"?_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=busy_timeout(5000)")
	if err != nil {
		return nil, directory, err
	}
	db, err := dbutil.NewWithDB(raw, "sqlite3")
	if err != nil {
		return nil, directory, err
	}
	store := crypto.NewSQLCryptoStore(db, nil, "client", device, make([]byte, 32))
	return store, directory, store.DB.Upgrade(ctx)
}

// Bootstrap makes the user's cross-signing identity and secret storage, and returns the recovery key.
func (c *Client) Bootstrap(ctx context.Context, password string) (string, error) {
	c.own.Lock()
	defer c.own.Unlock()
	recoveryKey, _, err := c.Machine.GenerateAndUploadCrossSigningKeysWithPassword(ctx, password, "")
	if err != nil {
		return "", fmt.Errorf("bootstrapping cross-signing: %w", err)
	}
	if err := c.Machine.SignOwnDevice(ctx, c.Machine.OwnIdentity()); err != nil {
		return "", err
	}
	return recoveryKey, c.Machine.SignOwnMasterKey(ctx)
}

// Verify cross-signs this device with the user's recovery key, and reads the user's own keys, as a client's device list does.
func (c *Client) Verify(ctx context.Context, recoveryKey string) error {
	c.own.Lock()
	err := c.Machine.VerifyWithRecoveryKey(ctx, recoveryKey)
	c.own.Unlock()
	if err != nil {
		return fmt.Errorf("verifying %s: %w", c.DeviceID, err)
	}
	_, err = c.OwnDevices(ctx)
	return err
}

// OwnDevices reads the user's devices from the homeserver, and the user's own keys with them.
func (c *Client) OwnDevices(ctx context.Context) (map[id.DeviceID]*id.Device, error) {
	c.own.Lock()
	defer c.own.Unlock()
	fetched, err := c.Machine.FetchKeys(ctx, []id.UserID{c.UserID}, true)
	if err != nil {
		return nil, fmt.Errorf("reading the devices of %s: %w", c.UserID, err)
	}
	return fetched[c.UserID], nil
}

// CreateBackup makes a key-backup version signed by the device and writes the recovery copy.
func (c *Client) CreateBackup(ctx context.Context, key *backup.MegolmBackupKey, recoveryKey string) (id.KeyBackupVersion, error) {
	auth := backup.MegolmAuthData{PublicKey: id.Ed25519(unpadded(key.PublicKey().Bytes()))}
	signature, err := c.Machine.GetAccount().SignJSON(auth)
	if err != nil {
		return "", err
	}
	auth.Signatures = signatures.NewSingleSignature(c.UserID, id.KeyAlgorithmEd25519, c.DeviceID.String(), signature)
	created, err := c.CreateKeyBackupVersion(ctx, &mautrix.ReqRoomKeysVersionCreate[backup.MegolmAuthData]{Algorithm: id.KeyBackupAlgorithmMegolmBackupV1, AuthData: auth})
	if err != nil {
		return "", fmt.Errorf("creating a key backup: %w", err)
	}
	keyID, metadata, err := c.Machine.SSSS.GetDefaultKeyData(ctx)
	if err != nil {
		return "", err
	}
	fourS, err := metadata.VerifyRecoveryKey(keyID, recoveryKey)
	if err != nil {
		return "", err
	}
	return created.Version, c.Machine.SSSS.SetEncryptedAccountData(ctx, event.AccountDataMegolmBackupKey, key.Bytes(), fourS)
}

// WriteHistory makes an encrypted room, sends a message, and puts its room key into the key backup alone.
func (c *Client) WriteHistory(ctx context.Context, version id.KeyBackupVersion, key *backup.MegolmBackupKey, text string) (id.RoomID, id.EventID, error) {
	// Nobody gets the room key: the backup is the only other place that has it.
	room, message, sessionID, err := c.write(ctx, text, nil)
	if err != nil {
		return "", "", err
	}
	session, err := c.Machine.CryptoStore.GetGroupSession(ctx, room, sessionID)
	if err != nil || session == nil {
		return "", "", fmt.Errorf("reading the room key back: %w", err)
	}
	exported, err := session.Internal.Export(0)
	if err != nil {
		return "", "", err
	}
	sealed, err := backup.EncryptSessionData(key, backup.MegolmSessionData{Algorithm: id.AlgorithmMegolmV1, ForwardingKeyChain: []string{},
		SenderClaimedKeys: backup.SenderClaimedKeys{Ed25519: session.SigningKey}, SenderKey: session.SenderKey, SessionKey: string(exported)})
	if err != nil {
		return "", "", err
	}
	data, err := json.Marshal(map[string]any{"ciphertext": sealed.Ciphertext, "ephemeral": &sealed.Ephemeral, "mac": sealed.MAC})
	if err != nil {
		return "", "", err
	}
	url := c.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "room_keys", "keys", room, sessionID}, map[string]string{"version": version.String()})
	_, err = c.MakeRequest(ctx, "PUT", url, map[string]any{"first_message_index": 0, "forwarded_count": 0, "is_verified": true, "session_data": json.RawMessage(data)}, nil)
	return room, message, err
}

// WriteMessage makes an encrypted room, gives its room key to all of the user's devices, and sends a message.
func (c *Client) WriteMessage(ctx context.Context, text string) (id.RoomID, id.EventID, error) {
	if _, err := c.OwnDevices(ctx); err != nil {
		return "", "", err
	}
	room, message, _, err := c.write(ctx, text, []id.UserID{c.UserID})
	return room, message, err
}

// write makes an encrypted room, gives its room key to these users, and sends a message.
func (c *Client) write(ctx context.Context, text string, readers []id.UserID) (id.RoomID, id.EventID, id.SessionID, error) {
	room, err := c.CreateRoom(ctx, &mautrix.ReqCreateRoom{InitialState: []*event.Event{{Type: event.StateEncryption,
		Content: event.Content{Parsed: &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1}}}}})
	if err != nil {
		return "", "", "", fmt.Errorf("creating a room: %w", err)
	}
	err = Until(ctx, time.Minute, func() error {
		encrypted, err := c.StateStore.IsEncrypted(ctx, room.RoomID)
		if err == nil && !encrypted {
			err = errors.New("the room is not encrypted yet")
		}
		return err
	})
	if err != nil {
		return "", "", "", err
	}
	if err := c.Machine.ShareGroupSession(ctx, room.RoomID, readers); err != nil {
		return "", "", "", fmt.Errorf("making a room key: %w", err)
	}
	encrypted, err := c.Machine.EncryptMegolmEvent(ctx, room.RoomID, event.EventMessage, &event.MessageEventContent{MsgType: event.MsgText, Body: text})
	if err != nil {
		return "", "", "", fmt.Errorf("encrypting a message: %w", err)
	}
	sent, err := c.SendMessageEvent(ctx, room.RoomID, event.EventEncrypted, encrypted)
	if err != nil {
		return "", "", "", fmt.Errorf("sending a message: %w", err)
	}
	return room.RoomID, sent.EventID, encrypted.SessionID, nil
}

// ReadHistory downloads the current key backup with a key and reads a message with what was in it.
func (c *Client) ReadHistory(ctx context.Context, room id.RoomID, message id.EventID, key *backup.MegolmBackupKey) (string, error) {
	if _, err := c.Machine.DownloadAndStoreLatestKeyBackup(ctx, key); err != nil {
		return "", err
	}
	return c.Read(ctx, room, message)
}

// Read fetches a message and decrypts it with what the device has.
func (c *Client) Read(ctx context.Context, room id.RoomID, message id.EventID) (string, error) {
	evt, err := c.GetEvent(ctx, room, message)
	if err != nil {
		return "", err
	}
	if err := evt.Content.ParseRaw(evt.Type); err != nil {
		return "", err
	}
	decrypted, err := c.Machine.DecryptMegolmEvent(ctx, evt)
	if err != nil {
		return "", err
	}
	return decrypted.Content.AsMessage().Body, nil
}

// Pushes returns what was received so far.
func (c *Client) Pushes() []Push {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Push(nil), c.pushes...)
}

// WaitForPush waits for the next push.
func (c *Client) WaitForPush(ctx context.Context) ([]Push, error) {
	for {
		if pushes := c.Pushes(); len(pushes) > 0 {
			return pushes, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.arrived:
		}
	}
}
