package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"maunium.net/go/mautrix"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/enrollment"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/kmsconfig"
	"github.com/keyherald/keyherald/kms/vaultevents"
	"github.com/keyherald/keyherald/postgres"
)

func checkCommand(load func() (config, error)) *cobra.Command {
	return &cobra.Command{Use: "check", Short: "Preflight: look at everything `serve` stands on, and say what to do", RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		p := &preflight{out: cmd.OutOrStdout(), config: c}
		p.all(cmd.Context())
		if p.failed > 0 {
			return fmt.Errorf("%d of %d checks failed", p.failed, p.done)
		}
		return nil
	}}
}

// preflight prints one line for each thing it looked at: what was found, or what is wrong and what to do.
type preflight struct {
	out          io.Writer
	config       config
	done, failed int
}

// note is a finding that is no failure and should be read all the same.
type note string

func (n note) Error() string { return string(n) }

func (p *preflight) look(what string, check func() (found string, err error), fix string) {
	p.done++
	found, err := check()
	var n note
	switch {
	case errors.As(err, &n):
		_, _ = fmt.Fprintf(p.out, "note  %s: %s\n", what, n)
	case err != nil:
		p.failed++
		_, _ = fmt.Fprintf(p.out, "FAIL  %s: %v\n      do: %s\n", what, err, fix)
	default:
		_, _ = fmt.Fprintf(p.out, "ok    %s: %s\n", what, found)
	}
}

func (p *preflight) all(ctx context.Context) {
	c := p.config
	registration, err := appservice.LoadRegistration(c.Registration)
	p.look("registration", func() (string, error) {
		if err != nil {
			return "", err
		}
		return c.Registration, p.registration(registration)
	}, "run `keyherald registration`, give the file to the homeserver, and restart the homeserver")
	identity, err := c.identity()
	p.look("bot identity", func() (string, error) {
		if err != nil {
			return "", err
		}
		if offline := filepath.Join(filepath.Dir(c.Bot.IdentityFile), appservice.MasterFile); exists(offline) {
			return "", note("the master seed lies at " + offline + ": move it offline, `serve` does not need it")
		}
		return "master key " + identity.MasterKey().String(), nil
	}, "run `keyherald bot keygen` once, or restore the files it wrote")
	p.look("bot pickle key", func() (string, error) {
		_, err := c.pickleKey()
		return "32 bytes or more", err
	}, "head -c 32 /dev/urandom | base64 makes one; a bot that has run needs the one it had")
	p.look("sources", func() (string, error) {
		handler, err := intake.New(c.intake(), intake.Deps{Recorder: nobody{}, Log: zerolog.Nop()})
		if err == nil && len(c.Sources)+len(c.intake().Streams) == 0 {
			err = errors.New("none is configured, so nothing can notify")
		}
		if err == nil {
			err = handler.Reach(ctx)
		}
		return strings.Join(slices.Sorted(maps.Keys(c.Sources)), ", ") + ", with their secrets, and the keys of their issuers", err
	}, "docs/intake.md shows a source of each format")
	if c.API.OIDC != nil {
		p.look("identity provider of the API", func() (string, error) {
			return c.API.OIDC.Issuer + ", with its keys", c.API.OIDC.Reach(ctx, api.Deps{})
		}, "api.oidc in the configuration: docs/api.md shows it")
	}
	if len(c.Enrollment.Proofs) > 0 {
		p.look("proofs of enrollment", func() (string, error) {
			return strings.Join(slices.Sorted(maps.Keys(c.Enrollment.Proofs)), ", ") + ", with the keys of their issuers", reachProofs(ctx, c)
		}, "docs/provisioning.md shows each kind of proof")
	}
	p.database(ctx)
	p.homeserver(ctx, registration, identity)
	for _, name := range slices.Sorted(maps.Keys(c.KMS)) {
		p.kms(ctx, name, c.KMS[name])
	}
	if len(c.KMS) == 0 {
		p.look("KMS", func() (string, error) {
			return "", note("none is named under `kms`, so it is not proved that this server cannot read a secret")
		}, "")
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (p *preflight) registration(r appservice.Registration) error {
	bot := p.config.Bot.UserID
	switch {
	case r.CheckTokens() != nil:
		return r.CheckTokens()
	case r.CheckBot(bot) != nil:
		return r.CheckBot(bot)
	case r.URL != p.config.PublicURL:
		return fmt.Errorf("url is %s and public_url is %s", r.URL, p.config.PublicURL)
	case r.MSC4190 != (p.config.Bot.Login == appservice.LoginMSC4190):
		return fmt.Errorf("io.element.msc4190 is %t and bot.login is %q: only for msc4190 it must be true", r.MSC4190, p.config.Bot.Login)
	}
	return nil
}

func (p *preflight) database(ctx context.Context) {
	c := p.config
	var db *postgres.DB
	p.look("database", func() (string, error) {
		url, err := readFile(c.Database.URLFile)
		if err != nil {
			return "", err
		}
		db, err = postgres.Open(ctx, url)
		return "reached as the writer", err
	}, "check database.url_file and that PostgreSQL runs")
	if db == nil {
		return
	}
	defer func() { _ = db.Close() }()
	p.look("database schema", func() (string, error) { return "the one this program was built for", db.CheckSchema(ctx) }, "run `keyherald migrate` as the owner")
	p.look("database role", func() (string, error) { return "appends to the audit log and cannot change it", db.CheckWriter(ctx) },
		"connect as the writer role that `keyherald migrate` grants to, not as the owner or a superuser")
	if c.Database.AuditorURLFile != "" {
		p.look("auditor role", func() (string, error) { return p.auditorRole(ctx) }, "check database.auditor_url_file: it is for the auditor role that `keyherald migrate` grants to")
	}
}

func (p *preflight) auditorRole(ctx context.Context) (string, error) {
	url, err := readFile(p.config.Database.AuditorURLFile)
	if err != nil {
		return "", err
	}
	db, err := postgres.Open(ctx, url)
	if err != nil {
		return "", err
	}
	return "reads the audit log and cannot change it", errors.Join(db.CheckAuditor(ctx), db.Close())
}

func (p *preflight) homeserver(ctx context.Context, registration appservice.Registration, identity appservice.Identity) {
	c := p.config
	client, err := mautrix.NewClient(c.Homeserver, c.Bot.UserID, registration.ASToken)
	if err != nil {
		p.look("homeserver", func() (string, error) { return "", err }, "write homeserver: https://matrix.example.org")
		return
	}
	client.DefaultHTTPRetries, client.SetAppServiceUserID = 0, true
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	reached := true
	p.look("homeserver", func() (string, error) {
		_, err := client.Versions(limited)
		reached = err == nil
		return c.Homeserver + " answers", err
	}, "check `homeserver` and the network between")
	if !reached {
		return
	}
	p.look("registration at the homeserver", func() (string, error) {
		who, err := client.Whoami(limited)
		if err != nil {
			return "", err
		}
		if who.UserID != c.Bot.UserID {
			return "", fmt.Errorf("the as_token acts as %s and not as %s", who.UserID, c.Bot.UserID)
		}
		return "the as_token may act as the bot", nil
	}, "name "+c.Registration+" in the homeserver's configuration and restart it (Dendrite: app_service_api.config_files, Synapse: app_service_config_files)")
	p.look("the bot's login", func() (string, error) { return p.login(limited, client) }, "write bot.login: auto")
	p.look("the way back", func() (string, error) { return p.wayBack(limited, client, registration) },
		"start `keyherald serve`, and let public_url lead to it from the homeserver's machine")
	p.look("bot identity at the homeserver", func() (string, error) {
		answer, err := client.QueryKeys(limited, &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{c.Bot.UserID: mautrix.DeviceIDList{}}, Timeout: 5000})
		if err != nil {
			return "", err
		}
		switch present := crosssigning.Read(answer, c.Bot.UserID); present.MasterKey {
		case identity.MasterKey():
			return "the same master key", nil
		case "":
			return "", note("none yet: `keyherald serve` uploads it at its first start")
		}
		return "", appservice.ErrForeignIdentity
	}, "restore the identity files the bot was made with; devices are pinned to them")
}

// login looks whether the homeserver offers what the bot's way to its device needs.
func (p *preflight) login(ctx context.Context, client *mautrix.Client) (string, error) {
	flows, err := client.GetLoginFlows(ctx)
	offered := err == nil && flows.HasFlow(mautrix.AuthTypeAppservice)
	switch p.config.Bot.Login {
	case appservice.LoginMSC4190:
		return "none: it makes its device and acts with the as_token (MSC4190)", nil
	case appservice.LoginAppservice:
		if !offered {
			return "", errors.Join(errors.New("bot.login is appservice, and the homeserver offers application services no login"), err)
		}
	}
	if !offered {
		return "none is offered, so it makes its device and acts with the as_token (MSC4190)", nil
	}
	return "the homeserver offers application services one", nil
}

// wayBack asks the homeserver to ping us (client-server API, "appservice ping"); where it cannot, our own public_url is
// asked from here, which proves less.
func (p *preflight) wayBack(ctx context.Context, client *mautrix.Client, registration appservice.Registration) (string, error) {
	_, err := client.AppservicePing(ctx, registration.ID, "keyherald-check")
	if err == nil {
		return "the homeserver reached public_url", nil
	}
	if !errors.Is(err, mautrix.MUnrecognized) && !errors.Is(err, mautrix.MNotFound) && !errorStatus(err, http.StatusNotFound, http.StatusMethodNotAllowed) {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(p.config.PublicURL, "/")+"/_matrix/app/v1/ping", strings.NewReader("{}"))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+registration.HSToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("nothing answers at public_url: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("public_url answers %s to the hs_token", resp.Status)
	}
	return "", note("this homeserver has no ping; public_url was reached from here, with the hs_token")
}

func errorStatus(err error, statuses ...int) bool {
	var httpErr mautrix.HTTPError
	return errors.As(err, &httpErr) && httpErr.Response != nil && slices.Contains(statuses, httpErr.Response.StatusCode)
}

func (p *preflight) kms(ctx context.Context, name string, c kmsConfig) {
	var metadata kms.Metadata
	p.look("KMS "+name, func() (found string, err error) {
		if metadata, err = c.metadata(ctx); err != nil {
			return "", err
		}
		described, err := metadata.Current(ctx, c.CheckPath)
		if errors.Is(err, kms.ErrNotFound) {
			return "", note("it answers, and has no secret at " + c.CheckPath + " yet")
		}
		if err == nil && described.PublicKey == "" && c.Type != kmsconfig.Setec {
			return "", note(fmt.Sprintf("%s is at version %s, and its metadata names no public key: write public_key.%[2]s before the version, or devices refuse it (docs/kms.md)", c.CheckPath, described.Version))
		}
		return c.CheckPath + " is at version " + described.Version, err
	}, "check kms."+name+": its address and credentials, and that these may read metadata of "+c.CheckPath+" (keyherald kms policy prints the rights)")
	if c.Events != nil {
		p.look("the events of KMS "+name, func() (string, error) {
			config, err := c.Config.Events(c.Events.Events)
			if err != nil {
				return "", err
			}
			client, err := vaultevents.New(config)
			if err != nil {
				return "", err
			}
			return "the stream opens", client.Try(ctx)
		}, "check kms."+name+".events.auth; docs/kms.md shows the rights that its token needs")
	}
	if metadata == nil {
		return
	}
	p.look("KMS "+name+" keeps its secrets from us", func() (string, error) {
		readable, err := metadata.CanReadSecret(ctx, c.CheckPath)
		switch {
		case err != nil:
			return "", err
		case readable && c.Type == "file":
			return "", note("the directory KMS is for development: this process could read its keys")
		case readable:
			return "", errors.New("THE SERVER'S CREDENTIALS CAN READ SECRETS, and must not")
		}
		return "these credentials are refused", nil
	}, "take the right to read values away from the server's credentials, and leave metadata: keyherald kms policy prints the rights")
}

// nobody records nothing: the preflight takes no notifications.
type nobody struct{ intake.Recorder }

// reachProofs reads the keys of every issuer whose tokens devices may show.
func reachProofs(ctx context.Context, c config) error {
	proofs, err := enrollment.New(c.Enrollment, enrollment.Deps{})
	if err != nil {
		return err
	}
	var all error
	for _, name := range slices.Sorted(maps.Keys(proofs)) {
		if err := proofs[name].Ready(ctx); err != nil {
			all = errors.Join(all, fmt.Errorf("enrollment.proofs.%s: %w", name, err))
		}
	}
	return all
}
