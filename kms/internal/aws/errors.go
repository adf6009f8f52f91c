package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/keyherald/keyherald/kms"
)

// words are package kms's for the error codes of Secrets Manager and of AWS's request signing.
var words = map[string]error{
	"ResourceNotFoundException": kms.ErrNotFound,
	"ResourceExistsException":   kms.ErrExists,

	"AccessDeniedException": kms.ErrForbidden, "AccessDenied": kms.ErrForbidden, "UnrecognizedClientException": kms.ErrForbidden,
	"InvalidClientTokenId": kms.ErrForbidden, "InvalidSignatureException": kms.ErrForbidden, "SignatureDoesNotMatch": kms.ErrForbidden,
	"ExpiredTokenException": kms.ErrForbidden, "ExpiredToken": kms.ErrForbidden, "MissingAuthenticationTokenException": kms.ErrForbidden,
	"IncompleteSignature": kms.ErrForbidden, "NotAuthorized": kms.ErrForbidden, "OptInRequired": kms.ErrForbidden,
	// Who may not use the key that encrypts the secret may not read it.
	"DecryptionFailure": kms.ErrForbidden, "EncryptionFailure": kms.ErrForbidden,

	"ThrottlingException": kms.ErrUnavailable, "Throttling": kms.ErrUnavailable, "TooManyRequestsException": kms.ErrUnavailable,
	"RequestLimitExceeded": kms.ErrUnavailable, "InternalServiceError": kms.ErrUnavailable, "InternalFailure": kms.ErrUnavailable,
	"ServiceUnavailable": kms.ErrUnavailable,

	"InvalidParameterException": kms.ErrMalformed, "InvalidRequestException": kms.ErrMalformed, "ValidationException": kms.ErrMalformed,
	"LimitExceededException": kms.ErrMalformed, "PreconditionNotMetException": kms.ErrMalformed,
}

// code is AWS's own word, in the chain beside package kms's. Only codes that are known get there: the answer may be
// anybody's.
type code string

func (c code) Error() string { return string(c) }

// bareForbidden is for a status without a code that can be read, as moto has it.
const bareForbidden code = "403"

// HasCode reports whether AWS gave this code.
func HasCode(err error, want string) bool {
	var got code
	return errors.As(err, &got) && string(got) == want
}

// Denied reports whether AWS knows the credentials and refuses what they ask for.
func Denied(err error) bool {
	return HasCode(err, "AccessDeniedException") || HasCode(err, string(bareForbidden))
}

// translate gives a failure package kms's word, and says what was being done. The SDK's text is dropped where it may
// quote the answer.
func translate(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, errOutOfReach), errors.Is(err, ErrReadable):
		return fmt.Errorf("%s: %w", doing, err)
	case errors.Is(err, kms.ErrUnavailable), errors.Is(err, kms.ErrMalformed):
		return fmt.Errorf("%s: %w", doing, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w: %w", doing, kms.ErrUnavailable, err)
	}
	status := 0
	var answered *awshttp.ResponseError
	if errors.As(err, &answered) {
		status = answered.HTTPStatusCode()
	}
	var said smithy.APIError
	if errors.As(err, &said) {
		if word, ok := words[said.ErrorCode()]; ok {
			return fmt.Errorf("%s: %w: %w", doing, word, code(said.ErrorCode()))
		}
	}
	switch {
	case status == http.StatusTooManyRequests || status >= http.StatusInternalServerError:
		return fmt.Errorf("%s: %w: it answered %d", doing, kms.ErrUnavailable, status)
	case status == http.StatusForbidden:
		return fmt.Errorf("%s: %w: it answered %w", doing, kms.ErrForbidden, bareForbidden)
	case status == http.StatusUnauthorized:
		return fmt.Errorf("%s: %w: it answered 401", doing, kms.ErrForbidden)
	}
	return fmt.Errorf("%s: %w", doing, kms.ErrMalformed)
}

// translateCredentials is for what stands between a program and its credentials. The SDK's text stays: it tells what is
// missing where, and has no credentials in it.
func translateCredentials(err error) error {
	var unsent *smithyhttp.RequestSendError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &unsent):
		return fmt.Errorf("%w: %w", kms.ErrUnavailable, err)
	}
	return fmt.Errorf("%w: %w", kms.ErrForbidden, err)
}
