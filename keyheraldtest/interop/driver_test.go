package interop

import (
	"strings"
	"testing"
	"time"
)

// script is a driver that answers two requests in the wrong order, then one with an error, and ends at the fourth.
const script = `read first; read second
echo '{"id":2,"result":{"body":"second"}}'
echo '{"id":1,"result":{"body":"first"}}'
read third
echo '{"id":3,"error":"Error: it would not"}'
read fourth
exit 0`

func TestADriverGetsEachAnswerToItsRequestAndTellsWhenItsProgramEnds(t *testing.T) {
	d, err := startDriver(t.TempDir(), "script", "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan string, 2)
	ask := func(operation string) {
		var read struct{ Body string }
		if err := d.do(t.Context(), operation, map[string]any{"name": "x"}, &read); err != nil {
			t.Error(err)
		}
		answers <- operation + " gets " + read.Body
	}
	go ask("first")
	for asked := 0; asked == 0; time.Sleep(time.Millisecond) {
		d.mu.Lock()
		asked = d.next
		d.mu.Unlock()
	}
	go ask("second")
	for range 2 {
		if got := <-answers; got != "first gets first" && got != "second gets second" {
			t.Error(got)
		}
	}
	if err := d.do(t.Context(), "third", nil, nil); err == nil || !strings.Contains(err.Error(), "it would not") {
		t.Errorf("an answer with an error: %v", err)
	}
	for _, operation := range []string{"fourth", "fifth"} {
		if err := d.do(t.Context(), operation, nil, nil); err == nil || !strings.Contains(err.Error(), "script ended") {
			t.Errorf("%s: the program's end: %v", operation, err)
		}
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
}

func TestTheTableHasACheckARowAndAClientAColumn(t *testing.T) {
	var table strings.Builder
	draw(&table, "A homeserver", []Cell{{Client: "mautrix", Check: checkHolds}, {Client: nioName, Check: checkIgnores, Error: "it did not"}, {Client: botName, Check: "the run", Error: "it ended"}})
	lines := strings.Split(strings.Trim(table.String(), "\n"), "\n")
	if len(lines) != 5 || lines[0] != "A homeserver" {
		t.Fatalf("the table is\n%s", table.String())
	}
	for i, want := range []struct{ check, column, mark string }{{checkHolds, "mautrix", "✓"}, {checkIgnores, nioName, "✗"}, {"the run", botName, "✗"}} {
		line, at := []rune(lines[i+2]), strings.Index(lines[1], want.column)
		if !strings.HasPrefix(lines[i+2], want.check) || at >= len(line) || string(line[at]) != want.mark {
			t.Errorf("the row of %q is %q", want.check, lines[i+2])
		}
	}
}
