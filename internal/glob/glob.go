// Package glob matches user ids against the patterns that admins write: * stands for any characters, none among them, and ?
// for one. Everything else stands for itself. It is pure.
package glob

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// maxLength bounds a pattern, in bytes, as a user id is bounded.
const maxLength = 255

// Check says what is wrong with a pattern for user ids: one that could match none is wrong.
func Check(pattern string) error {
	switch {
	case pattern == "":
		return errors.New("it is empty: write a user id with * in it, such as @*:example.org")
	case len(pattern) > maxLength:
		return fmt.Errorf("it has %d bytes, and a user id at most %d", len(pattern), maxLength)
	case strings.ContainsFunc(pattern, func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' }):
		return errors.New("it has a space or a character that cannot be printed")
	case !strings.HasPrefix(pattern, "@") && pattern[0] != '*' && pattern[0] != '?':
		return errors.New("it matches nobody: user ids begin with @, such as @*:example.org")
	case !strings.ContainsAny(pattern, ":*"):
		return errors.New("it matches nobody: user ids have a server, such as @*:example.org")
	}
	return nil
}

// Match reports whether a pattern matches the whole of a text. It takes time in proportion to both lengths multiplied, at
// most, whatever is in the pattern.
func Match(pattern, text string) bool {
	p, t := []rune(pattern), []rune(text)
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(t) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == t[j]):
			i++
			j++
		case star >= 0:
			// The last star takes one character more.
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}
