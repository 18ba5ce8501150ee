package pack

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/unicode"

	"packship/schema"
)

// Format is the format of a file of orders.
type Format string

// The formats.
const (
	JSONL Format = "jsonl"
	CSV   Format = "csv"
)

// Detect tells the format of a file by the end of its name, or else by its first
// character. It returns "" for an empty file of unknown name.
func Detect(name string, data []byte) Format {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".jsonl", ".ndjson", ".json":
		return JSONL
	case ".csv", ".tsv", ".txt":
		return CSV
	}
	switch first := bytes.TrimSpace(data); {
	case len(first) == 0:
		return ""
	case first[0] == '{':
		return JSONL
	default:
		return CSV
	}
}

// Line is one order of a file.
type Line struct {
	Number int
	TID    string // as written; "" if there is none
	// Packed is the order, nil if the line is no packed event at all.
	Packed *schema.Packed
	// Value is the packed event, nil if Packed is.
	Value []byte
	// Violations are the rules that the line breaks by itself. Those that
	// depend on carriers and accounts are not among them.
	Violations []schema.Violation
	// Warnings are for a person; they refuse nothing.
	Warnings []string
}

// Malformed returns the violations that only this package knows of: those of
// fields that a packed event carries without judging them.
func (l *Line) Malformed() []schema.Violation {
	if l.Packed == nil || l.Packed.OccurredAt == "" {
		return nil
	}
	if _, err := time.Parse(time.RFC3339, l.Packed.OccurredAt); err != nil {
		return []schema.Violation{{
			Field:   "occurred_at",
			Message: fmt.Sprintf("occurred_at is %q but must be RFC 3339, like 2026-11-24T02:00:00Z", l.Packed.OccurredAt),
		}}
	}
	return nil
}

// fieldNames lists the fields of a packed event, in the order in which they are
// written.
var fieldNames = []string{
	"event_id", "occurred_at", "shop_id", "tid", "out_sid", "company_code",
	"is_split", "sub_tid", "sender_id", "cancel_id", "feature", "vvtype",
	"platform", "order_kind", "order_group", "paid_at", "collected_at",
}

// required lists the fields that every order has.
var required = []string{"shop_id", "tid", "out_sid", "company_code"}

// Read reads all of a file and returns its text as UTF-8 without a byte order
// mark.
func Read(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(data, []byte("\xef\xbb\xbf")):
		data = data[3:]
	case bytes.HasPrefix(data, []byte("\xff\xfe")), bytes.HasPrefix(data, []byte("\xfe\xff")):
		return decode(unicode.UTF16(unicode.BigEndian, unicode.ExpectBOM), data, "UTF-16")
	}
	if utf8.Valid(data) {
		return data, nil
	}
	return decode(simplifiedchinese.GB18030, data, "UTF-8 or GB18030")
}

func decode(e encoding.Encoding, data []byte, name string) ([]byte, error) {
	text, err := e.NewDecoder().Bytes(data)
	if err != nil || bytes.ContainsRune(text, utf8.RuneError) {
		return nil, fmt.Errorf("the text is not %s; save it as UTF-8", name)
	}
	return text, nil
}

// Lines iterates over the orders of a text. An error is about the file as a
// whole and ends the iteration.
func Lines(text []byte, format Format) iter.Seq2[Line, error] {
	switch format {
	case JSONL:
		return jsonLines(text)
	case CSV:
		return csvLines(text)
	default:
		return func(yield func(Line, error) bool) {
			yield(Line{}, fmt.Errorf("format %q is not known; use jsonl or csv", format))
		}
	}
}

func jsonLines(text []byte) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		number := 0
		for raw := range bytes.Lines(text) {
			number++
			raw = bytes.TrimSpace(raw)
			if len(raw) == 0 {
				continue
			}
			var fields map[string]json.RawMessage
			if err := json.Unmarshal(raw, &fields); err != nil || fields == nil {
				what := "is no JSON object"
				if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
					what = "is no JSON: " + syntax.Error()
				}
				line := Line{Number: number, Violations: []schema.Violation{{Field: "", Message: "the line " + what}}}
				if !yield(line, nil) {
					return
				}
				continue
			}
			if !yield(order(number, fields), nil) {
				return
			}
		}
	}
}

var (
	// scientific is how a spreadsheet shows a number that is too long for its
	// cell. It always writes the sign; a waybill like 12E34 is none.
	scientific = regexp.MustCompile(`^[+-]?[0-9]+(?:[.,][0-9]+)?[eE][+-][0-9]+$`)
	// rounded is a number of more than the 15 digits that a spreadsheet keeps.
	rounded = regexp.MustCompile(`^[1-9][0-9]{14}0+$`)
)

// idRules names the fields that hold ids, with the rule that their form belongs
// to.
var idRules = []struct{ field, rule string }{
	{"tid", "V03"}, {"out_sid", "V05"}, {"sub_tid", "V14"}, {"sender_id", "V19"}, {"cancel_id", "V19"},
}

// order makes the event of one order.
func order(number int, fields map[string]json.RawMessage) Line {
	line := Line{Number: number, TID: text(fields["tid"])}
	for _, id := range idRules {
		switch value := text(fields[id.field]); {
		case scientific.MatchString(value):
			line.Violations = append(line.Violations, schema.Violation{
				Rule: id.rule, Field: id.field,
				Message: fmt.Sprintf("%s is %s, a number that a spreadsheet has shortened so that its digits are lost; format the column as text and export it again", id.field, value),
			})
		case rounded.MatchString(value) && len(value) > 15 && id.field != "out_sid":
			line.Warnings = append(line.Warnings,
				fmt.Sprintf("%s %s ends in zeros from the 16th digit on; a spreadsheet may have rounded it", id.field, value))
		}
	}
	for name := range fields {
		if !slices.Contains(fieldNames, name) {
			line.Warnings = append(line.Warnings, fmt.Sprintf("%q is not a field of a packed event and is left out", name))
		}
	}
	slices.Sort(line.Warnings)
	if len(line.Violations) > 0 {
		return line
	}
	value := encode(fields)
	packed, err := schema.DecodePacked(&schema.Record{Value: value})
	if err != nil {
		v := schema.Violation{Message: err.Error()}
		if e, ok := errors.AsType[*schema.NotPackedError](err); ok {
			v.Message = e.Detail
			switch e.Reason {
			case schema.ReasonShopUnusable:
				v.Rule, v.Field = "V01", "shop_id"
			case schema.ReasonTIDUnusable:
				v.Rule, v.Field = "V03", "tid"
			}
		}
		line.Violations = append(line.Violations, v)
		return line
	}
	line.Packed, line.Value, line.Violations = packed, value, packed.Violations
	return line
}

// text returns what a person has written for a JSON value.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw)
}

// encode writes the known fields in their order, with their values as they are.
func encode(fields map[string]json.RawMessage) []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	for _, name := range fieldNames {
		raw, ok := fields[name]
		if !ok {
			continue
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:", name)
		if err := json.Compact(&b, raw); err != nil {
			panic(err) // a value that was decoded before
		}
	}
	b.WriteByte('}')
	return b.Bytes()
}

// Headers returns the headers of a packed event: a CloudEvent in binary mode,
// whose id depends on the event alone.
func Headers(p *schema.Packed) []schema.Header {
	return []schema.Header{
		{Key: "ce_specversion", Value: []byte("1.0")},
		{Key: "ce_id", Value: []byte(p.EventID)},
		{Key: "ce_type", Value: []byte(schema.TypePacked)},
		{Key: "ce_source", Value: []byte("packship/pack")},
		{Key: "ce_subject", Value: []byte(p.TID)},
		{Key: "content-type", Value: []byte("application/json")},
	}
}
