package vaultsecret

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/vault"
)

func TestAPublicKeyMakesRoomForTheNext(t *testing.T) {
	for name, c := range map[string]struct {
		readable []uint64
		custom   []string
		version  string
		want     []string
	}{
		"nothing is there":                                 {nil, nil, "1", nil},
		"what can be read keeps its own":                   {[]uint64{1, 2}, []string{"public_key.1", "public_key.2"}, "3", nil},
		"what cannot be read any more loses it":            {[]uint64{2}, []string{"public_key.1", "public_key.2"}, "3", []string{"1"}},
		"one that was announced is written over":           {[]uint64{1}, []string{"public_key.1", "public_key.2"}, "2", nil},
		"what is announced for later stays":                {[]uint64{1}, []string{"public_key.1", "public_key.9"}, "2", nil},
		"other people's metadata stays, whatever its name": {[]uint64{1}, []string{"owner", "public_key", "public_key.x", "public_key."}, "2", nil},
	} {
		t.Run(name, func(t *testing.T) {
			metadata := vault.Metadata{Readable: c.readable, Custom: map[string]string{}}
			for _, key := range c.custom {
				metadata.Custom[key] = "value"
			}
			if spent := makeRoom(metadata, c.version); !slices.Equal(spent, c.want) {
				t.Errorf("%v go, and not %v", spent, c.want)
			}
		})
	}
}

func TestThereIsRoomForAPublicKeyWhateverIsThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		metadata := vault.Metadata{Custom: map[string]string{}}
		newest := rapid.Uint64Range(1, 100).Draw(t, "newest")
		for number := uint64(1); number <= newest; number++ {
			if rapid.Bool().Draw(t, "readable") {
				metadata.Readable = append(metadata.Readable, number)
			}
			if rapid.Bool().Draw(t, "named") && len(metadata.Custom) < maxCustom {
				metadata.Custom[fmt.Sprint(vault.PublicKeyPrefix, number)] = "key"
			}
		}
		for range rapid.IntRange(0, 10).Draw(t, "others") {
			if len(metadata.Custom) < maxCustom {
				metadata.Custom[rapid.StringMatching("[a-z]{8}").Draw(t, "other")] = "value"
			}
		}
		before := len(metadata.Custom)
		for _, version := range makeRoom(metadata, fmt.Sprint(newest+1)) {
			if metadata.Custom[vault.PublicKeyPrefix+version] == "" {
				t.Fatalf("the public key of version %s goes, and is not there", version)
			}
			delete(metadata.Custom, vault.PublicKeyPrefix+version)
		}
		if len(metadata.Custom)+1 > maxCustom {
			t.Fatalf("%d of %d stay, and there is room for %d", len(metadata.Custom), before, maxCustom-1)
		}
	})
}

func FuzzSecret(f *testing.F) {
	f.Add([]byte(`{"data":{"data":{"key":"dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="},"metadata":{"custom_metadata":{"public_key.1":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo"},"version":1}}}`), "key")
	f.Add([]byte(`{"data":{"data":{"key":"not a key hunter2"},"metadata":{"custom_metadata":null,"version":1}}}`), "key")
	f.Add([]byte(`{"data":{"data":null,"metadata":{"version":1,"deletion_time":"2026-11-25T13:35:19Z"}}}`), "key")
	f.Add([]byte(`[]`), "")
	f.Fuzz(func(t *testing.T, body []byte, field string) {
		value, err := parse(body, field)
		if err == nil {
			if value.Version == "" || value.Version == "0" || value.Key.IsZero() {
				t.Fatalf("version %q without a key was taken", value.Version)
			}
			return
		}
		if !errors.Is(err, kms.ErrMalformed) && !errors.Is(err, backupkey.ErrNotAKey) || kms.Retryable(err) {
			t.Fatalf("got %v", err)
		}
		if strings.Contains(string(body), "hunter2") && strings.Contains(err.Error(), "hunter2") && !strings.Contains(field, "hunter2") {
			t.Fatal("the error quotes the secret")
		}
	})
}
