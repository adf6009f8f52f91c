package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/internal/glob"
	"github.com/keyherald/keyherald/internal/strictyaml"
)

// Finding is what is wrong with a document, or worth a look.
type Finding struct {
	// Refused says that such a document is not taken; else it is a warning.
	Refused bool
	// Key is what it is about, such as rules[0].max_age, and Text says what is wrong and what to write.
	Key, Text string

	file *strictyaml.File
}

// Error is the finding with its place: the line, where the document came from a file.
func (f Finding) Error() string {
	err := errors.New(f.Key + " " + f.Text)
	if f.file != nil {
		err = f.file.At(err)
	}
	return err.Error()
}

const (
	maxRules = 500
	// maxWindows bounds what looking up how long a rule's windows stay closed takes.
	maxWindows = 20
	shortest   = time.Hour
	nameWords  = "write a name of a-z, 0-9, - and _, at most 64 of them"
)

var ruleName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// Check says everything that is wrong with a document and, where the roster is known, whom it does not reach; a roster of
// nil is not known. How long windows stay closed is looked up from now on, since clocks are changed now and then.
func Check(d Document, roster []id.UserID, now time.Time) []Finding {
	p, findings := compileAt(d, now)
	if roster != nil {
		findings = append(findings, p.unreached(d, roster)...)
	}
	for i := range findings {
		findings[i].file = d.file
	}
	return findings
}

// Refusing are the findings for which a document is not taken.
func Refusing(findings []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f Finding) bool { return !f.Refused })
}

// compile leaves out what depends on when it is looked at, and takes long: a document that was taken stays good.
func compile(d Document) (*Policy, []Finding) { return compileAt(d, time.Time{}) }

// checker collects what is wrong with one rule.
type checker struct {
	key      string
	findings []Finding
}

func (c *checker) refuse(key, format string, args ...any) {
	c.findings = append(c.findings, Finding{Refused: true, Key: c.key + key, Text: fmt.Sprintf(format, args...)})
}

func (c *checker) warn(key, format string, args ...any) {
	c.findings = append(c.findings, Finding{Key: c.key + key, Text: fmt.Sprintf(format, args...)})
}

func compileAt(d Document, now time.Time) (*Policy, []Finding) {
	c := &checker{}
	p := &Policy{}
	if len(d.Rules) == 0 || len(d.Rules) > maxRules {
		c.refuse("rules", "are %d: write between one and %d", len(d.Rules), maxRules)
		return p, c.findings
	}
	if d.TimeZone != "" {
		if _, err := loadZone(d.TimeZone); err != nil {
			c.refuse("time_zone", "cannot be used: %v", err)
		}
	}
	names, whom := map[string]int{}, map[string]int{}
	all := -1
	for i, s := range d.Rules {
		c.key = fmt.Sprintf("rules[%d]", i)
		p.rules = append(p.rules, c.rule(s, d.TimeZone, now))
		if before, twice := names[s.Name]; twice {
			c.refuse(".name", "is %q, as that of rules[%d] is: give each rule a name of its own", s.Name, before)
		} else {
			names[s.Name] = i
		}
		who := s.Who.normal()
		if before, twice := whom[who]; twice {
			c.refuse(".who", "is the same as that of rule %q: the first rule that has a user counts, so this one never would: remove one", d.Rules[before].Name)
		} else if all >= 0 {
			c.refuse(".who", "comes after rule %q, which is for all: the first rule that has a user counts, so this one never would: write it above", d.Rules[all].Name)
		} else {
			whom[who] = i
		}
		if s.Who.All && all < 0 {
			all = i
		}
	}
	return p, c.findings
}

// normal is the same for whos that have the same users by the same words.
func (w Who) normal() string {
	globs, users := slices.Sorted(slices.Values(w.Globs)), slices.Sorted(slices.Values(w.Users))
	return fmt.Sprintf("%t %q %q", w.All, slices.Compact(globs), slices.Compact(users))
}

func (c *checker) rule(s Statement, zone string, now time.Time) Rule {
	r := Rule{Name: s.Name, Action: s.Action, RotateAfter: s.RotateAfter, OnDrift: s.OnDrift, place: s.Place}
	if !ruleName.MatchString(s.Name) {
		c.refuse(".name", "is %q: %s", s.Name, nameWords)
	}
	c.who(&r, s.Who)
	r.MaxAge = c.span(".max_age", s.MaxAge)
	r.Jitter = c.span(".jitter", s.Jitter)
	r.Grace = c.span(".grace", s.Grace)
	if len(s.Windows) > maxWindows {
		c.refuse(".windows", "are %d: write at most %d", len(s.Windows), maxWindows)
		return r
	}
	for i, h := range s.Windows {
		w, err := h.compile(zone)
		if err != nil {
			c.refuse(fmt.Sprintf(".windows[%d]", i), "cannot be used: %v", err)
			continue
		}
		r.Windows.windows = append(r.Windows.windows, w)
	}
	c.spans(r, now)
	c.action(&r, s)
	if s.Place != nil && (s.Place.KMS == "" || !strings.Contains(s.Place.Path, "{user}")) {
		c.refuse(".place", "needs kms, and a path with {user} in it, such as keyherald/{user}/backup-key: else all users would have one key")
	}
	return r
}

func (c *checker) span(key, text string) time.Duration {
	span, err := parseSpan(text)
	if err != nil {
		c.refuse(key, "cannot be used: %v", err)
	}
	return span
}

func (c *checker) who(r *Rule, w Who) {
	r.all, r.users = w.All, map[id.UserID]bool{}
	switch named := len(w.Globs)+len(w.Users) > 0; {
	case w.All && named:
		c.refuse(".who", "is all, and names users beside: write one of them")
	case !w.All && !named:
		c.refuse(".who", "has nobody: write all: true, or globs, users or csv")
	}
	for i, pattern := range w.Globs {
		if glob.Check(pattern) != nil || !strings.HasPrefix(pattern, "@") || !strings.Contains(pattern, ":") {
			c.refuse(fmt.Sprintf(".who.globs[%d]", i), "is %q: write a pattern of Matrix user ids, such as @exec-*:example.org", pattern)
			continue
		}
		r.globs = append(r.globs, pattern)
	}
	for i, user := range w.Users {
		if err := checkUser(user); err != nil {
			c.refuse(fmt.Sprintf(".who.users[%d]", i), "cannot be used: %v", err)
			continue
		}
		r.users[id.UserID(user)] = true
	}
}

// spans holds the rule's times against each other. What could not be read is zero here, and was told already.
func (c *checker) spans(r Rule, now time.Time) {
	if r.MaxAge < shortest {
		c.refuse(".max_age", "is %s: write at least %s, such as 90d", Span(r.MaxAge), Span(shortest))
		return
	}
	if r.Jitter > r.MaxAge {
		c.refuse(".jitter", "is %s, more than max_age (%s): a key would wait longer for its turn than it may live", Span(r.Jitter), Span(r.MaxAge))
	}
	if r.Grace > r.MaxAge {
		c.refuse(".grace", "is %s, more than max_age (%s): a key could be twice as old as it may be, and nobody would be overdue", Span(r.Grace), Span(r.MaxAge))
	}
	if now.IsZero() {
		return
	}
	gap, open := r.Windows.extremes(now)
	switch {
	case gap > r.MaxAge:
		c.refuse(".max_age", "is %s, and no window is open for up to %s: a key would always become older than it may: widen the windows, or write more", Span(r.MaxAge), Span(gap))
	case r.Grace < gap+r.Jitter && r.Action != KMSGenerates:
		c.warn(".grace", "is %s, and a key that is due may have to wait %s for its turn: its user is overdue meanwhile, though nothing is wrong: write more", Span(r.Grace), Span(gap+r.Jitter))
	}
	if open > 0 && r.Jitter > open {
		c.warn(".jitter", "is %s, longer than the shortest window (%s): users who are due together are spread over several windows", Span(r.Jitter), Span(open))
	}
}

// action fills in what is not said, and refuses what does not go together.
func (c *checker) action(r *Rule, s Statement) {
	if s.Action == "" {
		r.Action = DeviceGenerates
	}
	if s.OnDrift == "" {
		r.OnDrift = DriftReport
	}
	if s.RotateAfter == "" {
		r.RotateAfter = AfterDisclosure
		if r.Action == KMSGenerates {
			r.RotateAfter = AfterNothing
		}
	}
	switch r.Action {
	case DeviceGenerates:
	case KMSGenerates:
		if len(s.Windows) > 0 || s.Jitter != "" || s.Place != nil {
			c.refuse(".action", "is kms_generates, so that nobody is rotated by this rule: remove windows, jitter and place")
		}
		if r.RotateAfter != AfterNothing {
			c.refuse(".rotate_after", "is %s, for which the device would make the key, and action is kms_generates: write nothing", r.RotateAfter)
		}
		if r.OnDrift == DriftReclaim {
			c.refuse(".on_drift", "is reclaim, for which the device would make the key, and action is kms_generates: write report")
		}
	default:
		c.refuse(".action", "is %q: write %s or %s", s.Action, DeviceGenerates, KMSGenerates)
	}
	switch r.RotateAfter {
	case AfterDisclosure, AfterNothing:
	case AfterDisclosureInWindow:
		if len(s.Windows) == 0 {
			c.refuse(".rotate_after", "is disclosure_in_window, and the rule has no windows: write disclosure, or windows")
		}
	default:
		c.refuse(".rotate_after", "is %q: write %s, %s or %s", s.RotateAfter, AfterDisclosure, AfterDisclosureInWindow, AfterNothing)
	}
	switch r.OnDrift {
	case DriftReport, DriftReclaim:
	case DriftAdopt:
		c.warn(".on_drift", "is adopt, which a device does by its own account file alone (on_drift: adopt): where that says something else, the drift is reported and stays")
	default:
		c.refuse(".on_drift", "is %q: write %s, %s or %s", s.OnDrift, DriftReport, DriftAdopt, DriftReclaim)
	}
}

// unreached warns of words that have nobody of the roster, and of rules whose users all have an earlier one.
func (p *Policy) unreached(d Document, roster []id.UserID) []Finding {
	c := &checker{}
	on := make(map[id.UserID]bool, len(roster))
	of := map[string]int{}
	for _, user := range roster {
		on[user] = true
		if r, ok := p.RuleFor(user); ok {
			of[r.Name]++
		} else {
			of[""]++
		}
	}
	for i, r := range p.rules {
		c.key = fmt.Sprintf("rules[%d]", i)
		nobody := false
		for g, pattern := range r.globs {
			if !slices.ContainsFunc(roster, func(user id.UserID) bool { return glob.Match(pattern, string(user)) }) {
				c.warn(fmt.Sprintf(".who.globs[%d]", g), "matches nobody of the roster")
				nobody = true
			}
		}
		var strangers []string
		for _, user := range d.Rules[i].Who.Users {
			if !on[id.UserID(user)] {
				strangers = append(strangers, user)
			}
		}
		if len(strangers) > 0 {
			c.warn(".who", "has %d users who are not on the roster, such as %s: the policy rotates nobody else", len(strangers), strangers[0])
			nobody = true
		}
		if of[r.Name] == 0 && !nobody {
			c.warn(".who", "has nobody of the roster whom no earlier rule has: the first rule that has a user counts")
		}
	}
	if n := of[""]; n > 0 {
		c.key = ""
		c.warn("rules", "have nobody for %d users of the roster: write a last rule for all if that is not meant", n)
	}
	return c.findings
}
