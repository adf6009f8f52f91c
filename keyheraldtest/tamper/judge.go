package tamper

import (
	"fmt"
	"strings"
)

// seen is what everybody made of a case.
type seen struct {
	// alone is keyherald-verify's report without an earlier checkpoint, with the one with the auditor's, after that one
	// when the signer has gone on.
	alone, with, after report
	// inPlace is the report of `keyherald audit verify`.
	inPlace report
	signer  signed
}

// judge says what is wrong with what was seen; empty where it is right.
func (s seen) judge(a attack) string {
	switch {
	case s.with.Verdict != a.want:
		return fmt.Sprintf("keyherald-verify calls it %q, and it is %q: %s", s.with.Verdict, a.want, s.with.Headline)
	case a.honest && s.after.Verdict != a.want:
		return fmt.Sprintf("when the signer has gone on, keyherald-verify calls it %q, and it is %q: %s", s.after.Verdict, a.want, s.after.Headline)
	case a.honest && s.inPlace.Verdict != a.want && s.inPlace.Verdict != unchanged: // a loss is behind the sink's newest checkpoint
		return fmt.Sprintf("`keyherald audit verify` calls it %q, and it is %q: %s", s.inPlace.Verdict, a.want, s.inPlace.Headline)
	case a.honest && s.signer.word != signs:
		return fmt.Sprintf("the signer %s: %s", s.signer.word, s.signer.says)
	case a.signer != "" && s.signer.word != a.signer:
		return fmt.Sprintf("the signer %s, and not: %s (%s)", s.signer.word, a.signer, s.signer.says)
	case a.signer != "" && !strings.Contains(s.signer.says, "event"):
		return "the signer names no events: " + s.signer.says
	case a.inPlace && s.inPlace.Verdict != altered:
		return fmt.Sprintf("`keyherald audit verify` calls it %q: %s", s.inPlace.Verdict, s.inPlace.Headline)
	case a.inPlace && s.signer.word != inspected:
		return fmt.Sprintf("the signer %s: %s", s.signer.word, s.signer.says)
	case a.inPlace && s.signer.found.about(a) == nil:
		return "the signer names another place: " + s.signer.says
	case a.named() && s.finding(a) == nil:
		return fmt.Sprintf("no finding is about event %d and nothing outside %d to %d: %s", a.leaf, a.first, a.last, s.report(a).Headline)
	}
	return ""
}

// named tells whether a place must be named.
func (a attack) named() bool { return a.inPlace || a.want != unchanged && !a.honest && a.leaf >= 0 }

// report is the one that must name the place.
func (s seen) report(a attack) report {
	if a.inPlace {
		return s.inPlace
	}
	return s.with
}

// finding is the one that names the place.
func (s seen) finding(a attack) *finding { return s.report(a).about(a) }

// about is the narrowest finding of a report that names the place of an attack as it must be named; nil where none does.
func (r report) about(a attack) *finding {
	var narrowest *finding
	for _, f := range r.Findings {
		if f.Verdict == "remark" || !f.has(a.leaf) || *f.First < a.first || *f.Last > a.last {
			continue
		}
		if narrowest == nil || *f.Last-*f.First < *narrowest.Last-*narrowest.First {
			narrowest = &f
		}
	}
	return narrowest
}

// place is what the table says.
func (s seen) place(a attack) string {
	if a.named() {
		if f := s.finding(a); f != nil {
			return f.where()
		}
		return "NOT NAMED"
	}
	if a.signer != "" {
		return "the signer: " + strings.TrimSpace(s.signer.says[strings.LastIndex(s.signer.says, ":")+1:])
	}
	for _, f := range s.report(a).Findings {
		if f.Verdict != "remark" {
			return f.where()
		}
	}
	return "-"
}
