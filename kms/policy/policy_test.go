package policy

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tailscale/setec/acl"
	"github.com/tailscale/setec/server"
)

func TestAPlaceOrAUserThatMeansSomethingElseInAPolicyIsRefused(t *testing.T) {
	for _, good := range []Place{{Path: "keyherald/{user}/backup-key"}, {Path: "{user}"}, {Path: "keys/of-{user}"}, {Path: "keyherald/{user}/backup-key", RecoveryPath: "keyherald/{user}/recovery-key"},
		{Path: "keyherald/{user}/backup-key", RecoveryPath: "keyherald/{user}/recovery-key", RecoveryRead: true, RecoveryReplace: true}, {Path: "keys/{user}", RecoveryPath: "keys/{user}/recovery", RecoveryReplace: true}} {
		if err := good.Check(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	for _, bad := range []Place{{}, {Path: "keyherald/alice"}, {Path: "{user}/{user}"}, {Path: "keyherald/{user}/*"}, {Path: "keyherald/+/{user}"}, {Path: "/{user}"}, {Path: "../{user}"},
		{Path: `keyherald/"/{user}`}, {Path: "keyherald\n/{user}"}, {Path: "{{identity.entity.id}}/{user}"}, {Path: "${aws:username}/{user}"}, {Path: "a?/{user}"}, {Path: "keyherald/{user}", RecoveryPath: "keyherald/{user}"}, {Path: "keyherald/{user}", RecoveryPath: "recovery"},
		{Path: "keyherald/{user}", RecoveryRead: true}, {Path: "keyherald/{user}", RecoveryReplace: true}, {Path: "keyherald/{user}/backup-key", RecoveryPath: "keyherald/{user}", RecoveryReplace: true},
		{Path: "keyherald/keys/{user}", RecoveryPath: "keyherald/{user}", RecoveryReplace: true}} {
		if bad.Check() == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	for _, bad := range []string{"", "*", "+", "alice/../bob", "alice*", `a"b`, "..", "al ice", "${aws:username}", "{{identity.entity.name}}", "a\nb"} {
		if CheckUser(bad) == nil {
			t.Errorf("the user %q was taken", bad)
		}
	}
	for _, good := range []string{"alice", "alice.smith", "a_b-c", "ümläut"} {
		if err := CheckUser(good); err != nil {
			t.Error(err)
		}
	}
}

func TestAPatternForAllUsersReachesNoFurtherThanItMust(t *testing.T) {
	for path, want := range map[string]string{"keyherald/{user}/backup-key": "keyherald/+/backup-key", "{user}": "+", "keyherald/{user}": "keyherald/+",
		"keys/of-{user}": "keys/of-*", "keys/of-{user}/x": "keys/of-*", "{user}-key": "*"} {
		if got := everyone(path); got != want {
			t.Errorf("%s is %s and not %s", path, got, want)
		}
	}
}

func TestThePoliciesOfVaultAreTheLeastThatDo(t *testing.T) {
	place := Place{Path: "keyherald/{user}/backup-key", RecoveryPath: "keyherald/{user}/recovery-key"}
	const own = `# Its own token: whether it is valid, a longer life, and what it may do.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "sys/capabilities-self" {
  capabilities = ["update"]
}
`
	if got, want := VaultServer("secret", place), `# The Keyherald server: versions and public keys of all users' keys, and never a key.
path "secret/metadata/keyherald/+/backup-key" {
  capabilities = ["read"]
}
# What no policy permits is refused already. This refuses it even where another policy of the token permits it.
path "secret/data/keyherald/+/backup-key" {
  capabilities = ["deny"]
}
path "secret/data/keyherald/+/recovery-key" {
  capabilities = ["deny"]
}
`+own; got != want {
		t.Errorf("the server's is\n%s", got)
	}
	if got, want := VaultDevice("secret", place, VaultIdentity), `# A managed device: its own user's key, and nothing else.
path "secret/data/keyherald/{{identity.entity.name}}/backup-key" {
  capabilities = ["read"]
}
path "secret/metadata/keyherald/{{identity.entity.name}}/backup-key" {
  capabilities = ["read"]
}
# The recovery key of an identity that the device makes: written once, never read.
path "secret/data/keyherald/{{identity.entity.name}}/recovery-key" {
  capabilities = ["create"]
}
path "secret/metadata/keyherald/{{identity.entity.name}}/recovery-key" {
  capabilities = ["read"]
}
`+own; got != want {
		t.Errorf("the device's is\n%s", got)
	}
	for _, rules := range []string{"keyherald/{{identity.entity.name}}/recovery-key", "keyherald/{{identity.entity.name}}/recovery-key/+"} {
		place.RecoveryReplace = strings.HasSuffix(rules, "+")
		for _, read := range []bool{false, true} {
			place.RecoveryRead = read
			got, capabilities := VaultDevice("secret", place, VaultIdentity), map[bool]string{false: `["create"]`, true: `["create", "read"]`}[read]
			for _, want := range []string{`path "secret/data/` + rules + `" {
  capabilities = ` + capabilities + `
}
`, `path "secret/metadata/` + rules + `" {
  capabilities = ["read"]
}
`} {
				if !strings.Contains(got, want) || strings.Contains(got, "/+") != place.RecoveryReplace {
					t.Errorf("with %+v the device's is\n%s", place, got)
				}
			}
		}
	}
	if got := VaultServer("secret", place); !strings.Contains(got, `path "secret/data/keyherald/+/recovery-key/+" {
  capabilities = ["deny"]
}
`) {
		t.Errorf("with recovery keys that are replaced the server's is\n%s", got)
	}
	if got := VaultServer("secret", Place{Path: "keys/{user}", RecoveryPath: "recovery-{user}", RecoveryReplace: true}); strings.Count(got, `path "secret/data/recovery-*"`) != 1 {
		t.Errorf("the server's has a rule twice or not:\n%s", got)
	}
	place.Write = true
	if got := VaultDevice("kv/matrix", place, "alice"); !strings.Contains(got, `path "kv/matrix/metadata/keyherald/alice/backup-key" {
  capabilities = ["create", "patch", "read", "update"]`) {
		t.Errorf("the writing device's is\n%s", got)
	}
}

// setec itself says what the grants permit.
func TestTheGrantsOfSetecPermitWhatIsNeededAndNothingElse(t *testing.T) {
	if setecCapability != string(server.ACLCap) {
		t.Fatalf("setec's capability is %s", server.ACLCap)
	}
	place := Place{Path: "keyherald/{user}/backup-key", RecoveryPath: "keyherald/{user}/recovery-key"}
	writing, reading, replacing, all := place, place, place, place
	writing.Write, reading.RecoveryRead, replacing.RecoveryReplace, all.RecoveryRead, all.RecoveryReplace = true, true, true, true, true
	rules := func(text string) acl.Rules {
		t.Helper()
		var g struct {
			App map[string]acl.Rules `json:"app"`
		}
		if err := json.Unmarshal([]byte(text), &g); err != nil {
			t.Fatal(err)
		}
		return g.App[string(server.ACLCap)]
	}
	actions := []acl.Action{acl.ActionGet, acl.ActionInfo, acl.ActionPut, acl.ActionCreateVersion, acl.ActionActivate, acl.ActionDelete}
	secrets := []string{"keyherald/alice/backup-key", "keyherald/alice/backup-key.metadata", "keyherald/alice/recovery-key", "keyherald/alice/recovery-key.metadata", "keyherald/alice/recovery-key/ID", "keyherald/bob/backup-key", "keyherald/bob/recovery-key", "keyherald/bob/recovery-key/ID", "keyherald/bob/backup-key.metadata", "other"}
	for name, c := range map[string]struct {
		rules acl.Rules
		want  string
	}{
		"the server": {rules(SetecServer(place)), "info alice/backup-key, info bob/backup-key"},
		"a device":   {rules(SetecDevice(place, "alice")), "get alice/backup-key, info alice/backup-key, get alice/backup-key.metadata, info alice/backup-key.metadata, info alice/recovery-key, create-version alice/recovery-key"},
		"a device that may read its recovery key": {rules(SetecDevice(reading, "alice")), "get alice/backup-key, info alice/backup-key, get alice/backup-key.metadata, info alice/backup-key.metadata, " +
			"get alice/recovery-key, info alice/recovery-key, create-version alice/recovery-key, get alice/recovery-key.metadata"},
		"a device that replaces recovery keys": {rules(SetecDevice(replacing, "alice")), "get alice/backup-key, info alice/backup-key, get alice/backup-key.metadata, info alice/backup-key.metadata, " +
			"info alice/recovery-key, create-version alice/recovery-key, info alice/recovery-key/ID, create-version alice/recovery-key/ID"},
		"a device that does both": {rules(SetecDevice(all, "alice")), "get alice/backup-key, info alice/backup-key, get alice/backup-key.metadata, info alice/backup-key.metadata, " +
			"get alice/recovery-key, info alice/recovery-key, create-version alice/recovery-key, get alice/recovery-key.metadata, get alice/recovery-key/ID, info alice/recovery-key/ID, create-version alice/recovery-key/ID"},
		"a writing device": {rules(SetecDevice(writing, "alice")), "get alice/backup-key, info alice/backup-key, create-version alice/backup-key, get alice/backup-key.metadata, info alice/backup-key.metadata, create-version alice/backup-key.metadata, info alice/recovery-key, create-version alice/recovery-key"},
	} {
		var permitted []string
		for _, secret := range secrets {
			for _, action := range actions {
				if c.rules.Allow(action, secret) {
					permitted = append(permitted, string(action)+" "+strings.TrimPrefix(secret, "keyherald/"))
				}
			}
		}
		if got := strings.Join(permitted, ", "); got != c.want {
			t.Errorf("%s may %s", name, got)
		}
	}
}

func TestThePoliciesOfAWSName(t *testing.T) {
	place := Place{Path: "keyherald/{user}/backup-key", RecoveryPath: "keyherald/{user}/recovery-key", Write: true}
	for name, c := range map[string]struct{ text, resource, permits, denies string }{
		"the server": {AWSServer("aws:secretsmanager:eu-central-1:111122223333", place), "arn:aws:secretsmanager:eu-central-1:111122223333:secret:keyherald/*/backup-key-??????",
			"secretsmanager:DescribeSecret", "secretsmanager:BatchGetSecretValue secretsmanager:GetSecretValue"},
		"a device": {AWSDevice("aws:secretsmanager:eu-central-1:111122223333", place, AWSUser), "arn:aws:secretsmanager:eu-central-1:111122223333:secret:keyherald/${aws:PrincipalTag/matrix_user}/backup-key-??????",
			"secretsmanager:DescribeSecret secretsmanager:GetSecretValue secretsmanager:ListSecretVersionIds secretsmanager:CreateSecret secretsmanager:PutSecretValue secretsmanager:TagResource secretsmanager:UntagResource secretsmanager:UpdateSecretVersionStage", ""},
	} {
		var d document
		if err := json.Unmarshal([]byte(c.text), &d); err != nil {
			t.Fatal(err)
		}
		denies := ""
		for _, s := range d.Statement {
			if s.Effect == "Deny" {
				denies = strings.Join(s.Action, " ")
			}
		}
		if d.Version != "2012-10-17" || d.Statement[0].Resource[0] != c.resource || strings.Join(d.Statement[0].Action, " ") != c.permits || denies != c.denies {
			t.Errorf("%s:\n%s", name, c.text)
		}
	}
}

func TestThePoliciesOfAWSLetADeviceKeepRecoveryKeysAndReadThemWhereThatIsWanted(t *testing.T) {
	const own = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:keyherald/alice/recovery-key-??????"
	const replaced = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:keyherald/alice/recovery-key/*-??????"
	place := Place{Path: "keyherald/{user}/backup-key", RecoveryPath: "keyherald/{user}/recovery-key"}
	for _, test := range []struct {
		name          string
		read, replace bool
		resources     []string
		permits       string
	}{
		{"it is put there, and never read", false, false, []string{own}, "secretsmanager:CreateSecret"},
		{"it is read too", true, false, []string{own}, "secretsmanager:CreateSecret secretsmanager:DescribeSecret secretsmanager:GetSecretValue"},
		{"it is replaced", false, true, []string{own, replaced}, "secretsmanager:CreateSecret"},
		{"both", true, true, []string{own, replaced}, "secretsmanager:CreateSecret secretsmanager:DescribeSecret secretsmanager:GetSecretValue"},
	} {
		t.Run(test.name, func(t *testing.T) {
			place.RecoveryRead, place.RecoveryReplace = test.read, test.replace
			var d document
			if err := json.Unmarshal([]byte(AWSDevice("aws:secretsmanager:eu-central-1:111122223333", place, "alice")), &d); err != nil {
				t.Fatal(err)
			}
			if s := d.Statement[1]; len(d.Statement) != 2 || s.Effect != "Allow" || strings.Join(s.Action, " ") != test.permits || !slices.Equal(s.Resource, test.resources) {
				t.Errorf("it is %+v", d.Statement)
			}
		})
	}
}

// Whatever passes the checks is one name and one path to Vault: no more rules come of it, and each rule is of the place.
func FuzzVaultPolicy(f *testing.F) {
	f.Add("keyherald/{user}/backup-key", "keyherald/{user}/recovery-key", "alice", true, false, true)
	f.Add("{user}", "", "ümläut", false, false, false)
	f.Add("keyherald/{user}/backup-key", "keyherald/{user}/recovery-key", "alice", false, true, true)
	f.Fuzz(func(t *testing.T, path, recovery, user string, write, read, replace bool) {
		place := Place{Path: path, RecoveryPath: recovery, Write: write, RecoveryRead: read, RecoveryReplace: replace}
		if place.Check() != nil || CheckUser(user) != nil {
			return
		}
		for name, text := range map[string]string{"server": VaultServer("secret", place), "device": VaultDevice("secret", place, user)} {
			rules := 0
			for line := range strings.Lines(text) {
				if !strings.HasPrefix(line, "path ") {
					if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "  capabilities = [\"") && line != "}\n" {
						t.Fatalf("%s: a line is %q", name, line)
					}
					continue
				}
				rules++
				quoted, ok := strings.CutSuffix(strings.TrimPrefix(line, "path "), " {\n")
				unquoted, err := strconv.Unquote(quoted)
				if !ok || err != nil {
					t.Fatalf("%s: a rule is %q", name, line)
				}
				own := strings.HasPrefix(unquoted, "auth/token/") || unquoted == "sys/capabilities-self"
				if !own && !strings.HasPrefix(unquoted, "secret/data/") && !strings.HasPrefix(unquoted, "secret/metadata/") {
					t.Fatalf("%s: a rule is of %q", name, unquoted)
				}
				below := strings.TrimSuffix(unquoted, "/+")
				if name == "device" && below != unquoted && !replace {
					t.Fatalf("%s: a rule is of %q", name, unquoted)
				}
				if name == "device" && !own && (strings.ContainsAny(below, "*+{}") || !strings.Contains(unquoted, user)) {
					t.Fatalf("%s: a rule is of %q", name, unquoted)
				}
			}
			want := 5
			if recovery != "" {
				want = map[string]int{"server": 6, "device": 7}[name]
			}
			if replace {
				want += map[string]int{"server": 1, "device": 2}[name]
			}
			if replace && name == "server" && strings.HasSuffix(everyone(recovery), "*") {
				want-- // it has what is below in it
			}
			if rules != want {
				t.Fatalf("%s: %d rules", name, rules)
			}
		}
	})
}
