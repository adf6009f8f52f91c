package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/api"
)

// The environment's words for what the flags --server and --token-file say.
const (
	serverVariable    = "KEYHERALD_SERVER"
	tokenFileVariable = "KEYHERALD_TOKEN_FILE"
)

// remote is where commands act, and as whom: by the API, with the caller's own identity.
type remote struct {
	server, tokenFile string
}

// client calls the API.
type client struct {
	server string // without a slash at the end
	token  func(ctx context.Context) (string, error)
	http   *http.Client
	// match, where it is not empty, is the If-Match of the next write.
	match string
	// replayed says that the last write was done before, with the same idempotency key.
	replayed bool
}

// maxTries is how often a call is made whose answer did not come, and tryAgain how long is waited between two, at first.
const (
	maxTries = 5
	tryAgain = 500 * time.Millisecond
)

// connect finds the server and the caller's token: by flags, by the environment, or by `keyherald login`.
func (r remote) connect() (*client, error) {
	server, tokenFile := r.server, r.tokenFile
	if server == "" {
		server = os.Getenv(serverVariable)
	}
	if tokenFile == "" {
		tokenFile = os.Getenv(tokenFileVariable)
	}
	kept, err := readLogin()
	if err != nil {
		return nil, err
	}
	if server == "" && kept != nil {
		server = kept.Server
	}
	if server == "" {
		return nil, fmt.Errorf("which server? Write --server https://keyherald.example.org (or %s), or run `keyherald login --server …` once", serverVariable)
	}
	c := &client{http: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	if c.server, err = serverAddress(server); err != nil {
		return nil, err
	}
	switch {
	case tokenFile != "":
		c.token = func(context.Context) (string, error) { return readFile(tokenFile) }
	case kept != nil && kept.Server == c.server:
		c.token = kept.token
	default:
		return nil, fmt.Errorf("as whom? Write --token-file (or %s) with a token of `keyherald token create`, or run `keyherald login --server %s` once", tokenFileVariable, c.server)
	}
	return c, nil
}

// serverAddress refuses an address over which a token would go in clear.
func serverAddress(text string) (string, error) {
	u, err := url.Parse(strings.TrimRight(text, "/"))
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || (u.Scheme != "https" && u.Scheme != "http") {
		return "", fmt.Errorf("%q is no server's address: write https://keyherald.example.org", text)
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", fmt.Errorf("%s is not on this machine: write https, or the token goes over the network in clear", text)
	}
	return u.String(), nil
}

// body is what a request carries, as it is.
type body struct {
	kind string
	data []byte
}

// do calls a route and reads its answer into out, unless that is nil. in is nil, a body, or what is sent as JSON. A write has
// an idempotency key and is made again where no answer came, so that it is done once.
func (c *client) do(ctx context.Context, method, path string, in, out any) error {
	return c.doOnce(ctx, uuid.NewString(), method, path, in, out)
}

// doOnce is do with the caller's own idempotency key.
func (c *client) doOnce(ctx context.Context, key, method, path string, in, out any) error {
	sent, ok := in.(body)
	if in != nil && !ok {
		encoded, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encoding a request: %w", err)
		}
		sent = body{"application/json", encoded}
	}
	return repeated(ctx, func() (again bool, err error) { return c.try(ctx, key, method, path, sent, out) })
}

// repeated makes a call until it is answered, or as often as is worth it.
func repeated(ctx context.Context, call func() (again bool, err error)) error {
	pause := tryAgain
	for try := 1; ; try++ {
		again, err := call()
		if err == nil || !again || try == maxTries {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(pause):
			pause *= 2
		}
	}
}

// request makes a request with the caller's token.
func (c *client) request(ctx context.Context, method, path string, sent body) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.server+api.Prefix+path, bytes.NewReader(sent.data))
	if err != nil {
		return nil, fmt.Errorf("asking the server: %w", err)
	}
	token, err := c.token(ctx)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("User-Agent", "keyherald")
	if sent.kind != "" {
		request.Header.Set("Content-Type", sent.kind)
	}
	return request, nil
}

func (c *client) try(ctx context.Context, key, method, path string, sent body, out any) (again bool, err error) {
	request, err := c.request(ctx, method, path, sent)
	if err != nil {
		return false, err
	}
	if method != http.MethodGet {
		request.Header.Set("Idempotency-Key", key)
		if c.match != "" {
			request.Header.Set("If-Match", c.match)
		}
	}
	response, err := c.http.Do(request)
	if err != nil {
		return ctx.Err() == nil, fmt.Errorf("asking %s: %w", c.server, withoutAddress(err))
	}
	defer func() { _ = response.Body.Close() }()
	read, err := io.ReadAll(response.Body)
	if err != nil {
		return true, fmt.Errorf("the answer of %s did not come whole: %w", c.server, err)
	}
	if response.StatusCode >= 300 {
		return mayComeAgain(response), problemOf(c.server, response, read)
	}
	c.replayed = response.Header.Get("Idempotency-Replayed") == "true"
	if out == nil || len(read) == 0 {
		return false, nil
	}
	if err := json.Unmarshal(read, out); err != nil {
		return false, fmt.Errorf("%s answers what this program does not know: is it of the same version? %w", c.server, err)
	}
	return false, nil
}

// fetch reads what a route puts out into to, and returns the answer's header. kind is the media type that is asked for, if not any.
// What did not come whole is an error, and is not asked for again: to may have a part of it.
func (c *client) fetch(ctx context.Context, path, kind string, to io.Writer) (header http.Header, err error) {
	err = repeated(ctx, func() (again bool, err error) {
		header, again, err = c.tryFetch(ctx, path, kind, to)
		return again, err
	})
	return header, err
}

func (c *client) tryFetch(ctx context.Context, path, kind string, to io.Writer) (header http.Header, again bool, err error) {
	request, err := c.request(ctx, http.MethodGet, path, body{})
	if err != nil {
		return nil, false, err
	}
	if kind != "" {
		request.Header.Set("Accept", kind)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, ctx.Err() == nil, fmt.Errorf("asking %s: %w", c.server, withoutAddress(err))
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		read, _ := io.ReadAll(response.Body)
		return nil, mayComeAgain(response), problemOf(c.server, response, read)
	}
	if _, err := io.Copy(to, response.Body); err != nil {
		return nil, false, fmt.Errorf("the answer of %s did not come whole: %w", c.server, err)
	}
	return response.Header, false, nil
}

// mayComeAgain reports whether an answer is one that may be another a moment later.
func mayComeAgain(response *http.Response) bool {
	return response.StatusCode == http.StatusServiceUnavailable || response.StatusCode == http.StatusTooManyRequests
}

// withoutAddress is what went wrong, without the whole address before it.
func withoutAddress(err error) error {
	var withURL *url.Error
	if errors.As(err, &withURL) {
		return withURL.Err
	}
	return err
}

// problemOf is an answer that is an error, in the server's own words.
func problemOf(server string, response *http.Response, read []byte) error {
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	p := new(api.Problem)
	if kind != "application/problem+json" || json.Unmarshal(read, p) != nil || p.Detail == "" {
		return fmt.Errorf("%s answers %s: is it Keyherald?", server, response.Status)
	}
	return p
}

// all reads every page of a list.
func all[T any](ctx context.Context, c *client, path string, filters url.Values) (items []T, err error) {
	if filters == nil {
		filters = url.Values{}
	}
	filters.Set("limit", strconv.Itoa(1000))
	for {
		var page api.Page[T]
		if err := c.do(ctx, http.MethodGet, path+"?"+filters.Encode(), nil, &page); err != nil {
			return nil, err
		}
		items = append(items, page.Items...)
		if page.NextCursor == "" {
			return items, nil
		}
		filters.Set("cursor", page.NextCursor)
	}
}

// stream hears server-sent events until the one that says that there are no more, and goes on where it was cut off.
func (c *client) stream(ctx context.Context, path string, hear func(kind string, data []byte) error) error {
	last, pause := "", tryAgain
	for try := 1; ; {
		heard, ended, err := c.hear(ctx, path, &last, hear)
		if ended || err != nil && !errors.Is(err, errCut) {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		if heard {
			try, pause = 1, tryAgain
		} else if try++; try > maxTries {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
			pause *= 2
		}
	}
}

// errCut is a stream that did not come to its end: it is opened again.
var errCut = errors.New("the stream was cut off")

func (c *client) hear(ctx context.Context, path string, last *string, do func(kind string, data []byte) error) (heard, ended bool, err error) {
	request, err := c.request(ctx, http.MethodGet, path, body{})
	if err != nil {
		return false, false, err
	}
	if *last != "" {
		request.Header.Set("Last-Event-ID", *last)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return false, false, fmt.Errorf("%w: %w", errCut, withoutAddress(err))
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		read, _ := io.ReadAll(response.Body)
		err := problemOf(c.server, response, read)
		if response.StatusCode == http.StatusServiceUnavailable {
			err = fmt.Errorf("%w: %w", errCut, err)
		}
		return false, false, err
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 16<<20)
	kind, id := "", ""
	var data []byte
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "id":
			id = value
		case "event":
			kind = value
		case "data":
			data = []byte(value)
		case "":
			if lines.Text() != "" || kind == "" {
				continue // a comment
			}
			if kind == "end" {
				return true, true, nil
			}
			if err := do(kind, data); err != nil {
				return true, true, err
			}
			if heard = true; id != "" {
				*last = id
			}
			kind, id, data = "", "", nil
		}
	}
	return heard, false, errCut
}

// userPath is a path with a user in it, and what comes behind.
func userPath(before, user string, behind ...string) string {
	path := before + "/" + url.PathEscape(user)
	for _, step := range behind {
		path += "/" + url.PathEscape(step)
	}
	return path
}
