package verify_test

import (
	"bytes"
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest/auditbundle"
	"github.com/keyherald/keyherald/verify"
)

// wentBack makes the log go back to the surviving events with the loss of up to 1600 accepted, and go on to size.
func wentBack(log *auditbundle.Log, surviving int) auditbundle.Checkpoint {
	remembered := log.Checkpoints[15]
	log.GoBack(surviving)
	log.AcceptLoss(remembered)
	log.Sign()
	log.Grow(size, batch)
	return remembered
}

func TestEpochs(t *testing.T) {
	// forgedLoss begins an epoch by a loss whose detail was changed.
	forgedLoss := func(change func(detail map[string]any)) func(*auditbundle.Log) scene {
		return func(log *auditbundle.Log) scene {
			remembered := log.Checkpoints[15]
			log.GoBack(1500)
			detail := log.Loss(remembered)
			change(detail)
			log.Epoch = 2
			log.Say("audit.loss_accepted", name, "accepted", detail)
			log.Sign()
			return scene{}
		}
	}
	run(t, []row{
		{"a declared gap after the kept checkpoint", func(log *auditbundle.Log) scene {
			wentBack(log, 1450)
			return scene{}
		},
			want(verify.DeclaredGap, "declared gap: event 1450 (", "epoch 2 begins here: events 1450 to 1599 of before are lost", `reason "restored"`, "events 0 to 1199 are the ones that it covers"),
			want(verify.DeclaredGap, "declared gap: event 1450 (")},
		{"a declared gap that the kept checkpoint is within", func(log *auditbundle.Log) scene {
			wentBack(log, 1000)
			return scene{}
		},
			want(verify.DeclaredGap, "declared gap: events 1000 to 1199: lost, which checkpoint kept-0", "It proves nothing of what is left"),
			want(verify.DeclaredGap, "event 1000 (")},
		{"a declared gap that a kept checkpoint of the next epoch covers", func(log *auditbundle.Log) scene {
			wentBack(log, 1450)
			return scene{checkpoints: log.Checkpoints[len(log.Checkpoints)-2 : len(log.Checkpoints)-1]}
		},
			want(verify.Unchanged, "unchanged since example.org/keyherald/epoch/2 size", "remark: event 1450 ("),
			want(verify.Unchanged, "unchanged since example.org/keyherald/epoch/2 size")},
		{"a declared gap that one kept checkpoint is within and a later one covers", func(log *auditbundle.Log) scene {
			wentBack(log, 1000)
			return scene{checkpoints: log.Checkpoints[len(log.Checkpoints)-1:]}
		},
			want(verify.DeclaredGap, "events 1000 to 1199: lost"), want(verify.Unchanged)},
		{"a loss is accepted by an event that nobody signed", func(log *auditbundle.Log) scene {
			remembered := log.Checkpoints[15]
			log.GoBack(1000)
			log.AcceptLoss(remembered)
			return scene{}
		},
			want(verify.RolledBack, "rolled back: events 1001 to 1199: missing"), want(verify.IncompleteExport, "event 1000: not covered")},
		{"more was lost than was declared", func(log *auditbundle.Log) scene {
			remembered := log.Checkpoints[10]
			log.GoBack(1000)
			log.AcceptLoss(remembered)
			log.Sign()
			return scene{}
		},
			want(verify.RolledBack, "rolled back: events 1000 to 1199: lost, as checkpoint kept-0", "accepts only the loss of what example.org/keyherald size 1100 covered"),
			want(verify.DeclaredGap)},
		{"the accepted loss names another root than the kept checkpoint", func(log *auditbundle.Log) scene {
			remembered := log.Checkpoints[11]
			remembered.Root[0] ^= 1
			log.GoBack(1000)
			log.AcceptLoss(remembered)
			log.Sign()
			return scene{}
		},
			want(verify.Altered, "event 1000 (", "it names another root for example.org/keyherald size 1200"), want(verify.DeclaredGap)},
		{"an event of before the gap is altered, and the gap is declared with the signing key", func(log *auditbundle.Log) scene {
			log.Leaves[57].Event = bytes.Replace(log.Leaves[57].Event, []byte("@first.lastname.9:"), []byte("@first.lastname.8:"), 1)
			log.Rebuild()
			wentBack(log, 1450)
			return scene{}
		},
			want(verify.Altered, "events 0 to 1199: not what checkpoint kept-0", "does not excuse other leaves"), want(verify.Altered)},
		{"a divergence is declared, and the kept checkpoint is of what the log no longer has", func(log *auditbundle.Log) scene {
			remembered := log.Checkpoints[11]
			log.GoBack(1000)
			log.Leaves = append(log.Leaves, auditbundle.Sample(3, 1), auditbundle.Sample(3, 2))
			log.Rebuild()
			log.Grow(1500, 1500)
			log.Checkpoints = log.Checkpoints[:len(log.Checkpoints)-1]
			log.AcceptLoss(remembered)
			log.Sign()
			return scene{}
		},
			want(verify.Altered, "events 0 to 1199: not what checkpoint kept-0", "a later loss was accepted", "the log had diverged from the newest checkpoint"),
			want(verify.DeclaredGap, "the log had diverged from the newest checkpoint that had been published, example.org/keyherald size 1200")},
		{"a loss is accepted in the middle of an epoch", forgedLoss(func(d map[string]any) { d["surviving_size"] = 1400 }),
			want(verify.Altered, "event 1500 (", "it says that 1400 events survived and is itself event 1500"), want(verify.Altered)},
		{"an epoch is passed over", forgedLoss(func(d map[string]any) { d["epoch"] = 3 }),
			want(verify.Altered, "event 1500 (", "it begins epoch 3 where epoch 2 would come next"), want(verify.Altered)},
		{"the surviving root is another one", forgedLoss(func(d map[string]any) { d["surviving_root"] = d["remembered_root"] }),
			want(verify.Altered, "event 1500 (", "is not the surviving_root that it names"), want(verify.Altered)},
		{"the accepted loss does not name the gap", forgedLoss(func(d map[string]any) { delete(d, "remembered_size") }),
			want(verify.Altered, "event 1500 (", "its detail does not name the gap"), want(verify.Altered)},
		{"the accepted loss is of another log", forgedLoss(func(d map[string]any) { d["remembered_origin"] = "example.org/other" }),
			want(verify.Altered, "event 1500 (", "is not one of this log"), want(verify.Altered)},
		{"the detail of an accepted loss is redacted", func(log *auditbundle.Log) scene {
			wentBack(log, 1450)
			log.Redact(1450)
			log.Sign()
			return scene{}
		},
			want(verify.Altered, "event 1450 (", "the detail of audit.loss_accepted is missing, and cannot be redacted"), want(verify.Altered)},
		{"a refused acceptance begins no epoch", func(log *auditbundle.Log) scene {
			log.Say("audit.loss_accepted", name, "refused", map[string]any{"reason": "no right"})
			log.Sign()
			return scene{}
		},
			want(verify.Unchanged, "Epochs: 1."), want(verify.SelfConsistent)},
		{"three epochs, the kept checkpoint of the first", func(log *auditbundle.Log) scene {
			wentBack(log, 1450)
			remembered := log.Checkpoints[len(log.Checkpoints)-1]
			log.GoBack(1800)
			log.AcceptLoss(remembered)
			log.Sign()
			return scene{}
		},
			want(verify.DeclaredGap, "Epochs: 3.", "event 1450 (", "event 1800 (", "events 1800 to 1999 of before are lost"), want(verify.DeclaredGap)},
		{"the second loss takes the first one with it", func(log *auditbundle.Log) scene {
			wentBack(log, 1450)
			lost := log.Checkpoints[len(log.Checkpoints)-1]
			log.GoBack(1300)
			log.Epoch = 1 // the database knows of no other
			log.AcceptLoss(lost)
			log.Sign()
			return scene{checkpoints: []auditbundle.Checkpoint{lost}}
		},
			want(verify.DeclaredGap, "epoch 3 begins here", "Epochs: 2.", "events 1300 to 1999: lost, which checkpoint kept-0"), want(verify.DeclaredGap)},
		{"leaves stand beyond the newest checkpoint, beside a checkpoint of what was lost", func(log *auditbundle.Log) scene {
			remembered := wentBack(log, 1450)
			log.Checkpoints = append(log.Checkpoints, remembered)
			log.Add(3)
			return scene{checkpoints: log.Checkpoints[len(log.Checkpoints)-2 : len(log.Checkpoints)-1]}
		},
			want(verify.IncompleteExport, "events 2000 to 2002: not covered"), want(verify.IncompleteExport, "events 2000 to 2002: not covered")},
		{"a checkpoint of the former epoch is signed over the next one", func(log *auditbundle.Log) scene {
			wentBack(log, 1450)
			log.Checkpoints = append(log.Checkpoints, log.SignAs(1, 1500, log.Root(1500), log.Keys...))
			return scene{}
		},
			want(verify.Altered, "covers event 1450 (", "with which a later epoch begins"), want(verify.Altered)},
		{"a checkpoint of an epoch is smaller than what was before it", func(log *auditbundle.Log) scene {
			wentBack(log, 1450)
			log.Checkpoints = append(log.Checkpoints, log.SignAs(2, 1400, log.Root(1400), log.Keys...))
			return scene{}
		},
			want(verify.Altered, "is of before its epoch began with event 1450"), want(verify.Altered)},
		{"the kept checkpoint is of an epoch that the log has not come to", func(log *auditbundle.Log) scene {
			return scene{checkpoints: []auditbundle.Checkpoint{log.SignAs(2, 1100, log.Root(1100), log.Keys...)}}
		},
			want(verify.RolledBack, "is of epoch 2, and the log ends in epoch 1"), want(verify.RolledBack)},
	})
}
