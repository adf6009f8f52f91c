package api

import (
	"testing"

	"github.com/google/uuid"
)

func TestAChangeOfRotationsWakesWhoWatchesThemAndNobodyElse(t *testing.T) {
	t.Parallel()
	h := &Handler{watchers: map[chan struct{}]uuid.UUID{}}
	one, other := uuid.Must(uuid.NewV7()), uuid.Must(uuid.NewV7())
	watched := map[string]chan struct{}{}
	for name, key := range map[string]uuid.UUID{"one": one, "other": other, "a campaign": uuid.Nil} {
		changed, end, problem := h.watch(key)
		if problem != nil {
			t.Fatal(problem)
		}
		defer end()
		watched[name] = changed
	}
	woken := func(want map[string]int) {
		t.Helper()
		for name, changed := range watched {
			if len(changed) != want[name] {
				t.Errorf("of %s there are %d signals, and not %d", name, len(changed), want[name])
			}
		}
	}
	h.Wake(one)
	h.Wake(one, uuid.Must(uuid.NewV7()))
	woken(map[string]int{"one": 1})
	h.Wake()
	woken(map[string]int{"one": 1, "other": 1, "a campaign": 1})
}
