package backupkey_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"gopkg.in/yaml.v3"
	"maunium.net/go/mautrix/crypto/utils"
	"pgregory.net/rapid"

	"github.com/keyherald/keyherald/backup/backupkey"
)

// The key pair of RFC 7748, section 6.1 (Alice).
const (
	privateHex = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"
	publicHex  = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
)

func TestAKeyIsReadInEveryFormAndNoOther(t *testing.T) {
	raw, err := hex.DecodeString(privateHex)
	if err != nil {
		t.Fatal(err)
	}
	unpadded, recovery := base64.RawStdEncoding.EncodeToString(raw), utils.EncodeBase58RecoveryKey(raw)
	for name, text := range map[string]string{
		"base64 without padding":                 unpadded,
		"base64 with padding":                    unpadded + "=",
		"base64 between spaces and lines":        " \n" + unpadded + "=\r\n",
		"a recovery key with spaces":             recovery,
		"a recovery key without spaces":          strings.ReplaceAll(recovery, " ", ""),
		"a recovery key broken over two lines":   strings.Replace(recovery, " ", "\n", 1),
		"a recovery key with a tab in its midst": strings.Replace(recovery, " ", "\t", 2),
	} {
		if key, err := backupkey.Parse(text); err != nil || !bytes.Equal(key.Reveal(), raw) {
			t.Errorf("%s is not read: %v", name, err)
		}
	}
	wrongParity := []byte(strings.ReplaceAll(recovery, " ", ""))
	wrongParity[20] = map[bool]byte{true: 'B', false: 'A'}[wrongParity[20] == 'A']
	for name, text := range map[string]string{
		"nothing": "", "padding alone": "=", "31 bytes": base64.RawStdEncoding.EncodeToString(raw[:31]),
		"33 bytes": base64.RawStdEncoding.EncodeToString(append(raw, 1)), "hex": privateHex, "URL-safe base64": strings.Repeat("-_", 21) + "A",
		"a recovery key with a wrong letter": string(wrongParity), "half a recovery key": recovery[:20], "raw bytes": string(raw), "JSON": `{"key":"` + unpadded + `"}`,
	} {
		if _, err := backupkey.Parse(text); !errors.Is(err, backupkey.ErrNotAKey) {
			t.Errorf("%s: got %v, not ErrNotAKey", name, err)
		}
	}
}

func TestThePublicKeyIsTheOneOfRFC7748(t *testing.T) {
	private, _ := hex.DecodeString(privateHex)
	public, _ := hex.DecodeString(publicHex)
	key, err := backupkey.FromBytes(private)
	if err != nil {
		t.Fatal(err)
	}
	if want := base64.RawStdEncoding.EncodeToString(public); key.PublicKey() != want {
		t.Fatalf("the public key is %s, not %s", key.PublicKey(), want)
	}
	if padded := base64.StdEncoding.EncodeToString(public); !key.Fits(padded) {
		t.Fatal("a padded public key does not fit")
	}
}

func TestTheZeroKeyFitsNothing(t *testing.T) {
	var zero backupkey.Key
	if !zero.IsZero() || zero.Fits("") || zero.Fits("=") || zero.PublicKey() != "" || len(zero.Reveal()) != 0 || zero.RevealBase64() != "" {
		t.Fatal("the zero key passes for a key")
	}
}

// forms is every way in which a key might be written down by accident.
func forms(key backupkey.Key) []string {
	raw := key.Reveal()
	decimal := strings.Trim(fmt.Sprintf("%d", raw), "[]")
	return []string{string(raw), hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)), base64.RawStdEncoding.EncodeToString(raw),
		base64.RawURLEncoding.EncodeToString(raw), utils.EncodeBase58RecoveryKey(raw), decimal, strings.ReplaceAll(decimal, " ", ",")}
}

func TestAKeyNeverPrints(t *testing.T) {
	type exported struct{ Key backupkey.Key }
	type unexported struct{ key backupkey.Key }
	rapid.Check(t, func(t *rapid.T) {
		key, err := backupkey.FromBytes(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key"))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p"} {
			for _, value := range []any{key, &key, exported{key}, &exported{key}, unexported{key}, &unexported{key}, []backupkey.Key{key}, map[string]backupkey.Key{"k": key}, fmt.Errorf("%v", key)} {
				fmt.Fprintf(&out, verb, value)
			}
		}
		for _, value := range []any{key, &key, exported{key}, unexported{key}, []backupkey.Key{key}} {
			encoded, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			out.Write(encoded)
			encoded, err = yaml.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			out.Write(encoded)
			log := zerolog.New(&out)
			log.Info().Interface("key", value).Any("any", value).Stringer("stringer", key).Str("str", fmt.Sprint(value)).Send()
			slog.New(slog.NewTextHandler(&out, nil)).Info("x", "key", value)
			slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "key", value)
		}
		for _, form := range forms(key) {
			if strings.Contains(out.String(), form) {
				t.Fatalf("a key was printed in one of its forms")
			}
		}
		if !strings.Contains(out.String(), "(redacted)") {
			t.Fatal("nothing was printed")
		}
	})
}

func FuzzParse(f *testing.F) {
	raw, _ := hex.DecodeString(privateHex)
	for _, seed := range []string{"", "=", base64.StdEncoding.EncodeToString(raw), base64.RawStdEncoding.EncodeToString(raw), utils.EncodeBase58RecoveryKey(raw), "EsT\x00", "é", strings.Repeat("1", 48)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := backupkey.Parse(text)
		if err != nil {
			if !errors.Is(err, backupkey.ErrNotAKey) || !key.IsZero() || err.Error() != backupkey.ErrNotAKey.Error() {
				t.Fatalf("an error that is not the constant one, or a key with it")
			}
			return
		}
		if len(key.Reveal()) != 32 {
			t.Fatalf("a key of %d bytes", len(key.Reveal()))
		}
		for _, again := range []string{key.RevealBase64(), base64.StdEncoding.EncodeToString(key.Reveal()), utils.EncodeBase58RecoveryKey(key.Reveal())} {
			if back, err := backupkey.Parse(again); err != nil || back.PublicKey() != key.PublicKey() {
				t.Fatalf("a key does not survive being written down: %v", err)
			}
		}
	})
}
