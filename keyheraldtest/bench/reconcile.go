package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/openbao/openbao/api/v2"
	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/kms/policy"
	"github.com/keyherald/keyherald/kms/vaultmeta"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

// bareReaders is how many reads the bare client has under way: as many as a Reconciler.
const bareReaders = 8

// Reconcile measures how many users' keys a second a look at everybody finds unchanged in a real Vault, over TLS, without
// the limit that spreads it, beside bare_metadata_reads: the same reads by the vendor's client, as many at once, and nothing
// else.
func Reconcile(ctx context.Context, users, rounds int) (rows []Row, err error) {
	name := fmt.Sprintf("reconcile/%d", users)
	w, err := newWatched(ctx, users)
	if w != nil {
		defer func() { err = errors.Join(err, w.close()) }()
	}
	if err != nil {
		return nil, fmt.Errorf("preparing %s: %w", name, err)
	}
	row, err := Measure(ctx, name, "1/s", More, rounds, Side{"ours", w.look}, Side{"bare_metadata_reads", w.bare})
	return []Row{row}, err
}

// watched is a Vault with a key for each of the users, all of whom have a managed device.
type watched struct {
	closers    []func() error
	db         *postgres.DB
	users      []id.UserID
	reconciler *relay.Reconciler
	client     *api.Client // with the server's rights
}

func (w *watched) close() error {
	var err error
	for i := len(w.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, w.closers[i]())
	}
	return err
}

func newWatched(ctx context.Context, users int) (*watched, error) {
	w := &watched{}
	dir, err := os.MkdirTemp("", "keyherald-bench-")
	if err != nil {
		return w, err
	}
	w.closers = append(w.closers, func() error { return os.RemoveAll(dir) })
	server, err := keyheraldtest.StartVault(ctx, dir, true)
	if err != nil {
		return w, err
	}
	w.closers = append(w.closers, server.Close)
	root, err := newVaultClient(server, server.Token)
	if err != nil {
		return w, err
	}
	if err := w.enroll(ctx, users); err != nil {
		return w, err
	}
	if err := w.write(ctx, root); err != nil {
		return w, err
	}
	config := vaultmeta.Config{URL: server.URL, CAFile: server.CAFile}
	if config.Auth.RoleID, config.Auth.SecretIDFile, err = newRole(ctx, server, dir); err != nil {
		return w, err
	}
	config.Auth.Method = "approle"
	metadata, err := vaultmeta.New(config)
	if err != nil {
		return w, err
	}
	engine, err := relay.New(relay.Config{DB: w.db, BotUserID: "@keyherald:example.org", BotMasterKey: "x", Log: zerolog.Nop()})
	if err != nil {
		return w, err
	}
	w.reconciler, err = engine.NewReconciler(relay.Reconciliation{KMS: "corporate", Metadata: metadata, Path: "keyherald/{user}", Interval: time.Hour, MostPerSecond: 1_000_000}, nil)
	if err != nil {
		return w, err
	}
	login, err := server.CallWith(ctx, http.Header{}, http.MethodPost, "auth/approle/login", map[string]string{"role_id": config.Auth.RoleID, "secret_id": readSecret(config.Auth.SecretIDFile)})
	if err != nil {
		return w, err
	}
	w.client, err = newVaultClient(server, fmt.Sprint(login["client_token"]))
	return w, err
}

func readSecret(path string) string {
	raw, _ := os.ReadFile(path) // one that is not there makes no login
	return string(raw)
}

// newVaultClient is the vendor's, with a connection for each reader.
func newVaultClient(server *keyheraldtest.Vault, token string) (*api.Client, error) {
	config := api.DefaultConfig()
	config.Address = server.URL
	if err := config.ConfigureTLS(&api.TLSConfig{CACert: server.CAFile}); err != nil {
		return nil, err
	}
	config.HttpClient.Transport.(*http.Transport).MaxIdleConnsPerHost = bareReaders
	client, err := api.NewClient(config)
	if err != nil {
		return nil, err
	}
	client.SetToken(token)
	return client, nil
}

// newRole makes an AppRole with the rights that `keyherald kms policy` prints for the server.
func newRole(ctx context.Context, server *keyheraldtest.Vault, dir string) (roleID, secretIDFile string, err error) {
	var answers []map[string]any
	for _, call := range []struct {
		method, endpoint string
		body             any
	}{
		{http.MethodPost, "sys/auth/approle", map[string]any{"type": "approle"}},
		{http.MethodPut, "sys/policies/acl/keyherald-server", map[string]string{"policy": policy.VaultServer("secret", policy.Place{Path: "keyherald/{user}"})}},
		{http.MethodPost, "auth/approle/role/keyherald-server", map[string]any{"token_policies": []string{"keyherald-server"}, "token_no_default_policy": true}},
		{http.MethodGet, "auth/approle/role/keyherald-server/role-id", nil},
		{http.MethodPost, "auth/approle/role/keyherald-server/secret-id", nil},
	} {
		answer, err := server.Call(ctx, call.method, call.endpoint, call.body)
		if err != nil {
			return "", "", err
		}
		answers = append(answers, answer)
	}
	secretIDFile = filepath.Join(dir, "secret-id")
	return fmt.Sprint(answers[3]["role_id"]), secretIDFile, os.WriteFile(secretIDFile, []byte(fmt.Sprint(answers[4]["secret_id"])), 0o600)
}

// enroll makes a database in which each user has a managed device.
func (w *watched) enroll(ctx context.Context, users int) error {
	pg, err := keyheraldtest.StartPostgres(ctx)
	if err != nil {
		return err
	}
	w.closers = append(w.closers, pg.Close)
	made, err := newDatabase(ctx, pg)
	if err != nil {
		return err
	}
	w.db = made.db
	w.closers = append(w.closers, w.db.Close)
	return w.db.Txn(ctx, func(ctx context.Context) error {
		for i := range users {
			user := id.NewUserID(fmt.Sprintf("user%d", i), "example.org")
			w.users = append(w.users, user)
			err := w.db.PutDevice(ctx, postgres.Device{ID: uuid.New(), UserID: user, DeviceID: "MANAGED", IdentityKey: id.Curve25519(fmt.Sprint("identity", i)), SigningKey: "s", MasterKey: "m", EnrolledAt: time.Now()})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// write puts a key with its public key there for each user.
func (w *watched) write(ctx context.Context, root *api.Client) error {
	engine := root.KVv2("secret")
	return w.each(func(path string) error {
		if err := engine.PutMetadata(ctx, path, api.KVMetadataPutInput{CustomMetadata: map[string]any{"public_key.1": "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo"}}); err != nil {
			return err
		}
		_, err := engine.Put(ctx, path, map[string]any{"key": "no key, but as long as one is: 0123456789"})
		return err
	})
}

// each does something for every user's path, as many at once as a Reconciler has under way.
func (w *watched) each(do func(path string) error) error {
	paths := make(chan string)
	errs := make([]error, bareReaders)
	var readers sync.WaitGroup
	for reader := range bareReaders {
		readers.Go(func() {
			for path := range paths {
				if errs[reader] == nil {
					errs[reader] = do(path)
				}
			}
		})
	}
	for _, user := range w.users {
		paths <- "keyherald/" + user.Localpart()
	}
	close(paths)
	readers.Wait()
	return errors.Join(errs...)
}

// look is one look at everybody. The first one is the baseline.
func (w *watched) look(ctx context.Context) (float64, error) {
	began := time.Now()
	if err := w.reconciler.Pass(ctx, 0); err != nil {
		return 0, err
	}
	rate := float64(len(w.users)) / time.Since(began).Seconds()
	var seen, opened int
	err := w.db.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM reconciled WHERE version = '1'), (SELECT COUNT(*) FROM rotation)`).Scan(&seen, &opened)
	if err == nil && (seen != len(w.users) || opened != 0) {
		err = fmt.Errorf("%d users of %d were seen at version 1, and %d rotations opened", seen, len(w.users), opened)
	}
	return rate, err
}

// bare reads the same metadata.
func (w *watched) bare(ctx context.Context) (float64, error) {
	engine := w.client.KVv2("secret")
	began := time.Now()
	err := w.each(func(path string) error {
		metadata, err := engine.GetMetadata(ctx, path)
		if err == nil && metadata.CurrentVersion != 1 {
			err = fmt.Errorf("%s is at version %d", path, metadata.CurrentVersion)
		}
		return err
	})
	return float64(len(w.users)) / time.Since(began).Seconds(), err
}
