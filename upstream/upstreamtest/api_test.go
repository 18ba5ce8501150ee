package upstreamtest_test

import (
	"errors"
	"net/http"
	"testing"

	"packship/upstream/upstreamtest"
)

// TestAutoCreatedOrdersCanBeHandled: what is done to an order before its first
// call makes it exist, too.
func TestAutoCreatedOrdersCanBeHandled(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true})
	for tid, do := range map[string]struct {
		act func(shop, tid string) error
		row int
	}{
		"1": {func(s, tid string) error { return sim.Refund(s, tid) }, 59},
		"2": {sim.Hold, 26},
		"3": {func(s, tid string) error { return sim.ShipByHand(s, tid, "YTO", "YT0000000001") }, 15},
		"4": {func(s, tid string) error { return sim.ShipByHand(s, tid, "YTO", "YT0000000001", "11") }, 40},
	} {
		if err := do.act("S", tid); err != nil {
			t.Errorf("order %s: %v", tid, err)
		}
		wantRow(t, send(t, sim, order("S", tid)), do.row)
	}
	wantRow(t, send(t, sim, order("S", "4", "is_split", "1", "sub_tid", "12")), 1)
	if err := sim.Unauthorise("T"); err != nil {
		t.Error(err)
	}
	wantRow(t, send(t, sim, order("T", "1")), 10)
	if err := sim.Hold("S", "not an id"); err == nil {
		t.Error("an order without digits exists")
	}
	if got := sim.Stats().Applied; got != 1 {
		t.Errorf("%d orders were shipped by calls, want 1", got)
	}
}

func TestAccounts(t *testing.T) {
	sim := open(t, upstreamtest.Options{Accounts: []upstreamtest.Account{{Name: "north", Token: "a"}}})
	if err := sim.TopUp("north", 7); err != nil {
		t.Fatal(err)
	}
	if a, ok := sim.Account("north"); !ok || *a.Balance != 7 {
		t.Errorf("got %+v", a)
	}
	token, err := sim.RotateToken("north")
	if err != nil || token == "a" {
		t.Errorf("got token %q, %v", token, err)
	}
	// An account that is added again is a new one.
	sim.AddAccount(upstreamtest.Account{Name: "north", Token: "b"})
	if a, _ := sim.Account("north"); a.Balance != nil || a.Token != "b" {
		t.Errorf("got %+v", a)
	}
	wantRow(t, sendWith(t, sim, good, token, here), 11)
	wantRow(t, sendWith(t, sim, good, "b", here), 4)
	if _, ok := sim.Account("south"); ok {
		t.Error("there is another account")
	}
	for name, err := range map[string]error{
		"top up": sim.TopUp("south", 1), "set token": sim.SetToken("south", "x"), "deny": sim.Deny("south", "send"),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// broken is a response whose reader has gone.
type broken struct{ discard }

func (*broken) Write([]byte) (int, error) { return 0, errors.New("gone") }

// TestLostAnswer: an answer that cannot be written is not delivered, so a
// second call is not blind.
func TestLostAnswer(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true})
	for _, kind := range []upstreamtest.FaultKind{upstreamtest.None, upstreamtest.SlowDrip} {
		sim.SetFault(upstreamtest.Fault{Kind: kind, Count: 1})
		tid := map[upstreamtest.FaultKind]string{upstreamtest.None: "1", upstreamtest.SlowDrip: "2"}[kind]
		sim.ServeHTTP(&broken{discard{header: http.Header{}}}, order("S", tid).request(upstreamtest.SendPath))
		if e := sim.Journal().CallsOfOrder(tid)[0]; e.Delivered || !e.Applied || e.Done.IsZero() {
			t.Errorf("%s: got %+v", kind, e)
		}
		wantRow(t, send(t, sim, order("S", tid)), 15)
	}
	if got := sim.Stats().BlindRepeats; got != 0 {
		t.Errorf("%d repeats are blind, want 0", got)
	}
}

func TestBadAdditionsPanic(t *testing.T) {
	sim := open(t, upstreamtest.Options{})
	for name, add := range map[string]func(){
		"account": func() { sim.AddAccount(upstreamtest.Account{}) },
		"shop":    func() { sim.AddShop(upstreamtest.Shop{}) },
		"order":   func() { sim.AddTrade(upstreamtest.Trade{Shop: "S", TID: "x"}) },
		"waybill": func() { sim.AddWaybill(upstreamtest.Waybill{}) },
		"carrier": func() { sim.AddCarrier(upstreamtest.Carrier{Code: "X", Pattern: "("}) },
		"script":  func() { sim.AddScript(upstreamtest.Script{}) },
		"outage":  func() { sim.AddOutage(upstreamtest.Outage{}) },
		"latency": func() { sim.SetLatency(upstreamtest.Latency{Fixed: -1}) },
		"rate":    func() { sim.SetRate(upstreamtest.Rate{Window: "x"}) },
		"switch":  func() { sim.SetSwitches(upstreamtest.Switches{ClosedRow: 1}) },
	} {
		func() {
			defer func() {
				if _, ok := recover().(error); !ok {
					t.Errorf("%s: no panic with an error", name)
				}
			}()
			add()
		}()
	}
}
