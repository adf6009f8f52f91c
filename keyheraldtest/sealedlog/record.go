package sealedlog

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/tree"
)

// Record is leaf n of a log that is in no database: the same bytes in every run.
func Record(n int64, at time.Time, actor string, action audit.Action, subject, rotation string, outcome audit.Outcome, detail string) audit.Record {
	id := uuid.MustParse(fmt.Sprintf("01939aa0-0000-7000-8000-%012d", n))
	salt := bytes.Repeat([]byte{byte(n)}, 32)
	if rotation != "" {
		rotation = fmt.Sprintf(`"rotation":"%s",`, rotation)
	}
	body := fmt.Sprintf(`{"v":1,"id":"%s","time":%d,"actor":"%s","action":"%s","subject":"%s",%s"outcome":"%s","commitment":"%s"}`, id, at.UnixMilli(),
		actor, action, subject, rotation, outcome, base64.RawStdEncoding.EncodeToString(audit.Commit(salt, []byte(detail))))
	hash := tree.LeafHash([]byte(body))
	return audit.Record{ID: id, Index: n, Body: []byte(body), LeafHash: hash[:], Salt: salt, Detail: []byte(detail)}
}
