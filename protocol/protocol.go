// Package protocol is what the Keyherald server's bot and a managed device say to each other: the content of the
// to-device events, always inside Olm, never in clear. It is pure: shapes, limits and their checks, no I/O.
//
// Ids are UUIDv7, times Unix milliseconds, keys unpadded base64. Unknown fields are ignored, so that a server can
// serve devices two minor versions back. What comes from the other side is untrusted until Validate said yes.
package protocol

import (
	"time"

	"maunium.net/go/mautrix/event"
)

// Version is the protocol version a device states when it enrolls.
const Version = 1

// SecretMegolmBackup is the only secret of version 1: the private key of the user's key backup.
const SecretMegolmBackup = "m.megolm_backup.v1"

// The to-device event types.
var (
	TypeEnrollRequest  = event.Type{Type: "io.keyherald.enroll.request", Class: event.ToDeviceEventType}
	TypeEnrollResponse = event.Type{Type: "io.keyherald.enroll.response", Class: event.ToDeviceEventType}
	TypeTrigger        = event.Type{Type: "io.keyherald.rotation.trigger", Class: event.ToDeviceEventType}
	TypeCancel         = event.Type{Type: "io.keyherald.rotation.cancel", Class: event.ToDeviceEventType}
	TypeProgress       = event.Type{Type: "io.keyherald.rotation.progress", Class: event.ToDeviceEventType}
	TypeStatus         = event.Type{Type: "io.keyherald.device.status", Class: event.ToDeviceEventType}
	TypeRevoked        = event.Type{Type: "io.keyherald.device.revoked", Class: event.ToDeviceEventType}
)

// Millis is a time as it travels: Unix milliseconds.
type Millis int64

// At converts to the form that travels.
func At(t time.Time) Millis { return Millis(t.UnixMilli()) }

// Time converts back, in UTC.
func (m Millis) Time() time.Time { return time.UnixMilli(int64(m)).UTC() }
