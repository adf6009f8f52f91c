package todevice

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"maunium.net/go/mautrix"
)

func answered(status int, retryAfter string, extra map[string]any) error {
	return answeredCode(status, "M_X", retryAfter, extra)
}

func answeredCode(status int, code, retryAfter string, extra map[string]any) error {
	header := http.Header{}
	if retryAfter != "" {
		header.Set("Retry-After", retryAfter)
	}
	return fmt.Errorf("sending: %w", mautrix.HTTPError{Response: &http.Response{StatusCode: status, Header: header},
		RespError: &mautrix.RespError{ErrCode: code, Err: "x", ExtraData: extra}})
}

func TestWhatTheHomeserverAnsweredDecidesWhetherAMessageIsSentAgain(t *testing.T) {
	for _, test := range []struct {
		name    string
		err     error
		refused bool
		// wait is exact where the homeserver named it; -1 is our own back-off.
		wait time.Duration
	}{
		{"accepted", nil, false, 0},
		{"no answer", errors.New("connection reset"), false, -1},
		{"too many requests, with Retry-After", answered(429, "7", nil), false, 7 * time.Second},
		{"too many requests, with retry_after_ms", answered(429, "", map[string]any{"retry_after_ms": 2500.0}), false, 2500 * time.Millisecond},
		{"too many requests and no word how long", answered(429, "", nil), false, -1},
		{"too many requests and nonsense", answered(429, "-3", map[string]any{"retry_after_ms": "soon"}), false, -1},
		{"a fault of the homeserver", answered(500, "", nil), false, -1},
		{"a proxy without its homeserver", answered(502, "", nil), false, -1},
		{"a dead token, which is ours to mend", answered(401, "", nil), false, -1},
		{"forbidden, likewise", answered(403, "", nil), false, -1},
		{"our device was deleted, likewise", answeredCode(400, "M_UNKNOWN_DEVICE", "", nil), false, -1},
		{"and in Synapse's words", answeredCode(400, "ORG.MATRIX.MSC4326.M_UNKNOWN_DEVICE", "", nil), false, -1},
		{"a message the homeserver does not take", answered(400, "", nil), true, 0},
		{"a message that is too large", answered(413, "", nil), true, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := judge(test.err, 3)
			if (got.refusal != "") != test.refused {
				t.Errorf("the refusal is %q", got.refusal)
			}
			wait := got.wait
			if test.wait >= 0 && wait != test.wait {
				t.Errorf("waits %s, want %s", wait, test.wait)
			}
			if test.wait < 0 && (wait < time.Second || wait > 2*time.Second) {
				t.Errorf("waits %s at the third try, want one to two seconds", wait)
			}
		})
	}
}

func TestTheBackOffGrowsAndEndsAtFiveMinutes(t *testing.T) {
	for tries := 1; tries <= 200; tries++ {
		top := min(500*time.Millisecond<<min(tries-1, 10), 5*time.Minute)
		for range 20 {
			if wait := backoff(tries); wait < top/2 || wait > top {
				t.Fatalf("try %d waits %s, outside %s to %s", tries, wait, top/2, top)
			}
		}
	}
}
