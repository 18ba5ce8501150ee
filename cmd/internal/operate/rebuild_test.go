package operate

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"packship/schema"
)

// TestRebuild makes packed events of failed ones in every form that an event may
// have.
func TestRebuild(t *testing.T) {
	const id, made = "0b1f", "redrive-0b1f"
	structured := []schema.Header{{Key: "content-type", Value: []byte("application/cloudevents+json; charset=UTF-8")}}
	capitals := []schema.Header{{Key: "Content-Type", Value: []byte("application/cloudevents+json")}}
	change := func(assignments ...string) []Change {
		var all []Change
		for _, a := range assignments {
			c, err := ParseChange(a)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
		}
		return all
	}
	tests := map[string]struct {
		value   string
		headers []schema.Header
		changes []Change
		want    string
	}{
		"bare": {
			`{"shop_id":"s", "tid":12345678901234567890 ,"x":{"é":[1, 2.50]}}`, nil, nil,
			`{"shop_id":"s","tid":12345678901234567890,"x":{"é":[1, 2.50]},"event_id":"redrive-0b1f","redrive_of":"0b1f"}`,
		},
		"with an id": {`{"event_id":"e","tid":"1"}`, nil, nil, `{"event_id":"redrive-0b1f","tid":"1","redrive_of":"0b1f"}`},
		"redriven before": {
			`{"event_id":"redrive-x","redrive_of":"x"}`,
			[]schema.Header{{Key: "redrive_of", Value: []byte("x")}},
			nil,
			`{"event_id":"redrive-0b1f","redrive_of":"0b1f"}`,
		},
		"twice the same name": {`{"event_id":"a","event_id":"b","z":1,"z":2}`, nil, nil, `{"event_id":"redrive-0b1f","z":1,"z":2,"redrive_of":"0b1f"}`},
		"byte order mark":     {"\ufeff{}", nil, nil, `{"event_id":"redrive-0b1f","redrive_of":"0b1f"}`},
		"set": {
			`{"out_sid":"A","vvtype":1,"cancel_id":5,"feature":"f"}`, nil,
			change("out_sid=B<&>", "vvtype=2", "cancel_id=", "sub_tid=1,2", "is_split=1"),
			`{"out_sid":"B<&>","vvtype":2,"feature":"f","event_id":"redrive-0b1f","redrive_of":"0b1f","sub_tid":"1,2","is_split":1}`,
		},
		"binary mode": {
			`{"tid":"1"}`,
			[]schema.Header{{Key: "ce_id", Value: []byte("e")}, {Key: "ce_type", Value: []byte(schema.TypePacked)}},
			nil,
			`{"tid":"1","event_id":"redrive-0b1f","redrive_of":"0b1f"}`,
		},
		"structured": {
			`{"specversion":"1.0","id":"e","data":{"tid":"1"},"source":"/wms"}`, structured, nil,
			`{"specversion":"1.0","id":"redrive-0b1f","data":{"tid":"1","event_id":"redrive-0b1f","redrive_of":"0b1f"},"source":"/wms"}`,
		},
		"structured, header in capitals": {
			`{"specversion":"1.0","id":"e","data":{"tid":"1"},"source":"/wms"}`, capitals, nil,
			`{"specversion":"1.0","id":"redrive-0b1f","data":{"tid":"1","event_id":"redrive-0b1f","redrive_of":"0b1f"},"source":"/wms"}`,
		},
		"structured, data as text": {
			`{"id":"e","data":"{\"tid\":\"1\"}"}`, structured, nil,
			`{"id":"redrive-0b1f","data":"{\"tid\":\"1\",\"event_id\":\"redrive-0b1f\",\"redrive_of\":\"0b1f\"}"}`,
		},
		"structured, base64": {
			`{"id":"e","data":null,"data_base64":"` + base64.StdEncoding.EncodeToString([]byte(`{"tid":"1"}`)) + `"}`, structured, nil,
			`{"id":"redrive-0b1f","data":null,"data_base64":"` + base64.StdEncoding.EncodeToString([]byte(`{"tid":"1","event_id":"redrive-0b1f","redrive_of":"0b1f"}`)) + `"}`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			rec := &schema.Record{Key: []byte("k"), Value: []byte(tt.value), Headers: tt.headers}
			got, err := rebuild(rec, id, tt.changes)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got.Value)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if string(got.Key) != "k" {
				t.Errorf("key %q", got.Key)
			}
			marks := 0
			for _, h := range got.Headers {
				switch {
				case h.Key == redriveMark:
					marks++
					if string(h.Value) != id {
						t.Errorf("mark %q", h.Value)
					}
				case h.Key == "ce_id" && string(h.Value) != made:
					t.Errorf("ce_id %q", h.Value)
				}
			}
			if marks != 1 {
				t.Errorf("%d marks, want 1", marks)
			}
			for _, h := range tt.headers {
				if _, ok := got.Header(h.Key); !ok {
					t.Errorf("header %s is lost", h.Key)
				}
			}
			if string(rec.Value) != tt.value {
				t.Error("the original was changed")
			}
		})
	}
	for name, rec := range map[string]*schema.Record{
		"no JSON":     {Value: []byte("{")},
		"two":         {Value: []byte("{}{}")},
		"no object":   {Value: []byte("[]")},
		"no envelope": {Value: []byte(`"x"`), Headers: structured},
		"no data":     {Value: []byte(`{"id":"e"}`), Headers: structured},
		"no event":    {Value: []byte(`{"id":"e","data":"x"}`), Headers: structured},
	} {
		if got, err := rebuild(rec, id, nil); err == nil {
			t.Errorf("%s: got %s, want an error", name, got.Value)
		}
	}
}

// FuzzRebuild rebuilds whatever is a packed event, and reads it again: it is the
// same event in every field under another name.
func FuzzRebuild(f *testing.F) {
	f.Add([]byte(packedEvent(1, "")), false)
	f.Add([]byte(`{"shop_id":"s","tid":1,"out_sid":1,"sub_tid":[1,"2"],"is_split":true,"x":null,"x":"\u00e9"}`), false)
	f.Add([]byte(`{"shop_id":"s","tid":1,"items":[{"oid":11,"quantity":2,"sku":"x"},{"oid":"12"}],"platform":"taobao"}`), false)
	f.Add([]byte(`{"id":"e","data":`+packedEvent(1, "")+`}`), true)
	f.Add([]byte(`{"id":"e","data":null,"data":"{}","data_base64":"e30="}`), true)
	f.Fuzz(func(t *testing.T, value []byte, envelope bool) {
		rec := &schema.Record{Value: value}
		if envelope {
			rec.Headers = []schema.Header{{Key: "content-type", Value: []byte("application/cloudevents+json")}}
		}
		was, err := schema.DecodePacked(rec)
		if err != nil {
			t.Skip()
		}
		made, err := rebuild(rec, "0b1f", nil)
		if err != nil {
			t.Fatalf("%q: %v", value, err)
		}
		is, err := schema.DecodePacked(made)
		if err != nil {
			t.Fatalf("%q became %q: %v", value, made.Value, err)
		}
		was.EventID = "redrive-0b1f"
		if diff := cmp.Diff(was, is); diff != "" {
			t.Errorf("%q became %q (-was +is):\n%s", value, made.Value, diff)
		}
		again, err := rebuild(made, "0b1f", nil)
		if err != nil || !bytes.Equal(again.Value, made.Value) {
			t.Errorf("rebuilt twice: %q and then %q, %v", made.Value, again.Value, err)
		}
		if !json.Valid(made.Value) {
			t.Errorf("%q is no JSON", made.Value)
		}
	})
}

func TestParseChange(t *testing.T) {
	for text, want := range map[string]Change{
		"out_sid=SF1":     {"out_sid", json.RawMessage(`"SF1"`)},
		" out_sid =a=b":   {"out_sid", json.RawMessage(`"a=b"`)},
		"is_split=1":      {"is_split", json.RawMessage(`1`)},
		"vvtype=x":        {"vvtype", json.RawMessage(`"x"`)},
		"sub_tid=1,2":     {"sub_tid", json.RawMessage(`"1,2"`)},
		"company_code=顺丰": {"company_code", json.RawMessage(`"顺丰"`)},
		"items=11:2;12":   {"items", json.RawMessage(`[{"oid":"11","quantity":2},{"oid":"12"}]`)},
		"feature=":        {"feature", nil},
	} {
		if got, err := ParseChange(text); err != nil || got.Field != want.Field || string(got.Value) != string(want.Value) {
			t.Errorf("%q: got %s=%s, %v", text, got.Field, got.Value, err)
		}
	}
	for text, want := range map[string]string{
		"out_sid": "is not FIELD=VALUE", "tid=1": "no field that can be set", "event_id=x": "no field that can be set", "shop_id=1": "can be set", "=1": "can be set",
	} {
		if _, err := ParseChange(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestParseCorrections(t *testing.T) {
	c, err := ParseCorrections([]byte("TID;out_sid;Shop_ID;result_id;vvtype\n1;SF1;;;\n\"=\"\"2\"\"\";;s;;2\n3;;;r1;\n3;X;;r2;\n"))
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		line    int
		changes string
	}
	of := func(tid, shop, id string) row {
		found := c.of(&schema.Result{TID: tid, ShopID: shop, ResultID: id})
		if found == nil {
			return row{}
		}
		r := row{line: found.line}
		for _, change := range found.changes {
			r.changes += change.Field + "=" + string(change.Value) + " "
		}
		return r
	}
	for name, tt := range map[string]struct {
		tid, shop, id string
		want          row
	}{
		"by order":      {"1", "any", "any", row{2, `out_sid="SF1" `}},
		"by shop":       {"2", "s", "any", row{3, `vvtype=2 `}},
		"another shop":  {"2", "t", "any", row{}},
		"by result":     {"3", "s", "r2", row{5, `out_sid="X" `}},
		"no change":     {"3", "s", "r1", row{4, ""}},
		"other result":  {"3", "s", "r3", row{}},
		"another order": {"4", "s", "r1", row{}},
	} {
		if got := of(tt.tid, tt.shop, tt.id); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", name, got, tt.want)
		}
	}
	for name, tt := range map[string]struct{ table, want string }{
		"empty":       {"", "table is empty"},
		"no rows":     {"tid,out_sid\n", "no rows"},
		"no tid":      {"out_sid\nSF1\n", "lacks tid"},
		"no field":    {"tid,price\n1,2\n", `"price" is no field`},
		"bad tid":     {"tid,out_sid\n0012,SF\n", "is not a whole number"},
		"shortened":   {"tid,out_sid\n3.94189E+18,SF\n", "a spreadsheet has shortened"},
		"twice":       {"tid,out_sid\n1,A\n1,B\n", "lines 2 and 3 are about the same order"},
		"overlapping": {"tid,result_id,out_sid\n1,,A\n1,r,B\n", "tell them apart by shop_id or result_id"},
		"too wide":    {"tid,out_sid\n1,A,B\n", "outside the named columns"},
		"broken":      {"tid,out_sid\n1,\"A\n", "cannot be read"},
	} {
		if _, err := ParseCorrections([]byte(tt.table)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

// FuzzParseCorrections reads whatever somebody takes for a table.
func FuzzParseCorrections(f *testing.F) {
	f.Add([]byte("tid,out_sid\n1,SF1\n"))
	f.Add([]byte("tid;shop_id;result_id;vvtype\n\"=\"\"1\"\"\";s;r;2\n\n;;;\n"))
	f.Add([]byte("tid\tout_sid\n1\t\"x\ny\"\n"))
	f.Fuzz(func(t *testing.T, table []byte) {
		c, err := ParseCorrections(table)
		if err != nil {
			return
		}
		for _, row := range c.rows {
			if !schema.ValidID(row.tid) || c.of(&schema.Result{TID: row.tid, ShopID: row.shop, ResultID: row.resultID}) == nil {
				t.Errorf("row %+v is about nothing", row)
			}
		}
	})
}

var testTime = time.Date(2026, 11, 24, 2, 0, 0, 0, time.UTC)

// FuzzParsePoint reads whatever somebody writes for a place.
func FuzzParsePoint(f *testing.F) {
	for _, s := range []string{"first", "12", "-1", "2026-11-24T02:00:00Z", "90m", "3d", "1e3", "", "9223372036854775808", "-5m", "999999d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePoint(text, testTime)
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Error("an error without a text")
			}
			return
		}
		if p.IsZero() && text != "" {
			t.Errorf("%q is no place", text)
		}
		if p.String() != text || p.offset < 0 {
			t.Errorf("%q became %+v", text, p)
		}
	})
}
