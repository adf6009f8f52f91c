package export

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// csvHeader are the columns, in order.
var csvHeader = []string{"index", "event", "time", "actor", "action", "subject", "rotation", "outcome", "detail", "redacted_by"}

// CSV writes all rows per RFC 4180, with a header, and returns how many. Cells are as Cell makes them.
func CSV(to io.Writer, rows Rows) (n int64, err error) {
	table := csv.NewWriter(to)
	table.UseCRLF = true
	if err := table.Write(csvHeader); err != nil {
		return 0, fmt.Errorf("writing CSV: %w", err)
	}
	for record, err := range rows {
		if err != nil {
			return n, err
		}
		line, err := LineOf(record)
		if err != nil {
			return n, err
		}
		cells := []string{"", line.ID.String(), line.Time, line.Actor, string(line.Action), line.Subject, line.Rotation, string(line.Outcome), string(line.Detail), ""}
		if line.Index != nil {
			cells[0] = strconv.FormatInt(*line.Index, 10)
		}
		if line.RedactedBy != nil {
			cells[9] = line.RedactedBy.String()
		}
		for i := range cells {
			cells[i] = Cell(cells[i])
		}
		if err := table.Write(cells); err != nil {
			return n, fmt.Errorf("writing CSV: %w", err)
		}
		n++
	}
	table.Flush()
	if err := table.Error(); err != nil {
		return n, fmt.Errorf("writing CSV: %w", err)
	}
	return n, nil
}

// formula are the characters that make a spreadsheet take what follows for a formula, some of them in the full width that
// East Asian editions know too; and the apostrophe, so that a program can take off what Cell put on.
const formula = "=+-@\t\r\n'＝＋－＠"

// Cell makes a text safe for spreadsheets, which would run it as a formula where it begins like one: it then gets an
// apostrophe before it, as every Matrix user id does. A program that reads the file takes one leading apostrophe off.
func Cell(text string) string {
	// Blanks before it do not hold a spreadsheet back.
	first, _ := utf8.DecodeRuneInString(strings.TrimLeft(text, " \u00a0\ufeff"))
	if text != "" && first != utf8.RuneError && strings.ContainsRune(formula, first) {
		return "'" + text
	}
	return text
}
