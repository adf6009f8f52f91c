package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/internal/atomicfile"
)

// output is where a command writes: a file that is there whole or not at all, or standard output.
type output struct {
	path  string
	force bool
}

// flags adds --out and --force; without a default --out is required.
func (o *output) flags(cmd *cobra.Command, otherwise string) {
	cmd.Flags().StringVar(&o.path, "out", otherwise, "the file to write, or - for standard output")
	cmd.Flags().BoolVar(&o.force, "force", false, "write over a file that is there")
	if otherwise == "" {
		_ = cmd.MarkFlagRequired("out")
	}
}

// check refuses, before any work, what would be refused in the end.
func (o *output) check() error {
	if o.path == "-" || o.force {
		return nil
	}
	if o.path == "" {
		return errors.New("--out is empty: name the file to write, or - for standard output")
	}
	if _, err := os.Lstat(o.path); err == nil {
		return fmt.Errorf("%s is there already: name another file, or write over it with --force", o.path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("looking at --out: %w", err)
	}
	return nil
}

// outputFile is an output that is being written.
type outputFile struct {
	io.Writer
	output
	file *atomicfile.File
}

// open begins the output. Only who runs the command may read the file.
func (o *output) open(stdout io.Writer) (*outputFile, error) {
	if o.path == "-" {
		return &outputFile{Writer: stdout}, nil
	}
	file, err := atomicfile.Create(o.path, 0o600)
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", o.path, err)
	}
	return &outputFile{file, *o, file}, nil
}

func (f *outputFile) commit() error {
	if f.file == nil {
		return nil
	}
	err := f.file.Commit(f.force)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s came to be meanwhile, and is left as it is: name another file", f.path)
	} else if err != nil {
		return fmt.Errorf("writing %s: %w", f.path, err)
	}
	return nil
}

// abort leaves nothing behind; after commit it does nothing.
func (f *outputFile) abort() error {
	if f.file == nil {
		return nil
	}
	return f.file.Abort()
}

// stream writes what write writes, or nothing.
func (o *output) stream(stdout io.Writer, write func(io.Writer) error) error {
	file, err := o.open(stdout)
	if err != nil {
		return err
	}
	buffered := bufio.NewWriterSize(file, 256<<10)
	if err = write(buffered); err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		return errors.Join(err, file.abort())
	}
	return file.commit()
}

// write writes what is there.
func (o *output) write(stdout io.Writer, content []byte) error {
	return o.stream(stdout, func(to io.Writer) error {
		_, err := to.Write(content)
		return err
	})
}

// newTable aligns what is written with tabs. Users' names and other texts in it are not ours: they do not steer the terminal.
func newTable(out io.Writer) *tabwriter.Writer {
	return tabwriter.NewWriter(plainly{out}, 0, 4, 2, ' ', 0)
}

// plainly is plain for lines.
type plainly struct{ out io.Writer }

func (w plainly) Write(p []byte) (int, error) {
	lines := strings.Split(string(p), "\n")
	for i, line := range lines {
		lines[i] = plain(line)
	}
	if _, err := io.WriteString(w.out, strings.Join(lines, "\n")); err != nil {
		return 0, err
	}
	return len(p), nil
}
