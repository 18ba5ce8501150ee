package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"packship/consumer"
	"packship/upstream/upstreamtest"
)

const (
	simSlots            = 3 // places in which a replica may run
	simBrokers          = 3
	simPackedPartitions = 4 // enough for two replicas to share them
	simLedgerPartitions = 2
	simToken            = "sim-token"
	simAccount          = "default"
	simFirstPort        = 9092
	simAPI              = "api.example:80"
	simTestClient       = "test" // as the brokers know it
	simLabel            = "simulation"
)

// simProfile is what a seed decides once.
type simProfile struct {
	session, timeout, settle time.Duration
	park                     bool
	latency                  upstreamtest.Latency
	kafkaLatency, apiLatency time.Duration // at most
	replicas                 int
	// groups is in how many consumer groups they are. More than one is a
	// mistake of somebody who deploys: each group has an active replica, and
	// only the ledger stands between them.
	groups int
	// spread has the replicas of a group share its partitions and its rate.
	spread bool
	gap    time.Duration // between faults, on average
	idle   time.Duration // between bursts of orders, on average
	burst  int           // orders of a burst, at most
}

func newSimProfile(r *rand.Rand) simProfile {
	p := simProfile{
		session: pick(r, 6*time.Second, 10*time.Second),
		timeout: 6 * time.Second, settle: 8 * time.Second,
		park: r.IntN(5) == 0,
		latency: pick(r, upstreamtest.VendorLatency, upstreamtest.VendorLatency,
			upstreamtest.Latency{Fixed: 1200 * time.Millisecond}, upstreamtest.Latency{Fixed: 100 * time.Millisecond}),
		replicas: 2 + r.IntN(2),
		groups:   1,
		gap:      pick(r, 12*time.Second, 25*time.Second, 50*time.Second),
		idle:     pick(r, 30*time.Second, 60*time.Second, 120*time.Second),
		burst:    pick(r, 15, 40, 40, 120, 120),
	}
	if r.IntN(10) == 0 {
		// More than a replica keeps in memory of one partition.
		p.burst, p.idle = 2500, 8*time.Minute
	}
	if r.IntN(3) == 0 {
		p.timeout, p.settle = 15*time.Second, 30*time.Second
	}
	if r.IntN(2) == 0 {
		p.kafkaLatency = 8 * time.Millisecond
	}
	if r.IntN(4) == 0 {
		p.groups = 2
	}
	if r.IntN(2) == 0 {
		p.apiLatency = 14 * time.Millisecond // the pacing absorbs 15 by default
	}
	p.spread = r.IntN(4) == 0
	return p
}

func (p simProfile) String() string {
	return fmt.Sprintf("session %s, call %s, settle %s, park %t, api latency %+v, network %s and %s, %d replicas in %d groups, spread %t, fault every %s, up to %d orders every %s",
		p.session, p.timeout, p.settle, p.park, p.latency, p.kafkaLatency, p.apiLatency, p.replicas, p.groups, p.spread, p.gap, p.burst, p.idle)
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// around draws a time with a mean and an exponential distribution, bounded.
func around(r *rand.Rand, mean time.Duration) time.Duration {
	return min(time.Duration(r.ExpFloat64()*float64(mean)), 6*mean)
}

// between draws a time from a range.
func between(r *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)+1))
}

// simulation is one run: brokers, the shipping API and whole replicas in one
// bubble.
type simulation struct {
	t        *testing.T
	seed     uint64
	profile  simProfile
	settings Settings
	// api and settings may be changed before they are used.
	changeAPI func(*upstreamtest.Options)
	change    func(*Settings)

	network *simNetwork
	cluster *kfake.Cluster
	api     *upstreamtest.Simulator
	kafka   *Kafka // the test's own connection
	history *simHistory
	quiet   chan struct{} // closed after the last fault
	over    chan struct{} // closed when all replicas have ended
	healing sync.WaitGroup
	load    *simLoad

	mu        sync.Mutex
	processes []*simProcess // all that ever ran
	slots     [simSlots]*simProcess
	down      map[int32]bool // brokers
	seen      map[string]int // faults by kind that took effect
	trouble   []simViolation // found while it runs
	era       int
	calm      time.Time // when everything was committed for the first time after the faults
	paused    bool      // no replica may start
}

// simProcess is one replica from its start to its end.
type simProcess struct {
	slot       int
	name       string
	c          *Connector
	kafka, api *simLink
	stop       context.CancelCauseFunc
	done       chan struct{} // closed when it has ended

	mu        sync.Mutex
	err       error // that Run has returned
	told      bool  // to stop
	dead      time.Time
	impaired  []simImpairment
	cuts      []time.Time // guarded by mu; of the connections to the API
	unhealthy []string    // log lines that must not be
}

// simImpairment is a time in which a process could not do all that it should.
type simImpairment struct {
	from, to time.Time // to is zero while it lasts
	what     string
}

// begin makes the world of a simulation.
func (s *simulation) begin() {
	s.quiet = make(chan struct{})
	s.down = map[int32]bool{}
	s.seen = map[string]int{}
	s.network = newSimNetwork(s.seed)
	s.history = newSimHistory()
	var ports []int
	for i := range simBrokers {
		ports = append(ports, simFirstPort+i)
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(simBrokers), kfake.Ports(ports...), kfake.ListenFn(s.history.listen(s.network.listen, s.currentEra)))
	if err != nil {
		s.t.Fatal(err)
	}
	s.cluster = cluster
	options := upstreamtest.Options{
		Seed: s.seed, AutoCreate: true, Latency: s.profile.latency, Rate: upstreamtest.Rate{PerSecond: 10},
		Accounts: []upstreamtest.Account{{Name: simAccount, Token: simToken}},
		// Row 26, the other answer to an order on hold, is also an answer to one
		// that is shipped: nobody could tell what became of a call for it.
		Switches: upstreamtest.Switches{OnHoldRow: 14},
	}
	if s.changeAPI != nil {
		s.changeAPI(&options)
	}
	s.api = upstreamtest.New(options)
	if _, err := s.api.StartFunc(func() (net.Listener, error) { return s.network.listen("tcp", simAPI) }); err != nil {
		s.t.Fatal(err)
	}

	s.settings = Defaults()
	set := &s.settings
	set.KafkaBrokers = cluster.ListenAddrs()
	set.KafkaSessionTimeout = s.profile.session
	set.UpstreamURL, set.UpstreamToken = "http://"+simAPI+upstreamtest.SendPath, simToken
	set.UpstreamTimeout, set.UpstreamSettle = s.profile.timeout, s.profile.settle
	if s.profile.park {
		set.UnknownPolicy = "park"
	}
	if s.profile.spread {
		set.Assignment = "spread"
	}
	set.LedgerPartitions = simLedgerPartitions
	set.RatePerSecond /= float64(s.profile.groups)
	if s.change != nil {
		s.change(set)
	}
	if problems := set.check(PartAll, nil); len(problems) > 0 {
		s.t.Fatal(problems)
	}
	own := *set
	own.KafkaClientID = simTestClient
	s.kafka = NewKafka(&own, s.network.link(simTestClient, 0).dial, set.Topics()...)
	if err := s.kafka.Connect(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.kafka.CreateTopics(s.t.Context(), simPackedPartitions, simBrokers); err != nil {
		s.t.Fatal(err)
	}
	s.load = newSimLoad(s)
	s.over = make(chan struct{})
	for _, group := range s.groups() {
		go s.free(group)
	}
}

// end stops everything, so that the bubble can end, too.
func (s *simulation) end() {
	s.mu.Lock()
	processes := slices.Clone(s.processes)
	s.mu.Unlock()
	for _, p := range processes {
		p.tell("the simulation ends")
	}
	for _, p := range processes {
		s.awaitEnd(p)
	}
	close(s.over)
	if err := s.api.Close(); err != nil {
		s.violate("I9", "", "the simulated API did not close: %v", err)
	}
	s.kafka.Close()
	s.cluster.Close()
	// What is left of connections ends by its own time limits.
	time.Sleep(2 * time.Minute)
}

// free ends rebalances that the embedded brokers would never end, until the
// simulation does. They forget to expect a sign of life from a member whose
// connection broke while it was answered, and begin to wait anew for such a ghost
// with every member that joins. Brokers of Kafka do neither.
func (s *simulation) free(group string) {
	const every, patience = 10 * time.Second, 6
	for epoch, stuck := int32(0), 0; ; {
		select {
		case <-s.over:
			return
		case <-time.After(every):
		}
		info := s.cluster.GroupInfo(group)
		if info == nil || info.State != "PreparingRebalance" || info.Epoch != epoch {
			stuck = 0
		}
		if info == nil {
			continue
		}
		epoch = info.Epoch
		if stuck++; stuck < patience {
			continue
		}
		stuck = 0
		var members []kafka.LeaveGroupRequestMember
		for _, m := range info.Members {
			members = append(members, kafka.LeaveGroupRequestMember{ID: m.MemberID})
		}
		// If it is not answered there is a next time.
		_, err := s.kafka.Client.LeaveGroup(context.Background(), &kafka.LeaveGroupRequest{GroupID: group, Members: members})
		s.history.note("the members of %s were removed, which waited for a ghost: %v", group, err)
	}
}

func (s *simulation) currentEra() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.era
}

// launch starts a replica in a slot that is free.
func (s *simulation) launch(slot int) *simProcess {
	s.mu.Lock()
	if s.slots[slot] != nil || s.paused {
		s.mu.Unlock()
		return nil
	}
	name := fmt.Sprintf("r%d-%d", slot, len(s.processes)+1)
	p := &simProcess{
		slot: slot, name: name, done: make(chan struct{}),
		kafka: s.network.link(name, s.profile.kafkaLatency),
		api:   s.network.link(name, s.profile.apiLatency),
	}
	p.kafka.frames = true
	s.processes = append(s.processes, p)
	s.slots[slot] = p
	s.mu.Unlock()

	set := s.settings
	set.KafkaClientID = name // so that the brokers know who is who
	set.KafkaGroupID = s.groups()[slot%s.profile.groups]
	var handler slog.Handler = &simLog{process: p}
	if *simFlags.log {
		handler = simTee{handler, slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})}
	}
	c, err := New(set, Options{
		Logger: slog.New(handler).With("replica", name), KafkaDial: p.kafka.dial, UpstreamDial: p.api.dial,
		Listen: func(context.Context, string, string) (net.Listener, error) {
			return &simListener{network: s.network, backlog: make(chan net.Conn), closed: make(chan struct{})}, nil
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	p.c = c
	ctx, cancel := context.WithCancelCause(context.Background())
	p.stop = cancel
	go func() {
		defer close(p.done)
		err := c.Run(ctx)
		p.mu.Lock()
		p.err = err
		told := p.told
		if p.dead.IsZero() {
			p.dead = time.Now()
		}
		p.mu.Unlock()
		s.mu.Lock()
		if s.slots[slot] == p {
			s.slots[slot] = nil
		}
		s.mu.Unlock()
		if !told {
			s.violate("I1", "", "replica %s has ended by itself: %v", name, err)
		}
	}()
	return p
}

// tell tells a process to stop.
func (p *simProcess) tell(why string) {
	p.mu.Lock()
	p.told = true
	p.mu.Unlock()
	p.stop(errors.New(why))
}

// crash ends a process as kill -9 does: its connections break, and whatever it
// still does reaches nobody.
func (s *simulation) crash(p *simProcess) {
	p.mu.Lock()
	if p.dead.IsZero() {
		p.dead = time.Now()
	}
	p.mu.Unlock()
	p.kafka.set(linkState{refuse: true})
	p.api.set(linkState{refuse: true})
	p.tell("crash")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slots[p.slot] == p {
		s.slots[p.slot] = nil
	}
}

// awaitEnd waits for a process that was told to stop. The limit is far above
// all that a stop may take.
func (s *simulation) awaitEnd(p *simProcess) {
	const limit = 10 * time.Minute
	select {
	case <-p.done:
	case <-time.After(limit):
		buf := make([]byte, 1<<20)
		s.t.Fatalf("replica %s has not stopped within %s\n%s", p.name, limit, buf[:runtime.Stack(buf, true)])
	}
}

// running returns the processes that run, the active one first.
func (s *simulation) running() []*simProcess {
	s.mu.Lock()
	var list []*simProcess
	for _, p := range s.slots {
		if p != nil {
			list = append(list, p)
		}
	}
	s.mu.Unlock()
	slices.SortStableFunc(list, func(a, b *simProcess) int { return a.standing() - b.standing() })
	return list
}

func (p *simProcess) standing() int {
	if p.c.Status().Role == consumer.RoleActive {
		return 0
	}
	return 1
}

// impair notes that something keeps the process from its work, until the
// returned function is called.
func (p *simProcess) impair(what string) (over func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := len(p.impaired)
	p.impaired = append(p.impaired, simImpairment{from: time.Now(), what: what})
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.impaired[i].to = time.Now()
	}
}

// apiCut notes that the process's connections to the API are cut now.
func (p *simProcess) apiCut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cuts = append(p.cuts, time.Now())
}

// missed says why the process may not have heard an answer that the API gave: its
// connection was cut while the answer was on its way, or its time was up.
func (p *simProcess) missed(c *simCall, timeout time.Duration) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range p.cuts {
		if !at.Before(c.Done) && !at.After(c.Done.Add(simSlack)) {
			return "cut off on the way"
		}
	}
	if c.Done.Sub(c.Arrived) > timeout-simSlack {
		return "just too late"
	}
	return ""
}

// excuse returns what kept the process from its work at some time between two
// times, "" if nothing did.
func (p *simProcess) excuse(from, to time.Time) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.dead.IsZero() && p.dead.Before(to) {
		return "ended"
	}
	for _, i := range p.impaired {
		if i.from.Before(to) && (i.to.IsZero() || i.to.After(from)) {
			return i.what
		}
	}
	return ""
}

// groups are the names of the consumer groups.
func (s *simulation) groups() []string {
	return []string{s.settings.KafkaGroupID, s.settings.KafkaGroupID + "-again"}[:s.profile.groups]
}

// lag is how far the groups are behind the ends of the packed topic.
func (s *simulation) lag() int64 {
	var lag int64
	for _, group := range s.groups() {
		info := s.cluster.GroupInfo(group)
		for p := range int32(simPackedPartitions) {
			end := s.cluster.PartitionInfo(s.settings.TopicPacked, p).HighWatermark
			var committed int64
			if info != nil {
				committed = max(0, info.Commits[s.settings.TopicPacked][p].Offset)
			}
			lag += end - committed
		}
	}
	return lag
}

// simLog is the log of a process, of which only what must not be is kept.
type simLog struct{ process *simProcess }

func (*simLog) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelError }

func (l *simLog) Handle(_ context.Context, r slog.Record) error {
	for _, bad := range []string{"ledger damaged", "order held up", "record not settled", "offsets skipped"} {
		if strings.HasPrefix(r.Message, bad) {
			var b strings.Builder
			b.WriteString(r.Message)
			r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&b, " %s", a); return true })
			l.process.mu.Lock()
			l.process.unhealthy = append(l.process.unhealthy, b.String())
			l.process.mu.Unlock()
		}
	}
	return nil
}

func (l *simLog) WithAttrs([]slog.Attr) slog.Handler { return l }

func (l *simLog) WithGroup(string) slog.Handler { return l }

// simTee is two logs in one.
type simTee [2]slog.Handler

func (simTee) Enabled(context.Context, slog.Level) bool { return true }

func (t simTee) Handle(ctx context.Context, r slog.Record) error {
	for _, h := range t {
		if h.Enabled(ctx, r.Level) {
			if err := h.Handle(ctx, r.Clone()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t simTee) WithAttrs(a []slog.Attr) slog.Handler {
	return simTee{t[0].WithAttrs(a), t[1].WithAttrs(a)}
}

func (t simTee) WithGroup(name string) slog.Handler {
	return simTee{t[0].WithGroup(name), t[1].WithGroup(name)}
}
