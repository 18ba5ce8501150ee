package upstream

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/text/unicode/norm"

	"packship/schema"
)

func TestTableInvariants(t *testing.T) {
	if got := len(answers.rows); got != 60 {
		t.Fatalf("rows: got %d, want 60", got)
	}
	keys, actions, classes := map[textKey]int{}, map[action]int{}, map[string]int{}
	for i, r := range answers.rows {
		if r.number != i+1 {
			t.Errorf("row at %d has number %d", i+1, r.number)
		}
		keys[textKey{r.code, r.key}]++
		actions[r.action]++
		classes[r.class]++
		if r.slug == "" || r.class == "" || r.advice == "" {
			t.Errorf("row %d lacks a slug, class or advice: %+v", r.number, r)
		}
		retried := r.action == actRetry || r.action == actRetryOnce
		if retried != (r.effect == schema.EffectUnknown) || retried != r.fault || retried != (r.class == "transient") {
			t.Errorf("row %d: retried rows are those with an unknown outcome, a fault and class transient: %+v", r.number, r)
		}
		if (r.action == actRetryOnce) != (r.maxRetries == 1) || (r.action == actRetry) != (r.maxRetries > 1) {
			t.Errorf("row %d: action %s with %d retries", r.number, r.action, r.maxRetries)
		}
		if (r.effect == schema.EffectShipped) != (r.number == 1) {
			t.Errorf("row %d: effect %s", r.number, r.effect)
		}
	}
	if len(keys) != 59 {
		t.Errorf("distinct keys: got %d, want 59", len(keys))
	}
	if a, b := answers.row(13), answers.row(49); a.key != b.key || a.slug != b.slug {
		t.Errorf("rows 13 and 49 should share text and slug: %+v, %+v", a, b)
	}
	wantActions := map[action]int{actFail: 42, actHalt: 5, actReconcile: 4, actRetry: 3, actPark: 3, actRetryOnce: 2, actSucceed: 1}
	if d := cmp.Diff(wantActions, actions); d != "" {
		t.Errorf("actions (-want +got):\n%s", d)
	}
	wantClasses := map[string]int{
		"split_mismatch": 10, "invalid_request": 7, "waybill_rejected": 7, "transient": 5, "order_not_found": 4, "carrier_rejected": 4,
		"needs_human": 4, "config": 3, "permission": 3, "order_state": 3, "shop_unauthorized": 2, "address": 2, "already_shipped": 2,
		"success": 1, "quota": 1, "credentials": 1, "service_not_subscribed": 1,
	}
	if d := cmp.Diff(wantClasses, classes); d != "" {
		t.Errorf("classes (-want +got):\n%s", d)
	}
	retries := map[int]int{}
	for _, r := range answers.rows {
		if r.maxRetries > 0 {
			retries[r.number] = r.maxRetries
		}
	}
	if d := cmp.Diff(map[int]int{3: 2, 5: 1, 6: 3, 53: 1, 55: 2}, retries); d != "" {
		t.Errorf("retry bounds (-want +got):\n%s", d)
	}
}

// The advice stands in events that a person reads at night: one or two short
// sentences that say what to do, in words of the event and the settings.
func TestAdviceIsForPeople(t *testing.T) {
	const most = 220
	inward := regexp.MustCompile(`(?i)\b(isv|encoder|parse|json|http|wire|backoff|ledger|retry|redrive|our|api|null|utf)\b|V[0-9]{2}|code [0-9]`)
	for _, r := range answers.rows {
		if len(r.advice) > most || !strings.HasSuffix(r.advice, ".") || r.advice[0] < 'A' || r.advice[0] > 'Z' {
			t.Errorf("row %d: advice is %d characters long, want at most %d in whole sentences: %s", r.number, len(r.advice), most, r.advice)
		}
		if m := inward.FindString(r.advice); m != "" {
			t.Errorf("row %d: advice speaks of %q to a person who has an order to ship: %s", r.number, m, r.advice)
		}
		if again := strings.Contains(r.advice, "pack the order again") || strings.Contains(r.advice, "Pack it again"); again && !r.redrivable {
			t.Errorf("row %d: advice says to pack the order again, which does not help: %s", r.number, r.advice)
		}
		if r.effect == schema.EffectUnknown && !strings.Contains(r.advice, "may be shipped") {
			t.Errorf("row %d: advice does not say that the order may be shipped: %s", r.number, r.advice)
		}
		if r.action == actPark && !strings.Contains(r.advice, "npark") {
			t.Errorf("row %d: advice does not say how the shop goes on: %s", r.number, r.advice)
		}
	}
}

// Whole-row containment is only safe as long as no row's text is a part of
// another's.
func TestNoRowContainsAnother(t *testing.T) {
	for _, a := range answers.rows {
		for _, b := range answers.rows {
			if a.key != b.key && a.code == b.code && strings.Contains(a.key, b.key) {
				t.Errorf("row %d contains row %d", a.number, b.number)
			}
		}
	}
}

func TestSubCodes(t *testing.T) {
	count := 0
	for _, r := range answers.rows {
		for _, sub := range r.subCodes {
			count++
			text := "isv.logistics-offline-service-error:" + sub
			if strings.Contains(sub, ".") {
				text = sub
			}
			for _, text := range []string{text, text + " 神秘错误", "错误（" + text + "）神秘错误", text + "神秘错误"} {
				m := answers.match(codePlatform, text)
				if m.row == nil || m.row.number != r.number {
					t.Errorf("%s: got %+v, want row %d", text, m, r.number)
				}
			}
		}
	}
	if count != 48 {
		t.Errorf("codes of the platform: got %d, want 48 for 46 rows", count)
	}
}

// Every row is found in the three ways in which the API may write its text.
func TestMatchStyles(t *testing.T) {
	for _, r := range answers.rows[1:] {
		for style, text := range styles(r) {
			m := answers.match(r.code, text)
			if m.row == nil || m.row.slug != r.slug || m.throttled || m.hint {
				t.Errorf("row %d, style %s: %q: got %+v, want %s", r.number, style, text, m, r.slug)
			}
		}
	}
}

// styles writes a row's text as the page does, as the platform does (full-width
// punctuation, no spaces between scripts), and after the platform's own code.
func styles(r *row) map[string]string {
	wide := strings.NewReplacer(",", "，", "(", "（", ")", "）", ":", "：", "。", ".", " ", "").Replace(r.message)
	all := map[string]string{
		"page":   r.message,
		"wide":   wide,
		"spaces": "\u3000" + strings.Join(strings.Split(r.message, ""), "\u200b") + "\ufeff ",
		"upper":  strings.ToUpper(r.message),
	}
	for _, sub := range r.subCodes {
		prefix := "isv.logistics-offline-service-error:" + sub
		if strings.Contains(sub, ".") {
			prefix = sub
		}
		all["sub_code "+sub] = prefix + " " + wide
		all["paraphrase "+sub] = prefix + ":换了一种说法"
	}
	return all
}

func TestMatch(t *testing.T) {
	tests := map[string]struct {
		code      int64
		text      string
		row       int
		throttled bool
		hint      bool
	}{
		"true text of B04":             {614, "订单状态不对该物流订单已经发货或者已关闭，不能重复发货", 15, false, false},
		"true text of CD06":            {614, "推荐物流的订单状态为关闭状态,无需发货处理", 59, false, false},
		"case 15 a":                    {614, "对不起，您尚未成功订购E速宝物流服务", 27, false, false},
		"case 15 b":                    {614, "订单已经被拆单,isSplit 必须是1", 42, false, false},
		"case 15 c":                    {614, "运单号已被使用，当前订单非真， 此物流单号不能使用", 34, false, false},
		"case 16":                      {614, "isv.some-new-thing:ZZ9 神秘错误", 0, false, false},
		"unknown code, known text":     {614, "isv.some-new-thing:ZZ9 物流公司不存在或被禁用", 56, false, false},
		"fragment of two rows":         {614, "运单号已被使用", 0, false, false},
		"short row in a longer text":   {614, "很抱歉,参数为空,请检查", 0, false, false},
		"retried row in a longer text": {614, "很抱歉:发货异常,请稍等后重试吧", 0, false, true},
		"short retried row in a text":  {614, "系统异常:1234", 0, false, true},
		"two rows in one text":         {614, "没有选择物流公司;该物流公司不支持自己联系", 0, false, false},
		"two codes that differ":        {614, "isv.x:B04 isv.x:B60", 0, false, false},
		"two codes of one row":         {614, "isv.x:AT0011 #CD07", 58, false, false},
		"hash code":                    {614, "失败#CD86", 60, false, false},
		"hash code of other kind":      {614, "失败#B04", 0, false, false},
		"lower-case code":              {614, "isv.x:b04", 0, false, false},
		"code in a longer word":        {614, "isv.x:B041X", 0, false, false},
		"bare code":                    {614, "B04", 0, false, false},
		"full-width code":              {614, "ＩＳＶisv.x：B04", 15, false, false},
		"unlisted not found":           {614, "isv.logistics-offline-service-error:ORDER_NOT_FOUND_ERROR", 13, false, false},
		"unlisted fuzzy":               {614, "isv.logistics-offline-service-error:CONSIGN_FUZZY_QUERY_ORDER_ERROR x", 13, false, false},
		"unlisted CD01":                {614, "#CD01发货方式不匹配", 51, false, false},
		"platform fault":               {614, "isp.top-remote-connection-timeout", 0, false, true},
		"invalid parameter":            {614, "isv.invalid-parameter", 19, false, false},
		"invalid nick":                 {614, "isv.invalid-parameter:seller_nick:P17", 54, false, false},
		"other invalid parameter":      {614, "isv.invalid-parameter:other", 0, false, false},
		"empty":                        {614, "", 0, false, false},

		"204 permission":       {204, "抱歉：无该接口权限！", 8, false, false},
		"204 quota":            {204, "次数不足", 9, false, false},
		"204 other":            {204, "no content", 0, false, false},
		"quota text":           {614, "账户余额不足", 9, false, false},
		"quota text elsewhere": {999, "点券不足,请充值", 9, false, false},

		"vendor code, other text": {202, "别的说法", 6, false, false},
		"vendor code, no text":    {401, "", 11, false, false},
		"unlisted code":           {999, "成功", 0, false, false},
		"row text, other code":    {999, "参数为空", 0, false, false},
		"code 429":                {429, "", 0, true, false},
		"throttle: 频繁":            {202, "访问过于频繁", 0, true, false},
		"throttle: ban":           {614, "This ban will last for 3 more seconds", 0, true, false},
		"throttle: flow control":  {614, "accesscontrol.limited-by-api-access-count", 0, true, false},
		"throttle: call limited":  {614, "isp.call-limited", 0, true, false},
		"throttle: Too Many":      {100, "Too  many requests", 0, true, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := answers.match(tt.code, tt.text)
			got := 0
			if m.row != nil {
				got = m.row.number
			}
			if got != tt.row || m.throttled != tt.throttled || m.hint != tt.hint {
				t.Errorf("%d %q: got row %d, throttled %t, hint %t, want row %d, %t, %t",
					tt.code, tt.text, got, m.throttled, m.hint, tt.row, tt.throttled, tt.hint)
			}
		})
	}
}

// FuzzMatch checks what must hold for every text: likeness alone never leads to
// a success or another call, and how a text is written makes no difference.
func FuzzMatch(f *testing.F) {
	for _, r := range answers.rows {
		f.Add(r.code, r.message)
		f.Add(int64(codePlatform), "前缀"+r.message+"后缀")
		for _, sub := range r.subCodes {
			f.Add(int64(codePlatform), "isv.logistics-offline-service-error:"+sub+" "+r.message)
		}
	}
	f.Add(int64(codePlatform), "isv.x:ZZ9 This ban will last for 3 more seconds")
	f.Fuzz(func(t *testing.T, code int64, text string) {
		if code == 0 {
			return
		}
		m := answers.match(code, text)
		if m.row != nil && (m.throttled || m.hint) {
			t.Fatalf("%d %q: a row and more: %+v", code, text, m)
		}
		if m.row == nil {
			return
		}
		if m.row.code == 0 {
			t.Fatalf("%d %q: matched the success row", code, text)
		}
		exact := m.row.code == code && m.row.key == normalize(text)
		folded := norm.NFKC.String(text)
		named := strings.Contains(folded, ":S01") || strings.Contains(folded, ":B150")
		if code == codePlatform && (m.row.action == actRetry || m.row.action == actRetryOnce) && !exact && !named {
			t.Fatalf("%q: likeness leads to another call: row %d", text, m.row.number)
		}
		if spaced := answers.match(code, " "+text+"\u3000"); spaced.row != m.row {
			t.Fatalf("%q: white space changes row %d to %+v", text, m.row.number, spaced)
		}
	})
}
