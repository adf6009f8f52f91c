package main

import (
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A newcomer finds the file to change from the README's map: every package is a room on it, or within one that tells of
// its inner rooms itself.
func TestEveryRoomIsOnTheMapOfTheREADME(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	check(t, err)
	_, rooms, found := strings.Cut(string(readme), "## The rooms\n")
	if !found {
		t.Fatal("there is no map")
	}
	rooms, _, _ = strings.Cut(rooms, "\n## ")
	var listed []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(rooms, -1) {
		listed = append(listed, row[1])
	}
	within := []string{"kms/", "keyheraldtest/", "internal/goolm", "verify/", "backup/backupkey"}
	there := map[string]bool{}
	check(t, fs.WalkDir(os.DirFS("../.."), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		there[path.Dir(name)] = true
		return nil
	}))
	for room := range there {
		if !slices.Contains(listed, room) && !slices.ContainsFunc(within, func(prefix string) bool { return strings.HasPrefix(room+"/", prefix) || room == prefix }) {
			t.Errorf("%s is not on the map", room)
		}
	}
	for _, room := range listed {
		if !there[room] && !slices.ContainsFunc(within, func(prefix string) bool { return room+"/" == prefix }) {
			t.Errorf("the map has %s, which is not there", room)
		}
	}
}
