package senders

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"
	"time"

	"crypto/x509"

	"github.com/go-jose/go-jose/v4"
)

// tokenAttacks are on the bearer tokens of every source that demands one.
func (w *World) tokenAttacks() []Attack {
	var all []Attack
	for _, s := range []struct {
		source, issuer string
		claims         func() object
		audience       string // another one of the same issuer
		who            string // the claim that says who the sender is
	}{
		{"azure", "microsoft", w.entraClaims, "api://other", "appid"},
		{"bridge-oauth", "company", w.oauthClaims, "keyherald2", "client_id"},
		{"pubsub", "google", w.pushClaims, "https://keyherald.example.org/notify/other", "email"},
		{"fortress", "company", w.vaultClaims, "https://keyherald", "sub"},
	} {
		sender := w.Sender(s.source)
		add := func(what, result string, token func() string) {
			all = append(all, Attack{Name: s.source + ": " + what, Status: 401, Result: result, Request: func() Request {
				return sender.Send(sender.Event("token", "alice", "7")).with("Authorization", "Bearer "+token())
			}})
		}
		header := func(what string, members object) {
			add(what, "wrong_token", func() string { return w.Token(s.issuer, members, s.claims()) })
		}
		claim := func(what, result string, members func() object) {
			add(what, result, func() string { return w.Token(s.issuer, nil, change(s.claims(), members())) })
		}
		fixed := func(members object) func() object { return func() object { return members } }

		claim("an expired token", "stale", func() object { return object{"exp": w.Now().Add(-61 * time.Second).Unix()} })
		claim("a token without an end", "stale", fixed(object{"exp": nil}))
		claim("a token whose end is a text", "wrong_claims", fixed(object{"exp": "never"}))
		claim("a token whose end is beyond all numbers", "wrong_claims", fixed(object{"exp": json.Number("1e999")}))
		claim("a token whose claims are elsewhere", "wrong_claims", fixed(object{s.who: nil, "_claim_names": object{s.who: "x"},
			"_claim_sources": object{"x": object{"endpoint": "http://169.254.169.254/latest/meta-data/"}}}))
		claim("a token of tomorrow", "wrong_claims", func() object { return object{"nbf": w.Now().Add(10 * time.Minute).Unix()} })
		claim("a token for another audience", "wrong_claims", fixed(object{"aud": s.audience}))
		claim("a token for an audience that is an object", "wrong_claims", fixed(object{"aud": object{"keyherald": true}}))
		claim("a token for nobody", "wrong_claims", fixed(object{"aud": nil}))
		claim("a token of another issuer", "wrong_claims", fixed(object{"iss": "https://accounts.evil.example"}))
		claim("a token of an issuer that ends alike", "wrong_claims", fixed(object{"iss": "https://evil.example/?" + "https://idp.example.org"}))
		claim("a token of no issuer", "wrong_claims", fixed(object{"iss": nil}))
		claim("a token of another sender", "wrong_claims", fixed(object{s.who: "somebody-else"}))
		claim("a token of no sender", "wrong_claims", fixed(object{s.who: nil}))
		claim("a token of a sender that is a list within a list", "wrong_claims", fixed(object{s.who: []any{[]any{"vault", "eventbridge", pushAccount, eventGridApp}}}))
		claim("a token of a sender with a space behind the name", "wrong_claims", func() object { return object{s.who: asText(s.claims()[s.who]) + " "} })

		header("a key that nobody has", object{"kid": "key-2"})
		header("a key whose name is a path", object{"kid": "../../../../dev/null"})
		header("a key whose name is an address", object{"kid": "https://evil.example/keys"})
		header("a key whose name is SQL", object{"kid": "x' UNION SELECT 'a"})
		header("a key without a name", object{"kid": nil})
		header("a key whose name is a number", object{"kid": 1})
		header("an algorithm that is not named", object{"alg": "RS384"})
		header("another kind of signature", object{"alg": "PS256"})
		header("elliptic curves over an RSA key", object{"alg": "ES256"})
		header("the algorithm none", object{"alg": "none"})
		header("the algorithm None", object{"alg": "None"})
		header("an empty algorithm", object{"alg": ""})
		header("no algorithm", object{"alg": nil})
		header("two algorithms", object{"alg": []any{"RS256", "none"}})
		header("a critical header", object{"crit": []any{"http://evil.example"}, "http://evil.example": true})
		header("an encrypted token's header", object{"enc": "A128GCM", "alg": "RSA-OAEP"})
		header("another kind of token", object{"typ": "logout+jwt"})

		stranger := func(what string, members func() object) {
			add(what, "wrong_token", func() string {
				return w.token(w.stranger, change(object{"alg": "RS256", "kid": "key-1", "typ": "JWT"}, members()), s.claims())
			})
		}
		stranger("a stranger's signature", fixed(nil))
		stranger("a stranger's key within the token", func() object { return object{"jwk": jose.JSONWebKey{Key: w.stranger.Public(), KeyID: "key-1"}} })
		stranger("an address of a stranger's keys", fixed(object{"jku": "https://evil.example/keys"}))
		stranger("an address of a stranger's certificate", fixed(object{"x5u": "http://169.254.169.254/latest/meta-data/"}))
		stranger("a stranger's certificate", func() object {
			return object{"x5c": []any{base64.StdEncoding.EncodeToString(w.strangerCA.certificate.Raw)}}
		})

		add("unsigned", "wrong_token", func() string {
			return w.tokenText(object{"alg": "none", "kid": "key-1"}, s.claims()) + "."
		})
		add("the public key taken for a secret", "wrong_token", func() string { return w.confused(s.issuer, s.claims()) })
		add("the JSON serialization", "wrong_token", func() string {
			parts := strings.Split(w.Token(s.issuer, nil, s.claims()), ".")
			return w.json(object{"protected": parts[0], "payload": parts[1], "signature": parts[2]})
		})
		add("the claims of another token", "wrong_token", func() string {
			one, two := strings.Split(w.Token(s.issuer, nil, s.claims()), "."), strings.Split(w.Token(s.issuer, nil, change(s.claims(), object{"jti": "x"})), ".")
			return one[0] + "." + two[1] + "." + one[2]
		})
		add("two tokens", "wrong_token", func() string {
			return w.Token(s.issuer, nil, s.claims()) + " " + w.Token(s.issuer, nil, s.claims())
		})
		add("two parts", "wrong_token", func() string { return w.tokenText(object{"alg": "RS256", "kid": "key-1"}, s.claims()) })
		add("five parts", "wrong_token", func() string { return w.Token(s.issuer, nil, s.claims()) + ".a.b" })
		add("a token of 40 KiB", "wrong_token", func() string {
			return w.Token(s.issuer, nil, change(s.claims(), object{"pad": strings.Repeat("x", 30<<10)}))
		})
		add("nothing", "wrong_token", func() string { return "" })
		for scheme, result := range map[string]string{"Basic ": "no_credentials", "bearer": "no_credentials", "Token ": "no_credentials", "": "no_credentials"} {
			all = append(all, Attack{Name: s.source + ": the scheme " + `"` + scheme + `"`, Status: 401, Result: result, Request: func() Request {
				return sender.Send(sender.Event("token", "alice", "7")).with("Authorization", scheme+w.Token(s.issuer, nil, s.claims()))
			}})
		}
		if s.source != "azure" {
			all = append(all, Attack{Name: s.source + ": the token of another issuer, whole", Status: 401, Result: "wrong_token", Request: func() Request {
				return sender.Send(sender.Event("token", "alice", "7")).with("Authorization", "Bearer "+w.Token("microsoft", nil, w.entraClaims()))
			}})
		}
	}
	return all
}

func asText(value any) string {
	text, _ := value.(string)
	return text
}

// confused is a token whose HMAC has the issuer's public key as its secret.
func (w *World) confused(issuer string, claims object) string {
	hosts := map[string]string{"microsoft": microsoft, "google": google, "company": company}
	der, err := x509.MarshalPKIXPublicKey(w.issuers[hosts[issuer]].Public())
	w.check(err)
	text := w.tokenText(object{"alg": "HS256", "kid": "key-1", "typ": "JWT"}, claims)
	secret := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	return text + "." + base64.RawURLEncoding.EncodeToString(sum(secret, text))
}
