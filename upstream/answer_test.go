package upstream

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"packship/schema"
)

var testPolicy = policy{retryMax: 3, backoff: time.Second}

func ok(body string) reply { return reply{status: http.StatusOK, body: []byte(body), whole: true} }

// meaning is what matters of a finding, for tests.
type meaning struct {
	effect    schema.Effect
	action    schema.Action
	reason    string
	class     string
	health    health
	reached   bool
	answered  bool
	retries   int
	halt      string
	park      string
	throttled bool
}

func mean(f *finding) meaning {
	return meaning{
		f.Effect, f.Action, f.Reason, f.Class, f.health, f.Reached, f.Answered, f.MaxRetries, f.halt, f.park, f.source != "",
	}
}

var allowMeaning = cmp.AllowUnexported(meaning{})

// All 60 rows, in every style of text, lead to what the table says.
func TestReadRows(t *testing.T) {
	actions := map[action]schema.Action{
		actFail: schema.ActFail, actReconcile: schema.ActReconcile, actRetry: schema.ActRetry, actRetryOnce: schema.ActRetry,
		actHalt: schema.ActHold, actPark: schema.ActHold,
	}
	p := order(1)
	p.SenderID = "5"
	for _, r := range answers.rows[1:] {
		want := meaning{
			effect: r.effect, action: actions[r.action], reason: r.slug, class: r.class, reached: true, answered: true, health: healthAlive,
			retries: r.maxRetries,
		}
		switch r.action {
		case actHalt:
			want.halt, want.reached = r.slug, false
		case actPark:
			want.park, want.reached = r.slug, r.number == 22
		case actRetry, actRetryOnce:
			want.health = healthBad
			if r.code == codePlatform {
				want.health = healthShop
			}
		case actSucceed, actFail, actReconcile:
		}
		for style, text := range styles(r) {
			// The API escapes what is not ASCII; both are the same JSON.
			for _, msg := range []string{fmt.Sprintf("%q", text), fmt.Sprintf("%+q", text)} {
				f := answers.read(ok(fmt.Sprintf(`{"code":%d,"msg":%s,"msec":7,"time":1612416107,"data":[]}`, r.code, msg)), p, testPolicy)
				if d := cmp.Diff(want, mean(&f), allowMeaning); d != "" {
					t.Errorf("row %d, style %s (-want +got):\n%s", r.number, style, d)
				}
				wantExchange := &schema.Exchange{HTTPStatus: 200, Code: r.code, Msg: text, Msec: 7, Time: 1612416107}
				if d := cmp.Diff(wantExchange, f.Exchange); d != "" {
					t.Errorf("row %d, style %s, exchange (-want +got):\n%s", r.number, style, d)
				}
				if (f.Advice != r.advice && r.number != 49) || // whose text is row 13's
					f.Redrivable != r.redrivable {
					t.Errorf("row %d: advice %q, redrivable %t", r.number, f.Advice, f.Redrivable)
				}
				if want := r.number == 15 || r.number == 26 || r.number == 59; f.StopParcel != want {
					t.Errorf("row %d: stop parcel %t, want %t", r.number, f.StopParcel, want)
				}
			}
		}
	}
}

func TestReadRowBounds(t *testing.T) {
	for retryMax, want := range map[int]int{0: 0, 1: 1, 2: 2, 9: 2} {
		f := answers.read(ok(answerText(101, "请求超时,请重试")), order(1), policy{retryMax: retryMax})
		if f.MaxRetries != want {
			t.Errorf("row 3 with at most %d retries: got %d, want %d", retryMax, f.MaxRetries, want)
		}
	}
}

func TestReadAddressRowWithoutAddresses(t *testing.T) {
	const text = "地址库不存在或该地址库不属于当前用户"
	f := answers.read(ok(answerText(614, text)), order(1), testPolicy)
	want := meaning{
		action: schema.ActHold, reason: "address_book_entry_invalid", class: "address", health: healthAlive,
		reached: true, answered: true, park: "address_book_entry_invalid",
	}
	if d := cmp.Diff(want, mean(&f), allowMeaning); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	p := order(1)
	p.CancelID = "7"
	if f := answers.read(ok(answerText(614, text)), p, testPolicy); f.Action != schema.ActFail || f.park != "" {
		t.Errorf("with an address in the event: got %+v", f)
	}
}

func TestReadOthers(t *testing.T) {
	shipped := meaning{effect: schema.EffectShipped, action: schema.ActSucceed, reason: "ok", class: "success", health: healthGood, reached: true, answered: true}
	open := meaning{effect: schema.EffectUnknown, action: schema.ActRetry, reason: "outcome_unknown", class: "needs_human", health: healthBad, reached: true, retries: 3}
	openAnswered := open
	openAnswered.answered = true
	slow := meaning{action: schema.ActHold, reason: "throttled", class: "throttled", health: healthSilent, throttled: true}
	slowAnswered := slow
	slowAnswered.answered = true
	halt := func(reason, class string, answered bool) meaning {
		return meaning{action: schema.ActHold, reason: reason, class: class, health: healthAlive, halt: reason, answered: answered}
	}
	fail := func(e schema.Effect, reason string, h health) meaning {
		return meaning{effect: e, action: schema.ActFail, reason: reason, class: "needs_human", health: h, reached: true, answered: true}
	}
	refused := fail(schema.EffectNone, "accepted_not_shipped", healthAlive)
	unproven := fail(schema.EffectUnknown, "success_unproven", healthBad)
	unlisted := fail(schema.EffectUnknown, "unlisted_code", healthSilent)
	unlistedSilent := unlisted
	unlistedSilent.answered = false
	unlistedOnce := unlisted
	unlistedOnce.action, unlistedOnce.retries, unlistedOnce.health = schema.ActRetry, 1, healthBad
	status := func(code int, body string) reply { return reply{status: code, body: []byte(body), whole: true} }
	const yii = `{"name":"N","message":"M","code":0,"status":%d}`

	tests := map[string]struct {
		reply reply
		want  meaning
	}{
		"success":                       {ok(success), shipped},
		"success, data an object":       {ok(`{"code":0,"data":{"success":true,"withholding_money":1}}`), shipped},
		"success, strings (case 26)":    {ok(`{"code":"0","data":{"success":"true","withholding_money":"1"}}`), shipped},
		"success, numbers":              {ok(`{"code":0,"data":[{"success":1}]}`), shipped},
		"success, byte order mark":      {ok("\ufeff" + success), shipped},
		"success said twice":            {ok(`{"code":0,"success":true,"data":[{"success":true}]}`), shipped},
		"X13 all true":                  {ok(`{"code":0,"data":[{"success":true},{"success":true}]}`), shipped},
		"status field that is no error": {ok(`{"code":0,"status":1,"message":"ok","data":[{"success":true}]}`), shipped},

		"X2 no answer":            {reply{}, open},
		"X3 429":                  {status(429, ""), slow},
		"X3 429 (case 4)":         {status(429, `{"name":"Too Many Requests","message":"Rate limit exceeded.","code":0,"status":429}`), slowAnswered},
		"X3 code 429":             {ok(answerText(429, "")), slowAnswered},
		"X3 text":                 {ok(answerText(614, "This ban will last for 3 more seconds")), slowAnswered},
		"X3 in an HTTP 200":       {ok(fmt.Sprintf(yii, 429)), slowAnswered},
		"X4 500":                  {status(500, "<html>"), open},
		"X4 500 yii":              {status(500, fmt.Sprintf(yii, 500)), openAnswered},
		"X4 500 with success":     {status(500, success), openAnswered},
		"X4 502":                  {status(502, ""), open},
		"X4 504":                  {status(504, ""), open},
		"X5 503":                  {status(503, ""), open},
		"X4 with a refusal":       {status(502, answerText(614, "参数为空")), openAnswered},
		"X4 already shipped":      {status(500, answerText(614, "订单状态不对")), openAnswered},
		"X4 no address":           {status(500, answerText(614, "地址库不存在或该地址库不属于当前用户")), openAnswered},
		"X4 vendor's refusal":     {status(500, answerText(100, "请求参数错误")), openAnswered},
		"X4 unrecognised":         {status(500, answerText(614, "神秘错误")), openAnswered},
		"X5 with a refusal":       {status(503, answerText(614, "运单号为空")), openAnswered},
		"X4 transient row":        {status(504, answerText(101, "请求超时,请重试")), meaning{effect: schema.EffectUnknown, action: schema.ActRetry, reason: "gateway_timeout", class: "transient", health: healthBad, reached: true, retries: 2, answered: true}},
		"X4 account's row":        {status(500, answerText(401, "身份凭证无效")), halt("access_token_invalid", "credentials", true)},
		"X4 204 unrecognised":     {status(500, answerText(204, "")), halt("code_204_unrecognised", "permission", true)},
		"X4 shop's row":           {status(500, answerText(302, "未授权店铺")), meaning{action: schema.ActHold, reason: "shop_not_authorized", class: "shop_unauthorized", health: healthAlive, answered: true, park: "shop_not_authorized"}},
		"X4 throttling text":      {status(503, answerText(614, "This ban will last for 3 more seconds")), slowAnswered},
		"X6 301":                  {status(301, ""), halt("http_redirect", "config", false)},
		"X6 302 with success":     {status(302, success), halt("http_redirect", "config", true)},
		"X6 307":                  {status(307, ""), halt("http_redirect", "config", false)},
		"X7 401":                  {status(401, ""), halt("access_token_invalid", "credentials", false)},
		"X7 403":                  {status(403, "<html>"), halt("access_token_invalid", "credentials", false)},
		"X7 403 with its reason":  {status(403, answerText(204, "API 调用次数不足")), halt("call_quota_exhausted", "quota", true)},
		"X8 404":                  {status(404, fmt.Sprintf(yii, 404)), halt("bad_path_or_method", "config", true)},
		"X8 405":                  {status(405, ""), halt("bad_path_or_method", "config", false)},
		"402":                     {status(402, ""), halt("call_quota_exhausted", "quota", false)},
		"407":                     {status(407, ""), halt("access_token_invalid", "credentials", false)},
		"408":                     {status(408, ""), open},
		"400":                     {status(400, "<html>"), unlistedSilent},
		"X9 html":                 {ok("<html>hello</html>"), open},
		"X9 empty":                {ok(""), open},
		"X9 cut":                  {ok(`{"code":0,"data":[{"success":true}`), open},
		"X9 trailing comma":       {ok(`{"code":0,"data":[{"success":true},]}`), open},
		"X9 two values":           {ok(success + success), open},
		"X9 not whole":            {reply{status: 200, body: []byte(success)}, open},
		"X9 array":                {ok(`[{"code":0,"data":[{"success":true}]}]`), open},
		"X9 null":                 {ok(`null`), open},
		"X9 201":                  {status(201, success), openAnswered},
		"X9 204":                  {status(204, ""), open},
		"X10 no code":             {ok(`{"data":[{"success":true}]}`), open},
		"X10 code null":           {ok(`{"code":null,"data":[{"success":true}]}`), open},
		"X10 code empty":          {ok(`{"code":"","data":[{"success":true}]}`), open},
		"X10 code true":           {ok(`{"code":false,"data":[{"success":true}]}`), open},
		"X10 code 0.5":            {ok(`{"code":0.5,"data":[{"success":true}]}`), open},
		"X10 Code":                {ok(`{"Code":0,"data":[{"success":true}]}`), open},
		"X10 yii 404":             {ok(fmt.Sprintf(yii, 404)), halt("bad_path_or_method", "config", true)},
		"X10 yii 401":             {ok(fmt.Sprintf(yii, 401)), halt("access_token_invalid", "credentials", true)},
		"X10 yii 500":             {ok(fmt.Sprintf(yii, 500)), openAnswered},
		"X10 yii 422":             {ok(fmt.Sprintf(yii, 422)), openAnswered},
		"X10 yii with data":       {ok(`{"name":"N","message":"M","code":0,"status":500,"data":[{"success":true}]}`), openAnswered},
		"X10 wrapped":             {ok(`{"success":false,"data":{"name":"Not Found","message":"M","code":0,"status":404}}`), halt("bad_path_or_method", "config", true)},
		"X10 wrapped, code":       {ok(`{"code":0,"success":true,"data":{"name":"E","message":"M","code":0,"status":500,"success":true}}`), openAnswered},
		"X11 (case 3)":            {ok(`{"code":0,"data":[{"success":false,"withholding_money":1}]}`), refused},
		"X11 string":              {ok(`{"code":0,"data":{"success":"false"}}`), refused},
		"X12 empty":               {ok(`{"code":0,"data":[]}`), unproven},
		"X12 object":              {ok(`{"code":0,"data":{}}`), unproven},
		"X12 null":                {ok(`{"code":0,"data":null}`), unproven},
		"X12 string":              {ok(`{"code":0,"data":""}`), unproven},
		"X12 missing":             {ok(`{"code":0}`), unproven},
		"X12 flat":                {ok(`{"code":0,"success":true,"withholding_money":1}`), unproven},
		"X12 no success":          {ok(`{"code":0,"data":[{"withholding_money":1}]}`), unproven},
		"X12 success null":        {ok(`{"code":0,"data":[{"success":null}]}`), unproven},
		"X12 success 2":           {ok(`{"code":0,"data":[{"success":2}]}`), unproven},
		"X12 list of texts":       {ok(`{"code":0,"data":["true"]}`), unproven},
		"X12 denied":              {ok(`{"code":0,"success":false,"data":[{"success":true}]}`), unproven},
		"X12 one silent":          {ok(`{"code":0,"data":[{"success":true},{}]}`), unproven},
		"X13 all false":           {ok(`{"code":0,"data":[{"success":false},{"success":false}]}`), refused},
		"X13 some true":           {ok(`{"code":0,"data":[{"success":true},{"success":false}]}`), fail(schema.EffectUnknown, "accepted_not_shipped", healthAlive)},
		"X14":                     {ok(answerText(999, "什么")), unlisted},
		"X14 negative":            {ok(answerText(-1, "")), unlisted},
		"X14 with success":        {ok(`{"code":1,"data":[{"success":true}]}`), unlisted},
		"X14 500":                 {status(500, answerText(999, "什么")), unlistedOnce},
		"code wins (case 27)":     {ok(`{"code":614,"msg":"参数为空","data":[{"success":true}]}`), meaning{action: schema.ActFail, reason: "parameter_missing", class: "invalid_request", health: healthAlive, reached: true, answered: true}},
		"unrecognised (case 16)":  {ok(answerText(614, "isv.some-new-thing:ZZ9 神秘错误")), fail(schema.EffectNone, "unrecognised_614", healthAlive)},
		"unrecognised, no text":   {ok(answerText(614, " 。")), fail(schema.EffectUnknown, "unrecognised_614", healthAlive)},
		"unrecognised, text lost": {ok(`{"code":614,"message":"神秘错误"}`), fail(schema.EffectUnknown, "unrecognised_614", healthAlive)},
		"unrecognised, a fault":   {ok(answerText(614, "isp.top-remote-connection-timeout")), fail(schema.EffectUnknown, "unrecognised_614", healthAlive)},
		"204 unrecognised":        {ok(answerText(204, "")), halt("code_204_unrecognised", "permission", true)},
		"code 302 is no redirect": {ok(`{"code":302,"msg":"未授权店铺","url":"http://x/y","data":[]}`), meaning{action: schema.ActHold, reason: "shop_not_authorized", class: "shop_unauthorized", health: healthAlive, answered: true, park: "shop_not_authorized"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := answers.read(tt.reply, order(1), testPolicy)
			if d := cmp.Diff(tt.want, mean(&f), allowMeaning); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if (f.Exchange != nil) != f.Answered {
				t.Errorf("answered %t, exchange %+v", f.Answered, f.Exchange)
			}
			if f.Action == schema.ActRetry && f.Wait != time.Second {
				t.Errorf("wait: got %s", f.Wait)
			}
		})
	}
}

func TestReadExchange(t *testing.T) {
	f := answers.read(ok(`{"url":"x","code":0,"msg":"\u6210\u529f","msec":"1193","time":"1612416107","data":[{"withholding_money":"2","success":true},{"withholding_money":3,"success":true}]}`), order(1), testPolicy)
	want := &schema.Exchange{HTTPStatus: 200, Msg: "成功", Msec: 1193, Time: 1612416107, Withheld: 5}
	if d := cmp.Diff(want, f.Exchange); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	f = answers.read(ok(answerText(614, strings.Repeat("长", 5000))), order(1), testPolicy)
	if n := len([]rune(f.Exchange.Msg)); n != maxMsg+1 {
		t.Errorf("long text: got %d characters, want %d and an ellipsis", n, maxMsg)
	}
	for _, money := range []string{"-5", "9223372036854775807", `"x"`, "null", "1.5"} {
		f = answers.read(ok(`{"code":0,"data":[{"withholding_money":`+money+`,"success":true},{"withholding_money":2147483647,"success":true}]}`), order(1), testPolicy)
		if f.Exchange.Withheld < 0 || f.Exchange.Withheld > maxAmount {
			t.Errorf("withholding_money %s: got %d", money, f.Exchange.Withheld)
		}
	}
	f = answers.read(reply{status: 404, whole: true, body: []byte(`{"name":"Not Found","message":"Page not found.","code":0,"status":404}`)}, order(1), testPolicy)
	if d := cmp.Diff(&schema.Exchange{HTTPStatus: 404, Msg: "Page not found."}, f.Exchange); d != "" {
		t.Errorf("error body (-want +got):\n%s", d)
	}
}

// The link of a 302 answer goes to the shop's state and nowhere else.
func TestReadKeepsTheLinkApart(t *testing.T) {
	f := answers.read(ok(`{"code":302,"msg":"未授权店铺","url":"https://auth.example/secret","data":[]}`), order(1), testPolicy)
	if f.url != "https://auth.example/secret" {
		t.Errorf("url: got %q", f.url)
	}
	r := ok(`{"code":302,"msg":"未授权店铺","url":"https:\/\/auth.example\/?t=abc\/defgh","data":[]}`)
	r.token = "abc/defgh"
	if got := answers.read(r, order(1), testPolicy).url; got != "https://auth.example/?t=[redacted]" {
		t.Errorf("url: got %q, want it without the token", got)
	}
	if text := fmt.Sprintf("%+v %+v", f.Answer, *f.Exchange); strings.Contains(text, "secret") {
		t.Errorf("the answer holds the link: %s", text)
	}
}

func TestPauseFor(t *testing.T) {
	header := func(kv ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(kv); i += 2 {
			h.Set(kv[i], kv[i+1])
		}
		return h
	}
	soon := time.Now().Add(90 * time.Second)
	tests := map[string]struct {
		header http.Header
		msg    string
		want   time.Duration
	}{
		"nothing":                  {nil, "", time.Second},
		"retry after":              {header("Retry-After", "7"), "", 7 * time.Second},
		"retry after zero":         {header("Retry-After", "0"), "", time.Second},
		"retry after negative":     {header("Retry-After", "-3"), "", time.Second},
		"retry after nonsense":     {header("Retry-After", "soon"), "", time.Second},
		"retry after not a number": {header("Retry-After", "NaN"), "", time.Second},
		"retry after date":         {header("Retry-After", soon.UTC().Format(http.TimeFormat)), "", 90 * time.Second},
		"retry after past date":    {header("Retry-After", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)), "", time.Second},
		"retry after for ever":     {header("Retry-After", "Inf"), "", time.Hour},
		"retry after too long":     {header("Retry-After", "999999"), "", time.Hour},
		"reset":                    {header("X-Rate-Limit-Reset", "2"), "", 2 * time.Second},
		"reset as time":            {header("X-Rate-Limit-Reset", fmt.Sprint(soon.Unix())), "", 90 * time.Second},
		"reset in the past":        {header("X-Rate-Limit-Reset", "1612416107"), "", time.Second},
		"both":                     {header("Retry-After", "3", "X-Rate-Limit-Reset", "9"), "", 3 * time.Second},
		"ban":                      {header("Retry-After", "99"), "This ban will last for 3 more seconds", 4 * time.Second},
		"ban of one second":        {nil, "this ban will  last for 1 more second", 2 * time.Second},
		"long ban":                 {nil, "will last for 999999999 more seconds", time.Hour},
		"endless ban":              {nil, "will last for 99999999999999999999 more seconds", time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := pauseFor(tt.header, tt.msg); (got-tt.want).Abs() > 2*time.Second && tt.want > 30*time.Second || (got != tt.want && tt.want <= 30*time.Second) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// proven is a second opinion on what may count as shipped, written apart from
// the code it checks.
func proven(status int, raw []byte) bool {
	if status != 200 {
		return false
	}
	decoder := json.NewDecoder(strings.NewReader(strings.TrimPrefix(string(raw), "\ufeff")))
	decoder.UseNumber()
	var answer any
	if decoder.Decode(&answer) != nil || decoder.More() {
		return false
	}
	fields, ok := answer.(map[string]any)
	if !ok {
		return false
	}
	number := func(v any) string {
		switch v := v.(type) {
		case json.Number:
			return v.String()
		case string:
			return strings.TrimSpace(v)
		}
		return ""
	}
	if code := number(fields["code"]); strings.Trim(code, "+-0") != "" || !strings.HasSuffix(code, "0") {
		return false
	}
	yes := func(v any) bool {
		switch v := v.(type) {
		case bool:
			return v
		case json.Number:
			return v.String() == "1"
		case string:
			return strings.EqualFold(v, "true") || v == "1"
		}
		return false
	}
	if said, there := fields["success"]; there && (fmt.Sprint(said) == "false" || number(said) == "0" || strings.EqualFold(fmt.Sprint(said), "false")) {
		return false
	}
	elements, ok := fields["data"].([]any)
	if !ok {
		elements = []any{fields["data"]}
	}
	for _, e := range elements {
		object, ok := e.(map[string]any)
		if !ok || !yes(object["success"]) {
			return false
		}
	}
	return len(elements) > 0
}

// What a failed event says is in the closed sets of its schema.
func TestReasonsAreInTheSchema(t *testing.T) {
	text, found := schema.JSONSchema("order.shipment-failed.v1")
	if !found {
		t.Fatal("no schema")
	}
	var failed struct {
		Properties struct{ Reason, Class struct{ Enum []string } }
	}
	if err := json.Unmarshal(text, &failed); err != nil {
		t.Fatal(err)
	}
	said := []schema.Answer{
		unknown(testPolicy).Answer, unlisted(policy{}).Answer, unrecognised(true).Answer,
		answers.success(tally{no: 1}).Answer, answers.success(tally{}).Answer,
	}
	for _, r := range answers.rows[1:] {
		said = append(said, fromRow(r, body{}, order(1), testPolicy).Answer)
	}
	for _, a := range said {
		if !slices.Contains(failed.Properties.Reason.Enum, a.Reason) || !slices.Contains(failed.Properties.Class.Enum, a.Class) {
			t.Errorf("reason %s of class %s is not in the schema", a.Reason, a.Class)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	for _, body := range []string{
		success, `{"code":"0","data":{"success":"true"}}`, `{"code":0,"data":[{"success":false}]}`, `{"code":0}`, `{"code":0,"data":[]}`,
		`{"name":"Too Many Requests","message":"m","code":0,"status":429}`, `{"success":false,"data":{"name":"n","message":"m","code":0,"status":404}}`,
		`{"code":614,"msg":"参数为空","data":[{"success":true}]}`, answerText(204, "次数不足"), answerText(302, "未授权店铺"), `<html>`, ``, `null`, `[]`,
		`{"code":0,"success":false,"data":[{"success":true}]}`, `{"code":0,"data":[{"success":true},{"success":1}]}`, "\ufeff{}",
		`{"data":[{"success":true}]}`, `{"code":0,"data":[{"success":true},{}]}`, `{"code":0,"data":[{"success":true},{"success":false}]}`,
	} {
		for _, status := range []int{200, 201, 302, 401, 404, 429, 500, 503} {
			f.Add(status, []byte(body), true, "3")
		}
	}
	classes := map[string]bool{"needs_human": true, "throttled": true, "config": true, "permission": true}
	for _, r := range answers.rows {
		classes[r.class] = true
		f.Add(200, []byte(answerText(int(r.code), r.message)), true, "")
	}
	kinds := answers.callKinds()
	reasons := answers.haltReasons()
	f.Fuzz(func(t *testing.T, status int, body []byte, whole bool, retryAfter string) {
		r := reply{status: status, header: http.Header{"Retry-After": {retryAfter}}, body: body, whole: whole}
		got := answers.read(r, order(1), testPolicy)
		shipped := got.Effect == schema.EffectShipped
		if shipped != (got.Action == schema.ActSucceed) || shipped != (got.health == healthGood) {
			t.Fatalf("shipped without success or the other way round: %+v", got)
		}
		if shipped && (!whole || !proven(status, body)) {
			t.Fatalf("HTTP %d %q: shipped without proof", status, body)
		}
		if got.Action == schema.ActHold && got.Effect != schema.EffectNone || got.Action == schema.ActRetry && got.Effect != schema.EffectUnknown || got.Action == schema.ActReconcile && got.Effect != schema.EffectNone {
			t.Fatalf("action and effect do not fit: %+v", got)
		}
		if (got.halt != "" || got.park != "" || got.source != "") != (got.Action == schema.ActHold) {
			t.Fatalf("held without a holder or the other way round: %+v", got)
		}
		if got.MaxRetries > testPolicy.retryMax || got.pause > maxPause || got.pause < 0 || (got.source != "" && got.pause == 0) {
			t.Fatalf("out of bounds: %+v", got)
		}
		if got.Reason == "" || !classes[got.Class] || got.Advice == "" {
			t.Fatalf("unnamed: %+v", got)
		}
		if !slices.Contains(kinds, callKind{got.Effect.String(), got.Class}) || (got.halt != "" && !slices.Contains(reasons, got.halt)) {
			t.Fatalf("no metric for %+v", got)
		}
		if got.Answered != (got.Exchange != nil) {
			t.Fatalf("answered %t, exchange %v", got.Answered, got.Exchange)
		}
		if again := answers.read(r, order(1), testPolicy); !cmp.Equal(got.Answer, again.Answer, cmpopts.EquateEmpty()) && retryAfter == "" {
			t.Fatalf("read twice: %+v, %+v", got, again)
		}
	})
}
