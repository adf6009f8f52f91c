package verify_test

import (
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest/auditbundle"
	"github.com/keyherald/keyherald/verify"
)

func TestSigningKeys(t *testing.T) {
	next := auditbundle.NewKey(name)
	// replaced is a log whose key is replaced as docs/audit-log.md says: both sign for a while.
	replaced := func(log *auditbundle.Log) (former auditbundle.Key) {
		former = log.Keys[0]
		log.Keys = append(log.Keys, next)
		log.ChangeKeys(log.Keys...)
		log.Sign()
		log.Grow(2200, batch)
		log.Keys = log.Keys[1:]
		log.ChangeKeys(next)
		log.Sign()
		log.Grow(2400, batch)
		return former
	}
	run(t, []row{
		{"a key was replaced, and both are given", func(log *auditbundle.Log) scene {
			former := replaced(log)
			return scene{keys: []auditbundle.Key{former, next}}
		},
			want(verify.Unchanged, "Changes of signing keys: 2.", "Checkpoints that came with it: 26, signed by a trusted key: 26."), want(verify.SelfConsistent)},
		{"a key was replaced, and the former one is given", func(log *auditbundle.Log) scene {
			former := replaced(log)
			return scene{keys: []auditbundle.Key{former}}
		},
			want(verify.Unchanged, "signed by a trusted key: 26.", "announces the key "+name, "add it to your key file: "+next.Verifier), want(verify.SelfConsistent, "announces the key")},
		{"a key was replaced, and the next one alone is given", func(log *auditbundle.Log) scene {
			replaced(log)
			return scene{keys: []auditbundle.Key{next}}
		},
			// The kept checkpoint is signed by the former one, which this auditor does not trust.
			want(verify.SelfConsistent, "no earlier checkpoint given that counts", "checkpoint kept-0 ("+name+" size 1200) is not signed by a trusted key; it proves nothing", "20 checkpoints of the bundle are not signed by a trusted key"),
			want(verify.SelfConsistent)},
		{"a key was replaced at once, and the former one signed the event last", func(log *auditbundle.Log) scene {
			former := log.Keys[0]
			log.ChangeKeys(next)
			log.Sign()
			log.Keys = []auditbundle.Key{next}
			log.Grow(2400, batch)
			return scene{keys: []auditbundle.Key{former}}
		},
			want(verify.Unchanged, "announces the key"), want(verify.SelfConsistent)},
		{"a key is announced under itself alone", func(log *auditbundle.Log) scene {
			former := log.Keys[0]
			log.Keys = []auditbundle.Key{next}
			log.ChangeKeys(next)
			log.Sign()
			return scene{keys: []auditbundle.Key{former}}
		},
			want(verify.Altered, "event 2000: not covered by a checkpoint of the bundle that a trusted key signed", "which does not count"), want(verify.Altered)},
		{"a key that was replaced signs again", func(log *auditbundle.Log) scene {
			former := replaced(log)
			log.Keys = []auditbundle.Key{former}
			log.Grow(2500, batch)
			return scene{keys: []auditbundle.Key{former, next}}
		},
			want(verify.Altered, "which had been replaced by then"), want(verify.Altered)},
		{"a key that was replaced comes back by an event", func(log *auditbundle.Log) scene {
			former := replaced(log)
			log.ChangeKeys(former)
			log.Sign()
			log.Keys = []auditbundle.Key{former}
			log.Grow(2600, batch)
			return scene{keys: []auditbundle.Key{former, next}}
		},
			want(verify.Unchanged), want(verify.SelfConsistent)},
		{"a change of keys lists a key of another log", func(log *auditbundle.Log) scene {
			log.ChangeKeys(auditbundle.NewKey("example.org/other"))
			log.Sign()
			return scene{}
		},
			want(verify.Altered, "event 2000 (", "is of the log example.org/other"), want(verify.Altered)},
		{"a change of keys lists what is no key", func(log *auditbundle.Log) scene {
			log.ChangeKeys(auditbundle.Key{Verifier: "PRIVATE+KEY+" + name})
			log.Sign()
			return scene{}
		},
			want(verify.Altered, "event 2000 ("), want(verify.Altered)},
		{"the bundle's own key is trusted", func(log *auditbundle.Log) scene {
			return scene{bundleKey: true}
		},
			want(verify.SelfConsistent, "self-consistent only: the key is the bundle's own, which whoever made the bundle could choose"), want(verify.SelfConsistent)},
		{"the bundle's own key is trusted, and the log is altered", func(log *auditbundle.Log) scene {
			log.Leaves[57].Event = log.Leaves[58].Event
			return scene{bundleKey: true}
		},
			want(verify.Altered, "event 57"), want(verify.Altered)},
	})
}
