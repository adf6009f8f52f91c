package campaign

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// Reach is whether a device that is excluded gets a key all the same, by a rotation that its managed device was told to do
// before: what is under way is not called back.
type Reach string

// The reaches: none, a push that may go out yet, and one that went out.
const (
	OutOfReach Reach = ""
	MayGetKey  Reach = "may_get_key"
	GotKey     Reach = "got_key"
)

// NextAction is what to do about it; empty for nothing.
func (r Reach) NextAction(user id.UserID) string {
	if r == OutOfReach {
		return ""
	}
	return fmt.Sprintf("admin: once that rotation has ended, have another key made, which the device does not get (keyherald rotate --user %s)", user)
}
