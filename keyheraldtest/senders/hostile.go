package senders

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Attack is one hostile notification: what it is, in words, and the answer that was designed for it. Before, where it is
// there, makes honest requests that come first. Requests are made when they are sent, at the World's time.
type Attack struct {
	Name    string
	Before  func() []Request
	Request func() Request
	Status  int
	Result  string
}

// Attacks are all hostile notifications, over all formats and authentication modes. None of them may be accepted as a
// new notification.
func (w *World) Attacks() []Attack {
	return slices.Concat(w.bodies(), w.credentials(), w.webhookAttacks(), w.macAttacks(), w.placeAttacks(), w.tokenAttacks(),
		w.snsAttacks(), w.eventAttacks(), w.handshakeAttacks(), w.mappingAttacks(), w.replays(), w.routes())
}

// The answers that several formats share.
const (
	notJSON   = "the body is not JSON"
	notUTF8   = "the body is not UTF-8"
	twice     = "a JSON key is there twice"
	nul       = "a JSON string holds a NUL character"
	deep      = "the JSON is nested too deep"
	many      = "the JSON has too many values"
	behind    = "there is data after the JSON value"
	headers   = "a header is there twice"
	encoded   = "send the body without a Content-Encoding"
	needsCE   = "send one CloudEvent 1.0: structured as application/cloudevents+json, or binary with ce- headers and application/json"
	unproven  = "send the CloudEvent structured, as application/cloudevents+json: nothing that this source proves itself by covers the ce- headers of a binary one"
	notCE     = "not a valid CloudEvent 1.0"
	needsGrid = "send events of Event Grid as application/json or application/cloudevents+json"
	notGrid   = "not an event of Event Grid, neither in its own schema nor in that of CloudEvents 1.0"
	notBridge = "not an event of EventBridge"
	notPubSub = "not a wrapped message of a Pub/Sub push subscription"
	notObject = "the body is not a JSON object"
	noID      = "the notification has no id, or one that is no text or has more than 1024 bytes"
	longID    = "the event's id has more than 1024 bytes"
)

// inject puts members at the beginning of a body's object, or of the first object of its array.
func inject(body, members string) string {
	at := strings.Index(body, "{") + 1
	return body[:at] + members + "," + body[at:]
}

// mutation is a body that an authentic sender should not send.
type mutation struct {
	what   string
	change func(body string) string
	status int
	result string
}

var mutations = []mutation{
	{"no JSON", func(string) string { return "hello" }, 400, notJSON},
	{"an empty body", func(string) string { return "" }, 400, notJSON},
	{"half of it", func(b string) string { return b[:len(b)/2] }, 400, notJSON},
	{"a comment", func(b string) string { return "/**/" + b }, 400, notJSON},
	{"a comma too many", func(b string) string { return inject(b, `"zz":[1,]`) }, 400, notJSON},
	{"no number", func(b string) string { return inject(b, `"zz":NaN`) }, 400, notJSON},
	{"a key without quotes", func(b string) string { return inject(b, `zz:1`) }, 400, notJSON},
	{"single quotes", func(b string) string { return inject(b, `'zz':1`) }, 400, notJSON},
	{"a line break within a string", func(b string) string { return inject(b, "\"zz\":\"a\nb\"") }, 400, notJSON},
	{"a byte order mark", func(b string) string { return "\ufeff" + b }, 400, notJSON},
	{"a key twice", func(b string) string { return inject(b, `"zz":1,"zz":2`) }, 400, twice},
	{"a key twice, once escaped", func(b string) string { return inject(b, `"zz":1,"\u007az":2`) }, 400, twice},
	{"a key twice, deep inside", func(b string) string { return inject(b, `"zz":[{"a":{"b":1,"b":2}}]`) }, 400, twice},
	{"two keys that are no text", func(b string) string { return inject(b, `"\ud800":1,"\udfff":2`) }, 400, twice},
	{"a NUL in a string", func(b string) string { return inject(b, `"zz":"\u0000"`) }, 400, nul},
	{"a NUL in a key", func(b string) string { return inject(b, `"z\u0000z":1`) }, 400, nul},
	{"nested forty times", func(b string) string {
		return inject(b, `"zz":`+strings.Repeat("[", 40)+strings.Repeat("]", 40))
	}, 400, deep},
	{"nested three thousand times, without an end", func(string) string { return strings.Repeat(`{"a":`, 3_000) }, 400, deep},
	{"ten thousand empty lists", func(b string) string { return inject(b, `"zz":[`+strings.Repeat("[],", 10_000)+"[]]") }, 400, many},
	{"a second value behind it", func(b string) string { return b + "{}" }, 400, behind},
	{"a bracket behind it", func(b string) string { return b + "]" }, 400, behind},
	{"bytes that are no UTF-8", func(b string) string { return inject(b, "\"zz\":\"\xff\xfe\"") }, 400, notUTF8},
	{"an overlong slash", func(b string) string { return inject(b, "\"zz\":\"\xc0\xaf\"") }, 400, notUTF8},
	{"a surrogate in UTF-8", func(b string) string { return inject(b, "\"zz\":\"\xed\xa0\x80\"") }, 400, notUTF8},
	{"UTF-16", func(string) string { return "\xff\xfe{\x00}\x00" }, 400, notUTF8},
	{"larger than 64 KiB", func(b string) string { return b + strings.Repeat(" ", 64<<10) }, 413, "too_large"},
}

// shape is a JSON value that is no event, and what each format says to it.
var shapes = []struct{ what, body string }{
	{"null", "null"}, {"a number", "7"}, {"a string", `"keyherald/alice/backup-key"`}, {"true", "true"}, {"an array in an array", "[[]]"},
	{"an array of nothing", "[null]"}, {"an empty array", "[]"}, {"an empty object", "{}"},
}

func shapeAnswer(format, body string) (int, string) {
	object := body == "{}"
	switch format {
	case "cloudevents":
		return 400, notCE
	case "azure":
		if body == "[]" {
			return 400, "there is no event in the array"
		}
		return 400, notGrid
	case "aws":
		return 400, notBridge
	case "gcp":
		return 400, notPubSub
	case "infisical":
		return 401, "stale"
	}
	switch {
	case !object:
		return 400, notObject
	case format == "soar":
		return 400, noID
	}
	return 202, "unmapped"
}

var formats = map[string]string{"kms": "cloudevents", "fortress": "cloudevents", "machine": "cloudevents", "azure": "azure", "azure-header": "azure", "sns": "aws",
	"sns-strict": "aws", "bridge-basic": "aws", "bridge-oauth": "aws", "pubsub": "gcp", "infisical": "infisical", "doppler": "doppler", "siem": "siem", "soar": "soar"}

var mediaTypes = map[string]string{"cloudevents": needsCE, "azure": needsGrid, "aws": "send the event of EventBridge as application/json, as it is",
	"gcp": "send a wrapped Pub/Sub message as application/json"}

// bodies are sent by every sender, which proves itself for them: a broken or stolen sender.
func (w *World) bodies() []Attack {
	var all []Attack
	for _, s := range w.Senders() {
		format, inSNS := formats[s.Source], strings.HasPrefix(s.Source, "sns")
		event := func() string { return s.Event("hostile", "alice", "7") }
		add := func(what string, status int, result string, request func() Request) {
			all = append(all, Attack{Name: s.Source + ": " + what, Request: request, Status: status, Result: result})
		}
		for _, m := range mutations {
			status, result := m.status, m.result
			switch {
			case inSNS && result == notUTF8:
				continue // the envelope is JSON, so nothing but text can be in it
			case inSNS && what(m) == "an empty body":
				status, result = 401, "not_signed" // SNS sends no empty message
			case inSNS && status == 400:
				result = "within the Message: " + result
			case format == "infisical" && status == 400:
				status, result = 401, "stale" // the time is within the body
			}
			add(m.what, status, result, func() Request { return s.Send(m.change(event())) })
		}
		for _, shape := range shapes {
			status, result := shapeAnswer(format, shape.body)
			add(shape.what, status, result, func() Request { return s.Send(shape.body) })
		}
		add("packed", 415, encoded, func() Request { return s.Send(event()).with("Content-Encoding", "gzip") })
		add("two content types", 400, headers, func() Request { return s.Send(event()).twice("Content-Type", "application/json") })
		if inSNS {
			continue
		}
		needs, ok := mediaTypes[format]
		if !ok {
			needs = "send a JSON object as application/json"
		}
		for _, mediaType := range []string{"text/html", "application/json; charset=utf-16", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", ""} {
			add("the content type "+fmt.Sprintf("%q", mediaType), 415, needs, func() Request { return s.Send(event()).with("Content-Type", mediaType) })
		}
	}
	return all
}

func what(m mutation) string { return m.what }

// routes lead past the sources.
func (w *World) routes() []Attack {
	honest := func() Request { return w.Sender("kms").Send(cloudEvent("routes", "alice", "7")) }
	var all []Attack
	for path, status := range map[string]int{"/notify/nobody": 404, "/notify/KMS": 404, "/notify/": 404, "/notify": 404, "/notify/kms/": 404, "/notify/kms%2f": 404,
		"/notify/%6bms%00": 404, "/notify/..%2fnotify%2fkms": 404, "/notify/kms/../azure": 404, "/notify/sources.kms": 404, "//notify/kms": 404} {
		all = append(all, Attack{Name: "the path " + path, Status: status, Request: func() Request { r := honest(); r.Path = path; return r }})
	}
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodHead, http.MethodTrace, "POST2"} {
		all = append(all, Attack{Name: "the method " + method, Status: http.StatusMethodNotAllowed, Request: func() Request { r := honest(); r.Method = method; return r }})
	}
	for i := range all {
		if strings.HasPrefix(all[i].Name, "the path /notify/") && all[i].Name != "the path /notify/" {
			all[i].Result = "unknown_source"
		}
	}
	slices.SortFunc(all, func(a, b Attack) int { return strings.Compare(a.Name, b.Name) })
	return all
}
