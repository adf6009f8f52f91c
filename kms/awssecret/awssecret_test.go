package awssecret

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms/internal/aws"
)

func TestThereIsRoomForATagWhateverIsThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		description := aws.Description{Tags: map[string]string{}}
		var versions []string
		for i := range rapid.IntRange(0, 60).Draw(t, "versions") {
			version := fmt.Sprintf("version-%02d", i)
			there := rapid.Bool().Draw(t, "there")
			if there {
				versions = append(versions, version)
				description.Current = version
			}
			if rapid.Bool().Draw(t, "tagged") && len(description.Tags) < maxTags {
				description.Tags[aws.PublicKeyPrefix+version] = "key"
			}
		}
		for range rapid.IntRange(0, 40).Draw(t, "others") {
			if len(description.Tags) < maxTags {
				description.Tags[rapid.StringMatching("[a-z]{8}").Draw(t, "other")] = "value"
			}
		}
		before := len(description.Tags)
		var announced int
		for version := range publicKeys(description) {
			if !slices.Contains(versions, version) {
				announced++
			}
		}
		spent := makeRoom(description, versions)
		gone := 0
		for _, tag := range spent {
			version, ok := strings.CutPrefix(tag, aws.PublicKeyPrefix)
			if _, there := description.Tags[tag]; !ok || !there || version == description.Current {
				t.Fatalf("%s goes", tag)
			}
			if !slices.Contains(versions, version) {
				gone++
			}
			delete(description.Tags, tag)
		}
		ours := len(slices.Collect(publicKeys(description)))
		if len(description.Tags)+1 > maxTags && ours > 1 {
			t.Fatalf("%d of %d tags stay, %d of them ours", len(description.Tags), before, ours)
		}
		if known := ours - (announced - gone); known > keptTags {
			t.Fatalf("%d public keys of versions that are there stay", known)
		}
		if gone > 0 && before+1-(len(spent)-gone) <= maxTags {
			t.Fatal("a tag whose version is not there yet went without need")
		}
	})
}

func TestTheNewestPublicKeysStay(t *testing.T) {
	description := aws.Description{Tags: map[string]string{"owner": "alice"}}
	var versions []string
	for i := range 12 {
		versions = append(versions, fmt.Sprintf("v%02d", i))
		description.Tags[aws.PublicKeyPrefix+versions[i]] = "key"
	}
	description.Current = "v11"
	if spent := makeRoom(description, versions); !slices.Equal(spent, []string{"public_key.v00", "public_key.v01", "public_key.v02"}) {
		t.Errorf("%v go", spent)
	}
}

func FuzzKey(f *testing.F) {
	f.Add(`{"backup_key":"dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="}`, "backup_key")
	f.Add(`dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=`, "")
	f.Add(`{"backup_key":"hunter2-hunter2"}`, "backup_key")
	f.Fuzz(func(t *testing.T, text, field string) {
		key, err := parse(text, field)
		if err == nil {
			if again, err := encode(key.RevealBase64(), field); err != nil {
				t.Fatal(err)
			} else if back, err := parse(again, field); err != nil || !back.Fits(key.PublicKey()) {
				// A field whose name is no text comes back as another.
				if strings.ToValidUTF8(field, "") == field {
					t.Fatalf("what was encoded is not read back: %v", err)
				}
			}
			return
		}
		if !errors.Is(err, backupkey.ErrNotAKey) {
			t.Fatalf("got %v", err)
		}
		if strings.Contains(text, "hunter2") && !strings.Contains(field, "hunter2") && strings.Contains(err.Error(), "hunter2") {
			t.Fatal("the error quotes the secret")
		}
	})
}
