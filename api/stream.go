package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/postgres"
)

const (
	// maxStreams bounds the streams of a replica.
	maxStreams = 512
	// heartbeat keeps proxies from taking a quiet stream for a dead one.
	heartbeat = 15 * time.Second
	// lookAgain is the safety net behind Wake.
	lookAgain = time.Second
	// streamLife is after how long a client must come again, with credentials that still count.
	streamLife = 15 * time.Minute
	// writeTime is how long a client may take to take in what it is sent.
	writeTime = 30 * time.Second
)

// Wake has streams look for news: those of rotations that changed, or without one every stream.
func (h *Handler) Wake(rotations ...uuid.UUID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for watcher, key := range h.watchers {
		if len(rotations) > 0 && !slices.Contains(rotations, key) {
			continue
		}
		select {
		case watcher <- struct{}{}:
		default: // it has yet to look after an earlier change
		}
	}
}

// stop ends every stream.
func (h *Handler) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopped = true
	for watcher := range h.watchers {
		close(watcher)
		delete(h.watchers, watcher)
	}
}

// watch gives a channel that has something after each change, and is closed when the server stops. key is the rotation that is
// watched, or uuid.Nil.
func (h *Handler) watch(key uuid.UUID) (changed chan struct{}, end func(), problem *Problem) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return nil, nil, unavailable("the server stops")
	}
	if len(h.watchers) >= maxStreams {
		return nil, nil, unavailable("too many streams of events are open here")
	}
	changed = make(chan struct{}, 1)
	h.watchers[changed] = key
	return changed, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.watchers, changed)
	}, nil
}

// streamed writes server-sent events.
type streamed struct {
	response http.ResponseWriter
	control  *http.ResponseController
}

func (c *call) streamed(kind string) streamed {
	response := c.echo.Response()
	response.Header().Set("Content-Type", kind)
	response.Header().Set("X-Accel-Buffering", "no") // nginx would keep events back
	response.WriteHeader(http.StatusOK)
	to := streamed{response, http.NewResponseController(response)}
	_ = to.control.Flush() // else whoever has nothing to hear yet would not know before the heartbeat that he is heard
	return to
}

// Write waits writeTime at most.
func (s streamed) Write(raw []byte) (int, error) {
	if err := s.control.SetWriteDeadline(time.Now().Add(writeTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, fmt.Errorf("streaming: %w", err)
	}
	n, err := s.response.Write(raw)
	if err != nil {
		err = fmt.Errorf("streaming: %w", err)
	}
	return n, err
}

func (s streamed) write(text string) error {
	if _, err := s.Write([]byte(text)); err != nil {
		return err
	}
	return s.control.Flush()
}

// event sends one event; id is empty for one from which a client does not go on.
func (s streamed) event(kind, id string, data any) error {
	encoded, err := json.Marshal(data) // one line: JSON escapes line feeds
	if err != nil {
		return fmt.Errorf("streaming: %w", err)
	}
	var b strings.Builder
	if id != "" {
		fmt.Fprintf(&b, "id: %s\n", id)
	}
	fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", kind, encoded)
	return s.write(b.String())
}

// follow calls look at once and after each change, until it says that there is no more to come, the client leaves, or the
// server stops. The stream then ends; a client that has not seen an event `end` comes again.
func (c *call) follow(look func(to streamed) (ended bool, err error)) *Problem {
	return c.followRotation(uuid.Nil, look)
}

// followRotation is follow for what is about one rotation: a change of others does not wake it.
func (c *call) followRotation(key uuid.UUID, look func(to streamed) (ended bool, err error)) *Problem {
	changed, end, problem := c.watch(key)
	if problem != nil {
		return problem
	}
	defer end()
	to := c.streamed("text/event-stream")
	again, beat, life := time.NewTicker(lookAgain), time.NewTicker(heartbeat), time.NewTimer(streamLife)
	defer again.Stop()
	defer beat.Stop()
	defer life.Stop()
	for {
		ended, err := look(to)
		if err == nil && ended {
			err = to.event("end", "", struct{}{})
		}
		if err != nil && c.ctx.Err() == nil {
			c.deps.Log.Info().Err(err).Str("operation", c.route.Operation).Msg("A stream of events ended")
		}
		if err != nil || ended {
			return nil
		}
		select {
		case _, open := <-changed:
			if !open {
				return nil
			}
		case <-again.C:
		case <-beat.C:
			if to.write(": still here\n\n") != nil {
				return nil
			}
		case <-life.C:
			return nil
		case <-c.ctx.Done():
			return nil
		}
	}
}

// watchRotation streams what the log tells of a rotation (event `log`, whose id a client goes on from) and the rotation
// itself whenever it has changed (event `rotation`), until it has ended.
func watchRotation(c *call) *Problem {
	key, err := c.key("rotation_id", "rotation")
	if err != nil {
		return c.problemOf(err)
	}
	last := uuid.Nil
	if text := c.echo.Request().Header.Get("Last-Event-ID"); text != "" {
		if last, err = uuid.Parse(text); err != nil {
			return malformed("Last-Event-ID is none of this stream's")
		}
	}
	if _, err := ReadRotation(c.ctx, c.deps.DB, key); err != nil {
		return c.problemOf(err)
	}
	if err := c.recordRead(reader.Reading{Command: audit.CommandWatch, Rotation: key}); err != nil {
		return c.problemOf(err)
	}
	w := rotationWatch{key: key, last: last, sent: map[uuid.UUID]bool{}}
	return c.followRotation(key, func(to streamed) (bool, error) { return w.look(c.ctx, c.deps.DB, to) })
}

// rotationWatch is what a client has been sent of a rotation.
type rotationWatch struct {
	key  uuid.UUID
	last uuid.UUID
	sent map[uuid.UUID]bool
	seen string
}

func (w *rotationWatch) look(ctx context.Context, db *postgres.DB, to streamed) (ended bool, err error) {
	// The state is read before the log: what ended it is then among the lines.
	view, err := ReadRotation(ctx, db, w.key)
	if err != nil {
		return false, err
	}
	for record, err := range db.Events(ctx, postgres.EventFilter{Rotation: w.key}) {
		if err != nil {
			return false, err
		}
		// An event may commit after one with a higher id: what was sent is remembered one by one.
		if w.sent[record.ID] || strings.Compare(record.ID.String(), w.last.String()) <= 0 {
			continue
		}
		w.sent[record.ID] = true
		event, err := reader.EventOf(record)
		if err != nil {
			return false, err
		}
		if err := to.event("log", record.ID.String(), event); err != nil {
			return false, err
		}
	}
	encoded, err := json.Marshal(view)
	if err != nil {
		return false, fmt.Errorf("streaming: %w", err)
	}
	if string(encoded) != w.seen {
		w.seen = string(encoded)
		if err := to.event("rotation", "", view); err != nil {
			return false, err
		}
	}
	return view.State.Ended(), nil
}
