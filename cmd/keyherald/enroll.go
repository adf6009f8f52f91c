package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/hex"
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
	"github.com/keyherald/keyherald/protocol"
)

func enrollCommand(r *remote) *cobra.Command {
	var userID, from, out string
	var overwrite bool
	var life time.Duration
	cmd := &cobra.Command{Use: "enroll", Short: "Print a one-time code with which one managed device of a user enrolls; or make codes for a file of users", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := r.connect()
			if err != nil {
				return err
			}
			if from != "" {
				return enrollFrom(cmd.Context(), c, from, out, overwrite, life, cmd.OutOrStdout())
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

// enrollFrom makes a code for each user of a file. The codes are made here and written, durably, beside the file that is asked
// for; then the server is given their hashes; and then the file gets its name. So the named file never has a code that does
// not count, and none that counts is in no file. Where it was stopped in between, the next run finds the unnamed file, gives
// the server the same hashes, which may have them already, and names it.
func enrollFrom(ctx context.Context, c *client, from, out string, overwrite bool, life time.Duration, say io.Writer) error {
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
	left, err := readCodes(waiting)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		if err := keepCodes(ctx, c, left, waiting); err != nil {
			return err
		}
		if err := name(waiting, out, overwrite); err != nil {
			return err
		}
		_, err := fmt.Fprintf(say, "An earlier run made %d codes and was stopped before it named their file: it is %s now, and no others were made. Run the command again with another --out for new ones.\n", len(left), out)
		return err
	}
	codes, err := makeCodes(ctx, c, users, life)
	if err != nil {
		return err
	}
	if err := writeCodes(waiting, codes); err != nil {
		return err
	}
	if err := keepCodes(ctx, c, codes, waiting); err != nil {
		return err
	}
	if err := name(waiting, out, overwrite); err != nil {
		return fmt.Errorf("the codes are made, and are in %s: %w", waiting, err)
	}
	_, err = fmt.Fprintf(say, "Wrote the codes of %d users to %s. Whoever reads that file can enroll a device of theirs: hand them out, and delete it.\n", len(codes), out)
	return err
}

// makeCodes makes codes for the server's bot.
func makeCodes(ctx context.Context, c *client, users []id.UserID, life time.Duration) ([]codeLine, error) {
	var bot api.Bot
	if err := c.do(ctx, http.MethodGet, "/bot", nil, &bot); err != nil {
		return nil, err
	}
	expires := time.Now().Add(life).UTC().Truncate(time.Second)
	codes := make([]codeLine, len(users))
	for i, user := range users {
		code, err := protocol.NewCode(bot.UserID, bot.MasterKey)
		if err != nil {
			return nil, err
		}
		codes[i] = codeLine{user, code.Reveal(), expires}
	}
	return codes, nil
}

// keepCodes gives the server the hashes of the codes of a file. One that is refused is of no use, and is removed; where it is
// not known what became of them the file stays, and the next run asks again.
func keepCodes(ctx context.Context, c *client, codes []codeLine, file string) error {
	request := api.KeepRequest{Codes: make([]api.CodeHash, len(codes)), ExpiresAt: codes[0].ExpiresAt}
	for i, line := range codes {
		code, err := protocol.ParseCode(line.Code)
		if err != nil {
			return fmt.Errorf("%s is of an earlier run, and cannot be read: %w", file, err)
		}
		hash := code.Hash()
		request.Codes[i] = api.CodeHash{UserID: line.UserID, SHA256: hex.EncodeToString(hash[:])}
	}
	err := c.do(ctx, http.MethodPost, "/codes/keep", request, nil)
	refused := new(api.Problem)
	switch {
	case err == nil, errors.As(err, &refused) && refused.Refusal == "already_so":
		return nil
	case refused.Status >= 400 && refused.Status < 500 && refused.Status != http.StatusTooManyRequests:
		return errors.Join(err, os.Remove(file))
	}
	return fmt.Errorf("it is not known whether the codes count, and they are in %s: run the command again: %w", file, err)
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

func writeCodes(path string, codes []codeLine) error {
	file, err := atomicfile.Create(path, 0o600)
	if err != nil {
		return fmt.Errorf("writing the codes: %w", err)
	}
	buffered := bufio.NewWriter(file)
	encoder := json.NewEncoder(buffered)
	for _, c := range codes {
		if err := encoder.Encode(c); err != nil {
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

// readCodes are the codes in the file of a run that was stopped; none where there is no such file.
func readCodes(path string) (codes []codeLine, err error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("looking for what an earlier run left: %w", err)
	}
	defer func() { _ = file.Close() }()
	for decoder := json.NewDecoder(file); decoder.More(); {
		var line codeLine
		if err := decoder.Decode(&line); err != nil {
			return nil, fmt.Errorf("%s is of an earlier run, and cannot be read: look what it is, and move it away", path)
		}
		codes = append(codes, line)
	}
	return codes, nil
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
