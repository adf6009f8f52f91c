package appservice

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"
	"gopkg.in/yaml.v3"
	"maunium.net/go/mautrix/id"
)

// Routes are what the homeserver calls (application service API). To-device messages do not come this way, so a
// transaction is answered and forgotten; nothing in it is ever acted on: whoever holds the hs_token could forge it.
type Routes struct {
	hsToken []byte
	seen    atomic.Int64
}

// NewRoutes makes the routes; the token is compared in constant time.
func NewRoutes(hsToken string) *Routes { return &Routes{hsToken: []byte(hsToken)} }

// LastSeen is when the homeserver last called with the right token; zero if never.
func (r *Routes) LastSeen() time.Time {
	if ms := r.seen.Load(); ms > 0 {
		return time.UnixMilli(ms)
	}
	return time.Time{}
}

// Register adds the routes.
func (r *Routes) Register(e *echo.Echo) {
	group := e.Group("/_matrix/app/v1", r.authenticate)
	group.PUT("/transactions/:txnID", func(c echo.Context) error {
		if _, err := io.Copy(io.Discard, io.LimitReader(c.Request().Body, 16<<20)); err != nil {
			return matrixError(c, http.StatusBadRequest, "M_BAD_JSON", "the body could not be read")
		}
		return c.JSON(http.StatusOK, struct{}{})
	})
	notFound := func(c echo.Context) error {
		return matrixError(c, http.StatusNotFound, "M_NOT_FOUND", "Keyherald has one user, its bot, and no rooms")
	}
	group.GET("/users/:userID", notFound)
	group.GET("/rooms/:alias", notFound)
	group.POST("/ping", func(c echo.Context) error { return c.JSON(http.StatusOK, struct{}{}) })
}

func (r *Routes) authenticate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		token, ok := strings.CutPrefix(c.Request().Header.Get("Authorization"), "Bearer ")
		if !ok {
			// Dendrite still sends the legacy query parameter.
			token = c.QueryParam("access_token")
		}
		if token == "" {
			return matrixError(c, http.StatusUnauthorized, "M_MISSING_TOKEN", "no hs_token")
		}
		if subtle.ConstantTimeCompare([]byte(token), r.hsToken) != 1 {
			return matrixError(c, http.StatusForbidden, "M_FORBIDDEN", "wrong hs_token")
		}
		r.seen.Store(time.Now().UnixMilli())
		return next(c)
	}
}

func matrixError(c echo.Context, status int, code, message string) error {
	return c.JSON(status, map[string]string{"errcode": code, "error": message})
}

// Registration is the file that makes the homeserver know the application service.
type Registration struct {
	ID              string     `yaml:"id"`
	URL             string     `yaml:"url"`
	ASToken         string     `yaml:"as_token"`
	HSToken         string     `yaml:"hs_token"`
	SenderLocalpart string     `yaml:"sender_localpart"`
	RateLimited     bool       `yaml:"rate_limited"`
	Namespaces      Namespaces `yaml:"namespaces"`
	// MSC4190 makes a homeserver that has that behind a flag let the bot create its device, and refuse it a login.
	MSC4190 bool `yaml:"io.element.msc4190,omitempty"`
}

// Namespaces are the bot alone: a namespace that covers staff would let the as_token act as everyone.
type Namespaces struct {
	Users   []Namespace `yaml:"users"`
	Aliases []Namespace `yaml:"aliases"`
	Rooms   []Namespace `yaml:"rooms"`
}

// Namespace is one entry.
type Namespace struct {
	Exclusive bool   `yaml:"exclusive"`
	Regex     string `yaml:"regex"`
}

// Placeholder is what the committed registration.yaml has for tokens; `serve` refuses it.
const Placeholder = "REPLACE-ME: run `keyherald registration`"

// NewRegistration makes a registration, with the tokens of old if there are any and rotate is false.
func NewRegistration(old *Registration, bot id.UserID, url string, rotate bool) (Registration, error) {
	r := Registration{
		ID: "keyherald", URL: url, SenderLocalpart: senderLocalpart(bot),
		Namespaces: Namespaces{
			Users:   []Namespace{{Exclusive: true, Regex: botRegex(bot)}},
			Aliases: []Namespace{}, Rooms: []Namespace{},
		},
	}
	if old != nil && !rotate && old.CheckTokens() == nil {
		r.ASToken, r.HSToken = old.ASToken, old.HSToken
		return r, nil
	}
	for _, token := range []*string{&r.ASToken, &r.HSToken} {
		raw := make([]byte, 32)
		if _, err := rand.Read(raw); err != nil {
			return r, fmt.Errorf("making a token: %w", err)
		}
		*token = hex.EncodeToString(raw)
	}
	return r, nil
}

// senderLocalpart names the user that the application service is by itself. It must not be the bot: Synapse lets that
// user have no /sync. Homeservers give nobody else a name that begins with an underscore.
func senderLocalpart(bot id.UserID) string { return "_" + bot.Localpart() }

// CheckBot refuses a registration that is not for this bot alone.
func (r Registration) CheckBot(bot id.UserID) error {
	if r.SenderLocalpart != senderLocalpart(bot) {
		return fmt.Errorf("sender_localpart is %q and not %q", r.SenderLocalpart, senderLocalpart(bot))
	}
	if len(r.Namespaces.Users) != 1 || r.Namespaces.Users[0].Regex != botRegex(bot) || len(r.Namespaces.Rooms)+len(r.Namespaces.Aliases) > 0 {
		return errors.New("its namespaces are not the bot alone: if they cover more, the as_token could act as other people")
	}
	return nil
}

func botRegex(bot id.UserID) string { return "^" + regexp.QuoteMeta(bot.String()) + "$" }

// CheckTokens refuses missing, placeholder and short tokens.
func (r Registration) CheckTokens() error {
	for _, token := range []string{r.ASToken, r.HSToken} {
		if strings.HasPrefix(token, "REPLACE-ME") || len(token) < 32 {
			return errors.New("the registration has no tokens yet: run `keyherald registration` and give the file to the homeserver")
		}
	}
	if r.ASToken == r.HSToken {
		return errors.New("as_token and hs_token are the same: run `keyherald registration --rotate-tokens`")
	}
	return nil
}

// LoadRegistration reads a registration file.
func LoadRegistration(path string) (Registration, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Registration{}, fmt.Errorf("reading the registration: %w", err)
	}
	var r Registration
	if err := yaml.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("reading the registration %s: %w", path, err)
	}
	return r, nil
}

// NewDeviceID makes an id for a new device of the bot.
func NewDeviceID() (id.DeviceID, error) {
	raw := make([]byte, 5)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("making a device id: %w", err)
	}
	return id.DeviceID("KEYHERALD" + strings.ToUpper(hex.EncodeToString(raw))), nil
}
