//go:build kms

package kms_test

import (
	"context"
	"fmt"
	"regexp"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"
	"github.com/google/uuid"

	"github.com/keyherald/keyherald/keyheraldtest"
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
