package intake

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/strictjson"
)

// request is what came, with its body.
type request struct {
	http   *http.Request
	header http.Header
	remote string
	body   []byte
	now    time.Time
}

// read takes the body in. It counts what is being read, so that many slow senders take a bounded part of the memory,
// and nothing of what verification and database have for the others.
func (h *Handler) read(c echo.Context) (*request, *denial) {
	select {
	case h.reading <- struct{}{}:
		defer func() { <-h.reading }()
	default:
		return nil, later(ErrBusy.Error(), nil)
	}
	req := c.Request()
	control := http.NewResponseController(c.Response())
	// A connection without deadlines is a test's.
	_ = control.SetReadDeadline(time.Now().Add(h.deps.BodyTime))
	body, denied := readBody(req)
	if denied != nil {
		// net/http would wait for the rest of the body before it answers.
		_ = control.SetReadDeadline(time.Now())
		return nil, denied
	}
	_ = control.SetReadDeadline(time.Time{})
	return &request{http: req, header: req.Header, remote: req.RemoteAddr, body: body, now: h.deps.Now()}, nil
}

func readBody(req *http.Request) ([]byte, *denial) {
	if req.Header.Get("Content-Encoding") != "" {
		return nil, unsupported("send the body without a Content-Encoding")
	}
	if req.ContentLength > MaxBody {
		return nil, refused(audit.RefusedTooLarge)
	}
	body, err := io.ReadAll(io.LimitReader(req.Body, MaxBody+1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &denial{status: http.StatusRequestTimeout, reason: string(audit.RefusedTooSlow), why: audit.RefusedTooSlow}
	case err != nil:
		return nil, &denial{status: http.StatusBadRequest, reason: string(audit.RefusedBodyUnreadable), why: audit.RefusedBodyUnreadable}
	case len(body) > MaxBody:
		return nil, refused(audit.RefusedTooLarge)
	}
	return body, nil
}

// once refuses a request that has one of these headers twice: whoever stands between the sender and us may have read
// the other one. A name that ends in - is a prefix.
func (r *request) once(names []string) *denial {
	for name, values := range r.header {
		if len(values) < 2 {
			continue
		}
		if slices.ContainsFunc(names, func(n string) bool { return n == name || strings.HasSuffix(n, "-") && strings.HasPrefix(name, n) }) {
			return malformed("a header is there twice")
		}
	}
	return nil
}

// canonical are the names as net/http has them, without empty ones.
func canonical(names ...string) []string {
	var all []string
	for _, name := range names {
		if name != "" {
			all = append(all, textproto.CanonicalMIMEHeaderKey(name))
		}
	}
	return all
}

// mediaType is the body's, without parameters; a charset other than UTF-8 makes it none.
func (r *request) mediaType() string {
	mediaType, parameters, err := mime.ParseMediaType(r.header.Get("Content-Type"))
	if charset, ok := parameters["charset"]; err != nil || ok && !strings.EqualFold(charset, "utf-8") {
		return ""
	}
	return mediaType
}

func (r *request) json() (any, *denial) {
	value, err := strictjson.Parse(r.body)
	if err != nil {
		return nil, malformed(err.Error())
	}
	return value, nil
}

// said is what an authentic request says: events, of which there may be none that matter, or a handshake.
type said struct {
	events    []event
	handshake *handshake
}

// one is what a request with one event says, if that can be read.
func one(e event, denied *denial) (said, *denial) {
	if denied != nil {
		return said{}, denied
	}
	return said{events: []event{e}}, nil
}

// event is one thing that happened. irrelevant marks a kind of event that is neither a new version nor a read of one, and
// read one that is a read. field is the text of what it says, by name, and empty where it does not say that.
type event struct {
	id         string
	sum        [32]byte
	irrelevant bool
	read       bool
	field      func(name string) string
}

// handshake is a sender's request about its subscription, and how it is answered: effect, where there is one, first.
type handshake struct {
	kind   audit.Handshake
	effect func(ctx context.Context) error
	body   map[string]string
}

// format is how one kind of sender speaks.
type format interface {
	// read turns a request that passed the authentication modes into what it says.
	read(ctx context.Context, r *request) (said, *denial)
}

// preflighter is a format whose senders ask by OPTIONS whether they may send. The answer are headers.
type preflighter interface {
	preflight(r *request) (map[string]string, *denial)
}
