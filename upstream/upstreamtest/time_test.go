package upstreamtest_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"packship/upstream/upstreamtest"
)

// network is a network within a bubble: connections are pipes.
type network struct {
	mu sync.Mutex
	ln *pipeListener
}

type pipeListener struct {
	n      *network
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (n *network) listen() (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ln = &pipeListener{n: n, conns: make(chan net.Conn), closed: make(chan struct{})}
	return n.ln, nil
}

func (n *network) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	n.mu.Lock()
	ln := n.ln
	n.mu.Unlock()
	client, server := net.Pipe()
	select {
	case ln.conns <- server:
		return client, nil
	case <-ln.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (ln *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-ln.conns:
		return c, nil
	case <-ln.closed:
		return nil, net.ErrClosed
	}
}

func (ln *pipeListener) Close() error {
	ln.once.Do(func() { close(ln.closed) })
	return nil
}

func (*pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

// bubble makes a simulator within a bubble, with a network and a client of its
// own.
func bubble(t *testing.T, opts upstreamtest.Options) (*upstreamtest.Simulator, *network, *http.Client) {
	t.Helper()
	sim := upstreamtest.New(opts)
	n := &network{}
	if _, err := sim.StartFunc(n.listen); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: n.dial}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	return sim, n, &http.Client{Transport: transport}
}

func get(ctx context.Context, client *http.Client, f form) error {
	contentType, body := f.encode()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://api.test"+upstreamtest.SendPath, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Authorization", "Bearer "+token)
	res, err := client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", res.StatusCode, b)
	}
	return err
}

// TestVirtualHour paces calls as a client should and looks at a long time of it.
func TestVirtualHour(t *testing.T) {
	opts := upstreamtest.Defaults()
	opts.AutoCreate, opts.JournalLimit, opts.TradeLimit = true, 100, 1000
	synctest.Test(t, func(t *testing.T) {
		sim, _, client := bubble(t, opts)
		const n = 10 * 600
		var wg sync.WaitGroup
		begin := time.Now()
		for i := range n {
			wg.Go(func() {
				if err := get(t.Context(), client, order("S", fmt.Sprint(1000+i))); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(100 * time.Millisecond)
		}
		wg.Wait()
		st := sim.Stats()
		if st.Calls != n || st.Applied != n || st.MaxInAnySecond != 10 || st.TotalCharge != n {
			t.Errorf("got %d calls, %d applied, %d in a second, %d points, want %d, %[5]d, 10, %[5]d", st.Calls, st.Applied, st.MaxInAnySecond, st.TotalCharge, n)
		}
		if v := sim.Verify(); len(v) > 0 {
			t.Errorf("violations: %v", v)
		}
		if took := time.Since(begin); took < n*100*time.Millisecond || took > n*100*time.Millisecond+time.Minute {
			t.Errorf("the run took %v", took)
		}
		if got := len(sim.Journal().Calls()); got != 100 {
			t.Errorf("%d calls are kept, want 100", got)
		}
	})
}

// TestOneCallTooMany: the eleventh call within a second is refused, and the
// journal's evidence agrees.
func TestOneCallTooMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, _, _ := bubble(t, upstreamtest.Options{AutoCreate: true, Rate: upstreamtest.Rate{PerSecond: 10, RetryAfter: true}})
		for i := range 10 {
			wantRow(t, send(t, sim, order("S", fmt.Sprint(100+i))), 1)
			time.Sleep(99 * time.Millisecond)
		}
		got := send(t, sim, order("S", "200"))
		if got.Status != http.StatusTooManyRequests || got.Body != `{"name":"Too Many Requests","message":"Rate limit exceeded.","code":0,"status":429}` {
			t.Errorf("got %d %s", got.Status, got.Body)
		}
		for name, want := range map[string]string{"X-Rate-Limit-Limit": "10", "X-Rate-Limit-Remaining": "0", "X-Rate-Limit-Reset": "1", "Retry-After": "1"} {
			if got.Header.Get(name) != want {
				t.Errorf("header %s: got %q, want %q", name, got.Header.Get(name), want)
			}
		}
		// One that arrives exactly a second after the first is in time.
		time.Sleep(10 * time.Millisecond)
		wantRow(t, send(t, sim, order("S", "201")), 1)
		st := sim.Stats()
		if st.MaxInAnySecond != 11 || st.Throttled != 1 || st.Applied != 11 {
			t.Errorf("got %d in a second, %d throttled, %d applied, want 11, 1, 11", st.MaxInAnySecond, st.Throttled, st.Applied)
		}
		if v := sim.Verify(); len(v) != 1 || v[0].Rule != "rate" {
			t.Errorf("violations: %v", v)
		}
	})
}

func TestRateAnswersAndScopes(t *testing.T) {
	second := order("S", "2")
	synctest.Test(t, func(t *testing.T) {
		sim := upstreamtest.New(upstreamtest.Options{AutoCreate: true, Rate: upstreamtest.Rate{PerSecond: 1, Answer: upstreamtest.RateRow}})
		wantRow(t, send(t, sim, order("S", "1")), 1)
		got := send(t, sim, second)
		wantRow(t, got, 6)
		if got.Header.Get("X-Rate-Limit-Limit") != "" {
			t.Error("an answer in HTTP status 200 has the headers of another")
		}
		sim.SetRate(upstreamtest.Rate{PerSecond: 1, Answer: upstreamtest.RateCode429})
		if got := send(t, sim, second); got.Status != 200 || *got.Code != 429 {
			t.Errorf("got %d %s", got.Status, got.Body)
		}
		// Another endpoint has a rate of its own.
		wantRow(t, post(t, sim, second.request("/tool/erps/detail")), 1)
		sim.SetRate(upstreamtest.Rate{})
		wantRow(t, send(t, sim, second), 1)

		opts := closedWorld()
		opts.Rate = upstreamtest.Rate{PerSecond: 1, Scope: upstreamtest.PerAccount}
		sim = upstreamtest.New(opts)
		wantRow(t, send(t, sim, good), 1)
		if err := sim.SetToken("north", "new"); err != nil {
			t.Fatal(err)
		}
		r := good.request(upstreamtest.SendPath)
		r.Header.Set("Authorization", "Bearer new")
		if got := post(t, sim, r); got.Status != http.StatusTooManyRequests {
			t.Errorf("a new token of the same account gets a new rate: %s", got.Body)
		}
		time.Sleep(time.Second)
		r = good.request(upstreamtest.SendPath)
		r.Header.Set("Authorization", "Bearer new")
		wantRow(t, post(t, sim, r), 15)
	})
}

// TestArrivalIsTheFirstByte has requests that arrive slowly, on one connection.
func TestArrivalIsTheFirstByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, n, _ := bubble(t, upstreamtest.Options{AutoCreate: true})
		conn, err := n.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		in := bufio.NewReader(conn)
		var want []time.Time
		for i := range 3 {
			time.Sleep(time.Duration(i) * 7 * time.Second) // idle, before and between
			var wire bytes.Buffer
			if err := order("S", fmt.Sprint(100+i)).request(upstreamtest.SendPath).Write(&wire); err != nil {
				t.Fatal(err)
			}
			want = append(want, time.Now())
			for _, n := range []int{1, 30, wire.Len() - 50, wire.Len()} { // of them, 30 are not all of the header
				if _, err := conn.Write(wire.Next(n)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			}
			res, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, res.Body); err != nil {
				t.Fatal(err)
			}
		}
		calls := sim.Journal().Calls()
		if len(calls) != len(want) {
			t.Fatalf("%d calls", len(calls))
		}
		for i, e := range calls {
			if !e.Arrived.Equal(want[i]) {
				t.Errorf("request %d: arrived at %v, its first byte at %v", i, e.Arrived, want[i])
			}
			if !e.Done.After(e.Arrived.Add(2 * time.Second)) {
				t.Errorf("request %d: the handler did not begin later", i)
			}
		}
	})
}

// TestLatencyIsVirtual: the order is shipped at the end of the latency, whether
// the caller is still there or not.
func TestLatencyIsVirtual(t *testing.T) {
	opts := upstreamtest.Options{AutoCreate: true, Latency: upstreamtest.Latency{Fixed: 10 * time.Second}}
	synctest.Test(t, func(t *testing.T) {
		sim, _, client := bubble(t, opts)
		begin := time.Now()
		if err := get(t.Context(), client, order("S", "1")); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(begin); got != 10*time.Second {
			t.Errorf("the call took %v, want 10 s", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		if err := get(ctx, client, order("S", "2")); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v, want a timeout", err)
		}
		synctest.Wait()
		e := sim.Journal().CallsOfOrder("2")[0]
		if got := e.Done.Sub(e.Arrived); e.Applied || e.Delivered || got != 4*time.Second {
			t.Errorf("when the caller gives up: %+v", e)
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if e = sim.Journal().CallsOfOrder("2")[0]; !e.Applied || e.Delivered || e.Row != 1 {
			t.Errorf("when the platform is done: %+v", e)
		}
	})
}

func TestMsecIsInTheAPIsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := upstreamtest.New(upstreamtest.Options{AutoCreate: true, Latency: upstreamtest.Latency{Fixed: 1200 * time.Millisecond, Factor: 0.01}})
		begin := time.Now()
		got := send(t, sim, order("S", "1"))
		if d := time.Since(begin); d != 12*time.Millisecond || got.Msec != 1200 {
			t.Errorf("the call took %v and says %d ms, want 12 ms and 1200", d, got.Msec)
		}
		if got.Time != time.Now().Unix() {
			t.Errorf("time is %d", got.Time)
		}
		sim.Advance(time.Hour)
		if got := send(t, sim, order("S", "2")); got.Time != time.Now().Add(time.Hour).Unix() {
			t.Errorf("time is %d after an advance", got.Time)
		}
	})
}

// TestCloseEndsEverything: whatever calls wait for, Close ends them. The bubble
// would not end with a goroutine left over.
func TestCloseEndsEverything(t *testing.T) {
	for _, kind := range []upstreamtest.FaultKind{
		upstreamtest.None, upstreamtest.ApplyThenHang, upstreamtest.HangThenApply, upstreamtest.Hang, upstreamtest.SlowDrip, upstreamtest.HTTPStatus(500),
	} {
		t.Run(string(kind), func(t *testing.T) {
			opts := upstreamtest.Options{AutoCreate: true}
			if kind == upstreamtest.None {
				opts.Latency.Fixed = time.Hour
			}
			synctest.Test(t, func(t *testing.T) {
				sim, _, client := bubble(t, opts)
				sim.AddFault(upstreamtest.Fault{Kind: kind, Delay: time.Hour})
				failed := make(chan error)
				go func() { failed <- get(t.Context(), client, order("S", "1")) }()
				synctest.Wait()
				if got := sim.Stats().InFlight; got != 1 {
					t.Errorf("%d calls wait, want 1", got)
				}
				if err := sim.Close(); err != nil {
					t.Error(err)
				}
				if err := <-failed; err == nil {
					t.Error("the call is answered")
				}
				// After that, nothing is answered, and closing again is fine.
				if err := get(t.Context(), client, order("S", "1")); err == nil {
					t.Error("a call after Close is answered")
				}
			})
		})
	}
}

func TestHangThenApplyWaitsItsDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, _, client := bubble(t, upstreamtest.Options{AutoCreate: true})
		sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.HangThenApply, Delay: 5 * time.Second, Count: 1})
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		if err := get(ctx, client, order("S", "1")); err == nil {
			t.Fatal("the call is answered")
		}
		time.Sleep(4 * time.Second)
		if n := sim.Stats().Applied; n != 0 {
			t.Error("the order is shipped too early")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := sim.Stats().Applied; n != 1 {
			t.Error("the order is not shipped")
		}
	})
}

func TestOutages(t *testing.T) {
	opts := upstreamtest.Options{AutoCreate: true, Outages: []upstreamtest.Outage{
		{From: 10 * time.Second, To: 20 * time.Second, Mode: upstreamtest.Unavailable},
		{From: 30 * time.Second, To: 40 * time.Second, Mode: upstreamtest.Refusing},
	}}
	synctest.Test(t, func(t *testing.T) {
		sim, _, client := bubble(t, opts)
		seen := ""
		for i := range 50 {
			synctest.Wait()
			switch err := get(t.Context(), client, order("S", fmt.Sprint(100+i))); {
			case err == nil:
				seen += "."
			case bytes.Contains([]byte(err.Error()), []byte("status 503")):
				seen += "5"
			case bytes.Contains([]byte(err.Error()), []byte("refused")):
				seen += "x"
			default:
				seen += "?"
			}
			time.Sleep(time.Second)
		}
		want := ".......... 5555555555 .......... xxxxxxxxxx .........."
		if got := seen[:10] + " " + seen[10:20] + " " + seen[20:30] + " " + seen[30:40] + " " + seen[40:]; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		sim.SetDown(upstreamtest.Refusing)
		synctest.Wait()
		if err := get(t.Context(), client, order("S", "1")); err == nil {
			t.Error("a call is answered while the API refuses")
		}
		sim.SetDown(upstreamtest.Up)
		synctest.Wait()
		if err := get(t.Context(), client, order("S", "1")); err != nil {
			t.Errorf("after the outage: %v", err)
		}
		if n := sim.Stats().Calls; n != 41 {
			t.Errorf("%d calls have come through, want 41", n)
		}
	})
}

// TestDelays: a fault's delay comes on top of the latency.
func TestDelays(t *testing.T) {
	const second = time.Second
	for kind, want := range map[upstreamtest.FaultKind]time.Duration{
		upstreamtest.None: 2 * second, upstreamtest.Slow: 9 * second, upstreamtest.AnyRow(3): 9 * second,
		upstreamtest.SuccessFalse: 9 * second, upstreamtest.HTML200: 7 * second,
	} {
		synctest.Test(t, func(t *testing.T) {
			sim := upstreamtest.New(upstreamtest.Options{AutoCreate: true, Latency: upstreamtest.Latency{Fixed: 2 * second}})
			sim.AddFault(upstreamtest.Fault{Kind: kind, Delay: 7 * second})
			begin := time.Now()
			send(t, sim, order("S", "1"))
			if got := time.Since(begin); got != want {
				t.Errorf("%s: the call took %v, want %v", kind, got, want)
			}
		})
	}
}

// TestOverlap: two calls for one order at once are noted, two for different
// orders are not.
func TestOverlap(t *testing.T) {
	opts := upstreamtest.Options{AutoCreate: true, Latency: upstreamtest.Latency{Fixed: time.Second}}
	synctest.Test(t, func(t *testing.T) {
		sim, _, client := bubble(t, opts)
		var wg sync.WaitGroup
		for _, tid := range []string{"1", "2", "1"} {
			wg.Go(func() {
				if err := get(t.Context(), client, order("S", tid)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		// One right after the other is no overlap.
		for range 2 {
			if err := get(t.Context(), client, order("S", "3")); err != nil {
				t.Error(err)
			}
		}
		st := sim.Stats()
		if st.Overlaps != 1 || st.Applied != 3 || st.BlindRepeats != 1 || st.Repeats != 2 {
			t.Errorf("got %d overlaps, %d applied, %d blind of %d repeats, want 1, 3, 1 of 2", st.Overlaps, st.Applied, st.BlindRepeats, st.Repeats)
		}
	})
}

// TestWaitEnds returns the context's cause when the state does not come.
func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := upstreamtest.New(upstreamtest.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := sim.Journal().Wait(ctx, func(s upstreamtest.Stats) bool { return s.Calls > 0 })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
