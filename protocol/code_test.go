package protocol

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

const testKey = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"

func TestACodeComesBackFromItsText(t *testing.T) {
	code, err := NewCode("@keyherald:example.org", testKey)
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseCode(" " + code.Reveal() + "\n")
	if err != nil || back != code {
		t.Fatalf("got %v, %v", back, err)
	}
	if back.Hash() != HashCode(code.RevealRandom()) {
		t.Error("the hash differs")
	}
}

func TestACodeNeverPrints(t *testing.T) {
	code, err := NewCode("@keyherald:example.org", testKey)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(code)
	if err != nil {
		t.Fatal(err)
	}
	printed := string(encoded)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		printed += fmt.Sprintf(verb, code)
	}
	if strings.Contains(printed, code.RevealRandom()) || strings.Contains(printed, fmt.Sprintf("%x", code.RevealRandom())) {
		t.Error("a code was printed")
	}
}

func FuzzParseCode(f *testing.F) {
	code, err := NewCode("@keyherald:example.org", testKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(code.Reveal())
	f.Add("kh1...")
	f.Fuzz(func(t *testing.T, text string) {
		code, err := ParseCode(text)
		if err != nil {
			return
		}
		again, err := ParseCode(code.Reveal())
		if err != nil || again != code {
			t.Errorf("%q does not come back", text)
		}
	})
}
