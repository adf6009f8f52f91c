package device

import (
	"context"
	"testing"

	"github.com/keyherald/keyherald/kms/secret"
	"github.com/keyherald/keyherald/protocol"
)

// listed is a KMS that lists these versions.
type listed struct {
	secret.Store
	versions []string
}

func (l listed) Versions(context.Context, string) ([]string, error) { return l.versions, nil }

func TestAnAnswerOlderThanItsTriggerIsWaitedFor(t *testing.T) {
	for name, c := range map[string]struct {
		version, current string
		versions         []string
		tries            int
		want             bool
	}{
		"a number above the current one":                       {"8", "7", nil, 0, true},
		"however often it was tried":                           {"8", "7", nil, 50, true},
		"not a number below it":                                {"6", "7", nil, 0, false},
		"nor the same":                                         {"a", "a", nil, 0, false},
		"an id that was made after the current one":            {"b", "a", []string{"a", "b"}, 0, true},
		"not for ever: the older one may be current again":     {"b", "a", []string{"a", "b"}, 3, false},
		"not an id that was made before it":                    {"a", "b", []string{"a", "b"}, 0, false},
		"an id that the KMS does not list yet":                 {"c", "b", []string{"a", "b"}, 0, true},
		"nothing, where the trigger does not name a version":   {"", "b", []string{"a", "b"}, 0, false},
		"an id that is not listed any more, after a few tries": {"z", "b", []string{"a", "b"}, 3, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := &Account{kms: listed{versions: c.versions}}
			j := &job{Trigger: protocol.Trigger{}}
			j.Tries = c.tries
			got, err := a.newer(t.Context(), j, c.version, c.current)
			if err != nil || got != c.want {
				t.Errorf("waited for: %v, %v", got, err)
			}
		})
	}
}
