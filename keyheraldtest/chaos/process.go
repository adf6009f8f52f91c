package chaos

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/keyherald/keyherald/keyheraldtest"
)

// process is one of Keyherald's programs, which can be killed and started again.
type process struct {
	name, dir, program string
	args, env          []string

	mu      sync.Mutex // guards running
	running *keyheraldtest.Process
}

func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := os.OpenFile(filepath.Join(p.dir, p.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(p.program, p.args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = p.dir, log, log, append(os.Environ(), p.env...)
	running, err := keyheraldtest.StartProcess(cmd)
	if err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	p.running = running
	return nil
}

// ended reports whether the program ended, by itself or by kill.
func (p *process) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running == nil || p.running.Ended()
}

func (p *process) kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running.Kill()
}

func (p *process) stop() error {
	if p.ended() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running.Stop(syscall.SIGTERM, 0)
	return nil
}
