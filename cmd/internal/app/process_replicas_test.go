package app

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"packship/consumer"
	"packship/upstream/upstreamtest"
)

// TestProcessRandomKills kills one of three replicas every few hundred
// milliseconds, whichever it is and whatever it does, and replaces it.
func TestProcessRandomKills(t *testing.T) {
	t.Parallel()
	const rate = 20
	x := newTrial(t, upstreamtest.Options{}, func(s *Settings) {
		s.RatePerSecond = rate
		s.RateJitter = 100 * time.Millisecond // the test shares its machine
	})
	lasts := 10 * time.Second
	if thorough() {
		lasts = 2 * time.Minute
	}
	replicas := []*child{x.run(), x.run(), x.run()}
	replicas[0].await("its first call", func() bool { return x.feed(rate) && x.sim.Stats().Calls > 0 })
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		pause := time.Duration(200+x.rand.IntN(600)) * time.Millisecond
		for next := time.Now().Add(pause); time.Now().Before(next); time.Sleep(10 * time.Millisecond) {
			x.feed(rate)
		}
		i := x.rand.IntN(len(replicas))
		victim := replicas[i]
		victim.signal(syscall.SIGKILL)
		victim.await("its end", victim.gone)
		// The embedded broker drops members that wait to join for longer than
		// a session, so nobody may hold up a rebalance for that long.
		x.mourn(victim, 0)
		replicas[i] = x.run()
	}
	begin, amid := time.Now(), x.sim.Stats().Calls
	replicas[0].await("the end of the lag", x.done)
	took := time.Since(begin)
	for _, c := range replicas {
		c.await("its being ready", func() bool { return c.status().Ready })
		c.stop()
	}
	v := x.judge(terms{})
	peak := x.sim.Stats().MaxInAnySecond
	t.Logf("random kills: %d kills of 3 replicas, %d orders, %d calls (%d amid the kills), %d repeats, %d violations, at most %d calls in a second of %d, lag 0 %s after the last kill (%d calls given up, seed %d)",
		len(x.ends), v.orders, v.calls, amid, v.repeats, len(v.violations), peak, rate, took.Round(time.Millisecond), v.slow, x.seed)
	if peak > rate+rate/2 { // generous: the API shares its processors with the replicas
		t.Errorf("%d calls in a second over all replicas, want at most %d", peak, rate)
	}
}

// feed packs an order if it is time for one, at 90 % of the rate. It always
// returns true, so that it can stand in a condition.
func (x *trial) feed(rate int) bool {
	if now := time.Now(); now.After(x.next) {
		x.pack(1)
		x.next = now.Add(time.Second * 10 / 9 / time.Duration(rate))
	}
	return true
}

// TestProcessFrozen halts the active replica where it hurts, for less and for
// more than a session, lets it go on, and looks whether it does as if nothing
// had happened.
//
// A process that is halted between its last look and the write of the call
// writes it when it wakes up, if it is the case after another has taken over.
// Nothing that it could do before the write would prevent that; it is the one
// case in which a call is repeated without an unknown outcome, once.
func TestProcessFrozen(t *testing.T) {
	t.Parallel()
	pauses := []time.Duration{5 * time.Second, 15 * time.Second}
	if thorough() {
		pauses = append(pauses, 45*time.Second)
	}
	for point, zombies := range map[string]int{"c3": 0, "c4": 1, "c5": 0} {
		for _, pause := range pauses {
			t.Run(fmt.Sprint(point, " ", pause), func(t *testing.T) {
				t.Parallel()
				x := newTrial(t, upstreamtest.Options{})
				x.freeze(point, pause, zombies)
			})
		}
	}
}

func (x *trial) freeze(point string, pause time.Duration, zombies int) {
	active := x.run("CRASH_AT=" + point + ":1:stop")
	active.await("its gate", active.sends)
	standby := x.run()
	standby.await("its being ready", func() bool { return standby.status().Ready })
	x.pack(1)
	active.await("its halt", active.halted)
	frozen := time.Now()
	x.pack(20)
	time.Sleep(pause) // it is the fault, not a wait for something
	before := x.sim.Stats().Calls
	active.signal(syscall.SIGCONT)
	woken := time.Now()
	// Whatever was open in the frozen process has an unknown outcome.
	x.ends = append(x.ends, frozen, woken)
	standby.await("the end of the lag", x.done)
	caught := time.Since(woken)
	active.await("its being ready", func() bool { return active.status().Ready })
	active.stop()
	standby.stop()
	v := x.judge(terms{zombies: zombies})
	x.t.Logf("frozen at %s for %s: %d orders, %d calls, %d repeats, %d violations; %d calls were made meanwhile, lag 0 %s after (%d calls given up, seed %d)",
		point, pause, v.orders, v.calls, v.repeats, len(v.violations), before, caught.Round(time.Millisecond), v.slow, x.seed)
	if limit := map[string]int{"c3": 0, "c4": 1, "c5": 1}[point]; v.repeats-v.slow > limit {
		x.t.Errorf("%d calls repeated without having been given up, want at most %d", v.repeats-v.slow, limit)
	}
}

// TestProcessFrozenAmidCalls halts the active replica, again and again, while it
// has orders enough: then it is most likely waiting for the next place in the
// rate, and with it an order that it has claimed already.
func TestProcessFrozenAmidCalls(t *testing.T) {
	t.Parallel()
	const rate = 10
	x := newTrial(t, upstreamtest.Options{}, func(s *Settings) {
		s.RatePerSecond = rate
		s.RateJitter = 100 * time.Millisecond // the test shares its machine
	})
	rounds := 2
	if thorough() {
		rounds = 12
	}
	active := x.run()
	active.await("its gate", active.sends)
	standby := x.run()
	standby.await("its being ready", func() bool { return standby.status().Ready })
	for range rounds {
		before := x.sim.Stats().Calls
		x.pack(5 * rate)
		active.await("some calls", func() bool { return x.sim.Stats().Calls >= before+rate })
		active.signal(syscall.SIGSTOP)
		x.ends = append(x.ends, time.Now())
		standby.await("its taking over", func() bool {
			return standby.status().Role == consumer.RoleActive && x.sim.Stats().Calls >= before+2*rate
		})
		active.signal(syscall.SIGCONT)
		active.await("its standing by", func() bool { return active.status().Role == consumer.RoleStandby })
		active, standby = standby, active
	}
	active.await("the end of the lag", x.done)
	active.stop()
	standby.stop()
	v := x.judge(terms{})
	peak := x.sim.Stats().MaxInAnySecond
	t.Logf("frozen amid calls: %d times, %d orders, %d calls, %d repeats, %d violations, at most %d calls in a second of %d (%d calls given up, seed %d)",
		rounds, v.orders, v.calls, v.repeats, len(v.violations), peak, rate, v.slow, x.seed)
	if v.repeats-v.slow > rounds*rate { // usually one, but a busy machine may be a second behind with what it writes down
		t.Errorf("%d calls repeated without having been given up, want at most those that were under way each time", v.repeats-v.slow)
	}
}

// halted reports whether the process is stopped by a signal.
func (c *child) halted() bool {
	c.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	// The state follows the name, which stands in parentheses.
	_, after, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(after, "T")
}

// TestProcessTerm tells a process to stop amid calls, again and again: none
// begins later, those under way are answered, written down and published, the
// exit code is 0, and the next process repeats nothing.
func TestProcessTerm(t *testing.T) {
	t.Parallel()
	x := newTrial(t, upstreamtest.Options{Latency: upstreamtest.Latency{Median: 500 * time.Millisecond, P99: time.Second}}, func(s *Settings) {
		s.RatePerSecond = 20
		s.UpstreamTimeout = 10 * time.Second
	})
	rounds := 3
	if thorough() {
		rounds = 30
	}
	var late, took []time.Duration
	flying := 0
	for range rounds {
		x.pack(40)
		seen := x.sim.Stats().Calls
		c := x.run()
		c.await("calls under way", func() bool { return x.sim.Stats().Calls >= seen+10 })
		flying += x.sim.Stats().InFlight
		told := time.Now()
		took = append(took, c.stop())
		if n := x.sim.Stats().InFlight; n > 0 {
			t.Errorf("%d calls were cut off", n)
		}
		calls := x.sim.Journal().Calls()
		late = append(late, calls[len(calls)-1].Arrived.Sub(told))
		if ids := x.identities(); len(ids) != x.sim.Stats().Shipments {
			t.Errorf("%d results for %d orders that were called for", len(ids), x.sim.Stats().Shipments)
		}
	}
	x.finish()
	v := x.judge(terms{})
	t.Logf("SIGTERM: %d times, %d calls under way, %d orders, %d calls, %d repeats, %d violations; last call %s after the signal at most (200ms is the contract), stopped after %s at most (seed %d)",
		rounds, flying, v.orders, v.calls, v.repeats, len(v.violations), slices.Max(late).Round(time.Millisecond), slices.Max(took).Round(time.Millisecond), x.seed)
	if v.repeats > 0 {
		t.Errorf("%d calls repeated, want none", v.repeats)
	}
	if worst := slices.Max(late); worst > time.Second { // generous: the machine may be busy
		t.Errorf("a call arrived %s after SIGTERM", worst)
	}
}

// TestProcessTermCutOff stops a process that has less time than its calls take.
// It says so, and says in the ledger which of its attempts are open: nobody
// repeats those before they can no longer take effect.
func TestProcessTermCutOff(t *testing.T) {
	t.Parallel()
	x := newTrial(t, upstreamtest.Options{Latency: upstreamtest.Latency{Fixed: 1800 * time.Millisecond}}, func(s *Settings) {
		s.UpstreamTimeout, s.ShutdownTimeout = 2*time.Second, time.Second
	})
	x.pack(20)
	first := x.run()
	first.await("calls under way", func() bool { return x.sim.Stats().InFlight >= 3 })
	first.signal(syscall.SIGTERM)
	first.await("its end", first.gone)
	if code := first.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d after a stop that was too short, want 1:\n%s", code, first.tail())
	}
	cut := x.sim.Stats().Calls
	x.ends = append(x.ends, first.at)
	x.settings.ShutdownTimeout = 15 * time.Second
	x.finish()
	v := x.judge(terms{})
	t.Logf("SIGTERM without time: %d calls cut off, %d orders, %d calls, %d repeats, %d violations (seed %d)",
		cut, v.orders, v.calls, v.repeats, len(v.violations), x.seed)
}

// TestProcessRollingRestart replaces three replicas one by one under load.
func TestProcessRollingRestart(t *testing.T) {
	t.Parallel()
	const rate = 20
	x := newTrial(t, upstreamtest.Options{Latency: upstreamtest.Latency{Median: 300 * time.Millisecond, P99: time.Second}}, func(s *Settings) {
		s.RatePerSecond = rate
		s.UpstreamTimeout = 10 * time.Second
	})
	rounds := 1
	if thorough() {
		rounds = 5
	}
	replicas := []*child{x.run(), x.run(), x.run()}
	ready := func(c *child) {
		c.await("its being ready", func() bool { return x.feed(rate) && c.status().Ready })
	}
	for range rounds {
		for i, c := range replicas {
			ready(c)
			calls := x.sim.Stats().Calls
			c.await("calls", func() bool { return x.feed(rate) && x.sim.Stats().Calls >= calls+10 })
			c.signal(syscall.SIGTERM)
			c.await("its end", func() bool { return x.feed(rate) && c.gone() })
			if code := c.cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("exit code %d after SIGTERM, want 0:\n%s", code, c.tail())
			}
			replicas[i] = x.run()
			ready(replicas[i])
		}
	}
	replicas[0].await("the end of the lag", x.done)
	for _, c := range replicas {
		c.stop()
	}
	v := x.judge(terms{})
	t.Logf("rolling restart: %d restarts, %d orders, %d calls, %d repeats, %d violations (seed %d)",
		3*rounds, v.orders, v.calls, v.repeats, len(v.violations), x.seed)
	if v.calls != v.orders {
		t.Errorf("%d calls for %d orders", v.calls, v.orders)
	}
}

// TestProcessHandover measures how long nobody calls when the replicas change.
// The figures are printed. What is asserted is far from them, as the test shares
// its machine.
func TestProcessHandover(t *testing.T) {
	if !thorough() {
		t.Parallel() // where the figures matter, nothing else runs
	}
	const rate = 10
	x := newTrial(t, upstreamtest.Options{Latency: upstreamtest.Latency{Fixed: 1200 * time.Millisecond}}, func(s *Settings) {
		s.RatePerSecond, s.RateJitter = rate, 15*time.Millisecond
		s.UpstreamTimeout = 10 * time.Second
	})
	rounds := 1
	if thorough() {
		rounds = 5
	}
	// There is always more to do than the rate allows.
	work := func() bool {
		x.pack(max(0, 3*rate-(x.packed-x.sim.Stats().Shipments)))
		return true
	}
	active := x.run()
	active.await("its first call", func() bool { return work() && x.sim.Stats().Calls > 0 })
	standBy := func() *child {
		c := x.run()
		c.await("its being a standby", func() bool { return work() && c.status().Role == consumer.RoleStandby })
		return c
	}
	var join, leave, term, kill []time.Duration
	for range rounds {
		begin := time.Now()
		standby := standBy()
		join = append(join, x.gap(active, begin, work))

		begin = time.Now()
		standby.stop()
		leave = append(leave, x.gap(active, begin, work))

		standby = standBy()
		begin = time.Now()
		active.stop()
		term = append(term, x.firstAfter(standby, begin, active.at, work))

		active, standby = standby, standBy()
		begin = time.Now()
		active.signal(syscall.SIGKILL)
		active.await("its end", active.gone)
		x.ends = append(x.ends, active.at)
		kill = append(kill, x.firstAfter(standby, begin, active.at, work))
		active = standby
	}
	active.await("the end of the lag", x.done)
	active.stop()
	v := x.judge(terms{})
	ms := func(d []time.Duration) time.Duration { return slices.Max(d).Round(time.Millisecond) }
	t.Logf("hand-over: %d times each, at most: SIGTERM of the active replica %s (aim 3s), kill -9 %s (aim %s), gap beyond the pacing when a standby joins %s, when it leaves %s (aim 500ms); %d orders, %d calls, %d repeats, %d violations (seed %d)",
		rounds, ms(term), ms(kill), x.settings.KafkaSessionTimeout+3*time.Second, ms(join), ms(leave), v.orders, v.calls, v.repeats, len(v.violations), x.seed)
	for what, figure := range map[string]struct{ got, limit time.Duration }{
		"SIGTERM":               {slices.Max(term), 10 * time.Second},
		"kill -9":               {slices.Max(kill), 20 * time.Second},
		"a standby that joins":  {slices.Max(join), 3 * time.Second},
		"a standby that leaves": {slices.Max(leave), 3 * time.Second},
	} {
		if figure.got > figure.limit {
			t.Errorf("%s: no call for %s", what, figure.got)
		}
	}
}

// gap returns the longest time between two calls since begin and until two
// seconds of calls from now on, less what the pacing asks for.
func (x *trial) gap(c *child, begin time.Time, work func() bool) time.Duration {
	x.t.Helper()
	seen, more := x.sim.Stats().Calls, 2*int(x.settings.RatePerSecond)
	c.await("more calls", func() bool { return work() && x.sim.Stats().Calls >= seen+more })
	var longest time.Duration
	var last time.Time
	for _, call := range x.sim.Journal().Calls() {
		if call.Arrived.After(begin) && !last.IsZero() {
			longest = max(longest, call.Arrived.Sub(last))
		}
		last = call.Arrived
	}
	pacing := time.Duration(float64(time.Second+x.settings.RateJitter) / x.settings.RatePerSecond)
	return max(0, longest-pacing)
}

// firstAfter waits for the first call after a process has ended, and returns how
// long after begin it came.
func (x *trial) firstAfter(c *child, begin, ended time.Time, work func() bool) time.Duration {
	x.t.Helper()
	var first time.Time
	c.await("a call", func() bool {
		calls := x.sim.Journal().Calls()
		i := slices.IndexFunc(calls, func(e upstreamtest.Entry) bool { return e.Arrived.After(ended) })
		if i >= 0 {
			first = calls[i].Arrived
		}
		return work() && i >= 0
	})
	return first.Sub(begin)
}
