package reader

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/tree"
	"github.com/keyherald/keyherald/internal/refusal"
)

// proofExtra is what a proof has beside the proof: the event itself.
type proofExtra struct {
	Event  string  `json:"event"`
	Salt   *string `json:"salt,omitempty"` // base64
	Detail *string `json:"detail,omitempty"`
}

// Prove makes the proof (C2SP tlog-proof) that an event is in the log, under the newest checkpoint.
func (r *Reader) Prove(ctx context.Context, by audit.Actor, record audit.Record) (encoded []byte, err error) {
	if encoded, err = r.prove(ctx, record); err != nil {
		return nil, fmt.Errorf("proving event %s: %w", record.ID, err)
	}
	return encoded, r.Record(ctx, Reading{By: by, Action: audit.LogExported, Command: audit.CommandProve, Asked: []audit.Field{audit.ID("event", record.ID)}})
}

func (r *Reader) prove(ctx context.Context, record audit.Record) (encoded []byte, err error) {
	if record.Index == audit.Unsealed {
		return nil, refusal.New(refusal.Conflict, "", "the event is not sealed yet, so that no checkpoint covers it: `keyherald serve` seals about every second")
	}
	return encoded, r.Read.Snapshot(ctx, func(ctx context.Context) error {
		state, err := r.Read.TreeState(ctx)
		if err != nil {
			return err
		}
		if record.Index >= state.Newest.Size {
			return refusal.New(refusal.Conflict, "", "the newest checkpoint covers %d events, and not leaf %d", state.Newest.Size, record.Index)
		}
		hashes, err := tree.Inclusion(ctx, state.Newest.Size, record.Index, r.Read.TreeNodes)
		if err != nil {
			return err
		}
		if err := tlog.CheckRecord(hashes, state.Newest.Size, state.Newest.Root, record.Index, tree.LeafHash(record.Body)); err != nil {
			return refusal.New(refusal.Conflict, "", "the event, or the tree over it, is not what the checkpoint covers: somebody changed the log (see `keyherald audit verify`)")
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
