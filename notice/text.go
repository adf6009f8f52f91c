package notice

import (
	"html"
	"strings"
	"unicode"
)

// Text is a message: a title, and what follows it.
type Text struct {
	Title string
	Parts []Part
}

// Part is a paragraph with a list under it, which may be empty.
type Part struct {
	Says  string
	Items []string
}

// most bounds a list, so that a message stays one that people read.
const most = 20

// Plain is the message without any form.
func (t Text) Plain() string {
	var b strings.Builder
	b.WriteString(t.Title)
	for _, part := range t.Parts {
		b.WriteString("\n\n" + part.Says)
		for _, item := range part.shown() {
			b.WriteString("\n- " + item)
		}
	}
	return b.String()
}

// HTML is the message in the few elements that every client shows (client-server API, "m.room.message msgtypes").
func (t Text) HTML() string {
	var b strings.Builder
	b.WriteString("<p><strong>" + html.EscapeString(t.Title) + "</strong></p>")
	for _, part := range t.Parts {
		b.WriteString("<p>" + html.EscapeString(part.Says) + "</p>")
		items := part.shown()
		if len(items) == 0 {
			continue
		}
		b.WriteString("<ul>")
		for _, item := range items {
			b.WriteString("<li>" + html.EscapeString(item) + "</li>")
		}
		b.WriteString("</ul>")
	}
	return b.String()
}

func (p Part) shown() []string {
	if len(p.Items) <= most {
		return p.Items
	}
	return append(append([]string(nil), p.Items[:most-1]...), "and "+number(len(p.Items)-most+1)+" more")
}

// maxForeign bounds foreign text, in characters.
const maxForeign = 48

// Foreign is text of others as it may stand in a message: one line of letters, digits and a few signs, and nothing that
// a client makes a link, a mention or a form of. What it loses is shown as a space.
func Foreign(text string) string {
	var b strings.Builder
	runes := []rune(text)
	length, marks, gap := 0, 0, false
	for i, r := range runes {
		if length >= maxForeign {
			b.WriteString("…")
			break
		}
		switch {
		case unicode.Is(unicode.M, r):
			// Accents belong to their letter, towers of them do not.
			if marks++; marks > 2 || gap || length == 0 {
				continue
			}
		case unicode.IsLetter(r), unicode.IsDigit(r), strings.ContainsRune("-+()'", r):
			marks = 0
		case r == '.' && i > 0 && unicode.IsDigit(runes[i-1]) && i+1 < len(runes) && unicode.IsDigit(runes[i+1]):
			// A version's point, and no name of a host.
			marks = 0
		default:
			gap = true
			continue
		}
		if gap && length > 0 {
			b.WriteRune(' ')
			length++
		}
		gap = false
		b.WriteRune(r)
		length++
	}
	return b.String()
}
