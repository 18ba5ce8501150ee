package app

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/schema"
	"packship/upstream/upstreamtest"
)

// The tests in the process_ files run the real binary and do to it what only a
// process can suffer. How thoroughly is for the caller to say:
//
//	go test -v -run Process -crash.kills 50 ./cmd/internal/app
var (
	crashKills = flag.Int("crash.kills", 2, "kills at every crash point; with 50 or more, the other tests of processes are longer as well")
	crashSeed  = flag.Uint64("crash.seed", 0, "seed of these tests; 0 draws one")
)

// thorough reports whether a long run is asked for.
func thorough() bool { return *crashKills >= 50 }

// parallelTrials lets more trials run at a time than there are processors: they
// wait for leases and sessions nearly all of the time. Real brokers are shared by
// all of them, and do not bear that.
func parallelTrials() error {
	given := os.Getenv("PACKSHIP_TEST_BROKERS") != ""
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return nil
	}
	return flag.Set("test.parallel", "12")
}

// trial is a world whose connectors are processes that come to grief. It keeps
// what is needed to judge them afterwards.
type trial struct {
	*world
	seed uint64
	rand *rand.Rand

	packed   int // orders so far
	children int
	next     time.Time // when feed packs the next order
	// ends has the times at which calls may have been left open: a process was
	// killed, or woke up.
	ends  []time.Time
	dead  map[string]time.Time // since when they are out of the group, by name
	swept time.Time            // when they were last looked for there

	byes []entry // in the ledger, once it has been read

	mu        sync.Mutex
	commits   []commit       // guarded by mu; as the broker was asked
	committed map[int]int64  // guarded by mu; as the group has it, by partition
	backwards []string       // guarded by mu; commits that went back
	polled    sync.WaitGroup // of the goroutine that looks at the group
}

// commit is a request to commit an offset.
type commit struct {
	at        time.Time
	partition int
	offset    int64
}

// newTrial starts a world that is fast and yet in proportion: what a lease is
// made of is much longer than a call.
func newTrial(t *testing.T, options upstreamtest.Options, change ...func(*Settings)) *trial {
	t.Helper()
	if testing.Short() {
		t.Skip("processes take long to die and to come back")
	}
	if options.Latency == (upstreamtest.Latency{}) {
		options.Latency.Fixed = 30 * time.Millisecond
	}
	change = append([]func(*Settings){func(s *Settings) {
		s.UpstreamTimeout, s.UpstreamSettle = 600*time.Millisecond, 300*time.Millisecond
		s.BreakerOpenFor = time.Second // a busy machine opens it
	}}, change...)
	x := &trial{world: newWorld(t, options, change...), seed: *crashSeed, committed: map[int]int64{}, dead: map[string]time.Time{}}
	if x.seed == 0 {
		x.seed = rand.Uint64()
	}
	x.rand = rand.New(rand.NewPCG(x.seed, 0))
	// One order in ten is refused by the platform, for good.
	x.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(35), TID: "*7"})
	x.watchCommits()
	return x
}

// watchCommits notes what is committed: every request, where the broker is ours,
// and what the group has, from time to time.
func (x *trial) watchCommits() {
	if x.cluster != nil {
		x.cluster.ControlKey(int16(kmsg.OffsetCommit), func(r kmsg.Request) (kmsg.Response, error, bool) {
			request, ok := r.(*kmsg.OffsetCommitRequest)
			if !ok {
				return nil, nil, false
			}
			x.mu.Lock()
			defer x.mu.Unlock()
			for _, topic := range request.Topics {
				for _, p := range topic.Partitions {
					x.commits = append(x.commits, commit{time.Now(), int(p.Partition), p.Offset})
				}
			}
			return nil, nil, false
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	x.polled.Go(func() {
		for ctx.Err() == nil {
			if progress, err := x.kafka.Progress(ctx); err == nil {
				x.compare(progress)
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	x.t.Cleanup(func() {
		cancel()
		x.polled.Wait()
	})
}

func (x *trial) compare(progress []Progress) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range progress {
		before, known := x.committed[p.Partition]
		if known && p.Committed < before {
			x.backwards = append(x.backwards, fmt.Sprintf("partition %d from %d to %d", p.Partition, before, p.Committed))
		}
		x.committed[p.Partition] = p.Committed
	}
}

// pack packs n more orders, some of them twice. On a machine that has no time
// for the broker a request may fail and have been carried out; then there is one
// more copy.
func (x *trial) pack(n int) {
	x.t.Helper()
	for range n {
		x.packed++
		for range 1 + x.rand.IntN(10)/9 {
			r := schema.Record{Partition: x.rand.IntN(testPartitions), Key: []byte("key"), Value: []byte(order(x.packed, ""))}
			eventually(x.t, "order packed", func() bool { return x.tryAppend(r) == nil })
		}
	}
}

// child is a connector in a process of its own.
type child struct {
	t     *testing.T
	name  string // by which the group knows it
	cmd   *exec.Cmd
	log   recorder
	ended chan struct{} // closed after at is set
	at    time.Time
}

// run starts a connector that can be told where to end, by a variable.
func (x *trial) run(env ...string) *child {
	x.t.Helper()
	path, err := crashing()
	if err != nil {
		x.t.Fatal(err)
	}
	x.children++
	c := &child{t: x.t, name: fmt.Sprintf("child-%d", x.children), cmd: exec.Command(path, "run"), ended: make(chan struct{})}
	settings := x.settings
	settings.KafkaClientID = c.name
	c.cmd.Env, c.cmd.Stderr = append(settings.environ(), env...), &c.log
	if err := c.cmd.Start(); err != nil {
		x.t.Fatal(err)
	}
	go func() {
		_ = c.cmd.Wait() // how it ended is in the process state
		c.at = time.Now()
		close(c.ended)
	}()
	x.t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.ended
	})
	return c
}

func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatalf("%s: %v\n%s", c.name, err, c.tail())
	}
}

// stop ends the process as an operator does, and returns how long it took.
func (c *child) stop() time.Duration {
	c.t.Helper()
	begin := time.Now()
	c.signal(syscall.SIGTERM)
	c.await("its end after SIGTERM", func() bool { return c.gone() })
	if code := c.cmd.ProcessState.ExitCode(); code != 0 {
		c.t.Errorf("%s: exit code %d after SIGTERM, want 0:\n%s", c.name, code, c.tail())
	}
	return c.at.Sub(begin)
}

func (c *child) gone() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// await waits until the process has come to something.
func (c *child) await(what string, cond func() bool) {
	c.t.Helper()
	const limit = 3 * time.Minute
	for end := time.Now().Add(limit); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("%s: %s has not come within %s:\n%s", c.name, what, limit, c.tail())
		}
	}
}

// died reports whether a process that has ended was killed.
func (c *child) died() bool {
	status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// tail returns the end of the log.
func (c *child) tail() string {
	lines := strings.SplitAfter(c.log.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "")
}

// sends reports whether the process has begun to send, once.
func (c *child) sends() bool { return strings.Contains(c.log.String(), `"gate opened"`) }

var listening = regexp.MustCompile(`"http server listening".*"addr":"([^"]+)"`)

// status asks the process for what it shows to the operator. It is zero while
// there is no answer.
func (c *child) status() Status {
	c.t.Helper()
	found := listening.FindStringSubmatch(c.log.String())
	if found == nil {
		return Status{}
	}
	r := &replica{t: c.t, url: "http://" + found[1]}
	_, text := r.get("/api/status")
	var s Status
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		c.t.Fatalf("%s: status %q: %v", c.name, text, err)
	}
	return s
}

// mourn notes the end of a process that was killed. It is taken out of the group
// some time after that. The group does so by itself, when the session has run
// out; but then so have the leases of the dead process's attempts, and whether
// those are waited for shows only to a successor who comes sooner.
func (x *trial) mourn(c *child, after time.Duration) {
	x.t.Helper()
	x.ends = append(x.ends, c.at)
	x.dead[c.name] = c.at.Add(after)
	x.sweep()
}

// sweep takes the dead out of the group whose time has come. It has to be done
// again and again: what a process wrote before it died may make it a member
// afterwards, and the embedded broker keeps one for ever whose connection broke
// while it waited to join.
func (x *trial) sweep() {
	x.t.Helper()
	x.swept = time.Now()
	group := x.settings.KafkaGroupID
	res, err := x.kafka.Client.DescribeGroups(x.t.Context(), &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})
	if err != nil {
		x.t.Logf("group not described: %v", err)
		return
	}
	for _, g := range res.Groups {
		for _, m := range g.Members {
			if due, ok := x.dead[m.ClientID]; !ok || time.Now().Before(due) {
				continue
			}
			_, err := x.kafka.Client.LeaveGroup(x.t.Context(), &kafka.LeaveGroupRequest{
				GroupID: group, Members: []kafka.LeaveGroupRequestMember{{ID: m.MemberID}},
			})
			if err != nil {
				x.t.Logf("%s stays in the group: %v", m.ClientID, err)
			}
		}
	}
}

// done reports whether everything is settled and committed.
func (x *trial) done() bool {
	x.t.Helper()
	if time.Since(x.swept) > 500*time.Millisecond {
		x.sweep()
	}
	progress, err := x.kafka.Progress(x.t.Context())
	return err == nil && !slices.ContainsFunc(progress, func(p Progress) bool { return p.Lag() > 0 })
}

// finish lets a process do what is left, and stops it.
func (x *trial) finish() {
	x.t.Helper()
	last := x.run()
	last.await("the end of the lag", func() bool { return last.gone() || x.done() && last.sends() })
	if last.gone() {
		x.t.Fatalf("%s has ended by itself:\n%s", last.name, last.tail())
	}
	last.stop()
}

// lease is how long an attempt of another process may take effect.
func (x *trial) lease() time.Duration {
	return x.settings.StartBy() + x.settings.UpstreamTimeout + x.settings.UpstreamSettle
}

// entry is what the judge reads in a record of the ledger.
type entry struct {
	at          time.Time
	Kind        string
	Attempt     string
	Prev        string
	Outcome     struct{ Verdict schema.Verdict }
	Incarnation string
	Open        []string
}

// self reports whether a process takes over from itself: it did not learn what
// came of its call.
func (e *entry) self() bool {
	return e.Kind == "takeover" && incarnation(e.Attempt) == incarnation(e.Prev)
}

// incarnation returns the process that made an attempt.
func incarnation(attempt string) string { return attempt[:max(0, strings.LastIndexByte(attempt, '/'))] }

func (e *entry) claims() bool { return e.Kind == "intent" || e.Kind == "takeover" }

// evidence is everything that there is about one order.
type evidence struct {
	tid     string
	records []schema.Record // packed
	ledger  []entry
	calls   []upstreamtest.Entry
	results []schema.Record
}

// collect reads the topics and the API's journal, by tid.
func (x *trial) collect() map[string]*evidence {
	x.t.Helper()
	all := map[string]*evidence{}
	of := func(tid string) *evidence {
		if all[tid] == nil {
			all[tid] = &evidence{tid: tid}
		}
		return all[tid]
	}
	for _, r := range x.read(x.settings.TopicPacked) {
		p, err := schema.DecodePacked(&r)
		if err != nil {
			x.t.Fatal(err)
		}
		e := of(p.TID)
		e.records = append(e.records, r)
	}
	for _, r := range x.read(x.settings.TopicLedger) {
		e := entry{at: r.Time}
		if err := json.Unmarshal(r.Value, &e); err != nil {
			x.t.Fatalf("ledger: %s: %v", r.Value, err)
		}
		s, ok := schema.ParseShipment(string(r.Key))
		if !ok {
			if e.Kind == "bye" { // it is about no order
				x.byes = append(x.byes, e)
			}
			continue
		}
		of(s.TID).ledger = append(of(s.TID).ledger, e)
	}
	for _, topic := range []string{x.settings.TopicShipped, x.settings.TopicFailed} {
		for _, r := range x.read(topic) {
			e := of(string(r.Key))
			e.results = append(e.results, r)
		}
	}
	for _, c := range x.sim.Journal().Calls() {
		e := of(c.Shipment.TID)
		e.calls = append(e.calls, c)
	}
	return all
}

// read returns all records of a topic, also on a machine that is busy.
func (x *trial) read(topic string) (records []schema.Record) {
	x.t.Helper()
	eventually(x.t, topic+" read", func() bool {
		records = nil
		return x.kafka.Scan(x.t.Context(), topic, func(r *schema.Record) error { records = append(records, *r); return nil }) == nil
	})
	return records
}

// violation is a broken invariant.
type violation struct{ rule, tid, detail string }

// verdict is what the judge found.
type verdict struct {
	orders, calls, repeats int
	// slow counts the repeats after a call whose own process gave it up.
	slow       int
	violations []violation
}

// terms are what is allowed beyond the usual, because of what was done to the
// processes.
type terms struct {
	// zombies is the number of calls that may come although another process
	// has taken their order over: those of a process that was halted when
	// nothing could stop them any more.
	zombies int
}

// judge holds the whole history against the invariants of the design. It fails
// the test for each that is broken, with the story of the order.
func (x *trial) judge(allowed terms) verdict {
	x.t.Helper()
	v := verdict{orders: x.packed}
	blame := func(rule, tid, format string, args ...any) {
		v.violations = append(v.violations, violation{rule, tid, fmt.Sprintf(format, args...)})
	}
	for _, broken := range x.sim.Verify() {
		blame("API "+broken.Rule, "", "%s", broken.Detail)
	}
	all := x.collect()
	if len(all) != x.packed {
		blame("I1", "", "%d orders are known, %d were packed", len(all), x.packed)
	}
	first := map[string]time.Time{} // result, by event id
	for tid, e := range all {
		x.judgeOrder(e, &v, &allowed, blame)
		replies := map[string]int{}
		for _, r := range e.results {
			id, _ := r.Header("in_reply_to")
			replies[id]++
			if t, ok := first[id]; !ok || r.Time.Before(t) {
				first[id] = r.Time
			}
		}
		if id := "evt-" + tid; replies[id] < len(e.records) {
			blame("I1", tid, "%d packed records and %d results", len(e.records), replies[id])
		}
	}
	x.judgeCommits(first, blame)
	for i, broken := range v.violations {
		if i == 5 {
			x.t.Errorf("and %d more", len(v.violations)-i)
			break
		}
		x.t.Errorf("%s is broken: order %s: %s\n%s", broken.rule, broken.tid, broken.detail, x.story(all[broken.tid]))
	}
	return v
}

// judgeOrder looks at the calls and the results of one order.
func (x *trial) judgeOrder(e *evidence, v *verdict, allowed *terms, blame func(rule, tid, format string, args ...any)) {
	v.calls += len(e.calls)
	v.repeats += max(0, len(e.calls)-1)
	applied := 0
	for i, call := range e.calls {
		if call.Applied {
			applied++
		}
		broken := x.judgeCall(e, i, v)
		if len(broken) > 0 && allowed.zombies > 0 {
			allowed.zombies--
			continue
		}
		for _, b := range broken {
			blame(b.rule, e.tid, "call %d %s", i+1, b.detail)
		}
	}
	claimed := map[string]time.Time{}
	for _, r := range e.ledger {
		since, ok := claimed[r.Prev]
		if ok && r.Kind == "takeover" && !r.self() && !x.renounced(r.Prev) && r.at.Sub(since) < x.lease() {
			blame("I3", e.tid, "taken over %s after the attempt before, whose lease is %s", r.at.Sub(since), x.lease())
		}
		if _, ok := claimed[r.Attempt]; r.claims() && !ok {
			claimed[r.Attempt] = r.at
		}
	}
	if applied > 1 {
		blame("I2", e.tid, "applied %d times", applied)
	}
	ids, texts := map[string]bool{}, map[string]bool{}
	for _, r := range e.results {
		id, _ := r.Header("ce_id")
		ids[id], texts[string(r.Value)] = true, true
		switch res := result(x.t, r); {
		case res.Status == schema.Shipped && applied == 0:
			blame("I4", e.tid, "told as shipped and was not")
		case res.Status == schema.Failed && applied > 0 && !res.MaybeShipped:
			blame("I4", e.tid, "told as failed and was shipped")
		}
	}
	if len(ids) > 1 || len(texts) != len(ids) {
		blame("I5", e.tid, "%d result ids and %d different results", len(ids), len(texts))
	}
}

// renounced reports whether the process of an attempt has said that it makes no
// more use of it.
func (x *trial) renounced(attempt string) bool {
	return slices.ContainsFunc(x.byes, func(b entry) bool {
		return b.Incarnation == incarnation(attempt) && !slices.Contains(b.Open, attempt)
	})
}

// judgeCall looks at whether the i-th call of an order was to be made at all.
func (x *trial) judgeCall(e *evidence, i int, v *verdict) (broken []violation) {
	call := e.calls[i]
	blame := func(rule, format string, args ...any) {
		broken = append(broken, violation{rule, e.tid, fmt.Sprintf(format, args...)})
	}
	claims := map[string]bool{}
	for _, r := range e.ledger {
		if r.claims() && !r.at.After(call.Arrived) {
			claims[r.Attempt] = true
		}
		// A call that was given up is still on its way for a while.
		if r.Kind == "outcome" && r.at.Before(call.Arrived.Add(-x.settings.UpstreamSettle)) {
			blame("I3", "came after the outcome")
		}
	}
	if len(claims) < i+1 {
		blame("I3", "has no intent of its own")
	}
	if call.Overlap {
		blame("I8", "came during another")
	}
	if i == 0 {
		return broken
	}
	before := e.calls[i-1]
	// The API may read a call a moment after its caller has died.
	const moment = 300 * time.Millisecond
	between := func(t time.Time) bool { return t.After(before.Arrived.Add(-moment)) && t.Before(call.Arrived) }
	gap := call.Arrived.Sub(before.Arrived)
	switch {
	case slices.ContainsFunc(e.ledger, func(r entry) bool { return r.self() && between(r.at) }):
		v.slow++
		if gap < x.settings.UpstreamSettle {
			blame("I3", "came %s after one that was given up, before that had settled", gap)
		}
	case !slices.ContainsFunc(x.ends, between):
		blame("I3", "repeats one whose outcome was known")
	case gap < x.settings.UpstreamTimeout+x.settings.UpstreamSettle:
		blame("I3", "came %s after another, which could still take effect", gap)
	}
	return broken
}

// judgeCommits looks for commits of what had no result.
func (x *trial) judgeCommits(first map[string]time.Time, blame func(rule, tid, format string, args ...any)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, what := range x.backwards {
		blame("I7", "", "the committed offset went back: %s", what)
	}
	for _, r := range x.read(x.settings.TopicPacked) {
		p, err := schema.DecodePacked(&r)
		if err != nil {
			x.t.Fatal(err)
		}
		for _, c := range x.commits {
			if c.partition != r.Partition || c.offset <= r.Offset {
				continue
			}
			if t, ok := first[p.EventID]; !ok || t.After(c.at) {
				blame("I7", p.TID, "offset %d of partition %d was committed at %s, before there was a result of record %d",
					c.offset, c.partition, c.at.Format(clock), r.Offset)
			}
			break
		}
	}
}

// clock is how times are shown.
const clock = "15:04:05.000"

// story tells all that happened to an order, and to the processes meanwhile.
func (x *trial) story(e *evidence) string {
	if e == nil {
		return ""
	}
	type event struct {
		at   time.Time
		what string
	}
	var events []event
	add := func(at time.Time, format string, args ...any) {
		events = append(events, event{at, fmt.Sprintf(format, args...)})
	}
	for _, r := range e.records {
		add(r.Time, "packed, partition %d offset %d", r.Partition, r.Offset)
	}
	for _, r := range e.ledger {
		add(r.at, "ledger: %s %s %s %s", r.Kind, r.Attempt, r.Prev, r.Outcome.Verdict)
	}
	for _, c := range e.calls {
		add(c.Arrived, "call arrived, answered %s later, delivered %t, row %d", c.Done.Sub(c.Arrived), c.Delivered, c.Row)
	}
	for _, r := range e.results {
		id, _ := r.Header("ce_id")
		add(r.Time, "result %s %s", id, r.Value)
	}
	for _, t := range x.ends {
		add(t, "a process was killed, or woke up")
	}
	slices.SortStableFunc(events, func(a, b event) int { return cmp.Compare(a.at.UnixNano(), b.at.UnixNano()) })
	var text strings.Builder
	for _, e := range events {
		fmt.Fprintf(&text, "  %s %s\n", e.at.Format(clock), e.what)
	}
	return text.String()
}
