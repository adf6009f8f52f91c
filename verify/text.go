package verify

import (
	"fmt"
	"io"
	"strings"
)

// WriteText writes the report for people, in plain ASCII but for what findings quote.
func (r *Report) WriteText(out io.Writer) error {
	var text strings.Builder
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(&text, format+"\n", args...) }
	c := r.Checked
	say("%s", r.Headline)
	say("")
	if r.Kind == "proof" {
		say("A proof of one event, in the log %s, epoch %d, of %d events.", quoted(r.Log), r.Epoch, r.Size)
	} else {
		say("The log %s, epoch %d, %d events.", quoted(r.Log), r.Epoch, r.Size)
		say("Events rehashed: %d. Details checked: %d. Details redacted by a signed event: %d.", c.Bodies, c.Details, c.Redacted)
		say("Epochs: %d. Changes of signing keys: %d.", c.Epochs, c.KeyChanges)
	}
	say("Checkpoints that came with it: %d, signed by a trusted key: %d.", c.Checkpoints, c.CheckpointsSigned)
	say("Earlier checkpoints that you gave: %d, signed by a trusted key and matching: %d.", c.Earlier, c.EarlierMatched)
	if r.Since != nil && r.Kind == "bundle" {
		say("The newest of those is %s size %d, from %s:", quoted(r.Since.Origin), r.Since.Size, r.Since.Source)
		say("events 0 to %d are the ones that it covers.", r.Since.Size-1)
		if r.Since.Size < r.Size {
			say("Events %d to %d came later: that they are what was logged is only the log's own word.", r.Since.Size, r.Size-1)
		}
	}
	if len(r.Findings) > 0 {
		say("")
	}
	for _, found := range r.Findings {
		say("%s: %s", found.Verdict, found)
	}
	say("")
	say("%s", r.Closing)
	if _, err := io.WriteString(out, text.String()); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}
