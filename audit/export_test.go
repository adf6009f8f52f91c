package audit

// Entry is what the vocabulary says of an action.
type Entry struct {
	Action   Action
	Outcomes []Outcome
	Roles    []Role
	Fields   []EntryField
}

// EntryField is what it says of a detail field; Type is the type of its words, and Sample a value that it may have.
type EntryField struct {
	Name   Name
	Type   string
	Words  []string
	Sample any
}

// Entries is the table of everything that the log may tell.
func Entries() []Entry {
	var all []Entry
	for _, e := range vocabulary {
		entry := Entry{Action: e.action, Outcomes: e.outcomes, Roles: e.who}
		for _, f := range e.fields {
			entry.Fields = append(entry.Fields, EntryField{f.name, f.vocabulary, f.words, samples[f.kind]})
		}
		all = append(all, entry)
	}
	return all
}

var samples = map[kind]any{aNumber: 3, aTime: 1_700_000_000_000, aFlag: true, anIdentifier: "ident", identifiers: []string{"ident"}, aRoot: "root", aFingerprint: "00ff", publicKeys: []string{"key"}, aText: "a text"}

// Looks is what an actor of a role looks like.
func (r Role) Looks() string { return r.looks() }
