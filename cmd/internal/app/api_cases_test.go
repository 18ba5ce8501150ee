//nolint:thelper // the cases are tests, not helpers of one
package app

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"packship/schema"
	"packship/upstream"
	"packship/upstream/upstreamtest"
)

// apiCases are the cases in which a careless client of the shipping API loses
// orders, money or the truth, by their numbers. One of them is run by, for
// example,
//
//	go test -run 'TestAPICases/07' ./cmd/internal/app
//
// Those about behaviour run the whole connector: on the embedded broker, or in a
// simulation where time is of the essence. Those about what an event may say or
// an answer means need no broker. Each is also tested closer to the code that it
// is about; here is where they are all together.
var apiCases = []struct {
	name string
	test func(t *testing.T)
}{
	1:  {"unanswered, then already shipped", caseReconciled},
	2:  {"already shipped at the first call", caseAlreadyShipped},
	3:  {"code 0 and success false", caseAcceptedNotShipped},
	4:  {"429 with code 0 in its body", caseThrottled},
	5:  {"quota runs out", caseQuota},
	6:  {"shop without authorisation", caseUnauthorisedShop},
	7:  {"token displaced with calls in flight", caseDisplacedToken},
	8:  {"order id beyond 2^53", caseLongID},
	9:  {"order ids that are none", caseNoIDs},
	10: {"split lists that are none", caseSplitGrammar},
	11: {"feature grammar", caseFeature},
	12: {"carrier other, fields swapped", caseCarrier},
	13: {"system exception twice", caseSystemException},
	14: {"system exception, then nothing to ship", caseSystemExceptionShipped},
	15: {"texts as the platform writes them", caseTexts},
	16: {"text that nobody knows", caseUnknownText},
	17: {"definite failure before already shipped", caseDefiniteFailure},
	18: {"another waybill after doubt", caseOtherWaybill},
	19: {"parts of an order", caseParts},
	20: {"200 orders at once, three replicas", caseRate},
	21: {"killed between the answer and its publication", caseKilled},
	22: {"thirty bad waybills in a row", caseBadWaybills},
	23: {"outage", caseOutage},
	24: {"redirect to another host", caseRedirect},
	25: {"connection reset after the request was read", caseReset},
	26: {"strings for numbers", caseStringTypes},
	27: {"code wins over data", caseCodeWins},
}

func TestAPICases(t *testing.T) {
	for n, c := range apiCases {
		if n == 0 {
			continue // the numbers begin with 1
		}
		t.Run(fmt.Sprintf("%02d %s", n, c.name), func(t *testing.T) {
			t.Parallel()
			c.test(t)
		})
	}
}

// patientAPI are settings under which no slow machine makes an answer late.
func patientAPI(s *Settings) { s.UpstreamTimeout, s.UpstreamSettle = time.Second, 200*time.Millisecond }

// code is a platform's answer.
func code(n int, text string) upstreamtest.Fault {
	return upstreamtest.Fault{Kind: upstreamtest.Code, Code: n, Text: text}
}

// one waits for the only result of a case.
func (w *world) one(status schema.Verdict) schema.Result {
	w.t.Helper()
	topic := w.settings.TopicShipped
	if status == schema.Failed {
		topic = w.settings.TopicFailed
	}
	w.committed()
	shipped, failed := len(w.read(w.settings.TopicShipped)), len(w.read(w.settings.TopicFailed))
	if shipped+failed != 1 || len(w.read(topic)) != 1 {
		w.t.Fatalf("%d shipped and %d failed, want one %s", shipped, failed, status)
	}
	return result(w.t, w.read(topic)[0])
}

// spent waits for the number of calls that were made in the end, and returns
// what there is to say of them.
func (w *world) spent(calls int) upstreamtest.Stats {
	w.t.Helper()
	stats := w.verify()
	if stats.Calls != calls {
		w.t.Errorf("%d calls, want %d", stats.Calls, calls)
	}
	return stats
}

func caseReconciled(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick}, patientAPI)
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.ApplyThenHang, Count: 1})
	w.produce(order(1, ""))
	w.start()
	got := w.one(schema.Shipped)
	if !got.Reconciled || got.Attempts != 2 || got.Upstream.Code != 614 {
		t.Errorf("got %+v, want a success that the second of two calls proves", got)
	}
	w.spent(2)
}

func caseAlreadyShipped(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(15)})
	w.produce(order(1, ""))
	w.start()
	got := w.one(schema.Failed)
	if got.Reason != "order_status_wrong" || !got.StopParcel || got.MaybeShipped || got.Attempts != 1 {
		t.Errorf("got %+v", got.Failure)
	}
	w.spent(1)
}

func caseAcceptedNotShipped(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.SuccessFalse})
	w.produce(order(1, ""))
	r := w.start()
	got := w.one(schema.Failed)
	if got.Reason != "accepted_not_shipped" || got.MaybeShipped || got.Upstream.Withheld != 1 {
		t.Errorf("got %+v, %+v", got.Failure, got.Upstream)
	}
	if a := r.c.Status().Accounts[0]; a.Calls != 1 || a.Charged != 1 || a.Spent != 1 {
		t.Errorf("booked %d calls, %d of them charged, %d points; want 1, 1, 1", a.Calls, a.Charged, a.Spent)
	}
	w.spent(1)
}

func caseThrottled(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.YiiError(http.StatusTooManyRequests), Count: 1})
	w.produce(order(1, ""))
	r := w.start()
	if got := w.one(schema.Shipped); got.Attempts != 1 || got.Reconciled {
		t.Errorf("got %+v, want one attempt that reached the platform", got)
	}
	if a := r.c.Status().Accounts[0]; a.Rate >= w.settings.RatePerSecond || a.Breaker != "closed" {
		t.Errorf("account %+v, want a lower rate and a closed breaker", a)
	}
	w.spent(2)
	calls := w.sim.Journal().Calls()
	if pause := calls[1].Arrived.Sub(calls[0].Arrived); pause < time.Second {
		t.Errorf("the next call came after %s, want a pause of a second", pause)
	}
}

func caseQuota(t *testing.T) {
	const n, left = 50, 2
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.BalanceZero, Nth: left + 1})
	w.produce(orders(1, n)...)
	r := w.start()
	r.eventually("halted", func() bool { return r.c.Status().Accounts[0].Reason == "call_quota_exhausted" })
	r.eventually("the calls under way are answered", func() bool { return w.sim.Stats().InFlight == 0 })
	r.eventually("what was shipped is published", func() bool { return r.c.Status().Counts.Shipped == left })
	r.eventually("the oldest order to wait", func() bool {
		o := r.c.Status().OldestOrder
		return o != nil && o.Standing == "waits because its account default is halted: call quota exhausted"
	})
	calls := w.sim.Stats().Calls
	if got := r.c.Status().Counts; got.Shipped != left || got.Failed != 0 || calls > left+w.settings.MaxInFlight {
		t.Errorf("%+v after %d calls, want %d shipped and the rest held", got, calls, left)
	}
	if code, text := r.do(http.MethodPost, "/api/accounts/default/resume", "e2e-admin"); code != http.StatusOK {
		t.Fatalf("resume answers %d %s", code, text)
	}
	r.eventually("a try in vain", func() bool { return w.sim.Stats().Calls == calls+1 && w.sim.Stats().InFlight == 0 })
	// packship may not know yet that it was in vain: the resume counts all the same.
	if err := w.sim.TopUp("default", 1000); err != nil {
		t.Fatal(err)
	}
	r.do(http.MethodPost, "/api/accounts/default/resume", "e2e-admin")
	w.await(n, 0, 0)
	all := w.sim.Journal().Calls()
	if got := len(all); got != calls+1+n-left {
		t.Errorf("%d calls, want %d before the top-up, one try, and one for each order that was held", got, calls)
	}
	if probe, next := all[calls+1], all[calls+2]; !next.Arrived.After(probe.Done) {
		t.Errorf("the second call after the top-up came at %s, before the first was answered at %s", next.Arrived, probe.Done)
	}
	w.verify()
}

func caseUnauthorisedShop(t *testing.T) {
	const other = "200300400"
	w := newWorld(t, upstreamtest.Options{Latency: quick, Shops: []upstreamtest.Shop{{ID: testShop, Unauthorised: true}}})
	append1 := func(value string) { w.append(schema.Record{Value: []byte(value)}) }
	ofOther := func(tid int) string { return strings.Replace(order(tid, ""), testShop, other, 1) }
	append1(order(1, `,"is_split":1,"sub_tid":"11"`))
	r := w.start()
	r.eventually("the shop is parked", func() bool { return len(r.c.Status().ParkedShops) == 1 })
	for i := range 20 {
		append1(order(2+i, ""))
		append1(ofOther(102 + i))
	}
	append1(strings.Replace(order(1, `,"is_split":1,"sub_tid":"12"`), "evt-1", "evt-1b", 1))
	w.await(20, 0, 0)
	of := func(shop string) int {
		return len(slices.DeleteFunc(w.sim.Journal().Calls(), func(e upstreamtest.Entry) bool { return e.Shipment.ShopID != shop }))
	}
	if of(testShop) != 1 || of(other) != 20 {
		t.Errorf("%d calls of the parked shop and %d of the other, want 1 and 20", of(testShop), of(other))
	}
	st := r.c.Status()
	link := st.ParkedShops[0].URL
	if link == "" || st.Accounts[0].State == "halted" || st.ParkedShops[0].Reason != "shop_not_authorized" {
		t.Errorf("status %+v", st)
	}
	if err := w.sim.Authorise(testShop); err != nil {
		t.Fatal(err)
	}
	if code, text := r.do(http.MethodPost, "/api/shops/"+testShop+"/unpark", "e2e-admin"); code != http.StatusOK {
		t.Fatalf("unpark answers %d %s", code, text)
	}
	w.await(42, 0, 0)
	w.spent(43)
	var parts []string
	for _, rec := range w.read(w.settings.TopicShipped) {
		if strings.Contains(string(rec.Value), link) {
			t.Errorf("the link by which the shop is authorised is in an event: %s", rec.Value)
		}
		if res := result(t, rec); res.TID == "1" {
			parts = append(parts, res.SubTID...)
		}
	}
	if d := cmp.Diff([]string{"11", "12"}, parts); d != "" {
		t.Errorf("parts of one order (-want +got):\n%s", d)
	}
}

func caseDisplacedToken(t *testing.T) {
	const n = 8
	secret := newMountedSecret(t, testToken)
	w := newWorld(t, upstreamtest.Options{Latency: quick}, func(s *Settings) {
		s.UpstreamToken, s.UpstreamTokenFile = "", secret.path
		s.UpstreamTimeout = 10 * time.Second
	})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(11), Delay: 700 * time.Millisecond, Count: n})
	w.produce(orders(1, n)...)
	r := w.start()
	w.calls(n)
	r.eventually("halted", func() bool { return r.c.Status().Accounts[0].Reason == "access_token_invalid" })
	r.eventually("all are answered", func() bool { return w.sim.Stats().InFlight == 0 })
	token, err := w.sim.RotateToken("default")
	if err != nil {
		t.Fatal(err)
	}
	secret.swap(token)
	w.await(n, 0, 0)
	stats := w.spent(2 * n)
	if stats.TokenCalls != 0 || stats.UnknownToken != 0 {
		t.Errorf("%d calls for a token, %d calls with the dead one after it was replaced; want none", stats.TokenCalls, stats.UnknownToken)
	}
	all := w.sim.Journal().Calls()
	if probe, next := all[n], all[n+1]; !next.Arrived.After(probe.Done) {
		t.Error("a second call was made before the first one with the new token was answered")
	}
	for _, e := range all[n:] {
		if e.Token != token {
			t.Errorf("call %d has another token than the new one", e.N)
		}
	}
}

// mountedSecret is a secret as Kubernetes mounts it: a link to a link, of which
// the inner one is swapped.
type mountedSecret struct {
	t        *testing.T
	dir      string
	versions int
	path     string
}

func newMountedSecret(t *testing.T, token string) *mountedSecret {
	t.Helper()
	s := &mountedSecret{t: t, dir: t.TempDir()}
	s.path = filepath.Join(s.dir, "token")
	s.swap(token)
	s.do(os.Symlink(filepath.Join("..data", "token"), s.path))
	return s
}

func (s *mountedSecret) swap(token string) {
	s.t.Helper()
	s.versions++
	version := fmt.Sprintf("..v%d", s.versions)
	s.do(os.Mkdir(filepath.Join(s.dir, version), 0o700))
	s.do(os.WriteFile(filepath.Join(s.dir, version, "token"), []byte(token+"\n"), 0o600))
	next := filepath.Join(s.dir, "..data_tmp")
	s.do(os.Symlink(version, next))
	s.do(os.Rename(next, filepath.Join(s.dir, "..data")))
}

func (s *mountedSecret) do(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func caseLongID(t *testing.T) {
	const tid = "2345678901234567891"
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.produce(fmt.Sprintf(`{"shop_id":%q,"tid":%s,"out_sid":"SF1234567890123","company_code":"SF"}`, testShop, tid))
	w.start()
	if got := w.one(schema.Shipped); got.TID != tid {
		t.Errorf("result of order %s, want %s", got.TID, tid)
	}
	if key := w.read(w.settings.TopicShipped)[0].Key; string(key) != tid {
		t.Errorf("key %s, want %s", key, tid)
	}
	w.spent(1)
	for _, f := range w.sim.Journal().Calls()[0].Form {
		if f.Name == "tid" && f.Value != tid {
			t.Errorf("the form has tid %s, want %s", f.Value, tid)
		}
	}
}

func caseNoIDs(t *testing.T) {
	ids := []string{`"0012"`, `"+12"`, `"1.2e3"`, `"９９"`, `""`, `9223372036854775808`, `"201117-681808213123308"`}
	w := newWorld(t, upstreamtest.Options{})
	for _, id := range ids {
		w.produce(fmt.Sprintf(`{"shop_id":%q,"tid":%s,"out_sid":"SF1234567890123","company_code":"SF"}`, testShop, id))
	}
	w.start()
	w.await(0, 0, len(ids))
	for _, rec := range w.read(w.settings.TopicDLQ) {
		if reason, _ := rec.Header("packship_reason"); reason != schema.ReasonTIDUnusable {
			t.Errorf("%s: reason %s", rec.Value, reason)
		}
	}
	w.spent(0)
}

// violations are the rules that an event breaks.
func violations(t *testing.T, fields string) []string {
	t.Helper()
	s := Defaults()
	validate, err := s.Validator()
	if err != nil {
		t.Fatal(err)
	}
	value := `{"shop_id":"1","tid":"2345678901234567891","out_sid":"SF1234567890123","company_code":"SF"` + fields + `}`
	p, err := schema.DecodePacked(&schema.Record{Value: []byte(value)})
	if err != nil {
		t.Fatal(err)
	}
	var rules []string
	for _, v := range validate(p) {
		rules = append(rules, v.Rule)
	}
	return slices.Compact(rules)
}

// breaks checks which rules events break, by the fields that they have besides.
func breaks(t *testing.T, want map[string][]string) {
	t.Helper()
	for fields, rules := range want {
		if d := cmp.Diff(rules, violations(t, fields)); d != "" {
			t.Errorf("%s (-want +got):\n%s", fields, d)
		}
	}
}

func caseSplitGrammar(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat("7,", 51), ",")
	var distinct []string
	for i := range 51 {
		distinct = append(distinct, fmt.Sprint(100+i))
	}
	breaks(t, map[string][]string{
		``:                                       nil,
		`,"is_split":1,"sub_tid":"11,12"`:        nil,
		`,"is_split":0,"sub_tid":"11"`:           {"V13"},
		`,"is_split":1`:                          {"V13"},
		`,"is_split":1,"sub_tid":"11,,12"`:       {"V14"},
		`,"is_split":1,"sub_tid":"11，12"`:        {"V14"},
		`,"is_split":1,"sub_tid":"11,11"`:        {"V14"},
		`,"is_split":1,"sub_tid":"` + many + `"`: {"V14"},
		`,"is_split":1,"sub_tid":"` + strings.Join(distinct, ",") + `"`: {"V14"},
	})
}

func caseFeature(t *testing.T) {
	breaks(t, map[string][]string{
		`,"feature":"identCode=1001:A1;machineCode=1002:B1"`:       nil,
		`,"feature":"identCode=1001:A1；machineCode=1002:B1"`:       {"V15"},
		`,"is_split":1,"sub_tid":"11","feature":"identCode=12:A1"`: {"V16"},
		`,"is_split":1,"sub_tid":"11","feature":"identCode=11:A1"`: nil,
		`,"feature":"retailStoreId=12345"`:                         {"V17"},
	})
}

func caseCarrier(t *testing.T) {
	breaks(t, map[string][]string{
		`,"company_code":"other"`:                          {"V09"},
		`,"company_code":"OtHeR"`:                          {"V09"},
		`,"company_code":"SF1234567890123","out_sid":"SF"`: {"V05", "V09", "V11"},
	})
}

func caseSystemException(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(53)})
	w.produce(order(1, ""))
	w.start()
	if got := w.one(schema.Failed); got.Reason != "system_exception" || !got.MaybeShipped || got.Attempts != 2 {
		t.Errorf("got %d attempts, %+v", got.Attempts, got.Failure)
	}
	w.spent(2)
}

func caseSystemExceptionShipped(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddScript(upstreamtest.Script{Steps: []upstreamtest.Fault{{Kind: upstreamtest.AnyRow(53)}, {Kind: upstreamtest.AnyRow(58)}}})
	w.produce(order(1, ""))
	w.start()
	if got := w.one(schema.Shipped); !got.Reconciled || got.Attempts != 2 {
		t.Errorf("got %+v, want a success that is reconciled", got)
	}
	w.spent(2)
}

// answerTo makes one call to an API with a fault, without Kafka.
func answerTo(t *testing.T, fault upstreamtest.Fault) schema.Answer {
	t.Helper()
	return answerOf(t, upstreamtest.Options{Faults: []upstreamtest.Fault{fault}}, "")
}

// answerOf makes one call to an API with options, for an order with more fields.
func answerOf(t *testing.T, options upstreamtest.Options, fields string) schema.Answer {
	t.Helper()
	options.AutoCreate = true
	sim := upstreamtest.New(options)
	defer func() { _ = sim.Close() }()
	url, err := sim.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := Defaults()
	s.UpstreamURL, s.UpstreamToken = url+upstreamtest.SendPath, testToken
	config, err := s.upstreamConfig()
	if err != nil {
		t.Fatal(err)
	}
	config.Logger, config.Registerer = testLogger(t), prometheus.NewRegistry()
	api, err := upstream.New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer api.CloseIdleConnections()
	p, err := schema.DecodePacked(&schema.Record{Value: []byte(order(1, fields))})
	if err != nil {
		t.Fatal(err)
	}
	turn, err := api.Admit(t.Context(), p, false)
	if err != nil {
		t.Fatal(err)
	}
	return turn.Send(t.Context(), schema.Hold{})
}

func caseTexts(t *testing.T) {
	for text, reason := range map[string]string{
		"对不起，您尚未成功订购E速宝物流服务":        "esubao_not_subscribed",
		"订单已经被拆单,isSplit 必须是1":      "order_split_flag_must_be_one",
		"运单号已被使用，当前订单非真， 此物流单号不能使用": "waybill_used_order_not_genuine",
	} {
		if got := answerTo(t, code(614, text)); got.Reason != reason || got.Action != schema.ActFail {
			t.Errorf("%s: got %+v, want %s", text, got, reason)
		}
	}
}

func caseUnknownText(t *testing.T) {
	const text = "isv.some-new-thing:ZZ9 神秘错误"
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddFault(code(614, text))
	w.produce(order(1, ""))
	r := w.start()
	got := w.one(schema.Failed)
	if got.Reason != "unrecognised_614" || got.Class != "needs_human" || got.Upstream.Msg != text {
		t.Errorf("got %+v, %+v", got.Failure, got.Upstream)
	}
	if _, metrics := r.get("/metrics"); !strings.Contains(metrics, `packship_unrecognised_answers_total{account="default"} 1`) {
		t.Error("the metric of answers that are in no row has not moved")
	}
	w.spent(1)
}

func caseDefiniteFailure(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddScript(upstreamtest.Script{Steps: []upstreamtest.Fault{{Kind: upstreamtest.AnyRow(56)}, {Kind: upstreamtest.AnyRow(23)}}})
	again := strings.Replace(order(1, ""), "evt-1", "evt-1-again", 1)
	w.append(schema.Record{Value: []byte(order(1, ""))})
	w.append(schema.Record{Value: []byte(again)})
	w.start()
	w.await(0, 2, 0)
	var reasons []string
	for _, rec := range w.read(w.settings.TopicFailed) {
		res := result(t, rec)
		if res.MaybeShipped {
			t.Errorf("%s may be shipped: %+v", res.Source.EventID, res.Failure)
		}
		reasons = append(reasons, res.Reason)
	}
	if d := cmp.Diff([]string{"carrier_unknown_or_disabled", "shipment_already_created"}, reasons); d != "" {
		t.Errorf("reasons (-want +got):\n%s", d)
	}
	w.spent(2)
}

func caseOtherWaybill(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick}, patientAPI, func(s *Settings) { s.UnknownPolicy = "park" })
	w.sim.AddScript(upstreamtest.Script{Steps: []upstreamtest.Fault{{Kind: upstreamtest.ApplyThenHang}, {Kind: upstreamtest.AnyRow(23)}}})
	again := strings.NewReplacer("evt-1", "evt-1-again", "SF0000000000001", "SF9999999999999").Replace(order(1, ""))
	w.append(schema.Record{Value: []byte(order(1, ""))})
	w.append(schema.Record{Value: []byte(again)})
	w.start()
	w.await(0, 2, 0)
	first, second := result(t, w.read(w.settings.TopicFailed)[0]), result(t, w.read(w.settings.TopicFailed)[1])
	if first.Reason != "outcome_unknown" || !first.MaybeShipped {
		t.Errorf("the first waybill: %+v", first.Failure)
	}
	if second.OutSID != "SF9999999999999" || second.Reason != "shipped_with_other_waybill_possible" || !second.MaybeShipped {
		t.Errorf("the second waybill: %+v, %+v", second, second.Failure)
	}
	w.spent(2)
}

func caseParts(t *testing.T) {
	part := func(event, list string) schema.Record {
		value := strings.Replace(order(1, fmt.Sprintf(`,"is_split":1,"sub_tid":%q`, list)), "evt-1", event, 1)
		return schema.Record{Value: []byte(value)}
	}
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.append(part("a", "11"))
	w.append(part("b", "12,13"))
	w.append(part("c", "13,12"))
	w.start()
	w.await(3, 0, 0)
	ids := map[string][]string{}
	for _, rec := range w.read(w.settings.TopicShipped) {
		res := result(t, rec)
		ids[res.ResultID] = append(ids[res.ResultID], strings.Join(res.SubTID, ","))
	}
	if len(ids) != 2 {
		t.Errorf("results %v, want one of each part", ids)
	}
	if stats := w.spent(2); stats.Applied != 2 {
		t.Errorf("%d parcels shipped, want 2", stats.Applied)
	}
}

func caseRate(t *testing.T) {
	inSimulation(t, nil, nil, func(s *simulation) {
		const n = 200
		var values []string
		for i := range n {
			values = append(values, packedOrder("S1", 1+i))
		}
		for slot := range simSlots {
			s.startReplica(slot)
		}
		s.produce(inTurn(values))
		s.await(n, 0)
		calls := s.api.Journal().Calls()
		most, rate := s.api.Stats().MaxInAnySecond, ratePerSecond(calls)
		s.t.Logf("%d orders, %d replicas: %d calls, at most %d in any second, %.2f a second", n, simSlots, len(calls), most, rate)
		if len(calls) != n || most > 10 || rate < 9 {
			s.t.Errorf("%d calls, at most %d in any second, %.2f a second; want %d, 10, 9", len(calls), most, rate, n)
		}
	})
}

// caseKilled kills a replica after the API's yes: once when the outcome is in the
// ledger and nobody can publish it, once when not even the ledger has heard of it.
func caseKilled(t *testing.T) {
	t.Run("stored", func(t *testing.T) {
		w := newWorld(t, upstreamtest.Options{Latency: quick})
		if w.cluster == nil {
			t.Skip("needs the embedded broker's faults")
		}
		relent := w.refuseResults()
		w.produce(order(1, ""))
		first := w.start()
		w.calls(1)
		first.eventually("stored", func() bool {
			_, body := first.get("/api/orders/1")
			return strings.Contains(body, `"shipped"`)
		})
		second := w.launch(w.settings)
		go func() { _ = first.stop() }()
		relent()
		second.eventually("published", func() bool { return len(w.read(w.settings.TopicShipped)) > 0 })
		w.committed()
		w.spent(1)
		if got := w.identities(); len(got) != 1 {
			t.Errorf("%d results, want 1", len(got))
		}
	})
	t.Run("not stored", func(t *testing.T) {
		inSimulation(t, nil, nil, func(s *simulation) {
			first := s.startReplica(0)
			s.produce(inTurn([]string{packedOrder("S1", 1)}))
			limit, cancel := context.WithTimeout(s.t.Context(), time.Hour)
			defer cancel()
			if err := s.api.Journal().Wait(limit, func(st upstreamtest.Stats) bool { return st.Calls == 1 }); err != nil {
				s.t.Fatal(err)
			}
			s.crash(first)
			s.until("the API has shipped it", func() bool { return s.api.Stats().Applied == 1 })
			s.startReplica(1)
			s.await(1, 0)
			var got schema.Result
			err := s.kafka.Scan(s.t.Context(), s.settings.TopicShipped, func(r *schema.Record) error {
				got = result(s.t, *r)
				return nil
			})
			if err != nil {
				s.t.Fatal(err)
			}
			if !got.Reconciled || got.Attempts != 2 || s.api.Stats().Calls != 2 {
				s.t.Errorf("got %+v after %d calls, want the first call's outcome to count as unknown", got, s.api.Stats().Calls)
			}
		})
	})
}

func caseBadWaybills(t *testing.T) {
	const n = 30
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(35)})
	w.produce(orders(1, n)...)
	r := w.start()
	w.await(0, n, 0)
	if a := r.c.Status().Accounts[0]; a.Breaker != "closed" || a.State == "halted" {
		t.Errorf("account %+v, want a closed breaker", a)
	}
	if parked := r.c.Status().ParkedShops; len(parked) != 0 {
		t.Errorf("parked %+v", parked)
	}
	w.spent(n)
}

func caseOutage(t *testing.T) {
	inSimulation(t, func(o *upstreamtest.Options) {
		o.Faults = []upstreamtest.Fault{{Kind: upstreamtest.AnyRow(6), Count: 20}}
	}, nil, func(s *simulation) {
		const n = 40
		var values []string
		for i := range n {
			values = append(values, packedOrder("S1", 1+i))
		}
		p := s.startReplica(0)
		s.produce(inTurn(values))
		s.until("the breaker is open", func() bool { return p.c.Status().Accounts[0].Breaker == "open" })
		s.until("the API has answered", func() bool { return s.api.Stats().InFlight == 0 })
		first := s.api.Stats().Calls
		s.await(n, 0)
		calls := s.api.Journal().Calls()
		if len(calls) != 20+n {
			s.t.Errorf("%d calls, want 20 that fail and one that ships each of %d orders", len(calls), n)
		}
		opened := calls[s.settings.BreakerFailures-1].Done
		for i := first; i <= 20; i++ { // and the one that finds the API back
			alone := !calls[i+1].Arrived.Before(calls[i].Done)
			rest := calls[i].Arrived.Sub(opened)
			opened = calls[i].Done
			if !alone || rest < s.settings.BreakerOpenFor {
				s.t.Errorf("call %d came %s after the one before was answered, alone %t; want one order after a pause of %s", i+1, rest, alone, s.settings.BreakerOpenFor)
			}
		}
	})
}

func caseRedirect(t *testing.T) {
	var visits atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { visits.Add(1) }))
	defer elsewhere.Close()
	var logs lockedBuffer
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.Redirect(http.StatusTemporaryRedirect), Location: elsewhere.URL + "/tool/erps/send"})
	w.produce(order(1, ""))
	r := w.startLogging(&logs)
	r.eventually("halted", func() bool { return r.c.Status().Accounts[0].Reason == "http_redirect" })
	w.spent(1)
	if n := visits.Load(); n != 0 {
		t.Errorf("the other host was called %d times", n)
	}
	seen := map[string]string{"the log": logs.String()}
	for _, path := range []string{"/metrics", "/api/status", "/", "/api/orders/1", "/readyz"} {
		_, seen[path] = r.get(path)
	}
	for _, topic := range w.settings.Topics() {
		for _, rec := range w.read(topic) {
			seen[topic] += string(rec.Value)
			for _, h := range rec.Headers {
				seen[topic] += string(h.Value)
			}
		}
	}
	for where, text := range seen {
		if text == "" && where != w.settings.TopicShipped && where != w.settings.TopicFailed && where != w.settings.TopicDLQ {
			t.Errorf("nothing in %s, so nothing is shown by it", where)
		}
		if strings.Contains(text, testToken) {
			t.Errorf("the token is in %s", where)
		}
	}
}

func caseReset(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick}, patientAPI, func(s *Settings) { s.UnknownPolicy = "park" })
	w.produce(order(1, ""))
	r := w.start()
	w.await(1, 0, 0) // so that there is a connection to be used again
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.ResetAfterRead})
	w.produce(order(2, ""))
	w.await(1, 1, 0)
	if got := result(t, w.read(w.settings.TopicFailed)[0]); got.Reason != "outcome_unknown" || !got.MaybeShipped || got.Attempts != 1 {
		t.Errorf("got %+v", got)
	}
	if stats := w.spent(2); stats.IdempotencyKeys != 0 {
		t.Errorf("%d requests had an Idempotency-Key", stats.IdempotencyKeys)
	}
	if a := r.c.Status().Accounts[0]; a.Calls != 2 {
		t.Errorf("%d calls booked, want 2", a.Calls)
	}
}

func caseStringTypes(t *testing.T) {
	got := answerTo(t, upstreamtest.Fault{
		Kind: upstreamtest.Raw, Status: http.StatusOK, Body: `{"code":"0","data":{"success":"true","withholding_money":"1"}}`,
	})
	if got.Effect != schema.EffectShipped || got.Exchange.Withheld != 1 {
		t.Errorf("got %+v", got)
	}
}

func caseCodeWins(t *testing.T) {
	got := answerTo(t, upstreamtest.Fault{
		Kind: upstreamtest.Raw, Status: http.StatusOK, Body: `{"code":614,"msg":"参数为空","data":[{"success":true}]}`,
	})
	if got.Effect != schema.EffectNone || got.Action != schema.ActFail || got.Reason != "parameter_missing" {
		t.Errorf("got %+v", got)
	}
}

// lockedBuffer is a buffer that may be read while others write.
type lockedBuffer struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
