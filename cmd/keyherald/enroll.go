package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/internal/atomicfile"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
)

func enrollCommand(load func() (config, error), r *remote) *cobra.Command {
	var userID, from, out string
	var overwrite bool
	var life time.Duration
	cmd := &cobra.Command{Use: "enroll", Short: "Print a one-time code with which one managed device of a user enrolls; or make codes for a file of users", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from != "" {
				// Over the database: a code's file is there before its code, which no answer over a network can promise.
				return withEngine(cmd.Context(), load, func(db *postgres.DB, engine *relay.Engine) error {
					return enrollFrom(cmd.Context(), db, engine, from, out, overwrite, life, cmd.OutOrStdout())
				})
			}
			c, err := r.connect()
			if err != nil {
				return err
			}
			if life < time.Second {
				return fmt.Errorf("--ttl is %s: write 24h", life)
			}
			var code api.NewCode
			if err := c.do(cmd.Context(), http.MethodPost, userPath("/users", userID, "codes"), api.CodeRequest{TTL: int64(life / time.Second)}, &code); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), code.Code)
			return err
		}}
	cmd.Flags().StringVar(&userID, "user", "", "the user's id, such as @alice:example.org")
	cmd.Flags().StringVar(&from, "from", "", "a CSV file of user ids, one a line: a code for each of them, or for none; needs --out")
	cmd.Flags().StringVar(&out, "out", "", "the file for the codes, a line of JSON each; it is for its owner alone (0600), and nothing is written over")
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "write over the file that is there")
	cmd.Flags().DurationVar(&life, "ttl", 24*time.Hour, "how long a code may be used")
	cmd.MarkFlagsOneRequired("user", "from")
	cmd.MarkFlagsMutuallyExclusive("user", "from")
	cmd.MarkFlagsRequiredTogether("from", "out")
	return cmd
}

// codeLine is a line of the file of codes.
type codeLine struct {
	UserID    id.UserID `json:"user_id"`
	Code      string    `json:"code"`
	ExpiresAt time.Time `json:"expires_at"`
}

// enrollFrom makes a code for each user of a file. The codes are written, durably, beside the file that is asked for, then
// they are committed, and then the file gets its name: so the named file never has a code that does not exist, and none that
// exists is in no file. Where it was stopped between the two, the next run finds out which it was by looking for the codes in
// the database, and only gives the file its name.
func enrollFrom(ctx context.Context, db *postgres.DB, engine *relay.Engine, from, out string, overwrite bool, life time.Duration, say io.Writer) error {
	users, err := readUsers(from)
	if err != nil {
		return err
	}
	if _, err = os.Lstat(out); err == nil && !overwrite {
		return fmt.Errorf("%s is there already: name another file, or say --overwrite where its codes are of no use any more", out)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("looking at --out: %w", err)
	}
	// The kernel frees the lock of a run that was killed.
	directory, err := os.Open(filepath.Dir(out))
	if err != nil {
		return fmt.Errorf("looking at --out: %w", err)
	}
	defer func() { _ = directory.Close() }()
	if err := syscall.Flock(int(directory.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("another run writes codes into %s now: wait for it", filepath.Dir(out))
	}
	waiting := out + ".uncommitted"
	left, err := leftBehind(ctx, db, waiting)
	if err != nil {
		return err
	}
	if left > 0 {
		if err := name(waiting, out, overwrite); err != nil {
			return err
		}
		_, err := fmt.Fprintf(say, "An earlier run made %d codes and was stopped before it named their file: it is %s now, and no others were made. Run the command again with another --out for new ones.\n", left, out)
		return err
	}
	codes, err := engine.NewCodes(ctx, users, life, localActor(), func(codes []relay.UserCode) error { return writeCodes(waiting, codes) })
	if err != nil {
		// Whether a COMMIT whose answer was lost took place is found out by the next run: what was written stays.
		return err
	}
	if err := name(waiting, out, overwrite); err != nil {
		return fmt.Errorf("the codes are made, and are in %s: %w", waiting, err)
	}
	_, err = fmt.Fprintf(say, "Wrote the codes of %d users to %s. Whoever reads that file can enroll a device of theirs: hand them out, and delete it.\n", len(codes), out)
	return err
}

// readUsers reads the user ids of a CSV file whose first line may be user_id. Every line must be right.
func readUsers(path string) ([]id.UserID, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading --from: %w", err)
	}
	defer func() { _ = file.Close() }()
	reader := csv.NewReader(file)
	reader.FieldsPerRecord, reader.Comment = 1, '#'
	var users []id.UserID
	lines := map[id.UserID]int{}
	for {
		record, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if wrong := new(csv.ParseError); errors.As(err, &wrong) {
			why := wrong.Err
			if errors.Is(why, csv.ErrFieldCount) {
				why = errors.New("it has more than one column: write a user id and nothing else")
			}
			return nil, fmt.Errorf("%s, line %d: %w", path, wrong.Line, why)
		} else if err != nil {
			return nil, fmt.Errorf("reading --from: %w", err)
		}
		line, _ := reader.FieldPos(0)
		user := id.UserID(strings.TrimSpace(strings.TrimPrefix(record[0], "\ufeff")))
		if user == "user_id" && len(users) == 0 {
			continue
		}
		if _, _, err := user.ParseAndValidateStrict(); err != nil {
			return nil, fmt.Errorf("%s, line %d: %q is not a Matrix user id (@name:server): %w", path, line, user, err)
		}
		if before, twice := lines[user]; twice {
			return nil, fmt.Errorf("%s, line %d: %s was on line %d already", path, line, user, before)
		}
		lines[user], users = line, append(users, user)
	}
	if len(users) == 0 {
		return nil, fmt.Errorf("%s has no user id", path)
	}
	return users, nil
}

func writeCodes(path string, codes []relay.UserCode) error {
	file, err := atomicfile.Create(path, 0o600)
	if err != nil {
		return fmt.Errorf("writing the codes: %w", err)
	}
	buffered := bufio.NewWriter(file)
	encoder := json.NewEncoder(buffered)
	for _, c := range codes {
		if err := encoder.Encode(codeLine{c.UserID, c.Code.Reveal(), c.ExpiresAt.UTC().Truncate(time.Second)}); err != nil {
			return errors.Join(fmt.Errorf("writing the codes: %w", err), file.Abort())
		}
	}
	if err := buffered.Flush(); err != nil {
		return errors.Join(fmt.Errorf("writing the codes: %w", err), file.Abort())
	}
	if err := file.Commit(true); err != nil {
		return fmt.Errorf("writing the codes: %w", err)
	}
	return nil
}

// leftBehind is how many codes are in the file of a run that was stopped, where they were made. Where none was, the file is
// removed: all of them are made together.
func leftBehind(ctx context.Context, db *postgres.DB, path string) (codes int, err error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("looking for what an earlier run left: %w", err)
	}
	defer func() { _ = file.Close() }()
	decoder := json.NewDecoder(file)
	var first protocol.Code
	for decoder.More() {
		var line codeLine
		if err := decoder.Decode(&line); err != nil {
			return 0, fmt.Errorf("%s is of an earlier run, and cannot be read: look what it is, and move it away", path)
		}
		code, err := protocol.ParseCode(line.Code)
		if err != nil {
			return 0, fmt.Errorf("%s is of an earlier run, and cannot be read: %w", path, err)
		}
		if codes == 0 {
			first = code
		}
		codes++
	}
	made := false
	if codes > 0 {
		if made, err = db.HasCode(ctx, first.Hash()); err != nil {
			return 0, err
		}
	}
	if made {
		return codes, nil
	}
	if err := os.Remove(path); err != nil {
		return 0, fmt.Errorf("removing what an earlier run left: %w", err)
	}
	return 0, nil
}

// name gives a durable file its name, and makes that last.
func name(from, to string, overwrite bool) error {
	var err error
	if overwrite {
		err = os.Rename(from, to)
	} else if err = os.Link(from, to); err == nil {
		err = os.Remove(from)
	}
	if err != nil {
		return fmt.Errorf("naming the file of codes: %w", err)
	}
	directory, err := os.Open(filepath.Dir(to))
	if err != nil {
		return fmt.Errorf("naming the file of codes: %w", err)
	}
	return errors.Join(directory.Sync(), directory.Close())
}
