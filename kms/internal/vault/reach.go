package vault

import (
	"errors"
	"fmt"
	"net/http"
	"path"
	"strings"
)

// errOutOfReach never comes about: it is in the way of a change that would have the server read a secret.
var errOutOfReach = errors.New("this program does not send that request: it reads metadata alone")

// metadataOnly lets nothing leave that could bring a secret back. The vendor's client can read values, and is in the
// server's binary; this is what keeps it from doing so, beside the rights of the server's credentials.
type metadataOnly struct {
	next     http.RoundTripper
	config   Config
	basePath string
}

func (m metadataOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	if !m.permits(req) {
		return nil, fmt.Errorf("%s %s: %w", req.Method, req.URL.Path, errOutOfReach)
	}
	return m.next.RoundTrip(req)
}

// CloseIdleConnections is what http.Client's asks for.
func (m metadataOnly) CloseIdleConnections() {
	(&http.Client{Transport: m.next}).CloseIdleConnections()
}

func (m metadataOnly) permits(req *http.Request) bool {
	endpoint, ok := strings.CutPrefix(req.URL.Path, m.basePath+"/v1/")
	// Nothing may be one path here and another one to the server: dots, double slashes, slashes in disguise.
	if !ok || endpoint != path.Clean(endpoint) || strings.Contains(strings.ToLower(req.URL.EscapedPath()), "%2f") || req.URL.RawQuery != "" {
		return false
	}
	writes := req.Method == http.MethodPut || req.Method == http.MethodPost
	if strings.HasPrefix(endpoint, strings.TrimSuffix(m.config.Mount, "/")+"/metadata/") {
		return req.Method == http.MethodGet
	}
	login := "auth/" + strings.TrimSuffix(m.config.Auth.Mount, "/") + "/login"
	switch endpoint {
	case login, login + "/" + m.config.Auth.Username, "auth/token/renew-self", "sys/capabilities-self", "sys/wrapping/lookup":
		return writes
	case "auth/token/lookup-self":
		return req.Method == http.MethodGet
	case "sys/wrapping/unwrap":
		return writes && m.config.Auth.WrappedSecretIDFile != ""
	}
	return false
}
