package schema

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode/utf8"
)

// A packed event may be as large as a record can be, and what is said about it
// is written three times: as a key and a value of the ledger, and as a result.
// So nothing of it is repeated beyond these limits, in bytes. They are far above
// what any rule lets through, so that they only ever cut what fails anyway.
// Without them a single oversized event could never be answered, because no
// topic would take the answer, and it would hold up its partition for ever.
const (
	maxText       = 256     // one field, or one mark of the event
	maxSubTID     = 8 << 10 // all the sub-orders together
	maxMessage    = 512     // one message to a person
	maxTraceState = 4 << 10
	// maxPerRule is how many violations of one rule a result lists.
	maxPerRule = 4
)

// digest names a text that cannot be repeated as it is.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// mark returns an event's id as it is written into ledger and results. An id
// that JSON could not give back unchanged would make a replayed event look new,
// and so would be a reason for another call.
func mark(id string) string {
	if len(id) > maxText || !utf8.ValidString(id) {
		return digest(id)
	}
	return id
}

// part returns a part of a shipment as its key holds it.
func part(text string) string {
	if len(text) > maxText {
		return digest(text)
	}
	return text
}

// subParts returns the sub-orders of a shipment as its key holds them.
func subParts(ids []string) []string {
	total := 0
	for _, id := range ids {
		total += len(id) + 1
	}
	if total > maxSubTID {
		return []string{digest((&Shipment{SubTID: ids}).Canonical())}
	}
	return ids
}

// cut returns the beginning of a text, with a mark if there is more.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	const more = "…"
	return strings.ToValidUTF8(text[:limit-len(more)], "") + more
}

// cutSubTID returns as many sub-orders as a result repeats.
func cutSubTID(ids []string) []string {
	shown := make([]string, 0, min(len(ids), maxSubTID))
	total := 0
	for _, id := range ids {
		id = cut(id, maxText)
		if total += len(id) + 1; total > maxSubTID {
			break
		}
		shown = append(shown, id)
	}
	return shown
}

// cutViolations returns the violations as a result lists them, never nil.
func cutViolations(all []Violation) []Violation {
	listed := []Violation{}
	perRule := map[string]int{}
	for _, v := range all {
		if perRule[v.Rule]++; perRule[v.Rule] > maxPerRule {
			continue
		}
		v.Field, v.Message = cut(v.Field, maxText), cut(v.Message, maxMessage)
		listed = append(listed, v)
	}
	return listed
}
