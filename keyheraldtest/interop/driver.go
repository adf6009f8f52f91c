package interop

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// driver is a program that runs clients in another language. It reads one JSON request a line and answers each with one,
// in any order.
type driver struct {
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	log  *os.File
	done chan struct{}

	mu      sync.Mutex // guards what follows
	next    int
	waiting map[int]chan answer
	ended   error
}

type answer struct {
	ID     int             `json:"id"`
	Result json.RawMessage `json:"result"`
	Error  string          `json:"error"`
}

// startDriver runs a program in dir, with what it says beside its answers in a log of its name.
func startDriver(dir, name string, program ...string) (*driver, error) {
	d := &driver{name: name, cmd: exec.Command(program[0], program[1:]...), done: make(chan struct{}), waiting: map[int]chan answer{}}
	d.cmd.Dir = dir
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	if d.log, err = os.Create(filepath.Join(dir, name+".log")); err != nil {
		return nil, fmt.Errorf("making the log of %s: %w", name, err)
	}
	d.cmd.Stderr = d.log
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go d.read(out)
	return d, nil
}

func (d *driver) read(out io.Reader) {
	defer close(d.done)
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			d.end(fmt.Errorf("%s ended (see %s): %w", d.name, d.log.Name(), err))
			return
		}
		var a answer
		if err := json.Unmarshal(line, &a); err != nil {
			d.end(fmt.Errorf("%s said something that is no answer: %w", d.name, err))
			return
		}
		d.mu.Lock()
		waiting := d.waiting[a.ID]
		delete(d.waiting, a.ID)
		d.mu.Unlock()
		if waiting != nil {
			waiting <- a
		}
	}
}

func (d *driver) end(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = err
	for _, waiting := range d.waiting {
		close(waiting)
	}
	d.waiting = nil
}

// do sends a request, whose parameters are a JSON object, and reads the result into result unless that is nil.
func (d *driver) do(ctx context.Context, operation string, parameters map[string]any, result any) error {
	waiting := make(chan answer, 1)
	request, err := d.request(operation, parameters, waiting)
	if err != nil {
		return err
	}
	if _, err := d.in.Write(append(request, '\n')); err != nil {
		return fmt.Errorf("asking %s to %s: %w", d.name, operation, err)
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s: %s: %w", d.name, operation, ctx.Err())
	case a, ok := <-waiting:
		switch {
		case !ok:
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.ended
		case a.Error != "":
			return fmt.Errorf("%s: %s: %s", d.name, operation, a.Error)
		case result == nil:
			return nil
		}
		return json.Unmarshal(a.Result, result)
	}
}

func (d *driver) request(operation string, parameters map[string]any, waiting chan answer) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended != nil {
		return nil, d.ended
	}
	d.next++
	request := map[string]any{"id": d.next, "do": operation}
	for name, value := range parameters {
		request[name] = value
	}
	encoded, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("asking %s to %s: %w", d.name, operation, err)
	}
	d.waiting[d.next] = waiting
	return encoded, nil
}

// close ends the program, which its input's end tells it to.
func (d *driver) close() error {
	err := d.in.Close()
	<-d.done
	if waitErr := d.cmd.Wait(); waitErr != nil && !strings.Contains(waitErr.Error(), "already closed") {
		err = errors.Join(err, fmt.Errorf("%s did not end well: %w", d.name, waitErr))
	}
	return errors.Join(err, d.log.Close())
}
