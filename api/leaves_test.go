package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/tree"
	"github.com/keyherald/keyherald/keyheraldtest/sealedlog"
	"github.com/keyherald/keyherald/postgres"
)

// sealed is the API with a signer beside it.
func sealed(t *testing.T) (*server, *sealedlog.Log) {
	t.Helper()
	s := newServer(t)
	log := &sealedlog.Log{Database: s.database, Writer: s.db, Shelf: &sealedlog.Shelf{}}
	log.KeyFile, log.Keys = sealedlog.NewKey(t)
	for url, to := range map[string]**postgres.DB{s.database.SuperURL: &log.Super, s.database.SignerURL: &log.Sealer} {
		db, err := postgres.Open(t.Context(), url)
		check(t, err)
		t.Cleanup(func() { _ = db.Close() })
		*to = db
	}
	log.Signer = log.NewSigner(t)
	return s, log
}

// leaf reads one that came, and holds its hash against the event's bytes.
func leaf(t *testing.T, e sse) api.Leaf {
	t.Helper()
	var l api.Leaf
	if e.event != "leaf" {
		t.Fatalf("%q came and no leaf", e.event)
	}
	check(t, json.Unmarshal([]byte(e.data), &l))
	if l.Event == nil || l.Detail == nil || string(l.LeafHash) != hashOf(*l.Event) || e.id != strconv.FormatInt(l.Index, 10) {
		t.Errorf("leaf %s is %s", e.id, e.data)
	}
	return l
}

func hashOf(event string) string {
	hash := tree.LeafHash([]byte(event))
	return string(hash[:])
}

func TestTheSealedLogIsStreamedFromWhereTheClientSays(t *testing.T) {
	s, log := sealed(t)
	log.Append(t, 5)
	log.Seal(t)
	size := log.Newest(t).Size
	for _, test := range []struct {
		name, query, last string
		from              int64
	}{
		{"all of it", "", "", 0},
		{"from a leaf on", "&first=3", "", 3},
		{"from behind the last one received", "", "3", 4},
		{"what was received goes before what was asked for at first", "&first=1", "3", 4},
		{"where nothing is new", "", fmt.Sprint(size - 1), size},
		{"from the one that is to come", fmt.Sprintf("&first=%d", size), "", size},
	} {
		t.Run(test.name, func(t *testing.T) {
			events := s.watchPath("/audit/leaves?once=true"+test.query, "auditor", test.last)
			for want := test.from; want < size; want++ {
				e, _ := next(t, events)
				if got := leaf(t, e); got.Index != want {
					t.Fatalf("leaf %d came in place of %d", got.Index, want)
				}
			}
			if e, _ := next(t, events); e.event != "end" {
				t.Errorf("behind what was sealed came %v", e)
			}
			if e, open := next(t, events); open {
				t.Errorf("behind the end came %v", e)
			}
		})
	}
	var from []int64
	for _, read := range s.log("audit.read", "accepted") {
		var detail struct {
			Command audit.Command
			From    int64
		}
		if err := json.Unmarshal(read.Detail, &detail); err != nil || detail.Command != audit.CommandFollow || read.Actor != "admin:token:auditor" {
			t.Errorf("the reading left %s of %s (%v)", read.Detail, read.Actor, err)
		}
		from = append(from, detail.From)
	}
	if want := []int64{0, 3, 4, 4, size, size}; !slices.Equal(from, want) {
		t.Errorf("the log tells of readings from %d and not from %d", from, want)
	}
}

func TestAPlaceThatTheLogDoesNotHaveIsRefused(t *testing.T) {
	s, log := sealed(t)
	log.Seal(t)
	size := log.Newest(t).Size
	for _, test := range []struct {
		name, query, last string
		status            int
	}{
		{"a leaf behind the next", fmt.Sprintf("?once=true&first=%d", size+1), "", http.StatusConflict},
		{"a leaf that was received, and is not there any more", "?once=true", fmt.Sprint(size), http.StatusConflict},
		{"no number", "?first=x", "", http.StatusBadRequest},
		{"before the first", "?first=-1", "", http.StatusBadRequest},
		{"another stream's id", "", "01939aa0-0000-7000-8000-000000000000", http.StatusBadRequest},
		{"an id before the first", "", "-1", http.StatusBadRequest},
		{"what nobody knows", "?last=3", "", http.StatusBadRequest},
	} {
		t.Run(test.name, func(t *testing.T) {
			var headers []string
			if test.last != "" {
				headers = []string{"Last-Event-ID", test.last}
			}
			if got := s.as("auditor", http.MethodGet, "/audit/leaves"+test.query, nil, headers...); got.status != test.status || got.problem(t).Detail == "" {
				t.Errorf("it is answered with %d: %s", got.status, got.body)
			}
		})
	}
	if reads := s.log("audit.read", "accepted"); len(reads) != 0 {
		t.Errorf("what was refused left %v", reads)
	}
}

func TestAStreamOfLeavesGoesOnUntilTheLogGoesBack(t *testing.T) {
	s, log := sealed(t)
	log.Seal(t)
	size := log.Newest(t).Size
	events := s.watchPath("/audit/leaves", "admin", fmt.Sprint(size-1))
	log.Seal(t) // the reading of the log is an event as any other
	s.api.Wake()
	e, _ := next(t, events)
	if l := leaf(t, e); l.Index != size {
		t.Errorf("what was sealed next is leaf %d and not %d", l.Index, size)
	}
	log.Append(t, 1)
	log.Seal(t)
	s.api.Wake()
	e, _ = next(t, events)
	if l := leaf(t, e); l.Index != size+1 {
		t.Errorf("what was sealed then is leaf %d and not %d", l.Index, size+1)
	}
	log.Tamper(t, fmt.Sprintf("DELETE FROM audit_leaf WHERE leaf_index > %d", size))
	s.api.Wake()
	if e, open := next(t, events); open {
		t.Errorf("of a log that went back came %v", e)
	}
}
