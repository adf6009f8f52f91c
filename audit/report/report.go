package report

import (
	_ "embed"
	"encoding/csv"
	"fmt"
	"html/template"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/audit/integrity"
)

// SentIsNoProof stands in every report.
const SentIsNoProof = `"sent" is not proof of use: clients do not acknowledge a push. Only "adopted" means that a managed device reported to hold the key.`

// Sink is a place where copies of the checkpoints go, by the configuration.
type Sink struct {
	Name, Type, Place string
	// HeldBy says who controls the place; empty where the configuration does not say.
	HeldBy string
	// Newest is what was read back: a checkpoint, or why there is none.
	Newest string
}

// Page is all that a report says.
type Page struct {
	Log string
	// By is who made the report, and At when.
	By string
	At time.Time
	Facts
	Unsealed  int64
	Integrity integrity.Report
	Sinks     []Sink
}

// most is how many rows of a list a page has: what is on paper should be read. The CSV has all rotations.
const most = 400

//go:embed report.html
var pageText string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"when": func(t time.Time) string {
		if t.IsZero() {
			return "–"
		}
		return t.UTC().Format("2006-01-02 15:04:05")
	},
	"or": func(text, otherwise string) string {
		if text == "" {
			return otherwise
		}
		return text
	},
	"took": func(r Rotation) string {
		if r.Begun.IsZero() || r.Ended.IsZero() {
			return "–"
		}
		return r.Ended.Sub(r.Begun).Round(time.Second).String()
	},
	"sent":    func(r Rotation) int { sent, _, _ := r.sent(); return sent },
	"adopted": func(r Rotation) int { _, adopted, _ := r.sent(); return adopted },
	"others":  func(r Rotation) int { _, _, others := r.sent(); return others },
	"marked":  marked,
	"above":   func(y int) int { return y - 3 },
	"below":   func(y, by int) int { return y + by },
}).Parse(pageText))

// marked makes code of what stands between backticks.
func marked(text string) template.HTML {
	var b strings.Builder
	for i, part := range strings.Split(text, "`") {
		if escaped := template.HTMLEscapeString(part); i%2 == 1 {
			b.WriteString("<code>" + escaped + "</code>")
		} else {
			b.WriteString(escaped)
		}
	}
	return template.HTML(b.String())
}

// list is a part of a longer list.
type list[T any] struct {
	Rows []T
	// All is how many there are, and More how many were left out.
	All, More int
}

func some[T any](all []T) list[T] {
	n := min(len(all), most)
	return list[T]{all[:n], len(all), len(all) - n}
}

// HTML writes the page: self-contained, without scripts, and readable on paper.
func HTML(to io.Writer, p Page) error {
	data := struct {
		Page
		Timeline                                  timeline
		Rotated, NotRotated                       list[User]
		Rotations                                 list[Rotation]
		Refused, Admin, Reads                     list[Act]
		SentIsNoProof, Verdict, Symbol, VerdictIs string
		Span                                      string
	}{
		Page: p, Timeline: newTimeline(p.Facts), Rotated: some(p.Rotated), NotRotated: some(p.NotRotated), Rotations: some(p.Rotations),
		Refused: some(p.Refused), Admin: some(p.Admin), Reads: some(p.Reads), SentIsNoProof: SentIsNoProof,
		Verdict: string(p.Integrity.Verdict), Span: p.span(),
	}
	data.Symbol, data.VerdictIs = symbolOf(p.Integrity.Verdict)
	if err := pageTemplate.Execute(to, data); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}

// span is the period in words; whole days are told as days.
func (p Period) span() string {
	from, to := p.From.UTC(), p.To.UTC()
	if from.Truncate(24*time.Hour).Equal(from) && to.Truncate(24*time.Hour).Equal(to) {
		return fmt.Sprintf("%s to %s (both days included)", from.Format(time.DateOnly), to.AddDate(0, 0, -1).Format(time.DateOnly))
	}
	return fmt.Sprintf("%s to %s", from.Format(time.DateTime), to.Format(time.DateTime))
}

// symbolOf is a sign and a class for a verdict: the sign says on paper what a colour says on a screen.
func symbolOf(v integrity.Verdict) (symbol, class string) {
	switch v {
	case integrity.Unchanged:
		return "✓", "good"
	case integrity.SelfConsistent, integrity.DeclaredGap:
		return "!", "warn"
	}
	return "✗", "bad"
}

// CSV writes a row for each rotation of the period, and one for each user who had none that was done.
func CSV(to io.Writer, f Facts) error {
	table := csv.NewWriter(to)
	table.UseCRLF = true
	write := func(cells ...string) error {
		for i := range cells {
			cells[i] = export.Cell(cells[i])
		}
		return table.Write(cells)
	}
	instant := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format("2006-01-02T15:04:05.000Z07:00")
	}
	err := table.Write([]string{"user", "state", "rotation", "source", "path", "version", "begun", "ended", "sent", "adopted", "other_outcomes"})
	for _, r := range f.Rotations {
		if err == nil {
			sent, adopted, others := r.sent()
			err = write(r.User, r.State, r.ID, r.Source, r.Path, r.Version, instant(r.Begun), instant(r.Ended), strconv.Itoa(sent), strconv.Itoa(adopted), strconv.Itoa(others))
		}
	}
	for _, u := range f.NotRotated {
		if err == nil {
			err = write(u.ID, "not rotated in the period", "", "", "", "", "", instant(u.Last), "", "", "")
		}
	}
	if table.Flush(); err == nil {
		err = table.Error()
	}
	if err != nil {
		return fmt.Errorf("writing the report's CSV: %w", err)
	}
	return nil
}
