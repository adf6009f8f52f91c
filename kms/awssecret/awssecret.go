// Package awssecret reads and writes keys in AWS Secrets Manager, for the managed device. The public key of a version is
// the secret's tag `public_key.<version id>`; the id is chosen by whoever writes, so the tag is there first.
package awssecret

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/aws"
	"github.com/keyherald/keyherald/kms/secret"
)

// Config names the region and where the credentials come from.
type Config = aws.Config

// Client implements secret.Store. To read it needs secretsmanager:DescribeSecret, ListSecretVersionIds and
// GetSecretValue; to write also CreateSecret, PutSecretValue, UpdateSecretVersionStage, TagResource and UntagResource.
type Client struct {
	session *aws.Session
	field   string
}

// New checks the configuration, and loads what the SDK's chain of credentials names.
func New(ctx context.Context, config Config) (*Client, error) {
	session, err := aws.New(ctx, config, aws.Everything)
	if err != nil {
		return nil, err
	}
	return &Client{session, config.Field}, nil
}

// Current implements secret.Reader: the version with the label AWSCURRENT.
func (c *Client) Current(ctx context.Context, path string) (string, error) {
	description, err := c.session.Describe(ctx, path)
	if err == nil && description.Current == "" {
		err = fmt.Errorf("reading the AWS metadata of %s: no version is %s: %w", path, aws.LabelCurrent, kms.ErrNotFound)
	}
	return description.Current, err
}

// Versions implements secret.Reader. AWS's versions have no order but the dates of their creation, and keep being
// readable without a label until AWS needs the room.
func (c *Client) Versions(ctx context.Context, path string) ([]string, error) {
	// It also tells whether the secret is there, and is not marked for deletion.
	description, err := c.session.Describe(ctx, path)
	if err != nil {
		return nil, err
	}
	return c.versions(ctx, path, description)
}

func (c *Client) versions(ctx context.Context, path string, description aws.Description) ([]string, error) {
	var found []types.SecretVersionsListEntry
	// AWS keeps about a hundred; who goes on for ever is not AWS.
	const pages = 50
	all, page := true, int32(100)
	input := &secretsmanager.ListSecretVersionIdsInput{SecretId: &path, IncludeDeprecated: &all, MaxResults: &page}
	for n := 0; ; n++ {
		var answer *secretsmanager.ListSecretVersionIdsOutput
		err := c.session.Do(ctx, "listing the AWS versions of "+path, func(client *secretsmanager.Client) (err error) {
			answer, err = client.ListSecretVersionIds(ctx, input)
			return err
		})
		if err != nil {
			return nil, err
		}
		found = append(found, answer.Versions...)
		if answer.NextToken == nil || *answer.NextToken == "" {
			break
		}
		if n == pages {
			return nil, fmt.Errorf("listing the AWS versions of %s: %w: it has no end", path, kms.ErrMalformed)
		}
		input.NextToken = answer.NextToken
	}
	return inOrder(found, description), nil
}

// inOrder sorts versions by their dates, and those of one date so that the current one comes last and the previous one
// before it.
func inOrder(found []types.SecretVersionsListEntry, description aws.Description) []string {
	rank := func(v types.SecretVersionsListEntry) int {
		labels := description.Labels[*v.VersionId]
		switch {
		case slices.Contains(labels, aws.LabelCurrent):
			return 2
		case slices.Contains(labels, aws.LabelPrevious):
			return 1
		}
		return 0
	}
	found = slices.DeleteFunc(found, func(v types.SecretVersionsListEntry) bool { return v.VersionId == nil || v.CreatedDate == nil })
	slices.SortStableFunc(found, func(a, b types.SecretVersionsListEntry) int {
		if order := a.CreatedDate.Compare(*b.CreatedDate); order != 0 {
			return order
		}
		return rank(a) - rank(b)
	})
	versions := make([]string, len(found))
	for i, v := range found {
		versions[i] = *v.VersionId
	}
	return versions
}

// versionPattern is a ClientRequestToken, which AWS makes the version's id.
var versionPattern = regexp.MustCompile(`^[A-Za-z0-9-]{32,64}$`)

// Fetch implements secret.Reader.
func (c *Client) Fetch(ctx context.Context, path, version string) (secret.Value, error) {
	if err := aws.CheckPath(path); err != nil {
		return secret.Value{}, err
	}
	doing := "fetching " + path
	current := aws.LabelCurrent
	input := &secretsmanager.GetSecretValueInput{SecretId: &path, VersionStage: &current}
	if version != "" {
		if !versionPattern.MatchString(version) {
			return secret.Value{}, fmt.Errorf("%s: AWS's versions are ids of 32 to 64 letters, digits and dashes, not %q: %w", doing, version, kms.ErrNotFound)
		}
		doing += ", version " + version
		input = &secretsmanager.GetSecretValueInput{SecretId: &path, VersionId: &version}
	}
	var answer *secretsmanager.GetSecretValueOutput
	err := c.session.Do(ctx, doing, func(client *secretsmanager.Client) (err error) {
		answer, err = client.GetSecretValue(ctx, input)
		return err
	})
	switch {
	case aws.HasCode(err, "InvalidRequestException"):
		return secret.Value{}, fmt.Errorf("%s: it is marked for deletion: %w", doing, kms.ErrNotFound)
	case err != nil:
		return secret.Value{}, err
	case answer.VersionId == nil || *answer.VersionId == "" || version != "" && *answer.VersionId != version || answer.Name == nil || *answer.Name != path:
		return secret.Value{}, fmt.Errorf("%s: %w: it is not of this version of this secret", doing, kms.ErrMalformed)
	}
	value := secret.Value{Version: *answer.VersionId}
	text := string(answer.SecretBinary)
	if answer.SecretString != nil {
		text = *answer.SecretString
	}
	if value.Key, err = parse(text, c.field); err != nil {
		return secret.Value{}, fmt.Errorf("fetching %s, version %s: %w", path, value.Version, err)
	}
	description, err := c.session.Describe(ctx, path)
	if err != nil {
		return secret.Value{}, err
	}
	value.PublicKey = description.PublicKey(value.Version)
	return value, nil
}

// parse reads the key from a secret, or from one field of a secret that is a JSON object. An error never quotes it.
func parse(text, field string) (backupkey.Key, error) {
	if field != "" {
		var fields map[string]any
		if json.Unmarshal([]byte(text), &fields) != nil {
			return backupkey.Key{}, fmt.Errorf("the secret is no JSON object, and its field %q was to be read: %w", field, backupkey.ErrNotAKey)
		}
		var ok bool
		if text, ok = fields[field].(string); !ok {
			return backupkey.Key{}, fmt.Errorf("the secret has no text in the field %q: %w", field, backupkey.ErrNotAKey)
		}
	}
	return backupkey.Parse(text)
}

// encode is what parse reads.
func encode(value, field string) (string, error) {
	if field == "" {
		return value, nil
	}
	encoded, err := json.Marshal(map[string]string{field: value})
	if err != nil {
		return "", errors.New("encoding a secret")
	}
	return string(encoded), nil
}
