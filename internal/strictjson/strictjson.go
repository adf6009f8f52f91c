// Package strictjson reads JSON that can be understood in one way only, by us and by whoever read it before: no key
// twice in an object, no NUL, no text that is not UTF-8, no nesting over 32 levels, not more than 8192 values, nothing
// behind them. Keys are compared exactly; encoding/json would also take one that differs in case.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

const (
	maxDepth = 32
	// maxValues bounds the memory that a small text can ask for: empty arrays take many times the two bytes they are.
	maxValues = 8192
)

type parser struct {
	*json.Decoder
	values int
}

// Parse reads one JSON value as map[string]any, []any, string, json.Number, bool or nil.
func Parse(data []byte) (any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("the body is not UTF-8")
	}
	p := &parser{Decoder: json.NewDecoder(bytes.NewReader(data))}
	p.UseNumber()
	value, err := p.parse(0)
	if err != nil {
		return nil, err
	}
	if _, err := p.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is data after the JSON value")
	}
	return value, nil
}

func (p *parser) parse(depth int) (any, error) {
	if depth > maxDepth {
		return nil, errors.New("the JSON is nested too deep")
	}
	if p.values++; p.values > maxValues {
		return nil, errors.New("the JSON has too many values")
	}
	token, err := p.Token()
	if err != nil {
		return nil, errors.New("the body is not JSON")
	}
	switch token {
	case json.Delim('{'):
		return p.object(depth)
	case json.Delim('['):
		return p.array(depth)
	}
	if text, ok := token.(string); ok && strings.ContainsRune(text, 0) {
		return nil, errors.New("a JSON string holds a NUL character")
	}
	return token, nil
}

func (p *parser) object(depth int) (any, error) {
	members := map[string]any{}
	for p.More() {
		token, err := p.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return nil, errors.New("the body is not JSON")
		}
		if strings.ContainsRune(name, 0) {
			return nil, errors.New("a JSON string holds a NUL character")
		}
		if _, twice := members[name]; twice {
			return nil, errors.New("a JSON key is there twice")
		}
		if members[name], err = p.parse(depth + 1); err != nil {
			return nil, err
		}
	}
	return members, p.end()
}

func (p *parser) array(depth int) (any, error) {
	elements := []any{}
	for p.More() {
		element, err := p.parse(depth + 1)
		if err != nil {
			return nil, err
		}
		elements = append(elements, element)
	}
	return elements, p.end()
}

func (p *parser) end() error {
	if _, err := p.Token(); err != nil {
		return errors.New("the body is not JSON")
	}
	return nil
}

// Lookup follows a name of members separated by dots into nested objects. A member whose own name has the dots is
// found too; where both are there it cannot be said which is meant, and neither is.
func Lookup(value any, name string) (found any, ok bool) {
	members, _ := value.(map[string]any)
	whole, direct := members[name]
	nested := value
	for step := range strings.SplitSeq(name, ".") {
		members, _ := nested.(map[string]any)
		if nested, ok = members[step]; !ok {
			return whole, direct
		}
	}
	if direct && strings.Contains(name, ".") {
		return nil, false
	}
	return nested, true
}

// Text is a value as a name or a version may be written: a string, or a whole number of at most 20 digits.
func Text(value any) (text string, ok bool) {
	switch v := value.(type) {
	case string:
		return v, true
	case json.Number:
		if digits := v.String(); len(digits) <= 20 && strings.Trim(digits, "0123456789") == "" {
			return digits, true
		}
	}
	return "", false
}

// TextAt is the Text of what Lookup finds, and empty where it finds none.
func TextAt(value any, name string) string {
	found, _ := Lookup(value, name)
	text, _ := Text(found)
	return text
}

// Canonical writes a value that Parse has read: what says the same has the same bytes, whatever its spaces and the
// order of its keys were.
func Canonical(value any) []byte {
	// Nothing that Parse returns can fail here: the maps' keys are strings, and the numbers were numbers.
	written, _ := json.Marshal(value)
	return written
}
