package e2e

import (
	"strings"
	"testing"
)

// Every write of the managed device on the way of a rotation fails once, before and after it took effect, and so does
// every request to its KMS.
func TestTheDevicesWritesMayFailBeforeAndAfterTheyTookEffect(t *testing.T) {
	w := newFaulty(t)
	w.tryAll(t, w.device, func(label string) bool {
		return strings.HasPrefix(label, "SQLite: ") || strings.HasPrefix(label, "device to ")
	})
}
