package vault

import (
	"context"
	"fmt"

	"github.com/keyherald/keyherald/kms"
)

// Capabilities asks what the token may do at an endpoint (sys/capabilities-self), without doing it.
func (s *Session) Capabilities(ctx context.Context, endpoint string) ([]string, error) {
	doing := "asking Vault for the rights at " + endpoint
	data, err := s.Write(ctx, doing, "sys/capabilities-self", map[string]any{"paths": []string{endpoint}})
	if err != nil {
		return nil, err
	}
	named, _ := data[endpoint].([]any)
	capabilities := make([]string, len(named))
	for i, name := range named {
		text, ok := name.(string)
		if !ok {
			return nil, fmt.Errorf("%s: %w", doing, kms.ErrMalformed)
		}
		capabilities[i] = text
	}
	if len(capabilities) == 0 {
		// Who has no right at all is told "deny".
		return nil, fmt.Errorf("%s: %w", doing, kms.ErrMalformed)
	}
	return capabilities, nil
}
