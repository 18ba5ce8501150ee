package pack

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

// Row is a row of a table whose first row names the columns.
type Row struct {
	Number int
	// Fields are the cells that are not empty, as a packed event would hold
	// them.
	Fields map[string]json.RawMessage
}

// Text returns a field as it was written, "" if the row has none.
func (r Row) Text(field string) string {
	if raw, ok := r.Fields[field]; ok {
		return text(raw)
	}
	return ""
}

// Rows iterates over the rows of a table that has at least the needed columns.
// An error ends the iteration; it also comes for an id that a spreadsheet has
// shortened.
func Rows(table []byte, needed ...string) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		r := csv.NewReader(bytes.NewReader(table))
		r.Comma = separator(table)
		r.FieldsPerRecord = -1
		columns, err := header(r, needed)
		if err != nil {
			yield(Row{}, err)
			return
		}
		for {
			cells, err := r.Read()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(Row{}, fmt.Errorf("the table cannot be read: %w", err))
				return
			}
			number, _ := r.FieldPos(0)
			row, err := namedRow(number, columns, cells)
			if err != nil {
				yield(Row{}, err)
				return
			}
			if len(row.Fields) > 0 && !yield(row, nil) {
				return
			}
		}
	}
}

func namedRow(number int, columns, cells []string) (Row, error) {
	row := Row{Number: number, Fields: map[string]json.RawMessage{}}
	for i, cell := range cells {
		cell = strings.TrimSpace(cell)
		if m := wrapped.FindStringSubmatch(cell); m != nil {
			cell = strings.TrimSpace(m[1])
		}
		switch {
		case cell == "":
		case i >= len(columns) || columns[i] == "":
			return row, fmt.Errorf("line %d has a value (%q) outside the named columns; quote a value that holds the separator", number, cell)
		default:
			row.Fields[columns[i]] = cellValue(columns[i], cell)
		}
	}
	for _, id := range idRules {
		if value := row.Text(id.field); scientific.MatchString(value) {
			return row, fmt.Errorf("line %d: %s is %s, a number that a spreadsheet has shortened so that its digits are lost; format the column as text and export it again", number, id.field, value)
		}
	}
	return row, nil
}

// Settable lists the fields of a packed event that may be given another value
// without making it the event of another order.
func Settable() []string {
	return []string{
		"occurred_at", "out_sid", "company_code", "is_split", "sub_tid", "sender_id", "cancel_id", "feature", "vvtype",
		"platform", "order_kind", "order_group", "paid_at", "collected_at", "items",
	}
}

// Value turns what a person has written for a field into JSON of the type that
// the field has.
func Value(field, written string) json.RawMessage { return cellValue(field, written) }
