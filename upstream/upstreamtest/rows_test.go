package upstreamtest_test

import (
	"strings"
	"testing"

	"packship/upstream/upstreamtest"
)

func TestRows(t *testing.T) {
	rows := upstreamtest.Rows()
	if len(rows) != 60 {
		t.Fatalf("got %d rows, want 60", len(rows))
	}
	type key struct {
		code int
		text string
	}
	texts := map[key][]int{}
	slugs := map[string]int{}
	platform, subCodes := 0, 0
	for i, r := range rows {
		if r.N != i+1 {
			t.Errorf("row %d has number %d", i+1, r.N)
		}
		if r.Message == "" || r.Slug == "" {
			t.Errorf("row %d lacks a message or slug: %+v", r.N, r)
		}
		texts[key{r.Code, r.Message}] = append(texts[key{r.Code, r.Message}], r.N)
		slugs[r.Slug]++
		if r.Code == 614 {
			platform++
			if r.SubCode != "" {
				subCodes++
			}
		} else if r.SubCode != "" {
			t.Errorf("row %d of the vendor has a platform's code %q", r.N, r.SubCode)
		}
		if r.SubCode != "" && !strings.HasPrefix(r.SubCode, "isv.") {
			t.Errorf("row %d: sub code %q", r.N, r.SubCode)
		}
	}
	if platform != 48 || subCodes != 46 {
		t.Errorf("got %d rows of the platform, %d with its codes, want 48 and 46", platform, subCodes)
	}
	if len(texts) != 59 || len(slugs) != 59 {
		t.Errorf("got %d texts and %d slugs, want 59 each", len(texts), len(slugs))
	}
	for k, ns := range texts {
		if len(ns) > 1 && (len(ns) != 2 || ns[0] != 13 || ns[1] != 49) {
			t.Errorf("rows %v share the text %q", ns, k.text)
		}
	}
}

func TestRowN(t *testing.T) {
	for _, n := range []int{-1, 0, 61} {
		if _, ok := upstreamtest.RowN(n); ok {
			t.Errorf("there is a row %d", n)
		}
	}
	if r, ok := upstreamtest.RowN(60); !ok || r.Code != 614 {
		t.Errorf("row 60 is %+v", r)
	}
}

func TestMessageStyles(t *testing.T) {
	tests := map[string]struct {
		style upstreamtest.MessageStyle
		row   int
		want  string
	}{
		"as the page":                {upstreamtest.MessagesDoc, 27, "对不起,您尚未成功订购 E 速宝物流服务"},
		"full width, no spaces":      {upstreamtest.MessagesTop, 27, "对不起，您尚未成功订购E速宝物流服务"},
		"no space between scripts":   {upstreamtest.MessagesTop, 42, "订单已经被拆单，isSplit必须是1"},
		"the long text of B04":       {upstreamtest.MessagesTop, 15, "订单状态不对该物流订单已经发货或者已关闭，不能重复发货"},
		"no full stop":               {upstreamtest.MessagesTop, 52, "feature参数格式不对"},
		"with the code":              {upstreamtest.MessagesSubCode, 15, "isv.logistics-offline-service-error:B04 订单状态不对"},
		"with a longer code":         {upstreamtest.MessagesSubCode, 54, "isv.invalid-parameter:seller_nick:P17 非法的 nick,无权查询"},
		"without a known code":       {upstreamtest.MessagesSubCode, 56, "物流公司不存在或被禁用"},
		"the vendor's stay the same": {upstreamtest.MessagesTop, 3, "请求超时,请重试"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sim := open(t, upstreamtest.Options{
				AutoCreate: true, Switches: upstreamtest.Switches{Messages: tt.style},
				Faults: []upstreamtest.Fault{{Kind: upstreamtest.AnyRow(tt.row)}},
			})
			if got := send(t, sim, order("S1", "1001")); got.Msg != tt.want {
				t.Errorf("got %q, want %q", got.Msg, tt.want)
			}
		})
	}
}
