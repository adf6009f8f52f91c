package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/openbao/openbao/api/v2"

	"github.com/keyherald/keyherald/kms"
)

// errBadRequest is 400 in the chain of an ErrMalformed: what it means depends on the endpoint.
var errBadRequest = errors.New("it answered 400")

// translate gives a failure of the vendor's client package kms's word, and says what was being done. The client's own
// text is dropped: it quotes the answer, whoever gave it. The check-and-set that failed is kms.ErrConflict.
func translate(doing string, err error) error {
	if err == nil {
		return nil
	}
	var answer *api.ResponseError
	if !errors.As(err, &answer) {
		switch {
		case errors.Is(err, kms.ErrUnavailable), errors.Is(err, kms.ErrMalformed), errors.Is(err, context.Canceled), errors.Is(err, errOutOfReach):
			return fmt.Errorf("%s: %w", doing, err)
		case errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("%s: %w: %w", doing, kms.ErrUnavailable, err)
		}
		// An answer that is no JSON, or no answer of Vault's.
		return fmt.Errorf("%s: %w", doing, kms.ErrMalformed)
	}
	switch status := answer.StatusCode; {
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return fmt.Errorf("%s: %w", doing, kms.ErrForbidden)
	case status == http.StatusNotFound:
		return fmt.Errorf("%s: %w", doing, kms.ErrNotFound)
	case status == http.StatusBadRequest && len(answer.Errors) == 1 && strings.HasPrefix(answer.Errors[0], "check-and-set parameter did not match"):
		return fmt.Errorf("%s: %w", doing, kms.ErrConflict)
	case status == http.StatusBadRequest:
		return fmt.Errorf("%s: %w: %w", doing, kms.ErrMalformed, errBadRequest)
	case status == http.StatusPreconditionFailed:
		// A performance standby that has not seen our last write yet.
		return fmt.Errorf("%s: %w: it answered %d", doing, kms.ErrUnavailable, status)
	case status == http.StatusServiceUnavailable:
		return fmt.Errorf("%s: %w: it answered 503, as it does while it is sealed", doing, kms.ErrUnavailable)
	case status == http.StatusTooManyRequests, status >= http.StatusInternalServerError, status == 472, status == 473:
		return fmt.Errorf("%s: %w: it answered %d", doing, kms.ErrUnavailable, status)
	default:
		return fmt.Errorf("%s: %w: it answered %d", doing, kms.ErrMalformed, status)
	}
}
