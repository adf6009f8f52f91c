package awssecret

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"
	"github.com/google/uuid"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/aws"
)

// labelPending is on a version that is written and not yet, or never, the current one. AWSPENDING is for AWS's own
// rotation functions.
const labelPending = "KEYHERALD_PENDING"

// Create implements secret.Creator.
func (c *Client) Create(ctx context.Context, path, value string) error {
	if err := aws.CheckPath(path); err != nil {
		return err
	}
	text, err := encode(value, c.field)
	if err != nil {
		return err
	}
	return c.create(ctx, "creating "+path, path, uuid.NewString(), text, nil)
}

func (c *Client) create(ctx context.Context, doing, path, version, text string, tags []types.Tag) error {
	return c.session.Do(ctx, doing, func(client *secretsmanager.Client) error {
		answer, err := client.CreateSecret(ctx, &secretsmanager.CreateSecretInput{Name: &path, ClientRequestToken: &version, SecretString: &text, Tags: tags})
		if err == nil && (answer.VersionId == nil || *answer.VersionId != version) {
			err = kms.ErrMalformed
		}
		return err
	})
}

// Write implements secret.Writer. AWS compares nothing when a version is put, so it is put without the label of the
// current one, which is then moved from the version it was on: that fails where the label is on another by then.
func (c *Client) Write(ctx context.Context, path, after string, key backupkey.Key) (string, error) {
	description, err := c.session.Describe(ctx, path)
	missing := errors.Is(err, kms.ErrNotFound)
	if err != nil && !missing {
		return "", err
	}
	if description.Current != after {
		return c.compare(ctx, path, description.Current, key)
	}
	version := uuid.NewString()
	doing := "writing " + path + ", version " + version
	text, err := encode(key.RevealBase64(), c.field)
	if err != nil {
		return "", err
	}
	name, public := aws.PublicKeyPrefix+version, key.PublicKey()
	tag := types.Tag{Key: &name, Value: &public}
	if missing {
		err := c.create(ctx, doing, path, version, text, []types.Tag{tag})
		if errors.Is(err, kms.ErrExists) {
			return c.again(ctx, path, "", key, err)
		} else if err != nil {
			return "", err
		}
		return version, nil
	}
	if err := c.tag(ctx, path, description, tag); err != nil {
		return "", err
	}
	err = c.session.Do(ctx, doing, func(client *secretsmanager.Client) error {
		_, err := client.PutSecretValue(ctx, &secretsmanager.PutSecretValueInput{SecretId: &path, ClientRequestToken: &version, SecretString: &text, VersionStages: []string{labelPending}})
		return err
	})
	if err != nil {
		return "", err
	}
	if version, err = c.makeCurrent(ctx, doing, path, after, version, key); err != nil {
		return "", err
	}
	// Another writer who needed room may have taken a tag whose version was not there yet.
	if description, err = c.session.Describe(ctx, path); err != nil {
		return "", err
	}
	if description.PublicKey(version) != public {
		name = aws.PublicKeyPrefix + version
		return version, c.tag(ctx, path, description, tag)
	}
	return version, nil
}

// makeCurrent moves the label of the current version. AWS puts it onto a secret's first version by itself.
func (c *Client) makeCurrent(ctx context.Context, doing, path, after, version string, key backupkey.Key) (string, error) {
	label := aws.LabelCurrent
	input := &secretsmanager.UpdateSecretVersionStageInput{SecretId: &path, VersionStage: &label, MoveToVersionId: &version}
	if after != "" {
		input.RemoveFromVersionId = &after
	}
	err := c.session.Do(ctx, doing, func(client *secretsmanager.Client) error {
		_, err := client.UpdateSecretVersionStage(ctx, input)
		return err
	})
	if err == nil {
		return version, nil
	} else if !aws.HasCode(err, "InvalidParameterException") {
		return "", err
	}
	won, err := c.again(ctx, path, version, key, err)
	if err != nil {
		c.discard(ctx, path, version)
	}
	return won, err
}

// again is for a step that AWS refused: another writer was faster, or this one was and its answer was lost.
func (c *Client) again(ctx context.Context, path, version string, key backupkey.Key, refused error) (string, error) {
	description, err := c.session.Describe(ctx, path)
	switch {
	case err != nil:
		return "", err
	case description.Current == "":
		return "", refused
	case description.Current == version:
		return version, nil
	}
	return c.compare(ctx, path, description.Current, key)
}

// compare is for a path whose current version is another one than the writer knows: it may be his own.
func (c *Client) compare(ctx context.Context, path, current string, key backupkey.Key) (string, error) {
	if current == "" {
		return "", fmt.Errorf("writing %s, which has no version by now: %w", path, kms.ErrConflict)
	}
	held, err := c.Fetch(ctx, path, current)
	if err != nil {
		return "", err
	}
	if !held.Key.Fits(key.PublicKey()) {
		return "", fmt.Errorf("writing %s, which has version %s: %w", path, held.Version, kms.ErrConflict)
	}
	return held.Version, nil
}

// discard leaves a version that lost to AWS, which removes those without a label, and takes its tag away. Where that
// fails, the next write does it.
func (c *Client) discard(ctx context.Context, path, version string) {
	label, tag := labelPending, aws.PublicKeyPrefix+version
	_ = c.session.Do(ctx, "discarding a version", func(client *secretsmanager.Client) error {
		_, err := client.UpdateSecretVersionStage(ctx, &secretsmanager.UpdateSecretVersionStageInput{SecretId: &path, VersionStage: &label, RemoveFromVersionId: &version})
		return err
	})
	_ = c.session.Do(ctx, "discarding a version", func(client *secretsmanager.Client) error {
		_, err := client.UntagResource(ctx, &secretsmanager.UntagResourceInput{SecretId: &path, TagKeys: []string{tag}})
		return err
	})
}

const (
	// maxTags is how many tags a secret may have.
	maxTags = 50
	// keptTags are the public keys that stay beside the one that is written; older ones are not asked for.
	keptTags = 9
)

// tag names a version's public key, and makes room for it first.
func (c *Client) tag(ctx context.Context, path string, description aws.Description, tag types.Tag) error {
	doing := "writing the AWS tags of " + path
	if ours := slices.Collect(publicKeys(description)); len(ours) > keptTags || len(description.Tags) >= maxTags {
		versions, err := c.versions(ctx, path, description)
		if err != nil {
			return err
		}
		if spent := makeRoom(description, versions); len(spent) > 0 {
			err := c.session.Do(ctx, doing, func(client *secretsmanager.Client) error {
				_, err := client.UntagResource(ctx, &secretsmanager.UntagResourceInput{SecretId: &path, TagKeys: spent})
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return c.session.Do(ctx, doing, func(client *secretsmanager.Client) error {
		_, err := client.TagResource(ctx, &secretsmanager.TagResourceInput{SecretId: &path, Tags: []types.Tag{tag}})
		return err
	})
}

// makeRoom names the tags that go when one more is written: those of all versions but the newest (versions are in their
// order). A tag whose version is not there is somebody's who is about to write it, or is left over from one that is gone:
// it goes only where there is no room else. The current version's always stays.
func makeRoom(description aws.Description, versions []string) (spent []string) {
	var known, unknown []string
	for version := range publicKeys(description) {
		switch {
		case version == description.Current:
		case slices.Contains(versions, version):
			known = append(known, version)
		default:
			unknown = append(unknown, version)
		}
	}
	slices.Sort(unknown)
	slices.SortFunc(known, func(a, b string) int { return slices.Index(versions, a) - slices.Index(versions, b) })
	spare := min(keptTags-1, len(known))
	goes := known[:len(known)-spare]
	for _, version := range append(unknown, known[len(known)-spare:]...) {
		if len(description.Tags)-len(goes)+1 <= maxTags {
			break
		}
		goes = append(goes, version)
	}
	for _, version := range goes {
		spent = append(spent, aws.PublicKeyPrefix+version)
	}
	return spent
}

// publicKeys are the versions whose public keys the tags name.
func publicKeys(description aws.Description) iter.Seq[string] {
	return func(yield func(string) bool) {
		for key := range description.Tags {
			if version, ok := strings.CutPrefix(key, aws.PublicKeyPrefix); ok && !yield(version) {
				return
			}
		}
	}
}
