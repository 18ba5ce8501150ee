package schema

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Packed is an order-packed event: somebody has packed an order and asks for it
// to be marked as shipped. Fields that the event does not have are zero.
type Packed struct {
	EventID     string // event_id, else ce_id, else a hash of the value; the hash of an id that is long or not UTF-8
	OccurredAt  string // RFC 3339, as given
	ShopID      string
	TID         string // decimal digits
	OutSID      string // normalised waybill number
	CompanyCode string // normalised carrier code, or a carrier's Chinese name
	IsSplit     int    // 0 or 1
	SubTID      []string
	SenderID    string // decimal digits
	CancelID    string // decimal digits
	Feature     string
	VVType      int // 1 to 4, or 0 if the event leaves it to the account

	// What the event may say of its order besides. It is checked before a call
	// and not sent. What is no string, no time, or no list of items, is as good
	// as left out: producers may have fields of these names that mean something
	// else.
	Platform    string    // where the order was placed
	OrderKind   string    // what sort of order it is
	OrderGroup  string    // whose parcel it is: orders of one group may share a waybill number
	PaidAt      time.Time // when the buyer paid
	CollectedAt time.Time // when the carrier collected the parcel
	Items       []Item    // what was ordered: all of the order, not only what is in the parcel

	// Shipment is the identity of what the event asks to ship. Parts that
	// break a rule stand in it as they were written, or by their hash if they
	// are long.
	Shipment Shipment
	// Violations are the rules that the event breaks by the JSON types of its
	// fields, at most one for each field. The values of such fields are zero
	// above, but for SubTID, which keeps the raw JSON of what is no id.
	Violations []Violation
}

// GroupMark returns a short name of the event's order group: 16 hexadecimal
// digits, whatever the group's name is, and "" if the event names none. The ledger
// keeps it, so it must never change.
func (p *Packed) GroupMark() string {
	if p.OrderGroup == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(p.OrderGroup))
	return hex.EncodeToString(sum[:8])
}

// Item is a sub-order, and how many pieces it has; 0 if the event does not say.
type Item struct {
	OID      string // decimal digits
	Quantity int
}

// maxItems bounds the items that an event is remembered with while it waits. No
// order has as many.
const maxItems = 500

// Violation is one broken rule of an event. The rules are V01 to V27.
type Violation struct {
	Rule    string `json:"rule"`
	Field   string `json:"field"`
	Message string `json:"message"`
}

// Why a record is no packed event. They are the values of the dead letter's
// reason header.
const (
	ReasonEmpty        = "empty_value"
	ReasonNotUTF8      = "not_utf8"
	ReasonNotJSON      = "not_json"
	ReasonNotObject    = "not_an_object"
	ReasonCloudEvent   = "cloud_event_unusable"
	ReasonShopUnusable = "shop_id_unusable"
	ReasonTIDUnusable  = "tid_unusable"
)

// NotPackedReasons lists all values of [NotPackedError].Reason.
var NotPackedReasons = []string{
	ReasonEmpty, ReasonNotUTF8, ReasonNotJSON, ReasonNotObject,
	ReasonCloudEvent, ReasonShopUnusable, ReasonTIDUnusable,
}

// NotPackedError says why a record is not a packed event at all, so that it
// belongs to the dead letters.
type NotPackedError struct {
	Reason string // one of NotPackedReasons
	Detail string // for a person
}

func (e *NotPackedError) Error() string {
	return "schema: not a packed event: " + e.Reason + ": " + e.Detail
}

// DecodePacked reads a packed event from a record: bare JSON, or a CloudEvent
// in binary or structured mode. The error, if any, is a [*NotPackedError].
// Unknown fields are ignored.
func DecodePacked(rec *Record) (*Packed, error) {
	data, envelopeID, err := payload(rec)
	if err != nil {
		return nil, err
	}
	fields, err := object(data)
	if err != nil {
		return nil, err
	}
	p := &Packed{EventID: envelopeID}
	d := decoder{fields: fields, p: p}
	if err := d.identity(); err != nil {
		return nil, err
	}
	// A mark of the wrong type is no reason to hold a parcel up: the event
	// goes by its other marks.
	if id, ok := jsonString(fields["event_id"]); ok && id != "" {
		p.EventID = id
	}
	if p.EventID == "" {
		p.EventID = digest(string(rec.Value))
	}
	p.EventID = mark(p.EventID)
	p.OccurredAt, _ = jsonString(fields["occurred_at"])
	d.rest()
	return p, nil
}

// payload unwraps the CloudEvents binding: it returns the event's own JSON and
// the id that its envelope gives it, "" if none.
func payload(rec *Record) (data []byte, id string, err error) {
	if len(bytes.TrimSpace(rec.Value)) == 0 {
		return nil, "", &NotPackedError{ReasonEmpty, "the record has no value"}
	}
	id, _ = rec.Header("ce_id")
	if !rec.Structured() {
		return rec.Value, id, nil
	}
	envelope, err := object(rec.Value)
	if err != nil {
		return nil, "", err
	}
	if raw, ok := envelope["id"]; ok {
		if s, ok := jsonString(raw); ok && s != "" {
			id = s
		}
	}
	if raw, ok := envelope["data"]; ok && !isNull(raw) {
		// A producer without a JSON data content type may have put the event
		// into a string.
		if s, ok := jsonString(raw); ok {
			return []byte(s), id, nil
		}
		return raw, id, nil
	}
	if raw, ok := envelope["data_base64"]; ok && !isNull(raw) {
		s, isText := jsonString(raw)
		decoded, err := base64.StdEncoding.DecodeString(s)
		if !isText || err != nil {
			return nil, "", &NotPackedError{ReasonCloudEvent, "data_base64 of the cloud event is not base64"}
		}
		return decoded, id, nil
	}
	return nil, "", &NotPackedError{ReasonCloudEvent, "the cloud event has neither data nor data_base64"}
}

func object(data []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(data) {
		return nil, &NotPackedError{ReasonNotUTF8, "the value is not UTF-8"}
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return nil, &NotPackedError{ReasonNotObject, "the value is JSON but not an object"}
		}
		return nil, &NotPackedError{ReasonNotJSON, err.Error()}
	}
	if fields == nil {
		return nil, &NotPackedError{ReasonNotObject, "the value is JSON null, not an object"}
	}
	return fields, nil
}

// decoder fills a Packed from the fields of a JSON object and notes the rules
// that their types break.
type decoder struct {
	fields map[string]json.RawMessage
	p      *Packed
}

var (
	shopPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	intPattern  = regexp.MustCompile(`^-?[0-9]+$`)
)

// ValidShopID reports whether s can be a shop id (rule V01).
func ValidShopID(s string) bool { return shopPattern.MatchString(s) }

// ValidID reports whether s is a positive int64 in plain decimal digits, the
// form of order, sub-order and address ids (rules V03, V14, V19).
func ValidID(s string) bool {
	if s == "" || len(s) > 19 || s[0] == '0' {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return len(s) < 19 || s <= "9223372036854775807"
}

// identity reads shop_id and tid, without which nothing can be said to anybody.
func (d *decoder) identity() error {
	raw := d.fields["shop_id"]
	shop, ok := jsonString(raw)
	if !ok || !ValidShopID(shop) {
		return &NotPackedError{ReasonShopUnusable, "V01: shop_id must be a string of 1 to 64 letters, digits, _ or -, got " + show(raw)}
	}
	raw = d.fields["tid"]
	tid, ok := jsonID(raw)
	if !ok || !ValidID(tid) {
		return &NotPackedError{ReasonTIDUnusable, "V03: tid must be a whole number from 1 to 9223372036854775807 without sign, point, exponent, spaces or leading zero, got " + show(raw)}
	}
	d.p.ShopID, d.p.TID = shop, tid
	return nil
}

func (d *decoder) rest() {
	p := d.p
	p.OutSID = NormalizeWaybill(d.string("out_sid", "V04"))
	p.CompanyCode = NormalizeCarrier(d.string("company_code", "V08"))
	p.Shipment = Shipment{
		ShopID: p.ShopID, TID: p.TID, Split: "0",
		OutSID: d.part("out_sid", p.OutSID), CompanyCode: d.part("company_code", p.CompanyCode),
	}
	d.split()
	d.subTID()
	p.SenderID = d.id("sender_id")
	p.CancelID = d.id("cancel_id")
	p.Feature = d.string("feature", "V15")
	d.vvtype()
	p.Platform, _ = jsonString(d.fields["platform"])
	p.OrderKind, _ = jsonString(d.fields["order_kind"])
	p.OrderGroup, _ = jsonString(d.fields["order_group"])
	p.PaidAt = d.time("paid_at")
	p.CollectedAt = d.time("collected_at")
	p.Items = jsonItems(d.fields["items"])
}

// time returns a field that is a time, else the zero time.
func (d *decoder) time(field string) time.Time {
	s, _ := jsonString(d.fields[field])
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}
	}
	return at
}

func (d *decoder) split() {
	raw, ok := d.fields["is_split"]
	if !ok || isNull(raw) {
		return
	}
	switch string(raw) {
	case "0":
	case "1":
		d.p.IsSplit, d.p.Shipment.Split = 1, "1"
	default:
		d.p.Shipment.Split = part(string(raw))
		d.violate("V12", "is_split", "is_split must be the number 0 or 1, got "+show(raw))
	}
}

func (d *decoder) subTID() {
	raw, ok := d.fields["sub_tid"]
	if !ok || isNull(raw) {
		return
	}
	var ids []string
	var items []json.RawMessage
	if s, ok := jsonString(raw); ok {
		if s != "" {
			ids = strings.Split(s, ",")
		}
	} else if err := json.Unmarshal(raw, &items); err != nil {
		ids = []string{string(raw)}
		d.violate("V14", "sub_tid", `sub_tid must be a string like "1,2,3" or an array of ids, got `+show(raw))
	}
	bad := -1
	for i, item := range items {
		id, ok := jsonID(item)
		if !ok {
			id = string(item)
			if bad < 0 {
				bad = i
			}
		}
		ids = append(ids, id)
	}
	if bad >= 0 {
		d.violate("V14", "sub_tid", "sub_tid must hold ids as strings or whole numbers, got "+show(items[bad]))
	}
	d.p.SubTID = ids
	d.p.Shipment.SubTID = subParts(ids)
}

func (d *decoder) vvtype() {
	raw, ok := d.fields["vvtype"]
	if !ok || isNull(raw) {
		return
	}
	if len(raw) == 1 && raw[0] >= '1' && raw[0] <= '4' {
		d.p.VVType = int(raw[0] - '0')
		return
	}
	d.violate("V18", "vvtype", "vvtype must be a number from 1 to 4, got "+show(raw))
}

// string returns a field that must be a string; absent and null are left to the
// rules about presence.
func (d *decoder) string(field, rule string) string {
	raw, ok := d.fields[field]
	if !ok || isNull(raw) {
		return ""
	}
	s, ok := jsonString(raw)
	if !ok {
		d.violate(rule, field, field+" must be a string, got "+show(raw))
	}
	return s
}

// part returns the part of the shipment that a string field makes, given the
// field's normalised text. A field of another type is no such text: the number
// 1234567890 is not the waybill "1234567890", or the event that repairs the
// type would be answered with the failure of the one before. Normalised ASCII
// has no lower-case letters, so that the prefix keeps them apart.
func (d *decoder) part(field, text string) string {
	raw := d.fields[field]
	if _, ok := jsonString(raw); ok || isNull(raw) {
		return part(text)
	}
	return part("json:" + string(raw))
}

func (d *decoder) id(field string) string {
	raw, ok := d.fields[field]
	if !ok || isNull(raw) {
		return ""
	}
	id, ok := jsonID(raw)
	if !ok {
		d.violate("V19", field, field+" must be an id as a string or a whole number, got "+show(raw))
		return ""
	}
	return id
}

func (d *decoder) violate(rule, field, message string) {
	d.p.Violations = append(d.p.Violations, Violation{Rule: rule, Field: field, Message: message})
}

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

// jsonString returns the text of a JSON string.
func jsonString(raw json.RawMessage) (string, bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", false
	}
	return s, true
}

// jsonID returns the digits of a JSON string or integer, exactly as written.
func jsonID(raw json.RawMessage) (string, bool) {
	if s, ok := jsonString(raw); ok {
		return s, true
	}
	return string(raw), intPattern.Match(raw)
}

// jsonItems returns the items of a JSON array of objects like
// {"oid": "1001", "quantity": 2}. It returns nil if there are none, if there are
// too many, or if one of them is something else: a part of an order would be
// taken for the whole.
func jsonItems(raw json.RawMessage) []Item {
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil || len(list) == 0 || len(list) > maxItems {
		return nil
	}
	items := make([]Item, len(list))
	for i, one := range list {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(one, &fields); err != nil {
			return nil
		}
		oid, isID := jsonID(fields["oid"])
		quantity, isQuantity := jsonQuantity(fields["quantity"])
		if !isID || !ValidID(oid) || !isQuantity {
			return nil
		}
		items[i] = Item{OID: oid, Quantity: quantity}
	}
	return items
}

// jsonQuantity returns the value of a JSON number that counts something, and 0
// for what is left out.
func jsonQuantity(raw json.RawMessage) (n int, ok bool) {
	if isNull(raw) {
		return 0, true
	}
	if !intPattern.Match(raw) {
		return 0, false
	}
	n, err := strconv.Atoi(string(raw))
	return n, err == nil && n > 0
}

// show returns a JSON value for a message, cut short.
func show(raw json.RawMessage) string {
	const limit = 60
	if len(raw) == 0 {
		return "nothing"
	}
	if len(raw) <= limit {
		return string(raw)
	}
	return fmt.Sprintf("%s (%d bytes)", cut(string(raw), limit), len(raw))
}
