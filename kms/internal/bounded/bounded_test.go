package bounded

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/keyherald/keyherald/kms"
)

// A server that falls silent is not waited for, before its answer and in the midst of it; and it is told from a caller
// who went away.
func TestASilentServerIsUnavailable(t *testing.T) {
	release := make(chan struct{})
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/midst" {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "{")
			_ = http.NewResponseController(w).Flush()
		}
		<-release
	}))
	t.Cleanup(func() { close(release); hs.Close() })
	read := func(ctx context.Context, timeout time.Duration, path string) error {
		t.Helper()
		client := &http.Client{Transport: transport{http.DefaultTransport, timeout}}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, hs.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_, err = io.ReadAll(resp.Body)
		return errors.Join(err, resp.Body.Close())
	}
	for _, path := range []string{"/before", "/midst"} {
		if err := read(t.Context(), 100*time.Millisecond, path); !errors.Is(err, kms.ErrUnavailable) || !kms.Retryable(err) {
			t.Errorf("%s: got %v", path, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		if err := read(ctx, time.Minute, path); !errors.Is(err, context.Canceled) || kms.Retryable(err) {
			t.Errorf("%s, cancelled: got %v", path, err)
		}
	}
}
