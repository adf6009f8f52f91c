package keyheraldtest

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Process is a program in the background, which ends with whoever started it.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// StartProcess starts a program. SIGKILL ends it when this process is gone, where cmd names no other signal for that.
func StartProcess(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go func() { defer close(p.done); _ = cmd.Wait() }()
	return p, nil
}

// PID is the program's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended reports whether the program has ended, by itself or by a signal.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Kill ends the program with SIGKILL, as a crash does.
func (p *Process) Kill() error {
	err := p.cmd.Process.Kill()
	<-p.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Stop asks the program to end by a signal, and waits until it has. After patience it is killed; 0 is for ever.
func (p *Process) Stop(signal os.Signal, patience time.Duration) {
	_ = p.cmd.Process.Signal(signal)
	var late <-chan time.Time
	if patience > 0 {
		late = time.After(patience)
	}
	select {
	case <-p.done:
	case <-late:
		_ = p.Kill()
	}
}
