package main

import (
	"reflect"
	"strings"
	"testing"
)

func TestRowsAreChosenByName(t *testing.T) {
	from := []measured{{name: "rotation"}, {name: "intake"}, {name: "delivery/10"}, {name: "delivery/100"}, {name: "memory"}}
	for _, test := range []struct {
		name, list string
		want       []string
	}{
		{"nothing said is all of them", "", []string{"rotation", "intake", "delivery/10", "delivery/100", "memory"}},
		{"the order is that of a whole run", "memory,rotation", []string{"rotation", "memory"}},
		{"what several begin with is all of them", "delivery", []string{"delivery/10", "delivery/100"}},
		{"one of several", "delivery/10", []string{"delivery/10"}},
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
	for _, name := range []string{"intakes", "deliv", "delivery/1", ""} {
		if _, err := choose("intake,"+name, from); err == nil || !strings.Contains(err.Error(), `"`+name+`"`) || !strings.Contains(err.Error(), "rotation,intake,delivery/10,") {
			t.Errorf("%q was answered with %v", name, err)
		}
	}
}
