package senders

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"
)

// Request is what a sender sends. Headers are name and value, in order, and may be there twice.
type Request struct {
	Method, Path string // POST and /notify/<Source>, where they are empty
	Source       string
	Headers      [][2]string
	Body         string
	Remote       string // where from; empty is nowhere special
	Certificate  *x509.Certificate
}

// Answer is what a server answers to the request: the status, and the body's result where it has one.
func (r Request) Answer(web http.Handler) (status int, result string) {
	out := httptest.NewRecorder()
	web.ServeHTTP(out, r.HTTP())
	var body struct {
		Result string `json:"result"`
	}
	_ = json.Unmarshal(out.Body.Bytes(), &body) // an answer without a body has no result
	return out.Code, body.Result
}

// HTTP is the request as a server has it.
func (r Request) HTTP() *http.Request {
	method, path := r.Method, r.Path
	if method == "" {
		method = http.MethodPost
	}
	if path == "" {
		path = "/notify/" + r.Source
	}
	req := httptest.NewRequest(method, path, strings.NewReader(r.Body))
	for _, header := range r.Headers {
		req.Header[http.CanonicalHeaderKey(header[0])] = append(req.Header[http.CanonicalHeaderKey(header[0])], header[1])
	}
	if r.Remote != "" {
		req.RemoteAddr = r.Remote
	}
	if r.Certificate != nil {
		req.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{r.Certificate}}
	}
	return req
}

// with puts a header in the place of one of the same name; an empty value takes it away.
func (r Request) with(name, value string) Request {
	var headers [][2]string
	for _, header := range r.Headers {
		if !strings.EqualFold(header[0], name) {
			headers = append(headers, header)
		}
	}
	if value != "" {
		headers = append(headers, [2]string{name, value})
	}
	r.Headers = headers
	return r
}

func (r Request) header(name string) string {
	for _, header := range r.Headers {
		if strings.EqualFold(header[0], name) {
			return header[1]
		}
	}
	return ""
}

// twice adds a second header of a name.
func (r Request) twice(name, value string) Request {
	r.Headers = append(r.Headers[:len(r.Headers):len(r.Headers)], [2]string{name, value})
	return r
}

// Sender is an honest one: what it says of a change, and how it sends a body, proving who it is.
type Sender struct {
	Source string
	// Event is the body that tells of a version of a user's key.
	Event func(id, user, version string) string
	// Send makes the request; it proves itself for any body.
	Send func(body string) Request
}

// Senders are the honest ones, one of each source.
func (w *World) Senders() []Sender {
	return []Sender{
		{"kms", cloudEvent, func(body string) Request {
			return w.webhook("kms", "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", body)
		}},
		{"fortress", cloudEvent, w.fortress},
		{"azure", w.gridCloudEvent, func(body string) Request {
			return json_("azure", body).with("Authorization", "Bearer "+w.Token("microsoft", nil, w.entraClaims()))
		}},
		{"azure-header", w.gridEvent, func(body string) Request {
			return json_("azure-header", body).with("X-Keyherald-Key", "grid-0123456789abcdef0123456789abcdef")
		}},
		{"sns", w.bridgeEvent, func(body string) Request {
			return text("sns", w.SignSNS(w.notification(body)))
		}},
		{"sns-strict", w.bridgeEvent, func(body string) Request {
			r := text("sns-strict", w.SignSNS(change(w.notification(body), object{"SignatureVersion": "2"})))
			r.Remote = "198.51.100.7:40000"
			return r
		}},
		{"bridge-basic", w.bridgeEvent, func(body string) Request {
			return json_("bridge-basic", body).with("Authorization", basic("keyherald", "basic-0123456789abcdef0123456789"))
		}},
		{"bridge-oauth", w.bridgeEvent, func(body string) Request {
			return json_("bridge-oauth", body).with("Authorization", "Bearer "+w.Token("company", nil, w.oauthClaims()))
		}},
		{"pubsub", w.pubSubMessage, func(body string) Request {
			return json_("pubsub", body).with("Authorization", "Bearer "+w.Token("google", nil, w.pushClaims()))
		}},
		{"infisical", w.infisicalEvent, func(body string) Request {
			return json_("infisical", body).with("X-Infisical-Signature", "t="+timestampOf(body)+";"+hexMAC("infisical-0123456789abcdef0123", body))
		}},
		{"doppler", w.dopplerEvent, func(body string) Request {
			return json_("doppler", body).with("X-Doppler-Signature", "sha256="+hexMAC("doppler-0123456789abcdef012345", body))
		}},
		{"siem", w.alert, func(body string) Request { return w.siem("delivery-"+hexMAC("", body)[:8], w.Now(), body) }},
		{"soar", w.incident, func(body string) Request {
			return json_("soar", body).with("Authorization", basic("playbook", "soar-0123456789abcdef012345678"))
		}},
		{"machine", cloudEvent, func(body string) Request {
			r := json_("machine", body).with("Content-Type", "application/cloudevents+json")
			r.Certificate = w.machine(w.clientCA, func(*x509.Certificate) {})
			return r
		}},
	}
}

// Sender is the honest one of a source.
func (w *World) Sender(source string) Sender {
	for _, s := range w.Senders() {
		if s.Source == source {
			return s
		}
	}
	w.t.Fatalf("nobody sends for %s", source)
	return Sender{}
}

func json_(source, body string) Request {
	return Request{Source: source, Body: body, Headers: [][2]string{{"Content-Type", "application/json"}}}
}

func text(source, body string) Request {
	return Request{Source: source, Body: body, Headers: [][2]string{{"Content-Type", "text/plain; charset=UTF-8"}, {"X-Amz-Sns-Message-Type", "Notification"}}}
}

func basic(username, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password))
}

// webhook signs by Standard Webhooks.
func (w *World) webhook(source, secret, body string) Request {
	return w.webhookAt(source, secret, body, w.Now())
}

func (w *World) webhookAt(source, secret, body string, at time.Time) Request {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	w.check(err)
	const id = "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"
	return Request{Source: source, Body: body, Headers: [][2]string{{"Content-Type", "application/cloudevents+json"}, {"Webhook-Id", id},
		{"Webhook-Timestamp", unix(at)}, {"Webhook-Signature", "v1," + base64MAC(string(raw), id+"."+unix(at)+"."+body)}}}
}

// fortress proves itself in every way at once, from behind a proxy.
func (w *World) fortress(body string) Request {
	r := w.webhook("fortress", "whsec_Zm9ydHJlc3MwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc=", body).
		with("X-Keyherald-Key", "header-0123456789abcdef0123456789").
		with("X-Forwarded-For", "203.0.113.9, 198.51.100.20").
		with("X-Client-Cert", w.clientCertificate(w.clientCA, func(*x509.Certificate) {})).
		with("Authorization", "Bearer "+w.Token("company", nil, w.vaultClaims()))
	r.Remote = "10.1.2.3:50000"
	return r
}

func (w *World) machine(from authority, change func(*x509.Certificate)) *x509.Certificate {
	der := from.issue(w, w.stranger.Public(), func(c *x509.Certificate) {
		c.DNSNames, c.ExtKeyUsage = []string{"vault.example.org"}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		change(c)
	})
	certificate, err := x509.ParseCertificate(der)
	w.check(err)
	return certificate
}

func (w *World) siem(id string, at time.Time, body string) Request {
	stamp := at.UTC().Format(time.RFC3339)
	return json_("siem", body).with("X-Delivery", id).with("X-Timestamp", stamp).
		with("X-Signature", "v1="+base64MAC("siem-0123456789abcdef012345678", "v1:"+id+":"+stamp+":"+body))
}

// timestampOf is the timestamp within a body, as Infisical repeats it in the header.
func timestampOf(body string) string {
	var o struct {
		Timestamp json.Number `json:"timestamp"`
	}
	if json.Unmarshal([]byte(body), &o) != nil || o.Timestamp == "" {
		return "0"
	}
	return o.Timestamp.String()
}
