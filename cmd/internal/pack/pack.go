package pack

import (
	"bufio"
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
	case ".csv", ".tsv":
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
	"platform", "order_kind", "order_group", "paid_at", "collected_at", "items",
}

// required lists the fields that every order has.
var required = []string{"shop_id", "tid", "out_sid", "company_code"}

// Read reads all of a file and returns its text, see [Text].
func Read(r io.Reader) ([]byte, error) { return io.ReadAll(Text(r)) }

// File is a file of orders. It is read line by line, so that its size does not
// matter.
type File struct {
	Format Format
	text   *bufio.Reader
	limit  *lineLimit
}

// ErrEmpty is what Open returns for a file with nothing in it whose name does
// not tell its format.
var ErrEmpty = errors.New("is empty")

// Open begins to read a file. Without a format it is told by the file's name, or
// else by its content.
func Open(name string, r io.Reader, format Format) (*File, error) {
	f := &File{Format: format, limit: &lineLimit{in: Text(r), left: maxLine}}
	f.text = bufio.NewReaderSize(f.limit, sample)
	head, err := f.text.Peek(sample)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if f.Format == "" {
		f.Format = Detect(name, head)
	}
	switch f.Format {
	case JSONL, CSV:
		return f, nil
	case "":
		return nil, ErrEmpty
	default:
		return nil, fmt.Errorf("format %q is not known; use jsonl or csv", f.Format)
	}
}

// Lines iterates over the orders of the file, once. An error is about the file
// as a whole and ends the iteration.
func (f *File) Lines() iter.Seq2[Line, error] {
	if f.Format == CSV {
		return f.csvLines()
	}
	return f.jsonLines()
}

// maxLine bounds one line, or one row of a table, in bytes. An order is far
// shorter. A quotation mark that is never closed makes one row of all the rest.
const maxLine = 1 << 20

var errLongLine = fmt.Errorf("a line is longer than %d bytes; a quotation mark may not be closed", maxLine)

// lineLimit bounds what is read for one line.
type lineLimit struct {
	in   io.Reader
	left int
}

// next begins a line. What is buffered already may be of it.
func (l *lineLimit) next() { l.left = maxLine }

func (l *lineLimit) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errLongLine
	}
	n, err := l.in.Read(p)
	l.left -= n
	return n, err
}

func (f *File) jsonLines() iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		for number := 1; ; number++ {
			f.limit.next()
			raw, err := f.text.ReadBytes('\n')
			if err != nil && !errors.Is(err, io.EOF) {
				yield(Line{}, err)
				return
			}
			if line, ok := jsonLine(number, bytes.TrimSpace(raw)); ok && !yield(line, nil) {
				return
			}
			if err != nil {
				return
			}
		}
	}
}

// jsonLine makes the order of a line, unless that is empty.
func jsonLine(number int, raw []byte) (Line, bool) {
	if len(raw) == 0 {
		return Line{}, false
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil || fields == nil {
		what := "is no JSON object"
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			what = "is no JSON: " + syntax.Error()
		}
		return Line{Number: number, Violations: []schema.Violation{{Message: "the line " + what}}}, true
	}
	return order(number, fields), true
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
			// A dead letter has no place for the rule but its detail.
			v.Message = strings.TrimPrefix(v.Message, v.Rule+": ")
		}
		line.Violations = append(line.Violations, v)
		return line
	}
	if raw, ok := fields["items"]; ok && string(raw) != "null" && len(packed.Items) == 0 {
		line.Warnings = append(line.Warnings, "items is no list of an order's items and is not looked at")
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
