package kmstest_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/awsmeta"
	"github.com/keyherald/keyherald/kms/awssecret"
	"github.com/keyherald/keyherald/kms/kmstest"
	"github.com/keyherald/keyherald/kms/secret"
)

func awsClients(t *testing.T, config awsmeta.Config) (*awsmeta.Client, *awssecret.Client) {
	t.Helper()
	// What the machine of the tests has is none of theirs.
	for _, name := range []string{"AWS_CA_BUNDLE", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"} {
		t.Setenv(name, "")
	}
	config.Region, config.Profile, config.ConfigFile = "eu-central-1", "keyherald", filepath.Join(t.TempDir(), "aws-config")
	check(t, os.WriteFile(config.ConfigFile, []byte("[profile keyherald]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n"), 0o600))
	metadata, err := awsmeta.New(t.Context(), config)
	check(t, err)
	secrets, err := awssecret.New(t.Context(), config)
	check(t, err)
	return metadata, secrets
}

func TestAWSsClientsStandABrokenServer(t *testing.T) {
	kmstest.Hostile(t, func(t *testing.T, url, caFile string) (kms.Metadata, secret.Store) {
		return awsClients(t, awsmeta.Config{URL: url, CAFile: caFile})
	})
}

// awsAnswers is a server of answers in AWS's own form, by operation.
func awsAnswers(t *testing.T, answers map[string]string) string {
	t.Helper()
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		operation := strings.TrimPrefix(req.Header.Get("X-Amz-Target"), "secretsmanager.")
		body, ok := answers[operation]
		if !ok {
			t.Errorf("%s was asked for", operation)
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		if strings.HasPrefix(body, `{"__type"`) {
			w.WriteHeader(http.StatusBadRequest)
		}
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(hs.Close)
	return hs.URL
}

const (
	oldID = "5048d4d8-cad2-4087-9f2a-000000000001"
	newID = "5048d4d8-cad2-4087-9f2a-000000000002"
)

func TestAWSsErrorsGetTheirWord(t *testing.T) {
	for code, want := range map[string]error{
		"AccessDeniedException": kms.ErrForbidden, "UnrecognizedClientException": kms.ErrForbidden, "ExpiredTokenException": kms.ErrForbidden, "InvalidSignatureException": kms.ErrForbidden,
		"DecryptionFailure": kms.ErrForbidden, "ResourceNotFoundException": kms.ErrNotFound, "ThrottlingException": kms.ErrUnavailable, "InternalServiceError": kms.ErrUnavailable,
		"InvalidParameterException": kms.ErrMalformed, "hunter2Exception": kms.ErrMalformed,
	} {
		t.Run(code, func(t *testing.T) {
			said := `{"__type":"` + code + `","Message":"hunter2"}`
			metadata, secrets := awsClients(t, awsmeta.Config{URL: awsAnswers(t, map[string]string{"DescribeSecret": said, "GetSecretValue": said})})
			_, described := metadata.Current(t.Context(), "keyherald/alice")
			_, fetched := secrets.Fetch(t.Context(), "keyherald/alice", "")
			for _, err := range []error{described, fetched} {
				if !errors.Is(err, want) || kms.Retryable(err) != errors.Is(want, kms.ErrUnavailable) || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("got %v, not %v", err, want)
				}
			}
			readable, err := metadata.CanReadSecret(t.Context(), "keyherald/alice")
			switch code {
			case "AccessDeniedException":
				if readable || err != nil {
					t.Errorf("readable=%v, %v", readable, err)
				}
			case "ResourceNotFoundException":
				if !readable || err != nil {
					t.Errorf("who is told that a version is not there may read: readable=%v, %v", readable, err)
				}
			default:
				// Credentials that are not known prove nothing.
				if err == nil {
					t.Errorf("readable=%v was said", readable)
				}
			}
		})
	}
}

func TestAVersionsPlaceInAWSIsItsDateAndTheCurrentOneComesLast(t *testing.T) {
	described := `{"Name":"keyherald/alice","VersionIdsToStages":{"` + newID + `":["AWSCURRENT"],"` + oldID + `":["AWSPREVIOUS"]},"Tags":[{"Key":"public_key.` + newID + `","Value":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="}]}`
	for name, c := range map[string]struct {
		versions string
		want     []string
	}{
		"in no order": {`{"VersionId":"` + newID + `","CreatedDate":1523477145.713},{"VersionId":"aaaaaaaa-cad2-4087-9f2a-000000000003","CreatedDate":1423477145.1},{"VersionId":"` + oldID + `","CreatedDate":1523477145.712}`,
			[]string{"aaaaaaaa-cad2-4087-9f2a-000000000003", oldID, newID}},
		"of one moment": {`{"VersionId":"` + newID + `","CreatedDate":1523477145},{"VersionId":"` + oldID + `","CreatedDate":1523477145},{"VersionId":"aaaaaaaa-cad2-4087-9f2a-000000000003","CreatedDate":1523477145}`,
			[]string{"aaaaaaaa-cad2-4087-9f2a-000000000003", oldID, newID}},
	} {
		t.Run(name, func(t *testing.T) {
			metadata, secrets := awsClients(t, awsmeta.Config{URL: awsAnswers(t, map[string]string{"DescribeSecret": described, "ListSecretVersionIds": `{"Name":"keyherald/alice","Versions":[` + c.versions + `]}`})})
			versions, err := secrets.Versions(t.Context(), "keyherald/alice")
			if err != nil || !slices.Equal(versions, c.want) {
				t.Errorf("the versions are %v (%v), not %v", versions, err, c.want)
			}
			current, err := metadata.Current(t.Context(), "keyherald/alice")
			if err != nil || current.Version != newID || current.PublicKey != "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo" {
				t.Errorf("the metadata is %+v, %v", current, err)
			}
		})
	}
}

func TestAListOfVersionsWithoutAnEndIsMalformed(t *testing.T) {
	_, secrets := awsClients(t, awsmeta.Config{URL: awsAnswers(t, map[string]string{"DescribeSecret": `{"Name":"keyherald/alice","VersionIdsToStages":{"` + newID + `":["AWSCURRENT"]}}`,
		"ListSecretVersionIds": `{"Versions":[{"VersionId":"` + newID + `","CreatedDate":1523477145}],"NextToken":"more"}`})})
	if _, err := secrets.Versions(t.Context(), "keyherald/alice"); !errors.Is(err, kms.ErrMalformed) {
		t.Errorf("got %v", err)
	}
}

func TestWhatAWSSaysOfAnotherSecretOrOfNoneIsNotTaken(t *testing.T) {
	for name, c := range map[string]struct {
		described string
		want      error
	}{
		"another secret":                  {`{"Name":"keyherald/alice-bob123","VersionIdsToStages":{"` + newID + `":["AWSCURRENT"]}}`, kms.ErrMalformed},
		"two current versions":            {`{"Name":"keyherald/alice","VersionIdsToStages":{"` + newID + `":["AWSCURRENT"],"` + oldID + `":["AWSCURRENT"]}}`, kms.ErrMalformed},
		"no current version":              {`{"Name":"keyherald/alice","VersionIdsToStages":{"` + newID + `":["AWSPENDING"]}}`, kms.ErrNotFound},
		"no version at all":               {`{"Name":"keyherald/alice"}`, kms.ErrNotFound},
		"one that is marked for deletion": {`{"Name":"keyherald/alice","DeletedDate":1523477145.713,"VersionIdsToStages":{"` + newID + `":["AWSCURRENT"]}}`, kms.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			metadata, secrets := awsClients(t, awsmeta.Config{URL: awsAnswers(t, map[string]string{"DescribeSecret": c.described})})
			_, described := metadata.Current(t.Context(), "keyherald/alice")
			_, current := secrets.Current(t.Context(), "keyherald/alice")
			for _, err := range []error{described, current} {
				if !errors.Is(err, c.want) || kms.Retryable(err) {
					t.Errorf("got %v, not %v", err, c.want)
				}
			}
		})
	}
	key, err := backupkey.Generate()
	check(t, err)
	for name, body := range map[string]map[string]string{
		"a value of another version": {"Name": "keyherald/alice", "VersionId": oldID, "SecretString": key.RevealBase64()},
		"a value of another secret":  {"Name": "keyherald/bob", "VersionId": newID, "SecretString": key.RevealBase64()},
	} {
		t.Run(name, func(t *testing.T) {
			encoded, err := json.Marshal(body)
			check(t, err)
			_, secrets := awsClients(t, awsmeta.Config{URL: awsAnswers(t, map[string]string{"GetSecretValue": string(encoded)})})
			if _, err := secrets.Fetch(t.Context(), "keyherald/alice", newID); !errors.Is(err, kms.ErrMalformed) || strings.Contains(err.Error(), key.RevealBase64()) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A value that came where none can be is thrown away unread, and told.
func TestAValueThatTheMetadataClientIsSentIsNotRead(t *testing.T) {
	metadata, _ := awsClients(t, awsmeta.Config{URL: awsAnswers(t, map[string]string{"GetSecretValue": `{"Name":"keyherald/alice","VersionId":"` + newID + `","SecretString":"hunter2"}`})})
	if readable, err := metadata.CanReadSecret(t.Context(), "keyherald/alice"); err != nil || !readable {
		t.Errorf("readable=%v, %v", readable, err)
	}
}

func TestAKeyIsOneFieldOfASecretWhereTheConfigurationSaysSo(t *testing.T) {
	key, err := backupkey.Generate()
	check(t, err)
	described := `{"Name":"keyherald/alice","VersionIdsToStages":{"` + newID + `":["AWSCURRENT"]},"Tags":[{"Key":"public_key.` + newID + `","Value":"` + key.PublicKey() + `"}]}`
	for name, c := range map[string]struct {
		field, value string
		want         error
	}{
		"the field":                     {"backup_key", `{"owner":"alice","backup_key":"` + key.RevealBase64() + `"}`, nil},
		"the whole secret":              {"", key.RevealBase64(), nil},
		"a field that is not there":     {"backup_key", `{"owner":"alice"}`, backupkey.ErrNotAKey},
		"a field of another kind":       {"backup_key", `{"backup_key":7}`, backupkey.ErrNotAKey},
		"a secret that is no object":    {"backup_key", `hunter2`, backupkey.ErrNotAKey},
		"an object, and no field named": {"", `{"backup_key":"hunter2"}`, backupkey.ErrNotAKey},
	} {
		t.Run(name, func(t *testing.T) {
			encoded, err := json.Marshal(map[string]string{"Name": "keyherald/alice", "VersionId": newID, "SecretString": c.value})
			check(t, err)
			_, secrets := awsClients(t, awsmeta.Config{Field: c.field, URL: awsAnswers(t, map[string]string{"GetSecretValue": string(encoded), "DescribeSecret": described})})
			value, err := secrets.Fetch(t.Context(), "keyherald/alice", "")
			if !errors.Is(err, c.want) || err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Fatalf("got %v, not %v", err, c.want)
			}
			if c.want == nil {
				check(t, value.Verify())
			}
		})
	}
}

func TestAPathThatAWSWouldTakeForSomethingElseIsRefused(t *testing.T) {
	metadata, secrets := awsClients(t, awsmeta.Config{URL: "http://127.0.0.1:1"})
	for _, bad := range []string{"arn:aws:secretsmanager:eu-central-1:111122223333:secret:keyherald/alice-a1b2c3", "with space", "stern*", strings.Repeat("x", 513)} {
		_, described := metadata.Current(t.Context(), bad)
		_, fetched := secrets.Fetch(t.Context(), bad, "")
		for _, err := range []error{described, fetched} {
			if !errors.Is(err, kms.ErrBadPath) {
				t.Errorf("%q: got %v", bad, err)
			}
		}
	}
}

func TestCredentialsThatAreNotThereAreNamed(t *testing.T) {
	config := awsmeta.Config{Region: "eu-central-1", URL: "http://127.0.0.1:1", ConfigFile: filepath.Join(t.TempDir(), "aws-config")}
	t.Setenv("AWS_CA_BUNDLE", "")
	check(t, os.WriteFile(config.ConfigFile, []byte("[default]\nregion = eu-central-1\n"), 0o600))
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	metadata, err := awsmeta.New(t.Context(), config)
	check(t, err)
	if _, err := metadata.Current(t.Context(), "keyherald/alice"); !errors.Is(err, kms.ErrForbidden) || !strings.Contains(err.Error(), "getting the credentials") {
		t.Errorf("got %v", err)
	}
	config.Profile = "missing"
	if _, err := awsmeta.New(t.Context(), config); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("got %v for a profile that is not there", err)
	}
}
