package policy

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"
)

// usersOf reads the users of a CSV file: those of the column user_id, where the first line names columns, and else those of
// the first column. A line that has none is an error, and then nothing is taken.
func usersOf(raw []byte) ([]string, error) {
	// Spreadsheets write a byte-order mark.
	reader := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(raw, []byte("\xef\xbb\xbf"))))
	reader.TrimLeadingSpace = true
	column := 0
	var users []string
	for first := true; ; first = false {
		record, err := reader.Read()
		if errors.Is(err, io.EOF) {
			if len(users) == 0 {
				return nil, errors.New("it has no users")
			}
			return users, nil
		} else if err != nil {
			return nil, err
		}
		if named := slices.Index(record, "user_id"); first && named >= 0 {
			column = named
			continue
		}
		line, _ := reader.FieldPos(column)
		user := strings.TrimSpace(record[column])
		if err := checkUser(user); err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		users = append(users, user)
	}
}

func checkUser(user string) error {
	if _, _, err := id.UserID(user).ParseAndValidateRelaxed(); err != nil || len(user) > id.UserIDMaxLength {
		return fmt.Errorf("%q is not a Matrix user id: write @name:server", user)
	}
	return nil
}
