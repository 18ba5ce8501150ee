package upstreamtest_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"packship/upstream/upstreamtest"
)

// start serves the simulator on a port of the loopback interface.
func start(t *testing.T, sim *upstreamtest.Simulator) (addr string) {
	t.Helper()
	base, err := sim.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// write writes the call on the connection as the wire has it.
func write(t *testing.T, conn net.Conn, f form) {
	t.Helper()
	if err := f.request(upstreamtest.SendPath).Write(conn); err != nil {
		t.Fatal(err)
	}
}

// call makes one call on a connection of its own, by hand.
func call(t *testing.T, addr string, f form) (reply, error) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = conn.Close() }()
	if err := f.request(upstreamtest.SendPath).Write(conn); err != nil {
		return reply{}, err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodPost})
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	rep := reply{Status: res.StatusCode, Header: res.Header, Body: string(body)}
	_ = json.Unmarshal(body, &rep) // broken answers are looked at as text
	return rep, err
}

// wait waits until the journal's counters are as wanted.
func wait(t *testing.T, sim *upstreamtest.Simulator, cond func(upstreamtest.Stats) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := sim.Journal().Wait(ctx, cond); err != nil {
		t.Fatalf("%v; the counters are %+v", err, sim.Stats())
	}
}

// wire is what a caller sees of a fault.
type wire struct {
	status int // 0: no answer
	broken bool
	body   func(string) error
	header map[string]string
}

func contains(want string) func(string) error {
	return func(body string) error {
		if !strings.Contains(body, want) {
			return fmt.Errorf("it does not contain %s", want)
		}
		return nil
	}
}

func exactly(want string) func(string) error {
	return func(body string) error {
		if body != want {
			return fmt.Errorf("it is not %s", want)
		}
		return nil
	}
}

func notJSON(then func(string) error) func(string) error {
	return func(body string) error {
		if json.Valid([]byte(body)) {
			return errors.New("it is valid JSON")
		}
		return then(body)
	}
}

func TestFaultsOnTheWire(t *testing.T) {
	type fault = upstreamtest.Fault
	yes, no := new(true), new(false)
	tests := []struct {
		name    string
		fault   fault
		want    wire
		applied bool
	}{
		{"no fault", fault{Kind: upstreamtest.None}, wire{status: 200, body: contains(`"success":true`)}, true},
		{"apply_then_reset", fault{Kind: upstreamtest.ApplyThenReset}, wire{}, true},
		{"reset_before_read", fault{Kind: upstreamtest.ResetBeforeRead}, wire{}, false},
		{"reset_before_read of an order", fault{Kind: upstreamtest.ResetBeforeRead, TID: "1001"}, wire{}, false},
		{"reset_after_read_no_apply", fault{Kind: upstreamtest.ResetAfterRead}, wire{}, false},
		{"reset_after_read, applied", fault{Kind: upstreamtest.ResetAfterRead, Apply: yes}, wire{}, true},
		{"http_500", fault{Kind: upstreamtest.HTTPStatus(500)}, wire{status: 500, body: contains("<html>")}, false},
		{"http_500 applied", fault{Kind: upstreamtest.HTTPStatus(500), Apply: yes}, wire{status: 500, body: contains("<html>")}, true},
		{"http_502", fault{Kind: upstreamtest.HTTPStatus(502)}, wire{status: 502, body: contains("502 Bad Gateway")}, false},
		{"http_502 applied", fault{Kind: upstreamtest.HTTPStatus(502), Apply: yes}, wire{status: 502}, true},
		{"http_503", fault{Kind: upstreamtest.HTTPStatus(503), Headers: map[string]string{"Retry-After": "7"}}, wire{status: 503, header: map[string]string{"Retry-After": "7"}}, false},
		{"http_504", fault{Kind: upstreamtest.HTTPStatus(504)}, wire{status: 504}, false},
		{"http_504 applied", fault{Kind: upstreamtest.HTTPStatus(504), Apply: yes, Delay: time.Millisecond}, wire{status: 504}, true},
		{"http_401", fault{Kind: upstreamtest.HTTPStatus(401)}, wire{status: 401}, false},
		{"html_200", fault{Kind: upstreamtest.HTML200}, wire{status: 200, body: notJSON(contains("<html>")), header: map[string]string{"Content-Type": "text/html; charset=UTF-8"}}, false},
		{"empty_200", fault{Kind: upstreamtest.Empty200}, wire{status: 200, body: exactly("")}, false},
		{"truncated_json", fault{Kind: upstreamtest.TruncatedJSON}, wire{status: 200, body: notJSON(contains(`{"code":0`))}, true},
		{"truncated_json, not applied", fault{Kind: upstreamtest.TruncatedJSON, Apply: no}, wire{status: 200, body: notJSON(contains(`{"code":0`))}, false},
		{"cut_off", fault{Kind: upstreamtest.CutOff}, wire{status: 200, broken: true, body: notJSON(contains(`{"code":0`))}, true},
		{"trailing_comma", fault{Kind: upstreamtest.TrailingComma}, wire{status: 200, body: notJSON(contains(`"success":true}],}`))}, true},
		{"yii_code0_404", fault{Kind: upstreamtest.YiiError(404)}, wire{status: 404, body: exactly(`{"name":"Not Found","message":"Page not found.","code":0,"status":404}`)}, false},
		{"yii_code0_429", fault{Kind: upstreamtest.YiiError(429)}, wire{status: 429, body: exactly(`{"name":"Too Many Requests","message":"Rate limit exceeded.","code":0,"status":429}`)}, false},
		{"yii_code0_500", fault{Kind: upstreamtest.YiiError(500)}, wire{status: 500, body: contains(`"code":0,"status":500`)}, false},
		{"yii_200_success_false", fault{Kind: upstreamtest.Yii200}, wire{status: 200, body: contains(`{"success":false,"data":{"name":"Not Found",`)}, false},
		{"yii_200_success_false 429", fault{Kind: upstreamtest.Yii200, Status: 429}, wire{status: 200, body: contains(`"code":0,"status":429}}`)}, false},
		{"code0_success_false", fault{Kind: upstreamtest.SuccessFalse}, wire{status: 200, body: contains(`"data":[{"withholding_money":1,"success":false}]`)}, false},
		{"code0_data_empty", fault{Kind: upstreamtest.DataEmpty}, wire{status: 200, body: contains(`{"code":0,`)}, true},
		{"code0_no_data", fault{Kind: upstreamtest.NoData, Apply: no}, wire{status: 200, body: func(s string) error {
			if strings.Contains(s, "data") {
				return errors.New("there is data")
			}
			return contains(`{"code":0,`)(s)
		}}, false},
		{"string_types", fault{Kind: upstreamtest.StringTypes}, wire{status: 200, body: contains(`"data":{"success":"true","withholding_money":"1"}}`)}, true},
		{"huge_body", fault{Kind: upstreamtest.HugeBody, Size: 3 << 20}, wire{status: 200, body: func(s string) error {
			if len(s) < 3<<20 || !json.Valid([]byte(s)) {
				return fmt.Errorf("it has %d bytes, or is no JSON", len(s))
			}
			return nil
		}}, true},
		{"slow_drip", fault{Kind: upstreamtest.SlowDrip, Delay: time.Microsecond}, wire{status: 200, body: contains(`"success":true}]}`)}, true},
		{"redirect_307", fault{Kind: upstreamtest.Redirect(307)}, wire{status: 307, header: map[string]string{"Location": "http://api.test/moved/tool/erps/send"}}, false},
		{"redirect_302 elsewhere", fault{Kind: upstreamtest.Redirect(302), Location: "http://elsewhere.test/"}, wire{status: 302, header: map[string]string{"Location": "http://elsewhere.test/"}}, false},
		{"any_row(53)", fault{Kind: upstreamtest.AnyRow(53)}, wire{status: 200, body: contains(`{"code":614,"msg":"\u7cfb\u7edf\u5f02\u5e38"`)}, false},
		{"any_row(53) applied", fault{Kind: upstreamtest.AnyRow(53), Apply: yes}, wire{status: 200, body: contains(`{"code":614,`)}, true},
		{"any_row(1), a lie", fault{Kind: upstreamtest.AnyRow(1), Apply: no}, wire{status: 200, body: contains(`"success":true`)}, false},
		{"any_row with a text", fault{Kind: upstreamtest.AnyRow(26), Text: "isv.some-new-thing:ZZ9"}, wire{status: 200, body: contains(`"msg":"isv.some-new-thing:ZZ9"`)}, false},
		{"code", fault{Kind: upstreamtest.Code, Code: 777, Text: "new/old"}, wire{status: 200, body: contains(`{"code":777,"msg":"new\/old"`)}, false},
		{"raw", fault{Kind: upstreamtest.Raw, Status: 418, Body: "tea", Headers: map[string]string{"Content-Type": "text/plain"}}, wire{status: 418, body: exactly("tea"), header: map[string]string{"Content-Type": "text/plain"}}, false},
		{"flow_control", fault{Kind: upstreamtest.FlowControl}, wire{status: 200, body: contains(`This ban will last for 3 more seconds`)}, false},
		{"token_displaced", fault{Kind: upstreamtest.TokenDisplaced}, wire{status: 200, body: contains(`{"code":401,`)}, false},
		{"balance_zero", fault{Kind: upstreamtest.BalanceZero}, wire{status: 200, body: contains(`{"code":204,`)}, false},
		{"shop_unauthorised", fault{Kind: upstreamtest.ShopUnauthorised}, wire{status: 200, body: contains(`{"code":302,`)}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sim := open(t, closedWorld())
			addr := start(t, sim)
			sim.AddFault(tt.fault)
			got, err := call(t, addr, good)
			if tt.want.status == 0 {
				// The request may have been lost in the connection's buffers.
				if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
					t.Fatalf("got %+v, %v, want a broken connection", got, err)
				}
			} else {
				if (err != nil) != tt.want.broken {
					t.Fatalf("got error %v", err)
				}
				if got.Status != tt.want.status {
					t.Errorf("got status %d, want %d", got.Status, tt.want.status)
				}
				if tt.want.body != nil {
					if err := tt.want.body(got.Body); err != nil {
						t.Errorf("body %.300s: %v", got.Body, err)
					}
				}
			}
			for name, want := range tt.want.header {
				if got.Header.Get(name) != want {
					t.Errorf("header %s is %q, want %q", name, got.Header.Get(name), want)
				}
			}
			wait(t, sim, func(s upstreamtest.Stats) bool { return s.Calls == 1 && s.InFlight == 0 })
			e := sim.Journal().Calls()[0]
			if e.Applied != tt.applied {
				t.Errorf("applied: got %t, want %t", e.Applied, tt.applied)
			}
			if tt.fault.Kind != upstreamtest.None && e.Fault != string(tt.fault.Kind) {
				t.Errorf("the journal has fault %q", e.Fault)
			}
			if tr, _ := sim.Trade("S1", "1001"); (tr.Status == upstreamtest.WaitBuyerConfirm) != tt.applied {
				t.Errorf("the order is %s", tr.Status)
			}
		})
	}
}

// TestDeliveredMeansWellSaid: a broken or gateway's answer is no answer of the
// API.
func TestDeliveredMeansWellSaid(t *testing.T) {
	for kind, want := range map[upstreamtest.FaultKind]bool{
		upstreamtest.None: true, upstreamtest.SuccessFalse: true, upstreamtest.StringTypes: true, upstreamtest.SlowDrip: true,
		upstreamtest.AnyRow(20): true, upstreamtest.TruncatedJSON: false, upstreamtest.HTTPStatus(500): false,
		upstreamtest.ApplyThenReset: false, upstreamtest.HugeBody: false,
	} {
		sim := open(t, closedWorld())
		addr := start(t, sim)
		sim.AddFault(upstreamtest.Fault{Kind: kind, Delay: time.Microsecond, Count: 1})
		_, _ = call(t, addr, good) // the answer is not what is looked at
		wait(t, sim, func(s upstreamtest.Stats) bool { return s.Calls == 1 && s.InFlight == 0 })
		if got := sim.Journal().Calls()[0].Delivered; got != want {
			t.Errorf("%s: delivered %t, want %t", kind, got, want)
		}
		_, _ = call(t, addr, good)
		wait(t, sim, func(s upstreamtest.Stats) bool { return s.Calls == 2 && s.InFlight == 0 })
		if got := sim.Stats().BlindRepeats == 1; got != want {
			t.Errorf("%s: a second call counts as blind: %t, want %t", kind, got, want)
		}
	}
}

func TestApplyThenHang(t *testing.T) {
	sim := open(t, closedWorld())
	addr := start(t, sim)
	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.ApplyThenHang, Count: 1})
	conn := dial(t, addr)
	write(t, conn, good)
	wait(t, sim, func(s upstreamtest.Stats) bool { return s.Applied == 1 })
	if e := sim.Journal().Calls()[0]; !e.Done.IsZero() || sim.Stats().InFlight != 1 {
		t.Fatalf("the call is over: %+v", e)
	}
	_ = conn.Close()
	wait(t, sim, func(s upstreamtest.Stats) bool { return s.InFlight == 0 })
	if e := sim.Journal().Calls()[0]; e.Delivered || e.Row != 1 || !e.Applied {
		t.Errorf("got %+v, want row 1, applied, not delivered", e)
	}
	got, err := call(t, addr, good)
	if err != nil {
		t.Fatal(err)
	}
	wantRow(t, got, 15)
	if n := sim.Stats().BlindRepeats; n != 0 {
		t.Errorf("got %d blind repeats after an unknown outcome, want 0", n)
	}
}

func TestHangThenApply(t *testing.T) {
	sim := open(t, closedWorld())
	addr := start(t, sim)
	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.HangThenApply, TID: "1001", Delay: time.Millisecond})
	conn := dial(t, addr)
	write(t, conn, good)
	wait(t, sim, func(s upstreamtest.Stats) bool { return s.Faults["hang_then_apply"] == 1 })
	if tr, _ := sim.Trade("S1", "1001"); tr.Status != upstreamtest.WaitSellerSend {
		t.Errorf("before the caller gives up, the order is %s", tr.Status)
	}
	_ = conn.Close()
	wait(t, sim, func(s upstreamtest.Stats) bool { return s.Applied == 1 })
	if tr, _ := sim.Trade("S1", "1001"); tr.Status != upstreamtest.WaitBuyerConfirm {
		t.Errorf("afterwards, the order is %s", tr.Status)
	}
}

// TestHangThenApplyTooLate has a second call ship the order before the first
// takes effect: it must not be shipped twice.
func TestHangThenApplyTooLate(t *testing.T) {
	sim := open(t, closedWorld())
	addr := start(t, sim)
	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.HangThenApply, Count: 1, Delay: time.Millisecond})
	conn := dial(t, addr)
	write(t, conn, good)
	wait(t, sim, func(s upstreamtest.Stats) bool { return s.Faults["hang_then_apply"] == 1 })
	got, err := call(t, addr, good)
	if err != nil {
		t.Fatal(err)
	}
	wantRow(t, got, 1)
	_ = conn.Close()
	wait(t, sim, func(s upstreamtest.Stats) bool { return s.Rows[15] == 1 })
	if st := sim.Stats(); st.Applied != 1 || st.Overlaps != 1 {
		t.Errorf("got %d applied, %d overlaps, want 1 and 1", st.Applied, st.Overlaps)
	}
}

func TestFlowControlLasts(t *testing.T) {
	sim := open(t, closedWorld())
	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.FlowControl, Count: 1, Text: "This ban will last for 100000 more seconds"})
	for range 3 {
		got := send(t, sim, good)
		if *got.Code != 614 || !strings.Contains(got.Msg, "ban will last for 100000 more seconds") {
			t.Errorf("got %s", got.Body)
		}
	}
	if n := sim.Stats().Faults["flow_control"]; n != 3 {
		t.Errorf("got %d calls under flow control, want 3", n)
	}
}

func TestStateFaultsAreRepaired(t *testing.T) {
	sim := open(t, closedWorld())
	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.BalanceZero, Nth: 1})
	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.TokenDisplaced, Nth: 2})
	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.ShopUnauthorised, Nth: 3})
	wantRow(t, send(t, sim, good), 9)
	if err := sim.TopUp("north", 10); err != nil {
		t.Fatal(err)
	}
	wantRow(t, send(t, sim, good), 11)
	if err := sim.SetToken("north", token); err != nil {
		t.Fatal(err)
	}
	wantRow(t, send(t, sim, good), 10)
	if err := sim.Authorise("S1"); err != nil {
		t.Fatal(err)
	}
	wantRow(t, send(t, sim, good), 1)
}

func TestSelectors(t *testing.T) {
	const kind = upstreamtest.FaultKind("any_row(20)")
	calls := []form{order("S1", "100"), order("S1", "101"), order("S2", "102"), order("S1", "103"), order("S2", "104"), order("S1", "105")}
	tests := map[string]struct {
		fault upstreamtest.Fault
		want  string // of each call, whether it is hit
	}{
		"all":                 {upstreamtest.Fault{}, "xxxxxx"},
		"an order":            {upstreamtest.Fault{TID: "103"}, "...x.."},
		"orders by a pattern": {upstreamtest.Fault{TID: "*[24]"}, "..x.x."},
		"a shop":              {upstreamtest.Fault{Shop: "S2"}, "..x.x."},
		"shops by a pattern":  {upstreamtest.Fault{Shop: "S?"}, "xxxxxx"},
		"another token":       {upstreamtest.Fault{Token: "other"}, "......"},
		"the token":           {upstreamtest.Fault{Token: token[:3] + "*"}, "xxxxxx"},
		"the second":          {upstreamtest.Fault{Nth: 2}, ".x...."},
		"the second of S1":    {upstreamtest.Fault{Shop: "S1", Nth: 2}, ".x...."},
		"the third of S1":     {upstreamtest.Fault{Shop: "S1", Nth: 3}, "...x.."},
		"every second":        {upstreamtest.Fault{Every: 2}, ".x.x.x"},
		"the first two":       {upstreamtest.Fault{Count: 2}, "xx...."},
		"two of S2":           {upstreamtest.Fault{Shop: "S2", Count: 1}, "..x..."},
		"surely":              {upstreamtest.Fault{Probability: 1}, "xxxxxx"},
		"another endpoint":    {upstreamtest.Fault{Endpoint: "detail"}, "......"},
		"any endpoint":        {upstreamtest.Fault{Endpoint: "*"}, "xxxxxx"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sim := open(t, upstreamtest.Options{AutoCreate: true})
			tt.fault.Kind = kind
			sim.AddFault(tt.fault)
			var got strings.Builder
			for _, f := range calls {
				if *send(t, sim, f).Code == 0 {
					got.WriteByte('.')
				} else {
					got.WriteByte('x')
				}
			}
			if got.String() != tt.want {
				t.Errorf("got %s, want %s", got.String(), tt.want)
			}
		})
	}
}

func TestScripts(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true})
	sim.AddScript(upstreamtest.Script{TID: "7", Steps: []upstreamtest.Fault{
		{Kind: upstreamtest.HTTPStatus(500)},
		{Kind: upstreamtest.AnyRow(53), Apply: new(true)},
		{Kind: upstreamtest.None},
		{Kind: upstreamtest.ResetBeforeRead},
	}})
	sim.AddScript(upstreamtest.Script{Shop: "LOOP", Loop: true, Steps: []upstreamtest.Fault{
		{Kind: upstreamtest.AnyRow(20)}, {Kind: upstreamtest.AnyRow(29)},
	}})
	if got := send(t, sim, order("S", "7")); got.Status != 500 {
		t.Errorf("first call: got %d", got.Status)
	}
	wantRow(t, send(t, sim, order("S", "8")), 1)
	wantRow(t, send(t, sim, order("S", "7")), 53)
	wantRow(t, send(t, sim, order("S", "7")), 15)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the fourth call is not broken off")
			}
		}()
		send(t, sim, order("S", "7"))
	}()
	wantRow(t, send(t, sim, order("S", "7")), 15)
	for _, row := range []int{20, 29, 20} {
		wantRow(t, send(t, sim, order("LOOP", "9")), row)
	}
	o := sim.Dump()
	if len(o.Scripts) != 1 || o.Scripts[0].Shop != "LOOP" {
		t.Errorf("scripts left: %+v", o.Scripts)
	}
}

func TestFirstFaultWins(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true})
	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(20), Count: 1})
	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(29)})
	wantRow(t, send(t, sim, order("S", "7")), 20)
	wantRow(t, send(t, sim, order("S", "7")), 29)
	if left := sim.Dump().Faults; len(left) != 1 || left[0].Kind != upstreamtest.AnyRow(29) {
		t.Errorf("a fault that is used up is left: %+v", left)
	}
	sim.SetFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(43), Count: 3})
	wantRow(t, send(t, sim, order("S", "7")), 43)
	if left := sim.Dump().Faults; len(left) != 1 || left[0].Count != 2 {
		t.Errorf("two hits are not what is left: %+v", left)
	}
	sim.ClearFaults()
	wantRow(t, send(t, sim, order("S", "7")), 1)
}

// TestSeedFixesFaults: which orders a fault hits depends on the seed and the
// order alone, and their number on the probability.
func TestSeedFixesFaults(t *testing.T) {
	const n = 2000
	hits := func(seed uint64, backwards bool) map[string]bool {
		sim := open(t, upstreamtest.Options{AutoCreate: true, Seed: seed})
		sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(20), Probability: 0.1})
		hit := map[string]bool{}
		for i := range n {
			if backwards {
				i = n - 1 - i
			}
			tid := fmt.Sprint(1000000 + i)
			if *send(t, sim, order("S", tid)).Code != 0 {
				hit[tid] = true
			}
		}
		return hit
	}
	one, again, other := hits(1, false), hits(1, true), hits(2, false)
	// Six standard deviations around 200 of 2000.
	for _, h := range []map[string]bool{one, other} {
		if len(h) < 120 || len(h) > 280 {
			t.Errorf("%d of %d calls are hit, want about 200", len(h), n)
		}
	}
	if fmt.Sprint(one) != fmt.Sprint(again) {
		t.Error("the same seed hits other orders when they come in another order")
	}
	if fmt.Sprint(one) == fmt.Sprint(other) {
		t.Error("another seed hits the same orders")
	}
}

func TestFaultValidation(t *testing.T) {
	bad := map[string]upstreamtest.Fault{
		"unknown kind":     {Kind: "explode"},
		"no kind":          {},
		"no such row":      {Kind: upstreamtest.AnyRow(61)},
		"row zero":         {Kind: upstreamtest.AnyRow(0)},
		"status too low":   {Kind: upstreamtest.HTTPStatus(200)},
		"not a redirect":   {Kind: upstreamtest.Redirect(404)},
		"bad pattern":      {Kind: upstreamtest.Hang, TID: "["},
		"bad probability":  {Kind: upstreamtest.Hang, Probability: 1.1},
		"negative count":   {Kind: upstreamtest.Hang, Count: -1},
		"no such endpoint": {Kind: upstreamtest.Hang, Endpoint: "post"},
		"no such status":   {Kind: upstreamtest.Raw, Status: 99},
	}
	for name, f := range bad {
		if f.Validate() == nil {
			t.Errorf("%s is accepted", name)
		}
		sc := upstreamtest.Script{Steps: []upstreamtest.Fault{f}}
		if sc.Validate() == nil {
			t.Errorf("%s is accepted in a script", name)
		}
	}
	if (&upstreamtest.Script{}).Validate() == nil {
		t.Error("a script without steps is accepted")
	}
	defer func() {
		if recover() == nil {
			t.Error("AddFault takes a bad fault")
		}
	}()
	open(t, upstreamtest.Options{}).AddFault(upstreamtest.Fault{Kind: "explode"})
}
