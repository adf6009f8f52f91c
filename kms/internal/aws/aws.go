// Package aws is a session with AWS Secrets Manager by the vendor's SDK. What is asked through it is up to its callers,
// within their Reach.
package aws

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"
	"github.com/aws/smithy-go/logging"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/bounded"
)

// Config names the region and where the credentials come from.
type Config struct {
	Region string
	// URL is an endpoint in the place of the region's, such as a VPC's; empty means the region's.
	URL string
	// CAFile is a PEM file with the only CAs to trust; empty means the system's.
	CAFile string
	// Field is the field of a secret that is a JSON object; empty means that the whole secret is the key.
	Field string
	// ConfigFile is in the form of ~/.aws/config, and may hold credentials. Empty means the SDK's chain: environment,
	// ~/.aws, web identity, container, instance.
	ConfigFile string
	// Profile is a profile of ConfigFile, or of ~/.aws; empty means "default" in the one, and none in the other.
	Profile string
}

var regionPattern = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]+$`)

// Validate returns an error that begins with the key it is about.
func (c Config) Validate() error {
	if !regionPattern.MatchString(c.Region) {
		return fmt.Errorf("region is %q: write a region, such as eu-central-1", c.Region)
	}
	if c.URL != "" {
		if _, err := bounded.BaseURL(c.URL); err != nil {
			return err
		}
	}
	return nil
}

// Reach is what a session may be used for.
type Reach int

const (
	// MetadataOnly lets descriptions through, and cuts off the answer with a value before anything reads it.
	MetadataOnly Reach = iota
	// Everything is the device's.
	Everything
)

// Session is a client of the SDK with the SDK's own retries, redirects and logging switched off.
type Session struct {
	Client      *secretsmanager.Client
	credentials aws.CredentialsProvider
}

// New checks the configuration and loads what the SDK's chain names. Nothing is sent to Secrets Manager yet.
func New(ctx context.Context, c Config, reach Reach) (*Session, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("aws: %w", err)
	}
	options := []func(*config.LoadOptions) error{
		config.WithRegion(c.Region), config.WithHTTPClient(awshttp.NewBuildableClient()), config.WithLogger(logging.Nop{}),
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("aws: ca_file: %w", err)
		}
		options = append(options, config.WithCustomCABundle(bytes.NewReader(pem)))
	}
	if c.ConfigFile != "" {
		profile := c.Profile
		if profile == "" {
			profile = "default"
		}
		options = append(options, config.WithSharedConfigFiles([]string{c.ConfigFile}), config.WithSharedCredentialsFiles([]string{c.ConfigFile}), config.WithSharedConfigProfile(profile))
	} else if c.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(c.Profile))
	}
	loaded, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("aws: reading the configuration of the credentials: %w", err)
	}
	// The SDK's client knows the CAs of its environment and configuration, which it takes for no other client.
	built, ok := loaded.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		return nil, fmt.Errorf("aws: the SDK's HTTP client is %T", loaded.HTTPClient)
	}
	client := bounded.Around(whole{built.GetTransport()})
	if reach == MetadataOnly {
		client.Transport = metadataOnly{client.Transport}
	}
	loaded.HTTPClient = client
	return &Session{Client: secretsmanager.NewFromConfig(loaded, func(o *secretsmanager.Options) {
		if c.URL != "" {
			o.BaseEndpoint = aws.String(strings.TrimRight(c.URL, "/"))
		}
	}), credentials: loaded.Credentials}, nil
}

// Do makes one call. Errors are package kms's, and say what was being done.
func (s *Session) Do(ctx context.Context, doing string, call func(*secretsmanager.Client) error) error {
	// Asked for here, an answer about credentials is not taken for one about the secret.
	if s.credentials != nil {
		limited, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if _, err := s.credentials.Retrieve(limited); err != nil {
			return fmt.Errorf("%s: getting the credentials: %w", doing, translateCredentials(err))
		}
	}
	return translate(doing, call(s.Client))
}

var pathPattern = regexp.MustCompile(`^[A-Za-z0-9/_+=.@-]{1,512}$`)

// CheckPath refuses what is no name of a secret; an ARN, which has colons, is none.
func CheckPath(path string) error {
	if err := kms.CheckPath(path); err != nil {
		return err
	}
	if !pathPattern.MatchString(path) {
		return fmt.Errorf("%q is %w; AWS takes letters, digits and /_+=.@-", path, kms.ErrBadPath)
	}
	return nil
}

// The labels of versions that AWS moves.
const (
	LabelCurrent  = "AWSCURRENT"
	LabelPrevious = "AWSPREVIOUS"
)

// Description is what Secrets Manager says of a secret without its values.
type Description struct {
	// Current is the version with the label AWSCURRENT; empty for none.
	Current string
	// Labels are the labels of the versions that have some.
	Labels map[string][]string
	Tags   map[string]string
}

// PublicKeyPrefix and a version's id are the tag's key for its public key.
const PublicKeyPrefix = "public_key."

// PublicKey is what the tags name for a version, without padding; empty for nothing.
func (d Description) PublicKey(version string) string {
	return strings.TrimRight(d.Tags[PublicKeyPrefix+version], "=")
}

// Describe asks for a secret's description. One that is marked for deletion is not there.
func (s *Session) Describe(ctx context.Context, path string) (Description, error) {
	if err := CheckPath(path); err != nil {
		return Description{}, err
	}
	doing := "reading the AWS metadata of " + path
	var answer *secretsmanager.DescribeSecretOutput
	err := s.Do(ctx, doing, func(client *secretsmanager.Client) (err error) {
		answer, err = client.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: &path})
		return err
	})
	if err == nil {
		var d Description
		if d, err = describe(path, answer); err == nil {
			return d, nil
		}
		err = fmt.Errorf("%s: %w", doing, err)
	}
	return Description{}, err
}

func describe(path string, answer *secretsmanager.DescribeSecretOutput) (Description, error) {
	// A name that looks like the end of an ARN may find another secret.
	if answer == nil || answer.Name == nil || *answer.Name != path {
		return Description{}, fmt.Errorf("%w: it does not describe this secret", kms.ErrMalformed)
	}
	if answer.DeletedDate != nil {
		return Description{}, fmt.Errorf("it is marked for deletion: %w", kms.ErrNotFound)
	}
	d := Description{Labels: answer.VersionIdsToStages, Tags: tags(answer.Tags)}
	for version, labels := range answer.VersionIdsToStages {
		for _, label := range labels {
			if label != LabelCurrent {
				continue
			}
			if d.Current != "" || version == "" {
				return Description{}, fmt.Errorf("%w: more than one version is the current one", kms.ErrMalformed)
			}
			d.Current = version
		}
	}
	return d, nil
}

func tags(list []types.Tag) map[string]string {
	m := map[string]string{}
	for _, tag := range list {
		if tag.Key != nil && tag.Value != nil {
			m[*tag.Key] = *tag.Value
		}
	}
	return m
}

// whole sends bodies that are in memory. The SDK closes a request's body as soon as the answer begins, and its WriteTo is
// an error from then on; net/http, which looks once more whether a body of unknown kind has come to its end, then closes the
// connection that the answer is being read from.
type whole struct{ next http.RoundTripper }

func (w whole) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return w.next.RoundTrip(req)
	}
	body, err := io.ReadAll(req.Body)
	if err := errors.Join(err, req.Body.Close()); err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return w.next.RoundTrip(req)
}

// CloseIdleConnections is what http.Client's asks for.
func (w whole) CloseIdleConnections() { (&http.Client{Transport: w.next}).CloseIdleConnections() }

// errOutOfReach never comes about: it is in the way of a change that would have the server read a secret.
var errOutOfReach = errors.New("this program does not send that request: it reads metadata alone")

// ErrReadable is in the chain of what comes of a question for a value that was answered with one, within MetadataOnly.
// Nobody has read the answer.
var ErrReadable = errors.New("these credentials can read the value")

// metadataOnly lets descriptions through. A question for a value goes out too, since it alone tells whether the
// credentials may ask; its answer is closed unread.
type metadataOnly struct{ next http.RoundTripper }

func (m metadataOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	target := req.Header.Get("X-Amz-Target")
	switch target {
	case "secretsmanager.DescribeSecret", "secretsmanager.GetSecretValue":
	default:
		return nil, fmt.Errorf("%s: %w", target, errOutOfReach)
	}
	resp, err := m.next.RoundTrip(req)
	if err == nil && target == "secretsmanager.GetSecretValue" && resp.StatusCode < http.StatusMultipleChoices {
		return nil, errors.Join(ErrReadable, resp.Body.Close())
	}
	return resp, err
}
