package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/sas"
)

func TestOnlyAClearWordOfThePersonIsAnAnswer(t *testing.T) {
	shown := device.Comparison{Device: "ABC\x1b[2J", Name: "Element\nWeb", Emoji: []sas.Emoji{{Symbol: "🐶", Name: "Dog"}}, Decimals: []int{1000, 2000, 3000}}
	for typed, want := range map[string]string{"yes\n": "same", "no\n": "not the same", " YES \n": "same", "y\nperhaps\n\nno\n": "not the same", "": "error", "y\n": "error"} {
		var out strings.Builder
		same, err := compare(t.Context(), strings.NewReader(typed), &out, shown)
		got := "not the same"
		if err != nil {
			got = "error"
		} else if same {
			got = "same"
		}
		if got != want {
			t.Errorf("%q: got %s", typed, got)
		}
		if text := out.String(); !strings.Contains(text, "🐶  Dog") || !strings.Contains(text, "1000 2000 3000") || strings.Contains(text, "\x1b") || strings.Contains(text, "Element\n") {
			t.Errorf("%q is shown", text)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	in, writer := io.Pipe()
	defer func() { _ = writer.Close() }()
	if _, err := compare(ctx, in, io.Discard, shown); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without an answer: %v", err)
	}
}
