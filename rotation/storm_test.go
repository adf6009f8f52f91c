package rotation

import "testing"

func TestWhenAStormIsHeld(t *testing.T) {
	for _, test := range []struct {
		name              string
		limit             StormLimit
		changed, enrolled int
		held              bool
	}{
		{"the first user of a small company goes", DefaultStormLimit(), 0, 5, false},
		{"the twentieth user of a small company goes", DefaultStormLimit(), 19, 5, false},
		{"the twenty-first is held", DefaultStormLimit(), 20, 5, true},
		{"two percent of a large company go", DefaultStormLimit(), 199, 10_000, false},
		{"and no more", DefaultStormLimit(), 200, 10_000, true},
		{"with all percents nothing is held", StormLimit{Percent: 100, Users: 20}, 9_999, 10_000, false},
		{"nor where users without a device are counted", StormLimit{Percent: 100, Users: 20}, 11_000, 10_000, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if held := test.limit.Holds(test.changed, test.enrolled); held != test.held {
				t.Errorf("held is %t, want %t", held, test.held)
			}
		})
	}
}
