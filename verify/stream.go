package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
)

const (
	// maxLine bounds a line of leaves.jsonl, in bytes.
	maxLine   = 4 << 20
	batchSize = 256 << 10
)

// batch is a piece of leaves.jsonl of whole lines, and what became of them.
type batch struct {
	raw    []byte
	leaves []leaf
	done   chan struct{}
}

// eachLeaf reads lines, checks them on all processors, and hands the leaves over in their order. What it holds at one time
// are a few batches.
func eachLeaf(ctx context.Context, from io.Reader, idsOnly bool, take func(*leaf) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	workers := runtime.GOMAXPROCS(0)
	unread, ordered := make(chan *batch), make(chan *batch, 2*workers)
	free := make(chan *batch, 3*workers+2)
	for range cap(free) {
		free <- &batch{}
	}
	var readErr error
	running.Go(func() {
		defer close(ordered)
		defer close(unread)
		readErr = cut(ctx, from, free, func(b *batch) error {
			b.done = make(chan struct{})
			for _, queue := range []chan *batch{ordered, unread} {
				select {
				case queue <- b:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	})
	for range workers {
		running.Go(func() {
			for b := range unread {
				b.check(idsOnly)
				close(b.done)
			}
		})
	}
	for b := range ordered {
		select {
		case <-b.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		for i := range b.leaves {
			if err := take(&b.leaves[i]); err != nil {
				return err
			}
		}
		free <- b
	}
	// Closing ordered comes after readErr was written.
	return readErr
}

// cut cuts what it reads into batches that end where a line does.
func cut(ctx context.Context, from io.Reader, free <-chan *batch, put func(*batch) error) error {
	var rest []byte
	for lines := 0; ; {
		var b *batch
		select {
		case b = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		b.raw = append(b.raw[:0], rest...)
		rest = rest[:0]
		for {
			n, err := fill(from, &b.raw)
			if errors.Is(err, io.EOF) {
				if len(b.raw) == 0 {
					return nil
				}
				return put(b) // The last line may have no end.
			} else if err != nil {
				return fmt.Errorf("after line %d: %w", lines+bytes.Count(b.raw, []byte("\n")), err)
			}
			if bytes.IndexByte(b.raw[len(b.raw)-n:], '\n') >= 0 {
				break
			}
			if len(b.raw) > maxLine {
				return fmt.Errorf("line %d is longer than %d bytes", lines+1, maxLine)
			}
		}
		end := bytes.LastIndexByte(b.raw, '\n') + 1
		rest = append(rest, b.raw[end:]...)
		b.raw = b.raw[:end]
		lines += bytes.Count(b.raw, []byte("\n"))
		if err := put(b); err != nil {
			return err
		}
	}
}

// fill reads once, about a batch, and appends it.
func fill(from io.Reader, into *[]byte) (int, error) {
	held := len(*into)
	if cap(*into)-held < batchSize {
		grown := make([]byte, held, held+batchSize)
		copy(grown, *into)
		*into = grown
	}
	n, err := io.ReadFull(from, (*into)[held:held+batchSize])
	*into = (*into)[:held+n]
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

func (b *batch) check(idsOnly bool) {
	b.leaves = b.leaves[:0]
	for line := range bytes.Lines(b.raw) {
		b.leaves = append(b.leaves, readLeaf(line, idsOnly))
	}
}
