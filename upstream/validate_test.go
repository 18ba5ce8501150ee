package upstream

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"packship/schema"
)

// packed decodes an event as the consumer does.
func packed(t *testing.T, fields string) *schema.Packed {
	t.Helper()
	base := `"shop_id":"S1","tid":"2345678901234567891","out_sid":"SF1234567890123","company_code":"SF"`
	p, err := schema.DecodePacked(&schema.Record{Value: []byte("{" + base + fields + "}")})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func subs(n int) string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprint(1000 + i)
	}
	return strings.Join(ids, ",")
}

func TestValidate(t *testing.T) {
	tests := map[string]struct {
		fields string // later fields win over earlier ones
		want   []string
	}{
		"nothing":          {``, nil},
		"everything":       {`,"is_split":1,"sub_tid":"11,12","sender_id":"5","cancel_id":6,"feature":"identCode=11:A1|12:B1,B2;retailStoreId=9;retailStoreType=STORE","vvtype":4`, nil},
		"is_split 0":       {`,"is_split":0`, nil},
		"sub_tid empty":    {`,"is_split":0,"sub_tid":""`, nil},
		"feature empty":    {`,"feature":""`, nil},
		"waybill in small": {`,"out_sid":" ｓｆ1234567890123\u3000"`, nil},
		"carrier in small": {`,"company_code":"sf"`, nil},
		"Chinese carrier":  {`,"company_code":"某某快递"`, nil},
		"carrier of 20":    {`,"company_code":"` + strings.Repeat("快", 20) + `"`, nil},
		"merged parcel":    {`,"out_sid":"SF9999999999999"`, nil},
		"50 sub-orders":    {`,"is_split":1,"sub_tid":"` + subs(50) + `"`, nil},
		"sub_tid array":    {`,"is_split":1,"sub_tid":[11,"12"]`, nil},

		"V04 missing":              {`,"out_sid":null`, []string{"V04 out_sid"}},
		"V04 blank":                {`,"out_sid":" \u3000\u200b\ufeff"`, []string{"V04 out_sid"}},
		"V04 number":               {`,"out_sid":1234567890123`, []string{"V04 out_sid"}},
		"V05 short":                {`,"out_sid":"SF12"`, []string{"V05 out_sid"}},
		"V05 long":                 {`,"out_sid":"` + strings.Repeat("1", 36) + `"`, []string{"V05 out_sid"}},
		"V05 two numbers":          {`,"out_sid":"SF1234567890123;SF1234567890124"`, []string{"V05 out_sid"}},
		"V05 inner space":          {`,"out_sid":"SF12345 67890123"`, []string{"V05 out_sid"}},
		"V05 Chinese":              {`,"out_sid":"顺丰1234567890123"`, []string{"V05 out_sid"}},
		"V08 missing":              {`,"company_code":null`, []string{"V08 company_code"}},
		"V08 blank":                {`,"company_code":"  "`, []string{"V08 company_code"}},
		"V08 number":               {`,"company_code":5`, []string{"V08 company_code"}},
		"V09 other (case 12)":      {`,"company_code":"other"`, []string{"V09 company_code"}},
		"V09 Other":                {`,"company_code":" Other "`, []string{"V09 company_code"}},
		"V09 full-width":           {`,"company_code":"ＯＴＨＥＲ"`, []string{"V09 company_code"}},
		"V09 unknown":              {`,"company_code":"SFF"`, []string{"V09 company_code"}},
		"V09 JD's number":          {`,"company_code":"463"`, []string{"V09 company_code"}},
		"V09 not Chinese":          {`,"company_code":"Почта"`, []string{"V09 company_code"}},
		"V09 control":              {`,"company_code":"某某\n快递"`, []string{"V09 company_code"}},
		"V10 long name":            {`,"company_code":"` + strings.Repeat("快", 21) + `"`, []string{"V10 company_code"}},
		"V11 swapped (case 12)":    {`,"company_code":"SF1234567890123","out_sid":"SF"`, []string{"V05 out_sid", "V09 company_code", "V11 out_sid", "V11 company_code"}},
		"V11 number":               {`,"company_code":"75312345678901"`, []string{"V09 company_code", "V11 company_code"}},
		"V11 same":                 {`,"company_code":"SF1234567890123"`, []string{"V09 company_code", "V11 company_code"}},
		"V11 order id":             {`,"out_sid":"2345678901234567891"`, []string{"V11 out_sid"}},
		"V11 code":                 {`,"out_sid":"YUNDA"`, []string{"V11 out_sid"}},
		"V12 2":                    {`,"is_split":2`, []string{"V12 is_split"}},
		"V12 true":                 {`,"is_split":true,"sub_tid":"11"`, []string{"V12 is_split"}},
		"V12 string":               {`,"is_split":"1","sub_tid":"11"`, []string{"V12 is_split"}},
		"V13 not split (case 10)":  {`,"is_split":0,"sub_tid":"11,12"`, []string{"V13 is_split"}},
		"V13 only sub_tid":         {`,"sub_tid":"11,12"`, []string{"V13 is_split"}},
		"V13 no sub_tid (case 10)": {`,"is_split":1`, []string{"V13 sub_tid"}},
		"V13 empty array":          {`,"is_split":1,"sub_tid":[]`, []string{"V13 sub_tid"}},
		"V14 empty (case 10)":      {`,"is_split":1,"sub_tid":"11,,12"`, []string{"V14 sub_tid"}},
		"V14 wide (case 10)":       {`,"is_split":1,"sub_tid":"11，12"`, []string{"V14 sub_tid"}},
		"V14 twice (case 10)":      {`,"is_split":1,"sub_tid":"11,11"`, []string{"V14 sub_tid"}},
		"V14 51 (case 10)":         {`,"is_split":1,"sub_tid":"` + subs(51) + `"`, []string{"V14 sub_tid"}},
		"V14 space":                {`,"is_split":1,"sub_tid":"11, 12"`, []string{"V14 sub_tid"}},
		"V14 zero":                 {`,"is_split":1,"sub_tid":"011"`, []string{"V14 sub_tid"}},
		"V14 too large":            {`,"is_split":1,"sub_tid":"9223372036854775808"`, []string{"V14 sub_tid"}},
		"V14 two items":            {`,"is_split":1,"sub_tid":"a,b"`, []string{"V14 sub_tid", "V14 sub_tid"}},
		"V14 object":               {`,"is_split":1,"sub_tid":{}`, []string{"V14 sub_tid"}},
		"V14 item":                 {`,"is_split":1,"sub_tid":[1.5,"x","x"]`, []string{"V14 sub_tid"}},
		"V15 (case 11)":            {`,"feature":"identCode=1001:A1；machineCode=1002:B1"`, []string{"V15 feature"}},
		"V15 two":                  {`,"feature":"x=1;identCode=1:A;y"`, []string{"V15 feature", "V15 feature"}},
		"V15 type":                 {`,"feature":[]`, []string{"V15 feature"}},
		"V16 (case 11)":            {`,"is_split":1,"sub_tid":"11","feature":"identCode=12:A|11:B;machineCode=12:C"`, []string{"V16 feature"}},
		"V16 whole order":          {`,"feature":"identCode=12:A"`, nil},
		"V16 with items":           {`,"items":[{"oid":11},{"oid":"13"}],"feature":"identCode=12:A|11:B;machineCode=12:C|14:D"`, []string{"V16 feature", "V16 feature"}},
		"V16 split, with items":    {`,"is_split":1,"sub_tid":"11","items":[{"oid":11},{"oid":12}],"feature":"identCode=12:A|11:B"`, []string{"V16 feature"}},
		"V16 is_split 0":           {`,"is_split":0,"items":[{"oid":11}],"feature":"identCode=12:A"`, []string{"V16 feature"}},
		"V16 is_split mistyped":    {`,"is_split":true,"items":[{"oid":11}],"feature":"identCode=12:A"`, []string{"V12 is_split"}},
		"V16 sub_tid mistyped":     {`,"is_split":1,"sub_tid":{},"items":[{"oid":11}],"feature":"identCode=12:A"`, []string{"V14 sub_tid"}},
		"V15 too few codes":        {`,"items":[{"oid":11,"quantity":2},{"oid":12}],"feature":"identCode=11:A|12:B,C"`, []string{"V15 feature"}},
		"V15 too many codes":       {`,"items":[{"oid":11,"quantity":2}],"feature":"machineCode=11:A,B,C"`, []string{"V15 feature"}},
		"V15 codes of a part":      {`,"is_split":1,"sub_tid":"11","items":[{"oid":11,"quantity":2},{"oid":12}],"feature":"identCode=11:A"`, []string{"V15 feature"}},
		"V15 codes of two keys":    {`,"items":[{"oid":11,"quantity":2}],"feature":"identCode=11:A;machineCode=11:A,B,C"`, []string{"V15 feature", "V15 feature"}},
		"items":                    {`,"items":[{"oid":11,"quantity":2},{"oid":"12","quantity":1},{"oid":13}],"feature":"identCode=11:A,B|12:C|13:D,E;machineCode=11:A,B"`, nil},
		"items twice, set":         {`,"items":[{"oid":11,"quantity":2},{"oid":11,"quantity":1},{"oid":11,"quantity":4}],"feature":"identCode=11:A,B,C"`, nil},
		"items of another sort":    {`,"items":[{"oid":11,"quantity":"2"}],"feature":"identCode=12:A"`, nil},
		"items empty":              {`,"items":[],"feature":"identCode=12:A"`, nil},
		"items, no feature":        {`,"items":[{"oid":11,"quantity":2}]`, nil},
		"items, feature mistyped":  {`,"items":[{"oid":11,"quantity":2}],"feature":7`, []string{"V15 feature"}},
		"items, parts of another":  {`,"is_split":1,"sub_tid":"12","items":[{"oid":11}]`, nil},
		"V17 no type":              {`,"feature":"retailStoreId=12345"`, []string{"V17 feature"}},
		"V17 no id":                {`,"feature":"retailStoreType=STORE"`, []string{"V17 feature"}},
		"V15 wrong type":           {`,"feature":"retailStoreType=SHOP;retailStoreId=1"`, []string{"V15 feature"}},
		"V18":                      {`,"vvtype":5`, []string{"V18 vvtype"}},
		"V18 string":               {`,"vvtype":"1"`, []string{"V18 vvtype"}},
		"V19 sender":               {`,"sender_id":"0"`, []string{"V19 sender_id"}},
		"V19 both":                 {`,"sender_id":"x","cancel_id":"9223372036854775808"`, []string{"V19 sender_id", "V19 cancel_id"}},
		"V19 type":                 {`,"sender_id":1.5`, []string{"V19 sender_id"}},
		"V22 Pinduoduo":            {`,"platform":" PDD "`, []string{"V22 platform"}},
		"V22 in Chinese":           {`,"platform":"抖音"`, []string{"V22 platform"}},
		"platform Taobao":          {`,"platform":"taobao"`, nil},
		"platform Tmall":           {`,"platform":"天猫"`, nil},
		"platform of a kind":       {`,"platform":"TB-2"`, nil},
		"platform a number":        {`,"platform":1688`, nil},
		"V23":                      {`,"paid_at":"2026-11-24T10:00:00+08:00","collected_at":"2026-11-24T01:59:59Z"`, []string{"V23 collected_at"}},
		"collected when paid":      {`,"paid_at":"2026-11-24T10:00:00+08:00","collected_at":"2026-11-24T02:00:00Z"`, nil},
		"collected only":           {`,"collected_at":"2026-11-24T02:00:00Z"`, nil},
		"paid only":                {`,"paid_at":"2026-11-24T02:00:00Z"`, nil},
		"paid some time":           {`,"paid_at":"soon","collected_at":"2026-11-24T02:00:00Z"`, nil},
		"V25":                      {`,"order_kind":"virtual"`, []string{"V25 order_kind"}},
		"V25 cod":                  {`,"order_kind":"cash_on_delivery"`, []string{"V25 order_kind"}},
		"order kind normal":        {`,"order_kind":"normal"`, nil},
		"order kind object":        {`,"order_kind":{}`, nil},
		"order group":              {`,"order_group":"g1"`, nil},
		"all at once": {
			`,"out_sid":"","company_code":"OTHER","is_split":true,"sub_tid":"0","feature":"x","sender_id":"-1","vvtype":9,"platform":"jd","order_kind":"virtual","paid_at":"2026-01-02T00:00:00Z","collected_at":"2026-01-01T00:00:00Z"`,
			[]string{
				"V04 out_sid", "V09 company_code", "V12 is_split", "V14 sub_tid", "V15 feature", "V18 vvtype", "V19 sender_id",
				"V22 platform", "V23 collected_at", "V25 order_kind",
			},
		},
	}
	u := newUpstream(t, testConfig("http://api.test/"))
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := packed(t, tt.fields)
			given := len(p.Violations)
			var got []string
			for _, v := range u.Validate(p) {
				got = append(got, v.Rule+" "+v.Field)
				if v.Message == "" {
					t.Errorf("%s has no message", v.Rule)
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if len(p.Violations) != given {
				t.Error("the event was changed")
			}
		})
	}
}

// What is said of codes names the place in the feature, and goes on after what
// cannot be read.
func TestValidateItemsSaysWhere(t *testing.T) {
	u := newUpstream(t, testConfig("http://api.test/"))
	for _, tt := range []struct {
		feature string
		want    []string
	}{
		{"identCode=11:A;machineCode=12:B,C|11:A,D,E", []string{
			"V15: feature, character 11: sub-order 11 must have a code for each piece: its quantity is 2, its codes are 1",
			"V15: feature, character 35: sub-order 11 must have a code for each piece: its quantity is 2, its codes are 3",
		}},
		{"identCode=9:A;machineCode=9:B", []string{"V16: feature, character 11: sub-order 9 is not in items"}},
		{"identCode=11:A;;", []string{
			"V15: feature, character 11: sub-order 11 must have a code for each piece: its quantity is 2, its codes are 1",
			"V15: feature, character 16: empty entry; entries are separated by one ';' and the last one has none after it",
			"V15: feature, character 17: empty entry; entries are separated by one ';' and the last one has none after it",
		}},
		// How many codes there would be is not known.
		{"identCode=11:A,B,;machineCode=11:A", []string{
			`V15: feature, character 18: expected a code of sub-order 11, found ";"`,
			"V15: feature, character 31: sub-order 11 must have a code for each piece: its quantity is 2, its codes are 1",
		}},
		{"identCode=11:A；machineCode=11:A,B", []string{`V15: feature, character 27: expected ';' or the end after a code of sub-order 11, found "="`}},
	} {
		p := order(1)
		p.Feature, p.Items = tt.feature, []schema.Item{{OID: "11", Quantity: 2}, {OID: "12"}}
		var got []string
		for _, v := range u.Validate(p) {
			got = append(got, v.Rule+": "+v.Message)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.feature, d)
		}
	}
}

// Shops that also sell over the counter must name the store that ships, others
// may (V17).
func TestOmniChannelShop(t *testing.T) {
	cfg := testConfig("http://api.test/")
	cfg.Accounts[0].Shops, cfg.Accounts[0].OmniChannelShops = []string{"S1", "S2"}, []string{"S1", "S9"}
	u := newUpstream(t, cfg)
	for _, tt := range []struct {
		shop, feature string
		want          []string
	}{
		{"S1", "retailStoreId=9;retailStoreType=STORE", nil},
		{"S1", "", []string{"V17"}},
		{"S1", "identCode=1:A", []string{"V17"}},
		{"S1", "retailStoreId=9", []string{"V17"}},
		{"S1", "retailStoreType=STORE", []string{"V17"}},
		{"S1", "retailStoreType=SHOP;retailStoreId=9", []string{"V15"}},
		{"S2", "", nil},
		{"S2", "retailStoreId=9", []string{"V17"}},
		{"S9", "", []string{"V17"}}, // in no account, so that of the only one
		{"S8", "", nil},
	} {
		p := shopOrder(tt.shop, 1)
		p.Feature = tt.feature
		var got []string
		for _, v := range u.Validate(p) {
			got = append(got, v.Rule)
			if tt.feature == "" && !strings.Contains(v.Message, tt.shop) {
				t.Errorf("%s: %s; want the shop named", tt.shop, v.Message)
			}
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s, %q (-want +got):\n%s", tt.shop, tt.feature, d)
		}
	}
	p, err := schema.DecodePacked(&schema.Record{Value: []byte(`{"shop_id":"S1","tid":1,"out_sid":"SF1234567890123","company_code":"SF","feature":[]}`)})
	if err != nil {
		t.Fatal(err)
	}
	if got := u.Validate(p); len(got) != 1 || got[0].Rule != "V15" {
		t.Errorf("a feature of another type: got %+v, want nothing of its stores", got)
	}
}

// A field that is wrong a million times is not reported a million times.
func TestValidateReportsAreBounded(t *testing.T) {
	u := newUpstream(t, testConfig("http://api.test/"))
	p := order(1)
	p.IsSplit, p.SubTID = 1, strings.Split(strings.Repeat(",", 1<<20), ",")
	p.Feature = strings.Repeat(";", 1<<20)
	if got := len(u.Validate(p)); got != 1+2*maxReported {
		t.Errorf("got %d violations, want one for the length and %d for each field", got, maxReported)
	}
	var b strings.Builder
	b.WriteString("identCode=")
	for i := range 1 << 16 {
		fmt.Fprintf(&b, "%d:A%d|", i+1, i)
	}
	p.SubTID, p.Feature = []string{"0"}, strings.TrimSuffix(b.String(), "|")
	if got := len(u.Validate(p)); got != 1+maxReported {
		t.Errorf("got %d violations, want one of sub_tid and %d of feature", got, maxReported)
	}
	p.IsSplit, p.SubTID, p.Items = 0, nil, []schema.Item{{OID: "70000"}}
	if got := len(u.Validate(p)); got != maxReported {
		t.Errorf("got %d violations, want %d of feature", got, maxReported)
	}
	p.Items = nil
	for i := range 1 << 16 {
		p.Items = append(p.Items, schema.Item{OID: fmt.Sprint(i + 1), Quantity: 2})
	}
	for _, feature := range []string{p.Feature, strings.Repeat(";", 8) + p.Feature} {
		p.Feature = feature
		if got := len(u.Validate(p)); got != maxReported {
			t.Errorf("got %d violations, want %d of feature", got, maxReported)
		}
	}
	f := feature{oids: slices.Repeat([]featureOID{{id: "1", codes: 1}}, 1<<16)}
	if got := len(f.miscounted(map[string]int{"1": 2})); got != maxReported {
		t.Errorf("got %d places with other counts, want %d", got, maxReported)
	}
}

// Ids that the decoder should have refused are refused here, too.
func TestValidateIDs(t *testing.T) {
	u := newUpstream(t, testConfig("http://api.test/"))
	for _, tid := range []string{"0012", "+12", "1.2e3", "９９", "", "9223372036854775808", "201117-681808213123308"} {
		p := order(1)
		p.TID = tid
		if got := u.Validate(p); len(got) != 1 || got[0].Rule != "V03" {
			t.Errorf("%q: got %+v", tid, got)
		}
	}
	for _, shop := range []string{"", "a b", strings.Repeat("x", 65), "店"} {
		p := order(1)
		p.ShopID = shop
		if got := u.Validate(p); len(got) != 1 || got[0].Rule != "V01" {
			t.Errorf("%q: got %+v", shop, got)
		}
	}
	p := order(1)
	p.IsSplit, p.VVType = 7, -1
	if got := u.Validate(p); len(got) != 2 || got[0].Rule != "V12" || got[1].Rule != "V18" {
		t.Errorf("got %+v", got)
	}
}

func TestWaybillCheck(t *testing.T) {
	catalogue, err := ParseCatalogue(strings.NewReader(`carriers:
  - {code: SF, pattern: '^SF[0-9]+$'}
  - {code: LOOSE, pattern: '^L[0-9]+$', check: off}
  - {code: TIGHT, pattern: '^T[0-9]+$', check: strict}
  - {code: ANY}
  - {code: GONE, disabled: true}
  - {code: ONLINE, self_contact: false}
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		check      WaybillCheck
		carrier    string
		want       string
		mismatches float64
	}{
		{CheckOff, "SF", "", 0},
		{CheckWarn, "SF", "", 1},
		{"", "SF", "", 1},
		{CheckStrict, "SF", "V06", 0},
		{CheckStrict, "LOOSE", "", 0},
		{CheckWarn, "LOOSE", "", 0},
		{CheckOff, "TIGHT", "V06", 0},
		{CheckStrict, "ANY", "", 0},
		{CheckStrict, "某某快递", "", 0},
		{CheckWarn, "GONE", "V09", 0},
		{CheckWarn, "ONLINE", "V09", 0},
	} {
		reg := prometheus.NewRegistry()
		cfg := testConfig("http://api.test/")
		cfg.WaybillCheck, cfg.Carriers, cfg.Registerer = tt.check, catalogue, reg
		u := newUpstream(t, cfg)
		p := order(1)
		p.OutSID, p.CompanyCode = "X1234567", tt.carrier
		got := ""
		for _, v := range u.Validate(p) {
			got += v.Rule
		}
		if got != tt.want {
			t.Errorf("check %q, carrier %s: got %q, want %q", tt.check, tt.carrier, got, tt.want)
		}
		if n := series(t, reg)["packship_waybill_mismatches_total{}"]; n != tt.mismatches {
			t.Errorf("check %q, carrier %s: %g mismatches, want %g", tt.check, tt.carrier, n, tt.mismatches)
		}
		p.OutSID = "SF123456"
		if tt.carrier == "SF" && len(u.Validate(p)) > 0 {
			t.Errorf("a good number breaks a rule: %+v", u.Validate(p))
		}
	}
}

func TestParseFeature(t *testing.T) {
	tests := map[string]struct {
		feature string
		errs    []string // the beginnings of the messages
		oids    string
	}{
		"two serials":           {"identCode=1001:12345,67890", nil, "1001"},
		"two keys":              {"identCode=1001:A1,A2|1002:B1;machineCode=1003:M1,M2", nil, "1001 1002 1003"},
		"store":                 {"retailStoreId=12345;retailStoreType=STORE", nil, ""},
		"mixed":                 {"identCode=1001:A1;retailStoreId=9;retailStoreType=WAREHOUSE", nil, "1001"},
		"any letters":           {"identCode=1:ä-/_.(+)串号；１", nil, "1"},
		"same code in two keys": {"identCode=1:A;machineCode=1:A", nil, "1 1"},

		"the page's own": {"identCode=tid:aaa,bbb", []string{`feature, character 11: "tid" is no sub-order id`}, ""},
		"full-width":     {"identCode=1001:A1；machineCode=1003:M1", []string{"feature, character 30: expected ';' or the end"}, "1001"},
		"trailing":       {"identCode=1001:A1;", []string{"feature, character 19: empty entry"}, "1001"},
		"leading":        {";identCode=1001:A1", []string{"feature, character 1: empty entry"}, "1001"},
		"no code":        {"identCode=1001:", []string{"feature, character 16: expected a code"}, "1001"},
		"empty code":     {"identCode=1001:A,,B", []string{"feature, character 18: expected a code"}, "1001"},
		"trailing comma": {"identCode=1001:A,", []string{"feature, character 18: expected a code"}, "1001"},
		"oid twice":      {"identCode=1001:A1|1001:A2", []string{"feature, character 19: sub-order 1001 is there a second time"}, "1001"},
		"key twice":      {"identCode=1001:A1;identCode=1002:B1", []string{"feature, character 19: key identCode is there a second time, first at character 1"}, "1001"},
		"code twice":     {"identCode=1:A|2:A", []string{`feature, character 17: code "A" is there a second time`}, "1 2"},
		"small letters":  {"identcode=1001:A1", []string{`feature, character 1: unknown key "identcode"`}, ""},
		"wrong type":     {"retailStoreType=SHOP;retailStoreId=1", []string{"feature, character 17: retailStoreType must be STORE or WAREHOUSE"}, ""},
		"type and more":  {"retailStoreType=STORE:1", []string{"feature, character 22: expected ';' or the end"}, ""},
		"no store":       {"retailStoreId=;retailStoreType=STORE", []string{"feature, character 15: expected the store id"}, ""},
		"two stores":     {"retailStoreId=1,2;retailStoreType=STORE", []string{"feature, character 16: expected ';' or the end"}, ""},
		"quotes":         {`identCode="1001:A1"`, []string{"feature, character 11: "}, ""},
		"quoted code":    {"identCode=1001:“A1”", []string{"feature, character 16: a code of sub-order 1001 must not hold"}, "1001"},
		"space":          {"identCode=1001:A 1", []string{"feature, character 17: a code of sub-order 1001 must not hold"}, "1001"},
		"wide space":     {"identCode=1001:A\u30001", []string{"feature, character 17: "}, "1001"},
		"zero-width":     {"identCode=1001:A\u200b1", []string{"feature, character 17: "}, "1001"},
		"control":        {"identCode=1001:A\x00", []string{"feature, character 17: "}, "1001"},
		"only a key":     {"identCode", []string{`feature, character 10: expected "=" after identCode`}, ""},
		"no colon":       {"identCode=1001", []string{`feature, character 15: expected ":" after sub-order 1001`}, "1001"},
		"no key":         {"=1001:A", []string{"feature, character 1: expected a key"}, ""},
		"large oid":      {"identCode=9223372036854775808:A", []string{"feature, character 11: "}, ""},
		"zero oid":       {"identCode=01:A", []string{"feature, character 11: "}, ""},
		"empty":          {"", []string{"feature, character 1: empty entry"}, ""},
		"spaces":         {"  ", []string{"feature, character 1: unknown key"}, ""},
		"several": {"x=1;identCode=1:A;y=2;machineCode=:B", []string{
			`feature, character 1: unknown key "x"`, `feature, character 19: unknown key "y"`, "feature, character 35: ",
		}, "1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, errs := parseFeature(tt.feature)
			if len(errs) != len(tt.errs) {
				t.Fatalf("got %v, want %d errors", errs, len(tt.errs))
			}
			for i, want := range tt.errs {
				if !strings.HasPrefix(errs[i].String(), want) {
					t.Errorf("error %d: got %q, want %q", i, errs[i], want)
				}
			}
			var oids []string
			for _, o := range f.oids {
				oids = append(oids, o.id)
			}
			if got := strings.Join(oids, " "); got != tt.oids {
				t.Errorf("sub-orders: got %q, want %q", got, tt.oids)
			}
		})
	}
}

// FuzzFeature holds the parser against the grammar, written a second time as
// one regular expression and a few loops, and its counts of codes against those.
func FuzzFeature(f *testing.F) {
	for _, s := range []string{
		"identCode=1001:12345,67890", "identCode=1001:A1,A2|1002:B1;machineCode=1003:M1,M2", "retailStoreId=12345;retailStoreType=STORE",
		"identCode=tid:aaa,bbb", "identCode=1001:A1；machineCode=1003:M1", "identCode=1001:A1;", "identCode=1001:A1|1001:A2", "x=1;;y", "",
		"identCode=9223372036854775807:A", "identCode=9223372036854775808:A", "identCode=1:“", "identCode=1:\u200b", "\xff=\xff",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		parsed, errs := parseFeature(s)
		if got, want := len(errs) == 0, validFeature(s); got != want {
			t.Fatalf("%q: got valid %t (%v), want %t", s, got, errs, want)
		}
		last := 0
		for _, e := range errs {
			if e.pos < 1 || e.pos > len([]rune(s))+1 || e.pos < last {
				t.Fatalf("%q: error at %d after %d", s, e.pos, last)
			}
			last = e.pos
		}
		var counts []string
		for _, o := range parsed.oids {
			if got := string([]rune(s)[o.pos-1:][:len(o.id)]); got != o.id {
				t.Fatalf("%q: sub-order %s is not at %d", s, o.id, o.pos)
			}
			counts = append(counts, fmt.Sprint(o.id, " ", o.codes))
		}
		if len(errs) == 0 && !slices.Equal(counts, codeCounts(s)) {
			t.Fatalf("%q: codes are %q, want %q", s, counts, codeCounts(s))
		}
	})
}
