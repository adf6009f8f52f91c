package intake

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/keyherald/keyherald/audit"
)

// Standard Webhooks, signatures of version 1 (https://www.standardwebhooks.com): HMAC-SHA256 over id.timestamp.body.
// The specification's Go library takes one key and an empty secret, so these lines are our own.

const skew = 5 * time.Minute

func decodeSecret(secret string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(secret, "whsec_")
	if !ok {
		return nil, errors.New("a signing secret begins with whsec_")
	}
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(raw) < 24 {
		return nil, errors.New("a signing secret is base64 of 24 bytes or more")
	}
	return raw, nil
}

// Sign makes the value of the webhook-signature header.
func Sign(secret, id string, at time.Time, body []byte) (string, error) {
	raw, err := decodeSecret(secret)
	if err != nil {
		return "", err
	}
	return "v1," + base64.StdEncoding.EncodeToString(mac(raw, id, strconv.FormatInt(at.Unix(), 10), body)), nil
}

func mac(secret []byte, id, timestamp string, body []byte) []byte {
	h := hmac.New(sha256.New, secret)
	_, _ = fmt.Fprintf(h, "%s.%s.", id, timestamp)
	h.Write(body)
	return h.Sum(nil)
}

// standardWebhooks is the authentication mode.
type standardWebhooks struct{ keys []key }

func (s standardWebhooks) check(_ context.Context, r *request) (string, *denial) {
	keyID, reason := s.verify(r.header, r.body, r.now)
	if reason != "" {
		return "", refused(reason)
	}
	return keyID, nil
}

// verify returns the id of the key that signed, or why the notification is refused. Every key is tried on every
// signature, so that the time taken does not tell which key is valid.
func (s standardWebhooks) verify(header http.Header, body []byte, now time.Time) (keyID string, why audit.Refusal) {
	id, timestamp := header.Get("Webhook-Id"), header.Get("Webhook-Timestamp")
	signed := header.Get("Webhook-Signature")
	if id == "" || timestamp == "" || signed == "" || len(signed) > 4096 {
		return "", audit.RefusedNotSigned
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return "", audit.RefusedNotSigned
	}
	var signatures [][]byte
	for _, one := range strings.Fields(signed) {
		encoded, ok := strings.CutPrefix(one, "v1,")
		if signature, err := base64.StdEncoding.DecodeString(encoded); ok && err == nil {
			signatures = append(signatures, signature)
		}
	}
	for _, k := range s.keys {
		want := mac(k.secret, id, timestamp, body)
		for _, signature := range signatures {
			if hmac.Equal(signature, want) && k.valid(now) {
				keyID = k.id
			}
		}
	}
	if keyID == "" {
		return "", audit.RefusedWrongSignature
	}
	// Only an authentic timestamp says anything.
	if at := time.Unix(seconds, 0); at.Before(now.Add(-skew)) || at.After(now.Add(skew)) {
		return "", audit.RefusedStale
	}
	return keyID, ""
}
