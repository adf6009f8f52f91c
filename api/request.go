package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	strict "github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/internal/period"
	"github.com/keyherald/keyherald/internal/strictjson"
)

// maxBody is the limit of a body, in bytes, where its route has no other.
const maxBody = 64 << 10

// read takes the body in. What a route has no use for is refused, so that nobody thinks that it counted.
func (c *call) read() *Problem {
	request := c.echo.Request()
	for name, values := range request.URL.Query() {
		if len(values) > 1 {
			return malformed(fmt.Sprintf("the parameter %q is there %d times", name, len(values)))
		}
	}
	most := c.route.MaxBody
	if most == 0 {
		most = maxBody
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.echo.Response(), request.Body, most))
	tooLarge := new(http.MaxBytesError)
	switch {
	case errors.As(err, &tooLarge):
		return &Problem{Status: http.StatusRequestEntityTooLarge, Code: CodeTooLarge, Detail: fmt.Sprintf("the body may have %d bytes", most)}
	case err != nil:
		return malformed("the body could not be read")
	}
	c.body = body
	return nil
}

// into reads the body as a JSON object into v, strictly: a member that v does not have is refused. An empty body is an
// empty object.
func (c *call) into(v any) error {
	if len(bytes.TrimSpace(c.body)) == 0 {
		return nil
	}
	kind, _, err := mime.ParseMediaType(c.echo.Request().Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return &Problem{Status: http.StatusUnsupportedMediaType, Code: CodeMediaType, Detail: "the body must be application/json"}
	}
	// A whole roster has more values than a body may have elsewhere.
	if c.route.MaxBody <= maxBody {
		if _, err := strictjson.Parse(c.body); err != nil {
			return malformed(err.Error())
		}
	}
	if err := strict.Unmarshal(c.body, v, strict.RejectUnknownMembers(true)); err != nil {
		p := malformed("the body is not what this takes: see " + Prefix + "/openapi.json")
		var semantic *strict.SemanticError
		if errors.As(err, &semantic) {
			p.Pointer = string(semantic.JSONPointer)
			p.Detail = fmt.Sprintf("%s: it is not what this takes there", p.Pointer)
			if errors.Is(err, strict.ErrUnknownName) {
				p.Detail = fmt.Sprintf("%s: there is no such member", p.Pointer)
			}
		}
		return p
	}
	return nil
}

// accepts reports whether the caller asked for a media type, and for that alone.
func (c *call) accepts(kind string) bool {
	asked, _, err := mime.ParseMediaType(c.echo.Request().Header.Get("Accept"))
	return err == nil && asked == kind
}

// none refuses a body.
func (c *call) none() error {
	var empty struct{}
	return c.into(&empty)
}

// param is a part of the path, as it was meant.
func (c *call) param(name string) string {
	value := c.echo.Param(name)
	if c.echo.Request().URL.RawPath != "" {
		if plain, err := url.PathUnescape(value); err == nil {
			return plain
		}
	}
	return value
}

// user is the user in the path.
func (c *call) user() (id.UserID, error) { return userID(c.param("user_id")) }

func userID(text string) (id.UserID, error) {
	user := id.UserID(text)
	if _, _, err := user.Parse(); err != nil || len(text) > id.UserIDMaxLength {
		return "", &Problem{Status: http.StatusUnprocessableEntity, Code: CodeInvalid, Detail: fmt.Sprintf("%q is not a Matrix user id: write @name:server", text)}
	}
	return user, nil
}

// key is an id of ours in the path.
func (c *call) key(name, what string) (uuid.UUID, error) {
	key, err := uuid.Parse(c.param(name))
	if err != nil {
		return key, &Problem{Status: http.StatusNotFound, Code: CodeNotFound, Detail: fmt.Sprintf("%q is no %s's id", c.param(name), what)}
	}
	return key, nil
}

// query takes the parameters of a list, each of which must be known. The first error stands until end.
type query struct {
	values url.Values
	known  []string
	err    error
}

func (c *call) query() *query { return &query{values: c.echo.QueryParams()} }

func (q *query) text(name string) string {
	q.known = append(q.known, name)
	return q.values.Get(name)
}

func (q *query) fail(name, instead string) {
	if q.err == nil {
		q.err = malformed(fmt.Sprintf("the parameter %s is %q: %s", name, q.values.Get(name), instead))
	}
}

func (q *query) flag(name string) bool {
	switch q.text(name) {
	case "", "false":
		return false
	case "true":
		return true
	}
	q.fail(name, "write true or false")
	return false
}

// number is 0 where it is not there.
func (q *query) number(name string) int64 {
	text := q.text(name)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		q.fail(name, "write a number from 0 on")
	}
	return n
}

// period is what since and until ask for; a zero time is no bound.
func (q *query) period(now time.Time) (since, until time.Time) {
	from, to := q.text("since"), q.text("until")
	since, until, err := period.Between(from, to, now)
	if err != nil {
		q.fail("since", err.Error())
	}
	return since, until
}

func (q *query) user(name string) id.UserID {
	text := q.text(name)
	if text == "" {
		return ""
	}
	user, err := userID(text)
	if err != nil {
		q.fail(name, "write a user such as @alice:example.org")
	}
	return user
}

func word[T ~string](q *query, name string, words ...T) T {
	value := T(q.text(name))
	if value != "" && !slices.Contains(words, value) {
		texts := make([]string, len(words))
		for i, w := range words {
			texts[i] = string(w)
		}
		q.fail(name, "write "+strings.Join(texts, ", "))
	}
	return value
}

// The length of a page.
const (
	defaultLimit = 100
	maxLimit     = 1000
)

// page is what limit and cursor ask for. cursor is filled with where the page before ended; its filters must be those of
// this call, so that pages of two lists are not mixed.
func (q *query) page(cursor any) (limit int, filters string) {
	limit = defaultLimit
	if text := q.text("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxLimit {
			q.fail("limit", fmt.Sprintf("write a number from 1 to %d", maxLimit))
		} else {
			limit = n
		}
	}
	text := q.text("cursor")
	rest := url.Values{}
	for name, values := range q.values {
		if name != "cursor" && name != "limit" {
			rest[name] = values
		}
	}
	filters = rest.Encode()
	if text == "" {
		return limit, filters
	}
	var mark mark
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || json.Unmarshal(raw, &mark) != nil || mark.Filters != filters || json.Unmarshal(mark.At, cursor) != nil {
		q.fail("cursor", "take next_cursor as the page before has it, with the same filters")
	}
	return limit, filters
}

// end returns the first error, and refuses a parameter that the route does not know.
func (q *query) end() error {
	for name := range q.values {
		if q.err == nil && !slices.Contains(q.known, name) {
			q.err = malformed(fmt.Sprintf("there is no parameter %q here", name))
		}
	}
	return q.err
}

// mark is what a cursor holds.
type mark struct {
	At      json.RawMessage `json:"a"`
	Filters string          `json:"f,omitempty"`
}

// Page is a part of a list. NextCursor is empty on the last one.
type Page[T any] struct {
	Items      []T    `json:"items"`
	NextCursor string `json:"next_cursor,omitempty"`
}

// pageOf makes a page of one row more than was asked for, if there are so many; at is where a page that ends with a row
// goes on.
func pageOf[R, T any](rows []R, limit int, filters string, view func(R) T, at func(R) any) (Page[T], error) {
	page := Page[T]{Items: make([]T, 0, min(len(rows), limit))}
	for _, row := range rows[:min(len(rows), limit)] {
		page.Items = append(page.Items, view(row))
	}
	if len(rows) <= limit {
		return page, nil
	}
	place, err := json.Marshal(at(rows[limit-1]))
	if err != nil {
		return page, fmt.Errorf("making a cursor: %w", err)
	}
	encoded, err := json.Marshal(mark{place, filters})
	if err != nil {
		return page, fmt.Errorf("making a cursor: %w", err)
	}
	page.NextCursor = base64.RawURLEncoding.EncodeToString(encoded)
	return page, nil
}
