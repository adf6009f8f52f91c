// Package strictyaml reads configuration files so that a mistake is named with its line and what to write instead.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// File is a configuration file that was read.
type File struct {
	path string
	root yaml.Node
}

// Read decodes a file into a struct. An unknown key, a value of the wrong kind and a second document are errors; what
// the file says about a secret is not in them. An empty file leaves the struct as it is.
func Read(path string, into any) (*File, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return Parse(path, raw, into)
}

// Parse is Read of what a file holds; path is what mistakes are named by.
func Parse(path string, raw []byte, into any) (*File, error) {
	f := &File{path: path}
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	if err := decoder.Decode(into); errors.Is(err, io.EOF) {
		return f, nil
	} else if err != nil {
		return nil, fmt.Errorf("%s: %s", path, explain(err))
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: there is a second document after ---: a configuration is one", path)
	}
	if err := yaml.Unmarshal(raw, &f.root); err != nil {
		return nil, fmt.Errorf("%s: %s", path, explain(err))
	}
	return f, nil
}

// Resolve makes relative paths in the configuration relative to its directory. Empty ones stay so.
func (f *File) Resolve(paths ...*string) {
	for _, path := range paths {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(filepath.Dir(f.path), *path)
		}
	}
}

var (
	unknownKey = regexp.MustCompile(`field (\S+) not found in type \S+`)
	wrongKind  = regexp.MustCompile("cannot unmarshal !!(\\w+) (?:`[^`]*` )?into (\\S+)")
)

// explain puts yaml's errors into words that help, and takes the values out of them.
func explain(err error) string {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	text = strings.TrimSpace(strings.TrimPrefix(text, "unmarshal errors:"))
	text = unknownKey.ReplaceAllString(text, "there is no key \"$1\": check its spelling and its place, or remove it")
	text = wrongKind.ReplaceAllString(text, "a value of the kind $1 does not go here, $2 is needed")
	return strings.Join(strings.Fields(text), " ")
}

var keyPath = regexp.MustCompile(`^[a-z_]+(\.[A-Za-z0-9_-]+|\[[0-9]+\])*`)

// Dir is where the file is, which relative paths in it are relative to.
func (f *File) Dir() string { return filepath.Dir(f.path) }

// At puts the file and line before an error. By convention such an error begins with the key it is about, as in
// "bot.user_id is …" or "sources.kms.keys[0]: …"; a key that is missing is looked for at what it belongs to.
func (f *File) At(err error) error {
	if err == nil {
		return nil
	}
	line := 0
	if len(f.root.Content) > 0 {
		line = find(f.root.Content[0], split(keyPath.FindString(err.Error())))
	}
	if line == 0 {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	return fmt.Errorf("%s: line %d: %w", f.path, line, err)
}

func split(key string) []string {
	return strings.FieldsFunc(key, func(r rune) bool { return r == '.' || r == '[' || r == ']' })
}

// find returns the line of the deepest part of the key that is there; 0 where not even the first is.
func find(node *yaml.Node, key []string) int {
	if len(key) == 0 {
		return 0
	}
	switch node.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == key[0] {
				return max(node.Content[i].Line, find(node.Content[i+1], key[1:]))
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(key[0]); err == nil && i < len(node.Content) {
			return max(node.Content[i].Line, find(node.Content[i], key[1:]))
		}
	}
	return 0
}
