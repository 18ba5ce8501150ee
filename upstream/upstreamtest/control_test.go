package upstreamtest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"packship/upstream/upstreamtest"
)

// control does one operation of the control API.
func control(t *testing.T, sim *upstreamtest.Simulator, method, path, body string) (status int, answer string) {
	t.Helper()
	rec := httptest.NewRecorder()
	sim.ServeHTTP(rec, httptest.NewRequest(method, "http://api.test/__sim"+path, strings.NewReader(body)))
	return rec.Code, strings.TrimSpace(rec.Body.String())
}

func TestControl(t *testing.T) {
	sim := open(t, closedWorld())
	expectRow := func(f form, n int) func(*testing.T) {
		return func(t *testing.T) { t.Helper(); wantRow(t, send(t, sim, f), n) }
	}
	has := func(t *testing.T, got string, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if !strings.Contains(got, part) {
				t.Errorf("got %.400s, want %s in it", got, part)
			}
		}
	}
	steps := []struct {
		method, path, body string
		want               []string // in the answer
		then               func(*testing.T)
	}{
		{"GET", "/", "", []string{`"GET /state"`, `"POST /trades/{shop}/{tid}/ship"`}, nil},
		{"POST", "/faults", `{"kind": "any_row(20)", "count": 1}`, []string{`{"added":1}`}, expectRow(good, 20)},
		{"POST", "/faults", `[{"kind": "any_row(29)", "tid": "1001"}, {"kind": "hang", "tid": "1", "delay": "3s"}]`, []string{`{"added":2}`}, expectRow(good, 29)},
		{"GET", "/faults", "", []string{`"delay":"3s"`, `"kind":"any_row(29)"`, `"scripts":[]`}, nil},
		{"DELETE", "/faults", "", []string{`"ok":true`}, nil},
		{"POST", "/scripts", `{"steps": [{"kind": "any_row(43)"}]}`, []string{`{"added":1}`}, expectRow(good, 43)},
		{"POST", "/shops/S1/unauthorise", "", nil, expectRow(good, 10)},
		{"POST", "/shops/S1/authorise", "", nil, nil},
		{"POST", "/shops/S1/expire-session", "", nil, expectRow(good, 22)},
		{"POST", "/shops/S1/authorise", "", nil, nil},
		{"POST", "/trades/S1/1001/hold", "", nil, expectRow(good, 26)},
		{"POST", "/trades/S1/1001/release", "", nil, nil},
		{"POST", "/trades/S1/1001/ship", `{"company": "YTO", "out_sid": "YT0000000009", "oids": ["11"]}`, nil, expectRow(good.with("is_split", "1", "sub_tid", "11"), 15)},
		{"GET", "/trades/S1/1001", "", []string{`"by_hand":true`, `"out_sid":"YT0000000009"`, `"status":"SELLER_CONSIGNED_PART"`}, nil},
		{"POST", "/trades/S1/1001/refund", `{"oids": ["12"]}`, nil, expectRow(good.with("is_split", "1", "sub_tid", "13"), 1)},
		{"POST", "/trades/S1/1001/refund", "", nil, expectRow(good, 59)},
		{"POST", "/trades", `{"shop": "S1", "tid": 3003, "status": "WAIT_BUYER_PAY"}`, []string{`{"added":1}`}, expectRow(good.with("tid", "3003"), 26)},
		{"POST", "/trades/S1/3003/pay", "", nil, expectRow(good.with("tid", "3003", "out_sid", "SF1234567890124"), 1)},
		{"POST", "/trades/S1/3003/confirm", "", nil, expectRow(good.with("tid", "3003"), 15)},
		{"POST", "/trades", `{"shop": "S1", "tid": "3004", "status": "WAIT_BUYER_PAY"}`, nil, nil},
		{"POST", "/trades/S1/3004/cancel", "", nil, expectRow(good.with("tid", "3004"), 59)},
		{"POST", "/trades", `{"shop": "S1", "tid": "3005"}`, nil, nil},
		{"POST", "/waybills", `{"company": "SF", "out_sid": "SF1234567890123", "fake": true}`, nil, expectRow(good.with("tid", "3005"), 30)},
		{"POST", "/carriers", `{"code": "SF", "disabled": true}`, nil, expectRow(good.with("tid", "3005"), 56)},
		{"POST", "/shops", `{"id": "S3"}`, nil, expectRow(good.with("shop_id", "S3", "tid", "1"), 13)},
		{"POST", "/accounts", `{"name": "south", "token": "tt", "balance": 0}`, nil, nil},
		{"POST", "/accounts/south/topup", `{"points": 5}`, nil, func(t *testing.T) {
			t.Helper()
			if a, _ := sim.Account("south"); *a.Balance != 5 {
				t.Errorf("balance is %d", *a.Balance)
			}
		}},
		{"POST", "/accounts/north/deny", `{"endpoints": ["send"]}`, nil, expectRow(good, 8)},
		{"POST", "/accounts/north/deny", ``, nil, expectRow(good, 59)},
		{"POST", "/accounts/north/rotate", "", []string{`{"token":"`}, expectRow(good, 11)},
		{"POST", "/accounts/north/token", `{"token": "` + token + `"}`, nil, expectRow(good, 59)},
		{"PUT", "/switches", `{"closed_row": 15, "raw_chinese": true}`, nil, expectRow(good, 15)},
		{"PUT", "/latency", `{"fixed": "1ms"}`, nil, expectRow(good, 15)},
		{"PUT", "/rate", `{"per_second": 1, "answer": "row"}`, nil, func(t *testing.T) {
			t.Helper()
			send(t, sim, good)
			wantRow(t, send(t, sim, good), 6)
		}},
		{"PUT", "/rate", `{"per_second": 0}`, nil, nil},
		{"PUT", "/down", `{"mode": "unavailable"}`, nil, func(t *testing.T) {
			t.Helper()
			if got := send(t, sim, good); got.Status != 503 {
				t.Errorf("got %d", got.Status)
			}
		}},
		{"PUT", "/down", `{"mode": ""}`, nil, expectRow(good, 15)},
		{"PUT", "/down", `{"mode": "unavailable", "for": "1h"}`, nil, func(t *testing.T) {
			t.Helper()
			if got := send(t, sim, good); got.Status != 503 {
				t.Errorf("got %d", got.Status)
			}
		}},
		{"PUT", "/down", `{"mode": ""}`, nil, expectRow(good, 15)},
		{"POST", "/outages", `{"from": "5h", "to": "6h", "mode": "refusing"}`, []string{`{"added":1}`}, nil},
		{"POST", "/clock", `{"advance": "2h"}`, []string{`{"now":"20`}, nil},
		{"GET", "/stats", "", []string{`"max_in_any_second":`, `"by_account":{"north":{"requests":`, `"applied":2`}, nil},
		{"GET", "/verify", "", []string{`"violations":[`}, nil},
		{"GET", "/state", "", []string{`"name":"north"`, `"fixed":"1ms"`, `"tid":"3005"`, `"paid_at":"2026-11-01T00:00:00Z"`}, nil},
		{"GET", "/state?format=yaml", "", []string{"closed_row: 15\n", "tid: \"3005\"\n"}, nil},
		{"GET", "/journal?tid=3003", "", []string{`"form":[{"name":"shop_id","value":"S1"},{"name":"tid","value":"3003"}`}, nil},
		{"GET", "/journal?limit=0", "", []string{`[]`}, nil},
		{"DELETE", "/journal", "", nil, func(t *testing.T) {
			t.Helper()
			if n := sim.Stats().Requests; n != 0 {
				t.Errorf("%d requests are left", n)
			}
		}},
	}
	for _, st := range steps {
		status, got := control(t, sim, st.method, st.path, st.body)
		if status != 200 {
			t.Fatalf("%s %s: %d %s", st.method, st.path, status, got)
		}
		has(t, got, st.want...)
		if !strings.HasSuffix(st.path, "yaml") && !json.Valid([]byte(got)) {
			t.Errorf("%s %s is no JSON: %.300s", st.method, st.path, got)
		}
		if st.then != nil {
			t.Run(fmt.Sprintf("after %s %s", st.method, st.path), st.then)
		}
	}
}

func TestControlJournal(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true})
	for i := range 5 {
		send(t, sim, order("S"+fmt.Sprint(i%2), fmt.Sprint(100+i)))
	}
	for query, want := range map[string]string{
		"": "1 2 3 4 5", "?since=3": "4 5", "?limit=2": "4 5", "?shop=S1": "2 4", "?tid=102": "3", "?shop=S0&limit=1": "5", "?tid=1": "",
	} {
		_, got := control(t, sim, "GET", "/journal"+query, "")
		var list []upstreamtest.Entry
		if err := json.Unmarshal([]byte(got), &list); err != nil {
			t.Fatal(err)
		}
		var ns []string
		for _, e := range list {
			ns = append(ns, fmt.Sprint(e.N))
		}
		if got := strings.Join(ns, " "); got != want {
			t.Errorf("%s: got %s, want %s", query, got, want)
		}
	}
}

func TestControlErrors(t *testing.T) {
	sim := open(t, closedWorld())
	before := sim.Dump()
	for _, st := range []struct{ method, path, body, want string }{
		{"POST", "/faults", `{"kind": "explode"}`, "explode"},
		{"POST", "/faults", `{"knd": "hang"}`, "knd"},
		{"POST", "/faults", `[{"kind": "hang"}, {"kind": "hang", "tdi": "1"}]`, "tdi"},
		{"POST", "/faults", `[{"kind": "hang"}, {"kind": "explode"}]`, "explode"}, // none is added
		{"POST", "/shops/S9/authorise", "", "S9"},
		{"POST", "/accounts/west/topup", `{"points": 1}`, "west"},
		{"POST", "/accounts/west/rotate", "", "west"},
		{"POST", "/accounts/west/token", "", "west"},
		{"POST", "/accounts/north/deny", `{"endpoints": ["all"]}`, "all"},
		{"POST", "/accounts/north/topup", `{"points": "many"}`, "many"},
		{"POST", "/accounts/north/token", `[]`, "yaml"},
		{"POST", "/trades/S1/999/hold", "", "999"},
		{"POST", "/trades/S1/1001/release", "", "WAIT_SELLER_SEND_GOODS"},
		{"POST", "/trades/S1/1001/refund", `{"oids": ["9"]}`, "no such items"},
		{"POST", "/trades/S1/1001/ship", `{"oids": 5}`, "yaml"},
		{"POST", "/trades/S1/1001/refund", `{"oids": 5}`, "yaml"},
		{"GET", "/trades/S1/999", "", "no such order"},
		{"PUT", "/latency", `{"fixed": "-1s"}`, "negative"},
		{"PUT", "/latency", `{"fixt": "1s"}`, "fixt"},
		{"PUT", "/rate", `{"window": "x"}`, "window"},
		{"PUT", "/switches", `{"closed_row": 1}`, "closed_row"},
		{"PUT", "/down", `{"mode": "gone"}`, "gone"},
		{"PUT", "/down", `{"mode": "", "for": "1s"}`, "mode"},
		{"PUT", "/down", `{"until": "1s"}`, "until"},
		{"POST", "/outages", `{}`, "ends after"},
		{"POST", "/clock", `{"advance": "x"}`, "x"},
		{"GET", "/journal?since=x", "", "since"},
		{"GET", "/journal?limit=-1", "", "limit"},
	} {
		status, got := control(t, sim, st.method, st.path, st.body)
		if status != http.StatusBadRequest || !strings.HasPrefix(got, `{"error":"`) || !strings.Contains(got, st.want) {
			t.Errorf("%s %s %s: got %d %s, want an error about %s", st.method, st.path, st.body, status, got, st.want)
		}
	}
	if after := sim.Dump(); fmt.Sprintf("%+v", after.Faults) != fmt.Sprintf("%+v", before.Faults) {
		t.Errorf("faults were added: %+v", after.Faults)
	}
	if status, _ := control(t, sim, "GET", "/nothing", ""); status != http.StatusNotFound {
		t.Errorf("an unknown operation: got %d", status)
	}
	if status, _ := control(t, sim, "GET", "/faults/", ""); status != http.StatusNotFound {
		t.Errorf("an unknown path: got %d", status)
	}
}

func TestControlCanBeElsewhere(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true, NoControl: true})
	got := post(t, sim, order("S", "1").request("/__sim/faults"))
	wantRow(t, got, 12)
	rec := httptest.NewRecorder()
	sim.ControlHandler().ServeHTTP(rec, httptest.NewRequest("GET", "/stats", nil))
	if rec.Code != 200 || !strings.Contains(rec.Body.String(), `"requests":1,`) {
		t.Errorf("got %d %s", rec.Code, rec.Body)
	}
}
