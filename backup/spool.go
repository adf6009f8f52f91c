package backup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"maunium.net/go/mautrix/id"
)

// spooled is the answer with all keys of a version, in a file that has no name any more: it goes with the process. What
// is in it is encrypted, as it is on the homeserver.
type spooled struct{ file *os.File }

// spool takes the answer off the connection at once, so that it is not held open while keys are written.
func (c *Client) spool(ctx context.Context, version id.KeyBackupVersion, dir string) (*spooled, error) {
	file, err := os.CreateTemp(dir, "keyherald-carry-")
	if err != nil {
		return nil, fmt.Errorf("making a file for key-backup version %s: %w", version, err)
	}
	s := &spooled{file}
	if err := os.Remove(file.Name()); err != nil {
		s.close()
		return nil, fmt.Errorf("making a file for key-backup version %s: %w", version, err)
	}
	err = c.readKeys(ctx, version, func(res *http.Response, limit int64) error {
		if err := errors.Join(file.Truncate(0), rewind(file)); err != nil {
			return err
		}
		n, err := io.Copy(file, limited(res.Body, limit))
		if err == nil && n == limit {
			err = fmt.Errorf("it is longer than %d bytes", limit)
		}
		return err
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *spooled) close() { _ = s.file.Close() }

func rewind(file *os.File) error {
	_, err := file.Seek(0, io.SeekStart)
	return err
}

// each reads the file from its start and hands over one key after the other.
func each[S any](s *spooled, take func(room id.RoomID, sessionID id.SessionID, key S) error) error {
	if err := rewind(s.file); err != nil {
		return fmt.Errorf("reading the old room keys again: %w", err)
	}
	if err := decodeKeys(bufio.NewReaderSize(s.file, 64<<10), take); err != nil {
		return fmt.Errorf("reading the old room keys: %w", err)
	}
	return nil
}
