package operate

import (
	"fmt"
	"slices"
	"strings"

	"packship/cmd/internal/pack"
	"packship/schema"
)

// ParseChange reads a change from FIELD=VALUE. Without a value the field is
// removed.
func ParseChange(assignment string) (Change, error) {
	field, value, ok := strings.Cut(assignment, "=")
	field = strings.TrimSpace(field)
	if !ok {
		return Change{}, fmt.Errorf("%q is not FIELD=VALUE", assignment)
	}
	if !slices.Contains(pack.Settable(), field) {
		return Change{}, fmt.Errorf("%q is no field that can be set; there are %s", field, strings.Join(pack.Settable(), ", "))
	}
	if value == "" {
		return Change{Field: field}, nil
	}
	return Change{Field: field, Value: pack.Value(field, value)}, nil
}

// Corrections are the changes of a table: a row for each order.
type Corrections struct {
	rows  []*correction
	byTID map[string][]*correction
}

type correction struct {
	line                int
	tid, shop, resultID string
	changes             []Change
	used                int // how many failures it is about
}

// ParseCorrections reads a table whose first row names its columns: tid, which
// every row has, shop_id and result_id, which narrow the row down, and fields of
// a packed event. An empty cell leaves its field as it is.
func ParseCorrections(table []byte) (*Corrections, error) {
	c := &Corrections{byTID: map[string][]*correction{}}
	for row, err := range pack.Rows(table, "tid") {
		if err != nil {
			return nil, err
		}
		made := &correction{line: row.Number, tid: row.Text("tid"), shop: row.Text("shop_id"), resultID: row.Text("result_id")}
		if !schema.ValidID(made.tid) {
			return nil, fmt.Errorf("line %d has %q for a tid, which is not a whole number from 1 to 9223372036854775807", row.Number, made.tid)
		}
		for _, field := range sortedKeys(row.Fields) {
			switch {
			case field == "tid" || field == "shop_id" || field == "result_id":
			case !slices.Contains(pack.Settable(), field):
				return nil, fmt.Errorf("%q is no field that can be set; the columns are tid, shop_id, result_id, %s", field, strings.Join(pack.Settable(), ", "))
			default:
				made.changes = append(made.changes, Change{field, row.Fields[field]})
			}
		}
		for _, other := range c.byTID[made.tid] {
			if made.overlaps(other) {
				return nil, fmt.Errorf("lines %d and %d are about the same order; tell them apart by shop_id or result_id", other.line, made.line)
			}
		}
		c.rows = append(c.rows, made)
		c.byTID[made.tid] = append(c.byTID[made.tid], made)
	}
	if len(c.rows) == 0 {
		return nil, fmt.Errorf("the table has no rows")
	}
	return c, nil
}

// overlaps reports whether a failure of the order could be meant by both rows.
func (c *correction) overlaps(other *correction) bool {
	differ := func(a, b string) bool { return a != "" && b != "" && a != b }
	return !differ(c.shop, other.shop) && !differ(c.resultID, other.resultID)
}

// of returns the row that is about a failed result, nil if none is.
func (c *Corrections) of(r *schema.Result) *correction {
	for _, row := range c.byTID[r.TID] {
		if (row.shop == "" || row.shop == r.ShopID) && (row.resultID == "" || row.resultID == r.ResultID) {
			return row
		}
	}
	return nil
}
