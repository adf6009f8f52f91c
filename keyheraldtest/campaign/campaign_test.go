package campaign

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"
)

var errNobodyDone = errors.New("nobody is done yet")

func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-tags", "goolm", "-o", dir+"/", "../../cmd/keyherald")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v: %s", err, out)
	}
	return dir
}

// The whole of `make campaign` with a fiftieth of its users.
func TestACampaignForTwoHundredUsers(t *testing.T) {
	var out bytes.Buffer
	result, err := Run(t.Context(), Config{Programs: programs(t), Dir: t.TempDir(), Users: 200, Rate: 6000, Limit: 5 * time.Minute, Out: &out})
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if !result.OK || result.Done != 198 || result.NeedsAttention != 2 || result.RotatedTwice != 0 || result.Offline != 4 || result.PeakRSSMB == 0 || result.DatabaseMB == 0 {
		t.Errorf("%+v", result)
	}
}
