package e2e

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/google/uuid"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// person is a user with a plain client, who reads what the bot says.
type person struct {
	*mautrix.Client
	syncs *int
}

func (w *world) person(t *testing.T, name string) person {
	t.Helper()
	ctx := t.Context()
	user, err := w.hs.CreateUser(ctx, name, password)
	check(t, err)
	return w.reader(t, user)
}

func (w *world) reader(t *testing.T, user id.UserID) person {
	t.Helper()
	client, err := mautrix.NewClient(w.hs.URL, "", "")
	check(t, err)
	_, err = client.Login(t.Context(), &mautrix.ReqLogin{Type: mautrix.AuthTypePassword, Password: password, DeviceID: "READER", StoreCredentials: true,
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: user.String()}})
	check(t, err)
	return person{client, new(int)}
}

// said is a message of the bot's.
type said struct {
	Content map[string]any `json:"content"`
	Sender  id.UserID      `json:"sender"`
	Type    string         `json:"type"`
}

func (s said) body() string { body, _ := s.Content["body"].(string); return body }

// rooms are the rooms that the person was invited to or is in.
func (p person) rooms(t *testing.T) (invited, joined []id.RoomID) {
	t.Helper()
	// Synapse answers the same /sync from a cache for two minutes; each of these waits a millisecond more than the last.
	*p.syncs++
	answer, err := p.FullSyncRequest(t.Context(), mautrix.ReqSync{Timeout: *p.syncs, FullState: true})
	check(t, err)
	for room := range answer.Rooms.Invite {
		invited = append(invited, room)
	}
	for room := range answer.Rooms.Join {
		joined = append(joined, room)
	}
	return invited, joined
}

// enter accepts the one invitation that there is.
func (p person) enter(t *testing.T) id.RoomID {
	t.Helper()
	var invited []id.RoomID
	wait(t, "an invitation", func() bool { invited, _ = p.rooms(t); return len(invited) > 0 })
	if len(invited) != 1 {
		t.Fatalf("%s is invited to %v", p.UserID, invited)
	}
	_, err := p.JoinRoomByID(t.Context(), invited[0])
	check(t, err)
	wait(t, "the room to be his", func() bool { _, joined := p.rooms(t); return len(joined) == 1 })
	return invited[0]
}

// messages is what was said in a room, oldest first.
func (p person) messages(t *testing.T, room id.RoomID) []said {
	t.Helper()
	var page struct {
		Chunk []said `json:"chunk"`
	}
	url := p.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "rooms", room, "messages"}, map[string]string{"dir": "b", "limit": "100"})
	_, err := p.MakeRequest(t.Context(), http.MethodGet, url, nil, &page)
	check(t, err)
	var all []said
	for i := len(page.Chunk) - 1; i >= 0; i-- {
		if page.Chunk[i].Type == event.EventMessage.Type {
			all = append(all, page.Chunk[i])
		}
	}
	return all
}

// read waits for so many messages in a room, and returns all of them: Dendrite lets a person read what was said a moment after
// he is in.
func (p person) read(t *testing.T, room id.RoomID, want int) (all []said) {
	t.Helper()
	wait(t, fmt.Sprintf("%d messages", want), func() bool { all = p.messages(t, room); return len(all) >= want })
	if len(all) != want {
		t.Fatalf("there are %d messages, want %d: %v", len(all), want, all)
	}
	return all
}

// ended puts a rotation of a user there that came to an end, or needs attention.
func (w *world) ended(t *testing.T, user id.UserID, facts rotation.Facts) uuid.UUID {
	t.Helper()
	ctx := t.Context()
	now := w.clock.Now()
	key := uuid.Must(uuid.NewV7())
	r := postgres.Rotation{ID: key, UserID: user, Secret: protocol.SecretMegolmBackup, KMS: protocol.KMSRef{Name: "dev", Path: "keyherald/" + user.Localpart(), Version: key.String()},
		Source: "dev", Facts: rotation.Facts{State: rotation.Working}, CreatedAt: now}
	check(t, w.db.InsertRotations(ctx, []postgres.Rotation{r}))
	r.Facts = facts
	check(t, w.db.UpdateRotation(ctx, r, now))
	w.notices.Wake()
	return key
}

// noticeStates counts the notices of an audience by state.
func (w *world) noticeStates(t *testing.T, audience string) map[string]int {
	t.Helper()
	rows, err := w.db.Query(t.Context(), `SELECT state, COUNT(*) FROM notice WHERE audience = $1 GROUP BY state`, audience)
	check(t, err)
	defer func() { _ = rows.Close() }()
	states := map[string]int{}
	for rows.Next() {
		var state string
		var n int
		check(t, rows.Scan(&state, &n))
		states[state] = n
	}
	check(t, rows.Err())
	return states
}

// waitSent waits until so many notices for an audience are sent and none waits.
func (w *world) waitSent(t *testing.T, audience string, want int) {
	t.Helper()
	wait(t, fmt.Sprintf("%d notices for %s", want, audience), func() bool {
		w.notices.Wake()
		states := w.noticeStates(t, audience)
		return states["sent"] == want && states["pending"] == 0
	})
}
