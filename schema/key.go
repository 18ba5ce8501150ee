package schema

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// Shipment is what one call to the shipping API ships: the normalised parts
// that decide whether two packed events mean the same parcel. The order of
// SubTID does not matter.
type Shipment struct {
	ShopID      string
	TID         string
	Split       string // "0", "1", or the raw JSON of a value that is neither
	SubTID      []string
	OutSID      string
	CompanyCode string
}

// Key identifies a shipment in memory and in the ledger. Its first half is a
// hash of the order id alone, so that everything known of an order can be found
// by its tid; its second half is a hash of all the parts of the shipment.
type Key [16]byte

// OrderKey identifies an order, that is a pair of shop and order id. All the
// shipments of an order share it.
type OrderKey [8]byte

// TIDPrefix returns the first half of the key of every shipment of the order
// tid, of whatever shop.
func TIDPrefix(tid string) [8]byte {
	sum := sha256.Sum256(appendPart(nil, tid))
	return [8]byte(sum[:8])
}

// Key returns the key of the shipment.
func (s *Shipment) Key() Key {
	var k Key
	prefix := TIDPrefix(s.TID)
	copy(k[:8], prefix[:])
	sum := sha256.Sum256([]byte(s.Canonical()))
	copy(k[8:], sum[:8])
	return k
}

// IsPart reports whether it ships a part of an order.
func (s *Shipment) IsPart() bool { return s.Split == "1" }

// Overlaps lists the sub-orders that two shipments of one order have in common.
// It reports whether there is anything that both would ship: one that is no part
// ships the whole order.
func (s *Shipment) Overlaps(other *Shipment) (common []string, overlap bool) {
	if !s.IsPart() || !other.IsPart() {
		return nil, true
	}
	for _, sub := range s.SubTID {
		if slices.Contains(other.SubTID, sub) {
			common = append(common, sub)
		}
	}
	return common, len(common) > 0
}

// Order returns the key of the shipment's order.
func (s *Shipment) Order() OrderKey {
	sum := sha256.Sum256(appendPart(appendPart(nil, s.ShopID), s.TID))
	return OrderKey(sum[:8])
}

// Canonical returns the parts of the shipment as one string, in which no part
// can be mistaken for another: each is preceded by its length, and the
// sub-orders are sorted. It is the name from which result ids are made and the
// record key in the ledger. [ParseShipment] reads it back.
func (s *Shipment) Canonical() string {
	subs := slices.Clone(s.SubTID)
	slices.Sort(subs)
	subs = slices.Compact(subs)
	b := make([]byte, 0, 96)
	for _, part := range []string{s.ShopID, s.TID, s.Split, s.OutSID, s.CompanyCode} {
		b = appendPart(b, part)
	}
	for _, sub := range subs {
		b = appendPart(b, sub)
	}
	return string(b)
}

// ParseShipment reads what Canonical wrote and reports whether it could.
func ParseShipment(canonical string) (Shipment, bool) {
	var parts []string
	for rest := canonical; rest != ""; {
		digits, tail, ok := strings.Cut(rest, ":")
		n, err := strconv.Atoi(digits)
		if !ok || err != nil || n < 0 || n > len(tail) {
			return Shipment{}, false
		}
		parts = append(parts, tail[:n])
		rest = tail[n:]
	}
	if len(parts) < 5 {
		return Shipment{}, false
	}
	s := Shipment{ShopID: parts[0], TID: parts[1], Split: parts[2], OutSID: parts[3], CompanyCode: parts[4]}
	if len(parts) > 5 {
		s.SubTID = parts[5:]
	}
	if s.Canonical() != canonical {
		return Shipment{}, false
	}
	return s, true
}

func appendPart(b []byte, part string) []byte {
	b = strconv.AppendInt(b, int64(len(part)), 10)
	b = append(b, ':')
	return append(b, part...)
}

// LedgerPartition returns which of n ledger partitions holds the records of the
// order. It must never change: a different answer for the same order hides what
// the ledger knows of it.
func (o OrderKey) LedgerPartition(n int) int {
	return int(binary.BigEndian.Uint64(o[:]) % uint64(n)) //nolint:gosec // n is a positive partition count
}

// EventHash is a short name of a packed event's id, as the ledger keeps it in
// memory.
type EventHash [8]byte

// HashEvent returns the short name of an event id.
func HashEvent(id string) EventHash {
	sum := sha256.Sum256([]byte(id))
	return EventHash(sum[:8])
}

// NormalizeWaybill returns a waybill number as the API and the shipment key
// use it: without surrounding white space (also full-width, zero-width and byte
// order mark), full-width letters and digits folded to ASCII, upper case.
func NormalizeWaybill(s string) string {
	return strings.ToUpper(width.Fold.String(trimSpace(s)))
}

// NormalizeCarrier returns a carrier code as the API and the shipment key use
// it. A code is treated like a waybill number; a name with a letter outside
// ASCII is only trimmed.
func NormalizeCarrier(s string) string {
	t := trimSpace(s)
	if folded := width.Fold.String(t); isASCII(folded) {
		return strings.ToUpper(folded)
	}
	return t
}

func trimSpace(s string) string {
	return strings.TrimFunc(s, func(r rune) bool {
		switch r {
		case '\u3000', '\u200b', '\ufeff', '\u00a0':
			return true
		}
		return r <= ' '
	})
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
