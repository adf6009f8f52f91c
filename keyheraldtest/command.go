package keyheraldtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Command runs a program to its end in dir and returns what it printed; what it complained of is in the error.
func Command(ctx context.Context, dir, program string, args ...string) (string, error) {
	return command(ctx, dir, nil, program, args...)
}

func command(ctx context.Context, dir string, env []string, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, strings.TrimSpace(problem.String()))
	}
	return out.String(), nil
}

// Operator runs the commands of `keyherald`: in a directory, and by the API of a server as an admin of it.
type Operator struct {
	// Dir has the server's configuration, Program is the binary, and Server is the address of its API.
	Dir, Program, Server string
}

// adminToken is the file with the admin's token, by its name in Dir.
const adminToken = "admin.token"

// Admit makes the API token that the commands act with. The database is migrated by then.
func (o Operator) Admit(ctx context.Context) error {
	token, err := o.Run(ctx, "token", "create", "--name", "operator", "--role", "admin", "--ttl", "24h")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.Dir, adminToken), []byte(token), 0o600)
}

// Run runs one command and returns what it printed.
func (o Operator) Run(ctx context.Context, args ...string) (string, error) {
	return command(ctx, o.Dir, []string{"KEYHERALD_SERVER=" + o.Server, "KEYHERALD_TOKEN_FILE=" + filepath.Join(o.Dir, adminToken)}, o.Program, args...)
}
