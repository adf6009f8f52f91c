package campaign

import (
	"errors"
	"fmt"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/internal/glob"
)

// Who says whom of the roster a campaign is for: all, those that a glob matches, and those that are named; but for those
// that Except matches. In a glob * is any text and ? one character.
type Who struct {
	All    bool        `json:"all,omitempty"`
	Globs  []string    `json:"globs,omitempty"`
	Users  []id.UserID `json:"users,omitempty"`
	Except []string    `json:"except,omitempty"`
}

func (w Who) check(kind Kind) error {
	if w.All == (len(w.Globs)+len(w.Users) > 0) {
		return errors.New("say whom the campaign is for: all of the roster, or globs and users")
	}
	for _, pattern := range slices.Concat(w.Globs, w.Except) {
		if err := glob.Check(pattern); err != nil {
			return fmt.Errorf("the glob %q: %w", pattern, err)
		}
	}
	for _, user := range w.Users {
		if _, _, err := user.Parse(); err != nil {
			return fmt.Errorf("%q is not a Matrix user id (@name:server)", user)
		}
	}
	return nil
}

// Meant are those of the users whom a campaign is for, in the order of their ids.
type Meant struct {
	Users []id.UserID
	// Excluded are those that Except matched. NotThere are the named ones that are not among the users, and Unmatched the
	// globs, those of Except among them, that match none of the users: where one is misspelt, those move who should not.
	Excluded  []id.UserID
	NotThere  []id.UserID
	Unmatched []string
}

// Choose picks from the users of the roster, or for a release, from those whose rotations are held.
func (w Who) Choose(from []id.UserID) Meant {
	var m Meant
	from = slices.Clone(from)
	slices.Sort(from)
	from = slices.Compact(from)
	matched := map[string]bool{}
	matches := func(patterns []string, user id.UserID) (is bool) {
		for _, pattern := range patterns {
			if glob.Match(pattern, string(user)) {
				is, matched[pattern] = true, true
			}
		}
		return is
	}
	named := make(map[id.UserID]bool, len(w.Users))
	for _, user := range w.Users {
		named[user] = true
	}
	for _, user := range from {
		is, excepted := matches(w.Globs, user) || w.All || named[user], matches(w.Except, user)
		switch {
		case !is:
		case excepted:
			m.Excluded = append(m.Excluded, user)
		default:
			m.Users = append(m.Users, user)
		}
	}
	for _, user := range w.Users {
		if _, there := slices.BinarySearch(from, user); !there && !slices.Contains(m.NotThere, user) {
			m.NotThere = append(m.NotThere, user)
		}
	}
	for _, pattern := range slices.Concat(w.Globs, w.Except) {
		if !matched[pattern] && !slices.Contains(m.Unmatched, pattern) {
			m.Unmatched = append(m.Unmatched, pattern)
		}
	}
	return m
}
