//go:build kms

package kms_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"
	"github.com/google/uuid"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/awsmeta"
	"github.com/keyherald/keyherald/kms/awssecret"
	"github.com/keyherald/keyherald/kms/kmstest"
	"github.com/keyherald/keyherald/kms/policy"
)

var users atomic.Int32

// user makes a principal with the actions of a policy, and returns the configuration with its credentials. Moto does not
// look at what a policy permits the actions on.
func user(t *testing.T, moto *keyheraldtest.Moto, url, rules string) awsmeta.Config {
	t.Helper()
	rules = regexp.MustCompile(`(?s)"Resource": \[.*?\]`).ReplaceAllString(rules, `"Resource": "*"`)
	credentials, err := moto.User(t.Context(), fmt.Sprint("user", users.Add(1)), rules)
	check(t, err)
	return awsmeta.Config{Region: keyheraldtest.MotoRegion, URL: url, Profile: "keyherald", ConfigFile: file(t, fmt.Sprintf(
		"[profile keyherald]\naws_access_key_id = %s\naws_secret_access_key = %s\n", credentials.AccessKeyID, credentials.SecretAccessKey))}
}

// administrator writes as docs/kms.md says: it chooses the version's id, tags the secret, and then puts the value.
func administrator(t *testing.T, moto *keyheraldtest.Moto) func(t *testing.T, path, value, public string) string {
	t.Helper()
	credentials := moto.Admin()
	loaded, err := config.LoadDefaultConfig(t.Context(), config.WithRegion(keyheraldtest.MotoRegion), config.WithBaseEndpoint(moto.URL),
		config.WithCredentialsProvider(aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return credentials, nil })))
	check(t, err)
	client := secretsmanager.NewFromConfig(loaded)
	return func(t *testing.T, path, value, public string) string {
		t.Helper()
		ctx, version := t.Context(), uuid.NewString()
		var tags []types.Tag
		if public != "" {
			tags = []types.Tag{{Key: aws.String("public_key." + version), Value: &public}}
		}
		if _, err := client.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: &path}); err != nil {
			_, err := client.CreateSecret(ctx, &secretsmanager.CreateSecretInput{Name: &path, ClientRequestToken: &version, SecretString: &value, Tags: tags})
			check(t, err)
			return version
		}
		if tags != nil {
			_, err := client.TagResource(ctx, &secretsmanager.TagResourceInput{SecretId: &path, Tags: tags})
			check(t, err)
		}
		_, err := client.PutSecretValue(ctx, &secretsmanager.PutSecretValueInput{SecretId: &path, ClientRequestToken: &version, SecretString: &value})
		check(t, err)
		return version
	}
}

// A device that may keep its recovery key puts it once, and reads it where that is printed too.
func TestAWSTakesARecoveryKeyOnceAndShowsItWhereThatIsPermitted(t *testing.T) {
	const where = "aws:secretsmanager:eu-central-1:123456789012"
	place := policy.Place{Path: "keyherald/{user}/backup-key", RecoveryPath: "keyherald/{user}/recovery-key", RecoveryReplace: true}
	moto, err := keyheraldtest.StartMoto(t.Context(), t.TempDir())
	check(t, err)
	t.Cleanup(func() { check(t, moto.Close()) })
	for _, read := range []bool{false, true} {
		place.RecoveryRead = read
		// What the policy permits with the user's own key is another statement, and moto does not look at which secret it is for.
		var printed map[string]any
		check(t, json.Unmarshal([]byte(policy.AWSDevice(where, place, "alice")), &printed))
		printed["Statement"] = printed["Statement"].([]any)[1:]
		recoveryKeys, err := json.MarshalIndent(printed, "", "  ")
		check(t, err)
		secrets, err := awssecret.New(t.Context(), user(t, moto, moto.URL, string(recoveryKeys)))
		check(t, err)
		key, err := backupkey.Generate()
		check(t, err)
		path := fmt.Sprintf("keyherald/alice/recovery-key/%t", read)
		check(t, secrets.Create(t.Context(), path, key.RevealBase64()))
		if err := secrets.Create(t.Context(), path, "another"); !errors.Is(err, kms.ErrExists) {
			t.Errorf("got %v for one that is there", err)
		}
		kept, err := secrets.Fetch(t.Context(), path, "")
		if read && (err != nil || !kept.Key.Fits(key.PublicKey())) || !read && !errors.Is(err, kms.ErrForbidden) {
			t.Errorf("where it may be read is %t, reading it ends with %v", read, err)
		}
	}
}

func TestAWSConforms(t *testing.T) {
	const where = "aws:secretsmanager:eu-central-1:123456789012"
	place := policy.Place{Path: "keyherald/{user}"}
	writing := policy.Place{Path: place.Path, Write: true}
	traits := kmstest.Traits{HasPublicKey: true, Unordered: true, Absent: uuid.NewString()}
	kmstest.Run(t, traits, func(t *testing.T) kmstest.KMS {
		dir := t.TempDir()
		moto, err := keyheraldtest.StartMoto(t.Context(), dir)
		check(t, err)
		t.Cleanup(func() { check(t, moto.Close()) })
		url, seen := kmstest.Record(t, moto.URL)
		meta := func(config awsmeta.Config) *awsmeta.Client {
			client, err := awsmeta.New(t.Context(), config)
			check(t, err)
			return client
		}
		secrets := func(config awssecret.Config) *awssecret.Client {
			client, err := awssecret.New(t.Context(), config)
			check(t, err)
			return client
		}
		reader := user(t, moto, url, policy.AWSDevice(where, place, "alice"))
		stranger := user(t, moto, url, "")
		return kmstest.KMS{Metadata: meta(user(t, moto, url, policy.AWSServer(where, place))), Privileged: meta(reader),
			Secrets: secrets(user(t, moto, url, policy.AWSDevice(where, writing, "alice"))), ReadOnly: secrets(reader),
			Stranger: meta(stranger), StrangerSecrets: secrets(stranger), Put: administrator(t, moto), Traffic: seen}
	})
}
