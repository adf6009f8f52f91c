package senders

import (
	_ "embed"
	"os"
	"path/filepath"
	"strings"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/internal/strictyaml"
)

//go:embed sources.yaml
var sources string

// Topic is the one of SNS that may notify.
const Topic = "arn:aws:sns:eu-central-1:123456789012:keyherald"

const (
	entraKeys    = "/11111111-2222-3333-4444-555555555555/discovery/v2.0/keys"
	entraIssuer  = "https://sts.windows.net/11111111-2222-3333-4444-555555555555/"
	eventGridApp = "4962773b-9cdb-44cf-a8bf-237846a00ab7"
	pushAudience = "https://keyherald.example.org/notify/pubsub"
	pushAccount  = "push@contoso.iam.gserviceaccount.com"
)

// Config is the World's sources, as an operator would write them.
func (w *World) Config() intake.Config { return w.Read(sources) }

// Read reads sources from a configuration's text.
func (w *World) Read(text string) intake.Config {
	w.t.Helper()
	path := filepath.Join(w.dir, "sources.yaml")
	w.check(os.WriteFile(path, []byte(strings.ReplaceAll(text, "{dir}", w.dir)), 0o600))
	var config intake.Config
	_, err := strictyaml.Read(path, &config)
	w.check(err)
	return config
}
