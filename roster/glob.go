package roster

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"go.mau.fi/util/glob"
	"maunium.net/go/mautrix/id"
)

// Glob is a pattern over user ids: * is any text, ? one character, and capitals are not small letters, since two user ids
// may differ in that alone.
type Glob struct {
	pattern string
	match   *regexp.Regexp
}

// All is the glob of every user.
const All = "@*:*"

// NewGlob reads a pattern, such as @*:example.org. One that no user id can match is refused.
func NewGlob(pattern string) (Glob, error) {
	switch {
	case pattern == "":
		return Glob{}, errors.New("the pattern is empty: write one such as @*:example.org")
	case len(pattern) > id.UserIDMaxLength:
		return Glob{}, fmt.Errorf("the pattern %q is longer than a user id may be", clip(pattern))
	case !strings.HasPrefix(pattern, "@") && !strings.HasPrefix(pattern, "*"):
		return Glob{}, fmt.Errorf("the pattern %q matches no user id, which begins with @: write one such as @%s", pattern, pattern)
	case !strings.ContainsAny(pattern, ":*"):
		return Glob{}, fmt.Errorf("the pattern %q matches no user id, which has a server: write one such as %s:*", pattern, pattern)
	case strings.ContainsAny(pattern, " \t\r\n,"):
		return Glob{}, fmt.Errorf("the pattern %q matches no user id: there is a space or a comma in it", pattern)
	}
	// The library's own matching takes capitals for small letters, and a prefix and a suffix that overlap for both.
	var expression strings.Builder
	if err := glob.ToRegexPattern(pattern, &expression); err != nil {
		return Glob{}, fmt.Errorf("reading the pattern %q: %w", pattern, err)
	}
	match, err := regexp.Compile(`(?s)\A` + expression.String() + `\z`)
	if err != nil {
		return Glob{}, fmt.Errorf("reading the pattern %q: %w", pattern, err)
	}
	return Glob{pattern, match}, nil
}

// Match reports whether a user is meant. The zero Glob means nobody.
func (g Glob) Match(user id.UserID) bool { return g.match != nil && g.match.MatchString(string(user)) }

// String is the pattern as it was written.
func (g Glob) String() string { return g.pattern }
