package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/keyherald/keyherald/audit/checkpoint"
)

// S3Config names a bucket. Endpoint is empty for AWS itself. Without AccessKeyID the credentials are those of the
// environment, as the vendor's SDK finds them.
type S3Config struct {
	Endpoint, Region, Bucket, Prefix string
	AccessKeyID, SecretAccessKey     string
}

// S3 is Directory in a bucket of an S3-compatible store. Where the store can lock objects (object lock, versioning), what
// was published cannot be taken back; docs/auditors.md says how.
type S3 struct {
	name, bucket, prefix string
	keys                 checkpoint.Keys
	client               *s3.Client
}

// NewS3 makes the sink.
func NewS3(ctx context.Context, name string, config S3Config, keys checkpoint.Keys) (*S3, error) {
	options := []func(*awsconfig.LoadOptions) error{awsconfig.WithRegion(config.Region)}
	if config.AccessKeyID != "" {
		options = append(options, awsconfig.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(config.AccessKeyID, config.SecretAccessKey, "")))
	}
	loaded, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("preparing the S3 client: %w", err)
	}
	client := s3.NewFromConfig(loaded, func(o *s3.Options) {
		if config.Endpoint != "" {
			// Other stores know neither buckets as host names nor the checksums that AWS added later.
			o.BaseEndpoint, o.UsePathStyle = aws.String(config.Endpoint), true
			o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
			o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		}
	})
	prefix := strings.Trim(config.Prefix, "/")
	if prefix != "" {
		prefix += "/"
	}
	return &S3{name, config.Bucket, prefix, keys, client}, nil
}

// Name implements signer.Sink.
func (s *S3) Name() string { return s.name }

// Newest implements signer.Memory.
func (s *S3) Newest(ctx context.Context) (string, error) {
	note, ok, err := s.get(ctx, latest)
	if err != nil || ok {
		return note, err
	}
	if _, written, err := s.get(ctx, mark); err != nil {
		return "", err
	} else if written {
		return "", fmt.Errorf("%s%s is gone, though checkpoints were written here", s.prefix, latest)
	}
	return "", nil
}

// get reads an object; ok is false where there is none.
func (s *S3) get(ctx context.Context, name string) (content string, ok bool, err error) {
	object, err := s.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String(s.prefix + name)})
	var none *types.NoSuchKey
	if errors.As(err, &none) {
		return "", false, nil
	} else if err != nil {
		return "", false, fmt.Errorf("reading %s%s: %w", s.prefix, name, err)
	}
	raw, err := io.ReadAll(io.LimitReader(object.Body, 64<<10))
	if err = errors.Join(err, object.Body.Close()); err != nil {
		return "", false, fmt.Errorf("reading %s%s: %w", s.prefix, name, err)
	}
	return string(raw), true, nil
}

// Publish implements signer.Sink.
func (s *S3) Publish(ctx context.Context, c checkpoint.Signed) error {
	present, err := s.Newest(ctx)
	if err != nil {
		return err
	}
	toWrite, err := files(s.keys, present, c)
	if err != nil {
		return err
	}
	for _, file := range toWrite {
		_, err := s.client.PutObject(ctx, &s3.PutObjectInput{Bucket: &s.bucket, Key: aws.String(s.prefix + file.name),
			Body: strings.NewReader(file.content), ContentType: aws.String("text/plain; charset=utf-8")})
		if err != nil {
			return fmt.Errorf("writing the checkpoint %s%s: %w", s.prefix, file.name, err)
		}
	}
	return nil
}
