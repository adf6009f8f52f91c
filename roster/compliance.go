package roster

import "fmt"

// Compliance is how a roster stands: how many users are in each state. The share is never without both of its numbers.
type Compliance struct {
	Roster int           `json:"roster"`
	States map[State]int `json:"states"`
	// PastMaxAge are those whose key is older than their policy allows, in whatever state they are, but for who is exempt.
	PastMaxAge int `json:"past_max_age"`
}

// Add counts a user.
func (c *Compliance) Add(s Standing) {
	if c.States == nil {
		c.States = map[State]int{}
	}
	c.Roster++
	c.States[s.State]++
	if s.PastMaxAge && s.State != Exempt {
		c.PastMaxAge++
	}
}

// Current are those whose key is as it should be, of so many: the roster but for who is exempt.
func (c Compliance) Current() (current, of int) {
	return c.States[Current], c.Roster - c.States[Exempt]
}

// Share is Current as a part of one; ok is false where there is nobody to be current.
func (c Compliance) Share() (share float64, ok bool) {
	current, of := c.Current()
	if of == 0 {
		return 0, false
	}
	return float64(current) / float64(of), true
}

// String is both numbers and the share, such as "19000 of 20000 (95.00 %)". It is rounded down: 100 % is everybody.
func (c Compliance) String() string {
	current, of := c.Current()
	if of == 0 {
		return "0 of 0"
	}
	return fmt.Sprintf("%d of %d (%d.%02d %%)", current, of, current*100/of, current*10_000/of%100)
}
