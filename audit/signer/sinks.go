package signer

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/keyherald/keyherald/audit/checkpoint"
)

// remember reads the newest checkpoint of every sink that can be read back, and this process's own. Where there are such
// sinks, one of them must answer: else nothing is signed.
func (s *Signer) remember(ctx context.Context) ([]remembered, error) {
	s.mu.Lock()
	published := []remembered{{s.newest, "this process"}}
	s.mu.Unlock()
	var failures error
	memories, answered := 0, 0
	for _, sink := range s.sinks {
		memory, ok := sink.(Memory)
		if !ok {
			continue
		}
		memories++
		c, err := Recall(ctx, memory, s.keys)
		if err != nil {
			failures = errors.Join(failures, fmt.Errorf("reading the sink %s: %w", memory.Name(), err))
			continue
		}
		answered++
		published = append(published, remembered{c, "the sink " + memory.Name()})
	}
	if memories > 0 && answered == 0 {
		return nil, fmt.Errorf("no sink says which checkpoint was published last, so nothing is signed: %w", failures)
	}
	if failures != nil {
		s.log.Warn().Err(failures).Msg("A sink of the audit log's checkpoints cannot be read")
	}
	return published, nil
}

// Recall is the newest checkpoint of a sink, signed by one of the keys; its size is zero where there is none.
func Recall(ctx context.Context, memory Memory, keys checkpoint.Keys) (checkpoint.Checkpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, sinkTimeout)
	defer cancel()
	note, err := memory.Newest(ctx)
	if err != nil || note == "" {
		return checkpoint.Checkpoint{}, err
	}
	return checkpoint.Open(keys.Name, note, keys.Verifiers)
}

// publish gives a checkpoint to every sink that did not take it from this process yet. One that fails holds up neither
// the others nor the sealing: it gets the newest one in the next round.
func (s *Signer) publish(ctx context.Context, c checkpoint.Signed) {
	var all sync.WaitGroup
	failures := make([]error, len(s.sinks))
	for i, sink := range s.sinks {
		s.mu.Lock()
		has := s.published[sink.Name()].Compare(c.Checkpoint) >= 0
		s.mu.Unlock()
		if has {
			continue
		}
		all.Go(func() {
			limited, cancel := context.WithTimeout(ctx, sinkTimeout)
			defer cancel()
			failures[i] = sink.Publish(limited, c)
		})
	}
	all.Wait()
	s.mu.Lock()
	before := len(s.status.Unpublished)
	s.status.Unpublished = nil
	for i, sink := range s.sinks {
		if failures[i] != nil {
			s.status.Unpublished = append(s.status.Unpublished, sink.Name())
		} else {
			s.published[sink.Name()] = c.Checkpoint
		}
	}
	now := len(s.status.Unpublished)
	s.mu.Unlock()
	if err := errors.Join(failures...); err != nil && ctx.Err() == nil && now != before {
		s.log.Error().Err(err).Msg("A checkpoint of the audit log could not be published yet")
	}
}
