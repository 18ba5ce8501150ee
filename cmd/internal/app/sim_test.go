package app

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"packship/schema"
)

// simFlags say how much is simulated. They go behind the package, as
//
//	go test -run Simulation ./cmd/internal/app -sim.hours=20
var simFlags = struct {
	seed   *uint64
	hours  *float64
	runs   *int
	length *time.Duration
	log    *bool
}{
	seed:   flag.Uint64("sim.seed", 1, "first seed of the simulation; alone it runs only this one"),
	hours:  flag.Float64("sim.hours", 0, "simulate at least so many logical hours"),
	runs:   flag.Int("sim.runs", 0, "simulate so many seeds"),
	length: flag.Duration("sim.length", 0, "for how long faults happen in one run"),
	log:    flag.Bool("sim.log", false, "show the logs of all replicas"),
}

// simTotal sums up many simulations.
type simTotal struct {
	first, last uint64

	mu              sync.Mutex // guards the rest
	hours           float64
	seen            map[string]int
	orders          int
	calls, repeats  int
	excused         map[string]int
	lateNews        int
	ambiguous, ends int
	violations      int
}

// TestSimulation lets whole replicas live through faults of all kinds, with
// brokers, network, shipping API and clock simulated, and then compares all
// histories. A seed fixes what is packed and which faults happen when; which
// goroutine runs first it does not fix, so that a seed that has found something
// may have to be run a few times to find it again.
func TestSimulation(t *testing.T) {
	if os.Getenv("PACKSHIP_TEST_BROKERS") != "" {
		t.Skip("the simulation has brokers of its own")
	}
	seeded := false
	flag.Visit(func(f *flag.Flag) { seeded = seeded || f.Name == "sim.seed" })
	length, runs, hours := 8*time.Minute, 3, 0.0
	full := *simFlags.hours > 0 || *simFlags.runs > 0 || seeded
	if testing.Short() {
		runs = 1
	}
	if full {
		length, runs, hours = 30*time.Minute, max(1, *simFlags.runs), *simFlags.hours
	}
	if *simFlags.length > 0 {
		length = *simFlags.length
	}
	total := &simTotal{first: *simFlags.seed, seen: map[string]int{}, excused: map[string]int{}}
	begin := time.Now()
	// A bubble keeps little more than one processor busy.
	side := min(2, runtime.GOMAXPROCS(0))
	for n := 0; n < runs || total.hours < hours; {
		t.Run("side by side", func(t *testing.T) {
			for range side {
				if n == runs && hours == 0 {
					break
				}
				seed := *simFlags.seed + uint64(n)
				total.last = seed
				n++
				t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
					t.Parallel()
					total.run(t, seed, length)
				})
			}
		})
	}
	t.Log(total.summary(time.Since(begin)))
	if hours >= 20 {
		for i := range simFaults {
			if name := simFaults[i].name; total.seen[name] == 0 {
				t.Errorf("no fault of the kind %q took effect", name)
			}
		}
	}
}

// summary is the whole result in one line.
func (total *simTotal) summary(took time.Duration) string {
	count := func(m map[string]int) string {
		var list []string
		for _, name := range slices.Sorted(maps.Keys(m)) {
			list = append(list, fmt.Sprintf("%s %d", name, m[name]))
		}
		return strings.Join(list, ", ")
	}
	faults := 0
	for _, n := range total.seen {
		faults += n
	}
	return fmt.Sprintf("simulation: seeds %d..%d, %.1f logical hours in %s (%.1f per minute), %d faults (%s), %d replicas, %d orders, %d calls, %d repeats, %d of them after an answer that could not be written down (%s) and %d just before news of a success, %d ambiguous, %d violations",
		total.first, total.last, total.hours, took.Round(time.Second), total.hours/took.Minutes(), faults, count(total.seen), total.ends,
		total.orders, total.calls, total.repeats, sum(total.excused), count(total.excused), total.lateNews, total.ambiguous, total.violations)
}

func sum(m map[string]int) int {
	n := 0
	for _, v := range m {
		n += v
	}
	return n
}

// run simulates one seed and adds it up.
func (total *simTotal) run(t *testing.T, seed uint64, length time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &simulation{t: t, seed: seed, profile: newSimProfile(rand.New(rand.NewPCG(seed, 'p')))}
		// All goroutines of the bubble inherit the label.
		pprof.SetGoroutineLabels(pprof.WithLabels(t.Context(), pprof.Labels(simLabel, strconv.FormatUint(seed, 10))))
		s.begin()
		f, err := s.live(length)
		s.end()
		if err != nil {
			t.Fatalf("seed %d: %v\nfaults:\n%s", seed, err, s.history.faultLog(s.history.start, time.Now()))
		}
		// What is found while everything stops counts, too.
		s.mu.Lock()
		f.violations = append(f.violations, s.trouble...)
		s.mu.Unlock()
		total.add(s, f)
		if len(f.violations) > 0 {
			t.Errorf("seed %d: %d violations; again: go test -run 'Simulation' ./cmd/internal/app -sim.seed=%d -sim.length=%s\n%s",
				seed, len(f.violations), seed, length, f.report())
		}
	})
}

func (total *simTotal) add(s *simulation, f *simFindings) {
	total.mu.Lock()
	defer total.mu.Unlock()
	total.hours += time.Since(s.history.start).Hours()
	stats := s.api.Stats()
	for kind, n := range stats.Faults {
		total.seen["api: "+kind] += n
	}
	s.mu.Lock()
	for kind, n := range s.seen {
		total.seen[kind] += n
	}
	total.ends += len(s.processes)
	s.mu.Unlock()
	for kind, n := range f.excused {
		total.excused[kind] += n
	}
	total.orders += s.load.orders
	total.calls += stats.Calls
	total.repeats += stats.Repeats
	total.lateNews += f.lateNews
	total.ambiguous += f.ambiguous
	total.violations += len(f.violations)
}

// live is the life of a simulation: faults, quiet, a backlog, and at the end
// everything once more.
func (s *simulation) live(length time.Duration) (*simFindings, error) {
	ctx := s.t.Context()
	for slot := range s.profile.replicas {
		s.launch(slot)
	}
	packing := make(chan struct{})
	go func() {
		defer close(packing)
		s.load.run()
	}()
	s.torment(length)
	s.history.note("quiet")
	close(s.quiet)
	s.healing.Wait()
	s.api.ClearFaults()
	s.api.SetDown("")
	<-packing
	s.settle()
	s.repair()
	if !s.drained() {
		s.calm = time.Now()
		return s.findings(ctx)
	}
	s.backlog()
	// What is published from here on must not hide what was lost before.
	s.calm = time.Now()
	time.Sleep(time.Second)
	s.replay()
	return s.findings(ctx)
}

// settle sees to it that there is a replica: all of them, one that has lived
// through the faults, or a new one.
func (s *simulation) settle() {
	s.mu.Lock()
	processes := slices.Clone(s.processes)
	s.mu.Unlock()
	for _, p := range processes {
		p.mu.Lock()
		told := p.told
		p.mu.Unlock()
		if told {
			s.awaitEnd(p)
		}
	}
	running := s.running()
	switch s.seed % 3 {
	case 0:
		for slot := range s.profile.replicas {
			s.launch(slot)
		}
	case 1:
		goesOn := map[int]bool{}
		for _, p := range running {
			if group := p.slot % s.profile.groups; goesOn[group] {
				p.tell("only one goes on")
			} else {
				goesOn[group] = true
			}
		}
	case 2:
		for _, p := range running {
			p.tell("a new one goes on")
			s.awaitEnd(p)
		}
	}
	for group := range s.profile.groups {
		if !slices.ContainsFunc(s.running(), func(p *simProcess) bool { return p.slot%s.profile.groups == group }) {
			s.launch(group)
		}
	}
}

// drained waits until everything is committed. What needs a repair waits for a
// slow timer at most.
func (s *simulation) drained() bool {
	const (
		limit      = 3 * time.Hour
		perReplica = 40
		ourOwn     = 20
	)
	for end := time.Now().Add(limit); s.lag() > 0; {
		if time.Now().After(end) {
			s.violate("I10", "", "%d records are left %s after the last fault", s.lag(), limit)
			return false
		}
		time.Sleep(time.Second)
	}
	// Nothing is left to do, so nobody is needed who does it.
	time.Sleep(time.Minute)
	if n := s.countGoroutines(); n > ourOwn+perReplica*len(s.running()) {
		s.violate("I9", "", "%d goroutines with nothing to do, for %d replicas", n, len(s.running()))
	}
	return true
}

// backlog checks I10: once all is well a backlog is worked off at the rate.
func (s *simulation) backlog() {
	const n = 150
	before := len(s.api.Journal().Calls())
	s.load.backlog(n)
	if !s.drained() {
		return
	}
	running := s.running()
	if len(running) == 0 {
		s.violate("I10", "", "no replica runs")
		return
	}
	rate := running[0].c.api.Accounts()[0].Rate
	calls := s.api.Journal().Calls()[before:]
	if len(calls) < n {
		s.violate("I10", "", "%d calls for %d orders", len(calls), n)
		return
	}
	took := calls[n-1].Arrived.Sub(calls[0].Arrived)
	if got := (n - 1) / took.Seconds(); got < 0.95*rate {
		s.violate("I10", "", "a backlog was worked off at %.2f calls a second, %.2f are allowed", got, rate)
	}
}

// replay checks that reading everything again causes no call.
func (s *simulation) replay() {
	before := s.api.Stats().Calls
	if !s.goBack(func(int64) int64 { return 0 }) {
		s.violate("simulation", "", "the group could not be moved back")
		return
	}
	for group := range s.profile.groups {
		s.launch(group)
	}
	if !s.drained() {
		return
	}
	if calls := s.api.Stats().Calls - before; calls != 0 {
		s.violate("I3", "", "%d calls when everything was read again", calls)
	}
}

// TestSimulationJudgesTheLastWord gives the judge of I5 results of one event in
// all orders.
func TestSimulationJudgesTheLastWord(t *testing.T) {
	const failed, shipped = schema.Failed, schema.Shipped
	for _, tt := range []struct {
		results []schema.Verdict
		wrong   bool
	}{
		{[]schema.Verdict{failed, failed}, false},
		{[]schema.Verdict{failed, shipped}, false},
		{[]schema.Verdict{shipped, failed, shipped}, false},
		{[]schema.Verdict{shipped, failed}, true},
		{[]schema.Verdict{failed, shipped, failed}, true},
	} {
		f := &simFindings{s: &simulation{history: newSimHistory()}}
		for _, verdict := range tt.results {
			r := &simResult{replyTo: "evt-1"}
			r.TID, r.Key, r.Status, r.ResultID = "1", []byte("1"), verdict, string(verdict)
			r.Headers = []schema.Header{{Key: "ce_id", Value: []byte(verdict)}}
			f.results = append(f.results, r)
		}
		f.identity()
		if wrong := len(f.violations) > 0; wrong != tt.wrong {
			t.Errorf("%v: %d violations %v", tt.results, len(f.violations), f.violations)
		}
	}
}
