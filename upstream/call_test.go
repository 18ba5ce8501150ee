package upstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"packship/schema"
)

// tcp is a server of bare TCP connections.
type tcp struct {
	net.Listener
	wg sync.WaitGroup
}

// listen serves every connection with handle, which owns it; n counts them from
// 1.
func listen(t *testing.T, handle func(n int, conn *net.TCPConn)) *tcp {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &tcp{Listener: l}
	s.wg.Go(func() {
		for n := 1; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() {
				tcpConn, _ := conn.(*net.TCPConn)
				handle(n, tcpConn)
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		s.wg.Wait()
	})
	return s
}

func (s *tcp) url() string { return "http://" + s.Addr().String() + "/tool/erps/send" }

// readRequest reads one request off a connection, byte for byte.
func readRequest(r *bufio.Reader) (raw string, err error) {
	var b bytes.Buffer
	req, err := http.ReadRequest(bufio.NewReader(io.TeeReader(r, &b)))
	if err != nil {
		return b.String(), err
	}
	_, err = io.Copy(io.Discard, req.Body)
	return b.String(), err
}

func respond(conn net.Conn, body string) {
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// The bytes of one call, as they are on the wire.
func TestWire(t *testing.T) {
	requests := make(chan string, 1)
	s := listen(t, func(_ int, conn *net.TCPConn) {
		// The answer sets a cookie, which must not come back.
		r := bufio.NewReader(conn)
		for {
			raw, err := readRequest(r)
			if err != nil {
				return
			}
			requests <- raw
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nSet-Cookie: PHPSESSID=x; path=/\r\nContent-Length: %d\r\n\r\n%s", len(success), success)
		}
	})
	cfg := testConfig(s.url())
	u := newUpstream(t, cfg)

	full := order(7)
	full.TID = "2345678901234567891"
	full.IsSplit, full.SubTID = 1, []string{"12", "11"}
	full.SenderID, full.CancelID = "5", "6"
	full.Feature = "identCode=11:A1;machineCode=12:B1"
	full.VVType = 3
	plain := order(8)
	plain.CompanyCode = "某某快递"
	plain.SubTID = nil

	boundary := regexp.MustCompile(`boundary=([0-9a-f]+)`)
	for name, tt := range map[string]struct {
		packed *schema.Packed
		fields []string
	}{
		"all fields": {full, []string{
			"tid", "2345678901234567891", "out_sid", "SF1234567890123", "company_code", "SF", "shop_id", "S1",
			"is_split", "1", "sub_tid", "12,11", "sender_id", "5", "cancel_id", "6", "feature", "identCode=11:A1;machineCode=12:B1", "vvtype", "3",
		}},
		"needed fields": {plain, []string{"tid", "8", "out_sid", "SF1234567890123", "company_code", "某某快递", "shop_id", "S1"}},
	} {
		t.Run(name, func(t *testing.T) {
			if a := send(t, u, tt.packed); a.Action != schema.ActSucceed {
				t.Fatalf("got %+v", a)
			}
			raw := <-requests
			m := boundary.FindStringSubmatch(raw)
			if m == nil {
				t.Fatalf("no boundary in %q", raw)
			}
			var body strings.Builder
			for i := 0; i < len(tt.fields); i += 2 {
				fmt.Fprintf(&body, "--%s\r\nContent-Disposition: form-data; name=%q\r\n\r\n%s\r\n", m[1], tt.fields[i], tt.fields[i+1])
			}
			fmt.Fprintf(&body, "--%s--\r\n", m[1])
			want := "POST /tool/erps/send HTTP/1.1\r\n" +
				"Host: " + s.Addr().String() + "\r\n" +
				"User-Agent: packship\r\n" +
				fmt.Sprintf("Content-Length: %d\r\n", body.Len()) +
				"Authorization: Bearer token-1\r\n" +
				"Content-Type: multipart/form-data; boundary=" + m[1] + "\r\n\r\n" + body.String()
			if d := cmp.Diff(want, raw); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestVVTypeOfAccount(t *testing.T) {
	var got atomic.Value
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got.Store(r.FormValue("vvtype"))
		_, _ = io.WriteString(w, success)
	})
	cfg := testConfig(s.URL)
	cfg.Accounts[0].VVType = 2
	u := newUpstream(t, cfg)
	send(t, u, order(1))
	if got.Load() != "2" {
		t.Errorf("vvtype of the account: got %q, want 2", got.Load())
	}
	p := order(2)
	p.VVType = 4
	send(t, u, p)
	if got.Load() != "4" {
		t.Errorf("vvtype of the event: got %q, want 4", got.Load())
	}
}

// wire is what a server saw of one connection.
type wire struct {
	bytes int64
	err   error
}

// A call that must not leave any more puts nothing on the wire, whatever the
// reason is, and takes no token.
func TestRefusedCallIsSilent(t *testing.T) {
	for name, tt := range map[string]struct {
		startBy time.Duration
		refuse  func(u *Upstream, cancel context.CancelFunc)
	}{
		"gate closes":     {time.Hour, func(_ *Upstream, cancel context.CancelFunc) { cancel() }},
		"too late":        {250 * time.Millisecond, func(*Upstream, context.CancelFunc) {}},
		"account halted":  {time.Hour, func(u *Upstream, _ context.CancelFunc) { halt(u.accounts[0]) }},
		"shop is parked":  {time.Hour, func(u *Upstream, _ context.CancelFunc) { parkShop(u.accounts[0], "S1") }},
		"breaker opens":   {time.Hour, func(u *Upstream, _ context.CancelFunc) { tripBreaker(u.accounts[0]) }},
		"connection dies": {time.Hour, func(u *Upstream, _ context.CancelFunc) { killConns(u) }},
	} {
		t.Run(name, func(t *testing.T) {
			first := make(chan wire, 8)
			s := listen(t, func(_ int, conn *net.TCPConn) {
				n, err := io.Copy(io.Discard, conn)
				first <- wire{n, err}
			})
			cfg := testConfig(s.url())
			cfg.BreakerFailures = 1
			cfg.Accounts[0].RatePerSecond = 0.001
			var conns connKeeper
			cfg.DialContext = conns.dial
			u := newUpstream(t, cfg)
			connsOf[u] = &conns
			defer delete(connsOf, u)
			// The first token is gone, so that the call has to wait for the next.
			u.accounts[0].pacer.limiter.Allow()
			turn := admitEarly(t, u, order(1))
			gate, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan schema.Answer, 1)
			go func() { done <- turn.Send(gate, schema.Hold{StartBy: time.Now().Add(tt.startBy)}) }()
			conns.wait(t)
			waitFor(t, "the call to stand in line", func() bool { return len(u.accounts[0].pacer.line) == 1 })
			tt.refuse(u, cancel)
			got := <-done
			if got.Action != schema.ActHold || got.Effect != schema.EffectNone || got.Reached || got.Counted || got.Answered || got.Exchange != nil {
				t.Errorf("got %+v, want a hold", got)
			}
			wantReason := "not_sent"
			if name == "connection dies" {
				wantReason = "unreachable"
			}
			if got.Reason != wantReason {
				t.Errorf("reason: got %s, want %s", got.Reason, wantReason)
			}
			if w := <-first; w.bytes != 0 {
				t.Errorf("the server saw %d bytes", w.bytes)
			}
			if tokens := u.accounts[0].pacer.limiter.Tokens(); tokens < 0 {
				t.Errorf("the token was not given back: %g", tokens)
			}
			if st := u.Accounts()[0]; st.Calls != 0 || st.InFlight != 0 {
				t.Errorf("got %+v, want no call", st)
			}
		})
	}
}

// The last word on a call is spoken when it leaves: by the account, and by
// whatever may have ended meanwhile.
func TestLaunchIsFinal(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	no := func() bool { return false }
	for name, tt := range map[string]struct {
		ready  context.Context
		permit func() bool
		refuse error
		want   error
	}{
		"leaves":           {t.Context(), yes, nil, nil},
		"not permitted":    {t.Context(), no, nil, errNotAllowed},
		"ended":            {ended, yes, nil, context.Canceled},
		"timer is late":    {overdue{t.Context(), time.Now()}, yes, nil, errTooLate},
		"clock was set on": {overdue{t.Context(), sleptThrough(time.Hour)}, yes, nil, errTooLate},
		"in time":          {overdue{t.Context(), time.Now().Add(time.Hour)}, yes, nil, nil},
		"refused before":   {t.Context(), yes, errConnLost, errConnLost},
		"refused at first": {ended, no, errConnLost, errConnLost},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := net.Pipe()
			var wg sync.WaitGroup
			var seen int64
			wg.Go(func() { seen, _ = io.Copy(io.Discard, server) })
			l := newLaunch(tt.ready, newPacer(1e6, 0), tt.permit)
			if tt.refuse != nil {
				l.refuse(tt.refuse)
			}
			n, err := l.write(client, []byte("POST"))
			_ = client.Close()
			wg.Wait()
			if !errors.Is(err, tt.want) || !errors.Is(l.refusal(), tt.want) {
				t.Errorf("got %v and %v, want %v", err, l.refusal(), tt.want)
			}
			if left := tt.want == nil; (n == 4) != left || (seen == 4) != left || l.refuse(errEarlyAnswer) == left {
				t.Errorf("wrote %d, seen %d", n, seen)
			}
		})
	}
}

// overdue is a context whose time is over although nothing has ended it yet: its
// timer is late, as that of a process which was frozen.
type overdue struct {
	context.Context //nolint:containedctx // it is one
	at              time.Time
}

func (o overdue) Deadline() (time.Time, bool) { return o.at, true }

// sleptThrough returns a time that the monotonic clock has yet to reach and that
// lies as far back by the other clock, which has gone on while the machine slept.
func sleptThrough(d time.Duration) time.Time {
	at := time.Now().Add(d)
	// Its first word holds the seconds, above 30 bits of nanoseconds.
	*(*uint64)(unsafe.Pointer(&at)) -= uint64(2*d/time.Second) << 30
	return at
}

func TestSleptThrough(t *testing.T) {
	now := time.Now()
	at := sleptThrough(time.Hour)
	if !at.After(now) || !at.Round(0).Before(now.Round(0)) {
		t.Fatalf("%s lies before or after %s by both clocks", at, now)
	}
}

// A call whose timer is late says nothing against the API.
func TestLateTimerIsNoFault(t *testing.T) {
	cfg := testConfig(serve(t, func(http.ResponseWriter, *http.Request) { t.Error("the call has left") }).URL)
	u := newUpstream(t, cfg)
	turn, err := u.Admit(t.Context(), order(1), false)
	if err != nil {
		t.Fatal(err)
	}
	got := turn.Send(overdue{t.Context(), time.Now()}, schema.Hold{})
	if got.Action != schema.ActHold || got.Reason != reasonNotSent || got.Reached {
		t.Errorf("got %+v, want a hold", got)
	}
}

func halt(a *account) {
	a.mu.Lock()
	defer a.unlock()
	a.haltFor("access_token_invalid", "")
}

func parkShop(a *account, id string) {
	a.mu.Lock()
	defer a.unlock()
	a.park(id, "shop_not_authorized", "", "")
}

func tripBreaker(a *account) {
	a.mu.Lock()
	defer a.unlock()
	done, _ := a.breaker.Allow()
	done(errFault)
}

func killConns(u *Upstream) { connsOf[u].closeAll() }

// connsOf finds the connections of an Upstream under test. Tests that use it do
// not run in parallel.
var connsOf = map[*Upstream]*connKeeper{}

// connKeeper dials and remembers what it dialled.
type connKeeper struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (k *connKeeper) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err == nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.conns = append(k.conns, conn)
	}
	return conn, err
}

func (k *connKeeper) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.conns)
}

func (k *connKeeper) wait(t *testing.T) {
	t.Helper()
	waitFor(t, "a connection", func() bool { return k.count() > 0 })
}

// closeAll ends the connections as their peer would.
func (k *connKeeper) closeAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.conns {
		if conn, ok := c.(*net.TCPConn); ok {
			_ = conn.CloseRead()
		}
	}
}

func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// After a reset nothing is sent again, not on a fresh connection and not on one
// that has served a call before.
func TestResetIsNotSentAgain(t *testing.T) {
	for name, reused := range map[string]bool{"fresh connection": false, "kept-alive connection": true} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int32
			s := listen(t, func(_ int, conn *net.TCPConn) {
				r := bufio.NewReader(conn)
				for {
					if _, err := readRequest(r); err != nil {
						return
					}
					if n := requests.Add(1); reused && n == 1 {
						respond(conn, success)
						continue
					}
					_ = conn.SetLinger(0)
					return
				}
			})
			u := newUpstream(t, testConfig(s.url()))
			want := int32(1)
			if reused {
				send(t, u, order(1))
				want = 2
			}
			got := send(t, u, order(2))
			if got.Effect != schema.EffectUnknown || got.Action != schema.ActRetry || got.MaxRetries != 3 || !got.Reached || !got.Counted || got.Answered ||
				got.Reason != "outcome_unknown" || got.Class != "needs_human" || got.Exchange != nil {
				t.Errorf("got %+v, want an unknown outcome", got)
			}
			if n := requests.Load(); n != want {
				t.Errorf("requests: got %d, want %d", n, want)
			}
		})
	}
}

// A kept-alive connection that the API closes while the call waits for its
// token costs nothing: the call takes another one.
func TestStaleConnection(t *testing.T) {
	var requests atomic.Int32
	closeFirst := make(chan struct{})
	s := listen(t, func(n int, conn *net.TCPConn) {
		r := bufio.NewReader(conn)
		for {
			if _, err := readRequest(r); err != nil {
				return
			}
			requests.Add(1)
			respond(conn, success)
			if n == 1 {
				<-closeFirst
				return
			}
		}
	})
	cfg := testConfig(s.url())
	cfg.Accounts[0].RatePerSecond = 2
	u := newUpstream(t, cfg)
	send(t, u, order(1))
	turn, err := u.Admit(t.Context(), order(2), false)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan schema.Answer, 1)
	go func() { done <- turn.Send(t.Context(), schema.Hold{}) }()
	waitFor(t, "the call to stand in line", func() bool { return len(u.accounts[0].pacer.line) == 1 })
	close(closeFirst)
	if got := <-done; got.Action != schema.ActSucceed {
		t.Errorf("got %+v", got)
	}
	if n := requests.Load(); n != 2 {
		t.Errorf("requests: got %d, want 2", n)
	}
}

// An answer that is there before the request has left is none, even if it says
// that all is well, or if the rest of it comes later.
func TestEarlyAnswer(t *testing.T) {
	for name, speak := range map[string]func(net.Conn){
		"all of it":     func(conn net.Conn) { respond(conn, success) },
		"its beginning": func(conn net.Conn) { _, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n") },
	} {
		t.Run(name, func(t *testing.T) {
			var seen atomic.Int64
			inLine := make(chan struct{})
			s := listen(t, func(_ int, conn *net.TCPConn) {
				<-inLine
				speak(conn)
				n, _ := io.Copy(io.Discard, conn)
				seen.Add(n)
			})
			cfg := testConfig(s.url())
			cfg.Accounts[0].RatePerSecond = 0.01
			u := newUpstream(t, cfg)
			u.accounts[0].pacer.limiter.Allow()
			turn := admitEarly(t, u, order(1))
			done := make(chan schema.Answer, 1)
			go func() { done <- turn.Send(t.Context(), schema.Hold{StartBy: time.Now().Add(20 * time.Second)}) }()
			waitFor(t, "the call to stand in line", func() bool { return len(u.accounts[0].pacer.line) == 1 })
			close(inLine)
			if got := <-done; got.Action != schema.ActHold || got.Reason != "unreachable" || got.Reached {
				t.Errorf("got %+v", got)
			}
			if n := seen.Load(); n != 0 {
				t.Errorf("the server saw %d bytes", n)
			}
		})
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	var leaked atomic.Int32
	other := serve(t, func(http.ResponseWriter, *http.Request) { leaked.Add(1) })
	var requests atomic.Int32
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	u := newUpstream(t, testConfig(s.URL))
	got := send(t, u, order(1))
	if got.Action != schema.ActHold || got.Reason != "http_redirect" || got.Reached {
		t.Errorf("got %+v", got)
	}
	if requests.Load() != 1 || leaked.Load() != 0 {
		t.Errorf("requests: got %d and %d, want 1 and 0", requests.Load(), leaked.Load())
	}
	if st := u.Accounts()[0]; st.State != "halted" || st.Reason != "http_redirect" {
		t.Errorf("account: got %+v", st)
	}
}

// An answer of 50 MB, or one without an end, costs the memory of the cap, and its
// end is not waited for.
func TestHugeAnswer(t *testing.T) {
	for name, size := range map[string]int64{"50 MB": 50 << 20, "endless": math.MaxInt64} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int64
			chunk := bytes.Repeat([]byte("x"), 64<<10)
			s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, `{"code":0,"data":[{"success":true}],"x":"`)
				for sent.Load() < size {
					n, err := w.Write(chunk)
					sent.Add(int64(n))
					if err != nil {
						return
					}
				}
				_, _ = io.WriteString(w, `"}`)
			})
			u := newUpstream(t, testConfig(s.URL))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			got := send(t, u, order(1))
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if got.Effect != schema.EffectUnknown || got.Answered || got.Action != schema.ActRetry {
				t.Errorf("got %+v, want an unknown outcome", got)
			}
			s.Close()
			allocated := after.TotalAlloc - before.TotalAlloc
			t.Logf("an answer of %s: %s, %.1f MiB allocated, %.1f MiB sent", name, took.Round(time.Millisecond), float64(allocated)/(1<<20), float64(sent.Load())/(1<<20))
			if n := sent.Load(); n > 40<<20 {
				t.Errorf("the server could send %d bytes", n)
			}
			if allocated > 16<<20 {
				t.Errorf("%d bytes were allocated for an answer of which one MiB is read", allocated)
			}
		})
	}
}

// An answer that drips for ever ends with the time limit.
func TestEndlessAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, stop := inMemory(t, nil, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"code":0,"data":[{"success":true}],"x":"`)
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, "x"); err != nil {
					return
				}
				_ = http.NewResponseController(w).Flush()
				time.Sleep(time.Second)
			}
		})
		defer stop()
		start := time.Now()
		got := send(t, u, order(1))
		if got.Effect != schema.EffectUnknown || got.Answered {
			t.Errorf("got %+v, want an unknown outcome", got)
		}
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("took %s, want the time limit of 5s", d)
		}
	})
}

// inMemory returns an Upstream and its server on an in-memory network, for
// tests with a clock of their own.
func inMemory(t *testing.T, change func(*Config), h http.HandlerFunc) (u *Upstream, stop func()) {
	t.Helper()
	network := newPipes()
	server := &http.Server{ReadHeaderTimeout: time.Hour}
	var wg sync.WaitGroup
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wg.Add(1)
		defer wg.Done()
		h(w, r)
	})
	wg.Go(func() { _ = server.Serve(network) })
	cfg := testConfig("http://api.test/tool/erps/send")
	cfg.DialContext = network.dial
	if change != nil {
		change(&cfg)
	}
	u, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return u, func() {
		u.CloseIdleConnections()
		_ = server.Close()
		wg.Wait()
	}
}

// The time limit begins when the call leaves, not when it starts to wait.
func TestTimeoutStartsWithTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		delay := 4 * time.Second
		u, stop := inMemory(t, func(c *Config) { c.Accounts[0].RatePerSecond = 0.05 }, func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseMultipartForm(1 << 20)
			time.Sleep(delay)
			_, _ = io.WriteString(w, success)
		})
		defer stop()
		send(t, u, order(1))
		turn := admitEarly(t, u, order(2))
		start := time.Now()
		got := turn.Send(t.Context(), schema.Hold{})
		if got.Action != schema.ActSucceed {
			t.Errorf("got %+v", got)
		}
		if d := time.Since(start); d < 10*time.Second {
			t.Errorf("took %s: it did not have to wait for its token", d)
		}
		delay = 6 * time.Second
		turn = admitEarly(t, u, order(3))
		if got := turn.Send(t.Context(), schema.Hold{}); got.Effect != schema.EffectUnknown {
			t.Errorf("got %+v, want an unknown outcome", got)
		}
	})
}

// admitEarly admits an order long before its token.
func admitEarly(t *testing.T, u *Upstream, p *schema.Packed) *Turn {
	t.Helper()
	a := u.accountOf(p.ShopID)
	a.mu.Lock()
	defer a.unlock()
	done, err := a.breaker.Allow()
	if err != nil {
		t.Fatal(err)
	}
	w := &waiter{packed: p, granted: make(chan *Turn, 1), index: -1}
	a.grant(w, nil, done, time.Now())
	turn := <-w.granted
	turn.upstream = u
	return turn
}

// Once the call has left, the end of the gate does not end it.
func TestGateEndsAfterTheCallLeft(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-goOn
		_, _ = io.WriteString(w, success)
	})
	u := newUpstream(t, testConfig(s.URL))
	turn, err := u.Admit(t.Context(), order(1), false)
	if err != nil {
		t.Fatal(err)
	}
	gate, cancel := context.WithCancel(t.Context())
	done := make(chan schema.Answer, 1)
	go func() { done <- turn.Send(gate, schema.Hold{StartBy: time.Now().Add(time.Minute)}) }()
	<-arrived
	cancel()
	close(goOn)
	if got := <-done; got.Action != schema.ActSucceed {
		t.Errorf("got %+v", got)
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	u := newUpstream(t, testConfig("http://"+l.Addr().String()))
	for range 5 {
		got := send(t, u, order(1))
		if got.Action != schema.ActHold || got.Effect != schema.EffectNone || got.Reason != "unreachable" || got.Reached || got.Counted || got.Wait != time.Second {
			t.Errorf("got %+v", got)
		}
	}
	if st := u.Accounts()[0]; st.Breaker != "open" || st.State != "paused" || st.Reason != "breaker_open" || st.Calls != 0 {
		t.Errorf("account: got %+v", st)
	} else if !strings.HasPrefix(st.Fault, "it cannot be reached, ") || !strings.Contains(st.Fault, "refused") {
		t.Errorf("the fault is %q, want that a connection is refused", st.Fault)
	}
}

// deadConn is a connection that was reset before anything is written.
type deadConn struct{ net.Conn }

func (deadConn) Write([]byte) (int, error) { return 0, errors.New("connection reset by peer") }

// A write that took no byte has sent nothing, so the outcome is known.
func TestWriteTakesNothing(t *testing.T) {
	var conns connKeeper
	s := listen(t, func(_ int, conn *net.TCPConn) { _, _ = io.Copy(io.Discard, conn) })
	cfg := testConfig(s.url())
	cfg.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := conns.dial(ctx, network, addr)
		return deadConn{conn}, err
	}
	u := newUpstream(t, cfg)
	for range 3 {
		if got := send(t, u, order(1)); got.Action != schema.ActHold || got.Reason != "unreachable" || got.Reached {
			t.Errorf("got %+v", got)
		}
	}
	a := u.accounts[0]
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy != 0 || a.inFlight != 0 || len(a.unsent) != 0 || a.total.Calls != 0 || conns.count() != 3 {
		t.Errorf("busy %d, in flight %d, unsent %d, calls %d, connections %d", a.busy, a.inFlight, len(a.unsent), a.total.Calls, conns.count())
	}
}

// An API that swallows connection requests is seen as one that cannot be
// reached, even if the order may not wait for the dial to end.
func TestSlowDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, stop := inMemory(t, func(c *Config) {
			c.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}, nil)
		defer stop()
		for _, tt := range []struct {
			startBy time.Duration
			reason  string
		}{{5 * time.Second, "unreachable"}, {2 * time.Second, "unreachable"}, {500 * time.Millisecond, "not_sent"}} {
			turn, err := u.Admit(t.Context(), order(1), false)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if got := turn.Send(t.Context(), schema.Hold{StartBy: time.Now().Add(tt.startBy)}); got.Reason != tt.reason {
				t.Errorf("start within %s: got %s, want %s", tt.startBy, got.Reason, tt.reason)
			}
			if d, limit := time.Since(start), min(tt.startBy, dialTimeout); d != limit {
				t.Errorf("start within %s: gave up after %s, want %s", tt.startBy, d, limit)
			}
		}
	})
}

// The limit is applied under TLS as well, and a server that offers HTTP/2 is
// spoken to in HTTP/1.1.
func TestTLS(t *testing.T) {
	var requests atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if r.ProtoMajor != 1 {
			t.Errorf("protocol: got %s", r.Proto)
		}
		_, _ = io.WriteString(w, success)
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	cfg := testConfig(s.URL)
	cfg.Accounts[0].RatePerSecond = 20
	u := newUpstream(t, cfg)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	u.transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	start := time.Now()
	for i := range 4 {
		if got := send(t, u, order(i+1)); got.Action != schema.ActSucceed {
			t.Fatalf("got %+v", got)
		}
	}
	if d := time.Since(start); d < 150*time.Millisecond {
		t.Errorf("four calls at 20/s took %s", d)
	}
	gate, cancel := context.WithCancel(t.Context())
	turn, err := u.Admit(t.Context(), order(9), false)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if got := turn.Send(gate, schema.Hold{}); got.Reason != "not_sent" {
		t.Errorf("got %+v", got)
	}
	if n := requests.Load(); n != 4 {
		t.Errorf("requests: got %d, want 4", n)
	}
}

func TestTurnIsUsedOnce(t *testing.T) {
	var requests atomic.Int32
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		_, _ = io.WriteString(w, success)
	})
	u := newUpstream(t, testConfig(s.URL))
	turn, err := u.Admit(t.Context(), order(1), false)
	if err != nil {
		t.Fatal(err)
	}
	turn.Send(t.Context(), schema.Hold{})
	if got := turn.Send(t.Context(), schema.Hold{}); got.Action != schema.ActHold || got.Reason != "not_sent" {
		t.Errorf("second send: got %+v", got)
	}
	turn.Leave()
	turn.Leave()
	turn, err = u.Admit(t.Context(), order(2), false)
	if err != nil {
		t.Fatal(err)
	}
	turn.Leave()
	turn.Leave()
	if got := turn.Send(t.Context(), schema.Hold{}); got.Action != schema.ActHold {
		t.Errorf("send after leave: got %+v", got)
	}
	a := u.accounts[0]
	a.mu.Lock()
	defer a.mu.Unlock()
	if requests.Load() != 1 || a.busy != 0 || a.inFlight != 0 || len(a.unsent) != 0 {
		t.Errorf("requests %d, busy %d, in flight %d, unsent %d", requests.Load(), a.busy, a.inFlight, len(a.unsent))
	}
}

// brokenConn fails every write, after it has taken something.
type brokenConn struct {
	net.Conn
	takes func(n int) int
}

func (c brokenConn) Write(b []byte) (int, error) {
	n, _ := c.Conn.Write(b[:c.takes(len(b))])
	return n, errors.New("connection reset by peer")
}

// Of a write that failed amid the call, or after the last of it, nobody knows
// what has arrived.
func TestWriteTakesSomething(t *testing.T) {
	for name, takes := range map[string]func(int) int{
		"a part": func(n int) int { return n / 2 },
		"all":    func(n int) int { return n },
	} {
		t.Run(name, func(t *testing.T) {
			s := listen(t, func(_ int, conn *net.TCPConn) { _, _ = io.Copy(io.Discard, conn) })
			cfg := testConfig(s.url())
			cfg.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, addr)
				return brokenConn{conn, takes}, err
			}
			u := newUpstream(t, cfg)
			got := send(t, u, order(1))
			if got.Effect != schema.EffectUnknown || got.Answered || !got.Reached || u.Accounts()[0].Calls != 1 {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// An answer may say what it was asked with, and what it says goes into events,
// logs and the ledger.
func TestTokenIsNotRepeated(t *testing.T) {
	for name, tt := range map[string]struct{ token, body, want string }{
		"as it is":              {"abcdefgh", `{"code":614,"msg":"Bearer abcdefgh"}`, "Bearer [redacted]"},
		"with escaped slashes":  {"abc/def/gh+=", `{"code":614,"msg":"Bearer abc\/def\/gh+="}`, "Bearer [redacted]"},
		"with escaped brackets": {"abc<def>gh", `{"code":614,"msg":"Bearer abc\u003cdef\u003Egh"}`, "Bearer [redacted]"},
		"in an error body":      {"abcdefgh", `{"name":"n","message":"no abcdefgh","code":0,"status":500}`, "no [redacted]"},
		"too short to be one":   {"614", `{"code":614,"msg":"614"}`, "614"},
	} {
		t.Run(name, func(t *testing.T) {
			server := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, tt.body) })
			cfg := testConfig(server.URL)
			cfg.Accounts[0].Token = tt.token
			got := send(t, newUpstream(t, cfg), order(1))
			if got.Exchange == nil || got.Exchange.Msg != tt.want {
				t.Errorf("got %+v, want %s", got.Exchange, tt.want)
			}
		})
	}
}
