package main

import (
	"reflect"
	"strings"
	"testing"
)

func TestRowsAreChosenByName(t *testing.T) {
	from := []measured{{name: "rotation"}, {name: "intake"}, {name: "memory"}}
	for _, test := range []struct {
		name, list string
		want       []string
	}{
		{"nothing said is all of them", "", []string{"rotation", "intake", "memory"}},
		{"the order is that of a whole run", "memory,rotation", []string{"rotation", "memory"}},
		{"a name that is said twice is measured once", "intake,intake", []string{"intake"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			chosen, err := choose(test.list, from)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range chosen {
				got = append(got, m.name)
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
	if _, err := choose("intake,intakes", from); err == nil || !strings.Contains(err.Error(), `"intakes"`) || !strings.Contains(err.Error(), "rotation,intake,memory") {
		t.Errorf("an unknown name was answered with %v", err)
	}
}
