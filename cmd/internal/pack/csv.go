package pack

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"regexp"
	"slices"
	"strings"

	"packship/schema"
)

// csvLines iterates over the orders of a table whose first row names the
// fields.
func (f *File) csvLines() iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		head, _ := f.text.Peek(sample) // its error, if any, comes with the rows
		r := csv.NewReader(f.text)
		r.Comma = separator(head)
		r.FieldsPerRecord = -1 // counted here, so that a short row is one bad line
		columns, err := header(r, required)
		if err != nil {
			yield(Line{}, err)
			return
		}
		for {
			f.limit.next()
			row, err := r.Read()
			if errors.Is(err, io.EOF) {
				return
			}
			if broken, ok := errors.AsType[*csv.ParseError](err); ok {
				line := Line{Number: broken.StartLine, Violations: []schema.Violation{{Message: "the row cannot be read: " + broken.Err.Error()}}}
				if !yield(line, nil) {
					return
				}
				continue
			}
			if err != nil {
				yield(Line{}, err)
				return
			}
			number, _ := r.FieldPos(0)
			if line, ok := tableRow(number, columns, row); ok && !yield(line, nil) {
				return
			}
		}
	}
}

// separator finds what separates the columns, by the first row: spreadsheets
// write semicolons where the comma is a decimal sign, and tabs for UTF-16.
func separator(text []byte) rune {
	first, _, _ := bytes.Cut(text, []byte("\n"))
	best, most := ',', bytes.Count(first, []byte(","))
	for _, c := range []rune{';', '\t'} {
		if n := bytes.Count(first, []byte(string(c))); n > most {
			best, most = c, n
		}
	}
	return best
}

// header reads the names of the columns, of which some are needed.
func header(r *csv.Reader, needed []string) ([]string, error) {
	row, err := r.Read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("the table is empty; its first row must name the fields")
	}
	if err != nil {
		return nil, fmt.Errorf("the header row cannot be read: %w", err)
	}
	columns := make([]string, len(row))
	for i, name := range row {
		name = strings.ToLower(strings.TrimSpace(name))
		if name != "" && slices.Contains(columns[:i], name) {
			return nil, fmt.Errorf("the header row names %s twice", name)
		}
		columns[i] = name
	}
	var missing []string
	for _, name := range needed {
		if !slices.Contains(columns, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("the header row lacks %s; it names %s", strings.Join(missing, ", "), strings.Join(columns, ", "))
	}
	return columns, nil
}

// wrapped is how some programs keep a spreadsheet from reading an id as a
// number.
var wrapped = regexp.MustCompile(`^="(.*)"$`)

var digits = regexp.MustCompile(`^(?:0|[1-9][0-9]*)$`)

// tableRow makes the order of a row, unless the row is empty.
func tableRow(number int, columns, row []string) (Line, bool) {
	fields := map[string]json.RawMessage{}
	var extra []string
	for i, cell := range row {
		cell = strings.TrimSpace(cell)
		if m := wrapped.FindStringSubmatch(cell); m != nil {
			cell = strings.TrimSpace(m[1])
		}
		switch {
		case cell == "":
		case i >= len(columns) || columns[i] == "":
			extra = append(extra, cell)
		default:
			fields[columns[i]] = cellValue(columns[i], cell)
		}
	}
	if len(fields) == 0 && len(extra) == 0 {
		return Line{}, false
	}
	line := order(number, fields)
	if len(extra) > 0 {
		line.Packed, line.Value = nil, nil
		line.Violations = append(line.Violations, schema.Violation{
			Message: fmt.Sprintf("the row has a value (%q) outside the named columns; quote a value that holds the separator", extra[0]),
		})
	}
	return line, true
}

// cellValue turns a cell into the JSON type that its field has.
func cellValue(column, cell string) json.RawMessage {
	if (column == "is_split" || column == "vvtype") && digits.MatchString(cell) {
		return json.RawMessage(cell)
	}
	if column == "items" {
		if list, ok := itemsCell(cell); ok {
			return list
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(cell); err != nil {
		panic(err) // a string is always encoded
	}
	return bytes.TrimSpace(b.Bytes())
}

// itemsCell reads the items of an order from a cell: ids with their quantities, if
// they are known, as in 1001:2;1002, or the JSON array itself.
func itemsCell(cell string) (json.RawMessage, bool) {
	var b bytes.Buffer
	if strings.HasPrefix(cell, "[") {
		err := json.Compact(&b, []byte(cell))
		return b.Bytes(), err == nil
	}
	b.WriteByte('[')
	for i, item := range strings.FieldsFunc(cell, func(r rune) bool { return r == ';' || r == ',' }) {
		oid, quantity, counted := strings.Cut(item, ":")
		oid, quantity = strings.TrimSpace(oid), strings.TrimSpace(quantity)
		if !schema.ValidID(oid) || counted && !schema.ValidID(quantity) {
			return nil, false
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"oid":%q`, oid)
		if counted {
			b.WriteString(`,"quantity":` + quantity)
		}
		b.WriteByte('}')
	}
	b.WriteByte(']')
	return b.Bytes(), true
}
