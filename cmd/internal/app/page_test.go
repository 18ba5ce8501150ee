package app

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"packship/consumer"
	"packship/upstream"
)

// TestPageEscapes shows a status whose every text is a piece of a page.
func TestPageEscapes(t *testing.T) {
	const piece = `"><script>alert('x')</script>` + "`<b>`"
	st := Status{
		Now: night, Role: piece, Reason: piece, Health: piece, Instance: piece, Version: piece,
		Notices:  []Notice{{Kind: HealthHalted, Text: piece, Ends: piece, Account: piece}, {Kind: HealthParked, Text: piece, ShopID: piece}},
		Members:  []consumer.Member{{Name: piece, Host: piece}},
		Accounts: []upstream.AccountStatus{{Name: piece, State: piece, Reason: piece, Since: in(0), Breaker: piece, Recent: make([]int, 120)}},
		ParkedShops: []upstream.ParkedShop{
			{ShopID: piece, Account: piece, Reason: piece, URL: "javascript:alert(1)//" + piece},
			{ShopID: "1", URL: `https://auth.example/?a=1&b="` + piece},
		},
		Failures:    map[string]int64{piece: 1},
		OldestOrder: &OldestOrder{TID: piece, ShopID: piece, Standing: piece},
		Overdue:     []OverdueOrder{{UnderWay: consumer.UnderWay{TID: piece, ShopID: piece, Trouble: piece}, Due: night}}, OverdueCount: 12,
	}
	c := newConnector(t, nil)
	for name, view := range map[string]any{
		"page": &pageView{Status: st, Actions: true}, "orders": &orderView{TID: piece, Trouble: piece},
	} {
		w := httptest.NewRecorder()
		c.render(w, 200, name, view)
		text := strings.Replace(w.Body.String(), "<script>"+pageJS+"</script>", "", 1)
		if w.Code != 200 || !strings.Contains(text, "</html>") {
			t.Fatalf("%s: %d, not to its end:\n%s", name, w.Code, text)
		}
		for _, bad := range []string{"<script", "<b>`", "javascript:", "alert(1)"} {
			if strings.Contains(text, bad) {
				t.Errorf("%s holds %s:\n%s", name, bad, text)
			}
		}
		if !strings.Contains(text, "&lt;script&gt;") {
			t.Errorf("%s does not show the texts at all", name)
		}
	}
}

// TestPageOfMany shows no more rows than a person reads.
func TestPageOfMany(t *testing.T) {
	st := Status{Now: night, ParkedShops: make([]upstream.ParkedShop, 10_000)}
	w := httptest.NewRecorder()
	newConnector(t, nil).render(w, 200, "page", &pageView{Status: st})
	if n := strings.Count(w.Body.String(), `data-label="reason"`); n != maxParkedRows {
		t.Errorf("%d parked shops are shown, want %d", n, maxParkedRows)
	}
	if !strings.Contains(w.Body.String(), "and 9\u202f950 more") {
		t.Error("the page does not say that there are more")
	}
}

// TestPageSays looks for what an account and a replica say of themselves in the
// right number.
func TestPageSays(t *testing.T) {
	days := 2.5
	st := Status{
		Now: night, Members: []consumer.Member{{Name: "a", Partitions: 1}, {Name: "b", Partitions: 2}},
		Accounts:   []upstream.AccountStatus{{Name: "north", Calls: 1105, Charged: 66, Spent: 132, Today: upstream.Spent{Charged: 2, Points: 4}, Balance: &upstream.BalanceStatus{Points: 1234, DaysLeft: &days}}, {Name: "south"}},
		Partitions: []PartitionStatus{{PartitionStatus: consumer.PartitionStatus{Waiting: 1}}},
		Notices:    []Notice{{Kind: HealthPaused, Text: "paused", Ends: "in 9 min 59 s, or `after 5 s`"}},
	}
	page := func() string {
		w := httptest.NewRecorder()
		newConnector(t, nil).render(w, 200, "page", &pageView{Status: st})
		return w.Body.String()
	}
	text := page()
	for _, want := range []string{
		"sends, with 1 partition<", "sends, with 2 partitions<", "1\u202f234 <small>for 2\u00a0d 12\u00a0h at the pace of the last day<",
		"in 9\u00a0min 59\u00a0s, or <code>after 5 s</code>",
		"4 <small>told by 2 calls<", "132 <small>at least; 1\u202f039 calls did not tell their price<", // of north
		"0 <small></small>", // of south
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %s", want)
		}
	}
	if n := strings.Count(text, "points left"); n != 1 {
		t.Errorf("a balance is shown %d times, one account has one", n)
	}
	// What a partition has not finished is drained when it does not wait for a
	// repair.
	const notNow = "not\u00a0now"
	if strings.Contains(text, notNow) {
		t.Error("the page says when held orders are drained")
	}
	st.Backlog.Waiting = 1
	if !strings.Contains(page(), notNow) {
		t.Error("the page does not say that nothing is drained")
	}
}

// TestPageOfReasons shows more parked shops than have notices of their own: what
// to do stands with them, once for each reason.
func TestPageOfReasons(t *testing.T) {
	st := Status{Now: night}
	for i := range 5 {
		p := upstream.ParkedShop{ShopID: fmt.Sprint(i), Reason: "user_session_missing", Advice: "Have it authorised again."}
		if i == 3 {
			p.Reason, p.Advice = "shop_not_authorized", "Use the `link`."
		}
		st.ParkedShops = append(st.ParkedShops, p)
	}
	page := func() string {
		w := httptest.NewRecorder()
		newConnector(t, nil).render(w, 200, "page", &pageView{Status: st})
		return w.Body.String()
	}
	text := page()
	for _, want := range []string{"<dt>User session missing.</dt><dd>Have it authorised again.</dd>", "<dt>Shop not authorized.</dt><dd>Use the <code>link</code>.</dd>"} {
		if strings.Count(text, want) != 1 {
			t.Errorf("the page says %d times %s, want once", strings.Count(text, want), want)
		}
	}
	st.ParkedShops = st.ParkedShops[:3]
	if strings.Contains(page(), "Have it authorised again") {
		t.Error("what to do about few shops is said twice")
	}
}

func TestUntold(t *testing.T) {
	for n, want := range map[int64]string{0: "", 1: "at least; 1 call did not tell its price", 1039: "at least; 1\u202f039 calls did not tell their price"} {
		if got := untold(n+7, 7); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestSentence(t *testing.T) {
	for text, want := range map[string]string{"": ".", "one order.": "One order.", "系统错误": "系统错误.", "é": "É."} {
		if got := asSentence(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestChart(t *testing.T) {
	a := upstream.AccountStatus{Limit: 10, PerSecond: 9.8, Recent: make([]int, 120)}
	a.Recent[118], a.Recent[119] = 50, 25
	c := chartOf(a)
	if c.Limit <= 0 || c.Limit >= 100 || c.Now != 9.8 {
		t.Errorf("got %+v", c)
	}
	if want := "M0 100H5"; !strings.HasPrefix(c.Line, want) {
		t.Errorf("the line is %s, want it to begin with %s", c.Line, want)
	}
	if !strings.HasSuffix(c.Line, "V13H595V56.5H600") {
		t.Errorf("the line is %s; want ten a second, which is the limit, and then half of it", c.Line)
	}
	if !strings.Contains(c.Label, "now 9.8, at most 10, the limit is 10") {
		t.Errorf("the label is %q", c.Label)
	}
	if c := chartOf(upstream.AccountStatus{}); c.Line != "" {
		t.Errorf("without anything: %+v", c)
	}
}

func TestGrouped(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1\u202f000", -1234567: "-1\u202f234\u202f567"} {
		if got := grouped(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	for f, want := range map[float64]string{0: "0", 9.83: "9.8", 10: "10", 99.96: "100", 1234.4: "1\u202f234"} {
		if got := perSecond(f); got != want {
			t.Errorf("%g: %q, want %q", f, got, want)
		}
	}
	seconds := time.Hour.Seconds()
	if got := drainedText(&seconds, 1); got != "drained in about 1\u00a0h" {
		t.Errorf("got %q", got)
	}
}
