package sink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/syslog"
	"os"

	"github.com/keyherald/keyherald/audit/checkpoint"
)

// line is a checkpoint as one line of JSON: checkpoint is the signed note, at is RFC 3339.
func line(c checkpoint.Signed) ([]byte, error) {
	encoded, err := json.Marshal(struct {
		Checkpoint string `json:"checkpoint"`
		Size       int64  `json:"size"`
		At         string `json:"at"`
	}{c.Note, c.Size, c.At.UTC().Format("2006-01-02T15:04:05.000Z07:00")})
	if err != nil {
		return nil, fmt.Errorf("encoding a checkpoint: %w", err)
	}
	return append(encoded, '\n'), nil
}

// Stream writes each checkpoint as a line of JSON to a writer, such as standard output.
type Stream struct {
	name string
	to   io.Writer
}

// NewStream makes the sink.
func NewStream(name string, to io.Writer) *Stream { return &Stream{name, to} }

// Name implements signer.Sink.
func (s *Stream) Name() string { return s.name }

// Publish implements signer.Sink.
func (s *Stream) Publish(_ context.Context, c checkpoint.Signed) error {
	encoded, err := line(c)
	if err != nil {
		return err
	}
	_, err = s.to.Write(encoded)
	return err
}

// File appends each checkpoint as a line of JSON to a file, which a log shipper may move away at any time.
type File struct{ name, path string }

// NewFile makes the sink; the file is made with the first checkpoint.
func NewFile(name, path string) *File { return &File{name, path} }

// Name implements signer.Sink.
func (f *File) Name() string { return f.name }

// Publish implements signer.Sink.
func (f *File) Publish(_ context.Context, c checkpoint.Signed) error {
	encoded, err := line(c)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(f.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("writing a checkpoint: %w", err)
	}
	_, err = file.Write(encoded)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("writing a checkpoint: %w", err)
	}
	return nil
}

// Syslog sends each checkpoint as a line of JSON, with the facility authpriv and the severity notice. It connects anew
// for each, so that a daemon that was restarted is found.
type Syslog struct{ name, network, address string }

// NewSyslog makes the sink: network is udp or tcp, or empty with an empty address for the local daemon.
func NewSyslog(name, network, address string) *Syslog { return &Syslog{name, network, address} }

// Name implements signer.Sink.
func (s *Syslog) Name() string { return s.name }

// Publish implements signer.Sink.
func (s *Syslog) Publish(_ context.Context, c checkpoint.Signed) error {
	encoded, err := line(c)
	if err != nil {
		return err
	}
	writer, err := syslog.Dial(s.network, s.address, syslog.LOG_AUTHPRIV|syslog.LOG_NOTICE, "keyherald")
	if err != nil {
		return fmt.Errorf("connecting to syslog: %w", err)
	}
	_, err = writer.Write(encoded)
	return errors.Join(err, writer.Close())
}
