package tamper

import (
	"context"
	"fmt"
)

// attack is one case. Where nothing else is said keyherald-verify, with both checkpoints of the auditor, must call it
// altered.
type attack struct {
	name string
	// do alters the copy.
	do func(ctx context.Context, c *copied) error
	// want is the verdict that it must get.
	want string
	// leaf must be in what a finding names, and the finding must not name anything before first or after last.
	leaf, first, last int64
	// honest cases are no attacks: the signer must go on as well.
	honest bool
	// signer is what the signer must do, where the attack is his to find: nothing that was sealed is altered, or nothing
	// that is in a bundle.
	signer string
	// inPlace: it alters what is in no bundle and what nothing is built on any more. The signer must find it when it looks
	// over the whole log, and `keyherald audit verify`.
	inPlace bool
	// checkpoints are those that the auditor has; both if empty.
	checkpoints []string
}

// hundred is how many events one of the attacks turns round.
const hundred = 100

// cases are all that is tried. The victim is an event in the middle of what the early checkpoint covers, so that both of
// the auditor's checkpoints are after it.
func (h *harness) cases() []attack {
	var all []attack
	for _, of := range [][]attack{h.honestCases(), h.rowCases(), h.deletions(), h.orders(), h.trees(), h.histories(), h.signerCases()} {
		all = append(all, of...)
	}
	for i := range all {
		a := &all[i]
		if a.want == "" {
			a.want = altered
		}
		if len(a.checkpoints) == 0 {
			a.checkpoints = []string{earlyFile, lateFile}
		}
	}
	return all
}

// The verdicts of keyherald-verify; docs/verifying.md says what they mean.
const (
	unchanged  = "unchanged"
	gap        = "declared gap"
	incomplete = "incomplete export"
	rolledBack = "rolled back"
	altered    = "altered"
)

func statements(all ...string) func(context.Context, *copied) error {
	return func(ctx context.Context, c *copied) error { return c.exec(ctx, all...) }
}

// onBody alters the body of the event at a leaf: change is an SQL expression of its new bytes.
func onBody(leaf int64, change string) string {
	return fmt.Sprintf(`UPDATE audit_event SET body = %s WHERE id = %s`, change, leafID(leaf))
}

// onText is onBody where change is of the body as text.
func onText(leaf int64, change string) string { return onBody(leaf, `convert_to(`+change+`, 'UTF8')`) }

const text = `convert_from(body, 'UTF8')`

func (h *harness) honestCases() []attack {
	return []attack{
		{name: "nothing", honest: true, want: unchanged, do: func(context.Context, *copied) error { return nil }},
		{name: "a detail is redacted as it should be", honest: true, want: unchanged, do: func(ctx context.Context, c *copied) error { return c.redact(ctx) }},
		{name: "the signing key is replaced as it should be", honest: true, want: unchanged, do: func(ctx context.Context, c *copied) error { return c.changeKeys(ctx) }},
		{name: "the database is restored, and the loss declared", honest: true, want: gap, do: func(ctx context.Context, c *copied) error { return c.restoreAndDeclare(ctx) }},
	}
}

// at is a case whose place is the victim and nothing else.
func (h *harness) at(name string, do func(context.Context, *copied) error) attack {
	return attack{name: name, do: do, leaf: h.victim, first: h.victim, last: h.victim}
}

// within is a case in which no single event can be known: it is in what the auditor's first checkpoint covers.
func (h *harness) within(name string, do func(context.Context, *copied) error) attack {
	return attack{name: name, do: do, leaf: h.victim, first: 0, last: h.early - 1}
}

func (h *harness) rowCases() []attack {
	ofDetail := func(set string) func(context.Context, *copied) error {
		return statements(fmt.Sprintf(`UPDATE audit_detail SET %s WHERE event_id = %s`, set, leafID(h.victim)))
	}
	gone := fmt.Sprintf(`DELETE FROM audit_detail WHERE event_id = %s`, leafID(h.victim))
	return []attack{
		h.at("one byte of an event's body", statements(onBody(h.victim, `set_byte(body, octet_length(body) / 2, get_byte(body, octet_length(body) / 2) # 1)`))),
		h.at("an event's time", statements(onText(h.victim, `regexp_replace(`+text+`, '"time":1', '"time":2')`))),
		h.at("an event's actor", statements(onText(h.victim, `regexp_replace(`+text+`, '"actor":"[^"]*"', '"actor":"local:nobody"')`))),
		h.at("one byte of a detail", ofDetail(`detail = set_byte(detail, 3, get_byte(detail, 3) # 1)`)),
		h.at("a salt", ofDetail(`salt = sha256(salt)`)),
		h.at("a salt and the detail, of another event", ofDetail(`(salt, detail) = (SELECT salt, detail FROM audit_detail WHERE event_id = `+leafID(h.victim+1)+`)`)),
		h.at("a leaf's hash", statements(fmt.Sprintf(`UPDATE audit_leaf SET leaf_hash = sha256(leaf_hash) WHERE leaf_index = %d`, h.victim))),
		h.within("a body and its leaf's hash", statements(h.outcome(), h.rehash())),
		h.at("a detail is deleted without a redaction", statements(gone)),
		h.at("a detail is deleted, and a redaction made up in its table", statements(gone,
			fmt.Sprintf(`INSERT INTO audit_redaction (event_id, redaction_id) VALUES (%s, %s)`, leafID(h.victim), leafID(h.victim+1)))),
		h.at("a redacted detail is put back, another one", func(ctx context.Context, c *copied) error { return c.redactAndPutBack(ctx) }),
	}
}

// outcome alters what the victim tells, in a form that an event may have.
func (h *harness) outcome() string {
	return onText(h.victim, `replace(`+text+`, '"outcome":"', '"outcome":"not_')`)
}

// rehash makes the victim's stored hash that of its body.
func (h *harness) rehash() string {
	return fmt.Sprintf(`UPDATE audit_leaf SET leaf_hash = sha256('\x00'::bytea || body) FROM audit_event WHERE id = event_id AND leaf_index = %d`, h.victim)
}

// deleteLeaves deletes rows of events with what belongs to them; the leaves are chosen by an SQL condition.
func deleteLeaves(condition string) []string {
	return []string{`CREATE TEMP TABLE gone ON COMMIT DROP AS SELECT event_id FROM audit_leaf WHERE ` + condition,
		`DELETE FROM audit_leaf WHERE ` + condition, `DELETE FROM audit_detail WHERE event_id IN (SELECT event_id FROM gone)`,
		`DELETE FROM audit_event WHERE id IN (SELECT event_id FROM gone)`}
}

func (h *harness) deletions() []attack {
	row := func(name string, leaf int64) attack {
		return attack{name: name, leaf: leaf, first: leaf, last: leaf, do: statements(deleteLeaves(fmt.Sprintf(`leaf_index = %d`, leaf))...)}
	}
	last := row("the last event is deleted", h.size-1)
	last.want = rolledBack
	tail := append(deleteLeaves(fmt.Sprintf(`leaf_index >= %d`, h.early)),
		fmt.Sprintf(`DELETE FROM audit_node WHERE (n + 1) * (1::bigint << level) > %d`, h.early), fmt.Sprintf(`DELETE FROM audit_checkpoint WHERE tree_size > %d`, h.early))
	return []attack{
		row("the first event is deleted", 0),
		row("an event in the middle is deleted", h.victim),
		last,
		h.at("an event's body is deleted, and its leaf stays", statements(fmt.Sprintf(`DELETE FROM audit_event WHERE id = %s`, leafID(h.victim)))),
		h.within("an event is deleted, and those after it close up", statements(append(deleteLeaves(fmt.Sprintf(`leaf_index = %d`, h.victim)), shift(h.victim, -1)...)...)),
		{name: "the sealed tail is deleted, with its checkpoints", want: rolledBack, leaf: h.size - 1, first: h.early, last: h.size - 1, do: statements(tail...)},
		{name: "the same, and the auditor has only the first checkpoint", want: unchanged, signer: wentBack, checkpoints: []string{earlyFile}, do: statements(tail...)},
		{name: "every checkpoint is deleted", want: incomplete, signer: damaged, leaf: h.size - 1, first: 0, last: h.size - 1, do: statements(`DELETE FROM audit_checkpoint`)},
	}
}

// shift moves all leaves from one on.
func shift(from int64, by int) []string {
	return []string{fmt.Sprintf(`CREATE TEMP TABLE moved ON COMMIT DROP AS SELECT leaf_index + (%d) AS leaf_index, event_id, leaf_hash FROM audit_leaf WHERE leaf_index >= %d`, by, from),
		fmt.Sprintf(`DELETE FROM audit_leaf WHERE leaf_index >= %d`, from), `INSERT INTO audit_leaf (leaf_index, event_id, leaf_hash) SELECT * FROM moved`}
}

// madeUp is the id of an event that is inserted.
const madeUp = "01939aa0-0000-7000-8000-0000000000ff"

// makeUp makes an event up, with a detail that it commits to, and puts it at a leaf: a copy of the victim with another id.
func (h *harness) makeUp(leaf int64) []string {
	return []string{
		fmt.Sprintf(`INSERT INTO audit_event (id, body) SELECT '%[1]s', convert_to(regexp_replace(`+text+`, '"id":"[^"]*"', '"id":"%[1]s"'), 'UTF8') FROM audit_event WHERE id = %[2]s`, madeUp, leafID(h.victim)),
		fmt.Sprintf(`INSERT INTO audit_detail (event_id, salt, detail) SELECT '%s', salt, detail FROM audit_detail WHERE event_id = %s`, madeUp, leafID(h.victim)),
		fmt.Sprintf(`INSERT INTO audit_leaf (leaf_index, event_id, leaf_hash) SELECT %d, id, sha256('\x00'::bytea || body) FROM audit_event WHERE id = '%s'`, leaf, madeUp),
	}
}

func (h *harness) orders() []attack {
	// The event is made up before the leaves move, from where the victim is then.
	made := h.makeUp(h.victim)
	inserted := append(append(made[:2:2], shift(h.victim, 1)...), made[2])
	turn := func(n int64) []string {
		of := fmt.Sprintf(`leaf_index >= %d AND leaf_index < %d`, h.victim, h.victim+n)
		return []string{fmt.Sprintf(`CREATE TEMP TABLE turned ON COMMIT DROP AS SELECT %d - leaf_index AS leaf_index, event_id, leaf_hash FROM audit_leaf WHERE %s`, 2*h.victim+n-1, of),
			`DELETE FROM audit_leaf WHERE ` + of, `INSERT INTO audit_leaf (leaf_index, event_id, leaf_hash) SELECT * FROM turned`}
	}
	return []attack{
		h.within("an event is inserted, and those after it make room", statements(inserted...)),
		{name: "an event is added after the last", want: incomplete, leaf: h.size, first: h.size, last: h.size, do: statements(h.makeUp(h.size)...)},
		h.within("two events change places", statements(turn(2)...)),
		h.within("a hundred events are turned round", statements(turn(hundred)...)),
	}
}

func (h *harness) trees() []attack {
	forge := func(how resign) func(context.Context, *copied) error {
		return func(ctx context.Context, c *copied) error { return c.rewrite(ctx, how, h.outcome()) }
	}
	withKey, early := forge(signWithTheKey), h.within("the same, and the auditor has only the first checkpoint", forge(signWithTheKey))
	early.checkpoints = []string{earlyFile}
	late := attack{name: "the same, and the auditor has only the last checkpoint", do: withKey, leaf: h.victim, first: 0, last: h.size - 1, checkpoints: []string{lateFile}}
	return []attack{
		h.within("the whole tree is written anew, the checkpoints left", forge(leaveCheckpoints)),
		h.within("the whole tree is written anew, signed by another key", forge(signWithAnother)),
		h.within("the whole tree is written anew, signed with the signing key", withKey),
		early, late,
		h.within("the same, and a loss is declared to excuse it", func(ctx context.Context, c *copied) error { return c.forgeAndLose(ctx, h.outcome()) }),
	}
}

func (h *harness) histories() []attack {
	lost := attack{want: rolledBack, leaf: h.size - 1, first: h.early, last: h.size - 1}
	back, less := lost, lost
	back.name, back.do = "the database of an hour ago", func(ctx context.Context, c *copied) error { return c.restore(ctx) }
	less.name, less.do = "the same, and less is declared lost than was", func(ctx context.Context, c *copied) error { return c.restoreAndDeclareLess(ctx) }
	newest := `WHERE tree_size = (SELECT MAX(tree_size) FROM audit_checkpoint)`
	return []attack{
		back,
		{name: "the same, and the log grew on beyond it, signed", leaf: h.size - 1, first: h.early, last: h.size - 1, do: func(ctx context.Context, c *copied) error { return c.restoreAndForget(ctx) }},
		less,
		{name: "the log goes on under another key, which it announces", signer: damaged, leaf: h.size, first: h.size, last: h.size, do: func(ctx context.Context, c *copied) error { return c.takeOver(ctx) }},
		{name: "the newest checkpoint's signature", signer: damaged, leaf: -1, do: statements(`UPDATE audit_checkpoint SET note = overlay(note PLACING CASE substr(note, length(note) - 9, 1) WHEN 'A' THEN 'B' ELSE 'A' END FROM length(note) - 9 FOR 1) ` + newest)},
		{name: "the newest checkpoint's note names another size", signer: damaged, leaf: -1, do: statements(fmt.Sprintf(`UPDATE audit_checkpoint SET note = replace(note, chr(10) || '%d' || chr(10), chr(10) || '%d' || chr(10)) %s`, h.size, h.size-1, newest))},
	}
}

func (h *harness) signerCases() []attack {
	return []attack{
		{name: "a node that the next batch is built on", want: unchanged, signer: diverged, do: statements(fmt.Sprintf(`UPDATE audit_node SET hash = sha256(hash)
			WHERE (level, n) = (SELECT level, n FROM audit_node WHERE (n + 1) * (1::bigint << level) <= %d ORDER BY level DESC, n DESC LIMIT 1)`, h.size))},
		{name: "a node that is built on no more", want: unchanged, inPlace: true, leaf: h.victim, first: h.victim &^ 1, last: h.victim | 1,
			do: statements(fmt.Sprintf(`UPDATE audit_node SET hash = sha256(hash) WHERE level = 1 AND n = %d`, h.victim/2))},
		{name: "the newest checkpoint's root beside its note", want: unchanged, signer: damaged, do: statements(`UPDATE audit_checkpoint SET root_hash = sha256(root_hash) WHERE tree_size = (SELECT MAX(tree_size) FROM audit_checkpoint)`)},
		{name: "a key of somebody else's is announced in an event", want: unchanged, signer: foreign, do: func(ctx context.Context, c *copied) error { return c.smuggleKey(ctx) }},
		{name: "an event is deleted before it is sealed", want: unchanged, signer: missing, do: func(ctx context.Context, c *copied) (err error) {
			c.pendingGone, err = c.deletePending(ctx)
			return err
		}},
	}
}
