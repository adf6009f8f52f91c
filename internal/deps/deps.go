//go:build deps

package deps

import (
	_ "github.com/cloudevents/sdk-go/v2"
	_ "github.com/cloudevents/sdk-go/v2/protocol/http"
	_ "github.com/google/uuid"
	_ "github.com/labstack/echo/v4"
	_ "github.com/lib/pq"
	_ "github.com/prometheus/client_golang/prometheus"
	_ "github.com/prometheus/client_golang/prometheus/promhttp"
	_ "github.com/riverqueue/river"
	_ "github.com/riverqueue/river/riverdriver/riverdatabasesql"
	_ "github.com/riverqueue/river/rivermigrate"
	_ "github.com/rs/zerolog"
	_ "github.com/spf13/cobra"
	_ "github.com/tailscale/setec/client/setec"
	_ "github.com/tailscale/setec/setectest"
	_ "go.mau.fi/util/dbutil"
	_ "golang.org/x/term"
	_ "golang.org/x/tools/go/packages"
	_ "gopkg.in/yaml.v3"
	_ "maunium.net/go/mautrix"
	_ "maunium.net/go/mautrix/crypto"
	_ "modernc.org/sqlite"
	_ "pgregory.net/rapid"
)
