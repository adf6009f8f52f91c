package rotation

import "time"

// StormLimit is how many users' keys may change within StormWindow before further users' rotations are held until an
// admin releases them: Percent of the users with a managed device, or Users, whichever is more. 100 percent holds nobody.
type StormLimit struct {
	Percent int `yaml:"percent"`
	Users   int `yaml:"users"`
}

// DefaultStormLimit is 2 percent or 20 users.
func DefaultStormLimit() StormLimit { return StormLimit{Percent: 2, Users: 20} }

// StormWindow is the time over which changed users are counted.
const StormWindow = time.Hour

// Holds reports whether a change of one more user is held: changed users were let through within the window, of
// enrolled users altogether.
func (l StormLimit) Holds(changed, enrolled int) bool {
	return !l.Off() && changed >= l.Most(enrolled)
}

// Most is how many users may change within the window, of enrolled users altogether.
func (l StormLimit) Most(enrolled int) int { return max(l.Users, enrolled*l.Percent/100) }

// Off reports whether nobody is ever held, so that nothing needs to be counted.
func (l StormLimit) Off() bool { return l.Percent >= 100 }
