package device

import (
	"strings"
	"testing"

	"github.com/keyherald/keyherald/msc4385"
	"github.com/keyherald/keyherald/protocol"
)

const goodAccount = `user_id: "@alice:example.org"
homeserver: https://matrix.example.org
login:
  password_file: alice.password
kms:
  name: corporate
  type: file
  dir: kms
  path: keyherald/alice
`

func TestAnAccountFileWithAMistakeAboutSecretsIsRefusedWithItsLine(t *testing.T) {
	tests := []struct {
		name, more string
		line, want string
	}{
		{"an answer with a name that nobody knows", "answer:\n  names: [m.megolm_backup.v1, com.example.diary]\n", "line 11", "answer.names[1]"},
		{"no answers in an hour", "answer:\n  per_hour: 0\n", "line 11", "answer.per_hour"},
		{"a judgement that is none", "receive:\n  accept:\n    m.megolm_backup.v1: sometimes\n", "line 11", "write always, ask or never"},
		{"a judgement of a secret that nobody knows", "receive:\n  accept:\n    com.example.diary: always\n", "line 11", "com.example.diary"},
		{"two places for a recovery key", "escrow:\n  file: a\n  kms: b\n", "line 10", "escrow"},
		{"OAuth without a client", "", "line 4", "client_name and client_uri"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			content := goodAccount + test.more
			if strings.HasPrefix(test.name, "OAuth") {
				content = strings.Replace(goodAccount, "password_file: alice.password", "oauth: {client_name: Keyherald}", 1)
			}
			_, err := load(t, content)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.line) {
				t.Errorf("got %v, want %s and %s", err, test.line, test.want)
			}
		})
	}
}

func TestWithoutAWordTheBackupKeyIsGivenAndTakenAndNoOtherSecret(t *testing.T) {
	config, err := load(t, goodAccount)
	if err != nil {
		t.Fatal(err)
	}
	if len(config.Answer.Names) != 1 || config.Answer.Names[0] != protocol.SecretMegolmBackup || config.Answer.PerHour < 4 {
		t.Errorf("answers are %+v", config.Answer)
	}
	policy := config.Receive.policy()
	if policy[protocol.SecretMegolmBackup] != msc4385.Accept || policy[protocol.SecretMaster] == msc4385.Accept || policy[protocol.SecretSelfSigning] == msc4385.Accept {
		t.Errorf("the policy is %v", policy)
	}
	if config, err = load(t, goodAccount+"answer:\n  names: []\nreceive:\n  accept:\n    m.megolm_backup.v1: never\n    m.cross_signing.master: ask\n"); err != nil {
		t.Fatal(err)
	}
	if policy := config.Receive.policy(); len(config.Answer.Names) != 0 || policy[protocol.SecretMegolmBackup] != msc4385.Refuse || policy[protocol.SecretMaster] != msc4385.Ask {
		t.Errorf("answers are %v, the policy %v", config.Answer.Names, policy)
	}
}

func TestARecoveryKeyIsReplacedWhereAFirstOneIsKeptUnlessAnotherPlaceIsNamed(t *testing.T) {
	first := AccountConfig{Verification: Verification{BootstrapToKMS: "keyherald/alice/recovery-key"}}
	if got := first.escrow(); got != (Escrow{KMS: "keyherald/alice/recovery-key"}) {
		t.Errorf("got %+v", got)
	}
	first.Escrow.File = "alice.recovery-key"
	if got := first.escrow(); got != (Escrow{File: "alice.recovery-key"}) {
		t.Errorf("got %+v", got)
	}
}
