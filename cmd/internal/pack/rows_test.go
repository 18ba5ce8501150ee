package pack

import (
	"fmt"
	"strings"
	"testing"
)

func TestRows(t *testing.T) {
	for name, tt := range map[string]struct{ table, want, err string }{
		"plain":         {"tid,vvtype,out_sid\n1,2,SF1\n", `2: tid="1" vvtype=2 out_sid="SF1" `, ""},
		"semicolons":    {"TID ; out_sid\n 1 ; a;b\n", "", "outside the named columns"},
		"empty cells":   {"tid,out_sid\n1,\n,\n2,x\n", `2: tid="1" |4: tid="2" out_sid="x" `, ""},
		"wrapped":       {"tid,out_sid\n\"=\"\"1\"\"\",x\n", `2: tid="1" out_sid="x" `, ""},
		"not there":     {"out_sid\nx\n", "", "the header row lacks tid; it names out_sid"},
		"twice":         {"tid,tid\n1,2\n", "", "names tid twice"},
		"empty":         {"", "", "the table is empty"},
		"shortened":     {"tid,sender_id\n1,1.2E+12\n", "", "line 2: sender_id is 1.2E+12, a number that a spreadsheet has shortened"},
		"broken quotes": {"tid\n\"1\n", "", "the table cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			var failed error
			for row, err := range Rows([]byte(tt.table), "tid") {
				if err != nil {
					failed = err
					break
				}
				line := fmt.Sprintf("%d: ", row.Number)
				for _, field := range []string{"tid", "vvtype", "out_sid"} {
					if raw, ok := row.Fields[field]; ok {
						line += field + "=" + string(raw) + " "
					}
				}
				got = append(got, line)
			}
			if tt.err != "" {
				if failed == nil || !strings.Contains(failed.Error(), tt.err) {
					t.Errorf("got %v, want %q", failed, tt.err)
				}
				return
			}
			if failed != nil || strings.Join(got, "|") != tt.want {
				t.Errorf("got %s, %v; want %s", strings.Join(got, "|"), failed, tt.want)
			}
		})
	}
}
