package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// compiled holds the JSON Schemas, compiled, by name.
var compiled = sync.OnceValues(func() (map[string]*jsonschema.Schema, error) {
	all := map[string]*jsonschema.Schema{}
	for _, name := range Names() {
		text, ok := JSONSchema(name)
		if !ok {
			return nil, fmt.Errorf("no JSON Schema %s", name)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		c := jsonschema.NewCompiler()
		c.AssertFormat()
		if err := c.AddResource(name, doc); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if all[name], err = c.Compile(name); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return all, nil
})

// validate returns what the named JSON Schema has against the value.
func validate(t *testing.T, name string, value []byte) error {
	t.Helper()
	all, err := compiled()
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(value))
	if err != nil {
		return err
	}
	return all[name].Validate(v)
}

func TestNames(t *testing.T) {
	want := []string{"order.packed.v1", "order.shipped.v1", "order.shipment-failed.v1"}
	if diff := cmp.Diff(want, Names()); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	Names()[0] = "changed"
	if Names()[0] != want[0] {
		t.Error("a caller can change the names")
	}
	for _, name := range []string{"", "order", "order.packed.v2", "order.packed.v1.json", "../schema/order.packed.v1"} {
		if text, ok := JSONSchema(name); ok || text != nil {
			t.Errorf("there is a JSON Schema named %q", name)
		}
	}
	files, err := schemas.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(want) {
		t.Errorf("%d files are embedded for %d names", len(files), len(want))
	}
}

func TestSchemasSayWhatTheyAre(t *testing.T) {
	for i, name := range Names() {
		text, _ := JSONSchema(name)
		var doc struct {
			Schema string `json:"$schema"`
			ID     string `json:"$id"`
			Title  string `json:"title"`
		}
		if err := json.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		if doc.Schema != "https://json-schema.org/draft/2020-12/schema" {
			t.Errorf("%s: $schema is %q", name, doc.Schema)
		}
		if want := "urn:packship:schema:" + name; doc.ID != want {
			t.Errorf("%s: $id is %q, want %q", name, doc.ID, want)
		}
		if want := []string{TypePacked, TypeShipped, TypeFailed}[i]; doc.Title != want {
			t.Errorf("%s: title is %q, want the event's type %q", name, doc.Title, want)
		}
	}
}

// results returns outcomes as the other packages compose them.
func results(t *testing.T) map[string]Outcome {
	t.Helper()
	whole := decode(t, record(strings.NewReplacer(`"is_split":1,`, ``, `"sub_tid":"3941893279420000003,3941893279420000002",`, ``).Replace(bare)))
	parts := decode(t, record(bare))
	wrong := decode(t, record(`{"shop_id":"1","tid":12,"out_sid":7,"is_split":2,"sub_tid":[1,{}]}`))
	exchange := &Exchange{HTTPStatus: 200, Code: 0, Msg: "成功", Msec: 1193, Time: 1612416107, Withheld: 1}
	seal := func(p *Packed, round int, change func(*Result)) Outcome {
		r := NewResult(p, Source{Topic: TypePacked, Partition: 0, Offset: 12, EventID: p.EventID})
		change(&r)
		o, err := r.Outcome(&p.Shipment, round, time.Date(2026, 11, 24, 10, 0, 0, 123456789, time.FixedZone("CST", 8*3600)))
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	return map[string]Outcome{
		"shipped": seal(whole, 1, func(r *Result) { r.Attempts, r.Upstream = 1, exchange }),
		"shipped, reconciled": seal(parts, 2, func(r *Result) {
			r.Attempts, r.Reconciled = 2, true
			r.Upstream = &Exchange{HTTPStatus: 200, Code: 614, Msg: "已生成发货单", Msec: 90, Time: 1612416107, Withheld: 1}
		}),
		"failed by an answer": seal(parts, 1, func(r *Result) {
			r.Attempts = 1
			r.Upstream = &Exchange{HTTPStatus: 200, Code: 614, Msg: "您填写的运单号已被使用,不允许用此物流运单号发货", Time: 1612416107}
			r.Failure = &Failure{Reason: "waybill_already_used", Class: "waybill_rejected", Redrivable: true, Advice: "Use another waybill & redrive."}
		}),
		"failed by a rule": seal(wrong, 1, func(r *Result) {
			r.Failure = &Failure{Reason: "local_validation", Class: "invalid_request", Redrivable: true, Violations: wrong.Violations}
		}),
		"failed by age": seal(whole, 1, func(r *Result) {
			r.Failure = &Failure{Reason: "beyond_horizon", Class: "needs_human", Redrivable: true, MaybeShipped: true}
		}),
		"failed in doubt": seal(whole, 1, func(r *Result) {
			r.Attempts = 4
			r.Failure = &Failure{Reason: "outcome_unknown", Class: "needs_human", Redrivable: true, MaybeShipped: true, StopParcel: true}
		}),
	}
}

// schemaOf returns the name of the JSON Schema of an outcome's event.
func schemaOf(o Outcome) string {
	if o.Verdict == Shipped {
		return "order.shipped.v1"
	}
	return "order.shipment-failed.v1"
}

func TestResultsFitTheirSchemas(t *testing.T) {
	for name, o := range results(t) {
		if err := validate(t, schemaOf(o), o.Event); err != nil {
			t.Errorf("%s: %v\n%s", name, err, o.Event)
		}
		for _, other := range Names() {
			if other != schemaOf(o) && validate(t, other, o.Event) == nil && other != "order.packed.v1" {
				t.Errorf("%s: is a valid %s as well", name, other)
			}
		}
	}
}

// properties returns the names of a JSON Schema's properties and those that
// are required, at a path of $defs.
func properties(t *testing.T, name, def string) (all, required []string) {
	t.Helper()
	text, _ := JSONSchema(name)
	type object struct {
		Properties map[string]json.RawMessage `json:"properties"`
		Required   []string                   `json:"required"`
	}
	var doc struct {
		object
		Defs map[string]object `json:"$defs"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	o := doc.object
	if def != "" {
		o = doc.Defs[def]
	}
	for property := range o.Properties {
		all = append(all, property)
	}
	slices.Sort(all)
	slices.Sort(o.Required)
	return all, o.Required
}

// jsonFields returns the JSON names of a struct's fields, those of embedded
// structs included, and those that are always there.
func jsonFields(t *testing.T, typ reflect.Type, embedded bool) (all, always []string) {
	t.Helper()
	for field := range typ.Fields() {
		if field.Anonymous {
			if embedded {
				a, w := jsonFields(t, field.Type.Elem(), embedded)
				all, always = append(all, a...), append(always, w...)
			}
			continue
		}
		tag, ok := field.Tag.Lookup("json")
		if !ok {
			t.Fatalf("%s.%s has no json tag", typ, field.Name)
		}
		name, options, _ := strings.Cut(tag, ",")
		all = append(all, name)
		if !strings.Contains(options, "omit") {
			always = append(always, name)
		}
	}
	slices.Sort(all)
	slices.Sort(always)
	return all, always
}

func TestSchemasAndStructsNameTheSameFields(t *testing.T) {
	for _, test := range []struct {
		schema, def string
		typ         reflect.Type
		embedded    bool
		mustToo     []string // required, though the struct may leave it out
	}{
		{"order.shipped.v1", "", reflect.TypeFor[Result](), false, []string{"upstream"}},
		{"order.shipped.v1", "upstream", reflect.TypeFor[Exchange](), false, nil},
		{"order.shipped.v1", "source", reflect.TypeFor[Source](), false, nil},
		{"order.shipment-failed.v1", "", reflect.TypeFor[Result](), true, nil},
		{"order.shipment-failed.v1", "upstream", reflect.TypeFor[Exchange](), false, nil},
		{"order.shipment-failed.v1", "source", reflect.TypeFor[Source](), false, nil},
		{"order.shipment-failed.v1", "violation", reflect.TypeFor[Violation](), false, nil},
	} {
		all, required := properties(t, test.schema, test.def)
		fields, always := jsonFields(t, test.typ, test.embedded)
		always = append(always, test.mustToo...)
		slices.Sort(always)
		if diff := cmp.Diff(fields, all); diff != "" {
			t.Errorf("%s %s: properties (-struct +schema):\n%s", test.schema, test.def, diff)
		}
		if diff := cmp.Diff(always, required); diff != "" {
			t.Errorf("%s %s: required (-struct +schema):\n%s", test.schema, test.def, diff)
		}
	}

	// Packed has no tags, because no json package fills it.
	all, required := properties(t, "order.packed.v1", "")
	var names, fields []string
	for _, property := range all {
		names = append(names, strings.ToLower(strings.ReplaceAll(property, "_", "")))
	}
	for field := range reflect.TypeFor[Packed]().Fields() {
		if field.Name != "Shipment" && field.Name != "Violations" {
			fields = append(fields, strings.ToLower(field.Name))
		}
	}
	slices.Sort(names)
	slices.Sort(fields)
	if diff := cmp.Diff(fields, names); diff != "" {
		t.Errorf("order.packed.v1: properties (-struct +schema):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"company_code", "out_sid", "shop_id", "tid"}, required); diff != "" {
		t.Errorf("order.packed.v1: required (-want +got):\n%s", diff)
	}
}

// change returns the JSON object with one field set to raw JSON, or without it
// if raw is empty.
func change(t *testing.T, object []byte, field, raw string) []byte {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(object, &m); err != nil {
		t.Fatal(err)
	}
	if raw == "" {
		delete(m, field)
	} else {
		m[field] = json.RawMessage(raw)
	}
	changed, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func TestPackedSchema(t *testing.T) {
	const simple = `{"shop_id":"123456789","tid":"3941893279420000001","out_sid":"SF0000000000001","company_code":"SF"}`
	for _, value := range []string{simple, bare} {
		if err := validate(t, "order.packed.v1", []byte(value)); err != nil {
			t.Fatalf("%v\n%s", err, value)
		}
	}
	for _, test := range []struct {
		base, field, raw string
		ok               bool
	}{
		{simple, "shop_id", ``, false},
		{simple, "shop_id", `123456789`, false},
		{simple, "shop_id", `""`, false},
		{simple, "shop_id", `"店"`, false},
		{simple, "shop_id", `"` + strings.Repeat("a", 65) + `"`, false},
		{simple, "shop_id", `"dwadaw_7-dawd"`, true},
		{simple, "tid", ``, false},
		{simple, "tid", `3941893279420000001`, true},
		{simple, "tid", `9223372036854775807`, true},
		{simple, "tid", `9223372036854775808`, false},
		{simple, "tid", `0`, false},
		{simple, "tid", `-1`, false},
		{simple, "tid", `1.5`, false},
		{simple, "tid", `"0012"`, false},
		{simple, "tid", `"+12"`, false},
		{simple, "tid", `"９９"`, false},
		{simple, "tid", `" 12"`, false},
		{simple, "tid", `true`, false},
		{simple, "tid", `null`, false},
		{simple, "out_sid", ``, false},
		{simple, "out_sid", `" "`, false},
		{simple, "out_sid", `17`, false},
		{simple, "company_code", ``, false},
		{simple, "company_code", `"顺丰"`, true},
		{simple, "event_id", `"evt-1"`, true},
		{simple, "event_id", `1`, false},
		{simple, "occurred_at", `"2026-11-24T02:00:00+08:00"`, true},
		{simple, "occurred_at", `"yesterday"`, false},
		{simple, "is_split", `0`, true},
		{simple, "is_split", `1`, false}, // without sub_tid
		{simple, "sub_tid", `"1,2"`, false},
		{simple, "sub_tid", `[1]`, false},
		{simple, "sub_tid", `""`, true},
		{simple, "sub_tid", `[]`, true},
		{bare, "is_split", `0`, false},
		{bare, "is_split", ``, false},
		{bare, "is_split", `2`, false},
		{bare, "is_split", `true`, false},
		{bare, "is_split", `"1"`, false},
		{bare, "sub_tid", ``, false},
		{bare, "sub_tid", `""`, false},
		{bare, "sub_tid", `[]`, false},
		{bare, "sub_tid", `"1,2,3"`, true},
		{bare, "sub_tid", `[1,"2",2345678901234567891]`, true},
		{bare, "sub_tid", `"1, 2"`, false},
		{bare, "sub_tid", `"1,,2"`, false},
		{bare, "sub_tid", `"1，2"`, false},
		{bare, "sub_tid", `[1.5]`, false},
		{bare, "sub_tid", `[""]`, false},
		{bare, "sub_tid", `7`, false},
		{simple, "sender_id", `7`, true},
		{simple, "sender_id", `"7"`, true},
		{simple, "sender_id", `"x"`, false},
		{simple, "cancel_id", `0`, false},
		{simple, "feature", `"a=1:b"`, true},
		{simple, "feature", `{}`, false},
		{simple, "vvtype", `4`, true},
		{simple, "vvtype", `5`, false},
		{simple, "vvtype", `"1"`, false},
		{simple, "colour", `{"a":[1]}`, true},
	} {
		value := change(t, []byte(test.base), test.field, test.raw)
		err := validate(t, "order.packed.v1", value)
		if (err == nil) != test.ok {
			t.Errorf("%s=%s: got %v, want accepted %t", test.field, test.raw, err, test.ok)
		}
		if err != nil {
			continue
		}
		p, err := DecodePacked(record(string(value)))
		if err != nil || len(p.Violations) > 0 {
			t.Errorf("%s=%s: the schema accepts what DecodePacked does not: %+v, %v", test.field, test.raw, p, err)
		}
	}
}

func TestResultSchemasReject(t *testing.T) {
	all := results(t)
	for _, test := range []struct{ of, field, raw string }{
		{"shipped", "status", `"failed"`},
		{"shipped", "result_id", `"7"`},
		{"shipped", "result_id", `"0b1f3c1e-0000-4000-8000-000000000000"`}, // not a version 5
		{"shipped", "occurred_at", `"2026-11-24T02:00:00Z"`},
		{"shipped", "occurred_at", `"2026-11-24T10:00:00.123+08:00"`},
		{"shipped", "occurred_at", `"2026-13-24T10:00:00.123Z"`},
		{"shipped", "tid", `3941893279420000001`},
		{"shipped", "tid", `"0012"`},
		{"shipped", "is_split", `true`},
		{"shipped", "sub_tid", `null`},
		{"shipped", "sub_tid", `"1,2"`},
		{"shipped", "attempts", `0`},
		{"shipped", "attempts", `"1"`},
		{"shipped", "reconciled", `0`},
		{"shipped", "upstream", ``},
		{"shipped", "upstream", `{}`},
		{"shipped", "upstream", `null`},
		{"shipped", "source", ``},
		{"shipped", "source", `{"topic":"t","partition":-1,"offset":0,"event_id":"e"}`},
		{"shipped", "source", `{"topic":"t","partition":0,"offset":0,"event_id":""}`},
		{"failed by an answer", "status", `"shipped"`},
		{"failed by an answer", "reason", ``},
		{"failed by an answer", "reason", `"ok"`},
		{"failed by an answer", "reason", `"no idea"`},
		{"failed by an answer", "class", `"success"`},
		{"failed by an answer", "class", `"no idea"`},
		{"failed by an answer", "reconciled", `true`},
		{"failed by an answer", "redrivable", `"yes"`},
		{"failed by an answer", "maybe_shipped", `null`},
		{"failed by an answer", "stop_parcel_advised", ``},
		{"failed by an answer", "advice", ``},
		{"failed by an answer", "violations", `null`},
		{"failed by an answer", "violations", `[{"rule":"V28","field":"tid","message":""}]`},
		{"failed by an answer", "violations", `[{"rule":"V03","field":"","message":""}]`},
		{"failed by an answer", "violations", `[{"rule":"V03","message":""}]`},
		{"failed by an answer", "attempts", `-1`},
		{"failed by a rule", "violations", `[]`},
		{"failed by a rule", "class", `"needs_human"`},
		{"failed by age", "class", `"transient"`},
		{"failed by age", "maybe_shipped", `false`},
		{"failed in doubt", "maybe_shipped", `false`},
	} {
		o, ok := all[test.of]
		if !ok {
			t.Fatalf("no result %q", test.of)
		}
		if err := validate(t, schemaOf(o), change(t, o.Event, test.field, test.raw)); err == nil {
			t.Errorf("%s with %s=%s was accepted", test.of, test.field, test.raw)
		}
	}
	// A field that a later version may add is no reason to refuse an event.
	for name, o := range all {
		if err := validate(t, schemaOf(o), change(t, o.Event, "colour", `"red"`)); err != nil {
			t.Errorf("%s with one more field: %v", name, err)
		}
	}
}

// enum returns the values of an enumerated property.
func enum(t *testing.T, name, property string) []string {
	t.Helper()
	text, _ := JSONSchema(name)
	var doc struct {
		Properties map[string]json.RawMessage `json:"properties"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	var one struct {
		Enum []string `json:"enum"`
	}
	if err := json.Unmarshal(doc.Properties[property], &one); err != nil {
		t.Fatal(err)
	}
	return one.Enum
}

func TestReasonsAndClassesAreClosedSets(t *testing.T) {
	reasons, classes := enum(t, "order.shipment-failed.v1", "reason"), enum(t, "order.shipment-failed.v1", "class")
	if !slices.Equal(reasons, Reasons()) || !slices.Equal(classes, Classes()) {
		t.Errorf("the sets are not those of the JSON Schema:\n%q\n%q", Reasons(), Classes())
	}
	// 60 rows, of which two share a slug and one is the success, and nine
	// reasons that no row of the table gives.
	if len(reasons) != 58+9 {
		t.Errorf("%d reasons, want 67", len(reasons))
	}
	if len(classes) != 16 {
		t.Errorf("%d classes, want 16", len(classes))
	}
	for _, reason := range []string{
		"local_validation", "beyond_horizon", "outcome_unknown", "unlisted_code", "unrecognised_614", "code_204_unrecognised",
		"accepted_not_shipped", "success_unproven", "shipped_with_other_waybill_possible", "waybill_already_used", "system_exception",
	} {
		if !slices.Contains(reasons, reason) {
			t.Errorf("reason %s is missing", reason)
		}
	}
	for _, set := range [][]string{reasons, classes} {
		sorted := slices.Sorted(slices.Values(set))
		if len(slices.Compact(sorted)) != len(set) {
			t.Errorf("a value is there twice: %q", set)
		}
	}
}
