// Package verify checks an exported audit log, or the proof of one event, with nothing but the log's public key and
// earlier checkpoints. It is for people who do not trust who runs the log, so it shares no code with what wrote it:
// hashing, trees and proofs are transparency-dev's, and docs/audit-log.md is what both sides are built from.
//
// It is pure but for reading what it is given. Bundle reads the leaves once (walk), keeps what cannot be judged before
// the end, and then concludes (judge).
package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Options is what the auditor brings.
type Options struct {
	// Keys are the log's verifier keys that were handed over. Without TrustBundleKey there has to be one.
	Keys []Key
	// TrustBundleKey takes the bundle's own keys instead. Then the best verdict is SelfConsistent.
	TrustBundleKey bool
	// Checkpoints are earlier ones.
	Checkpoints []Note
}

// Bundle verifies a bundle of that many bytes. An error is bad usage or unreadable input: then there is no verdict.
func Bundle(ctx context.Context, from io.ReaderAt, size int64, options Options) (*Report, error) {
	return bundle(ctx, from, size, options, maxIDSlots)
}

// bundle is Bundle with a bound for the set of ids.
func bundle(ctx context.Context, from io.ReaderAt, size int64, options Options, idSlots uint64) (*Report, error) {
	a, err := openArchive(from, size)
	if err != nil {
		return nil, err
	}
	keys := options.Keys
	if options.TrustBundleKey {
		if keys, err = a.ownKeys(); err != nil {
			return nil, err
		}
	}
	if err := sameLog(keys, a.manifest.Name, "bundle"); err != nil {
		return nil, err
	}
	j := &judge{manifest: a.manifest, found: newFindings(), bundleKey: options.TrustBundleKey}
	if j.checkpoints, err = a.readCheckpoints(j.found); err != nil {
		return nil, err
	}
	j.checkpoints = append(j.checkpoints, earlier(options.Checkpoints, a.manifest.Name, j.found)...)
	if err := j.read(ctx, a, idSlots); err != nil {
		return nil, err
	}
	since := j.judge(keys)

	report := &Report{Kind: "bundle", Log: a.manifest.Name, Size: j.leaves(), Epoch: j.log[len(j.log)-1].epoch, Checked: j.counts()}
	report.Checked.Checkpoints, report.Checked.Earlier = len(a.checkpoints), len(options.Checkpoints)
	report.conclude(j.found, since, options.why())
	return report, nil
}

// sameLog refuses keys of another log.
func sameLog(keys []Key, name, of string) error {
	if len(keys) == 0 {
		return errors.New("no verifier key is given")
	}
	if keys[0].name() != name {
		return fmt.Errorf("the %s is of the log %s, and the key of %s: give the key of that log", of, quoted(name), quoted(keys[0].name()))
	}
	return nil
}

// why says why there is no earlier checkpoint that counts.
func (o Options) why() string {
	switch {
	case o.TrustBundleKey:
		return "the key is the bundle's own, which whoever made the bundle could choose"
	case len(o.Checkpoints) == 0:
		return "no earlier checkpoint given"
	}
	return "no earlier checkpoint given that counts"
}

// earlier reads the checkpoints that the auditor brought. What is none of this log proves nothing, and is no error.
func earlier(notes []Note, name string, found *findings) []*checkpoint {
	var read []*checkpoint
	for _, in := range notes {
		c, err := parseCheckpoint(in, name)
		if err != nil {
			found.about(remark, "earlier checkpoint", "%s proves nothing: %s", in.Source, err)
			continue
		}
		c.given = true
		read = append(read, c)
	}
	return read
}

// ownKeys are the keys in the bundle.
func (a *archive) ownKeys() ([]Key, error) {
	if a.keys == nil {
		return nil, errors.New("the bundle has no log.vkey")
	}
	raw, err := readAll(a.keys, maxKeyFile)
	if err != nil {
		return nil, err
	}
	keys, err := ParseKeys(raw)
	if err != nil {
		return nil, fmt.Errorf("reading log.vkey of the bundle: %w", err)
	}
	return keys, nil
}

func (a *archive) readCheckpoints(found *findings) ([]*checkpoint, error) {
	var read []*checkpoint
	for _, file := range a.checkpoints {
		raw, err := readAll(file, maxNote)
		if err != nil {
			return nil, err
		}
		c, err := parseCheckpoint(Note{Source: file.Name, Raw: raw}, a.manifest.Name)
		if err != nil {
			found.about(Altered, "checkpoint", "%s of the bundle: %s", file.Name, err)
			continue
		}
		if epoch, size, ok := pathOf(file.Name); !ok || epoch != c.epoch || size != c.size {
			found.about(Altered, "checkpoint", "%s of the bundle is of epoch %d and size %d, which its name does not say", file.Name, c.epoch, c.size)
		}
		read = append(read, c)
	}
	return read, nil
}

// read goes through the leaves: once if nothing is amiss and the log is not too large for the set of ids.
func (j *judge) read(ctx context.Context, a *archive, idSlots uint64) error {
	sizes := make([]uint64, len(j.checkpoints))
	for i, c := range j.checkpoints {
		sizes[i] = c.size
	}
	w := newWalk(a.manifest.Name, a.manifest.Size, idSlots, sizes, j.found)
	j.walk = w
	if err := a.eachLeaf(ctx, false, w.take); err != nil {
		return err
	}
	if err := w.finish(); err != nil {
		return err
	}
	for w.ids.next() {
		if j.leaves() < a.manifest.Size {
			j.found.about(remark, "event id", "whether an event id comes twice was not looked at in full, as the bundle is incomplete")
			break
		}
		if err := a.eachLeaf(ctx, true, w.takeID); err != nil {
			return err
		}
	}
	j.located = w.lookFor()
	if len(j.located) == 0 {
		return nil
	}
	at := uint64(0)
	return a.eachLeaf(ctx, true, func(l *leaf) error {
		if at < j.leaves() {
			locate(j.located, l, at)
		}
		at++
		return nil
	})
}

func (a *archive) eachLeaf(ctx context.Context, idsOnly bool, take func(*leaf) error) error {
	opened, err := a.leaves.Open()
	if err != nil {
		return fmt.Errorf("opening leaves.jsonl: %w", err)
	}
	defer func() { _ = opened.Close() }()
	if err := eachLeaf(ctx, opened, idsOnly, take); err != nil {
		return fmt.Errorf("reading leaves.jsonl: %w", err)
	}
	return nil
}
