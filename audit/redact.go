package audit

import "fmt"

// RedactionRefused says why a detail stays. Reason is a word for the log.
type RedactionRefused struct {
	Reason Refusal
	text   string
}

func (r *RedactionRefused) Error() string { return r.text }

// CheckRedaction refuses to redact the detail of events about the log itself, since a verifier reads it, and of those
// that have none any more. Every error is a *RedactionRefused.
func CheckRedaction(r Record) error {
	if r.Body == nil {
		return &RedactionRefused{RefusedNoSuchEvent, "there is no such event: `keyherald audit list` shows their ids"}
	}
	fields, err := ParseBody(r.Body)
	if err != nil {
		return &RedactionRefused{RefusedUnreadable, fmt.Sprintf("the event cannot be read, so it cannot be told whether its detail may go: %v", err)}
	}
	switch fields.Action {
	case DetailRedacted:
		return &RedactionRefused{RefusedIsRedaction, "this event is a redaction, and its detail says why: it stays for good, or nobody could tell a redaction from a deletion"}
	case LossAccepted:
		return &RedactionRefused{RefusedIsLoss, "this event accepts a loss, and its detail names the gap: it stays for good, or the log would not verify any more"}
	case SigningKeysChanged:
		return &RedactionRefused{RefusedIsKeys, "this event changes the signing keys, and its detail names them: it stays for good, or the log would not verify any more"}
	}
	switch {
	case r.RedactedBy != [16]byte{}:
		return &RedactionRefused{RefusedRedactedBefore, fmt.Sprintf("its detail was redacted before, by the event %s", r.RedactedBy)}
	case r.Detail == nil:
		return &RedactionRefused{RefusedDetailMissing, "its detail is gone, and no redaction says so: that is no work of keyherald, see `keyherald audit verify`"}
	}
	return nil
}
