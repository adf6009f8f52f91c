package vault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/openbao/openbao/api/v2"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/bounded"
)

// Reach is what a session may be used for.
type Reach int

const (
	// MetadataOnly lets nothing leave but logins, questions about the own token, and reads of metadata.
	MetadataOnly Reach = iota
	// Everything is the device's.
	Everything
)

// Keep is where a secret id is kept that was unwrapped: the token it was wrapped in opens once, and a program that starts
// again needs it. Load returns "" for none.
type Keep interface {
	Load(ctx context.Context) (secretID string, err error)
	Save(ctx context.Context, secretID string) error
}

// Session is a login that is kept. It does nothing by itself: the token is renewed, or the login repeated, when it is
// used after two thirds of its life; KeepAlive uses it.
type Session struct {
	config Config
	base   string
	reach  Reach
	keep   Keep
	now    func() time.Time

	mu    sync.Mutex // guards the rest, and is held during a login, so that one serves all
	http  *http.Client
	token *token
	// secretID was unwrapped, and the token it was wrapped in is spent.
	secretID string
}

// token is a live token with a client that uses it.
type token struct {
	client    *api.Client
	text      string
	renewable bool
	// life is how long it lives from obtained on; 0 is for ever. whole is its first life.
	life, whole time.Duration
	obtained    time.Time
	// blind is set where the token may not look itself up, so that nothing is learned from that.
	blind bool
}

// due is when the token must be renewed or replaced; zero is never.
func (t *token) due() time.Time {
	if t.life == 0 {
		return time.Time{}
	}
	return t.obtained.Add(t.life * 2 / 3)
}

func (t *token) deadAt(now time.Time) bool { return t.life > 0 && now.Sub(t.obtained) >= t.life }

// New checks the configuration. Nothing is sent yet. keep may be nil.
func New(config Config, reach Reach, keep Keep) (*Session, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	config = config.withDefaults()
	base, err := bounded.BaseURL(config.URL)
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	s := &Session{config: config, base: base, reach: reach, keep: keep, now: time.Now}
	if s.http, err = s.connect(); err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	return s, nil
}

// connect makes an HTTP client without a connection yet.
func (s *Session) connect() (*http.Client, error) {
	client, err := bounded.New(bounded.Options{CAFile: s.config.CAFile, CertFile: s.config.Auth.CertFile, KeyFile: s.config.Auth.KeyFile})
	if err != nil {
		return nil, err
	}
	if s.reach == MetadataOnly {
		address, err := url.Parse(s.base)
		if err != nil {
			return nil, err
		}
		client.Transport = metadataOnly{next: client.Transport, config: s.config, basePath: address.Path}
	}
	return client, nil
}

// Mount is where the KV engine is, and Field the field of a secret that holds the key.
func (s *Session) Mount() string { return strings.TrimSuffix(s.config.Mount, "/") }

// Field is the field of a secret's data that holds the key.
func (s *Session) Field() string { return s.config.Field }

// client is the vendor's, without what it does by itself: reading the environment, following redirects, trying again.
// A client is made for each token; cloning one would bring back what is switched off here.
func (s *Session) client(namespace, token string) (*api.Client, error) {
	client, err := api.NewClient(&api.Config{Address: s.base, HttpClient: s.http, DisableEnvironment: true, DisableRedirects: true,
		CheckRetry: func(ctx context.Context, _ *http.Response, _ error) (bool, error) { return false, ctx.Err() }})
	if err != nil {
		return nil, fmt.Errorf("making the Vault client: %w", err)
	}
	if namespace != "" {
		client.SetNamespace(namespace)
	}
	client.SetToken(token)
	return client, nil
}

// Read reads an endpoint, and returns the answer's body. Errors of this and of Write are package kms's, and say what was
// being done.
func (s *Session) Read(ctx context.Context, doing, endpoint string, query map[string][]string) (body []byte, err error) {
	err = s.do(ctx, doing, func(client *api.Client) error {
		answer, err := client.Logical().ReadRawWithDataWithContext(ctx, endpoint, query)
		if answer != nil {
			defer func() { _ = answer.Body.Close() }()
		}
		if err == nil {
			body, err = io.ReadAll(answer.Body)
		}
		return err
	})
	return body, err
}

// Write writes to an endpoint; a check-and-set that fails is kms.ErrConflict. The answer's data may be nil.
func (s *Session) Write(ctx context.Context, doing, endpoint string, body map[string]any) (data map[string]any, err error) {
	err = s.do(ctx, doing, func(client *api.Client) error {
		answer, err := client.Logical().WriteWithContext(ctx, endpoint, body)
		if answer != nil {
			data = answer.Data
		}
		return err
	})
	return data, err
}

// Patch merges into what an endpoint has (RFC 7396): what is null is taken out, and what is not named stays.
func (s *Session) Patch(ctx context.Context, doing, endpoint string, body map[string]any) error {
	return s.do(ctx, doing, func(client *api.Client) error {
		_, err := client.Logical().JSONMergePatch(ctx, endpoint, body)
		return err
	})
}

// do makes one call with a live token. Where the call is refused and the token turns out to be dead, it logs in and
// calls once more.
func (s *Session) do(ctx context.Context, doing string, call func(*api.Client) error) error {
	live, err := s.live(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	err = translate(doing, call(live.client))
	if !errors.Is(err, kms.ErrForbidden) {
		return err
	}
	// A policy that refuses and a token that is dead look alike, so the token is asked for.
	if alive, asked := s.alive(ctx, live); asked != nil {
		return fmt.Errorf("%s: %w", doing, asked)
	} else if alive {
		return err
	}
	fresh, loginErr := s.replace(ctx, live)
	if loginErr != nil {
		return fmt.Errorf("%s: the token is not valid any more: %w", doing, loginErr)
	}
	if err = translate(doing, call(fresh.client)); errors.Is(err, kms.ErrForbidden) {
		// If this one may not even look itself up, the last one's refusal to do so said nothing.
		if alive, asked := s.alive(ctx, fresh); asked == nil && !alive {
			s.mu.Lock()
			fresh.blind = true
			s.mu.Unlock()
		}
	}
	return err
}

// alive asks whether a token is valid, which the policy "default" and those that `keyherald kms policy` prints permit.
func (s *Session) alive(ctx context.Context, t *token) (bool, error) {
	s.mu.Lock()
	blind := t.blind
	s.mu.Unlock()
	if blind {
		return true, nil
	}
	_, err := t.client.Logical().ReadWithContext(ctx, "auth/token/lookup-self")
	if err = translate("asking whether the token is valid", err); errors.Is(err, kms.ErrForbidden) {
		return false, nil
	} else if errors.Is(err, kms.ErrUnavailable) || errors.Is(err, context.Canceled) {
		return false, err
	}
	return true, nil
}

// replace logs in, unless that was done since the dead token was handed out.
func (s *Session) replace(ctx context.Context, dead *token) (*token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ensure(ctx, dead.text)
}

func (s *Session) live(ctx context.Context) (*token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ensure(ctx, "")
}

// ensure returns a token that lives and is not the dead one, with mu held.
func (s *Session) ensure(ctx context.Context, dead string) (*token, error) {
	given := s.config.Auth.Method == "token"
	if given {
		if err := s.adopt(ctx); err != nil {
			return nil, err
		}
	}
	now := s.now()
	if s.token == nil || s.token.deadAt(now) || s.token.text == dead {
		if given {
			return nil, fmt.Errorf("the token of auth.token_file is expired or revoked, write a new one into the file: %w", kms.ErrForbidden)
		}
		return s.logIn(ctx)
	}
	if due := s.token.due(); due.IsZero() || now.Before(due) {
		return s.token, nil
	}
	if err := s.renew(ctx); err != nil && !given {
		// Where this fails too the token lives on for a third of its life, and the next call tries again.
		if fresh, err := s.logIn(ctx); err == nil {
			return fresh, nil
		}
	}
	return s.token, nil
}

// errSpent means that renewing does not prolong the token enough any more.
var errSpent = errors.New("the token is near the end of its life")

// renew prolongs the token, with mu held. Near its maximum life a token is prolonged by less and less; it is replaced
// while there is time.
func (s *Session) renew(ctx context.Context) error {
	if !s.token.renewable {
		return errSpent
	}
	obtained := s.now()
	answer, err := s.token.client.Logical().WriteWithContext(ctx, "auth/token/renew-self", map[string]any{})
	if err := translate("renewing the token", err); err != nil {
		return err
	}
	if answer == nil || answer.Auth == nil {
		return fmt.Errorf("renewing the token: %w", kms.ErrMalformed)
	}
	renewed := *s.token
	renewed.obtained, renewed.life = obtained, time.Duration(answer.Auth.LeaseDuration)*time.Second
	renewed.renewable = answer.Auth.Renewable
	s.token = &renewed
	if renewed.life > 0 && renewed.life < renewed.whole/2 {
		return errSpent
	}
	return nil
}

// adopt takes the token file's content, which somebody may have replaced, with mu held.
func (s *Session) adopt(ctx context.Context) error {
	text, err := readSecret("auth.token_file", s.config.Auth.TokenFile)
	if err != nil {
		return err
	}
	if s.token != nil && s.token.text == text {
		return nil
	}
	client, err := s.client(s.config.Namespace, text)
	if err != nil {
		return err
	}
	fresh := &token{client: client, text: text, obtained: s.now()}
	answer, err := client.Logical().ReadWithContext(ctx, "auth/token/lookup-self")
	switch err := translate("asking for the life of auth.token_file's token", err); {
	case errors.Is(err, kms.ErrForbidden):
		// Dead, or without the right to ask: the call itself will tell.
	case err != nil:
		return err
	default:
		if fresh.life, err = answer.TokenTTL(); err != nil {
			return fmt.Errorf("asking for the life of auth.token_file's token: %w", kms.ErrMalformed)
		}
		if fresh.renewable, err = answer.TokenIsRenewable(); err != nil {
			return fmt.Errorf("asking for the life of auth.token_file's token: %w", kms.ErrMalformed)
		}
		fresh.whole = fresh.life
	}
	s.token = fresh
	return nil
}

// KeepAlive logs in and keeps the token alive until ctx ends: for logins that cannot be repeated, such as by a wrapped
// secret id or a token, which would die unused. A failure is told, and tried again.
func (s *Session) KeepAlive(ctx context.Context, failed func(error)) {
	const retry, most = 30 * time.Second, time.Hour
	for ctx.Err() == nil {
		wait := most
		live, err := s.live(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			failed(fmt.Errorf("keeping the login to Vault: %w", err))
			wait = retry
		case live.life > 0:
			// A while at least, also where the token is due and could not be prolonged.
			wait = min(most, max(time.Second, live.life/20, live.due().Sub(s.now())))
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func readSecret(key, path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	text := strings.TrimSpace(string(raw))
	if text == "" {
		return "", fmt.Errorf("%s: %s is empty", key, path)
	}
	return text, nil
}
