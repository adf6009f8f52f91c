package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/crypto/utils"
	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"

	"github.com/keyherald/keyherald/protocol"
)

// forms are the ways in which somebody may write 32 bytes.
var forms32 = map[string]func([]byte) string{
	"base64":                        base64.StdEncoding.EncodeToString,
	"base64 without padding":        base64.RawStdEncoding.EncodeToString,
	"base64url":                     base64.URLEncoding.EncodeToString,
	"base64url without padding":     base64.RawURLEncoding.EncodeToString,
	"hex":                           hex.EncodeToString,
	"HEX":                           func(key []byte) string { return strings.ToUpper(hex.EncodeToString(key)) },
	"a recovery key":                utils.EncodeBase58RecoveryKey,
	"a recovery key without spaces": func(key []byte) string { return strings.ReplaceAll(utils.EncodeBase58RecoveryKey(key), " ", "") },
}

// foreign are the ways in which what others write comes into an event.
var foreign = map[string]func(text string) Event{
	"an id of a notification": func(text string) Event { return accepted(ID("id", NotificationID(text))) },
	"an id of a credential":   func(text string) Event { return accepted(ID("key", CredentialID(text))) },
	"a KMS":                   func(text string) Event { return accepted(ID("kms", KMSName(text))) },
	"a path":                  func(text string) Event { return accepted(ID("path", KMSPath(text))) },
	"a version":               func(text string) Event { return accepted(ID("version", KMSVersion(text))) },
	"a reader": func(text string) Event {
		e := accepted(ID("reader", ReaderName(text)))
		e.Action = RotationAsked
		return e
	},
	"a source": func(text string) Event {
		e := accepted()
		e.Actor = BySource(SourceName(text))
		return e
	},
	"a user": func(text string) Event {
		e := accepted()
		e.Subject = OfUser(id.UserID(text))
		return e
	},
	"a user's name": func(text string) Event {
		e := accepted()
		e.Subject = OfUser(id.UserID("@" + text + ":example.org"))
		return e
	},
	"a device": func(text string) Event {
		e := progress()
		e.Actor = ByDevice("@alice:example.org", id.DeviceID(text))
		return e
	},
	"a key-backup version": func(text string) Event { return reported(ID("backup_version", id.KeyBackupVersion(text))) },
	"a public key":         func(text string) Event { return reported(Fingerprint("public_key_sha256", PublicKey(text))) },
	"a stage":              func(text string) Event { return reported(Word("stage", protocol.Stage(text))) },
	"an error":             func(text string) Event { return reported(Word("error", protocol.ErrorCode(text))) },
	"a version of software": func(text string) Event {
		e := progress()
		e.Action, e.Rotation, e.Detail = StatusReported, [16]byte{}, Detail{ID("software_version", SoftwareVersion(text))}
		return e
	},
	"a caller's issuer":  func(text string) Event { return freeze(ByPerson(IssuerName(text), "subject", "")) },
	"a caller's subject": func(text string) Event { return freeze(ByPerson("https://issuer.example", PersonName(text), "")) },
	"a caller's name": func(text string) Event {
		return freeze(ByPerson("https://issuer.example", "subject", PersonName(text)))
	},
	"a token's name": func(text string) Event { return freeze(ByToken(TokenName(text))) },
	"an account":     func(text string) Event { return freeze(ByLocal(AccountName(text), "host")) },
	"a host":         func(text string) Event { return freeze(ByLocal("account", HostName(text))) },
	"names": func(text string) Event {
		return Event{Time: time.Unix(1, 0), Actor: ByLocal("a", "b"), Action: ServerStarted, Subject: OfServer(), Outcome: Accepted,
			Detail: Detail{IDs("sources", []SourceName{"x", SourceName(text)}), IDs("sinks", []SinkName{SinkName(text)}), ID("log", LogName(text))}}
	},
}

func accepted(fields ...Field) Event {
	return Event{Time: time.Unix(1, 0), Actor: BySource("kms"), Action: NotificationAccepted, Subject: OfUser("@alice:example.org"), Rotation: someRotation, Outcome: Accepted, Detail: fields}
}

func reported(fields ...Field) Event {
	e := progress()
	e.Detail = fields
	return e
}

func freeze(actor Actor) Event {
	return Event{Time: time.Unix(1, 0), Actor: actor, Action: TriggersFrozen, Subject: OfTriggers(), Outcome: Accepted}
}

// Whatever somebody writes where an identifier belongs: 32 bytes do not come into the log, in any form, alone or among
// other words.
func TestAKeyDoesNotEnterWhereverItIsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key")
		form := rapid.SampledFrom(keysOf(forms32)).Draw(t, "form")
		text := forms32[form](key)
		before := rapid.SampledFrom([]string{"", " ", "v=", "key:", "secret/", "https://kms.example.org/?v=", "a b ", "old-"}).Draw(t, "before")
		after := rapid.SampledFrom([]string{"", " ", "&x=1", "/1", " is it", ","}).Draw(t, "after")
		if strings.ContainsAny(text, "/-_+") && strings.ContainsAny(before+after, "/-") {
			before, after = "", "" // inside of a path such a key is not told from the path: looksLikeKey says so
		}
		where := rapid.SampledFrom(keysOf(foreign)).Draw(t, "where")
		sealed, err := foreign[where](before + text + after).Seal()
		if err != nil {
			t.Fatalf("it is not sealed at all: %v", err)
		}
		for _, bytes32 := range forms32 {
			for _, in := range [][]byte{sealed.Body, sealed.Detail} {
				if needle := strings.TrimRight(bytes32(key), "="); bytes.Contains(in, []byte(needle)) {
					t.Fatalf("as %s in %s it is there: %s", form, where, in)
				}
			}
		}
		if _, err := NewReason("it was " + before + text + after); !errors.Is(err, ErrSecretReason) {
			t.Fatalf("as %s it may be a reason: %v", form, err)
		}
	})
}

// Whatever else somebody writes, the event is sealed, and no longer than it may be.
func TestForeignTextIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringN(0, -1, 2000), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "text")
		where := rapid.SampledFrom(keysOf(foreign)).Draw(t, "where")
		sealed, err := foreign[where](text).Seal()
		if err != nil {
			t.Fatal(err)
		}
		// Six bytes for a character, where JSON escapes it.
		if len(sealed.Body) > 600+6*512 || len(sealed.Detail) > 200+3*6*512 {
			t.Fatalf("%s: %d and %d bytes", where, len(sealed.Body), len(sealed.Detail))
		}
	})
}

func keysOf[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}

func TestIdentifiersAreShownAsTheyCameUnlessTheyCouldBeKeys(t *testing.T) {
	key := bytes.Repeat([]byte{0xfb, 0x01}, 16)
	for _, test := range []struct {
		name, text string
		shown      bool
	}{
		{"nothing", "", true},
		{"a path", "keyherald/alice/backup-key", true},
		{"a long path of words", "corporate/europe/keyherald/production/people/alice.example/backup-key", true},
		{"an ARN", "arn:aws:secretsmanager:eu-central-1:123456789012:secret:keyherald/alice-AbCdEf", true},
		{"a version that is an UUID", "EXAMPLE1-90ab-cdef-fedc-ba987EXAMPLE", true},
		{"a version of 32 hex digits", "0123456789abcdef0123456789abcdef", true},
		{"a SHA-1", "da39a3ee5e6b4b0d3255bfef95601890afd80709", true},
		{"an id that is no ASCII", "schlüssel/größe", true},
		{"a key", base64.StdEncoding.EncodeToString(key), false},
		{"a SHA-256 in hex, which could be a key", hex.EncodeToString(key), false},
		{"a key behind a name", "version." + hex.EncodeToString(key), false},
		{"a key in a path", "secret/" + base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32)) + "/x", false},
		{"a recovery key", utils.EncodeBase58RecoveryKey(key), false},
		{"a line break", "a\nb", false},
		{"a NUL", "a\x00b", false},
		{"what is no text", "\xff\xfe", false},
		{"what is too long", strings.Repeat("x", 513), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := shown(test.text, 512)
			if (got == test.text) != test.shown || !test.shown && (!strings.HasPrefix(got, "sha256:") || len(got) != 39) {
				t.Errorf("it is shown as %q", got)
			}
		})
	}
}

func TestActorsAndSubjectsCannotPassForOthers(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{BySource("kms").String(), "source:kms"},
		{ByDevice("@alice:example.org", "DEVICE").String(), "@alice:example.org/DEVICE"},
		{ByLocal("root", "host").String(), "local:root@host"},
		{ByPerson("https://sso.example", "1137", "").String(), "admin:1137@https://sso.example"},
		{ByPerson("https://sso.example", "1137", "alice@example.org").String(), "admin:alice@example.org(1137)@https://sso.example"},
		{ByPerson("https://sso.example", "1137", "bob(0)").String(), "admin:1137@https://sso.example"},
		{ByPerson("https://sso.example", "token:ci", "").String(), "admin:token:ci@https://sso.example"},
		{ByToken("ci").String(), "admin:token:ci"},
		{OfUser("@alice:example.org").String(), "@alice:example.org"},
		{OfUser("relay").String(), fingerprint("relay")},
		{OfUser("").String(), fingerprint("")},
		{BySender("triggers").String(), fingerprint("triggers")},
		{OfDevice("@alice:example.org", "A/B").String(), "@alice:example.org/" + fingerprint("A/B")},
		{OfServer().String(), "server"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
	padded, unpadded := Fingerprint("x", PublicKey("AAAA=")), Fingerprint("x", id.Ed25519("AAAA"))
	if padded.value != unpadded.value {
		t.Error("a key's fingerprint depends on its padding")
	}
}

func TestAReasonIsPlainTextWithoutSecrets(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       error
	}{
		{"a sentence", "The disk of db1 broke; restored from the backup of 03:00 (ticket OPS-4711).", nil},
		{"500 bytes", strings.Repeat("x ", 250), nil},
		{"another script", "Сервер восстановлен из копии", nil},
		{"nothing", "", ErrNoReason},
		{"spaces", " \t ", ErrNoReason},
		{"over 500 bytes", strings.Repeat("x ", 251) + "x", ErrUnusualReason},
		{"two lines", "a\nb", ErrUnusualReason},
		{"what is no text", "\xff", ErrUnusualReason},
		{"an enrollment code", "code kh1.abc.def.ghi leaked", ErrSecretReason},
		{"a signing secret", "rotate whsec_MDEyMzQ1Njc4OWFi", ErrSecretReason},
		{"a private key", "-----BEGIN PRIVATE KEY-----", ErrSecretReason},
		{"a signer key", "PRIVATE+KEY+example.org+1234abcd+AAAA", ErrSecretReason},
	} {
		t.Run(test.name, func(t *testing.T) {
			reason, err := NewReason(test.text)
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if err == nil && reason.text != strings.TrimSpace(test.text) {
				t.Errorf("it became %q", reason.text)
			}
			if err != nil && test.text != "" && strings.Contains(err.Error(), strings.TrimSpace(test.text)) && strings.TrimSpace(test.text) != "" {
				t.Error("the error repeats it")
			}
			if want := map[error]Refusal{ErrNoReason: RefusedNoReason, ErrUnusualReason: RefusedReason, ErrSecretReason: RefusedReason}[test.want]; err != nil && WhyNoReason(err) != want {
				t.Errorf("the word for it is %s", WhyNoReason(err))
			}
		})
	}
}

func TestOnlyAVerifierKeyStandsInTheLogWhole(t *testing.T) {
	if _, err := ParseVerifierKey("PRIVATE+KEY+example.org/log+76cbef4c+AaM1cvqxF7yvMKJ4mGKwBlrrRzLvtfnt5MVKAWM0Z5Cs"); err == nil {
		t.Error("a signer key is taken")
	}
	if _, err := ParseVerifierKey(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32))); err == nil {
		t.Error("a key without its name is taken")
	}
}
