package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// measuredProcess is a program whose memory and processor's time are looked at.
type measuredProcess struct {
	cmd  *exec.Cmd
	log  string
	done chan error
}

// startMeasured starts a program that writes into a file what it says.
func startMeasured(ctx context.Context, log, program string, args ...string) (*measuredProcess, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	p := &measuredProcess{cmd: exec.CommandContext(ctx, program, args...), log: log, done: make(chan error, 1)}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", program, err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	return p, nil
}

func (p *measuredProcess) pid() int { return p.cmd.Process.Pid }

// running is an error once the program has ended.
func (p *measuredProcess) running() error {
	select {
	case err := <-p.done:
		p.done <- err
		said, _ := os.ReadFile(p.log)
		return fmt.Errorf("the program ended (%w): %s", err, said[max(0, len(said)-2000):])
	default:
		return nil
	}
}

// end stops the program as an operator does.
func (p *measuredProcess) end() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-p.done:
		return err
	case <-time.After(time.Minute):
		return errors.Join(errors.New("the program does not end within a minute"), p.cmd.Process.Kill())
	}
}

// cpu is the processor's time that the program used so far.
func (p *measuredProcess) cpu() (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid()))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may have spaces; utime and stime are the 14th and 15th field (proc_pid_stat(5)), in ticks of
	// a hundredth of a second.
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("reading the processor's time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// residentKB is the resident memory of a process.
func residentKB(pid int) (float64, error) { return statusKB(strconv.Itoa(pid), "VmRSS") }

// statusKB reads a figure of a process, or of "self" (proc_pid_status(5)).
func statusKB(process, name string) (float64, error) {
	status, err := os.ReadFile("/proc/" + process + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == name+":" {
			return strconv.ParseFloat(fields[1], 64)
		}
	}
	return 0, errors.New("the system does not tell a process's memory")
}
