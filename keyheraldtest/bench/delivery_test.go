package bench

import "testing"

// The benchmark itself fails where a message is lost or comes twice.
func TestAPushIsAMessageForEachDeviceAndFormAndABroadcastOneForEachPair(t *testing.T) {
	const n = 3
	rows, err := Delivery(t.Context(), n, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	messages := rows[1]
	if messages.Ours != 2*n {
		t.Errorf("a push in two forms is %.0f messages to %d devices", messages.Ours, n)
	}
	// Each device but the first sends a request and a cancellation to all, and is answered once or more often.
	if least := float64(2*n*(n-1) + n - 1); messages.Beside["request_broadcast"] < least {
		t.Errorf("a broadcast is %.0f messages, and %.0f are the least", messages.Beside["request_broadcast"], least)
	}
	if rows[0].Ours <= 0 || rows[0].Beside["request_broadcast"] <= 0 {
		t.Errorf("got %+v", rows[0])
	}
}
