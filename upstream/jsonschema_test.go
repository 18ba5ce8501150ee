package upstream

import (
	"bytes"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"packship/schema"
)

// packedSchema is the JSON Schema of the packed event.
func packedSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	const name = "order.packed.v1"
	text, _ := schema.JSONSchema(name)
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource(name, doc); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile(name)
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

// TestJSONSchemaAgrees has the same events looked at by the JSON Schema, by which
// producers go, and by the rules, by which packship goes. Where a schema cannot
// say what the rules say, or says more on purpose, the reason stands beside.
func TestJSONSchemaAgrees(t *testing.T) {
	const (
		split  = `"is_split":1,"sub_tid":"11,12"`
		number = "a schema takes 1.0 for 1"
		strict = "the rules take a mark of the wrong type for none; a producer does not mean that"
		size   = "a pattern for the largest int64 would be a page long"
		value  = "a schema does not know the catalogue, the grammar of features, nor which ids are equal"
	)
	tests := []struct {
		fields string // behind those of a good event; of two with one name the later counts
		ok     bool   // by the rules
		but    string // why the schema thinks otherwise, if it does
	}{
		{`"colour":{"a":[null]}`, true, ""},

		// Nothing, in each field.
		{`"event_id":null`, true, ""},
		{`"occurred_at":null`, true, ""},
		{`"shop_id":null`, false, ""},
		{`"tid":null`, false, ""},
		{`"out_sid":null`, false, ""},
		{`"company_code":null`, false, ""},
		{`"is_split":null`, true, ""},
		{`"sub_tid":null`, true, ""},
		{`"sender_id":null`, true, ""},
		{`"cancel_id":null`, true, ""},
		{`"feature":null`, true, ""},
		{`"vvtype":null`, true, ""},
		{`"platform":null,"order_kind":null,"order_group":null,"paid_at":null,"collected_at":null`, true, ""},
		{`"is_split":null,"sub_tid":null`, true, ""},
		{`"is_split":0,"sub_tid":null`, true, ""},
		{`"is_split":1,"sub_tid":null`, false, ""},
		{`"is_split":null,"sub_tid":"11"`, false, ""},
		{`"is_split":1,"sub_tid":[null]`, false, ""},

		// Empty texts and lists.
		{`"event_id":"","occurred_at":null`, true, ""},
		{`"occurred_at":""`, true, strict},
		{`"shop_id":""`, false, ""},
		{`"tid":""`, false, ""},
		{`"out_sid":""`, false, ""},
		{`"out_sid":" "`, false, ""},
		{`"out_sid":"\u3000\u200b\ufeff\u00a0"`, false, ""},
		{`"company_code":""`, false, ""},
		{`"company_code":"\u3000"`, false, ""},
		{`"is_split":""`, false, ""},
		{`"sub_tid":""`, true, ""},
		{`"sub_tid":[]`, true, ""},
		{`"is_split":1,"sub_tid":""`, false, ""},
		{`"is_split":1,"sub_tid":[]`, false, ""},
		{`"sender_id":""`, true, ""},
		{`"cancel_id":""`, true, ""},
		{`"feature":""`, true, ""},
		{`"vvtype":""`, false, ""},

		// Types.
		{`"event_id":17`, true, strict},
		{`"occurred_at":17`, true, strict},
		{`"occurred_at":"yesterday"`, true, strict},
		{`"shop_id":1`, false, ""},
		{`"tid":1`, true, ""},
		{`"tid":1.5`, false, ""},
		{`"tid":1.0`, false, number},
		{`"tid":true`, false, ""},
		{`"tid":9223372036854775807`, true, ""},
		{`"tid":9223372036854775808`, false, ""},
		{`"tid":"9223372036854775807"`, true, ""},
		{`"tid":"9223372036854775808"`, false, size},
		{`"tid":"9223372036860000000"`, false, size},
		{`"tid":"9999999999999999999"`, false, size},
		{`"tid":"8999999999999999999"`, true, ""},
		{`"tid":"0012"`, false, ""},
		{`"out_sid":17`, false, ""},
		{`"company_code":17`, false, ""},
		{`"is_split":true`, false, ""},
		{`"is_split":1.0,"sub_tid":"11"`, false, number},
		{`"is_split":2`, false, ""},
		{`"sub_tid":7`, false, ""},
		{`"sender_id":7,"cancel_id":"8"`, true, ""},
		{`"sender_id":0`, false, ""},
		{`"sender_id":" "`, false, ""},
		{`"sender_id":[]`, false, ""},
		{`"cancel_id":"x"`, false, ""},
		{`"feature":{}`, false, ""},
		{`"vvtype":"1"`, false, ""},
		{`"vvtype":0`, false, ""},
		{`"vvtype":4`, true, ""},
		{`"vvtype":5`, false, ""},
		{`"platform":7,"order_kind":[],"order_group":{},"paid_at":1764468000,"collected_at":"soon"`, true, ""},
		{`"paid_at":"2026-11-24T02:00:00Z","collected_at":"2026-11-24T03:00:00+08:00"`, false, value}, // collected before
		{`"paid_at":"2026-11-24T02:00:00Z","collected_at":"2026-11-24T03:00:00Z","order_group":"g"`, true, ""},
		{`"platform":"taobao"`, true, ""},
		{`"platform":"pdd"`, false, value},
		{`"order_kind":"virtual"`, false, value},

		{`"items":null`, true, ""},
		{`"items":[{"oid":11,"quantity":2},{"oid":"12"}],"feature":"identCode=11:A,B|12:C"`, true, ""},
		{`"items":{"oid":11},"feature":"identCode=12:A"`, true, ""},
		{`"items":[{"sku":"red","quantity":-1}],"feature":"identCode=12:A"`, true, ""},
		{`"items":[{"oid":11,"quantity":2}],"feature":"identCode=11:A"`, false, value},
		{`"items":[{"oid":11}],"feature":"identCode=12:A"`, false, value},

		// Parts of orders.
		{split, true, ""},
		{`"is_split":1,"sub_tid":[11,"12"]`, true, ""},
		{`"is_split":1,"sub_tid":"11, 12"`, false, ""},
		{`"is_split":1,"sub_tid":"11,,12"`, false, ""},
		{`"is_split":1,"sub_tid":"9223372036854775808"`, false, size},
		{`"is_split":1,"sub_tid":"` + subs(50) + `"`, true, ""},
		{`"is_split":1,"sub_tid":"` + subs(51) + `"`, false, ""},
		{`"is_split":1,"sub_tid":[` + subs(50) + `]`, true, ""},
		{`"is_split":1,"sub_tid":[` + subs(51) + `]`, false, ""},
		{`"is_split":1,"sub_tid":[11,11]`, false, ""},
		{`"is_split":1,"sub_tid":[11,"11"]`, false, value},
		{`"is_split":1,"sub_tid":"11,11"`, false, value},
		{`"sub_tid":"11"`, false, ""},
		{split + `,"feature":"identCode=11:A1"`, true, ""},
		{split + `,"feature":"identCode=13:A1"`, false, value},
		{`"feature":"nonsense"`, false, value},

		// Texts.
		{`"out_sid":" ｓｆ1234567890123 "`, true, ""},
		{`"out_sid":"AB"`, false, value},
		{`"company_code":"顺丰"`, true, ""},
		{`"company_code":"NOPE"`, false, value},
		{`"shop_id":"店"`, false, ""},
	}
	bySchema := packedSchema(t)
	for _, tt := range tests {
		event := []byte(`{"shop_id":"S1","tid":"2345678901234567891","out_sid":"SF1234567890123","company_code":"SF",` + tt.fields + `}`)
		u := newUpstream(t, testConfig("http://api.test/"))
		p, err := schema.DecodePacked(&schema.Record{Value: event})
		accepted := err == nil && len(u.Validate(p)) == 0
		if accepted != tt.ok {
			t.Errorf("%.200s: accepted by the rules: %t, want %t", tt.fields, accepted, tt.ok)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(event))
		if err != nil {
			t.Fatal(err)
		}
		err = bySchema.Validate(v)
		if agrees := (err == nil) == tt.ok; agrees != (tt.but == "") {
			t.Errorf("%.200s: accepted by the rules: %t; by the schema: %v; want them to differ: %q", tt.fields, tt.ok, err, tt.but)
		}
	}
}
