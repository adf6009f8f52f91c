package interop

import (
	"bytes"
	"context"
	_ "embed" // the drivers and their pins
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/keyherald/keyherald/keyheraldtest"
)

var (
	//go:embed js/driver.mjs
	jsDriver []byte
	//go:embed js/package.json
	jsPackage []byte
	//go:embed js/package-lock.json
	jsLock []byte
	//go:embed node/package.json
	nodePackage []byte
	//go:embed node/package-lock.json
	nodeLock []byte
	//go:embed nio/driver.py
	nioDriver []byte
	//go:embed nio/requirements.txt
	nioRequirements []byte
)

// nodeNeeded is the major version that matrix-js-sdk asks for.
const nodeNeeded = 22

// Tools are the programs that the clients run with, installed into the user's cache directory.
type Tools struct {
	node, jsModules, nioPython string
}

// Install installs what is missing: Synapse, matrix-js-sdk, matrix-nio, and a Node.js where the machine's is too old.
func Install(ctx context.Context, progress io.Writer) (tools Tools, err error) {
	if _, err = keyheraldtest.SynapseEnvironment(ctx, progress); err != nil {
		return tools, err
	}
	if tools.nioPython, err = keyheraldtest.PythonEnvironment(ctx, "interop-nio", nioRequirements, progress); err != nil {
		return tools, err
	}
	js, err := InstallJS(ctx, progress)
	tools.node, tools.jsModules = js.node, js.jsModules
	return tools, err
}

// InstallJS installs what is missing of matrix-js-sdk alone, and a Node.js where the machine's is too old.
func InstallJS(ctx context.Context, progress io.Writer) (tools Tools, err error) {
	if tools.node, err = node(ctx, progress); err != nil {
		return tools, err
	}
	js, err := npmInstall(ctx, "interop-js", jsPackage, jsLock, progress)
	tools.jsModules = filepath.Join(js, "node_modules")
	return tools, err
}

// node finds a Node.js that is new enough.
func node(ctx context.Context, progress io.Writer) (string, error) {
	out, err := exec.CommandContext(ctx, "node", "--version").Output()
	major, _, _ := strings.Cut(strings.TrimPrefix(string(out), "v"), ".")
	if n, numberErr := strconv.Atoi(major); err == nil && numberErr == nil && n >= nodeNeeded {
		return exec.LookPath("node")
	}
	dir, err := npmInstall(ctx, "interop-node", nodePackage, nodeLock, progress)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "node_modules", "node", "bin", "node"), nil
}

// npmInstall installs what a lock file pins, once.
func npmInstall(ctx context.Context, name string, manifest, lock []byte, progress io.Writer) (string, error) {
	if _, err := exec.LookPath("npm"); err != nil {
		return "", errors.New("npm is missing: install Node.js with npm (on Debian: apt-get install npm)")
	}
	pins := bytes.Join([][]byte{manifest, lock}, nil)
	return keyheraldtest.Cached(name+"-"+keyheraldtest.ShortHash(pins), func(temporary string) error {
		_, _ = fmt.Fprintf(progress, "installing %s with npm (once, a minute) …\n", name)
		for file, content := range map[string][]byte{"package.json": manifest, "package-lock.json": lock} {
			if err := os.WriteFile(filepath.Join(temporary, file), content, 0o600); err != nil {
				return fmt.Errorf("installing %s: %w", name, err)
			}
		}
		cmd := exec.CommandContext(ctx, "npm", "ci", "--no-audit", "--no-fund", "--loglevel=error")
		cmd.Dir, cmd.Stdout, cmd.Stderr = temporary, progress, progress
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("installing %s: %w", name, err)
		}
		return nil
	})
}

// startJS starts the driver of matrix-js-sdk, with its modules beside it.
func (t Tools) startJS(dir string) (*driver, error) {
	dir = filepath.Join(dir, "js")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "driver.mjs"), jsDriver, 0o600); err != nil {
		return nil, err
	}
	if err := os.Symlink(t.jsModules, filepath.Join(dir, "node_modules")); err != nil {
		return nil, err
	}
	return startDriver(dir, "matrix-js-sdk", t.node, "driver.mjs")
}

func (t Tools) startNio(dir string) (*driver, error) {
	dir = filepath.Join(dir, "nio")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "driver.py"), nioDriver, 0o600); err != nil {
		return nil, err
	}
	return startDriver(dir, "matrix-nio", t.nioPython, "driver.py")
}
