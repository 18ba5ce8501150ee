package upstreamtest_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"packship/upstream/upstreamtest"
)

func TestJournalEntry(t *testing.T) {
	sim := open(t, closedWorld())
	before := time.Now()
	f := form{{"tid", "1"}, {"shop_id", "S1"}, {"out_sid", "SF1234567890123"}, {"company_code", "SF"}, {"tid", "1001"}, {"odd", "中"}}
	r := f.request(upstreamtest.SendPath)
	r.RemoteAddr = "192.0.2.7:4711"
	wantRow(t, post(t, sim, r), 1)
	after := time.Now()

	got := sim.Journal().Calls()
	if len(got) != 1 {
		t.Fatalf("got %d calls", len(got))
	}
	e := got[0]
	if e.Arrived.Before(before) || e.Done.After(after) || e.Done.Before(e.Arrived) {
		t.Errorf("the times are %v and %v", e.Arrived, e.Done)
	}
	_, body := f.encode()
	if e.N != 1 || e.Endpoint != "send" || e.Method != "POST" || e.Path != "/tool/erps/send" || e.Remote != "192.0.2.7:4711" ||
		e.Token != token || e.Account != "north" || e.Status != 200 || e.Row != 1 || !e.Applied || e.Parcel != "LP1001-1" ||
		e.Charge != 1 || !e.Delivered || e.IdempotencyKey || e.Cookie != "" || e.ContentLength != int64(len(body)) ||
		e.Overlap || e.Blind || e.Throttled || e.Fault != "" || e.Redirected {
		t.Errorf("got %+v", e)
	}
	if want := upstreamtest.NewShipment("S1", "1001", "SF1234567890123", "SF"); e.Shipment != want {
		t.Errorf("got %+v, want %+v", e.Shipment, want)
	}
	var names []string
	for _, field := range e.Form {
		names = append(names, field.Name+"="+field.Value)
	}
	if got, want := strings.Join(names, " "), "tid=1 shop_id=S1 out_sid=SF1234567890123 company_code=SF tid=1001 odd=中"; got != want {
		t.Errorf("got the form %s, want %s", got, want)
	}
}

func TestJournalSeesCarelessClients(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true})
	request := func(tid string, change func(*http.Request)) {
		r := order("S", tid).request(upstreamtest.SendPath)
		change(r)
		post(t, sim, r)
	}
	request("1", func(*http.Request) {})
	if v := sim.Verify(); len(v) != 0 {
		t.Fatalf("a careful call has violations: %v", v)
	}
	request("2", func(r *http.Request) { r.Header.Set("Idempotency-Key", "") })
	request("3", func(r *http.Request) { r.Header.Set("X-Idempotency-Key", "k") })
	request("4", func(r *http.Request) { r.Header.Set("Cookie", "a=b; PHPSESSID=eg6rdq") })
	request("5", func(r *http.Request) { r.Header.Set("Cookie", "a=b") }) // a cookie, but not the sample's
	request("6", func(r *http.Request) { r.URL.Path = "/moved" + upstreamtest.SendPath })
	request("7", func(r *http.Request) { r.ContentLength = -1 })
	request("8", func(r *http.Request) { r.Header.Set("Authorization", "") })

	st := sim.Stats()
	if st.IdempotencyKeys != 2 || st.SampleCookies != 1 || st.Redirected != 1 || st.UnknownToken != 1 || st.Calls != 7 || st.Requests != 8 {
		t.Errorf("got %+v", st)
	}
	var rules []string
	for _, v := range sim.Verify() {
		rules = append(rules, v.Rule)
	}
	if got, want := strings.Join(rules, " "), "idempotency_key sample_cookie redirect"; got != want {
		t.Errorf("violations of %s, want %s", got, want)
	}
	if got := sim.Journal().CallsOfOrder("5")[0].Cookie; got != "a=b" {
		t.Errorf("got cookie %q", got)
	}
	if got := sim.Journal().CallsOfOrder("7")[0].ContentLength; got != -1 {
		t.Errorf("got content length %d of a chunked body", got)
	}
	if got := sim.Journal().UnknownTokenCalls(); len(got) != 1 || got[0].Shipment.TID != "8" {
		t.Errorf("calls with unknown tokens: %+v", got)
	}
}

func TestJournalByShipment(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true})
	a := order("S", "1", "is_split", "1", "sub_tid", "12,11")
	b := order("S", "1", "is_split", "1", "sub_tid", "11,12")
	c := order("S", "1", "is_split", "1", "sub_tid", "11,12", "out_sid", "SF1234567890124")
	for _, f := range []form{a, b, c} {
		send(t, sim, f)
	}
	j := sim.Journal()
	s := upstreamtest.NewShipment("S", "1", "SF1234567890123", "SF", "11", "12")
	if got := j.CallsOf(s); len(got) != 2 || got[0].N != 1 || got[1].N != 2 || !got[1].Blind || got[0].Blind {
		t.Errorf("calls of the shipment: %+v", got)
	}
	if got := j.CallsOfOrder("1"); len(got) != 3 {
		t.Errorf("%d calls of the order, want 3", len(got))
	}
	if calls, applied := j.CountOf(s); calls != 2 || applied != 1 {
		t.Errorf("got %d calls, %d applied, want 2 and 1", calls, applied)
	}
	if calls, applied := j.CountOf(upstreamtest.Shipment{}); calls != 0 || applied != 0 {
		t.Errorf("nothing was called %d times", calls)
	}
	if got := j.Applied(); len(got) != 1 || got[s] != 1 {
		t.Errorf("applied: %v", got)
	}
	if st := j.Stats(); st.Shipments != 2 || st.Repeats != 1 || j.Repeats() != 1 || len(j.BlindRepeats()) != 1 {
		t.Errorf("got %+v", st)
	}
}

// TestBlindRepeats: after which answers a call may be made again.
func TestBlindRepeats(t *testing.T) {
	open := map[int]bool{3: true, 4: true, 5: true, 6: true, 7: true, 8: true, 9: true, 10: true, 11: true, 12: true, 22: true, 53: true, 55: true}
	for n := 1; n <= 60; n++ {
		sim := upstreamtest.New(upstreamtest.Options{AutoCreate: true})
		sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(n)})
		send(t, sim, order("S", "1"))
		send(t, sim, order("S", "1"))
		if got, want := sim.Stats().BlindRepeats == 1, !open[n]; got != want {
			t.Errorf("a call after row %d is blind: %t, want %t", n, got, want)
		}
	}
}

func TestJournalLimit(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true, JournalLimit: 10, TradeLimit: 20})
	for i := range 105 {
		send(t, sim, order("S", fmt.Sprint(1000+i)))
	}
	calls := sim.Journal().Calls()
	if len(calls) != 10 || calls[0].N != 96 || calls[9].N != 105 {
		t.Errorf("kept %d calls, the first is %d", len(calls), calls[0].N)
	}
	st := sim.Stats()
	if st.Calls != 105 || st.Applied != 105 || st.TotalCharge != 105 {
		t.Errorf("the counters forget: %+v", st)
	}
	if got := len(sim.Dump().Trades); got != 20 {
		t.Errorf("%d orders are kept, want 20", got)
	}
	// One that is remembered has been shipped, one forgotten has not.
	wantRow(t, send(t, sim, order("S", "1104")), 15)
	wantRow(t, send(t, sim, order("S", "1000")), 1)
	if got := sim.Stats().AppliedTwice; got != 0 {
		t.Errorf("%d applied twice", got)
	}
}

func TestJournalReset(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true})
	send(t, sim, order("S", "1"))
	sim.Journal().Reset()
	if st := sim.Stats(); st.Requests != 0 || st.MaxInAnySecond != 0 || st.TotalCharge != 0 || len(st.Rows) != 0 {
		t.Errorf("got %+v", st)
	}
	wantRow(t, send(t, sim, order("S", "1")), 15)
	if e := sim.Journal().Calls(); len(e) != 1 || e[0].N != 2 {
		t.Errorf("got %+v", e)
	}
}

func TestPeaksAreByToken(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true})
	for i := range 9 {
		r := order("S", fmt.Sprint(100+i)).request(upstreamtest.SendPath)
		r.Header.Set("Authorization", "Bearer t"+fmt.Sprint(i%2))
		post(t, sim, r)
	}
	j := sim.Journal()
	if a, b, all := j.MaxInAnySecondOf("t0"), j.MaxInAnySecondOf("t1"), j.MaxInAnySecond(); a != 5 || b != 4 || all != 5 {
		t.Errorf("got %d, %d, %d, want 5, 4, 5", a, b, all)
	}
	if j.MaxInAnySecondOf("none") != 0 {
		t.Error("a token without calls has a peak")
	}
}

// TestConcurrentCalls has callers and operators at work at once, and adds up.
func TestConcurrentCalls(t *testing.T) {
	const callers, each = 8, 150
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	sim := open(t, upstreamtest.Options{AutoCreate: true, Seed: seed, JournalLimit: 300})
	addr := start(t, sim)
	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(20), Probability: 0.2})
	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.ApplyThenReset, Probability: 0.05})
	transport := &http.Transport{MaxIdleConnsPerHost: callers}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			for range each {
				// Each order is called for about three times, by anybody.
				r := order("S", fmt.Sprint(1000+rnd.IntN(callers*each/3))).request(upstreamtest.SendPath)
				r.URL.Host, r.RequestURI = addr, ""
				res, err := client.Do(r)
				if err == nil {
					_ = res.Body.Close()
				}
			}
		})
	}
	stop := make(chan struct{})
	var operators sync.WaitGroup
	for _, operate := range []func(){
		func() { sim.Dump() }, func() { sim.Stats() }, func() { sim.Verify() }, func() { sim.Journal().Calls() },
		func() { sim.AddShop(upstreamtest.Shop{ID: "other"}) },
		func() { sim.SetLatency(upstreamtest.Latency{Fixed: time.Microsecond}) },
		func() { sim.SetRate(upstreamtest.Rate{}) },
		func() { sim.AddTrade(upstreamtest.Trade{Shop: "other", TID: "5"}) },
	} {
		operators.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					operate()
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	operators.Wait()
	wait(t, sim, func(s upstreamtest.Stats) bool { return s.InFlight == 0 })
	st := sim.Stats()
	sum := 0
	for _, n := range st.Rows {
		sum += n
	}
	if st.Calls != callers*each || sum != st.Calls || st.Shipments+st.Repeats != st.Calls || int64(st.Calls) != st.TotalCharge {
		t.Errorf("the counters do not add up: %+v", st)
	}
	shipped := 0
	for _, tr := range sim.Dump().Trades {
		if tr.Status == upstreamtest.WaitBuyerConfirm {
			shipped++
		}
	}
	if st.Applied != shipped || st.AppliedTwice != 0 || st.Rows[1] != st.Applied {
		t.Errorf("%d applied (%d twice), %d orders shipped, %d answers of row 1", st.Applied, st.AppliedTwice, shipped, st.Rows[1])
	}
	t.Logf("%d calls, %d shipped, %d refused, %d resets", st.Calls, st.Applied, st.Rows[20], st.Faults["apply_then_reset"])
}

// BenchmarkHandler is the API's own cost of a call.
func BenchmarkHandler(b *testing.B) {
	sim := upstreamtest.New(upstreamtest.Options{AutoCreate: true, JournalLimit: 10_000, TradeLimit: 10_000})
	defer func() { _ = sim.Close() }()
	const kinds = 2_000
	var bodies [kinds][]byte
	var types [kinds]string
	for i := range kinds {
		types[i], bodies[i] = order("S", fmt.Sprint(1_000_000+i)).encode()
	}
	r := order("S", "1").request(upstreamtest.SendPath)
	w := &discard{header: http.Header{}}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i = (i + 1) % kinds
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(bodies[i])), int64(len(bodies[i]))
		r.Header.Set("Content-Type", types[i])
		sim.ServeHTTP(w, r)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// BenchmarkServer is a call over TCP, with the cost of its client.
func BenchmarkServer(b *testing.B) {
	sim := upstreamtest.New(upstreamtest.Options{AutoCreate: true, JournalLimit: 10_000, TradeLimit: 10_000})
	defer func() { _ = sim.Close() }()
	base, err := sim.Start("127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var mu sync.Mutex
	next := 1_000_000
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			next++
			tid := fmt.Sprint(next)
			mu.Unlock()
			r := order("S", tid).request(upstreamtest.SendPath)
			r.URL.Host, r.RequestURI = strings.TrimPrefix(base, "http://"), ""
			res, err := client.Do(r)
			if err != nil {
				b.Error(err)
				return
			}
			_ = res.Body.Close()
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// discard is a response that nobody reads.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header       { return d.header }
func (*discard) Write(b []byte) (int, error) { return len(b), nil }
func (*discard) WriteHeader(int)             {}
func (*discard) Flush()                      {}
