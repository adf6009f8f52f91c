package campaign

import (
	"encoding/json"
	"fmt"
	"runtime"
	"sync"

	"maunium.net/go/mautrix/id"
)

// fleet is everybody's device. Two of a hundred are offline until they come back, and one of a hundred fails for good.
type fleet struct {
	hs      *homeserver
	members map[id.UserID]*member
	order   []*member
	work    chan delivery
	done    sync.WaitGroup

	mu     sync.Mutex // guards the rest, and what members say they guard by it
	failed error
}

type member struct {
	*device
	wasAway bool
	offline bool              // guarded by fleet.mu, once the campaign has started
	held    []json.RawMessage // what the homeserver has for it; guarded by fleet.mu
}

type delivery struct {
	to      *member
	content json.RawMessage
}

func userName(i int) id.UserID { return id.NewUserID(fmt.Sprintf("user%05d", i), serverName) }

// newFleet makes n devices, whose keys the homeserver has.
func newFleet(hs *homeserver, n int) (*fleet, error) {
	f := &fleet{hs: hs, members: make(map[id.UserID]*member, n), order: make([]*member, n), work: make(chan delivery, n)}
	failed := make(chan error, 1)
	var makers sync.WaitGroup
	workers := runtime.NumCPU()
	for worker := range workers {
		makers.Go(func() {
			for i := worker; i < n; i += workers {
				m := &member{}
				var keys *published
				var err error
				if m.device, keys, err = newDevice(userName(i)); err != nil {
					select {
					case failed <- err:
					default:
					}
					return
				}
				f.order[i] = m
				hs.mu.Lock()
				hs.keys[m.user] = keys
				hs.mu.Unlock()
			}
		})
	}
	makers.Wait()
	select {
	case err := <-failed:
		return f, err
	default:
	}
	for _, m := range f.order {
		f.members[m.user] = m
	}
	hs.deliver = f.deliver
	for range workers {
		f.done.Go(f.run)
	}
	return f, nil
}

// cast says who is offline and who fails, evenly over the order in which their turns come: no wave has more of them than
// another by chance.
func (f *fleet) cast(turns []id.UserID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, user := range turns {
		m := f.members[user]
		m.offline = i%50 == 45
		m.wasAway = m.offline
		switch i % 200 {
		case 60:
			m.nature = needy
		case 160:
			m.nature = failing
		}
	}
}

// deliver is a message of the bot's that the homeserver took.
func (f *fleet) deliver(to id.UserID, device id.DeviceID, content json.RawMessage) {
	m, ok := f.members[to]
	if !ok || device != m.id {
		f.fail(fmt.Errorf("the bot wrote to %s/%s, which is not there", to, device))
		return
	}
	f.mu.Lock()
	offline := m.offline
	if offline {
		m.held = append(m.held, content)
	}
	f.mu.Unlock()
	if !offline {
		f.work <- delivery{m, content}
	}
}

func (f *fleet) run() {
	for d := range f.work {
		answers, err := d.to.take(d.content)
		if err != nil {
			f.fail(err)
			continue
		}
		for _, answer := range answers {
			f.hs.post(answer)
		}
	}
}

func (f *fleet) close() error {
	close(f.work)
	f.done.Wait()
	return nil
}

func (f *fleet) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed == nil {
		f.failed = err
	}
}

// trouble is the first thing that a device could not do.
func (f *fleet) trouble() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

// comeBack has everybody online, with what waited for him.
func (f *fleet) comeBack() {
	for _, m := range f.order {
		f.mu.Lock()
		held := m.held
		m.offline, m.held = false, nil
		f.mu.Unlock()
		for _, content := range held {
			f.work <- delivery{m, content}
		}
	}
}

func (f *fleet) count(is func(m *member) bool) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.order {
		if is(m) {
			n++
		}
	}
	return n
}

func (f *fleet) away() int     { return f.count(func(m *member) bool { return m.offline }) }
func (f *fleet) wereAway() int { return f.count(func(m *member) bool { return m.wasAway }) }
func (f *fleet) failing() int  { return f.count(func(m *member) bool { return m.nature != able }) }

func (f *fleet) isFailing(user id.UserID) bool {
	m, ok := f.members[user]
	return ok && m.nature != able
}

// rotatedTwice are those whose device was triggered for two rotations.
func (f *fleet) rotatedTwice() int {
	return f.count(func(m *member) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.rotations) > 1
	})
}
