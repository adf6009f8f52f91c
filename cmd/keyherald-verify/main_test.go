package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest/auditbundle"
	"github.com/keyherald/keyherald/verify"
)

// desk is an auditor's directory.
type desk struct {
	t    *testing.T
	dir  string
	base *auditbundle.Log
}

func newDesk(t *testing.T) desk {
	d := desk{t, t.TempDir(), auditbundle.New("example.org/keyherald", 1)}
	d.base.Grow(60, 20)
	d.put("log.zip", d.base.Export().Zip())
	d.put("log.vkey", d.base.Verifiers())
	d.put("kept/2026/march.txt", []byte(strings.ReplaceAll(string(d.base.Checkpoints[0].Note), "\n", "\r\n")))
	d.put("kept/april.txt", d.base.Checkpoints[1].Note)
	d.put("kept/readme.txt", []byte("These came by mail.\n"))
	d.put("proof.txt", d.base.Proof(7, d.base.Checkpoints[1]))
	return d
}

func (d desk) path(name string) string { return filepath.Join(d.dir, filepath.FromSlash(name)) }

func (d desk) put(name string, body []byte) {
	d.t.Helper()
	if err := os.MkdirAll(filepath.Dir(d.path(name)), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.path(name), body, 0o644); err != nil {
		d.t.Fatal(err)
	}
}

// run runs a command line in which names with a slash before them are files on the desk.
func (d desk) run(line string) (string, int, error) {
	args := strings.Fields(line)
	for i, arg := range args {
		if name, ok := strings.CutPrefix(arg, "/"); ok {
			args[i] = d.path(name)
		}
	}
	var out strings.Builder
	code, err := run(d.t.Context(), args, &out)
	return out.String(), code, err
}

func TestVerdictsAreExitCodes(t *testing.T) {
	d := newDesk(t)
	altered := d.base.Export()
	altered.Lines[7] = altered.Lines[8]
	d.put("altered.zip", altered.Zip())
	for _, test := range []struct {
		line string
		code int
		says string
	}{
		{"bundle /log.zip --key /log.vkey --checkpoint /kept", 0, "unchanged since example.org/keyherald size 40\n"},
		{"bundle --key /log.vkey --checkpoint /kept/2026/march.txt /log.zip", 0, "unchanged since example.org/keyherald size 20\n"},
		{"bundle --checkpoint=/nothing -checkpoint /kept/april.txt -key /log.vkey -- /log.zip", 2, ""},
		{"bundle /log.zip --key /log.vkey", 3, "self-consistent only: no earlier checkpoint given\n"},
		{"bundle /log.zip --trust-bundle-key --checkpoint /kept", 3, "self-consistent only: the key is the bundle's own"},
		{"bundle /altered.zip --key /log.vkey --checkpoint /kept", 7, "altered: event 7"},
		{"proof /proof.txt --key /log.vkey --checkpoint /kept/april.txt", 0, "unchanged since example.org/keyherald size 40\n"},
		{"proof /proof.txt --key /log.vkey", 3, "self-consistent only"},
	} {
		out, code, err := d.run(test.line)
		if code != test.code || (err != nil) != (test.code == 2) || !strings.HasPrefix(out, test.says) {
			t.Errorf("%s: code %d, %v\n%s", test.line, code, err, out)
		}
	}
}

func TestJSONIsOneObject(t *testing.T) {
	d := newDesk(t)
	for _, line := range []string{"bundle /log.zip --key /log.vkey --checkpoint /kept --json", "proof /proof.txt --json --key /log.vkey --checkpoint /kept"} {
		out, code, err := d.run(line)
		if err != nil {
			t.Fatal(err)
		}
		var report verify.Report
		decoder := json.NewDecoder(strings.NewReader(out))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&report); err != nil || decoder.More() {
			t.Fatalf("%v in %s", err, out)
		}
		if report.Verdict != verify.Unchanged || report.ExitCode != code || report.Since == nil || report.Since.Size != 40 || !strings.Contains(report.Closing, "not proof of use") {
			t.Errorf("got %+v", report)
		}
	}
}

func TestBadUsageSaysWhatToDo(t *testing.T) {
	d := newDesk(t)
	d.put("empty", nil)
	for _, test := range []struct{ line, says string }{
		{"", "say what to verify"},
		{"everything", `"everything" is neither bundle nor proof`},
		{"bundle --key /log.vkey", "say which bundle to verify"},
		{"bundle /log.zip", "--key is needed"},
		{"bundle /log.zip /log.zip --key /log.vkey", "give one file"},
		{"bundle /log.zip --key /log.vkey --trust-bundle-key", "not both"},
		{"bundle /log.zip --keys /log.vkey", "flag provided but not defined"},
		{"proof /proof.txt --trust-bundle-key", "a proof has no key with it"},
		{"bundle /log.zip --key /nothing", "reading --key"},
		{"bundle /log.zip --key /log.zip", "reading --key"},
		{"bundle /nothing --key /log.vkey", "verifying "},
		{"bundle /kept --key /log.vkey", "it is not a file"},
		{"bundle /log.vkey --key /log.vkey", "it is no whole zip file"},
		{"proof /log.vkey --key /log.vkey", "it is no proof of an event"},
		{"bundle /log.zip --key /log.vkey --checkpoint /nothing", "reading --checkpoint"},
		{"bundle /log.zip --key /log.vkey --checkpoint /empty", "there is no signed note in it"},
	} {
		out, code, err := d.run(test.line)
		if code != 2 || err == nil || !strings.Contains(err.Error(), test.says) || out != "" {
			t.Errorf("%s: code %d, %v\n%s", test.line, code, err, out)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	d := newDesk(t)
	for line, says := range map[string]string{"help": "--checkpoint FILE", "--help": "exit code is the verdict", "version": "keyherald-verify ", "bundle --help": "--checkpoint FILE"} {
		if out, code, err := d.run(line); code != 0 || err != nil || !strings.Contains(out, says) {
			t.Errorf("%s: %d, %v\n%s", line, code, err, out)
		}
	}
}
