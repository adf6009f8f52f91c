package vault

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/openbao/openbao/api/v2"

	"github.com/keyherald/keyherald/kms"
)

// logIn gets a token and keeps it, with mu held.
func (s *Session) logIn(ctx context.Context) (*token, error) {
	auth := s.config.Auth
	if auth.Method == "cert" {
		// A connection shows the certificate that it began with, and the file may have a newer one. What the token is used
		// for goes over the same connections, as it may be bound to the certificate.
		fresh, err := s.connect()
		if err != nil {
			return nil, fmt.Errorf("logging in by cert: %w", err)
		}
		s.http.CloseIdleConnections()
		s.http = fresh
	}
	anonymous, err := s.client(auth.Namespace, "")
	if err != nil {
		return nil, err
	}
	obtained := s.now()
	answer, err := s.ask(ctx, anonymous)
	if errors.Is(err, kms.ErrForbidden) && s.secretID != "" {
		// The file may have a newer one. What is kept stays where it has none: there is no other copy, and the server
		// may think better of it.
		fresh, unopened := s.unwrap(ctx, anonymous)
		if unopened != nil {
			return nil, fmt.Errorf("%w, with the secret id that was unwrapped before; %w", err, unopened)
		}
		if err := s.keepSecretID(ctx, fresh); err != nil {
			return nil, err
		}
		answer, err = s.ask(ctx, anonymous)
	}
	if err != nil {
		return nil, err
	}
	if answer == nil || answer.Auth == nil || answer.Auth.ClientToken == "" {
		if answer != nil && answer.Auth != nil && answer.Auth.MFARequirement != nil {
			return nil, fmt.Errorf("logging in by %s: the server wants a second factor, which no program has: exempt this role: %w", auth.Method, kms.ErrForbidden)
		}
		return nil, fmt.Errorf("logging in by %s: %w", auth.Method, kms.ErrMalformed)
	}
	client, err := s.client(s.config.Namespace, answer.Auth.ClientToken)
	if err != nil {
		return nil, err
	}
	life := time.Duration(answer.Auth.LeaseDuration) * time.Second
	s.token = &token{client: client, text: answer.Auth.ClientToken, renewable: answer.Auth.Renewable, life: life, whole: life, obtained: obtained}
	return s.token, nil
}

// ask does one login.
func (s *Session) ask(ctx context.Context, anonymous *api.Client) (*api.Secret, error) {
	endpoint, body, err := s.credentials(ctx, anonymous)
	if err != nil {
		return nil, err
	}
	answer, err := anonymous.Logical().WriteWithContext(ctx, endpoint, body)
	err = translate("logging in by "+s.config.Auth.Method, err)
	if errors.Is(err, errBadRequest) {
		// That is how wrong credentials are answered.
		err = fmt.Errorf("logging in by %s: %w", s.config.Auth.Method, kms.ErrForbidden)
	}
	return answer, err
}

// credentials is what the method's login endpoint is told.
func (s *Session) credentials(ctx context.Context, anonymous *api.Client) (endpoint string, body map[string]any, err error) {
	auth := s.config.Auth
	base := "auth/" + strings.TrimSuffix(auth.Mount, "/") + "/login"
	switch auth.Method {
	case "approle":
		secretID := ""
		if auth.WrappedSecretIDFile != "" {
			secretID, err = s.unwrapped(ctx, anonymous)
		} else {
			secretID, err = readSecret("auth.secret_id_file", auth.SecretIDFile)
		}
		return base, map[string]any{"role_id": auth.RoleID, "secret_id": secretID}, err
	case "cert":
		body = map[string]any{}
		if auth.Role != "" {
			body["name"] = auth.Role
		}
		return base, body, nil
	case "jwt", "kubernetes":
		jwt, err := readSecret("auth.jwt_file", auth.JWTFile)
		return base, map[string]any{"role": auth.Role, "jwt": jwt}, err
	case "userpass":
		password, err := readSecret("auth.password_file", auth.PasswordFile)
		return base + "/" + auth.Username, map[string]any{"password": password}, err
	}
	return "", nil, fmt.Errorf("auth.method is %q", auth.Method)
}

// unwrapped is the secret id that was unwrapped, now or before.
func (s *Session) unwrapped(ctx context.Context, anonymous *api.Client) (string, error) {
	if s.secretID == "" && s.keep != nil {
		kept, err := s.keep.Load(ctx)
		if err != nil {
			return "", fmt.Errorf("reading the kept secret id: %w", err)
		}
		s.secretID = kept
	}
	if s.secretID != "" {
		return s.secretID, nil
	}
	fresh, err := s.unwrap(ctx, anonymous)
	if err != nil {
		return "", err
	}
	return fresh, s.keepSecretID(ctx, fresh)
}

// unwrap opens the wrapped secret id. The wrapping token is looked at first: one that was not made by the method's endpoint
// for secret ids was put there by somebody else.
func (s *Session) unwrap(ctx context.Context, anonymous *api.Client) (string, error) {
	auth := s.config.Auth
	wrapping, err := readSecret("auth.wrapped_secret_id_file", auth.WrappedSecretIDFile)
	if err != nil {
		return "", err
	}
	const spent = "auth.wrapped_secret_id_file: its token is spent or expired, have a new one made; if it was not this program that opened it, somebody else has the secret id, so destroy that"
	answer, err := anonymous.Logical().WriteWithContext(ctx, "sys/wrapping/lookup", map[string]any{"token": wrapping})
	if err := translate("looking at the wrapping token", err); errors.Is(err, errBadRequest) || errors.Is(err, kms.ErrForbidden) {
		return "", fmt.Errorf("%s: %w", spent, kms.ErrForbidden)
	} else if err != nil {
		return "", err
	}
	if answer == nil {
		return "", fmt.Errorf("looking at the wrapping token: %w", kms.ErrMalformed)
	}
	made, _ := answer.Data["creation_path"].(string)
	if ok, err := path.Match("auth/"+strings.TrimSuffix(auth.Mount, "/")+"/role/*/secret-id", made); err != nil || !ok {
		return "", fmt.Errorf("auth.wrapped_secret_id_file: its token wraps no secret id of auth/%s: somebody may have exchanged it: %w", auth.Mount, kms.ErrForbidden)
	}
	opener, err := s.client(auth.Namespace, wrapping)
	if err != nil {
		return "", err
	}
	answer, err = opener.Logical().WriteWithContext(ctx, "sys/wrapping/unwrap", nil)
	if err := translate("opening the wrapping token", err); errors.Is(err, errBadRequest) || errors.Is(err, kms.ErrForbidden) {
		return "", fmt.Errorf("%s: %w", spent, kms.ErrForbidden)
	} else if err != nil {
		return "", err
	}
	if answer == nil {
		return "", fmt.Errorf("opening the wrapping token: %w", kms.ErrMalformed)
	}
	secretID, _ := answer.Data["secret_id"].(string)
	if secretID == "" {
		return "", fmt.Errorf("opening the wrapping token: %w", kms.ErrMalformed)
	}
	return secretID, nil
}

// keepSecretID keeps it in memory also where it cannot be kept elsewhere: there is no other copy.
func (s *Session) keepSecretID(ctx context.Context, secretID string) error {
	s.secretID = secretID
	if s.keep == nil {
		return nil
	}
	if err := s.keep.Save(ctx, secretID); err != nil {
		return fmt.Errorf("keeping the secret id: %w", err)
	}
	return nil
}
