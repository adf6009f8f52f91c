// Package awsmeta reads metadata from AWS Secrets Manager. The vendor's SDK under it can read values too: what is sent is
// limited to descriptions, and to the question whether a value could be read, whose answer nobody reads.
package awsmeta

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/google/uuid"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/aws"
)

// Config names the region and where the credentials come from. Field is not used here.
type Config = aws.Config

// Client implements kms.Metadata. It needs secretsmanager:DescribeSecret, and must not have
// secretsmanager:GetSecretValue.
type Client struct{ session *aws.Session }

// New checks the configuration, and loads what the SDK's chain of credentials names.
func New(ctx context.Context, config Config) (*Client, error) {
	session, err := aws.New(ctx, config, aws.MetadataOnly)
	if err != nil {
		return nil, err
	}
	return &Client{session}, nil
}

// Current implements kms.Metadata: the version with the label AWSCURRENT.
func (c *Client) Current(ctx context.Context, path string) (kms.Description, error) {
	description, err := c.session.Describe(ctx, path)
	if err != nil {
		return kms.Description{}, err
	}
	if description.Current == "" {
		return kms.Description{}, fmt.Errorf("reading the AWS metadata of %s: no version is %s: %w", path, aws.LabelCurrent, kms.ErrNotFound)
	}
	return kms.Description{Path: path, Version: description.Current, PublicKey: description.PublicKey(description.Current)}, nil
}

// CanReadSecret asks for a version that cannot be there. AWS decides about the right before it looks: who may read is
// told that there is no such version, and who may not that he may not.
func (c *Client) CanReadSecret(ctx context.Context, path string) (bool, error) {
	if err := aws.CheckPath(path); err != nil {
		return false, err
	}
	version := uuid.NewString()
	err := c.session.Do(ctx, "asking AWS whether "+path+" could be read", func(client *secretsmanager.Client) error {
		_, err := client.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &path, VersionId: &version})
		return err
	})
	switch {
	case err == nil, errors.Is(err, aws.ErrReadable), errors.Is(err, kms.ErrNotFound):
		return true, nil
	case aws.HasCode(err, "InvalidRequestException"):
		// It is marked for deletion, and can be restored.
		return true, nil
	case aws.Denied(err):
		return false, nil
	}
	return false, err
}
