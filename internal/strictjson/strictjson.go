// Package strictjson reads JSON that can be understood in one way only, by us and by whoever read it before: no key
// twice in an object, no NUL, no text that is not UTF-8, no nesting over 32 levels, nothing behind the value. Keys are
// compared exactly; encoding/json would also take one that differs in case.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

const maxDepth = 32

// Parse reads one JSON value as map[string]any, []any, string, json.Number, bool or nil.
func Parse(data []byte) (any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("the body is not UTF-8")
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	value, err := parse(decoder, 0)
	if err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is data after the JSON value")
	}
	return value, nil
}

func parse(decoder *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errors.New("the JSON is nested too deep")
	}
	token, err := decoder.Token()
	if err != nil {
		return nil, errors.New("the body is not JSON")
	}
	switch token {
	case json.Delim('{'):
		return object(decoder, depth)
	case json.Delim('['):
		return array(decoder, depth)
	}
	if text, ok := token.(string); ok && strings.ContainsRune(text, 0) {
		return nil, errors.New("a JSON string holds a NUL character")
	}
	return token, nil
}

func object(decoder *json.Decoder, depth int) (any, error) {
	members := map[string]any{}
	for decoder.More() {
		token, err := decoder.Token()
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
		if members[name], err = parse(decoder, depth+1); err != nil {
			return nil, err
		}
	}
	return members, end(decoder)
}

func array(decoder *json.Decoder, depth int) (any, error) {
	elements := []any{}
	for decoder.More() {
		element, err := parse(decoder, depth+1)
		if err != nil {
			return nil, err
		}
		elements = append(elements, element)
	}
	return elements, end(decoder)
}

func end(decoder *json.Decoder) error {
	if _, err := decoder.Token(); err != nil {
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

// Canonical writes a value that Parse has read: what says the same has the same bytes, whatever its spaces and the
// order of its keys were.
func Canonical(value any) []byte {
	// Nothing that Parse returns can fail here: the maps' keys are strings, and the numbers were numbers.
	written, _ := json.Marshal(value)
	return written
}
