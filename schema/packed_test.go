package schema

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

const bare = `{"event_id":"evt-1","occurred_at":"2026-11-24T09:59:58Z","shop_id":"123456789","tid":"3941893279420000001",` +
	`"out_sid":" sf0000000000001 ","company_code":"sf","is_split":1,"sub_tid":"3941893279420000003,3941893279420000002",` +
	`"sender_id":1001,"cancel_id":"1002","feature":"identCode=3941893279420000002:A1","vvtype":2,"colour":"red"}`

// barePacked is what bare means.
var barePacked = Packed{
	EventID: "evt-1", OccurredAt: "2026-11-24T09:59:58Z", ShopID: "123456789", TID: "3941893279420000001",
	OutSID: "SF0000000000001", CompanyCode: "SF", IsSplit: 1,
	SubTID: []string{"3941893279420000003", "3941893279420000002"}, SenderID: "1001", CancelID: "1002",
	Feature: "identCode=3941893279420000002:A1", VVType: 2,
	Shipment: Shipment{
		ShopID: "123456789", TID: "3941893279420000001", Split: "1",
		SubTID: []string{"3941893279420000003", "3941893279420000002"}, OutSID: "SF0000000000001", CompanyCode: "SF",
	},
}

func record(value string, headers ...string) *Record {
	rec := &Record{Topic: TypePacked, Offset: 12, Time: time.Date(2026, 11, 24, 2, 0, 0, 0, time.UTC), Value: []byte(value)}
	for i := 0; i < len(headers); i += 2 {
		rec.Headers = append(rec.Headers, Header{headers[i], []byte(headers[i+1])})
	}
	return rec
}

func quote(t *testing.T, s string) string {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func decode(t *testing.T, rec *Record) *Packed {
	t.Helper()
	p, err := DecodePacked(rec)
	if err != nil {
		t.Fatalf("DecodePacked(%.200s): %v", rec.Value, err)
	}
	return p
}

func TestDecodePackedBindings(t *testing.T) {
	const structured = "application/cloudevents+json"
	unnamed := strings.Replace(bare, `"event_id":"evt-1",`, "", 1)
	badID := strings.Replace(bare, `"evt-1"`, `17`, 1)
	encoded := base64.StdEncoding.EncodeToString([]byte(unnamed))
	for name, test := range map[string]struct {
		rec     *Record
		eventID string
	}{
		"bare":                                {record(bare), "evt-1"},
		"bare, white space around":            {record("\r\n\t " + bare + "\n"), "evt-1"},
		"bare, byte order mark":               {record("\ufeff" + bare), "evt-1"},
		"bare, no id":                         {record(unnamed), digest(unnamed)},
		"bare, id of a wrong type":            {record(badID), digest(badID)},
		"bare, empty id":                      {record(strings.Replace(bare, "evt-1", "", 1), "ce_id", "ce-7"), "ce-7"},
		"bare, null id":                       {record(strings.Replace(bare, `"evt-1"`, "null", 1), "ce_id", "ce-7"), "ce-7"},
		"binary, no id of its own":            {record(unnamed, "ce_id", "ce-7", "content-type", "application/json"), "ce-7"},
		"binary, id of its own":               {record(bare, "ce_id", "ce-7"), "evt-1"},
		"binary, empty ce_id":                 {record(unnamed, "ce_id", ""), digest(unnamed)},
		"binary, the last of two ids":         {record(unnamed, "ce_id", "ce-6", "ce_id", "ce-7"), "ce-7"},
		"binary, id not UTF-8":                {record(unnamed, "ce_id", "\xff\xfe"), digest("\xff\xfe")},
		"binary, long id":                     {record(unnamed, "ce_id", strings.Repeat("i", 257)), digest(strings.Repeat("i", 257))},
		"binary, longest id kept":             {record(unnamed, "ce_id", strings.Repeat("i", 256)), strings.Repeat("i", 256)},
		"structured":                          {record(`{"id":"ce-7","specversion":"1.0","data":`+unnamed+`}`, "content-type", structured), "ce-7"},
		"structured, id of its own":           {record(`{"id":"ce-7","data":`+bare+`}`, "content-type", structured), "evt-1"},
		"structured, with a charset":          {record(`{"id":"ce-7","data":`+unnamed+`}`, "content-type", "Application/CloudEvents+JSON; charset=UTF-8"), "ce-7"},
		"structured, header in capitals":      {record(`{"id":"ce-7","data":`+unnamed+`}`, "Content-Type", structured), "ce-7"},
		"structured, byte order mark":         {record("\ufeff"+`{"id":"ce-7","data":`+unnamed+`}`, "content-type", structured), "ce-7"},
		"structured, header id as well":       {record(`{"id":"ce-7","data":`+unnamed+`}`, "content-type", structured, "ce_id", "ce-6"), "ce-7"},
		"structured, empty id":                {record(`{"id":"","data":`+unnamed+`}`, "content-type", structured, "ce_id", "ce-6"), "ce-6"},
		"structured, id of a wrong type":      {record(`{"id":7,"data":`+unnamed+`}`, "content-type", structured, "ce_id", "ce-6"), "ce-6"},
		"structured, data in a string":        {record(`{"id":"ce-7","data":`+quote(t, unnamed)+`}`, "content-type", structured), "ce-7"},
		"structured, data_base64":             {record(`{"id":"ce-7","data_base64":"`+encoded+`"}`, "content-type", structured), "ce-7"},
		"structured, null data, data_base64":  {record(`{"id":"ce-7","data":null,"data_base64":"`+encoded+`"}`, "content-type", structured), "ce-7"},
		"structured, mark within data_base64": {record(`{"id":"ce-7","data_base64":"`+base64.StdEncoding.EncodeToString([]byte("\ufeff"+unnamed))+`"}`, "content-type", structured), "ce-7"},
	} {
		t.Run(name, func(t *testing.T) {
			want := barePacked
			want.EventID = test.eventID
			if diff := cmp.Diff(&want, decode(t, test.rec)); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodePackedIsNoEvent(t *testing.T) {
	const structured = "application/cloudevents+json"
	deep := strings.Repeat("[", 20000) + strings.Repeat("]", 20000)
	for name, test := range map[string]struct {
		rec    *Record
		reason string
	}{
		"tombstone":                    {&Record{}, ReasonEmpty},
		"empty":                        {record(""), ReasonEmpty},
		"white space":                  {record(" \r\n\t"), ReasonEmpty},
		"structured, empty":            {record("", "content-type", structured), ReasonEmpty},
		"byte order mark alone":        {record("\ufeff"), ReasonNotJSON},
		"text":                         {record("hello"), ReasonNotJSON},
		"cut off":                      {record(bare[:len(bare)-1]), ReasonNotJSON},
		"two objects":                  {record(bare + bare), ReasonNotJSON},
		"trailing comma":               {record(`{"shop_id":"1",}`), ReasonNotJSON},
		"nested too deeply":            {record(`{"a":` + deep + `}`), ReasonNotJSON},
		"Latin-1":                      {record("{\"shop_id\":\"caf\xe9\"}"), ReasonNotUTF8},
		"UTF-16":                       {record("\xff\xfe{\x00}\x00"), ReasonNotUTF8},
		"UTF-16 without mark":          {record("{\x00\"\x00"), ReasonNotJSON},
		"array":                        {record("[" + bare + "]"), ReasonNotObject},
		"string":                       {record(`"order"`), ReasonNotObject},
		"number":                       {record(`12`), ReasonNotObject},
		"null":                         {record(`null`), ReasonNotObject},
		"batch of cloud events":        {record("["+bare+"]", "content-type", "application/cloudevents-batch+json"), ReasonNotObject},
		"structured, no data":          {record(bare, "content-type", structured), ReasonCloudEvent},
		"structured, null data":        {record(`{"data":null}`, "content-type", structured), ReasonCloudEvent},
		"structured, both null":        {record(`{"data":null,"data_base64":null}`, "content-type", structured), ReasonCloudEvent},
		"structured, bad base64":       {record(`{"data_base64":"%%"}`, "content-type", structured), ReasonCloudEvent},
		"structured, base64 number":    {record(`{"data_base64":12}`, "content-type", structured), ReasonCloudEvent},
		"structured, not JSON":         {record(`{"data":`, "content-type", structured), ReasonNotJSON},
		"structured, array":            {record(`[]`, "content-type", structured), ReasonNotObject},
		"structured, data is an array": {record(`{"data":[]}`, "content-type", structured), ReasonNotObject},
		"structured, data is text":     {record(`{"data":"hello"}`, "content-type", structured), ReasonNotJSON},
		"structured, bytes not UTF-8":  {record(`{"data_base64":"//4="}`, "content-type", structured), ReasonNotUTF8},
		"no fields":                    {record(`{}`), ReasonShopUnusable},
		"no shop":                      {record(`{"tid":1}`), ReasonShopUnusable},
		"null shop":                    {record(`{"shop_id":null,"tid":1}`), ReasonShopUnusable},
		"shop is a number":             {record(`{"shop_id":123,"tid":1}`), ReasonShopUnusable},
		"shop is an object":            {record(`{"shop_id":{},"tid":1}`), ReasonShopUnusable},
		"shop is empty":                {record(`{"shop_id":"","tid":1}`), ReasonShopUnusable},
		"shop with a space":            {record(`{"shop_id":"1 2","tid":1}`), ReasonShopUnusable},
		"shop with a line end":         {record(`{"shop_id":"12\n","tid":1}`), ReasonShopUnusable},
		"shop in Chinese":              {record(`{"shop_id":"店","tid":1}`), ReasonShopUnusable},
		"shop of 65":                   {record(`{"shop_id":"` + strings.Repeat("a", 65) + `","tid":1}`), ReasonShopUnusable},
		"other case of the names":      {record(`{"Shop_ID":"1","TID":1}`), ReasonShopUnusable},
		"no tid":                       {record(`{"shop_id":"1"}`), ReasonTIDUnusable},
		"the last of two tids counts":  {record(`{"shop_id":"1","tid":1,"tid":"x"}`), ReasonTIDUnusable},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := DecodePacked(test.rec)
			if p != nil {
				t.Errorf("got an event: %+v", p)
			}
			notPacked, ok := errors.AsType[*NotPackedError](err)
			if !ok {
				t.Fatalf("got error %v, want a *NotPackedError", err)
			}
			if notPacked.Reason != test.reason {
				t.Errorf("reason %q (%s), want %q", notPacked.Reason, notPacked.Detail, test.reason)
			}
			if notPacked.Detail == "" || len(notPacked.Detail) > 400 {
				t.Errorf("detail of %d bytes: %.500s", len(notPacked.Detail), notPacked.Detail)
			}
			if !strings.Contains(err.Error(), test.reason) {
				t.Errorf("error %q does not name the reason", err)
			}
		})
	}
}

func TestNotPackedReasonsAreComplete(t *testing.T) {
	want := []string{"empty_value", "not_utf8", "not_json", "not_an_object", "cloud_event_unusable", "shop_id_unusable", "tid_unusable"}
	if diff := cmp.Diff(want, NotPackedReasons); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
}

func TestTIDIsDigitExact(t *testing.T) {
	for raw, want := range map[string]string{
		`2345678901234567891`:        "2345678901234567891", // through float64: ...680
		`"2345678901234567891"`:      "2345678901234567891",
		`9223372036854775807`:        "9223372036854775807",
		`"9223372036854775807"`:      "9223372036854775807",
		`9007199254740993`:           "9007199254740993", // 2^53 + 1
		`1`:                          "1",
		`"1"`:                        "1",
		`"\u0031\u0032"`:             "12",
		`9223372036854775808`:        "",
		`"9223372036854775808"`:      "",
		`10000000000000000000`:       "",
		`123456789012345678901234`:   "",
		`0`:                          "",
		`"0"`:                        "",
		`-1`:                         "",
		`"-1"`:                       "",
		`-0`:                         "",
		`"0012"`:                     "",
		`"+12"`:                      "",
		`1.5`:                        "",
		`"1.5"`:                      "",
		`1.0`:                        "",
		`1e3`:                        "",
		`1E3`:                        "",
		`"1e3"`:                      "",
		`"9,223"`:                    "",
		`"0x12"`:                     "",
		`"９９"`:                       "",
		`"٣"`:                        "",
		`""`:                         "",
		`" 12"`:                      "",
		`"12 "`:                      "",
		`"12\n"`:                     "",
		`"1\u0000"`:                  "",
		`"\ufeff12"`:                 "",
		`true`:                       "",
		`null`:                       "",
		`[12]`:                       "",
		`{"id":12}`:                  "",
		`"` + zeros(1<<16) + `"`:     "",
		`1` + strings.Repeat("0", 9): "1000000000",
	} {
		p, err := DecodePacked(record(`{"shop_id":"1","out_sid":"SF1234567","company_code":"SF","tid":` + raw + `}`))
		switch notPacked, isNotPacked := errors.AsType[*NotPackedError](err); {
		case want != "" && err != nil:
			t.Errorf("tid %.40s: %v", raw, err)
		case want != "" && p.TID != want:
			t.Errorf("tid %.40s: got %s, want %s", raw, p.TID, want)
		case want == "" && err == nil:
			t.Errorf("tid %.40s: accepted as %s", raw, p.TID)
		case want == "" && (!isNotPacked || notPacked.Reason != ReasonTIDUnusable):
			t.Errorf("tid %.40s: got %v, want reason %s", raw, err, ReasonTIDUnusable)
		}
	}
	if _, err := DecodePacked(record(`{"shop_id":"1"}`)); err == nil {
		t.Error("a missing tid was accepted")
	}
}

func zeros(n int) string { return strings.Repeat("0", n) }

// fields returns an event in which one field has the given raw JSON.
func fields(field, raw string) *Record {
	all := map[string]json.RawMessage{
		"event_id": json.RawMessage(`"evt-1"`), "shop_id": json.RawMessage(`"1"`), "tid": json.RawMessage(`12`),
		"out_sid": json.RawMessage(`"SF1234567"`), "company_code": json.RawMessage(`"SF"`),
	}
	all[field] = json.RawMessage(raw)
	value, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return record(string(value))
}

func TestViolationsByType(t *testing.T) {
	for _, test := range []struct{ field, raw, rule string }{
		{"out_sid", `1234567`, "V04"},
		{"out_sid", `true`, "V04"},
		{"out_sid", `["SF1234567"]`, "V04"},
		{"out_sid", `{"a":1}`, "V04"},
		{"out_sid", `null`, ""},
		{"out_sid", `""`, ""},
		{"company_code", `85`, "V08"},
		{"company_code", `false`, "V08"},
		{"company_code", `[]`, "V08"},
		{"company_code", `null`, ""},
		{"is_split", `0`, ""},
		{"is_split", `1`, ""},
		{"is_split", `null`, ""},
		{"is_split", `2`, "V12"},
		{"is_split", `-1`, "V12"},
		{"is_split", `1.0`, "V12"},
		{"is_split", `true`, "V12"},
		{"is_split", `false`, "V12"},
		{"is_split", `"1"`, "V12"},
		{"is_split", `"0"`, "V12"},
		{"is_split", `[]`, "V12"},
		{"sub_tid", `null`, ""},
		{"sub_tid", `""`, ""},
		{"sub_tid", `[]`, ""},
		{"sub_tid", `"1,2"`, ""},
		{"sub_tid", `[1,"2"]`, ""},
		{"sub_tid", `5`, "V14"},
		{"sub_tid", `true`, "V14"},
		{"sub_tid", `{"1":2}`, "V14"},
		{"sub_tid", `[1.5]`, "V14"},
		{"sub_tid", `[1e3]`, "V14"},
		{"sub_tid", `[null]`, "V14"},
		{"sub_tid", `[[1]]`, "V14"},
		{"sub_tid", `[1,true,false]`, "V14"},
		{"sender_id", `null`, ""},
		{"sender_id", `""`, ""},
		{"sender_id", `7`, ""},
		{"sender_id", `"7"`, ""},
		{"sender_id", `7.5`, "V19"},
		{"sender_id", `true`, "V19"},
		{"sender_id", `[7]`, "V19"},
		{"cancel_id", `1e3`, "V19"},
		{"cancel_id", `{}`, "V19"},
		{"feature", `null`, ""},
		{"feature", `"a=1:b"`, ""},
		{"feature", `1`, "V15"},
		{"feature", `{"a":1}`, "V15"},
		{"vvtype", `null`, ""},
		{"vvtype", `1`, ""},
		{"vvtype", `4`, ""},
		{"vvtype", `0`, "V18"},
		{"vvtype", `5`, "V18"},
		{"vvtype", `"1"`, "V18"},
		{"vvtype", `1.0`, "V18"},
		{"vvtype", `true`, "V18"},
		{"occurred_at", `17`, ""},
		{"event_id", `17`, ""},
		{"colour", `{"a":[1,2]}`, ""},
	} {
		t.Run(test.field+"="+test.raw, func(t *testing.T) {
			p := decode(t, fields(test.field, test.raw))
			if test.rule == "" {
				if len(p.Violations) != 0 {
					t.Errorf("got violations %+v, want none", p.Violations)
				}
				return
			}
			if len(p.Violations) != 1 {
				t.Fatalf("got violations %+v, want one", p.Violations)
			}
			v := p.Violations[0]
			if v.Rule != test.rule || v.Field != test.field || !strings.Contains(v.Message, test.field) {
				t.Errorf("got %+v, want rule %s of %s", v, test.rule, test.field)
			}
		})
	}
}

func TestAllViolationsAreReported(t *testing.T) {
	p := decode(t, record(`{"shop_id":"1","tid":1,"out_sid":1,"company_code":1,"is_split":2,"sub_tid":1,"sender_id":1.5,"cancel_id":1.5,"feature":1,"vvtype":9}`))
	var got []string
	for _, v := range p.Violations {
		got = append(got, v.Rule+" "+v.Field)
	}
	want := []string{
		"V04 out_sid", "V08 company_code", "V12 is_split", "V14 sub_tid",
		"V19 sender_id", "V19 cancel_id", "V15 feature", "V18 vvtype",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("violations (-want +got):\n%s", diff)
	}
}

// A field of a wrong type makes another shipment than its repaired form, so
// that the repair is looked at and not answered with the earlier failure.
func TestWrongTypeIsAnotherShipment(t *testing.T) {
	for _, test := range []struct{ field, wrong, right string }{
		{"out_sid", `1234567890`, `"1234567890"`},
		{"out_sid", `true`, `""`},
		{"company_code", `85`, `"85"`},
		{"is_split", `"1"`, `1`},
		{"is_split", `true`, `1`},
		{"is_split", `false`, `0`},
		{"sub_tid", `[1.5]`, `[1]`},
		{"sub_tid", `{}`, `[]`},
	} {
		wrong, right := decode(t, fields(test.field, test.wrong)), decode(t, fields(test.field, test.right))
		if wrong.Shipment.Key() == right.Shipment.Key() {
			t.Errorf("%s: %s and %s are the same shipment", test.field, test.wrong, test.right)
		}
	}
}

// TestGroupMark sees that the marks of groups stay what they are: the ledger has
// them for as long as its horizon.
func TestGroupMark(t *testing.T) {
	for group, want := range map[string]string{
		"":                         "",
		"g":                        "cd0aa9856147b6c5",
		"北方":                       "78e20875d600228f",
		strings.Repeat("x", 1<<20): "8f990ba0b577b51c",
	} {
		if got := (&Packed{OrderGroup: group}).GroupMark(); got != want {
			t.Errorf("%s: got %q, want %q", cut(group, 20), got, want)
		}
	}
}

func TestSubTIDForms(t *testing.T) {
	want := decode(t, fields("sub_tid", `"1,2,2345678901234567891"`))
	for _, raw := range []string{
		`["1","2","2345678901234567891"]`, `[1,2,2345678901234567891]`, `[2345678901234567891,"2",1]`, `"2345678901234567891,2,1"`,
	} {
		got := decode(t, fields("sub_tid", raw))
		if got.Shipment.Key() != want.Shipment.Key() || len(got.SubTID) != 3 {
			t.Errorf("sub_tid %s: got %q, want the same set as %q", raw, got.SubTID, want.SubTID)
		}
	}
	if got := decode(t, fields("sub_tid", `"1, 2"`)).SubTID; !cmp.Equal(got, []string{"1", " 2"}) {
		t.Errorf("got %q, want the white space kept for the rules to find", got)
	}
}

// hostile returns events that are as large as a record may be.
func hostile() map[string]string {
	const size = 1 << 20
	event := func(extra string) string {
		return `{"event_id":"evt-1","shop_id":"1","tid":12,"out_sid":"SF1234567","company_code":"SF",` + extra + `}`
	}
	long := strings.Repeat("顺", size/3)
	return map[string]string{
		"out_sid":         event(`"out_sid":"` + long + `"`),
		"out_sid array":   event(`"out_sid":["` + long + `"]`),
		"out_sid quotes":  event(`"out_sid":"` + strings.Repeat(`\u0001<`, size/14) + `"`),
		"company_code":    event(`"company_code":"` + long + `"`),
		"event_id":        event(`"event_id":"` + long + `"`),
		"is_split":        event(`"is_split":"` + long + `"`),
		"sub_tid text":    event(`"sub_tid":"` + long + `"`),
		"sub_tid ids":     event(`"sub_tid":"` + strings.Repeat("1,", size/2) + `1"`),
		"sub_tid array":   event(`"sub_tid":[` + strings.Repeat("1,", size/2) + `1]`),
		"sub_tid objects": event(`"sub_tid":[` + strings.Repeat("{},", size/3) + `{}]`),
		"sub_tid nested":  event(`"sub_tid":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000)),
		"sub_tid empties": event(`"sub_tid":"` + strings.Repeat(",", size) + `"`),
		"feature":         event(`"feature":["` + long + `"]`),
		"sender_id":       event(`"sender_id":` + strings.Repeat("1", size) + `.5`),
		"vvtype":          event(`"vvtype":` + strings.Repeat("1", size)),
	}
}

// maxKeyBytes and maxEventBytes bound what is written about one event. A broker
// takes records of 1 MiB, and the ledger stores both.
const (
	maxKeyBytes   = 16 << 10
	maxEventBytes = 128 << 10
)

func TestWhatIsWrittenAboutAnEventIsBounded(t *testing.T) {
	for name, value := range hostile() {
		t.Run(name, func(t *testing.T) {
			p := decode(t, record(value))
			checkWritten(t, p)
		})
	}
	for _, value := range []string{
		`{"shop_id":"` + strings.Repeat("a", 1<<20) + `"}`,
		`{"shop_id":"1","tid":` + strings.Repeat("1", 1<<20) + `}`,
		strings.Repeat("x", 1<<20),
	} {
		_, err := DecodePacked(record(value))
		if err == nil || len(err.Error()) > 500 {
			t.Errorf("got an error of %d bytes for a dead letter", len(fmt.Sprint(err)))
		}
	}
}

// A difference beyond the limits is still a difference.
func TestLongPartsStayApart(t *testing.T) {
	long := strings.Repeat("9", 5000)
	for _, test := range []struct{ field, a, b string }{
		{"out_sid", `"` + long + `1"`, `"` + long + `2"`},
		{"company_code", `"` + long + `1"`, `"` + long + `2"`},
		{"is_split", `"` + long + `1"`, `"` + long + `2"`},
		{"sub_tid", `"` + long + `1,` + long + `"`, `"` + long + `2,` + long + `"`},
	} {
		a, b := decode(t, fields(test.field, test.a)), decode(t, fields(test.field, test.b))
		if a.Shipment.Key() == b.Shipment.Key() {
			t.Errorf("%s: two long values are the same shipment", test.field)
		}
	}
	a, b := decode(t, fields("event_id", `"`+long+`1"`)), decode(t, fields("event_id", `"`+long+`2"`))
	if a.EventID == b.EventID {
		t.Error("two long event ids are the same")
	}
}

// checkWritten checks all that is written about a decoded event: bounded, and
// readable afterwards as the same.
func checkWritten(t *testing.T, p *Packed) {
	t.Helper()
	canonical := p.Shipment.Canonical()
	if len(canonical) > maxKeyBytes {
		t.Errorf("the shipment's key is %d bytes long", len(canonical))
	}
	parsed, ok := ParseShipment(canonical)
	if !ok || parsed.Canonical() != canonical || parsed.Key() != p.Shipment.Key() {
		t.Errorf("ParseShipment(%q) = %+v, %t", canonical, parsed, ok)
	}
	if p.EventID == "" || !utf8.ValidString(p.EventID) || len(p.EventID) > 256 {
		t.Errorf("event id of %d bytes: %.300q", len(p.EventID), p.EventID)
	}
	if again := jsonRoundTrip(t, p.EventID); HashEvent(again) != HashEvent(p.EventID) {
		t.Errorf("event id %q is %q after JSON", p.EventID, again)
	}
	if again := jsonRoundTrip(t, canonical); again != canonical {
		t.Errorf("canonical form %q is %q after JSON", canonical, again)
	}
	r := NewResult(p, Source{Topic: TypePacked, EventID: p.EventID})
	r.Failure = &Failure{Reason: "local_validation", Class: "invalid_request", Violations: p.Violations}
	if len(r.Violations) == 0 {
		r.Violations = []Violation{{Rule: "V05", Field: "out_sid", Message: "odd"}}
	}
	o, err := r.Outcome(&p.Shipment, 1, time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(o.Event) || !utf8.Valid(o.Event) {
		t.Errorf("the result is not JSON: %s", o.Event)
	}
	if len(o.Event) > maxEventBytes {
		t.Errorf("the result is %d bytes long", len(o.Event))
	}
	stored, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var back Outcome
	if err := json.Unmarshal(stored, &back); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(back.Event, o.Event) {
		t.Errorf("the result's bytes changed in the ledger:\n%s\n%s", o.Event, back.Event)
	}
	if err := validate(t, "order.shipment-failed.v1", o.Event); err != nil {
		t.Errorf("%v\n%s", err, o.Event)
	}
}

func jsonRoundTrip(t *testing.T, s string) string {
	t.Helper()
	var back string
	if err := json.Unmarshal([]byte(quote(t, s)), &back); err != nil {
		t.Fatal(err)
	}
	return back
}

// readEvent reads the fields of a record in another way than DecodePacked does.
func readEvent(rec *Record) map[string]any {
	read := func(text []byte) map[string]any {
		var m map[string]any
		d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(text, []byte("\ufeff"))))
		d.UseNumber()
		if d.Decode(&m) != nil {
			return nil
		}
		return m
	}
	m := read(rec.Value)
	contentType, _ := rec.Header("content-type")
	if strings.HasPrefix(strings.ToLower(strings.TrimSpace(contentType)), "application/cloudevents+json") {
		switch data := m["data"].(type) {
		case map[string]any:
			m = data
		case string:
			m = read([]byte(data))
		case nil:
			text, ok := m["data_base64"].(string)
			decoded, err := base64.StdEncoding.DecodeString(text)
			if !ok || err != nil {
				return nil
			}
			m = read(decoded)
		}
	}
	return m
}

// readID returns what is written for an id, "" if it is of another type.
func readID(v any) string {
	switch id := v.(type) {
	case string:
		return id
	case json.Number:
		return id.String()
	}
	return ""
}

var (
	countedID = regexp.MustCompile(`^[1-9][0-9]{0,18}$`)
	counted   = regexp.MustCompile(`^0*[1-9][0-9]*$`)
)

// readItems reads the items of an order in another way than DecodePacked does.
func readItems(v any) []Item {
	list, ok := v.([]any)
	if !ok || len(list) > 500 {
		return nil
	}
	var items []Item
	for _, one := range list {
		fields, ok := one.(map[string]any)
		item := Item{OID: readID(fields["oid"])}
		if _, err := strconv.ParseInt(item.OID, 10, 64); !ok || err != nil || !countedID.MatchString(item.OID) {
			return nil
		}
		if quantity := fields["quantity"]; quantity != nil {
			number, ok := quantity.(json.Number)
			n, err := strconv.ParseInt(number.String(), 10, 64)
			if !ok || err != nil || !counted.MatchString(number.String()) {
				return nil
			}
			item.Quantity = int(n)
		}
		items = append(items, item)
	}
	return items
}

func TestItems(t *testing.T) {
	many := func(n int) string { return "[" + strings.TrimSuffix(strings.Repeat(`{"oid":1},`, n), ",") + "]" }
	for raw, want := range map[string][]Item{
		`[{"oid":1001,"quantity":2}]`:                     {{"1001", 2}},
		`[{"oid":"1001","quantity":2},{"oid":1002}]`:      {{"1001", 2}, {"1002", 0}},
		` [ { "quantity" : 2 , "oid" : 1001 } ] `:         {{"1001", 2}},
		`[{"oid":2345678901234567891}]`:                   {{"2345678901234567891", 0}}, // through float64: ...680
		`[{"oid":9223372036854775807}]`:                   {{"9223372036854775807", 0}},
		`[{"oid":1,"quantity":null}]`:                     {{"1", 0}},
		`[{"oid":1,"quantity":9223372036854775807}]`:      {{"1", 9223372036854775807}},
		`[{"oid":1,"colour":{"a":[null]}}]`:               {{"1", 0}},
		`[{"oid":1,"quantity":1},{"oid":1,"quantity":1}]`: {{"1", 1}, {"1", 1}},
		`null`:                          nil,
		`[]`:                            nil,
		`"1001:2"`:                      nil,
		`2`:                             nil,
		`{"oid":1}`:                     nil,
		`[null]`:                        nil,
		`[1]`:                           nil,
		`["1"]`:                         nil,
		`[[1]]`:                         nil,
		`[{}]`:                          nil,
		`[{"oid":1},{"sku":"red"}]`:     nil,
		`[{"OID":1}]`:                   nil,
		`[{"oid":null}]`:                nil,
		`[{"oid":true}]`:                nil,
		`[{"oid":0}]`:                   nil,
		`[{"oid":1.0}]`:                 nil,
		`[{"oid":"01"}]`:                nil,
		`[{"oid":"SKU-1"}]`:             nil,
		`[{"oid":9223372036854775808}]`: nil,
		`[{"oid":1,"quantity":0}]`:      nil,
		`[{"oid":1,"quantity":-1}]`:     nil,
		`[{"oid":1,"quantity":-0}]`:     nil,
		`[{"oid":1,"quantity":1.5}]`:    nil,
		`[{"oid":1,"quantity":1e3}]`:    nil,
		`[{"oid":1,"quantity":"2"}]`:    nil,
		`[{"oid":1,"quantity":true}]`:   nil,
		`[{"oid":1,"quantity":[2]}]`:    nil,
		`[{"oid":1,"quantity":9223372036854775808}]`: nil,
		many(501):     nil,
		many(1 << 16): nil,
		strings.Repeat("[", 5000) + strings.Repeat("]", 5000): nil,
		many(500): slices.Repeat([]Item{{OID: "1"}}, 500),
	} {
		rec := fields("items", raw)
		p := decode(t, rec)
		if diff := cmp.Diff(want, p.Items); diff != "" {
			t.Errorf("items %.60s (-want +got):\n%s", raw, diff)
		}
		if diff := cmp.Diff(want, readItems(readEvent(rec)["items"])); diff != "" {
			t.Errorf("the oracle of items %.60s (-want +got):\n%s", raw, diff)
		}
		if len(p.Violations) > 0 {
			t.Errorf("items %.60s: got violations %+v", raw, p.Violations)
		}
		if without := decode(t, fields("colour", "1")); p.Shipment.Key() != without.Shipment.Key() {
			t.Errorf("items %.60s are another shipment", raw)
		}
	}
}

func FuzzDecodePacked(f *testing.F) {
	const structured = "application/cloudevents+json"
	f.Add([]byte(bare), "", "")
	f.Add([]byte(bare), "application/json", "ce-7")
	f.Add([]byte("\ufeff"+bare), "application/json", "\xff")
	f.Add([]byte(`{"id":"x","data":`+bare+`}`), structured, "")
	f.Add([]byte(`{"data":"{\"shop_id\":\"1\",\"tid\":12}"}`), structured+"; charset=utf-8", "")
	f.Add([]byte(`{"data_base64":"eyJzaG9wX2lkIjoiMSIsInRpZCI6MTJ9"}`), structured, "")
	f.Add([]byte(`{"shop_id":"1","tid":9223372036854775808}`), "", "")
	f.Add([]byte(`{"shop_id":"1","tid":"0012","tid":1e3}`), "", "")
	f.Add([]byte(`{"shop_id":"1","tid":1,"out_sid":1,"company_code":[],"is_split":"1","sub_tid":[1.5,null,"x"],"sender_id":-1,"cancel_id":{},"feature":1,"vvtype":9}`), "", "")
	f.Add([]byte(`{"shop_id":"1","tid":1,"out_sid":"\u200bｓｆ１\ufeff","company_code":"顺丰","is_split":1,"sub_tid":"3,2,2,,1"}`), "", "")
	f.Add([]byte(`{"shop_id":"1","tid":1,"out_sid":"\ud800<&>\u2028","company_code":"\u0000"}`), "", "")
	f.Add([]byte(`{"shop_id":"1","tid":1,"items":[{"oid":11,"quantity":2},{"oid":"12"}]}`), "", "")
	f.Add([]byte(`{"shop_id":"1","tid":1,"items":[{"oid":11,"quantity":0.5},{"sku":"12"}]}`), "", "")
	f.Add([]byte(`[]`), "", "")
	f.Add([]byte(nil), "", "")
	f.Fuzz(func(t *testing.T, value []byte, contentType, ceID string) {
		rec := record(string(value), "content-type", contentType, "ce_id", ceID)
		p, err := DecodePacked(rec)
		again, errAgain := DecodePacked(rec)
		if !reflect.DeepEqual(p, again) || !reflect.DeepEqual(err, errAgain) {
			t.Fatalf("decoded twice: %+v, %v and %+v, %v", p, err, again, errAgain)
		}
		if !bytes.Equal(rec.Value, value) {
			t.Fatal("the record was changed")
		}
		if contentType == "" && fitsPackedSchema(t, value) && (err != nil || len(p.Violations) > 0) {
			t.Fatalf("the JSON Schema accepts what is decoded as %+v, %v", p, err)
		}
		if err != nil {
			notPacked, ok := errors.AsType[*NotPackedError](err)
			if !ok || !slices.Contains(NotPackedReasons, notPacked.Reason) || notPacked.Detail == "" || len(notPacked.Detail) > 1000 || p != nil {
				t.Fatalf("got %+v, %#v", p, err)
			}
			return
		}
		event := readEvent(rec)
		if want := readID(event["tid"]); p.TID != want || !ValidID(p.TID) {
			t.Fatalf("tid %q, want %q", p.TID, want)
		}
		if want := readItems(event["items"]); !slices.Equal(p.Items, want) {
			t.Fatalf("items %v, want %v", p.Items, want)
		}
		if !ValidShopID(p.ShopID) || p.IsSplit < 0 || p.IsSplit > 1 || p.VVType < 0 || p.VVType > 4 {
			t.Fatalf("got %+v", p)
		}
		if NormalizeWaybill(p.OutSID) != p.OutSID || NormalizeCarrier(p.CompanyCode) != p.CompanyCode {
			t.Fatalf("normalising twice differs: %q, %q", p.OutSID, p.CompanyCode)
		}
		checkWritten(t, p)
	})
}

var (
	inStrings = regexp.MustCompile(`"(\\.|[^"\\])*"`)
	oddNumber = regexp.MustCompile(`-|[0-9][.eE]`)
)

// fitsPackedSchema reports whether the value is a packed event by its JSON
// Schema. A schema cannot see how a number is written, so that one with a
// sign, point or exponent never fits here.
func fitsPackedSchema(t *testing.T, value []byte) bool {
	t.Helper()
	if !utf8.Valid(value) || validate(t, "order.packed.v1", value) != nil {
		return false
	}
	return !oddNumber.Match(inStrings.ReplaceAll(value, []byte(`""`)))
}
