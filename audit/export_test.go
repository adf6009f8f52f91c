package audit

// Entry is what the vocabulary says of an action.
type Entry struct {
	Action Action
	Fields []EntryField
}

// EntryField is what it says of a detail field; Type is the type of its words.
type EntryField struct {
	Name  Name
	Type  string
	Words []string
}

// Entries is the table of everything that the log may tell.
func Entries() []Entry {
	var all []Entry
	for _, e := range vocabulary {
		entry := Entry{Action: e.action}
		for _, f := range e.fields {
			entry.Fields = append(entry.Fields, EntryField{f.name, f.vocabulary, f.words})
		}
		all = append(all, entry)
	}
	return all
}
