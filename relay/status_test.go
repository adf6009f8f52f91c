package relay

import (
	"encoding/json"
	"testing"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
)

func TestAStatusThatComesAfterANewerOneIsOvertaken(t *testing.T) {
	t.Parallel()
	mark := func(count int64) *protocol.StoreMark { return &protocol.StoreMark{Run: uuid.New(), Count: count} }
	for name, test := range map[string]struct {
		known, came *protocol.StoreMark
		want        bool
	}{
		"an older one, of whichever run": {mark(7), mark(6), true},
		"a newer one":                    {mark(7), mark(8), false},
		"one of an older device":         {mark(7), nil, false},
		"one after an older device's":    {nil, mark(1), false},
	} {
		raw, err := json.Marshal(protocol.Status{Store: test.known})
		if err != nil {
			t.Fatal(err)
		}
		if got := overtaken(postgres.Device{Status: raw}, protocol.Status{Store: test.came}); got != test.want {
			t.Errorf("%s is overtaken: %v", name, got)
		}
	}
	if overtaken(postgres.Device{Status: json.RawMessage("null")}, protocol.Status{Store: mark(1)}) {
		t.Error("the first status is overtaken")
	}
}
