package intake_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest/senders"
)

func TestAWrongSourceIsRefusedWithWhatToWrite(t *testing.T) {
	w := senders.New(t)
	for _, test := range []struct {
		source string
		change func(*intake.Source)
		want   string // how the error begins, and in brackets what it says
	}{
		{"kms", func(s *intake.Source) { s.Format = "xml" }, "sources.kms.format is \"xml\": write cloudevents, azure-eventgrid, aws-sns"},
		{"kms", func(s *intake.Source) { s.Keys = nil }, "sources.kms.keys is empty: every source signs"},
		{"kms", func(s *intake.Source) { s.Keys = nil; s.SourceAddress = []string{"192.0.2.1"} }, "sources.kms.keys is empty"},
		{"kms", func(s *intake.Source) { s.Keys[0].Secret = "short" }, "sources.kms.keys[0]: an id, and a secret of the form whsec_"},
		{"kms", func(s *intake.Source) { s.Signature = &intake.Signature{Header: "X"} }, "sources.kms.signature is for the format generic"},
		{"kms", func(s *intake.Source) { s.SNS = &intake.SNS{} }, "sources.kms.sns is for the format aws-sns"},
		{"kms", func(s *intake.Source) { s.WebhookOrigin = "x" }, "sources.kms.webhook_origin is for the format azure-eventgrid"},
		{"kms", func(s *intake.Source) { s.Mapping.ID = "body" }, "sources.kms.mapping.id is for the format generic"},
		{"kms", func(s *intake.Source) { s.Mapping.Pattern = "(" }, "sources.kms.mapping.pattern must be a regular expression"},
		{"kms", func(s *intake.Source) { s.Mapping.User = "@alice:example.org" }, "sources.kms.mapping.user is"},
		{"kms", func(s *intake.Source) { s.SourceAddress = []string{"192.0.2.0/24", "example.org"} }, "sources.kms.source_address[1] is \"example.org\": write an address"},
		{"kms", func(s *intake.Source) { s.SourceAddress = []string{"192.0.2.1/24"} }, "sources.kms.source_address[0] is"},
		{"kms", func(s *intake.Source) { s.SourceAddress = []string{"::ffff:192.0.2.1"} }, "sources.kms.source_address[0] is"},
		{"fortress", func(s *intake.Source) { s.MTLS.CAFile = "" }, "sources.fortress.mtls.ca_file is missing"},
		{"fortress", func(s *intake.Source) { s.MTLS.Names = nil }, "sources.fortress.mtls.names is missing"},
		{"fortress", func(s *intake.Source) { s.MTLS.Names = []string{""} }, "sources.fortress.mtls.names is missing"},
		{"fortress", func(s *intake.Source) { s.MTLS.ForwardedHeader = "a b" }, "sources.fortress.mtls.forwarded_header is"},
		{"fortress", func(s *intake.Source) { s.Basic = &intake.Basic{Username: "x"} }, "sources.fortress.basic is there beside jwt"},
		{"fortress", func(s *intake.Source) { s.Header.Name = "authorization" }, "sources.fortress.header.name is"},
		{"fortress", func(s *intake.Source) { s.Header.Name = "X Key" }, "sources.fortress.header.name is"},
		{"fortress", func(s *intake.Source) { s.Header.Keys = nil }, "sources.fortress.header.keys is empty"},
		{"fortress", func(s *intake.Source) { s.Header.Keys[0].Secret = "short" }, "sources.fortress.header.keys[0]: an id, and a secret of 24 characters or more"},
		{"fortress", func(s *intake.Source) { s.Header.Keys[0].ID = "" }, "sources.fortress.header.keys[0]: an id"},
		{"azure", func(s *intake.Source) { s.JWT = nil }, "sources.azure says not how its sender proves"},
		{"azure", func(s *intake.Source) { s.Keys = []intake.Key{{ID: "k"}} }, "sources.azure.keys is for senders that sign, and azure-eventgrid does not"},
		{"azure", func(s *intake.Source) { s.JWT.Issuer = "" }, "sources.azure.jwt.issuer is missing"},
		{"azure", func(s *intake.Source) { s.JWT.Audience = "" }, "sources.azure.jwt.audience is missing"},
		{"azure", func(s *intake.Source) { s.JWT.Claims = nil }, "sources.azure.jwt.claims is missing: whoever gets a token"},
		{"azure", func(s *intake.Source) { s.JWT.KeysURL = "http://login.microsoftonline.com/keys" }, "sources.azure.jwt.keys_url is"},
		{"azure", func(s *intake.Source) { s.JWT.KeysURL = "https://user@login.microsoftonline.com/keys" }, "sources.azure.jwt.keys_url is"},
		{"azure", func(s *intake.Source) { s.JWT.Algorithms = []string{"RS256", "HS256"} }, "sources.azure.jwt.algorithms[1] is \"HS256\""},
		{"azure", func(s *intake.Source) { s.JWT.Algorithms = []string{"none"} }, "sources.azure.jwt.algorithms[0] is \"none\""},
		{"sns", func(s *intake.Source) { s.SNS = nil }, "sources.sns.sns.topics is missing"},
		{"sns", func(s *intake.Source) { s.SNS.Topics = append(s.SNS.Topics, "arn:aws:sqs:eu-central-1:123456789012:x") }, "sources.sns.sns.topics[1]: "},
		{"sns", func(s *intake.Source) { s.SNS.SignatureVersion = "3" }, "sources.sns.sns.signature_version is"},
		{"sns", func(s *intake.Source) { s.Keys = []intake.Key{{ID: "k"}} }, "sources.sns.keys is for senders that sign with a secret"},
		{"bridge-basic", func(s *intake.Source) { s.Basic.Username = "a:b" }, "sources.bridge-basic.basic.username is"},
		{"bridge-basic", func(s *intake.Source) { s.Basic.Keys = nil }, "sources.bridge-basic.basic.keys is empty"},
		{"bridge-basic", func(s *intake.Source) { s.Basic = nil }, "sources.bridge-basic says not how its sender proves"},
		{"pubsub", func(s *intake.Source) { s.JWT = nil }, "sources.pubsub.jwt is missing"},
		{"pubsub", func(s *intake.Source) { s.JWT.Claims = map[string]string{"sub": "1"} }, "sources.pubsub.jwt.claims.email is missing"},
		{"doppler", func(s *intake.Source) { s.Mapping.Attribute = "" }, "sources.doppler.mapping.attribute is missing"},
		{"doppler", func(s *intake.Source) { s.Mapping.Version = "" }, "sources.doppler.mapping.version is missing"},
		{"doppler", func(s *intake.Source) { s.Mapping.ID = "" }, "sources.doppler.mapping.id is \"\": write what names"},
		{"doppler", func(s *intake.Source) { s.Mapping.ID = "field:" }, "sources.doppler.mapping.id is"},
		{"doppler", func(s *intake.Source) { s.Mapping.ID = "header:X-Id" }, "sources.doppler.signature.signed is"},
		{"doppler", func(s *intake.Source) { s.Keys = nil }, "sources.doppler.keys is empty"},
		{"doppler", func(s *intake.Source) { s.Signature.Header = "" }, "sources.doppler.signature.header is"},
		{"doppler", func(s *intake.Source) { s.Signature.Value = "sha256=" }, "sources.doppler.signature.value is"},
		{"doppler", func(s *intake.Source) { s.Signature.Value = "{mac}{timestamp}" }, "sources.doppler.signature.value is"},
		{"doppler", func(s *intake.Source) { s.Signature.Encoding = "base32" }, "sources.doppler.signature.encoding is"},
		{"doppler", func(s *intake.Source) { s.Signature.Hash = "md5" }, "sources.doppler.signature.hash is"},
		{"doppler", func(s *intake.Source) { s.Signature.Signed = "{timestamp}" }, "sources.doppler.signature.signed is"},
		{"doppler", func(s *intake.Source) { s.Signature.Signed = "{body}.{timestamp}" }, "sources.doppler.signature.signed is"},
		{"doppler", func(s *intake.Source) { s.Signature.Timestamp = "" }, "sources.doppler.signature.timestamp is"},
		{"doppler", func(s *intake.Source) { s.Signature.Timestamp = "header:X-Time" }, "sources.doppler.signature.timestamp is"}, // nobody signs it
		{"doppler", func(s *intake.Source) { s.Signature.Value = "t={timestamp};{mac}" }, "sources.doppler.signature.timestamp is"},
		{"infisical", func(s *intake.Source) { s.Signature.Timestamp = "value" }, "sources.infisical.signature.timestamp is"}, // nobody signs it
		{"infisical", func(s *intake.Source) { s.Signature.TimestampUnit = "h" }, "sources.infisical.signature.timestamp_unit is"},
		{"siem", func(s *intake.Source) { s.Signature.Signed = "{id}{timestamp}.{body}" }, "sources.siem.signature.signed is"},
		{"siem", func(s *intake.Source) { s.Mapping.ID = "field:id" }, "sources.siem.signature.signed is"},
		{"soar", func(s *intake.Source) { s.Mapping.ID = "header:X-Id" }, "sources.soar.mapping.id is \"header:X-Id\", which nobody signs"},
		{"machine", func(s *intake.Source) { s.MTLS = nil }, "sources.machine.keys is empty"},
	} {
		t.Run(test.want, func(t *testing.T) {
			config := w.Config()
			s := config.Sources[test.source]
			test.change(&s)
			config.Sources[test.source] = s
			for what, err := range map[string]error{"Validate": config.Validate(), "New": newError(config, w)} {
				if err == nil || !strings.HasPrefix(err.Error(), test.want) {
					t.Errorf("%s: got %v, want %s", what, err, test.want)
				}
				if err != nil && strings.Contains(err.Error(), "0123456789abcdef") {
					t.Errorf("%s shows a secret: %v", what, err)
				}
			}
		})
	}
}

func newError(config intake.Config, w *senders.World) error {
	_, err := intake.New(config, w.Deps(senders.NewMemory()))
	return err
}

func TestASourceThatSignsInOtherWaysIsRight(t *testing.T) {
	w := senders.New(t)
	for _, signature := range []intake.Signature{
		{Header: "X-Hub-Signature-256", Value: "sha256={mac}", Timestamp: "none"},                                                        // GitHub
		{Header: "X-Slack-Signature", Value: "v0={mac}", Signed: "v0:{timestamp}:{body}", Timestamp: "header:X-Slack-Request-Timestamp"}, // Slack
		{Header: "Stripe-Signature", Value: "t={timestamp},v1={mac}", Signed: "{timestamp}.{body}", Timestamp: "value"},                  // Stripe
		{Header: "X-Zendesk-Webhook-Signature", Encoding: "base64", Signed: "{timestamp}{body}", Timestamp: "header:X-Zendesk-Webhook-Signature-Timestamp", TimestampUnit: "rfc3339"},
		{Header: "X-Signature", Hash: "sha512", Timestamp: "field:at", TimestampUnit: "ms"},
	} {
		config := w.Config()
		s := config.Sources["doppler"]
		s.Signature = &signature
		config.Sources["doppler"] = s
		if err := newError(config, w); err != nil {
			t.Errorf("%s: %v", signature.Header, err)
		}
	}
}

func TestFilesOfASourceAreRead(t *testing.T) {
	w := senders.New(t)
	config := w.Config()
	missing := filepath.Join(t.TempDir(), "missing")
	for _, name := range []string{"fortress", "sns", "bridge-basic", "doppler", "azure"} {
		for i := range filesOf(config, name) {
			config := w.Config()
			s := config.Sources[name]
			*s.Files()[i] = missing
			config.Sources[name] = s
			if err := newError(config, w); err == nil || !strings.HasPrefix(err.Error(), "sources."+name+".") || !strings.Contains(err.Error(), missing) {
				t.Errorf("%s, file %d: %v", name, i, err)
			}
			if err := config.Validate(); err != nil {
				t.Errorf("%s, file %d: without reading it: %v", name, i, err)
			}
		}
	}
	if err := os.WriteFile(missing, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, set := range map[string]func(*intake.Source){
		"fortress": func(s *intake.Source) { s.MTLS.CAFile = missing }, "sns": func(s *intake.Source) { s.SNS.SigningCAFile = missing }, "azure": func(s *intake.Source) { s.JWT.CAFile = missing },
		"doppler": func(s *intake.Source) { s.Keys[0].SecretFile = missing }, "kms": func(s *intake.Source) { s.Keys[0].SecretFile = missing }} {
		config := w.Config()
		s := config.Sources[name]
		set(&s)
		config.Sources[name] = s
		if err := newError(config, w); err == nil || !strings.HasPrefix(err.Error(), "sources."+name+".") {
			t.Errorf("%s, of a file with other things in it: %v", name, err)
		}
	}
	config.TrustedProxies = []string{"proxy.example.org"}
	if err := newError(config, w); err == nil || !strings.HasPrefix(err.Error(), "trusted_proxies[0] is") {
		t.Errorf("got %v", err)
	}
	config.TrustedProxies = nil
	if err := config.Validate(); err == nil || !strings.HasPrefix(err.Error(), "sources.fortress.mtls.forwarded_header is there and trusted_proxies is not") {
		t.Errorf("got %v", err)
	}
}

func filesOf(config intake.Config, name string) []*string {
	s := config.Sources[name]
	return s.Files()
}
