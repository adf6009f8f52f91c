package device

import (
	"path/filepath"
	"testing"
)

func TestAnAccountIsBusyWhileAnythingIsUnderWay(t *testing.T) {
	for _, test := range []struct {
		name, row string
		want      bool
	}{
		{"nothing was ever done", ``, false},
		{"a rotation is open", `INSERT INTO journal (rotation_id, attempt, trigger, stage, updated_at) VALUES ('r', 1, '{}', 'fetched', 0)`, true},
		{"a rotation ended", `INSERT INTO journal (rotation_id, attempt, trigger, stage, ended, updated_at) VALUES ('r', 1, '{}', 'pushed', true, 0)`, false},
		{"a repetition is to come", `INSERT INTO push_round (version, round, cause, rotation_id, attempt, due) VALUES ('1', 2, 'repeat', 'r', 1, 9999999999999)`, true},
		{"a repetition is done", `INSERT INTO push_round (version, round, cause, rotation_id, attempt, due, ended) VALUES ('1', 2, 'repeat', 'r', 1, 0, 'pushed')`, false},
		{"a secret is to be compared", `INSERT INTO received (name, sender, value) VALUES ('n', 's', 'v')`, true},
		{"a secret waits for a person", `INSERT INTO received (name, sender, value, state) VALUES ('n', 's', 'v', 'parked')`, false},
		{"a device asks", `INSERT INTO asked (device_id, request_id, name, state, trusted, received_at) VALUES ('D', 'q', 'n', 'open', true, 0)`, true},
		{"a device was refused", `INSERT INTO asked (device_id, request_id, name, state, trusted, received_at) VALUES ('D', 'q', 'n', 'refused', true, 0)`, false},
		{"a request of its own stands", `INSERT INTO asking (request_id, name, public_key, state, made_at) VALUES ('q', 'n', 'k', 'open', 0)`, true},
		{"a request is to be cancelled", `INSERT INTO asking (request_id, name, public_key, state, made_at) VALUES ('q', 'n', 'k', 'over', 0)`, true},
		{"a request is history", `INSERT INTO asking (request_id, name, public_key, state, made_at) VALUES ('q', 'n', 'k', 'closed', 0)`, false},
		{"the server has yet to hear of an act", `INSERT INTO act (content) VALUES ('{}')`, true},
		{"the store went back, and the server does not know", `INSERT INTO state (name, value) VALUES ('went_back', '{"told": false}')`, true},
		{"the store went back, and the server knows", `INSERT INTO state (name, value) VALUES ('went_back', '{"told": true}')`, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			store, err := openStore(t.Context(), filepath.Join(t.TempDir(), "x.db"), make([]byte, 32), openSQLite)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = store.close() }()
			if test.row != "" {
				if _, err := store.db.Exec(t.Context(), test.row); err != nil {
					t.Fatal(err)
				}
			}
			a := &Account{store: store}
			if busy, err := a.busy(t.Context()); err != nil || !busy {
				t.Errorf("before its first status it is busy: got %t, %v", busy, err)
			}
			a.spoken.Store(true)
			if busy, err := a.busy(t.Context()); err != nil || busy != test.want {
				t.Errorf("got %t, %v", busy, err)
			}
		})
	}
}
