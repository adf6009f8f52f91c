package api

import (
	"maps"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
)

// Target is a device of a user, as the homeserver has it now, and whether a push would reach it.
type Target struct {
	DeviceID id.DeviceID `json:"device_id"`
	Name     string      `json:"name,omitempty"`
	GetsKey  bool        `json:"gets_key"`
	// Why is cross_signed, or excluded, dehydrated or not_verified where it gets none.
	Why string `json:"why"`
	// Since is when it was first pushed to, as the log has it; nil for never.
	Since *time.Time `json:"pushed_to_since,omitempty"`
}

// listTargets asks the homeserver who would get a user's key.
func listTargets(c *call) (answer, error) {
	user, err := c.user()
	if err != nil {
		return answer{}, err
	}
	if c.deps.Keys == nil {
		return answer{}, unavailable("this server cannot ask the homeserver")
	}
	keys, err := c.deps.Keys(c.ctx, user)
	if err != nil {
		c.deps.Log.Warn().Err(err).Msg("The homeserver was asked for a user's devices")
		return answer{}, unavailable("the homeserver does not tell the user's devices now")
	}
	excluded, err := c.deps.DB.Excluded(c.ctx, []id.UserID{user})
	if err != nil {
		return answer{}, err
	}
	since, err := c.deps.DB.TargetsSince(c.ctx, user)
	if err != nil {
		return answer{}, err
	}
	identity := crosssigning.Read(keys, user)
	page := Page[Target]{Items: []Target{}}
	for _, deviceID := range slices.Sorted(maps.Keys(identity.Devices)) {
		d := identity.Devices[deviceID]
		t := Target{DeviceID: deviceID, Why: "cross_signed", Since: optional(since[deviceID])}
		switch {
		case slices.Contains(excluded[user], deviceID):
			t.Why = "excluded"
		case d.Dehydrated:
			t.Why = "dehydrated"
		case !d.CrossSigned:
			t.Why = "not_verified"
		default:
			t.GetsKey = true
		}
		t.Name, _ = keys.DeviceKeys[user][deviceID].Unsigned["device_display_name"].(string)
		page.Items = append(page.Items, t)
	}
	return ok(page), nil
}
