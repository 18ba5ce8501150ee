package pack

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/unicode"

	"packship/schema"
)

// collect reads a whole text and renders each line as "number: value" or
// "number! rule field", followed by its warnings.
func collect(t *testing.T, text []byte, format Format) ([]string, error) {
	t.Helper()
	var got []string
	for line, err := range lines(bytes.NewReader(text), format) {
		if err != nil {
			return got, err
		}
		if line.Packed != nil {
			got = append(got, fmt.Sprintf("%d: %s", line.Number, line.Value))
		}
		for _, v := range append(line.Violations, line.Malformed()...) {
			got = append(got, strings.TrimRight(fmt.Sprintf("%d! %s %s", line.Number, v.Rule, v.Field), " "))
		}
		for _, w := range line.Warnings {
			got = append(got, fmt.Sprintf("%d? %s", line.Number, w))
		}
	}
	return got, nil
}

// lines opens a text and reads it.
func lines(text io.Reader, format Format) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		f, err := Open("-", text, format)
		if err != nil {
			yield(Line{}, err)
			return
		}
		f.Lines()(yield)
	}
}

func TestLines(t *testing.T) {
	const head = "shop_id,tid,out_sid,company_code,is_split,sub_tid,vvtype\n"
	const one = `{"shop_id":"s","tid":"123","out_sid":"SF1","company_code":"SF"}`
	const noItems = "items is no list of an order's items and is not looked at"
	tests := map[string]struct {
		format Format
		text   string
		want   []string
	}{
		"csv":                 {CSV, head + "s,123,SF1,SF\n", []string{"2: " + one}},
		"types":               {CSV, head + "s,123,SF1,SF,1,\"1,2\",3\n", []string{`2: {"shop_id":"s","tid":"123","out_sid":"SF1","company_code":"SF","is_split":1,"sub_tid":"1,2","vvtype":3}`}},
		"crlf and no end":     {CSV, "shop_id,tid,out_sid,company_code\r\ns,123,SF1,SF", []string{"2: " + one}},
		"columns in disarray": {CSV, "TID, company_code ,shop_id,out_sid\n123,SF,s,SF1\n", []string{"2: " + one}},
		"semicolons":          {CSV, "shop_id;tid;out_sid;company_code\ns;123;SF1;SF\n", []string{"2: " + one}},
		"tabs":                {CSV, "shop_id\ttid\tout_sid\tcompany_code\ns\t123\tSF1\tSF\n", []string{"2: " + one}},
		"wrapped ids":         {CSV, head + "s,\"=\"\"123\"\"\",\"=\"\"SF1\"\"\",SF\n", []string{"2: " + one}},
		"spaces and tabs":     {CSV, head + " s ,\"123\t\", SF1 ,SF\n", []string{"2: " + one}},
		"empty rows":          {CSV, head + "\n,,,\ns,123,SF1,SF\n", []string{"4: " + one}},
		"quoted line end":     {CSV, "shop_id,tid,out_sid,company_code,feature\ns,123,SF1,SF,\"a\nb\"\ns,123,SF1,SF\n", []string{`2: {"shop_id":"s","tid":"123","out_sid":"SF1","company_code":"SF","feature":"a\nb"}`, "4: " + one}},
		"scientific tid":      {CSV, head + "s,3.94189E+18,SF1,SF\n", []string{"2! V03 tid"}},
		"scientific comma":    {CSV, head + "s,\"3,94189E+18\",SF1,SF\n", []string{"2! V03 tid"}},
		"scientific waybill":  {CSV, head + "s,1,7.31E+13,SF\n", []string{"2! V05 out_sid"}},
		"scientific twice":    {CSV, head + "s,3.9E+18,7.31E+13,SF\n", []string{"2! V03 tid", "2! V05 out_sid"}},
		"waybill with an E":   {CSV, head + "s,123,12E34,SF\n", []string{`2: {"shop_id":"s","tid":"123","out_sid":"12E34","company_code":"SF"}`}},
		"letters around E":    {CSV, head + "s,123,SFE34,SF\n", []string{`2: {"shop_id":"s","tid":"123","out_sid":"SFE34","company_code":"SF"}`}},
		"rounded tid": {CSV, head + "s,3941893279420000000,SF1,SF\n", []string{
			`2: {"shop_id":"s","tid":"3941893279420000000","out_sid":"SF1","company_code":"SF"}`,
			"2? tid 3941893279420000000 ends in zeros from the 16th digit on; a spreadsheet may have rounded it",
		}},
		"no shop":        {CSV, head + ",123,SF1,SF\n", []string{"2! V01 shop_id"}},
		"bad tid":        {CSV, head + "s,0012,SF1,SF\n", []string{"2! V03 tid"}},
		"bad split":      {CSV, head + "s,123,SF1,SF,yes\n", []string{`2: {"shop_id":"s","tid":"123","out_sid":"SF1","company_code":"SF","is_split":"yes"}`, "2! V12 is_split"}},
		"too many cells": {CSV, head + "s,123,SF1,SF,1,1,2,3\n", []string{"2!"}},
		"too few cells":  {CSV, head + "s,123\n", []string{`2: {"shop_id":"s","tid":"123"}`}},
		"unknown column": {CSV, "shop_id,tid,out_sid,company_code,colour\ns,123,SF1,SF,red\n", []string{"2: " + one, `2? "colour" is not a field of a packed event and is left out`}},
		"broken quote":   {CSV, head + "s,1\"2,SF1,SF\ns,123,SF1,SF\n", []string{"2!", "3: " + one}},
		"open quote":     {CSV, head + "s,123,SF1,SF\ns,\"123,SF1,SF\ns,1,1,1\n", []string{"2: " + one, "3!"}},
		"occurred":       {CSV, "occurred_at,shop_id,tid,out_sid,company_code\n2026-11-24 10:00,s,123,SF1,SF\n", []string{`2: {"occurred_at":"2026-11-24 10:00",` + one[1:], "2!  occurred_at"}},
		"items": {CSV, "shop_id,tid,out_sid,company_code,items\ns,123,SF1,SF,1001:2;1002\ns,123,SF1,SF,\" 1001 : 2 , 1002:1 \"\ns,123,SF1,SF,\"[{\"\"oid\"\": 1001}]\"\ns,123,SF1,SF,\n", []string{
			"2: " + one[:len(one)-1] + `,"items":[{"oid":"1001","quantity":2},{"oid":"1002"}]}`,
			"3: " + one[:len(one)-1] + `,"items":[{"oid":"1001","quantity":2},{"oid":"1002","quantity":1}]}`,
			"4: " + one[:len(one)-1] + `,"items":[{"oid":1001}]}`,
			"5: " + one,
		}},
		"items that are none": {CSV, "shop_id,tid,out_sid,company_code,items\ns,123,SF1,SF,red\ns,123,SF1,SF,1001:0\ns,123,SF1,SF,\"[{\"\ns,123,SF1,SF,3.9E+18\n", []string{
			"2: " + one[:len(one)-1] + `,"items":"red"}`, "2? " + noItems,
			"3: " + one[:len(one)-1] + `,"items":"1001:0"}`, "3? " + noItems,
			"4: " + one[:len(one)-1] + `,"items":"[{"}`, "4? " + noItems,
			"5: " + one[:len(one)-1] + `,"items":"3.9E+18"}`, "5? " + noItems,
		}},
		"jsonl items": {JSONL, one[:len(one)-1] + `,"items":[{"oid":1001,"quantity":2}]}` + "\n" + one[:len(one)-1] + `,"items":[7]}` + "\n" + one[:len(one)-1] + `,"items":null}`, []string{
			"1: " + one[:len(one)-1] + `,"items":[{"oid":1001,"quantity":2}]}`,
			"2: " + one[:len(one)-1] + `,"items":[7]}`, "2? " + noItems,
			"3: " + one[:len(one)-1] + `,"items":null}`,
		}},
		"jsonl":            {JSONL, "\n" + one + "\n\n", []string{"2: " + one}},
		"jsonl order":      {JSONL, `{"company_code":"SF", "tid":9223372036854775807,"colour":1,"out_sid":"SF1","shop_id":"s"}`, []string{`1: {"shop_id":"s","tid":9223372036854775807,"out_sid":"SF1","company_code":"SF"}`, `1? "colour" is not a field of a packed event and is left out`}},
		"jsonl scientific": {JSONL, `{"shop_id":"s","tid":3.9e18,"out_sid":"SF1","company_code":"SF"}`, []string{"1! V03 tid"}},
		"jsonl fraction":   {JSONL, `{"shop_id":"s","tid":1.5,"out_sid":"SF1","company_code":"SF"}`, []string{"1! V03 tid"}},
		"jsonl broken":     {JSONL, "{\n" + one, []string{"1!", "2: " + one}},
		"jsonl no object":  {JSONL, "[]\nnull\n7\n", []string{"1!", "2!", "3!"}},
		"event id":         {JSONL, `{"shop_id":"s","tid":"123","out_sid":"SF1","company_code":"SF","event_id":"e"}`, []string{`1: {"event_id":"e",` + one[1:]}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := collect(t, []byte(tt.text), tt.format)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSpoiltTIDHasAHint(t *testing.T) {
	for line, err := range lines(strings.NewReader("shop_id,tid,out_sid,company_code\ns,3.94189E+18,SF1,SF\n"), CSV) {
		if err != nil {
			t.Fatal(err)
		}
		if got := line.Violations[0].Message; !strings.Contains(got, "3.94189E+18") || !strings.Contains(got, "format the column as text") {
			t.Errorf("got %q, want the value and a hint", got)
		}
	}
}

func TestFilesThatAreNoTable(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "the table is empty",
		"shop_id,tid\n":                "lacks out_sid, company_code; it names shop_id, tid",
		"tid,shop_id,TID\n":            "names tid twice",
		"\"x\n":                        "header row cannot be read",
		"订单,店铺\n":                      "lacks shop_id, tid, out_sid, company_code; it names 订单, 店铺",
		"s,123,SF1,SF\ns,124,SF2,SF\n": "lacks shop_id",
	} {
		_, err := collect(t, []byte(text), CSV)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	if _, err := collect(t, nil, "xml"); err == nil {
		t.Error("format xml was taken")
	}
}

func TestRead(t *testing.T) {
	const text = "shop_id,tid,out_sid,company_code\ns,123,1,顺丰速运\n"
	gb, err := simplifiedchinese.GB18030.NewEncoder().String(text)
	if err != nil {
		t.Fatal(err)
	}
	wide := func(e unicode.Endianness) string {
		s, err := unicode.UTF16(e, unicode.UseBOM).NewEncoder().String(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, data := range map[string]string{
		"UTF-8": text, "UTF-8 with mark": "\ufeff" + text, "GB18030": gb,
		"UTF-16 LE": wide(unicode.LittleEndian), "UTF-16 BE": wide(unicode.BigEndian),
	} {
		got, err := Read(strings.NewReader(data))
		if err != nil || string(got) != text {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	if got, err := Read(strings.NewReader("\xff\xff\x80")); err == nil {
		t.Errorf("rubbish was read as %q", got)
	}
}

// How a text is told to be UTF-8 or GB18030 does not depend on where in the file
// that shows, nor on how the file comes.
func TestEncodings(t *testing.T) {
	gb := func(s string) string {
		out, err := simplifiedchinese.GB18030.NewEncoder().String(s)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	plain := strings.Repeat("s,123,SF1,SF\n", 2*sample/13)
	name := strings.Repeat("顺丰速运", sample/4)
	for what, tt := range map[string]struct{ data, want, err string }{
		"late UTF-8":            {plain + "顺丰", plain + "顺丰", ""},
		"late GB18030":          {plain + gb("顺丰"), plain + "顺丰", ""},
		"long UTF-8":            {"a" + name, "a" + name, ""},
		"longer by one byte":    {"ab" + name, "ab" + name, ""},
		"longer by two bytes":   {"abc" + name, "abc" + name, ""},
		"long GB18030":          {gb("a" + name), "a" + name, ""},
		"GB18030 like UTF-8":    {gb("模") + plain + gb("顺丰"), "", "UTF-8 from its beginning to its end"},
		"four bytes":            {"𠮷" + plain, "𠮷" + plain, ""},
		"UTF-8 cut":             {"顺\xe4\xb8", "", "not UTF-8"},
		"mark and no UTF-8":     {"\xef\xbb\xbf" + gb("顺丰速运"), "", "byte order mark"},
		"UTF-16 cut":            {"\xff\xfea\x00b", "", "UTF-16"},
		"UTF-8, already broken": {"顺\ufffd", "顺\ufffd", ""},
		"nothing":               {"", "", ""},
		"a mark alone":          {"\xef\xbb\xbf", "", ""},
		"shorter than a mark":   {"x", "x", ""},
	} {
		for how, in := range map[string]io.Reader{
			"at once": strings.NewReader(tt.data), "byte by byte": iotest.OneByteReader(strings.NewReader(tt.data)),
			"with its end": iotest.DataErrReader(strings.NewReader(tt.data)), "in halves": iotest.HalfReader(strings.NewReader(tt.data)),
		} {
			got, err := Read(in)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%s, %s: got %v, want an error with %q", what, how, err, tt.err)
				}
				continue
			}
			if err != nil || string(got) != tt.want {
				t.Errorf("%s, %s: got %d bytes, %v; want %d", what, how, len(got), err, len(tt.want))
			}
		}
	}
	broken := errors.New("the disk is gone")
	for _, data := range []string{"", "a", "顺", plain + "顺"} {
		if _, err := Read(io.MultiReader(strings.NewReader(data), iotest.ErrReader(broken))); !errors.Is(err, broken) {
			t.Errorf("%d bytes and then an error: got %v", len(data), err)
		}
	}
}

// endless is a text without an end.
type endless struct {
	head, again string
	read        int
}

func (e *endless) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		from := e.head
		at := e.read
		if at >= len(e.head) {
			from, at = e.again, (e.read-len(e.head))%len(e.again)
		}
		m := copy(p[n:], from[at:])
		n += m
		e.read += m
	}
	return n, nil
}

// A file of any size is read in bounded memory, and what has no end of a line is
// not waited for.
func TestBoundedMemory(t *testing.T) {
	const head = "shop_id,tid,out_sid,company_code\n"
	const one = `{"shop_id":"s","tid":"123","out_sid":"SF1","company_code":"SF"}` + "\n"
	for what, tt := range map[string]struct {
		text   *endless
		format Format
		err    string
	}{
		"table":             {&endless{head: head, again: "s,123,SF1,顺丰\n"}, CSV, ""},
		"lines":             {&endless{again: one}, JSONL, ""},
		"empty lines":       {&endless{again: "\n\r\n\n" + one}, JSONL, ""},
		"an open quote":     {&endless{head: head + "s,\"1", again: "23,SF1,SF\n"}, CSV, "quotation mark"},
		"a line of no end":  {&endless{again: "x"}, JSONL, "longer than"},
		"a row of no end":   {&endless{head: head, again: "x,"}, CSV, "longer than"},
		"a head of no end":  {&endless{again: "x,"}, CSV, "longer than"},
		"what is not UTF-8": {&endless{head: one + "顺", again: "\xff"}, JSONL, "save it as UTF-8"},
	} {
		t.Run(what, func(t *testing.T) {
			const most = 3 << 20 // bytes
			var before, now runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var err error
			n := 0
			for _, err = range lines(tt.text, tt.format) {
				if n++; err != nil || tt.text.read > most {
					break
				}
				if tt.err != "" && n > 10 {
					break
				}
			}
			runtime.GC()
			runtime.ReadMemStats(&now)
			if grown := int64(now.HeapAlloc) - int64(before.HeapAlloc); grown > 1<<20 {
				t.Errorf("%d bytes are held after %d lines", grown, n)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %v, want %q", err, tt.err)
			}
			if tt.err != "" && tt.text.read > 2*maxLine {
				t.Errorf("%d bytes were read before the error", tt.text.read)
			}
		})
	}
}

func TestDetect(t *testing.T) {
	for _, tt := range []struct {
		name, data string
		want       Format
	}{
		{"a.csv", "{", CSV},
		{"a.CSV", "", CSV},
		{"a.jsonl", "x", JSONL},
		{"a.ndjson", "x", JSONL},
		{"-", " \n{\"a\":1}", JSONL},
		{"-", "shop_id,tid", CSV},
		{"a.txt", "{\"a\":1}", JSONL},
		{"a.txt", "shop_id\ttid", CSV},
		{"orders", "", ""},
	} {
		if got := Detect(tt.name, []byte(tt.data)); got != tt.want {
			t.Errorf("Detect(%q, %q): got %q, want %q", tt.name, tt.data, got, tt.want)
		}
	}
}

// TestPackingTwice checks that a file that is packed again makes the same
// events, so that nothing is called for again.
func TestPackingTwice(t *testing.T) {
	text := []byte("shop_id,tid,out_sid,company_code\ns,123,SF1,SF\n")
	var ids []string
	for range 2 {
		for line, err := range lines(bytes.NewReader(text), CSV) {
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range Headers(line.Packed) {
				if h.Key == "ce_id" {
					ids = append(ids, string(h.Value))
				}
			}
			again, err := schema.DecodePacked(&schema.Record{Value: line.Value, Headers: Headers(line.Packed)})
			if err != nil || again.EventID != line.Packed.EventID {
				t.Errorf("decoded with its headers: got event %v, %v; want id %s", again, err, line.Packed.EventID)
			}
		}
	}
	if len(ids) != 2 || ids[0] != ids[1] {
		t.Errorf("got ids %v, want the same twice", ids)
	}
}

var validNumber = regexp.MustCompile(`^[0-9]+$`)

// FuzzCSV feeds any text to the reader. Whatever it holds, lines come in order,
// and an event that is made of one decodes to what was judged.
func FuzzCSV(f *testing.F) {
	f.Add([]byte("shop_id,tid,out_sid,company_code\ns,123,SF1,SF\n"), true)
	f.Add([]byte("\ufeffshop_id;tid;out_sid;company_code;sub_tid\ns;=\"123\";SF1;SF;1,2\n\"\n"), true)
	f.Add([]byte("tid\tshop_id\tout_sid\tcompany_code\n3.9E+18\t\"a\nb\"\t\t\n"), true)
	f.Add([]byte("shop_id,tid,out_sid,company_code,items\ns,123,SF1,SF,1001:2;1002\ns,123,SF1,SF,[1]\n"), true)
	f.Add([]byte(`{"shop_id":"s","tid":1,"out_sid":{"a":[1]},"vvtype":"x"}`), false)
	f.Fuzz(func(t *testing.T, data []byte, table bool) {
		whole, failed := Read(bytes.NewReader(data))
		// How the file comes makes no difference to its text.
		piecewise, err := Read(iotest.OneByteReader(bytes.NewReader(data)))
		if failed == nil && !bytes.Equal(whole, piecewise) || (failed == nil) != (err == nil) {
			t.Fatalf("%q read at once is %q, %v and byte by byte %q, %v", data, whole, failed, piecewise, err)
		}
		format := JSONL
		if table {
			format = CSV
		}
		last := 0
		for line, err := range lines(bytes.NewReader(data), format) {
			if err != nil {
				return
			}
			if line.Number <= last && table || line.Number < last {
				t.Fatalf("line %d after line %d", line.Number, last)
			}
			last = line.Number
			if line.Packed == nil {
				if len(line.Violations) == 0 {
					t.Fatalf("line %d is left out without a reason", line.Number)
				}
				continue
			}
			if !json.Valid(line.Value) || bytes.ContainsRune(line.Value, '\n') {
				t.Fatalf("line %d: %q is not one line of JSON", line.Number, line.Value)
			}
			if !validNumber.MatchString(line.Packed.TID) {
				t.Fatalf("line %d: tid %q", line.Number, line.Packed.TID)
			}
			again, err := schema.DecodePacked(&schema.Record{Value: line.Value})
			if diff := cmp.Diff(line.Packed, again); err != nil || diff != "" {
				t.Fatalf("line %d decodes differently: %v\n%s", line.Number, err, diff)
			}
		}
	})
}

func TestMessageDoesNotRepeatTheRule(t *testing.T) {
	for text, rule := range map[string]string{
		`{"shop_id":"s","tid":"0012","out_sid":"SF1","company_code":"SF"}`: "V03",
		`{"shop_id":"a b","tid":"1","out_sid":"SF1","company_code":"SF"}`:  "V01",
	} {
		for line, err := range lines(strings.NewReader(text), JSONL) {
			if err != nil {
				t.Fatal(err)
			}
			if v := line.Violations[0]; v.Rule != rule || strings.Contains(v.Message, rule) {
				t.Errorf("%s: rule %s, message %q, want the rule once", text, v.Rule, v.Message)
			}
		}
	}
}
