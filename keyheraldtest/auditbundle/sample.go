package auditbundle

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
)

// sampleKinds are what a rotation leaves in the log, with details of the usual fields.
var sampleKinds = []struct{ actor, action, outcome, detail string }{
	{"source:kms", "notification.accepted", "accepted", `{"kms":"corporate","notification":"%s","path":"people/%[2]d/megolm_backup","source":"kms","version":"%[3]d"}`},
	{"server", "trigger.queued", "accepted", `{"action":"rotate","attempt":1,"device":"%.10s","excluded":0,"kms":"corporate","path":"people/%[2]d/megolm_backup","sequence":1758700%[3]d}`},
	{"server", "trigger.sent", "accepted", `{"attempt":1,"device":"%.10s","forms":["io.keyherald.rotation.trigger"],"message":"%[1]s","user":%[2]d,"retry":%[3]d}`},
	{"device:@keyherald-managed:corp.example.org/MANAGED001", "progress.reported", "reported_by_device", `{"backup_version":"%[3]d","carried":%[2]d,"fingerprint":"%[1]s","report":"018f%.8[1]s","stage":"backup_created"}`},
	{"device:@keyherald-managed:corp.example.org/MANAGED001", "delivery.reported", "reported_by_device", `{"backup_version":"%[3]d","counts":{"sent":3,"skipped_unverified":1},"fingerprint":"%[1]s","form":"io.element.msc4385.secret.push","round":%[2]d}`},
	{"server", "rotation.done", "accepted", `{"attempt":1,"backup_version":"%[3]d","old_backup":"kept_until","recovery_copy":"written","report":"%[1]s","targets":%[2]d}`},
}

// Sample is the event number n of the logs with that seed: realistic in what it says and how long it is, about 350 bytes
// with a detail of about 150.
func Sample(seed, n uint64) Leaf {
	random := rand.New(rand.NewPCG(seed, n))
	kind := sampleKinds[n%uint64(len(sampleKinds))]
	ms := int64(1758700000000 + n*137)
	word := make([]byte, 16)
	fill(random, word)
	salt := make([]byte, 32)
	fill(random, salt)
	e := Event{V: 1, ID: uuid7(ms, random), Time: ms, Actor: kind.actor, Action: kind.action, Outcome: kind.outcome,
		Subject: fmt.Sprintf("@first.lastname.%d:corp.example.org/%.10X", n/6%10_000, word), Rotation: uuid7(ms-int64(n%6)*137, rand.New(rand.NewPCG(seed, n/6)))}
	return Committed(e, salt, fmt.Appendf(nil, kind.detail, hex.EncodeToString(word), n/6%10_000, n/60_000))
}

func fill(random *rand.Rand, into []byte) {
	for i := 0; i < len(into); i += 8 {
		binary.LittleEndian.PutUint64(into[i:], random.Uint64())
	}
}

func uuid7(ms int64, random *rand.Rand) string {
	var id [16]byte
	fill(random, id[:])
	binary.BigEndian.PutUint64(id[:8], uint64(ms)<<16|uint64(id[6])<<8|uint64(id[7]))
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
