package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"packship/schema"
)

// kind is the kind of a record.
type kind string

const (
	kindMeta     kind = "meta"
	kindIntent   kind = "intent"
	kindTakeover kind = "takeover"
	kindRelease  kind = "release"
	kindOutcome  kind = "outcome"
	kindBye      kind = "bye"
)

var kinds = []kind{kindMeta, kindIntent, kindTakeover, kindRelease, kindOutcome, kindBye}

// record is the value of a record of the ledger: compact JSON, whose fields come
// in this order. The record's key is the shipment's canonical form; meta and bye
// have none.
type record struct {
	Kind    kind   `json:"kind"`
	Attempt string `json:"attempt,omitempty"`
	// Prev is the attempt that a takeover replaces.
	Prev string `json:"prev,omitempty"`
	// Event is the id of the packed event that an attempt is made for.
	Event string `json:"event,omitempty"`
	// Round is the round that an intent opens or joins, or that an outcome ends.
	Round int `json:"round,omitempty"`
	// Doubt says of an intent that its writer knows that an earlier attempt may
	// have shipped, and of an outcome that any attempt may have.
	Doubt bool `json:"doubt,omitempty"`
	// Uncalled says of an outcome that no call was made under its attempt.
	Uncalled bool `json:"uncalled,omitempty"`
	// Unanswered says of an outcome that its attempt brought no answer, so
	// that its call may still be under way.
	Unanswered bool `json:"unanswered,omitempty"`
	// Why says why an attempt was released, or what the API answered to one that
	// is taken over, if the next one knows.
	Why string `json:"why,omitempty"`
	// Group says of a success for which order group it was, by the short name
	// of [schema.Packed.GroupMark]; "" if the event named none.
	Group string `json:"group,omitempty"`
	// Account says which account the attempt was charged to, and Points how
	// much, as far as the API said so.
	Account string `json:"account,omitempty"`
	Points  int64  `json:"points,omitempty"`

	// Incarnation is the process that a bye is of, and Open lists its attempts
	// that may still take effect.
	Incarnation string   `json:"incarnation,omitempty"`
	Open        []string `json:"open,omitempty"`

	Meta *meta `json:"meta,omitempty"`

	// Outcome comes last. It is read only when it is asked for.
	Outcome json.RawMessage `json:"outcome,omitempty"`

	verdict schema.Verdict // of Outcome
}

// meta says what the ledger is. It is the first record of a partition, and is
// appended again before retention removes the newest one.
type meta struct {
	Version    int    `json:"version"`
	Partitions int    `json:"partitions"`
	Horizon    string `json:"horizon"`
	// Epoch is different for every topic, also for one that was deleted and
	// created again under the same name.
	Epoch string `json:"epoch"`
	// Renews is the time of the meta record before this one, zero if this was
	// appended to an empty partition. If that record is gone although it is
	// younger than the horizon, others are gone too.
	Renews time.Time `json:"renews,omitzero"`
	// LostBefore says that records of this partition were lost, and that what
	// was lost is about packed records of before that time.
	LostBefore time.Time `json:"lost_before,omitzero"`
	// Replaces lists the identities of ledgers that this one has taken the
	// place of, as far as that was noticed.
	Replaces []string `json:"replaces,omitempty"`
}

// version is the version of the records that this package writes.
const version = 1

// encode returns the record as the value of a Kafka record.
func (r *record) encode() ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // the event in an outcome is stored verbatim
	if err := enc.Encode(r); err != nil {
		return nil, fmt.Errorf("ledger: encode %s: %w", r.Kind, err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// encodeOutcome returns an outcome as it stands in a record.
func encodeOutcome(o *schema.Outcome) (json.RawMessage, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(o); err != nil {
		return nil, fmt.Errorf("ledger: encode outcome: %w", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

var errUnreadable = errors.New("ledger: not a record of the ledger")

// decode reads the value of a Kafka record. The result may share memory with
// value. The body of an outcome is not looked at beyond its verdict.
func decode(value []byte) (record, error) {
	if r, ok := scan(value); ok {
		return r, nil
	}
	return decodeSlowly(value)
}

// decodeSlowly reads the value of a Kafka record in whatever form it is.
func decodeSlowly(value []byte) (record, error) {
	var r record
	dec := json.NewDecoder(bytes.NewReader(value))
	if err := dec.Decode(&r); err != nil {
		return record{}, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	if dec.More() {
		return record{}, fmt.Errorf("%w: something follows the object", errUnreadable)
	}
	if len(r.Outcome) > 0 {
		var o struct {
			Verdict schema.Verdict `json:"verdict"`
		}
		if err := json.Unmarshal(r.Outcome, &o); err != nil {
			return record{}, fmt.Errorf("%w: %w", errUnreadable, err)
		}
		r.verdict = o.Verdict
	}
	if err := r.check(); err != nil {
		return record{}, err
	}
	return r, nil
}

// check reports what a record lacks to mean something.
func (r *record) check() error {
	missing := ""
	switch r.Kind {
	case kindMeta:
		if r.Meta == nil || r.Meta.Epoch == "" {
			missing = "meta"
		}
	case kindIntent:
		if r.Attempt == "" || r.Round < 1 || r.Round > maxRound {
			missing = "attempt or round"
		}
	case kindTakeover:
		if r.Attempt == "" || r.Prev == "" {
			missing = "attempt or prev"
		}
	case kindRelease:
		if r.Attempt == "" {
			missing = "attempt"
		}
	case kindOutcome:
		if r.Attempt == "" || r.Round < 1 || r.Round > maxRound || (r.verdict != schema.Shipped && r.verdict != schema.Failed) {
			missing = "attempt, round or verdict"
		}
	case kindBye:
		if r.Incarnation == "" {
			missing = "incarnation"
		}
	default:
		return fmt.Errorf("%w: unknown kind %q", errUnreadable, r.Kind)
	}
	if missing != "" {
		return fmt.Errorf("%w: %s without %s", errUnreadable, r.Kind, missing)
	}
	return nil
}

// scan reads the records of shipments in exactly the form in which encode writes
// them, and reports whether it could. A restore reads millions of them, and most
// of their bytes are events that nobody asks for.
func scan(value []byte) (record, bool) {
	var r record
	head, body, hasBody := bytes.Cut(value, []byte(`,"outcome":`))
	s := scanner{rest: string(head)}
	if !s.skip(`{"kind":"`) {
		return r, false
	}
	r.Kind = kind(s.text())
	switch r.Kind {
	case kindIntent, kindTakeover, kindRelease, kindOutcome:
	default:
		return r, false
	}
	if s.skip(`,"attempt":"`) {
		r.Attempt = s.text()
	}
	if s.skip(`,"prev":"`) {
		r.Prev = s.text()
	}
	if s.skip(`,"event":"`) {
		r.Event = s.text()
	}
	if s.skip(`,"round":`) {
		r.Round = s.number()
	}
	r.Doubt = s.skip(`,"doubt":true`)
	r.Uncalled = s.skip(`,"uncalled":true`)
	r.Unanswered = s.skip(`,"unanswered":true`)
	if s.skip(`,"why":"`) {
		r.Why = s.text()
	}
	if s.skip(`,"group":"`) {
		r.Group = s.text()
	}
	if s.skip(`,"account":"`) {
		r.Account = s.text()
	}
	if s.skip(`,"points":`) {
		r.Points = int64(s.number())
	}
	if hasBody {
		var ok bool
		if r.verdict, ok = verdictOf(body); !ok {
			return r, false
		}
		r.Outcome = body[:len(body)-1]
	} else if !s.skip(`}`) {
		return r, false
	}
	if s.rest != "" || s.failed {
		return r, false
	}
	return r, r.check() == nil
}

// verdictOf reads the verdict of an outcome that ends a record.
func verdictOf(body []byte) (schema.Verdict, bool) {
	for _, v := range []schema.Verdict{schema.Shipped, schema.Failed} {
		if bytes.HasPrefix(body, []byte(`{"verdict":"`+v+`"`)) && bytes.HasSuffix(body, []byte(`}}`)) {
			return v, true
		}
	}
	return "", false
}

// scanner takes tokens off the front of JSON text.
type scanner struct {
	rest   string
	failed bool
}

// skip takes a literal off and reports whether it was there.
func (s *scanner) skip(literal string) bool {
	rest, ok := strings.CutPrefix(s.rest, literal)
	s.rest = rest
	return ok
}

// text takes the rest of a string and its closing quote off. It fails on a
// string that has to be unescaped, or is no text.
func (s *scanner) text() string {
	ascii := true
	for i := range len(s.rest) {
		switch c := s.rest[i]; {
		case c == '"':
			text := s.rest[:i]
			s.rest = s.rest[i+1:]
			s.failed = s.failed || !ascii && !utf8.ValidString(text)
			return text
		case c >= utf8.RuneSelf:
			ascii = false
		case c == '\\' || c < ' ':
			s.failed = true
			return ""
		}
	}
	s.failed = true
	return ""
}

// number takes a positive integer off.
func (s *scanner) number() int {
	n := 0
	for n < len(s.rest) && s.rest[n] >= '0' && s.rest[n] <= '9' {
		n++
	}
	v, err := strconv.Atoi(s.rest[:n])
	if err != nil || s.rest[0] == '0' {
		s.failed = true
	}
	s.rest = s.rest[n:]
	return v
}

// keyOf returns the key of the shipment whose canonical form is the key of a
// Kafka record, and whether it has that form. It equals [schema.Shipment.Key]
// without taking the shipment apart: its first half is a hash of the part that is
// the order id, with its length, and its second half one of the whole.
func keyOf(canonical []byte) (schema.Key, bool) {
	_, rest, ok := cutPart(canonical)
	if !ok {
		return schema.Key{}, false
	}
	tid, _, ok := cutPart(rest)
	if !ok {
		return schema.Key{}, false
	}
	var k schema.Key
	sum := sha256.Sum256(tid)
	copy(k[:8], sum[:8])
	sum = sha256.Sum256(canonical)
	copy(k[8:], sum[:8])
	return k, true
}

// cutPart takes the first part, its length included, off a canonical form.
func cutPart(canonical []byte) (part, rest []byte, ok bool) {
	n, digits := 0, 0
	for digits < min(len(canonical), 9) && canonical[digits] >= '0' && canonical[digits] <= '9' {
		n = 10*n + int(canonical[digits]-'0')
		digits++
	}
	end := digits + 1 + n
	if digits == 0 || end > len(canonical) || canonical[digits] != ':' {
		return nil, nil, false
	}
	return canonical[:end], canonical[end:], true
}

// eventID returns an event id in the form in which it survives JSON, so that its
// hash is the same before and after.
func eventID(id string) string {
	return strings.ToValidUTF8(id, "\ufffd")
}
