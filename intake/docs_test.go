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
	if len(formats) != 5 || formats["generic"] != 4 {
		t.Errorf("the page shows %v", formats)
	}
}

// Every reason that is audited is on the page, with its status.
func TestTheReasonsOfTheDocumentationAreAll(t *testing.T) {
	page, err := os.ReadFile("../docs/intake.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("refusals.go")
	if err != nil {
		t.Fatal(err)
	}
	reasons := regexp.MustCompile(`reason[A-Z]\w+ += "(\w+)"`).FindAllStringSubmatch(string(source), -1)
	if len(reasons) < 10 {
		t.Fatalf("found %v", reasons)
	}
	for _, reason := range reasons {
		if !regexp.MustCompile("(?m)^\\| \\d{3} \\| `" + reason[1] + "` \\| .* \\| `notification.refused` \\|$").Match(page) {
			t.Errorf("%s is not on the page", reason[1])
		}
	}
}
