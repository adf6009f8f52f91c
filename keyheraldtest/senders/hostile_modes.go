package senders

import (
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// proof is a header that proves something, what is said where it is missing, and where it is wrong.
type proof struct{ header, missing, wrong string }

var proofs = map[string][]proof{
	"kms":          {{"Webhook-Id", "not_signed", "wrong_signature"}, {"Webhook-Timestamp", "not_signed", "wrong_signature"}, {"Webhook-Signature", "not_signed", "wrong_signature"}},
	"fortress":     {{"X-Keyherald-Key", "no_credentials", "wrong_credentials"}, {"X-Client-Cert", "no_credentials", "wrong_certificate"}, {"Authorization", "no_credentials", "wrong_token"}, {"Webhook-Signature", "not_signed", "wrong_signature"}},
	"azure":        {{"Authorization", "no_credentials", "wrong_token"}},
	"azure-header": {{"X-Keyherald-Key", "no_credentials", "wrong_credentials"}},
	"bridge-basic": {{"Authorization", "no_credentials", "wrong_credentials"}},
	"bridge-oauth": {{"Authorization", "no_credentials", "wrong_token"}},
	"pubsub":       {{"Authorization", "no_credentials", "wrong_token"}},
	"infisical":    {{"X-Infisical-Signature", "not_signed", "wrong_signature"}},
	"doppler":      {{"X-Doppler-Signature", "not_signed", "wrong_signature"}},
	"siem":         {{"X-Delivery", "not_signed", "wrong_signature"}, {"X-Timestamp", "not_signed", "wrong_signature"}, {"X-Signature", "not_signed", "wrong_signature"}},
	"soar":         {{"Authorization", "no_credentials", "wrong_credentials"}},
}

// wrong is another value of the same form.
func (w *World) wrong(source, header, value string) string {
	switch {
	case header == "X-Client-Cert":
		return w.clientCertificate(w.strangerCA, func(*x509.Certificate) {})
	case strings.HasPrefix(value, "Basic "):
		return basic("keyherald", "another-password-0123456789")
	case strings.HasSuffix(header, "Timestamp") && source == "siem":
		return w.Now().Add(time.Second).UTC().Format(time.RFC3339)
	case strings.HasSuffix(header, "Timestamp"):
		return unix(w.Now().Add(time.Second))
	case strings.HasSuffix(header, "Signature") || header == "Authorization":
		// Some character in the middle of what was signed or encrypted.
		at := len(value) - 20
		return value[:at] + map[bool]string{true: "0", false: "1"}[value[at] != '0'] + value[at+1:]
	}
	return value + "1"
}

// credentials are left out, changed, doubled, or of somebody else.
func (w *World) credentials() []Attack {
	var all []Attack
	for _, s := range w.Senders() {
		send := func() Request { return s.Send(s.Event("credentials", "alice", "7")) }
		for _, p := range proofs[s.Source] {
			add := func(what string, status int, result string, request func() Request) {
				all = append(all, Attack{Name: s.Source + ": " + what + " " + p.header, Request: request, Status: status, Result: result})
			}
			add("no", 401, p.missing, func() Request { return send().with(p.header, "") })
			add("a wrong", 401, p.wrong, func() Request {
				r := send()
				return r.with(p.header, w.wrong(s.Source, p.header, r.header(p.header)))
			})
			add("twice the same", 400, headers, func() Request { r := send(); return r.twice(p.header, r.header(p.header)) })
			add("a stranger's before the right", 400, headers, func() Request {
				r := send()
				return r.with(p.header, "stranger").twice(p.header, r.header(p.header))
			})
		}
		if s.Source != "sns" && s.Source != "sns-strict" && s.Source != "machine" {
			want := proofs[s.Source][0].missing
			if s.Source == "fortress" {
				want = "wrong_address"
			}
			all = append(all, Attack{Name: s.Source + ": nothing but the body", Status: map[bool]int{true: 403, false: 401}[want == "wrong_address"], Result: want,
				Request: func() Request { return json_(s.Source, s.Event("bare", "alice", "7")) }})
			all = append(all, Attack{Name: s.Source + ": every credential of every other source", Status: map[bool]int{true: 403, false: 401}[want == "wrong_address"], Result: othersResult(s.Source),
				Request: func() Request { return w.withOthers(s) }})
		}
	}
	return all
}

// withOthers is a request with the headers of all other honest senders.
func (w *World) withOthers(s Sender) Request {
	r := json_(s.Source, s.Event("others", "alice", "7"))
	own := s.Send(r.Body)
	for _, other := range w.Senders() {
		if other.Source == s.Source || other.Source == "fortress" {
			continue
		}
		for _, header := range other.Send(r.Body).Headers {
			// Two sources may read one header; then the other's value is in it.
			if header[0] != "Content-Type" && (header[1] != own.header(header[0])) && r.header(header[0]) == "" {
				r = r.with(header[0], header[1])
			}
		}
	}
	return r
}

func othersResult(source string) string {
	switch source {
	case "fortress":
		return "wrong_address"
	case "kms", "infisical", "doppler", "siem":
		return "not_signed"
	case "azure-header":
		return "no_credentials"
	}
	// The first Authorization of another is there: a password for azure, and azure's token for everybody else.
	if source == "azure" || source == "bridge-basic" || source == "soar" {
		return "no_credentials"
	}
	return "wrong_token"
}

const kmsKey, overKey, otherKey = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", "whsec_b3ZlcmowMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWE=", "whsec_Zm9ydHJlc3MwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc="

// webhookAttacks are on Standard Webhooks.
func (w *World) webhookAttacks() []Attack {
	body := cloudEvent("webhook", "alice", "7")
	var all []Attack
	add := func(what, result string, request func() Request) {
		all = append(all, Attack{Name: "kms: " + what, Request: request, Status: 401, Result: result})
	}
	signed := func() Request { return w.webhook("kms", kmsKey, body) }
	signature := func(change func(string) string) func() Request {
		return func() Request {
			r := signed()
			return r.with("Webhook-Signature", change(r.header("Webhook-Signature")))
		}
	}
	add("the key of another source", "wrong_signature", func() Request { return w.webhook("kms", otherKey, body) })
	add("a key whose time is over", "wrong_signature", func() Request { return w.webhook("kms", overKey, body) })
	add("five minutes and a second old", "stale", func() Request { return w.webhookAt("kms", kmsKey, body, w.Now().Add(-301*time.Second)) })
	add("five minutes and a second in the future", "stale", func() Request { return w.webhookAt("kms", kmsKey, body, w.Now().Add(301*time.Second)) })
	add("of the year 1970", "stale", func() Request { return w.webhookAt("kms", kmsKey, body, time.Unix(0, 0)) })
	add("of the year 292277026596", "stale", func() Request { return w.webhookAt("kms", kmsKey, body, time.Unix(1<<62, 0)) })
	add("a time that is none", "not_signed", func() Request { return signed().with("Webhook-Timestamp", "now") })
	add("a time beyond all numbers", "not_signed", func() Request { return signed().with("Webhook-Timestamp", "99999999999999999999999") })
	add("a time with a fraction", "not_signed", func() Request { return signed().with("Webhook-Timestamp", unix(w.Now())+".0") })
	add("a body of which a space is missing", "wrong_signature", func() Request { r := signed(); r.Body = strings.Replace(r.Body, "{", "{ ", 1); return r })
	add("a body of another user", "wrong_signature", func() Request { r := signed(); r.Body = strings.Replace(r.Body, "alice", "bob", 1); return r })
	add("an id that takes of the time", "wrong_signature", func() Request {
		r := signed()
		return r.with("Webhook-Id", r.header("Webhook-Id")+"."+r.header("Webhook-Timestamp"))
	})
	add("the signature without its version", "wrong_signature", signature(func(s string) string { return strings.TrimPrefix(s, "v1,") }))
	add("another version of signature", "wrong_signature", signature(func(s string) string { return "v2," + strings.TrimPrefix(s, "v1,") }))
	add("an asymmetric version", "wrong_signature", signature(func(s string) string { return "v1a," + strings.TrimPrefix(s, "v1,") }))
	add("the version in capitals", "wrong_signature", signature(strings.ToUpper))
	add("the signature cut short", "wrong_signature", signature(func(s string) string { return s[:len(s)-8] }))
	add("the signature with a byte more", "wrong_signature", signature(func(s string) string { return strings.TrimSuffix(s, "=") + "AA==" }))
	add("the signature in base64 for URLs", "wrong_signature", func() Request {
		raw := sum("0123456789abcdef0123456789abcdef", "x")
		return signed().with("Webhook-Signature", "v1,"+base64.URLEncoding.EncodeToString(raw))
	})
	add("an empty signature", "wrong_signature", signature(func(string) string { return "v1," }))
	add("eighty signatures, none right", "wrong_signature", signature(func(string) string { return strings.Repeat("v1,bm90aGluZw== ", 80) }))
	add("signatures beyond 4 KiB, the last right", "not_signed", signature(func(s string) string { return strings.Repeat("v1,bm90aGluZw== ", 300) + s }))
	add("signatures with commas between them", "wrong_signature", signature(func(s string) string { return "v1,bm90aGluZw==," + s }))
	add("the signature in another header", "not_signed", func() Request {
		r := signed()
		return r.with("X-Webhook-Signature", r.header("Webhook-Signature")).with("Webhook-Signature", "")
	})
	add("the signature in a header with underscores", "not_signed", func() Request {
		r := signed()
		return r.with("Webhook_Signature", r.header("Webhook-Signature")).with("Webhook-Signature", "")
	})
	add("an empty secret", "wrong_signature", func() Request { return w.webhook("kms", "whsec_", body) })
	return all
}

// macAttacks are on the signatures of the format generic.
func (w *World) macAttacks() []Attack {
	var all []Attack
	add := func(source, what, result string, request func() Request) {
		all = append(all, Attack{Name: source + ": " + what, Request: request, Status: 401, Result: result})
	}
	infisical := func(at time.Time, shown string) func() Request {
		return func() Request {
			body := w.json(object{"event": "secrets.modified", "timestamp": w.Now().Add(at.Sub(Start)).UnixMilli(), "project": object{"environment": "prod", "secretPath": "/keyherald/alice"}})
			mac := hexMAC("infisical-0123456789abcdef0123", body)
			return json_("infisical", body).with("X-Infisical-Signature", strings.NewReplacer("MAC", mac, "TIME", timestampOf(body), "NOW", fmt.Sprint(w.Now().UnixMilli())).Replace(shown))
		}
	}
	add("infisical", "five minutes and a second old", "stale", infisical(Start.Add(-301*time.Second), "t=TIME;MAC"))
	add("infisical", "old, with a time in the header as if it were new", "stale", infisical(Start.Add(-301*time.Second), "t=NOW;MAC"))
	add("infisical", "new, with an old time in the header", "stale", infisical(Start, "t=1;MAC"))
	add("infisical", "from the future", "stale", infisical(Start.Add(301*time.Second), "t=TIME;MAC"))
	for what, shown := range map[string]string{"without the time": "MAC", "a time that is none": "t=now;MAC", "a negative time": "t=-1;MAC", "a time beyond all numbers": "t=9999999999999999;MAC",
		"two signatures": "t=TIME;MAC;MAC", "something behind it": "t=TIME;MAC ", "something before it": " t=TIME;MAC", "another order": "MAC;t=TIME", "no signature but its name": "t=TIME;",
		"the signature in brackets": "t=TIME;{MAC}", "half of the signature": "t=TIME;abcd"} {
		add("infisical", what, "not_signed", infisical(Start, shown))
	}
	doppler := func(shown func(body string) string) func() Request {
		return func() Request {
			body := w.dopplerEvent("", "alice", "")
			return json_("doppler", body).with("X-Doppler-Signature", shown(body))
		}
	}
	const dopplerKey = "doppler-0123456789abcdef012345"
	add("doppler", "the prefix in capitals", "not_signed", doppler(func(b string) string { return "SHA256=" + hexMAC(dopplerKey, b) }))
	add("doppler", "SHA-1 claimed", "not_signed", doppler(func(b string) string { return "sha1=" + hexMAC(dopplerKey, b)[:40] }))
	add("doppler", "SHA-1's length", "wrong_signature", doppler(func(b string) string { return "sha256=" + hexMAC(dopplerKey, b)[:40] }))
	add("doppler", "base64 for hex", "not_signed", doppler(func(b string) string { return "sha256=" + base64MAC(dopplerKey, b) }))
	add("doppler", "an odd number of digits", "not_signed", doppler(func(b string) string { return "sha256=" + hexMAC(dopplerKey, b)[:63] }))
	add("doppler", "zeros", "wrong_signature", doppler(func(string) string { return "sha256=" + strings.Repeat("0", 64) }))
	add("doppler", "the key of another source", "wrong_signature", doppler(func(b string) string { return "sha256=" + hexMAC("infisical-0123456789abcdef0123", b) }))
	add("doppler", "no key", "wrong_signature", doppler(func(b string) string { return "sha256=" + hexMAC("", b) }))
	add("doppler", "the body's mere hash", "wrong_signature", doppler(func(b string) string { return "sha256=" + hexMAC(b, "") }))
	alert := w.alert("siem", "alice", "7")
	add("siem", "an old alert", "stale", func() Request { return w.siem("s1", w.Now().Add(-301*time.Second), alert) })
	add("siem", "an alert of the future", "stale", func() Request { return w.siem("s2", w.Now().Add(301*time.Second), alert) })
	add("siem", "the id moved into the time", "not_signed", func() Request {
		r := w.siem("s3:2026", w.Now(), alert)
		return r.with("X-Delivery", "s3").with("X-Timestamp", "2026:"+r.header("X-Timestamp"))
	})
	add("siem", "the time moved into the id", "not_signed", func() Request {
		r := w.siem("s4", w.Now(), alert)
		return r.with("X-Delivery", "s4:"+r.header("X-Timestamp")).with("X-Timestamp", "")
	})
	add("siem", "the time of another zone, the same instant", "wrong_signature", func() Request {
		return w.siem("s5", w.Now(), alert).with("X-Timestamp", w.Now().In(time.FixedZone("", 3600)).Format(time.RFC3339))
	})
	add("siem", "a date without a time", "not_signed", func() Request { return w.siem("s6", w.Now(), alert).with("X-Timestamp", "2026-11-02") })
	add("siem", "hex for base64", "wrong_signature", func() Request {
		return w.siem("s7", w.Now(), alert).with("X-Signature", "v1="+hexMAC("siem-0123456789abcdef012345678", alert))
	})
	return all
}

// placeAttacks are on where a request comes from, and on client certificates.
func (w *World) placeAttacks() []Attack {
	var all []Attack
	add := func(source, what string, status int, result string, change func(Request) Request) {
		s := w.Sender(source)
		all = append(all, Attack{Name: source + ": " + what, Status: status, Result: result, Request: func() Request { return change(s.Send(s.Event("place", "alice", "7"))) }})
	}
	from := func(remote, forwarded string) func(Request) Request {
		return func(r Request) Request { r.Remote = remote; return r.with("X-Forwarded-For", forwarded) }
	}
	for _, p := range []struct{ what, remote, forwarded string }{
		{"from elsewhere", "203.0.113.5:1", ""},
		{"from elsewhere, claiming to be forwarded", "203.0.113.5:1", "198.51.100.20"},
		{"forwarded from elsewhere", "10.1.2.3:1", "203.0.113.5"},
		{"forwarded from elsewhere, with the right address before it", "10.1.2.3:1", "198.51.100.20, 203.0.113.5"},
		{"forwarded by two proxies, of which one is not ours", "10.1.2.3:1", "198.51.100.20, 10.2.0.1"},
		{"the proxy itself", "10.1.2.3:1", ""},
		{"proxies alone", "10.1.2.3:1", "10.1.2.4, 10.1.2.5"},
		{"an address that is none", "10.1.2.3:1", "localhost"},
		{"an address with a port", "10.1.2.3:1", "198.51.100.20:80"},
		{"an address in brackets", "10.1.2.3:1", "[2001:db8::1]"},
		{"an octal address", "10.1.2.3:1", "0306.0063.0144.0024"},
		{"a short address", "10.1.2.3:1", "198.51.25620"},
		{"an empty place behind the address", "10.1.2.3:1", "198.51.100.20,"},
		{"nowhere", "@", ""},
	} {
		add("fortress", p.what, 403, "wrong_address", from(p.remote, p.forwarded))
	}
	add("sns-strict", "a message of SNS from elsewhere", 403, "wrong_address", from("198.51.100.8:1", "198.51.100.7"))
	add("sns-strict", "claiming to be a proxy", 403, "wrong_address", from("192.0.2.1:1", "198.51.100.7"))
	certificates := []struct {
		what   string
		from   authority
		change func(*x509.Certificate)
	}{
		{"a certificate of a strange authority", w.strangerCA, func(*x509.Certificate) {}},
		{"an expired certificate", w.clientCA, func(c *x509.Certificate) { c.NotAfter = Start.AddDate(0, 0, -1) }},
		{"a certificate of next year", w.clientCA, func(c *x509.Certificate) { c.NotBefore = Start.AddDate(1, 0, 0) }},
		{"a certificate of another name", w.clientCA, func(c *x509.Certificate) { c.DNSNames = []string{"vault.example.org.evil.example"} }},
		{"a certificate whose common name alone is right", w.clientCA, func(c *x509.Certificate) { c.DNSNames, c.Subject.CommonName = []string{"x"}, "vault.example.org" }},
		{"a certificate for all names", w.clientCA, func(c *x509.Certificate) { c.DNSNames = []string{"*.example.org"} }},
		{"a server's certificate", w.clientCA, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }},
	}
	for _, c := range certificates {
		add("machine", c.what, 401, "wrong_certificate", func(r Request) Request { r.Certificate = w.machine(c.from, c.change); return r })
		add("fortress", c.what+", forwarded", 401, "wrong_certificate", func(r Request) Request { return r.with("X-Client-Cert", w.clientCertificate(c.from, c.change)) })
	}
	add("machine", "no certificate", 401, "no_credentials", func(r Request) Request { r.Certificate = nil; return r })
	add("machine", "a forwarded certificate where none is forwarded", 401, "no_credentials", func(r Request) Request {
		r.Certificate = nil
		return r.with("X-Client-Cert", w.clientCertificate(w.clientCA, func(*x509.Certificate) {}))
	})
	add("machine", "the authority's certificate, for the sender's", 401, "wrong_certificate", func(r Request) Request { r.Certificate = w.clientCA.certificate; return r })
	add("fortress", "no PEM", 401, "wrong_certificate", func(r Request) Request { return r.with("X-Client-Cert", "hello") })
	add("fortress", "broken escapes", 401, "wrong_certificate", func(r Request) Request { return r.with("X-Client-Cert", "%zz") })
	add("fortress", "a key for a certificate", 401, "wrong_certificate", func(r Request) Request {
		return r.with("X-Client-Cert", url.PathEscape("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	})
	add("fortress", "a stranger's certificate before the right one", 401, "wrong_certificate", func(r Request) Request {
		return r.with("X-Client-Cert", w.clientCertificate(w.strangerCA, func(*x509.Certificate) {})+r.header("X-Client-Cert"))
	})
	add("fortress", "twenty certificates", 401, "wrong_certificate", func(r Request) Request {
		return r.with("X-Client-Cert", strings.Repeat(r.header("X-Client-Cert"), 20))
	})
	return all
}
