package todevice

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// maxRequest is how many bytes of messages go in one request: half of the 1 MiB that reverse proxies commonly allow.
const maxRequest = 512 << 10

// requests packs the messages of one transaction into as few /sendToDevice requests as their size allows. Which
// message goes in which request is committed with the ciphertexts, so that a request is always sent again as it was,
// under the same transaction id.
type requests struct {
	packed []packed
	// last is the newest request each device has a message in: a request holds one message per device, and a
	// device's messages stay in order.
	last map[recipient]int
}

type packed struct {
	id    string
	bytes int
}

type recipient struct {
	user   id.UserID
	device id.DeviceID
}

// place gives the id of the request for a message of this many bytes.
func (r *requests) place(to recipient, bytes int) (string, error) {
	from := 0
	if last, ok := r.last[to]; ok {
		from = last + 1
	}
	for i := from; i < len(r.packed); i++ {
		if r.packed[i].bytes+bytes <= maxRequest {
			r.packed[i].bytes += bytes
			r.last[to] = i
			return r.packed[i].id, nil
		}
	}
	fresh, err := newID()
	if err != nil {
		return "", fmt.Errorf("beginning a request: %w", err)
	}
	if r.last == nil {
		r.last = map[recipient]int{}
	}
	r.packed = append(r.packed, packed{fresh, bytes})
	r.last[to] = len(r.packed) - 1
	return fresh, nil
}
