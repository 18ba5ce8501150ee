package upstream

import (
	"testing"
	"testing/synctest"
	"time"

	"packship/schema"
)

// A call that left before its shop was unparked is answered after the try that
// ended the parking. Whatever that answer says of the shop is no news: not a 302,
// and not one of the refusals that are counted.
func TestLateShopAnswerIsNoNews(t *testing.T) {
	for name, answer := range map[string]string{"302": noShop, "no session": answerText(614, "没有用户 ID")} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(b bubble) {
				t, u, a := b.t, b.u, b.api
				a.script(answer)
				a.delay = 4 * time.Second
				early := sendLater(t, u, shopOrder("S1", 1))
				time.Sleep(2 * time.Second)
				late := sendLater(t, u, shopOrder("S1", 2))
				<-early
				if got := u.ParkedShops(); len(got) != 1 {
					t.Fatalf("parked: %+v, want S1", got)
				}
				u.Unpark("S1")
				a.mu.Lock()
				a.delay = time.Second
				a.mu.Unlock()
				a.script(success)
				if got := send(t, u, shopOrder("S1", 3)); got.Action != schema.ActSucceed {
					t.Errorf("try after the repair: got %+v", got)
				}
				if got := <-late; got.Action != schema.ActHold {
					t.Errorf("late call: got %+v, want one that waits for its next turn", got)
				}
				if got := u.ParkedShops(); len(got) != 0 {
					t.Errorf("parked by an answer from before its repair: %+v", got)
				}
				if got := send(t, u, shopOrder("S1", 2)); got.Action != schema.ActSucceed {
					t.Errorf("the late call's order: got %+v", got)
				}

				// What is said of calls that left after the repair is news.
				a.script(answer)
				send(t, u, shopOrder("S1", 4))
				if got := u.ParkedShops(); len(got) != 1 {
					t.Errorf("parked: %+v, want S1 once more", got)
				}
			})
		})
	}
}

// Nor do refusals from before the repair add up to another parking.
func TestLateShopFaultsDoNotCount(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(notFound)
		a.delay = 4 * time.Second
		var calls []<-chan schema.Answer
		for i := range 2*shopFaultLimit - 1 {
			if i == shopFaultLimit {
				time.Sleep(2 * time.Second)
			}
			calls = append(calls, sendLater(t, u, order(i+1)))
			synctest.Wait()
		}
		for _, c := range calls[:shopFaultLimit] {
			<-c
		}
		if got := u.ParkedShops(); len(got) != 1 {
			t.Fatalf("parked: %+v, want S1", got)
		}
		u.Unpark("S1")
		a.mu.Lock()
		a.delay = time.Second
		a.mu.Unlock()
		a.script(success, notFound)
		send(t, u, order(100))
		for _, c := range calls[shopFaultLimit:] {
			if got := <-c; got.Action != schema.ActFail {
				t.Errorf("late call: got %+v", got)
			}
		}
		for i := range shopFaultLimit - 1 {
			send(t, u, order(200+i))
		}
		if got := u.ParkedShops(); len(got) != 0 {
			t.Errorf("parked by refusals of which most are from before the repair: %+v", got)
		}
	})
}

// The try itself may come long after the leave for it. Calls that leave between
// cannot be: the shop is parked until then. A repair is forgotten once nothing
// from before it can be answered any more.
func TestRepairsAreForgotten(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		for _, shop := range []string{"S1", "S2", "S3"} {
			a.script(noShop)
			send(t, u, shopOrder(shop, 1))
			u.Unpark(shop)
			a.script(success)
			send(t, u, shopOrder(shop, 1))
			time.Sleep(u.cfg.Timeout)
		}
		acc := u.accounts[0]
		acc.mu.Lock()
		defer acc.mu.Unlock()
		if len(acc.repaired) != 1 || len(acc.shops) != 0 {
			t.Errorf("%d repairs and %d shops are remembered, want the last repair", len(acc.repaired), len(acc.shops))
		}
	})
}

// An account is repaired while a call is under way that tries it. The API refuses
// that call, which it had read before the repair; the next order tries again at
// once, and not when the slow timer says so.
func TestResumeDuringTheTry(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(quotaGone)
		send(t, u, order(1))
		u.Resume("default")
		a.script(quotaGone, success)
		a.delay = time.Second
		try := sendLater(t, u, order(1))
		synctest.Wait()
		next := sendLater(t, u, order(2))
		time.Sleep(500 * time.Millisecond)
		u.Resume("default")
		if got := <-try; got.Action != schema.ActHold {
			t.Errorf("the try: got %+v, want one that is held", got)
		}
		start := time.Now()
		if got := <-next; got.Action != schema.ActSucceed || time.Since(start) > 2*time.Second {
			t.Errorf("the next order: got %+v after %s", got, time.Since(start))
		}
		if got := u.Accounts()[0]; got.State == StateHalted || a.calls() != 3 {
			t.Errorf("%s after %d calls, want 3: the refusal, the try, and the next order", got.State, a.calls())
		}
	})
}

// A try that the API takes ends a halt also if a resume came while it was under
// way; one that left after the last resume halts the account as ever.
func TestResumeDuringAGoodTry(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(tokenBad)
		send(t, u, order(1))
		u.Resume("default")
		a.script(success)
		a.delay = time.Second
		try := sendLater(t, u, order(1))
		time.Sleep(500 * time.Millisecond)
		u.Resume("default")
		if got := <-try; got.Action != schema.ActSucceed {
			t.Errorf("the try: got %+v", got)
		}
		if got := u.Accounts()[0]; got.State == StateHalted {
			t.Errorf("halted after a good try: %+v", got)
		}
		a.script(tokenBad)
		send(t, u, order(2))
		state(t, u, "halted", "access_token_invalid")
	})
}

// The same for a shop: its seller authorises it while one of its orders tries.
func TestUnparkDuringTheTry(t *testing.T) {
	for name, second := range map[string]string{"refused": noShop, "taken": success} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(b bubble) {
				t, u, a := b.t, b.u, b.api
				a.script(noShop)
				send(t, u, shopOrder("S1", 1))
				u.Unpark("S1")
				a.script(second, success)
				a.delay = time.Second
				try := sendLater(t, u, shopOrder("S1", 1))
				synctest.Wait()
				next := sendLater(t, u, shopOrder("S1", 2))
				time.Sleep(500 * time.Millisecond)
				u.Unpark("S1")
				if got := <-try; (got.Action == schema.ActSucceed) != (second == success) {
					t.Errorf("the try: got %+v", got)
				}
				start := time.Now()
				if got := <-next; got.Action != schema.ActSucceed || time.Since(start) > 2*time.Second {
					t.Errorf("the next order: got %+v after %s", got, time.Since(start))
				}
				if got := u.ParkedShops(); len(got) != 0 || a.calls() != 3 {
					t.Errorf("parked: %+v after %d calls, want none after 3", got, a.calls())
				}
			})
		})
	}
}
