package audit

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
)

// whose says whether an event of an action belongs to a rotation.
type whose string

const (
	ofNone     whose = "no"
	ofRotation whose = "yes"
	maybe      whose = "where there is one"
)

// entry is what the vocabulary says of an action.
type entry struct {
	action Action
	// tells is a sentence.
	tells    string
	who      []Role
	about    []kindOfSubject
	rotation whose
	outcomes []Outcome
	fields   []field
}

// field is what an entry says of a detail field.
type field struct {
	name  Name
	kind  kind
	means string
	// vocabulary is the type of its words, and words are those that may stand in the log.
	vocabulary string
	words      []string
}

func (e entry) field(name Name) (field, bool) {
	i := slices.IndexFunc(e.fields, func(f field) bool { return f.name == name })
	if i < 0 {
		return field{}, false
	}
	return e.fields[i], true
}

func find(action Action) (entry, bool) {
	i, ok := byAction[action]
	if !ok {
		return entry{}, false
	}
	return vocabulary[i], true
}

// check holds an event against the vocabulary, and returns its detail.
func (e Event) check() (map[Name]any, error) {
	allowed, ok := find(e.Action)
	switch {
	case !ok:
		return nil, errors.New("the vocabulary has no such action")
	case e.Time.IsZero():
		return nil, errors.New("it has no time")
	case !slices.ContainsFunc(allowed.who, e.Actor.has):
		return nil, fmt.Errorf("it is nothing that %q does", e.Actor.text)
	case !slices.Contains(allowed.about, e.Subject.kind):
		return nil, fmt.Errorf("it is not about %q", e.Subject.text)
	case !slices.Contains(allowed.outcomes, e.Outcome):
		return nil, fmt.Errorf("it has no outcome %q", e.Outcome)
	case allowed.rotation == ofRotation && e.Rotation == uuid.Nil, allowed.rotation == ofNone && e.Rotation != uuid.Nil:
		return nil, errors.New("a rotation is missing, or is none of its business")
	}
	fields := make(map[Name]any, len(e.Detail))
	for _, f := range e.Detail {
		known, ok := allowed.field(f.name)
		if _, twice := fields[f.name]; !ok || twice || known.kind != f.kind || known.vocabulary != f.words {
			return nil, fmt.Errorf("its detail has no such field %q, or has it twice", f.name)
		}
		fields[f.name] = known.spoken(f.value)
	}
	if _, told := fields[refusal]; e.Outcome == Refused && !told {
		return nil, errors.New("it does not say why it is refused")
	}
	return fields, nil
}

// spoken is a value with the words that the vocabulary has; words of others are not repeated.
func (f field) spoken(value any) any {
	known := func(word string) string {
		if slices.Contains(f.words, word) {
			return word
		}
		return unrecognized
	}
	switch v := value.(type) {
	case string:
		if f.kind == aWord {
			return known(v)
		}
	case []string:
		if f.kind == someWords {
			spoken := make([]string, len(v))
			for i, word := range v {
				spoken[i] = known(word)
			}
			return spoken
		}
	}
	return value
}
