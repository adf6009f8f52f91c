// Package roster is who must be covered, and how each of them stands: the roster's entries and the file they come in, and the
// table of rules that puts every user of the roster into exactly one state. It is pure; docs/enforcement.md has the same
// table for people.
package roster

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
)

// MostUsers is how many users a roster may have.
const MostUsers = 500_000

// Exemption lets a user out of the count until a time. The zero one is none: one has a reason and an end.
type Exemption struct {
	Reason string    `json:"reason"`
	Until  time.Time `json:"until"`
}

// None reports whether there is no exemption at all.
func (e Exemption) None() bool { return e.Reason == "" && e.Until.IsZero() }

// At reports whether the exemption holds at a time. It ends by itself, with nothing to be done.
func (e Exemption) At(now time.Time) bool { return !e.None() && now.Before(e.Until) }

// Same reports whether two exemptions say the same, to the millisecond, which is what the audit log has.
func (e Exemption) Same(other Exemption) bool {
	return e.Reason == other.Reason && e.Until.Truncate(time.Millisecond).Equal(other.Until.Truncate(time.Millisecond))
}

// Entry is a user of the roster.
type Entry struct {
	UserID    id.UserID `json:"user_id"`
	Exemption Exemption `json:"exemption,omitzero"`
}

// Check refuses what cannot stand on a roster.
func (e Entry) Check() error {
	if _, _, err := e.UserID.ParseAndValidateRelaxed(); err != nil {
		return fmt.Errorf("%q is not a Matrix user id (@name:server): %w", clip(string(e.UserID)), err)
	}
	// Homeservers of long ago took such names; a line feed would make another line of whatever shows it.
	if strings.ContainsFunc(string(e.UserID), func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError }) {
		return fmt.Errorf("%q has control characters: no such user can be managed", clip(string(e.UserID)))
	}
	switch {
	case e.Exemption.None():
		return nil
	case e.Exemption.Reason == "":
		return fmt.Errorf("the exemption of %s has an end and no reason: write both, or neither", e.UserID)
	case e.Exemption.Until.IsZero():
		return fmt.Errorf("the exemption of %s has a reason and no end: write both, or neither", e.UserID)
	}
	if year := e.Exemption.Until.Year(); year < 1970 || year > 9000 {
		return fmt.Errorf("the exemption of %s ends in the year %d: write a year from 1970 on", e.UserID, year)
	}
	if _, err := audit.NewReason(e.Exemption.Reason); err != nil {
		return fmt.Errorf("the exemption of %s: %w", e.UserID, err)
	}
	return nil
}

// clip is a text from outside as an error shows it.
func clip(text string) string {
	const most = 80
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}
