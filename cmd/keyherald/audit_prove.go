package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/tree"
)

// proofExtra is what a proof has beside the proof: the event itself.
type proofExtra struct {
	Event  string  `json:"event"`
	Salt   *string `json:"salt,omitempty"` // base64
	Detail *string `json:"detail,omitempty"`
}

func auditProve(load func() (config, error)) *cobra.Command {
	var to output
	cmd := tool(load, "prove EVENT", "Write a proof that an event is in the log (C2SP tlog-proof), which verifies without the log", cobra.ExactArgs(1), func(cmd *cobra.Command, t *auditTools, args []string) error {
		ctx := cmd.Context()
		if err := to.check(); err != nil {
			return err
		}
		record, err := t.eventKey(ctx, args[0])
		if err != nil {
			return err
		}
		encoded, err := t.prove(ctx, record)
		if err != nil {
			return err
		}
		if err := t.record(ctx, audit.LogExported, audit.CommandProve, audit.ID("event", record.ID)); err != nil {
			return err
		}
		file, err := to.open(cmd.OutOrStdout())
		if err != nil {
			return err
		}
		if _, err := file.Write(encoded); err != nil {
			return errors.Join(fmt.Errorf("writing the proof: %w", err), file.abort())
		}
		return file.commit()
	})
	to.flags(cmd, "-")
	return cmd
}

// prove makes the proof under the newest checkpoint.
func (t *auditTools) prove(ctx context.Context, record audit.Record) (encoded []byte, err error) {
	if record.Index == audit.Unsealed {
		return nil, errors.New("the event is not sealed yet, so that no checkpoint covers it: `keyherald serve` seals about every second")
	}
	err = t.read.Snapshot(ctx, func(ctx context.Context) error {
		state, err := t.read.TreeState(ctx)
		if err != nil {
			return err
		}
		if record.Index >= state.Newest.Size {
			return fmt.Errorf("the newest checkpoint covers %d events, and not leaf %d", state.Newest.Size, record.Index)
		}
		hashes, err := tree.Inclusion(ctx, state.Newest.Size, record.Index, t.read.TreeNodes)
		if err != nil {
			return err
		}
		if err := tlog.CheckRecord(hashes, state.Newest.Size, state.Newest.Root, record.Index, tree.LeafHash(record.Body)); err != nil {
			return errors.New("the event, or the tree over it, is not what the checkpoint covers: somebody changed the log (see `keyherald audit verify`)")
		}
		out := proof.TLogProof{Index: uint64(record.Index), Checkpoint: []byte(state.Note)}
		for _, hash := range hashes {
			out.Hashes = append(out.Hashes, hash)
		}
		if out.ExtraData, err = extraOf(record); err != nil {
			return err
		}
		encoded = out.Marshal()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("proving event %s: %w", record.ID, err)
	}
	return encoded, nil
}

func extraOf(record audit.Record) ([]byte, error) {
	extra := proofExtra{Event: string(record.Body)}
	if record.Detail != nil {
		salt, detail := base64.StdEncoding.EncodeToString(record.Salt), string(record.Detail)
		extra.Salt, extra.Detail = &salt, &detail
	}
	encoded, err := json.Marshal(extra)
	if err != nil {
		return nil, fmt.Errorf("encoding an event: %w", err)
	}
	return encoded, nil
}
