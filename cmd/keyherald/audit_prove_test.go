package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	signed "golang.org/x/mod/sumdb/note"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/keyheraldtest/sealedlog"
)

// The proof is read by its text, as https://c2sp.org/tlog-proof says it, and verified by another implementation.
func TestAProofVerifiesWithoutTheLog(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.Seal(t)
	r.Append(t, 5)
	r.Seal(t)
	verifier, err := signed.NewVerifier(r.Keys.Public[0])
	check(t, err)
	redacted := lines(t, r.must(t, "list", "--json", "--refused"))[0]
	r.must(t, "redact", redacted["id"].(string), "--reason", "a name")
	for index, body := range r.Bodies(t) {
		text := r.must(t, "prove", strconv.Itoa(index))
		head, checkpoint, found := strings.Cut(text, "\n\n")
		if !found {
			t.Fatalf("the proof is %s", text)
		}
		parts := strings.Split(head, "\n")
		if parts[0] != "c2sp.org/tlog-proof@v1" || parts[2] != fmt.Sprintf("index %d", index) {
			t.Fatalf("the proof is %s", text)
		}
		encoded, found := strings.CutPrefix(parts[1], "extra ")
		raw, err := base64.StdEncoding.DecodeString(encoded)
		check(t, err)
		var extra map[string]string
		check(t, json.Unmarshal(raw, &extra))
		if !found || extra["event"] != string(body) || (extra["detail"] == "") != (float64(index) == redacted["index"]) {
			t.Errorf("beside the proof is %s", raw)
		}
		if extra["detail"] != "" {
			salt, err := base64.StdEncoding.DecodeString(extra["salt"])
			check(t, err)
			var fields struct{ Commitment string }
			check(t, json.Unmarshal([]byte(extra["event"]), &fields))
			if base64.RawStdEncoding.EncodeToString(audit.Commit(salt, []byte(extra["detail"]))) != fields.Commitment {
				t.Errorf("leaf %d commits to another detail", index)
			}
		}
		var hashes [][]byte
		for _, part := range parts[3:] {
			hash, err := base64.StdEncoding.DecodeString(part)
			check(t, err)
			hashes = append(hashes, hash)
		}
		c, _, _, err := log.ParseCheckpoint([]byte(checkpoint), sealedlog.Name, verifier)
		check(t, err)
		check(t, proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(index), c.Size, rfc6962.DefaultHasher.HashLeaf([]byte(extra["event"])), hashes, c.Hash))
	}
	if action, detail := r.told(t); action != "audit.exported" || detail["command"] != "prove" {
		t.Errorf("the log says %s of %v", action, detail)
	}
}

func TestNothingIsProvedOfWhatWasChanged(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.Seal(t)
	key := lines(t, r.must(t, "list", "--json", "--refused"))[0]["id"].(string)
	r.Tamper(t, "UPDATE audit_event SET body = replace(convert_from(body, 'UTF8'), 'refused', 'granted')::bytea WHERE id = '"+key+"'")
	if out, _, err := r.run(t, "prove", key); err == nil || out != "" || !strings.Contains(err.Error(), "somebody changed the log") {
		t.Errorf("it prints %s and ends with %v", out, err)
	}
	r.Append(t, 1)
	unsealed := lines(t, r.must(t, "list", "--json", "--action", "bot.lease_taken"))
	if _, _, err := r.run(t, "prove", unsealed[len(unsealed)-1]["id"].(string)); err == nil || !strings.Contains(err.Error(), "not sealed yet") {
		t.Error(err)
	}
}
