package roster

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/internal/period"
)

// maxCSV bounds a file, in bytes.
const maxCSV = 64 << 20

// columns are the header of a file; the last two may be left out together.
var columns = []string{"user_id", "exempt_reason", "exempt_until"}

// BadLine is why a file is refused: the first line that is wrong, and what is. Nothing of the file is applied.
type BadLine struct {
	// Line counts from 1; the header is one.
	Line int
	Err  error
}

func (b BadLine) Error() string { return fmt.Sprintf("line %d: %v", b.Line, b.Err) }

func (b BadLine) Unwrap() error { return b.Err }

// ParseCSV reads a whole roster: a header, then a user a line. A byte order mark and CRLF are taken. A day as the end of an
// exemption is in it. Where anything is wrong the answer is an error alone, a BadLine where it is about a line.
func ParseCSV(in io.Reader) ([]Entry, error) { return parseCSV(in, maxCSV, MostUsers) }

func parseCSV(in io.Reader, mostBytes int64, mostUsers int) ([]Entry, error) {
	raw, err := io.ReadAll(io.LimitReader(in, mostBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading the roster: %w", err)
	}
	if int64(len(raw)) > mostBytes {
		return nil, fmt.Errorf("the roster has more than %d bytes: a user is a line", mostBytes)
	}
	raw = bytes.TrimPrefix(raw, []byte("\ufeff"))
	reader := csv.NewReader(bytes.NewReader(raw))
	reader.ReuseRecord = true
	header, err := reader.Read()
	if errors.Is(err, io.EOF) {
		return nil, BadLine{1, fmt.Errorf("the roster is empty: its first line is %s", strings.Join(columns, ","))}
	} else if err != nil {
		return nil, badLine(reader, err)
	}
	if !slices.Equal(header, columns) && !slices.Equal(header, columns[:1]) {
		return nil, BadLine{1, fmt.Errorf("the header is %q: write %s, or user_id alone", clip(strings.Join(header, ",")), strings.Join(columns, ","))}
	}
	var entries []Entry
	lines := map[id.UserID]int{}
	for {
		record, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return entries, nil
		} else if err != nil {
			return nil, badLine(reader, err)
		}
		line, _ := reader.FieldPos(0)
		entry, err := parseRecord(record)
		if err != nil {
			return nil, BadLine{line, err}
		}
		if before, ok := lines[entry.UserID]; ok {
			return nil, BadLine{line, fmt.Errorf("%s is on line %d already", entry.UserID, before)}
		}
		if len(entries) == mostUsers {
			return nil, BadLine{line, fmt.Errorf("a roster has at most %d users", mostUsers)}
		}
		lines[entry.UserID] = line
		entries = append(entries, entry)
	}
}

func badLine(reader *csv.Reader, err error) error {
	var wrong *csv.ParseError
	if errors.As(err, &wrong) {
		return BadLine{wrong.Line, wrong.Err}
	}
	line, _ := reader.FieldPos(0)
	return BadLine{line, err}
}

func parseRecord(record []string) (Entry, error) {
	for _, value := range record {
		if !utf8.ValidString(value) {
			return Entry{}, errors.New("it is not UTF-8: save the file as UTF-8")
		}
	}
	entry := Entry{UserID: id.UserID(cell(record[0]))}
	if len(record) == len(columns) {
		entry.Exemption.Reason = cell(record[1])
		if until := strings.TrimSpace(record[2]); until != "" {
			var err error
			if entry.Exemption.Until, err = Until(until); err != nil {
				return Entry{}, err
			}
		}
	}
	return entry, entry.Check()
}

// cell is what stands in a cell. An apostrophe before what export.Cell guards against is the guard.
func cell(text string) string {
	text = strings.TrimSpace(text)
	if bare, guarded := strings.CutPrefix(text, "'"); guarded && export.Cell(bare) == text {
		return bare
	}
	return text
}

// Until reads when an exemption ends, as people write it: a day, which is in it, or a time.
func Until(text string) (time.Time, error) {
	if _, err := time.Parse(time.RFC3339, text); err != nil {
		if _, err := time.Parse(time.DateOnly, text); err != nil {
			return time.Time{}, fmt.Errorf("%q is no end of an exemption: write a day such as 2026-11-30, which is in it, or a time such as 2026-11-30T08:00:00Z", clip(text))
		}
	}
	return period.Instant(text, time.Time{}, true)
}

// WriteCSV writes a whole roster as ParseCSV reads it; no reason is a formula to a spreadsheet.
func WriteCSV(out io.Writer, entries []Entry) error {
	writer := csv.NewWriter(out)
	err := writer.Write(columns)
	for _, entry := range entries {
		until := ""
		if !entry.Exemption.None() {
			until = entry.Exemption.Until.UTC().Format(time.RFC3339Nano)
		}
		err = errors.Join(err, writer.Write([]string{string(entry.UserID), export.Cell(entry.Exemption.Reason), until}))
	}
	writer.Flush()
	if err = errors.Join(err, writer.Error()); err != nil {
		return fmt.Errorf("writing the roster: %w", err)
	}
	return nil
}
