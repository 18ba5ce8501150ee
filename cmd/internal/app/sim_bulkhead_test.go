package app

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/segmentio/kafka-go"

	"packship/schema"
	"packship/upstream/upstreamtest"
)

// inSimulation runs a test with a simulated world in which nothing happens but
// what the test does: brokers, network and shipping API within one bubble, whole
// replicas, a clock of their own.
func inSimulation(t *testing.T, changeAPI func(*upstreamtest.Options), change func(*Settings), test func(*simulation)) {
	t.Helper()
	if os.Getenv("PACKSHIP_TEST_BROKERS") != "" {
		t.Skip("the simulation has brokers of its own")
	}
	synctest.Test(t, func(t *testing.T) {
		s := &simulation{t: t, seed: 1, changeAPI: changeAPI, change: change, profile: simProfile{
			session: 10 * time.Second, timeout: 15 * time.Second, settle: 30 * time.Second,
			latency: upstreamtest.Latency{Fixed: 1200 * time.Millisecond}, replicas: 1, groups: 1,
		}}
		s.begin()
		test(s)
		s.end()
		for _, v := range s.trouble {
			t.Errorf("%+v", v)
		}
		for _, v := range s.api.Verify() {
			t.Errorf("the API saw what must never happen: %s: %s", v.Rule, v.Detail)
		}
	})
}

// startReplica launches a replica and waits until it may call.
func (s *simulation) startReplica(slot int) *simProcess {
	s.t.Helper()
	p := s.launch(slot)
	s.until("the replica is ready", func() bool { ok, _ := p.c.Ready(); return ok })
	return p
}

// until waits for a state, for at most two hours of the simulation.
func (s *simulation) until(what string, cond func() bool) {
	s.t.Helper()
	for end := time.Now().Add(2 * time.Hour); !cond(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("still not so after two hours: %s", what)
		}
	}
}

// produce appends values to partitions of the packed topic.
func (s *simulation) produce(values map[int][]string) {
	s.t.Helper()
	const batch = 1000
	for partition, all := range values {
		for part := range slices.Chunk(all, batch) {
			records := make([]kafka.Record, len(part))
			for i, value := range part {
				records[i] = kafka.Record{Key: kafka.NewBytes([]byte("key")), Value: kafka.NewBytes([]byte(value)), Time: time.Now()}
			}
			if !s.load.append(partition, records) {
				s.t.Fatal("records not appended")
			}
		}
	}
}

// packedOrder is a packed event.
func packedOrder(shop string, tid int) string {
	return fmt.Sprintf(`{"event_id":"evt-%d","shop_id":%q,"tid":"%d","out_sid":"SF%013d","company_code":"SF"}`, tid, shop, tid, tid)
}

// inTurn deals values to all partitions.
func inTurn(values []string) map[int][]string {
	dealt := map[int][]string{}
	for i, value := range values {
		dealt[i%simPackedPartitions] = append(dealt[i%simPackedPartitions], value)
	}
	return dealt
}

// count returns how many records a topic holds.
func (s *simulation) count(topic string) int {
	s.t.Helper()
	n := 0
	if err := s.kafka.Scan(s.t.Context(), topic, func(*schema.Record) error { n++; return nil }); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// await waits until everything is committed, and checks what was published.
func (s *simulation) await(shipped, failed int) {
	s.t.Helper()
	s.until("everything is committed", func() bool { return s.lag() == 0 })
	if got := s.count(s.settings.TopicShipped); got != shipped {
		s.t.Errorf("%d orders shipped, want %d", got, shipped)
	}
	if got := s.count(s.settings.TopicFailed); got != failed {
		s.t.Errorf("%d orders failed, want %d", got, failed)
	}
}

// callsOf returns the calls that a filter keeps, by their arrival.
func (s *simulation) callsOf(keep func(*upstreamtest.Entry) bool) []upstreamtest.Entry {
	return slices.DeleteFunc(s.api.Journal().Calls(), func(e upstreamtest.Entry) bool { return !keep(&e) })
}

// ratePerSecond is how many calls a second there were, from the first to the last.
func ratePerSecond(calls []upstreamtest.Entry) float64 {
	if len(calls) < 2 {
		return 0
	}
	return float64(len(calls)-1) / calls[len(calls)-1].Arrived.Sub(calls[0].Arrived).Seconds()
}

// TestOutage has the API out of order for a minute while 50 orders wait. Few
// calls are made meanwhile, no order fails, and once an order has found the API
// back the full rate is there within two seconds. That holds for the shortest pause
// of the breaker, too, that the documentation recommends.
func TestOutage(t *testing.T) {
	const silent = upstreamtest.Down("silent")
	for _, tt := range []struct {
		mode  upstreamtest.Down
		pause time.Duration
	}{
		{upstreamtest.Unavailable, 30 * time.Second},
		{upstreamtest.Refusing, 30 * time.Second},
		{silent, 30 * time.Second},
		{upstreamtest.Unavailable, 6 * time.Second},
		{upstreamtest.Refusing, 6 * time.Second},
		{silent, 6 * time.Second},
	} {
		mode := tt.mode
		t.Run(fmt.Sprintf("%s, pause %s", mode, tt.pause), func(t *testing.T) {
			inSimulation(t, nil, func(s *Settings) { s.BreakerOpenFor = tt.pause }, func(s *simulation) {
				const outage, n = time.Minute, 50
				s.startReplica(0)
				s.produce(inTurn([]string{packedOrder("S1", 1)}))
				s.await(1, 0)

				before := s.api.Stats().Calls
				if mode == silent {
					s.api.AddFault(upstreamtest.Fault{Kind: upstreamtest.Hang})
				} else {
					s.api.SetDown(mode)
				}
				var waiting []string
				for i := range n {
					waiting = append(waiting, packedOrder("S1", 100+i))
				}
				s.produce(inTurn(waiting))
				time.Sleep(outage)
				during := s.api.Stats().Calls - before
				s.api.SetDown(upstreamtest.Up)
				s.api.ClearFaults()
				up := time.Now()
				s.await(1+n, 0)

				good := s.callsOf(func(e *upstreamtest.Entry) bool { return e.Row == 1 && e.Arrived.After(up) })
				if len(good) != n {
					s.t.Fatalf("%d good calls after the outage, want %d", len(good), n)
				}
				// The first is the one that finds out.
				back := good[0].Done
				// Orders in doubt wait longer; the rate is that of the others.
				var settled []upstreamtest.Entry
				for _, e := range good {
					if after := e.Arrived.Sub(back); after > 2*time.Second && after < 3500*time.Millisecond {
						settled = append(settled, e)
					}
				}
				rate := ratePerSecond(settled)
				s.t.Logf("outage of %s (%s) with %d orders waiting: %d calls during it, 0 failed; found over after %s, the next call %s later, 2 s later %.2f calls a second",
					outage, mode, n, during, back.Sub(up), good[1].Arrived.Sub(back), rate)
				if during > 15 {
					s.t.Errorf("%d calls during the outage, want at most 15", during)
				}
				if rate < 9.7 {
					s.t.Errorf("%.2f calls a second two seconds after the recovery, want 9.7", rate)
				}
				if found := back.Sub(up); found > s.settings.BreakerOpenFor+5*time.Second {
					s.t.Errorf("the end of the outage was found after %s", found)
				}
			})
		})
	}
}

// TestOutageOfOneOrder has a single order meet an outage. With the defaults it has
// no retries left before the breaker has seen enough faults; if that opens first, the
// order waits for the end, as the documentation says.
func TestOutageOfOneOrder(t *testing.T) {
	for _, tt := range []struct {
		mode     upstreamtest.Down
		failures int
		waits    bool
	}{
		{upstreamtest.Unavailable, 5, false},
		{upstreamtest.Unavailable, 3, true},
		{upstreamtest.Refusing, 5, true},
	} {
		t.Run(fmt.Sprintf("%s, %d faults", tt.mode, tt.failures), func(t *testing.T) {
			inSimulation(t, nil, func(s *Settings) { s.BreakerFailures = tt.failures }, func(s *simulation) {
				s.startReplica(0)
				s.api.SetDown(tt.mode)
				s.produce(inTurn([]string{packedOrder("S1", 1)}))
				if tt.waits {
					time.Sleep(10 * time.Minute)
					s.api.SetDown(upstreamtest.Up)
					s.await(1, 0)
					return
				}
				s.await(0, 1)
				err := s.kafka.Scan(s.t.Context(), s.settings.TopicFailed, func(rec *schema.Record) error {
					var failed schema.Result
					err := json.Unmarshal(rec.Value, &failed)
					if err == nil && (failed.Reason != "outcome_unknown" || !failed.MaybeShipped) {
						s.t.Errorf("it fails as %s, which may be shipped: %t", failed.Reason, failed.MaybeShipped)
					}
					return err
				})
				if err != nil {
					s.t.Error(err)
				}
			})
		})
	}
}

// TestAccountsShareAPartition has twenty accounts, of which one is halted, one
// meets an outage and one is throttled, each with more orders in front of the
// others than the window of a partition holds. Each other account has its own
// rate; once all is repaired every order is shipped.
func TestAccountsShareAPartition(t *testing.T) {
	const accounts, broken, rate = 20, 3, 5.0
	const each, inFront = 150, 1200 // orders of a good account and of a broken one
	name := func(i int) string { return fmt.Sprintf("account-%02d", i) }
	token := func(i int) string { return fmt.Sprintf("token-%02d", i) }
	shop := func(i int) string { return fmt.Sprintf("shop-%02d", i) }
	dir := t.TempDir()
	var file strings.Builder
	file.WriteString("accounts:\n")
	for i := range accounts {
		path := filepath.Join(dir, token(i))
		if err := os.WriteFile(path, []byte(token(i)), 0o600); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&file, "  - {name: %s, token_file: %s, rate_per_second: %g, shops: [%s]}\n", name(i), path, rate, shop(i))
	}
	list := filepath.Join(dir, "accounts.yaml")
	if err := os.WriteFile(list, []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	inSimulation(t, func(o *upstreamtest.Options) {
		o.Accounts = nil
		for i := range accounts {
			o.Accounts = append(o.Accounts, upstreamtest.Account{Name: name(i), Token: token(i)})
		}
		o.Accounts[0].Token = "another"
		o.Faults = []upstreamtest.Fault{
			{Kind: upstreamtest.HTTPStatus(503), Token: token(1)},
			{Kind: upstreamtest.YiiError(429), Token: token(2)},
		}
	}, func(s *Settings) {
		s.UpstreamToken, s.AccountsFile = "", list
	}, func(s *simulation) {
		var front, rest []string
		for n := range inFront {
			for i := range broken {
				front = append(front, packedOrder(shop(i), 1_000_000*(i+1)+n))
			}
		}
		for n := range each {
			for i := broken; i < accounts; i++ {
				rest = append(rest, packedOrder(shop(i), 1_000_000*(i+1)+n))
			}
		}
		s.produce(inTurn(front))
		s.produce(inTurn(rest))
		p := s.startReplica(0)
		const good = (accounts - broken) * each
		s.until("the good accounts' orders are shipped", func() bool { return p.c.Status().Counts.Shipped >= good })
		took := time.Now()

		slowest, fastest := rate, 0.0
		for i := broken; i < accounts; i++ {
			calls := s.callsOf(func(e *upstreamtest.Entry) bool { return e.Token == token(i) })
			got := ratePerSecond(calls)
			slowest, fastest = min(slowest, got), max(fastest, got)
			if len(calls) != each || got < 0.97*rate || got > rate {
				s.t.Errorf("%s: %d calls, %.3f a second; want %d within 3 %% of %g", name(i), len(calls), got, each, rate)
			}
		}
		var wasted [broken]int
		for i := range broken {
			wasted[i] = len(s.callsOf(func(e *upstreamtest.Entry) bool { return e.Token == token(i) }))
		}
		s.t.Logf("%d accounts at %g calls a second, %d orders of three broken ones in front: the others made %.2f to %.2f calls a second, the halted one %d calls, the one in an outage %d, the throttled one %d",
			accounts, rate, len(front), slowest, fastest, wasted[0], wasted[1], wasted[2])
		if wasted[0] > 20 || wasted[1] > 20 {
			s.t.Errorf("%d calls of the halted account and %d during the outage, want a few", wasted[0], wasted[1])
		}
		states := map[string]string{}
		for _, a := range p.c.Status().Accounts[:broken] {
			states[a.Name] = a.State
		}
		if states[name(0)] != "halted" || states[name(1)] != "paused" {
			s.t.Errorf("states %v, want the first halted and the second paused", states)
		}

		s.api.ClearFaults()
		if err := s.api.SetToken(name(0), token(0)); err != nil {
			s.t.Fatal(err)
		}
		p.c.api.Resume(name(0))
		s.await(good+len(front), 0)
		s.t.Logf("repaired, and the rest was shipped in %s", time.Since(took).Round(time.Second))
	})
}

// TestShopsShareAnAccount has five shops, of which one is not authorised and has
// more orders in front of the others than the window holds. The account keeps
// its rate; once the shop is repaired its orders follow.
func TestShopsShareAnAccount(t *testing.T) {
	const each, inFront = 100, 3300
	inSimulation(t, func(o *upstreamtest.Options) {
		o.Shops = []upstreamtest.Shop{{ID: "S0", Unauthorised: true}}
	}, nil, func(s *simulation) {
		var front, rest []string
		for n := range inFront {
			front = append(front, packedOrder("S0", 1+n))
		}
		for n := range each {
			for i := range 4 {
				rest = append(rest, packedOrder(fmt.Sprintf("S%d", i+1), 1_000_000*(i+1)+n))
			}
		}
		s.produce(inTurn(front))
		s.produce(inTurn(rest))
		p := s.startReplica(0)
		s.until("the other shops' orders are shipped", func() bool { return p.c.Status().Counts.Shipped >= 4*each })
		parked := s.callsOf(func(e *upstreamtest.Entry) bool { return e.Shipment.ShopID == "S0" })
		rate := ratePerSecond(s.callsOf(func(e *upstreamtest.Entry) bool { return e.Shipment.ShopID != "S0" }))
		s.t.Logf("five shops, %d orders of the parked one in front: the others made %.2f calls a second of 10, the parked one %d calls", inFront, rate, len(parked))
		if rate < 9.7 || len(parked) > 5 {
			s.t.Errorf("%.2f calls a second, %d calls of the parked shop; want 9.7, and a few", rate, len(parked))
		}
		if err := s.api.Authorise("S0"); err != nil {
			s.t.Fatal(err)
		}
		p.c.api.Unpark("S0")
		s.await(inFront+4*each, 0)
	})
}

// TestSlowTimer leaves a halted account and a parked shop to themselves. After a
// while each is tried with one order, however many wait; a try in vain is the
// only one until the next, and a good one lets the others go.
func TestSlowTimer(t *testing.T) {
	const n = 30
	for name, tt := range map[string]struct {
		broken, repair func(*simulation) error
		held           func(*simProcess) bool
	}{
		"account": {
			func(s *simulation) error { return s.api.SetToken(simAccount, "another") },
			func(s *simulation) error { return s.api.SetToken(simAccount, simToken) },
			func(p *simProcess) bool { return p.c.Status().Accounts[0].State == "halted" },
		},
		"shop": {
			func(s *simulation) error { return s.api.Unauthorise("S1") },
			func(s *simulation) error { return s.api.Authorise("S1") },
			func(p *simProcess) bool { return len(p.c.Status().ParkedShops) == 1 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			inSimulation(t, nil, nil, func(s *simulation) {
				s.api.AddShop(upstreamtest.Shop{ID: "S1"})
				if err := tt.broken(s); err != nil {
					s.t.Fatal(err)
				}
				p := s.startReplica(0)
				var waiting []string
				for i := range n {
					waiting = append(waiting, packedOrder("S1", 1+i))
				}
				s.produce(inTurn(waiting))
				s.until("it is held", func() bool { return tt.held(p) })
				time.Sleep(10 * time.Second)
				before := s.api.Stats().Calls
				begin := time.Now()
				s.until("it is tried", func() bool { return s.api.Stats().Calls > before })
				rest := time.Since(begin)
				time.Sleep(5 * time.Minute)
				if got := s.api.Stats().Calls - before; got != 1 || !tt.held(p) {
					s.t.Errorf("%d calls, held %t; want one try in vain", got, tt.held(p))
				}
				if rest < 9*time.Minute || rest > 11*time.Minute {
					s.t.Errorf("tried after %s, want about ten minutes", rest)
				}
				if err := tt.repair(s); err != nil {
					s.t.Fatal(err)
				}
				s.await(n, 0)
				calls := s.api.Journal().Calls()[before+1:]
				if len(calls) != n || calls[1].Arrived.Before(calls[0].Done) {
					s.t.Errorf("%d calls after the repair, the second %s after the first was answered; want %d, and one alone at first", len(calls), calls[1].Arrived.Sub(calls[0].Done), n)
				}
				s.t.Logf("%s held with %d orders waiting: %d calls before, tried after %s with one, after the repair %d calls", name, n, before, rest.Round(time.Second), len(calls))
			})
		})
	}
}

// TestParkedShopInFront has 100,000 orders of a parked shop in front of others in
// the same partition. They do not stop the others, and cost little memory.
func TestParkedShopInFront(t *testing.T) {
	if testing.Short() {
		t.Skip("packs 100,000 orders")
	}
	const inFront, rest = 100_000, 300
	inSimulation(t, func(o *upstreamtest.Options) {
		o.Shops = []upstreamtest.Shop{{ID: "S0", Unauthorised: true}}
	}, nil, func(s *simulation) {
		var front, others []string
		for n := range inFront {
			front = append(front, packedOrder("S0", 1+n))
		}
		for n := range rest {
			others = append(others, packedOrder("S1", 1_000_000+n))
		}
		s.produce(map[int][]string{0: append(front, others...)})
		before := heap()
		begin := time.Now()
		p := s.startReplica(0)
		s.until("the other shop's orders are shipped", func() bool { return p.c.Status().Counts.Shipped >= rest })
		took, grown := time.Since(begin), heap()-before
		calls := s.callsOf(func(e *upstreamtest.Entry) bool { return e.Shipment.ShopID == "S1" })
		parked := len(s.api.Journal().Calls()) - len(calls)
		s.t.Logf("%d orders of a parked shop in front of %d others: those were shipped in %s at %.2f calls a second of 10, the parked shop cost %d calls, the replica %.1f MiB",
			inFront, rest, took.Round(time.Second), ratePerSecond(calls), parked, float64(grown)/(1<<20))
		if ratePerSecond(calls) < 9.7 || parked > 5 {
			s.t.Errorf("%.2f calls a second and %d calls of the parked shop, want 9.7 and a few", ratePerSecond(calls), parked)
		}
		if grown > 64<<20 {
			s.t.Errorf("the replica holds %d MiB", grown>>20)
		}
		if st := p.c.Status(); len(st.ParkedShops) != 1 || st.Counts.Failed != 0 {
			s.t.Errorf("parked %+v, counts %+v", st.ParkedShops, st.Counts)
		}
	})
}

// heap is the memory in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
