package bench

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestAnEdgeCountsAMessageForEachDeviceThatItIsForAndThatGetsIt(t *testing.T) {
	homeserver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Query().Has("broken"):
			http.Error(w, `{"to_device":{"events":[{}]}}`, http.StatusBadGateway)
		case strings.HasSuffix(r.URL.Path, "/sync"):
			_, _ = io.WriteString(w, `{"to_device":{"events":[{},{}]}}`)
		default:
			_, _ = io.Copy(w, r.Body)
		}
	}))
	defer homeserver.Close()
	e, err := newEdge(homeserver.URL, 11)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.close() }()
	ask := func(method, path, body string) string {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, e.URL+"/_matrix/client/v3/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		answer, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(answer)
	}
	some := `{"messages":{"@a:b":{"ONE":{},"TWO":{}}}}`
	if came := ask(http.MethodPut, "sendToDevice/m.room.encrypted/1", some); came != some {
		t.Errorf("the homeserver was given %q", came)
	}
	ask(http.MethodPut, "sendToDevice/m.secret.request/2", `{"messages":{"@a:b":{"*":{}}}}`)
	if seen, err := e.count(); err != nil || seen.sent != 13 || seen.received != 0 || !seen.created.IsZero() || !seen.handedOut.IsZero() {
		t.Errorf("after sending it has seen %+v, %v", seen, err)
	}
	if got := ask(http.MethodGet, "sync", ""); got != `{"to_device":{"events":[{},{}]}}` {
		t.Errorf("a device was given %q", got)
	}
	ask(http.MethodGet, "sync?broken", "")
	ask(http.MethodPost, "room_keys/version", `{}`)
	seen, err := e.count()
	if err != nil || seen.sent != 13 || seen.received != 2 || seen.created.Before(seen.handedOut) || seen.handedOut.IsZero() {
		t.Errorf("in the end it has seen %+v, %v", seen, err)
	}
	ask(http.MethodPut, "sendToDevice/m.room.encrypted/3", `no JSON`)
	if _, err := e.count(); err == nil {
		t.Error("it counts what it cannot read")
	}
}
