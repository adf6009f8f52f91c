package integrity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/tree"
)

// leaf checks an event on its own and returns the hash of its bytes; of an event that is gone the stored one, which a
// checkpoint then has to cover.
func (w *walk) leaf(record audit.Record) tlog.Hash {
	w.counts.Leaves++
	wrong := func(check, format string, args ...any) {
		w.found.add(Altered, check, record.Index, record.Index, record.ID.String(), format, args...)
	}
	var stored tlog.Hash
	copy(stored[:], record.LeafHash)
	if record.Body == nil {
		w.changed++
		wrong("event", "missing: only its leaf hash is there")
		return stored
	}
	hash := tree.LeafHash(record.Body)
	if hash != stored {
		w.changed++
		wrong("leaf hash", "its bytes do not hash to the leaf hash that is stored for it")
	}
	fields, err := audit.ParseBody(record.Body)
	if err != nil {
		wrong("event", "%v", err)
		return hash
	}
	if fields.ID != record.ID {
		wrong("event", "its row is that of %s", record.ID)
	}
	w.detail(record, fields, wrong)
	if fields.Outcome == audit.Accepted && record.Detail != nil {
		w.listen(record, fields, wrong)
	}
	return hash
}

func (w *walk) detail(record audit.Record, fields audit.Fields, wrong func(check, format string, args ...any)) {
	switch {
	case record.Detail == nil && record.Salt == nil && (fields.Action == audit.DetailRedacted || fields.Action == audit.LossAccepted || fields.Action == audit.SigningKeysChanged):
		wrong("detail", "the detail of %s is missing, and cannot be redacted", fields.Action)
	case record.Detail == nil && record.Salt == nil:
		w.missing[record.ID] = record.Index
	case record.RedactedBy != uuid.Nil:
		wrong("detail", "it is there, though the event %s redacted it", record.RedactedBy)
	case len(record.Salt) != 32 || !bytes.Equal(audit.Commit(record.Salt, record.Detail), fields.Commitment):
		wrong("detail", "detail and salt are not those that the event commits to")
	default:
		w.counts.Details++
	}
}

// listen keeps what an event says about the log itself.
func (w *walk) listen(record audit.Record, fields audit.Fields, wrong func(check, format string, args ...any)) {
	switch fields.Action {
	case audit.DetailRedacted:
		target, err := uuid.Parse(fields.Subject)
		if err != nil {
			wrong("redaction", "its subject is no event")
			return
		}
		if _, before := w.redacted[target]; !before {
			w.redacted[target] = place{record.Index, record.ID}
		}
	case audit.SigningKeysChanged:
		var detail struct {
			Keys []string `json:"keys"`
		}
		err := json.Unmarshal(record.Detail, &detail)
		if err == nil {
			err = w.addKeys(detail.Keys, false)
		}
		if err != nil {
			wrong("signing keys", "the keys that it names cannot be read")
		}
	case audit.LossAccepted:
		lost, err := parseLoss(w.options.Name, record.Detail)
		if err != nil {
			wrong("accepted loss", "%v", err)
			return
		}
		lost.place = place{record.Index, record.ID}
		if lost.surviving != record.Index || lost.epoch <= w.epochAt(record.Index) {
			wrong("accepted loss", "it is leaf %d of epoch %d, and says that %d events survived into epoch %d", record.Index, w.epochAt(record.Index), lost.surviving, lost.epoch)
			return
		}
		w.losses = append(w.losses, lost)
	}
}

// loss is an accepted one: an epoch begins with its event.
type loss struct {
	place
	epoch, rememberedEpoch    int
	surviving, rememberedSize int64
}

func parseLoss(name string, detail []byte) (loss, error) {
	var d struct {
		Epoch            int    `json:"epoch"`
		SurvivingSize    int64  `json:"surviving_size"`
		RememberedSize   int64  `json:"remembered_size"`
		RememberedOrigin string `json:"remembered_origin"`
		RememberedRoot   string `json:"remembered_root"`
	}
	if err := json.Unmarshal(detail, &d); err != nil {
		return loss{}, fmt.Errorf("the gap that it names cannot be read")
	}
	epoch, err := checkpoint.EpochOf(name, d.RememberedOrigin)
	if root, decodeErr := base64.StdEncoding.DecodeString(d.RememberedRoot); err != nil || decodeErr != nil || len(root) != tlog.HashSize {
		return loss{}, fmt.Errorf("the checkpoint that it names cannot be read")
	}
	return loss{epoch: d.Epoch, rememberedEpoch: epoch, surviving: d.SurvivingSize, rememberedSize: d.RememberedSize}, nil
}

// epochAt is the epoch that a tree of this size ends in, by the losses that were read.
func (w *walk) epochAt(size int64) int {
	epoch := 1
	for _, l := range w.losses {
		if l.index < size {
			epoch = l.epoch
		}
	}
	return epoch
}
