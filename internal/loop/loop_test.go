package loop_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyherald/keyherald/internal/loop"
)

func TestWhatFailedIsRunAgainBeforeItsIntervalIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		var at []time.Duration
		loop.Persist(ctx, nil, time.Second, func() error {
			at = append(at, time.Since(begin))
			if len(at) < 6 {
				return errors.New("not yet")
			}
			if len(at) == 7 {
				cancel()
			}
			return nil
		})
		// The wait doubles up to the interval, and after a success it is the interval.
		want := []time.Duration{0, 250, 750, 1750, 2750, 3750, 4750}
		if len(at) != len(want) {
			t.Fatalf("it was run at %v", at)
		}
		for i := range want {
			if at[i] != want[i]*time.Millisecond {
				t.Fatalf("it was run at %v", at)
			}
		}
	})
}
