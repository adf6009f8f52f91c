package verify_test

import (
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest/auditbundle"
	"github.com/keyherald/keyherald/verify"
)

func TestRedactions(t *testing.T) {
	run(t, []row{
		{"a redacted detail is excused by a signed event", func(log *auditbundle.Log) scene {
			log.Redact(57)
			log.Sign()
			return scene{}
		},
			want(verify.Unchanged, "Details redacted by a signed event: 1.", "remark: event 57 (", "its detail was redacted by event 2000"), want(verify.SelfConsistent, "event 57")},
		{"a detail is missing and no event says so", func(log *auditbundle.Log) scene {
			log.Forget(57)
			return scene{}
		},
			want(verify.Altered, "altered: event 57 (", "its detail is missing, and no event says that it was redacted"), want(verify.Altered, "event 57 (")},
		{"a salt is missing", func(log *auditbundle.Log) scene {
			log.Redact(57)
			log.Sign()
			b := log.Export()
			b.Lines[58] = auditbundle.Line(58, auditbundle.Leaf{Event: log.Leaves[58].Event, Hash: log.Leaves[58].Hash, Detail: log.Leaves[58].Detail})
			return scene{bundle: b}
		},
			want(verify.Altered, "event 58 (", "it has a salt or a detail without the other"), want(verify.Altered)},
		{"the redaction was refused", func(log *auditbundle.Log) scene {
			log.Forget(57)
			log.Say("audit.redacted", log.Leaves[57].ID(), "refused", map[string]any{"reason": "no right"})
			log.Sign()
			return scene{}
		},
			want(verify.Altered, "altered: event 57 ("), want(verify.Altered)},
		{"the redaction is not covered by a signed checkpoint", func(log *auditbundle.Log) scene {
			log.Redact(57)
			return scene{}
		},
			want(verify.Altered, "altered: event 57 (", "is not covered by a signed checkpoint"), want(verify.Altered)},
		{"a detail is there although it was redacted", func(log *auditbundle.Log) scene {
			was := log.Leaves[57]
			log.Redact(57)
			log.Sign()
			log.Leaves[57] = was
			return scene{}
		},
			want(verify.Altered, "altered: event 57 (", "its detail is there, though event 2000"), want(verify.Altered)},
		{"an event is redacted that is not there", func(log *auditbundle.Log) scene {
			log.Say("audit.redacted", auditbundle.Sample(9, 9).ID(), "accepted", map[string]any{"reason": "r"})
			log.Sign()
			return scene{}
		},
			want(verify.Altered, "event 2000 (", "which is not there"), want(verify.Altered)},
		{"a redaction's subject is no event", func(log *auditbundle.Log) scene {
			log.Say("audit.redacted", "event 57", "accepted", map[string]any{"reason": "r"})
			log.Sign()
			return scene{}
		},
			want(verify.Altered, "event 2000 (", "its subject is not the id of an event"), want(verify.Altered)},
		{"the reason of a redaction is redacted", func(log *auditbundle.Log) scene {
			log.Redact(log.Redact(57))
			log.Sign()
			return scene{}
		},
			want(verify.Altered, "event 2000 (", "the detail of audit.redacted is missing, and cannot be redacted"), want(verify.Altered)},
		{"two events of one id are redacted at once", func(log *auditbundle.Log) scene {
			twin := log.Leaves[57]
			log.Leaves = append(log.Leaves, twin)
			log.Rebuild()
			log.Redact(57)
			log.Forget(2000)
			log.Sign()
			return scene{}
		},
			want(verify.Altered, "event 2000 (", "no redaction is for it alone", "has the same id"), want(verify.Altered)},
		{"an event is redacted twice", func(log *auditbundle.Log) scene {
			log.Redact(57)
			log.Redact(57)
			log.Sign()
			return scene{}
		},
			want(verify.Unchanged, "by a signed event: 1."), want(verify.SelfConsistent)},
		{"very many details are redacted", func(log *auditbundle.Log) scene {
			for i := range 500 {
				log.Redact(i)
			}
			log.Sign()
			return scene{}
		},
			want(verify.Unchanged, "by a signed event: 500.", "and 480 more findings like these"), want(verify.SelfConsistent)},
	})
}
