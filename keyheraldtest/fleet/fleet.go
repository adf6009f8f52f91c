// Package fleet is `make fleet`: a company brings its people's managed devices into being without anybody typing. The
// accounts are made on a real homeserver, and then one program, keyherald-device run, does the rest for all of them: it logs
// in by a command, makes each user's first identity, puts the recovery key into the KMS, enrolls by a grant, and follows
// the first rotation. What came of it is looked at from outside, in the audit log, on the homeserver and in the KMS.
package fleet

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/tailscale/setec/acl"
	"github.com/tailscale/setec/client/setec"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/company"
	"github.com/keyherald/keyherald/keyheraldtest/testsetec"
	"github.com/keyherald/keyherald/postgres"
)

// Config is what Run needs. Programs is a directory with the built keyherald and keyherald-device, LoginCommand the login.command;
// Dir is an empty directory.
type Config struct {
	Programs, LoginCommand string
	Dir                    string
	Accounts               int
	Out                    io.Writer
}

// Result is the JSON line. ManualSteps are what somebody had to do for a single account, as the audit log has it.
type Result struct {
	OK                bool    `json:"ok"`
	Accounts          int     `json:"accounts"`
	ManualSteps       int     `json:"manual_steps"`
	SecondsPerAccount float64 `json:"seconds_per_account"`
	RSSPerAccountMB   float64 `json:"rss_per_account_mb"`
	RequestsAtRest    float64 `json:"homeserver_requests_per_second_at_rest"`
	Enrolled          int     `json:"enrolled"`
	Rotated           int     `json:"rotated"`
	Recoverable       int     `json:"recoverable"`
	// Current is how many of the roster are, as `keyherald compliance` has it.
	Current int `json:"current"`
	Killed  int `json:"killed"`
	// Wrong is what was found to be wrong from outside, an account each.
	Wrong []string `json:"wrong"`
}

// PrintLine prints the result as one line of JSON.
func (r Result) PrintLine(out io.Writer) error {
	encoded, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, string(encoded))
	return err
}

// Err is an error where not all is well.
func (r Result) Err() error {
	if r.OK {
		return nil
	}
	return fmt.Errorf("not every account came into being: %s", strings.Join(r.Wrong[:min(len(r.Wrong), 5)], "; "))
}

const (
	audience = "keyherald.example.org"
	// interval is the fleet's sync.interval, and window how long it is looked at while it rests.
	interval = time.Minute
	window   = 2 * time.Minute
	// perAccount is how long an account may take, on a busy machine.
	perAccount = 20 * time.Second
)

type run struct {
	Config
	*company.Company
	issuer   *keyheraldtest.Issuer
	asToken  string
	edge     *edge
	recovery setec.Client // reads what the devices put there
	auditor  *postgres.DB
	users    []id.UserID
	began    time.Time
}

// Run makes the accounts and waits until each had its first rotation.
func Run(ctx context.Context, config Config) (result Result, err error) {
	f := &run{Config: config}
	defer func() {
		if f.Company != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	for i := range config.Accounts {
		f.users = append(f.users, id.NewUserID("staff"+letters(i), keyheraldtest.ServerName))
	}
	if err := f.found(ctx); err != nil {
		return result, err
	}
	result.Accounts, result.Wrong = config.Accounts, []string{}
	process, err := f.comeIntoBeing(ctx, &result)
	if err != nil {
		return result, err
	}
	defer func() { process.Stop(os.Interrupt, time.Minute) }()
	if err := f.rotateAll(ctx, &result); err != nil {
		return result, err
	}
	result.SecondsPerAccount = time.Since(f.began).Seconds() / float64(config.Accounts)
	if err := f.step("the fleet at rest", func() error { return f.rest(ctx, process, &result) }); err != nil {
		return result, err
	}
	if err := f.step("all of it from outside: audit log, homeserver, KMS", func() error { return f.look(ctx, &result) }); err != nil {
		return result, err
	}
	result.OK = len(result.Wrong) == 0 && result.ManualSteps == 0 && result.Enrolled == config.Accounts && result.Rotated == config.Accounts && result.Recoverable == config.Accounts && result.Current == config.Accounts
	return result, nil
}

// letters is a number as the mapping's pattern takes names: letters alone.
func letters(n int) string {
	text := ""
	for range 4 {
		text = string(rune('a'+n%26)) + text
		n /= 26
	}
	return text
}

func (f *run) step(what string, do func() error) error {
	began := time.Now()
	err := do()
	_, _ = fmt.Fprintf(f.Out, "%7.1f s  %s\n", time.Since(began).Seconds(), what)
	return err
}

// found starts the company's parts, and makes what its provisioning has: accounts, tokens, rights, account files, a grant.
func (f *run) found(ctx context.Context) error {
	var err error
	if f.issuer, err = keyheraldtest.StartIssuer(); err != nil {
		return err
	}
	ca := filepath.Join(f.Dir, "issuer.pem")
	if err := f.issuer.WriteCA(ca); err != nil {
		return err
	}
	provisioning, err := f.registration()
	if err != nil {
		return err
	}
	start := func(ctx context.Context, dir string, registrations ...string) (*keyheraldtest.Homeserver, error) {
		return keyheraldtest.StartSynapse(ctx, dir, append(registrations, provisioning)...)
	}
	extra := fmt.Sprintf(`storm: {limit: {percent: 100, users: 1000000}}
enrollment:
  proofs:
    workload: {type: oidc, issuer: "%s", keys_url: "%s", ca_file: "%s", audience: %s, claim: preferred_username, pattern: "(?P<user>staff[a-z]+)", user: "@{user}:%s"}
`, f.issuer.URL(), f.issuer.KeysURL(), ca, audience, keyheraldtest.ServerName)
	f.Company, err = company.Start(ctx, company.Config{Programs: f.Programs, Dir: f.Dir, Homeserver: start, Extra: extra}, f.step)
	if err != nil {
		return err
	}
	f.OnClose(f.issuer.Close)
	if f.auditor, err = postgres.Open(ctx, f.Database.AuditorURL); err != nil {
		return err
	}
	f.OnClose(f.auditor.Close)
	if f.edge, err = newEdge(f.Homeserver.URL, 2*f.Accounts); err != nil {
		return err
	}
	f.OnClose(f.edge.close)
	readerURL, err := f.Setec.Principal("reader", acl.Rule{Secret: []acl.Secret{"keyherald/*/recovery-key"}, Action: []acl.Action{acl.ActionGet}})
	if err != nil {
		return err
	}
	f.recovery = setec.Client{Server: readerURL}
	for _, s := range []struct {
		what string
		do   func() error
	}{
		{"the roster (keyherald roster apply)", func() error { return f.roster(ctx) }},
		{fmt.Sprintf("%d accounts on the homeserver", f.Accounts), func() error { return f.each(4, func(user id.UserID) error { return f.createUser(ctx, user) }) }},
		{"what device management gives each: rights in the KMS, a token, an account file", func() error { return f.each(1, f.provision) }},
		{"a grant (keyherald grant create)", func() error {
			_, err := f.Keyherald(ctx, "grant", "create", "--users", "@staff*:"+keyheraldtest.ServerName, "--max", fmt.Sprint(f.Accounts), "--proof", "workload", "--ttl", "24h")
			return err
		}},
	} {
		if err := f.step(s.what, s.do); err != nil {
			return err
		}
	}
	return nil
}

// roster has all of them on it.
func (f *run) roster(ctx context.Context) error {
	text := "user_id\n"
	for _, user := range f.users {
		text += user.String() + "\n"
	}
	if err := f.Write("roster.csv", text); err != nil {
		return err
	}
	_, err := f.Keyherald(ctx, "roster", "apply", "roster.csv")
	return err
}

// createUser has a password that nobody knows: whoever logs in does so by the application service.
func (f *run) createUser(ctx context.Context, user id.UserID) error {
	_, err := f.Homeserver.CreateUser(ctx, user.Localpart(), rand.Text())
	return err
}

// registration is the application service that may log in as the company's people.
func (f *run) registration() (path string, err error) {
	f.asToken = rand.Text()
	path = filepath.Join(f.Dir, "provisioning.yaml")
	text := fmt.Sprintf("id: provisioning\nurl: null\nas_token: %s\nhs_token: none\nsender_localpart: provisioning\nrate_limited: false\nnamespaces: {users: [{regex: '@staff.*', exclusive: false}], rooms: [], aliases: []}\n", f.asToken)
	return path, errors.Join(os.WriteFile(path, []byte(text), 0o600), os.WriteFile(filepath.Join(f.Dir, "provisioning.token"), []byte(f.asToken), 0o600))
}

func recoveryPath(user id.UserID) string { return "keyherald/" + user.Localpart() + "/recovery-key" }

// deviceID is the managed device's, which stays the same whenever it logs in.
func deviceID(user id.UserID) id.DeviceID {
	return id.DeviceID("KEYHERALD" + strings.ToUpper(user.Localpart()))
}

// provision is what device management does for an account: no step of it is by hand. The device may read where it puts the
// recovery key, since one that was killed in that moment must find out whether it did.
func (f *run) provision(user id.UserID) error {
	name := user.Localpart()
	kms, err := f.Setec.Principal(name+"-device", testsetec.WriterRules(company.KMSPath(name)), testsetec.WriterRules(recoveryPath(user)))
	if err != nil {
		return err
	}
	token, err := f.issuer.Token(map[string]any{"aud": audience, "sub": name, "preferred_username": name, "exp": time.Now().Add(24 * time.Hour).Unix()})
	if err != nil {
		return err
	}
	tokenFile := filepath.Join(f.Dir, "tokens", name)
	if err := f.Write(filepath.Join("tokens", name), token); err != nil {
		return err
	}
	master, err := f.botMasterKey()
	if err != nil {
		return err
	}
	account := fmt.Sprintf(`user_id: "%[1]s"
homeserver: %[2]s
device_name: Keyherald (%[3]s)
login: {command: ["%[4]s", "-homeserver", "%[5]s", "-token-file", "%[6]s", "-user", "%[1]s", "-device", "%[7]s"]}
verification: {bootstrap_recovery_key_to_kms: %[8]s}
push: {repeat_after: 0s}
kms: {name: corporate, type: setec, url: "%[9]s", path: %[10]s}
server: {user_id: "@%[11]s:%[12]s", master_key: %[13]s}
enrollment: {proof: {type: oidc, token_file: "%[14]s"}}
`, user, f.edge.URL, name, f.LoginCommand, f.Homeserver.URL, filepath.Join(f.Dir, "provisioning.token"), deviceID(user), recoveryPath(user), kms, company.KMSPath(name),
		company.BotName, keyheraldtest.ServerName, master, tokenFile)
	return f.Write(filepath.Join("fleet", "accounts.d", name+".yaml"), account)
}

// botMasterKey is the fingerprint that `keyherald bot keygen` printed.
func (f *run) botMasterKey() (id.Ed25519, error) {
	identity, err := appservice.LoadIdentity(filepath.Join(f.Dir, appservice.IdentityFile), filepath.Join(f.Dir, appservice.SelfSigningFile))
	if err != nil {
		return "", err
	}
	return identity.MasterKey(), nil
}

// comeIntoBeing runs the fleet until every account is enrolled. Half way it is killed, as a machine is that loses its power,
// and started again.
func (f *run) comeIntoBeing(ctx context.Context, result *Result) (process *keyheraldtest.Process, err error) {
	f.began = time.Now()
	if process, err = f.start("fleet"); err != nil {
		return nil, err
	}
	until := func(n int) error {
		return keyheraldtest.Until(ctx, time.Minute+time.Duration(f.Accounts)*perAccount, func() error {
			if process.Ended() {
				return errors.New("keyherald-device ended by itself")
			}
			enrolled, err := f.count(ctx, "device.enrolled")
			if err == nil && enrolled < n {
				err = fmt.Errorf("%d of %d accounts are enrolled", enrolled, n)
			}
			return err
		})
	}
	err = f.step("the fleet comes into being: logins, identities, recovery keys, enrollments; killed half way", func() error {
		if err := until(f.Accounts / 2); err != nil {
			return err
		}
		if err := process.Kill(); err != nil {
			return err
		}
		result.Killed++
		if process, err = f.start("fleet"); err != nil {
			return err
		}
		return until(f.Accounts)
	})
	return process, err
}

// start runs a fleet of this name.
func (f *run) start(name string) (*keyheraldtest.Process, error) {
	config := fmt.Sprintf("accounts_dir: %[1]s/accounts.d\nstate_dir: %[1]s/state\npickle_key_file: %[1]s-pickle.key\nsync: {interval: %[2]s}\n", name, interval)
	if err := errors.Join(f.Write(name+".yaml", config), os.MkdirAll(filepath.Join(f.Dir, name, "accounts.d"), 0o700)); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(f.Dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(filepath.Join(f.Programs, "keyherald-device"), "run", "-c", name+".yaml")
	// No standard input: whoever asked for something would get nothing.
	cmd.Dir, cmd.Stdout, cmd.Stderr = f.Dir, log, log
	return keyheraldtest.StartProcess(cmd)
}

// rotateAll has the KMS make every user's first key and tell the server, and waits for the ends.
func (f *run) rotateAll(ctx context.Context, result *Result) error {
	return f.step("the first rotation of each", func() error {
		for _, user := range f.users {
			key, err := backupkey.Generate()
			if err != nil {
				return err
			}
			version, err := f.PutKey(ctx, company.KMSPath(user.Localpart()), key)
			if err != nil {
				return err
			}
			if _, err := f.Notify(ctx, user, version); err != nil {
				return err
			}
		}
		return keyheraldtest.Until(ctx, 5*time.Minute+time.Duration(f.Accounts)*perAccount, func() error {
			done, err := f.count(ctx, "rotation.done")
			if result.Rotated = done; err == nil && done < f.Accounts {
				err = fmt.Errorf("%d of %d rotations are done", done, f.Accounts)
			}
			return err
		})
	})
}

// count is how many events of an action the auditor finds that were accepted.
func (f *run) count(ctx context.Context, action string) (n int, err error) {
	err = f.auditor.QueryRow(ctx, `SELECT COUNT(*) FROM audit_log WHERE action = $1 AND outcome = 'accepted'`, action).Scan(&n)
	return n, err
}
