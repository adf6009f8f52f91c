package campaign

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/rotation"
)

// Bounds of what may be asked for.
const (
	maxWaves = 20
	maxRate  = 100_000
	maxWait  = rotation.Timeout
	// maxExclude bounds one transaction: they are excluded together.
	maxExclude = 10_000
)

// Check says what is wrong with parameters and what to write, or nil.
func (p Parameters) Check() error {
	switch {
	case p.Kind != Rotate && p.Kind != Release:
		return fmt.Errorf("a campaign's kind is %q: write %s or %s", p.Kind, Rotate, Release)
	case p.Kind == Release && (p.KMS != "" || p.Path != "" || p.KeyReason != "" || len(p.Exclude) > 0):
		return errors.New("a campaign that releases what is held asks for no key: leave KMS, path, key reason and excluded devices out")
	case (p.KMS == "") != (p.Path == ""):
		return errors.New("the KMS and the path of the keys belong together: name both, or neither")
	case p.Path != "" && !strings.Contains(p.Path, userInPath):
		return fmt.Errorf("the path %q is the same for every user: write %s where the user's name stands in it", p.Path, userInPath)
	case p.KeyReason != rotation.ReasonChanged && !p.KeyReason.Urgent():
		return fmt.Errorf("the key's reason is %q: write %s or %s, or leave it out", p.KeyReason, rotation.ReasonCompromise, rotation.ReasonDisclosed)
	case len(p.Waves) == 0 || len(p.Waves) > maxWaves || p.Waves[len(p.Waves)-1] != 100 || !growing(p.Waves):
		return fmt.Errorf("the waves are %v: write percents that grow to 100, %d at most, such as 1,10,100", p.Waves, maxWaves)
	case p.PassPercent < 1 || p.PassPercent > 100:
		return fmt.Errorf("a wave passes at %d percent: write 1 to 100", p.PassPercent)
	case p.MaxWaiting < 0 || p.MaxWaiting > 100 || p.MaxFailures < 0 || p.MaxFailures > 100:
		return fmt.Errorf("at most %d percent waiting and %d percent failures: write 0 to 100 for each", p.MaxWaiting, p.MaxFailures)
	case p.MaxWait < time.Minute || p.MaxWait > maxWait:
		return fmt.Errorf("a wave is waited for %s: write 1m to %s", p.MaxWait, maxWait)
	case p.Rate < 1 || p.Rate > maxRate:
		return fmt.Errorf("%d users a minute: write 1 to %d", p.Rate, maxRate)
	case p.MaxLatency < 10*time.Millisecond || p.MaxLatency > time.Minute:
		return fmt.Errorf("the homeserver may take %s for a message: write 10ms to 1m", p.MaxLatency)
	}
	if len(p.Exclude) > maxExclude {
		return fmt.Errorf("%d devices are excluded: write %d at most", len(p.Exclude), maxExclude)
	}
	for _, d := range p.Exclude {
		if _, _, err := d.UserID.Parse(); err != nil || d.DeviceID == "" {
			return fmt.Errorf("%s/%s is no device of a user: write @alice:example.org/DEVICE", d.UserID, d.DeviceID)
		}
	}
	return p.Who.check(p.Kind)
}

func growing(percents []int) bool {
	before := 0
	for _, percent := range percents {
		if percent <= before {
			return false
		}
		before = percent
	}
	return true
}

// userInPath stands for the localpart of a user's Matrix id.
const userInPath = "{user}"

// PathOf is the path of a user's key; empty is where it was rotated last.
func (p Parameters) PathOf(user id.UserID) string {
	return strings.ReplaceAll(p.Path, userInPath, user.Localpart())
}
