package intake_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest/senders"
)

// The sources that docs/intake.md shows can be copied.
func TestTheSourcesOfTheDocumentationAreRight(t *testing.T) {
	page, err := os.ReadFile("../docs/intake.md")
	if err != nil {
		t.Fatal(err)
	}
	w := senders.New(t)
	formats := map[string]int{}
	for _, block := range regexp.MustCompile(`(?m)(?:^    .*\n)+`).FindAllString(string(page), -1) {
		if !strings.Contains(block, "format: ") {
			continue
		}
		config := w.Read("sources:\n" + block)
		if err := config.Validate(); err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
		for _, s := range config.Sources {
			formats[s.Format]++
		}
		// The other ways to authenticate that stand beside it in comments.
		for _, other := range regexp.MustCompile(`(?m)^ *# or +(.*)$`).FindAllStringSubmatch(block, -1) {
			changed := regexp.MustCompile(`(?m)^      header: .*$`).ReplaceAllString(block, "      "+other[1])
			if err := w.Read("sources:\n" + changed).Validate(); err != nil || changed == block {
				t.Errorf("%v in\n%s", err, changed)
			}
		}
	}
	if len(formats) != 5 || formats["generic"] != 5 || formats["gcp-pubsub"] != 2 {
		t.Errorf("the page shows %v", formats)
	}
}

// Every word that the log may have for a refusal of this room is on the page, with its status.
func TestTheRefusalsOfTheDocumentationAreAll(t *testing.T) {
	page, err := os.ReadFile("../docs/intake.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("../audit/words.go")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile(`(?s)// Why a notification is refused\.\nconst \((.*?)\n\)`).FindStringSubmatch(string(source))
	if block == nil {
		t.Fatal("the words are not where they were")
	}
	words := regexp.MustCompile(`= "(\w+)"`).FindAllStringSubmatch(block[1], -1)
	if len(words) < 20 {
		t.Fatalf("found %v", words)
	}
	for _, word := range words {
		// The word is the answer's own, or stands with the action beside an answer in words.
		answer := "(?m)^\\| \\d{3} \\| `" + word[1] + "` \\| .* \\| `notification.refused` \\|$"
		beside := "(?m)^\\| \\d{3} \\| .* \\| `notification.(refused|unusable)`: .*`" + word[1] + "`.* \\|$"
		if !regexp.MustCompile(answer).Match(page) && !regexp.MustCompile(beside).Match(page) {
			t.Errorf("%s is not on the page", word[1])
		}
	}
}
