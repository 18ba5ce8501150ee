package app

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	devlog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"packship/consumer"
	"packship/schema"
	"packship/upstream"
	"packship/upstream/upstreamtest"
)

var screenshots = flag.String("screenshots", os.Getenv("PACKSHIP_TEST_SCREENSHOTS"), "keep the screenshots of the pages in this `directory`; $PACKSHIP_TEST_SCREENSHOTS if it is not given")

// browser is a Chromium that runs for a test.
type browser struct {
	ctx context.Context //nolint:containedctx // chromedp keeps the browser in it
	dir string          // of the screenshots
}

// newBrowser starts Chromium, or skips the test where there is none. The browser
// reaches nothing but this machine.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	if testing.Short() {
		t.Skip("takes a browser")
	}
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("no chromium, chromium-browser or google-chrome in the PATH: the pages are not looked at in a browser")
	}
	b := &browser{dir: *screenshots}
	if b.dir == "" {
		b.dir = t.TempDir()
	} else if err := os.MkdirAll(b.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
	)
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("the browser does not start: %v", err)
	}
	b.ctx = ctx
	return b
}

// tab is a page in the browser. It collects what must not happen in it.
type tab struct {
	t   *testing.T
	b   *browser
	ctx context.Context //nolint:containedctx // chromedp keeps the tab in it
	url string

	mu      sync.Mutex
	trouble []string // guarded by mu
	allowed []string // guarded by mu; parts of trouble that the test brings about
}

// open opens a page of a server.
func (b *browser) open(t *testing.T, url string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx)
	t.Cleanup(cancel)
	p := &tab{t: t, b: b, ctx: ctx, url: url}
	note := func(format string, args ...any) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.trouble = append(p.trouble, fmt.Sprintf(format, args...))
	}
	err := chromedp.Listen(ctx, func(ev any) {
		switch ev := ev.(type) {
		case *devlog.EventEntryAdded:
			if ev.Entry.Level == devlog.EntryLevelError || ev.Entry.Level == devlog.EntryLevelWarning {
				note("log: %s (%s)", ev.Entry.Text, ev.Entry.URL)
			}
		case *runtime.EventExceptionThrown:
			note("exception: %v", ev.ExceptionDetails)
		case *runtime.EventConsoleAPICalled:
			note("console: %s", ev.Type)
		case *network.EventRequestWillBeSent:
			if u := ev.Request.URL; !strings.HasPrefix(u, url) && !strings.HasPrefix(u, "data:") {
				note("outside request: %s", u)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	p.run(
		command(network.Enable, network.EnableParams{}), command(devlog.Enable, cdp.Empty{}), command(runtime.Enable, cdp.Empty{}),
		chromedp.EmulateViewport(1200, 900), chromedp.Navigate(url),
	)
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
	trouble:
		for _, text := range p.trouble {
			for _, part := range p.allowed {
				if strings.Contains(text, part) {
					continue trouble
				}
			}
			t.Error(text)
		}
	})
	return p
}

// allow says that the browser may complain of something.
func (p *tab) allow(part string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.allowed = append(p.allowed, part)
}

// step is one thing that a browser is told to do.
type step = chromedp.Action[chromedp.Void]

// command is a command of the protocol as a step.
func command[P, R any](c cdp.Command[P, R], params P) step {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, c, params)
		return err
	})
}

// limit is for a browser that hangs.
func (p *tab) limit() (context.Context, context.CancelFunc) {
	return context.WithTimeout(p.ctx, time.Minute)
}

// run takes steps.
func (p *tab) run(steps ...step) {
	p.t.Helper()
	ctx, cancel := p.limit()
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.t.Fatal(err)
	}
}

// get returns what an action returns.
func get[T any](p *tab, action chromedp.Action[T]) T {
	p.t.Helper()
	ctx, cancel := p.limit()
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// eval evaluates a script.
func eval[T any](p *tab, script string) T {
	p.t.Helper()
	return get(p, chromedp.Evaluate[T](script))
}

// text returns the text of what a selector finds, as it can be seen.
func (p *tab) text(selector string) string {
	p.t.Helper()
	return eval[string](p, fmt.Sprintf(`[...document.querySelectorAll(%q)].map(e => e.innerText).join("\n")`, selector))
}

// awaitText waits until a part of the page says something.
func (p *tab) awaitText(selector string, wanted ...string) {
	p.t.Helper()
	last := ""
	defer func() {
		if p.t.Failed() {
			p.t.Logf("%s says: %s", selector, last)
		}
	}()
	for _, want := range wanted {
		eventually(p.t, fmt.Sprintf("%s says %q", selector, want), func() bool {
			last = p.text(selector)
			return strings.Contains(last, want)
		})
	}
}

// click clicks on what a selector finds, as soon as it is there.
func (p *tab) click(selector string) {
	p.t.Helper()
	p.run(chromedp.Click(selector, chromedp.NodeVisible))
}

// tabTo presses Tab until the element with the id has the focus.
func (p *tab) tabTo(id string) {
	p.t.Helper()
	for range 100 {
		p.run(chromedp.KeyEvent(kb.Tab))
		if eval[string](p, `document.activeElement.id`) == id {
			return
		}
	}
	p.t.Fatalf("Tab never comes to %s", id)
}

//go:embed testdata/audit.js
var auditScript string

// looks are what a page has to be good for.
var looks = map[string]struct {
	scheme string
	width  int64
}{
	"light":       {"light", 1200},
	"dark":        {"dark", 1200},
	"phone":       {"light", 375},
	"phone-night": {"dark", 375},
}

// look takes a screenshot in each look and checks the page in it. The page has
// the same address before and after, and is not loaded again.
func (p *tab) look(name string) {
	p.t.Helper()
	for look, as := range looks {
		p.run(
			command(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: as.scheme}},
			}),
			chromedp.EmulateViewport(as.width, 900),
		)
		image := get(p, chromedp.FullScreenshot(100))
		if err := os.WriteFile(filepath.Join(p.b.dir, name+"-"+look+".png"), image, 0o600); err != nil {
			p.t.Fatal(err)
		}
		p.audit(name + ", " + look)
	}
	p.run(command(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{}), chromedp.EmulateViewport(1200, 900))
}

// audit checks the page as it is.
func (p *tab) audit(what string) {
	p.t.Helper()
	found := eval[struct {
		Wrong    []string `json:"wrong"`
		Contrast float64  `json:"contrast"`
	}](p, auditScript)
	for _, wrong := range found.Wrong {
		p.t.Errorf("%s: %s", what, wrong)
	}
	if found.Contrast > 20 {
		p.t.Errorf("%s: no text was judged", what)
	}
}

// TestBrowserSending follows the page while orders are shipped, without loading it
// again, looks an order up, and stops the replica in the end.
func TestBrowserSending(t *testing.T) {
	b := newBrowser(t)
	w := newWorld(t, upstreamtest.Options{Latency: upstreamtest.Latency{Fixed: 300 * time.Millisecond}}, func(s *Settings) {
		s.RatePerSecond, s.RateJitter = 10, 10*time.Millisecond
	})
	for tid, row := range map[string]int{"3": 35, "5": 35, "7": 30, "9": 30, "11": 30} {
		w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(row), TID: tid})
	}
	w.produce(orders(1, 90)...)
	w.produce("no event")
	r := w.start()
	p := b.open(t, r.url)
	p.awaitText("#hero", "Sending")
	eval[string](p, `window.marker = "not loaded again"`)
	p.awaitText("#failures", "waybill already used")
	eventually(t, "calls on the chart", func() bool {
		label := eval[string](p, `document.querySelector(".chart svg").getAttribute("aria-label")`)
		return strings.Contains(label, "the limit is 10") && !strings.Contains(label, "at most 0,")
	})
	p.awaitText("#who", "active", r.c.name)
	p.awaitText("#replicas", fmt.Sprintf("sends, with %d partitions", testPartitions))
	p.look("sending")
	p.awaitText("#tiles", "85") // shipped
	p.awaitText("#hero", "Idle", "No order waits")

	// The page does not change while it is paused.
	p.click("#pause")
	p.awaitText("#gone", "You have stopped the updates. What stands below is old: ")
	w.produce(orders(101, 3)...)
	w.committed()
	if got := p.text("#tiles"); strings.Contains(got, "88") {
		t.Errorf("the paused page has gone on: %s", got)
	}
	p.look("stopped-updating")
	p.click("#pause")
	p.awaitText("#tiles", "88")
	if got := p.text("#gone:not([hidden])"); got != "" {
		t.Errorf("the page is updated and says: %s", got)
	}
	if got := eval[string](p, `String(window.marker)`); got != "not loaded again" {
		t.Errorf("the page was loaded again: marker %s", got)
	}

	// By the keyboard alone: into the field, the id, Enter.
	p.run(chromedp.Focus("#tid"), chromedp.KeyEvent("3"+kb.Enter), chromedp.WaitVisible("#standing"))
	p.awaitText(".hero", "Order 3", "Failed at", "waybill_already_used")
	p.awaitText(".life", "packed", "intent", "outcome", "published")
	p.awaitText("header", "as of ", "load it again for news")
	p.look("order-failed")
	p.run(chromedp.Navigate(r.url + "/orders?tid=1"))
	p.awaitText(".hero", "Order 1", "nothing to do")
	// A waybill number that is a piece of a page stays a text.
	const piece = `<img src=x onerror="alert(1)">`
	w.produce(strings.Replace(order(500, ""), `"SF0000000000500"`, fmt.Sprintf("%q", piece), 1))
	w.committed()
	p.run(chromedp.Navigate(r.url + "/orders?tid=500"))
	p.awaitText(".hero", "Order 500", "local_validation")
	if got := p.text(".life"); !strings.Contains(strings.ToLower(got), piece) || eval[int](p, `document.images.length`) != 0 {
		t.Errorf("the waybill %s is shown as %.600s", piece, got)
	}
	p.allow("404 (Not Found)")
	p.run(chromedp.Navigate(r.url + "/orders?tid=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E"))
	p.awaitText(".hero", "Not known")
	p.look("order-unknown")

	p.run(chromedp.Navigate(r.url))
	p.awaitText("#hero", "Idle")
	p.allow("ERR_CONNECTION_REFUSED")
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	p.awaitText("#gone", "packship does not answer. What stands below is old: ")
	p.look("gone")
}

func TestBrowserBreaker(t *testing.T) {
	b := newBrowser(t)
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.produce(orders(1, 5)...)
	r := w.start()
	w.await(5, 0, 0)
	p := b.open(t, r.url)
	w.sim.SetDown(upstreamtest.Unavailable)
	w.produce(orders(11, 30)...)
	p.awaitText("#hero", "Paused")
	p.awaitText("#notices", "Account default is paused by its breaker", "the last time: HTTP status 503", "one order tries the API in", "What to do: Nothing when the API is down")
	p.awaitText("#accounts", "open")
	if n := eval[int](p, `document.querySelectorAll("[data-post]").length`); n != 0 {
		t.Errorf("%d actions are offered although none helps", n)
	}
	p.look("breaker")
}

func TestBrowserThrottled(t *testing.T) {
	b := newBrowser(t)
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.FlowControl, Text: "This ban will last for 200 more seconds", Count: 1, TID: "20"})
	w.produce(orders(1, 40)...)
	r := w.start()
	p := b.open(t, r.url)
	p.awaitText("#hero", "Throttled", "none goes on for now")
	p.awaitText("#notices", "the API has asked for fewer calls", "by itself, or at once after a resume")
	p.awaitText("#accounts", "slowed to")
	p.look("throttled")
}

// TestBrowserHalted resumes a halted account from the page, with a wrong token first.
func TestBrowserHalted(t *testing.T) {
	b := newBrowser(t)
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	if err := w.sim.SetToken("default", "another"); err != nil {
		t.Fatal(err)
	}
	w.produce(orders(1, 5)...)
	r := w.start()
	p := b.open(t, r.url)
	p.awaitText("#hero", "Halted")
	p.awaitText("#notices", "Account default is halted", "or at once after a new token or a resume", "What to do: The token is wrong")
	p.awaitText("#oldest", "waits because its account default is halted: access token invalid")
	p.look("halted")

	// While the time runs down beside it the button stays the same: one that is
	// replaced while it is pressed is not clicked.
	before := eval[string](p, `(window.button = document.querySelector("#notice-resume-default")).parentElement.innerText`)
	eventually(t, "the time to run down", func() bool { return p.text("#notices") != before })
	if !eval[bool](p, `window.button.isConnected`) {
		t.Error("the button was replaced")
	}

	p.click("#notice-resume-default")
	p.awaitText("#ask", "Resume account default?", "One order is tried at once")
	p.allow("401 (Unauthorized)")
	p.run(chromedp.SendKeys("#token", "wrong"+kb.Enter))
	p.awaitText("#ask-error", "The token is wrong. Nothing was done.")
	p.look("asking")
	if err := w.sim.SetToken("default", testToken); err != nil {
		t.Fatal(err)
	}
	p.run(chromedp.SendKeys("#token", "e2e-admin"+kb.Enter))
	p.awaitText("#did", "Done: resume default")
	p.awaitText("#tiles", "shipped\n5")
	p.awaitText("#hero", "Idle")
	if stored := eval[int](p, `localStorage.length + sessionStorage.length + document.cookie.length`); stored != 0 {
		t.Error("the page has stored something, perhaps the token")
	}
	if r.c.Status().Accounts[0].Held() {
		t.Error("the account is still held")
	}
}

// TestBrowserParked parks a shop and unparks it from the page.
func TestBrowserParked(t *testing.T) {
	b := newBrowser(t)
	const shop = "shop_77"
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddShop(upstreamtest.Shop{ID: shop, Unauthorised: true})
	w.produce(orders(1, 5)...)
	w.produce(strings.ReplaceAll(order(7, ""), `"`+testShop+`"`, fmt.Sprintf("%q", shop)), strings.ReplaceAll(order(8, ""), `"`+testShop+`"`, fmt.Sprintf("%q", shop)))
	r := w.start()
	p := b.open(t, r.url)
	p.awaitText("#hero", "Idle, 1 shop parked")
	p.awaitText("#parked", shop, "shop not authorized", "the link for that is in /api/status", "or at once after an unpark")
	p.awaitText("#notices", "What to do: Have the seller authorise the shop, then unpark it. The link for that stands with it in /api/status.")
	p.awaitText("#oldest", "waits because its shop is parked: shop not authorized")
	p.look("parked")
	// The link itself is shown in /api/status and nowhere else.
	if link := eval[string](p, `document.querySelector("#parked a").getAttribute("href")`); link != "api/status" {
		t.Errorf("the link is %q", link)
	}
	if err := w.sim.Authorise(shop); err != nil {
		t.Fatal(err)
	}
	// By the keyboard alone, from the top of the page.
	p.run(chromedp.Evaluate[chromedp.Void](`document.activeElement.blur(); scrollTo(0, 0)`))
	p.tabTo("unpark-" + shop)
	p.run(chromedp.KeyEvent(kb.Enter))
	p.awaitText("#ask", "Unpark shop "+shop+"?")
	p.run(chromedp.SendKeys("#token", "e2e-admin"+kb.Enter))
	p.awaitText("#did", "Done: unpark")
	p.awaitText("#parked", "none")
	p.awaitText("#hero", "Idle")
	w.await(7, 0, 0)
}

func TestBrowserStandby(t *testing.T) {
	b := newBrowser(t)
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	first := w.start()
	first.eventually("active", func() bool { return first.c.Status().Role == consumer.RoleActive })
	second := w.start()
	p := b.open(t, second.url)
	p.awaitText("#hero", "Standing by")
	p.awaitText("#notices", "Standing by: "+first.c.name+" sends", "when the sender leaves the group")
	p.awaitText("#replicas", second.c.name+" (this one)")
	p.look("standby")
}

func TestBrowserJoining(t *testing.T) {
	b := newBrowser(t)
	s := Defaults()
	s.KafkaBrokers, s.UpstreamToken, s.HTTPAddr = List{"127.0.0.1:1"}, "token", "127.0.0.1:0"
	ctx, cancel := context.WithCancel(t.Context())
	addr := make(chan net.Addr, 1)
	c, err := New(s, Options{
		Serving:   func(a net.Addr) { addr <- a },
		KafkaDial: func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED },
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	p := b.open(t, "http://"+(<-addr).String())
	p.awaitText("#hero", "Joining", "starts no calls")
	p.awaitText("#notices", "kafka broker 127.0.0.1:1 refuses connections", "packship goes on trying")
	p.awaitText("footer", "PACKSHIP_ADMIN_TOKEN")
	p.look("joining")
	p.allow("503 (Service Unavailable)")
	p.run(chromedp.Navigate(p.url + "/orders?tid=1"))
	p.awaitText(".hero", "No answer", "The ledger is not there yet")
}

// TestBrowserStuck keeps results from being written: nothing holds the orders, and
// they do not go on.
func TestBrowserStuck(t *testing.T) {
	b := newBrowser(t)
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	relent := w.refuseResults()
	w.produce(orders(1, 3)...)
	r := w.start()
	p := b.open(t, r.url)
	p.awaitText("#hero", "Stuck")
	p.awaitText("#notices", "and 2 more should have gone on", "waits for the result topic to take its result", "a restart is safe")
	p.awaitText("#overdue", "waits for the result topic")
	p.look("stuck")
	code, text := r.get("/readyz")
	if code != http.StatusOK || !strings.HasPrefix(text, "ok\nstuck\n") {
		t.Errorf("readyz: %d %q, want 200 that says stuck", code, text)
	}
	relent()
	p.awaitText("#hero", "Idle")
	p.awaitText("#overdue", "none")
}

// TestBrowserLeaving tells a replica to stop while a call is under way.
func TestBrowserLeaving(t *testing.T) {
	b := newBrowser(t)
	w := newWorld(t, upstreamtest.Options{Latency: upstreamtest.Latency{Fixed: 12 * time.Second}}, func(s *Settings) {
		s.UpstreamTimeout, s.ShutdownTimeout, s.MaxInFlight = 30*time.Second, 40*time.Second, 1
	})
	r := w.start()
	p := b.open(t, r.url)
	p.awaitText("#hero", "Idle")
	w.produce(order(1, ""))
	p.awaitText("#hero", "Sending", "1 in flight")
	// The oldest is not the one whose call is under way.
	for i, value := range orders(2, 8) {
		w.append(schema.Record{Partition: i % testPartitions, Key: []byte("key"), Value: []byte(value), Time: time.Now().Add(-time.Minute)})
	}
	p.awaitText("#hero", "1 in flight", "drained in")
	ended := make(chan error, 1)
	go func() { ended <- r.stop() }()
	p.awaitText("#hero", "Leaving", "begins no further call, 1 in flight")
	p.awaitText("#notices", "Told to stop", "What ends it: by itself")
	p.awaitText("#oldest", "waits for its call", "waits for the next replica")
	if got := p.text("#hero") + p.text("#tiles"); strings.Contains(got, "drained in") {
		t.Errorf("it says when it will have drained what waits: %s", got)
	}
	p.look("leaving")
	p.allow("ERR_CONNECTION_REFUSED")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	p.awaitText("#gone", "packship does not answer")
}

// stage serves a page of the test's making, from a server that can be told to
// fail.
type stage struct {
	url   string
	asked atomic.Int64 // so many times

	mu   sync.Mutex
	st   Status           // guarded by mu
	fail http.HandlerFunc // guarded by mu; answers instead
}

func newStage(t *testing.T, st Status) *stage {
	t.Helper()
	s := &stage{st: st}
	c := newConnector(t, nil)
	server := httptest.NewServer(secured(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		s.mu.Lock()
		fail, view := s.fail, &pageView{Status: s.st, Actions: true}
		s.mu.Unlock()
		if fail != nil {
			fail(w, r)
			return
		}
		view.Now = time.Now()
		c.render(w, http.StatusOK, "page", view)
	})))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *stage) set(fail http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

// TestBrowserOld checks that the page says when what it shows is old, whatever
// comes instead of an answer, and that it says so of no other page.
func TestBrowserOld(t *testing.T) {
	b := newBrowser(t)
	s := newStage(t, Status{Health: HealthIdle, Ready: true, Role: consumer.RoleActive})
	p := b.open(t, s.url)
	p.allow("502 (Bad Gateway)")
	for what, fail := range map[string]http.HandlerFunc{
		"an error of a proxy": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "bad gateway", http.StatusBadGateway) },
		"the page of a login": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "<title>Log in</title><p>Who are you?")
		},
		"no answer at all": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		p.awaitText("#hero", "Idle")
		s.set(fail)
		p.awaitText("#gone", "packship does not answer. What stands below is old: ")
		if title := eval[string](p, `document.title`); title != "No answer · packship" {
			t.Errorf("%s: the title is %s", what, title)
		}
		s.set(nil)
		eventually(t, "the page to be new again", func() bool {
			return p.text("#gone:not([hidden])") == "" && eval[string](p, `document.title`) == "Idle · packship"
		})
	}

	// In a tab that nobody sees it asks seldom, which is no sign of trouble.
	eval[bool](p, `Object.defineProperty(document, "hidden", { configurable: true, get: () => true })`+"&& true")
	asked := s.asked.Load()
	eventually(t, "the time in which it would complain", func() bool {
		return eval[bool](p, `(window.begin ??= Date.now()) < Date.now() - 4000`)
	})
	if n := s.asked.Load() - asked; n > 1 {
		t.Errorf("it has asked %d times although nobody sees it", n)
	}
	if title, said := eval[string](p, `document.title`), p.text("#gone:not([hidden])"); title != "Idle · packship" || said != "" {
		t.Errorf("in the background: title %q, %q", title, said)
	}
	before := p.text("#fresh")
	eval[bool](p, `delete document.hidden && document.dispatchEvent(new Event("visibilitychange"))`)
	eventually(t, "news, once it is seen", func() bool { return p.text("#fresh") != before })
}

// TestBrowserLong shows names and texts that are longer than anybody expects, in
// words of any language, and more rows than fit.
func TestBrowserLong(t *testing.T) {
	b := newBrowser(t)
	long := strings.Repeat("shop", 16)
	chinese := "未授权店铺：请卖家前往官网重新授权之后再试" + strings.Repeat("淘宝旗舰店", 12)
	st := Status{
		Health: HealthHalted, Ready: true, Role: consumer.RoleActive, Instance: "packship-" + long, Version: "v1.2.3-0.20261130073552-93807ceabcde",
		Now: time.Now(), Started: time.Now(),
		Failures:    map[string]int64{"logistics_order_not_found_" + long: 123_456_789, "waybill_already_used": 1},
		Counts:      consumer.Counts{Shipped: 123_456_789, Failed: 1_234_567, DeadLettered: 12_345},
		OldestOrder: &OldestOrder{TID: "9223372036854775807", ShopID: chinese, Standing: "waits for its turn, 3 d 2 h so far"},
		Members:     []consumer.Member{{Name: long, Host: "2001:0db8:85a3:0000:0000:8a2e:0370:7334", Partitions: 12}},
	}
	days := 12345.0
	for _, name := range []string{long, chinese} {
		st.Accounts = append(st.Accounts, upstream.AccountStatus{
			Name: name, State: upstream.StateHalted, Reason: "code_204_unrecognised", Since: &st.Now, Until: &st.Now, Breaker: "half_open", Limit: 10, Rate: 0.1,
			Calls: 123_456_789, Spent: 123_456_789, Balance: &upstream.BalanceStatus{Points: 123_456_789, DaysLeft: &days}, Recent: make([]int, 120),
		})
	}
	for i := range 12 {
		name := []string{long, chinese, "shop with spaces", "7"}[i%4] + fmt.Sprint(i)
		st.ParkedShops = append(st.ParkedShops, upstream.ParkedShop{ShopID: name, Account: long, Reason: "shop_not_authorized", Advice: chinese, Since: st.Now, URL: "https://auth.example"})
		st.Partitions = append(st.Partitions, PartitionStatus{PartitionStatus: consumer.PartitionStatus{Partition: 100 + i, Committed: 123_456_789_012, End: 123_456_789_012, Waiting: 345_678, Shelved: 12_345, OldestUnfinishedSeconds: 1e6}})
	}
	st.Backlog.Waiting = 1
	st.Notices = []Notice{
		{Kind: HealthHalted, Account: chinese, Text: "account " + chinese + " is halted", Ends: chinese, Do: chinese},
		{Kind: HealthParked, ShopID: long, Text: "shop " + long + " is parked", Ends: long, Do: long},
	}
	p := b.open(t, newStage(t, st).url)
	p.awaitText("#parked", long, chinese, "shop with spaces")
	p.look("long")
	// A zoom of 200 % leaves half of the width, and the smallest phone has 320.
	for _, width := range []int64{600, 320} {
		p.run(chromedp.EmulateViewport(width, 700))
		p.audit(fmt.Sprintf("long, %d wide", width))
	}
	p.click("#notices [data-post]")
	p.look("long-asking")
}

// TestBrowserNoScript has a browser that runs no scripts: the page is whole, and
// does not look as if it were renewed.
func TestBrowserNoScript(t *testing.T) {
	b := newBrowser(t)
	s := newStage(t, Status{Health: HealthHalted, Ready: true, Role: consumer.RoleActive, Notices: []Notice{{Kind: HealthHalted, Account: "north", Text: "account north is halted", Ends: "a new token"}}})
	p := b.open(t, s.url)
	p.run(command(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}), chromedp.Navigate(s.url))
	p.awaitText("#hero", "Halted")
	p.awaitText("header", "as of ", "load it again for news")
	p.awaitText("#notices", "Account north is halted.", "What ends it: a new token.")
	for _, hidden := range []string{"#dot", "#pause", "#notices button"} {
		if !eval[bool](p, fmt.Sprintf(`[...document.querySelectorAll(%q)].every(e => !e.checkVisibility())`, hidden)) {
			t.Errorf("%s is to be seen, and does nothing", hidden)
		}
	}
	p.look("no-script")
}
