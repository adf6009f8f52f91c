package aws

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

// The SDK's client can read a secret, and is in the server's binary. Whatever is asked of it through a session of metadata
// alone, no value gets into this process.
func TestNothingOfASecretComesInWithinTheReachOfMetadata(t *testing.T) {
	t.Setenv("AWS_CA_BUNDLE", "")
	var reached []string
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		reached = append(reached, strings.TrimPrefix(req.Header.Get("X-Amz-Target"), "secretsmanager."))
		_, _ = w.Write([]byte(`{"Name":"alice","SecretString":"value"}`))
	}))
	t.Cleanup(hs.Close)
	file := filepath.Join(t.TempDir(), "aws-config")
	if err := os.WriteFile(file, []byte("[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), Config{Region: "eu-central-1", URL: hs.URL, ConfigFile: file}, MetadataOnly)
	if err != nil {
		t.Fatal(err)
	}
	ctx, name := t.Context(), "alice"
	c := s.Client
	_, batch := c.BatchGetSecretValue(ctx, &secretsmanager.BatchGetSecretValueInput{SecretIdList: []string{name}})
	_, put := c.PutSecretValue(ctx, &secretsmanager.PutSecretValueInput{SecretId: &name, SecretString: &name})
	_, list := c.ListSecrets(ctx, &secretsmanager.ListSecretsInput{})
	_, policy := c.PutResourcePolicy(ctx, &secretsmanager.PutResourcePolicyInput{SecretId: &name, ResourcePolicy: &name})
	for what, err := range map[string]error{"BatchGetSecretValue": batch, "PutSecretValue": put, "ListSecrets": list, "PutResourcePolicy": policy} {
		if !errors.Is(err, errOutOfReach) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	value, err := c.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &name})
	if !errors.Is(err, ErrReadable) || value != nil {
		t.Errorf("got %v for a value that was sent", err)
	}
	if _, err := s.Describe(ctx, name); err != nil {
		t.Errorf("a description did not come through: %v", err)
	}
	if !slices.Equal(reached, []string{"GetSecretValue", "DescribeSecret"}) {
		t.Errorf("what reached the server was %v", reached)
	}
}

func TestAConfigurationThatCannotWorkIsNamedByItsKey(t *testing.T) {
	for name, c := range map[string]struct {
		config Config
		want   string
	}{
		"no region":            {Config{}, "region is"},
		"a region that is one": {Config{Region: "Frankfurt"}, "region is"},
		"a url without host":   {Config{Region: "eu-central-1", URL: "https://"}, "url must be"},
	} {
		if err := c.config.Validate(); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	for _, region := range []string{"eu-central-1", "us-gov-west-1", "ap-southeast-2", "us-iso-east-1"} {
		if err := (Config{Region: region}).Validate(); err != nil {
			t.Error(err)
		}
	}
}
