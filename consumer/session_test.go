package consumer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/schema"
)

func TestReadsAndCommits(t *testing.T) {
	inWorld(t, 3, func(w *world) {
		t := w.t
		for p := range 3 {
			w.produce(p, events("shop", 1000*(p+1), 200)...)
		}
		h := new(fakeHandler)
		r := w.start("a", h, func(c *Config) { c.CommitMetadata = func() string { return "v1" } })
		h.awaitSettled(t, 600)
		for p := range 3 {
			w.awaitCommit(p, 200)
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if _, settled := h.count(); settled != 600 {
			t.Errorf("settled %d records, want 600", settled)
		}
		h.inOrder(t)
		w.commits.neverBack(t)
		if got := r.metric("packship_events_consumed_total", "topic="+testTopic); got != 600 {
			t.Errorf("packship_events_consumed_total is %v, want 600", got)
		}
		commits := w.commits.all()
		if got := commits[len(commits)-1].metadata; got != "v1" {
			t.Errorf("committed metadata %q, want v1", got)
		}
		if info := w.cluster.GroupInfo(testGroup); len(info.Members) != 0 {
			t.Errorf("the group still has %d members", len(info.Members))
		}
	})
}

func TestMetadataThatKafkaWouldRefuseIsLeftOut(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, event("s", 1))
		w.start("a", new(fakeHandler), func(c *Config) {
			c.CommitMetadata = func() string { return string(make([]byte, maxMetadata+1)) }
		})
		w.awaitCommit(0, 1)
		for _, c := range w.commits.all() {
			if c.metadata != "" {
				t.Errorf("committed %d bytes of metadata", len(c.metadata))
			}
		}
	})
}

// TestResumeIsTold sees that a member hears what was committed beside the offsets
// that it begins at, and nothing where it goes on.
func TestResumeIsTold(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		var mu sync.Mutex
		var told []string
		listen := func(text string) func(*Config) {
			return func(c *Config) {
				c.CommitMetadata = func() string { return text }
				c.Resume = func(metadata string) {
					mu.Lock()
					defer mu.Unlock()
					told = append(told, text+" hears "+metadata)
				}
			}
		}
		w.produce(0, event("s", 1))
		r := w.start("a", new(fakeHandler), listen("v1"))
		w.awaitCommit(0, 1)
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		w.produce(0, event("s", 2))
		r = w.start("b", new(fakeHandler), listen("v2"))
		w.awaitCommit(0, 2)
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if !slices.Equal(told, []string{"v2 hears v1"}) {
			t.Errorf("told %q", told)
		}
	})
}

func TestUndecodableRecordsAreHandledAndPassed(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, "not json", event("s", 1), `{"shop_id":"s"}`, "")
		h := new(fakeHandler)
		w.start("a", h)
		w.awaitCommit(0, 4)
		if _, settled := h.count(); settled != 4 {
			t.Errorf("settled %d records, want 4", settled)
		}
	})
}

func TestNoCommitBeyondAnUnsettledRecord(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 50)...)
		release := make(chan struct{})
		h := &fakeHandler{work: func(ctx context.Context, g *Gate, rec *schema.Record, p *schema.Packed) error {
			if rec.Offset == 7 {
				return until(release)(ctx, g, rec, p)
			}
			return nil
		}}
		r := w.start("a", h)
		h.awaitSettled(t, 49)
		w.awaitCommit(0, 7)
		time.Sleep(time.Minute)
		if got := w.committedAt(0); got != 7 {
			t.Errorf("committed %d while record 7 was unsettled", got)
		}
		await(t, "the status to show the stuck record", func() bool {
			p := r.c.Status().Partitions[0]
			return p.Unsettled == 1 && p.Committed == 7 && p.Lag == 43 && p.OldestUnfinishedSeconds > 59
		})
		if got := r.metric("packship_oldest_unfinished_event_age_seconds", "partition=0"); got < 59 {
			t.Errorf("age of the oldest record is %v", got)
		}
		if got := r.metric("packship_consumer_lag_records", "partition=0"); got != 43 {
			t.Errorf("lag is %v, want 43", got)
		}
		close(release)
		w.awaitCommit(0, 50)
		w.commits.neverBack(t)
	})
}

func TestRestartContinuesAtTheCommittedOffset(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 30)...)
		first := &fakeHandler{work: func(ctx context.Context, _ *Gate, rec *schema.Record, _ *schema.Packed) error {
			if rec.Offset >= 20 {
				<-ctx.Done() // waits for its turn when the process stops
				return context.Cause(ctx)
			}
			return nil
		}}
		r := w.start("a", first)
		first.awaitSettled(t, 20)
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		if got := w.committedAt(0); got != 20 {
			t.Fatalf("committed %d at the end, want 20", got)
		}
		second := new(fakeHandler)
		w.start("b", second)
		second.awaitSettled(t, 10)
		second.mu.Lock()
		defer second.mu.Unlock()
		if slices.Min(second.began) != at(0, 20) || len(second.began) != 10 {
			t.Errorf("the second run handled %v", second.began)
		}
	})
}

func TestStartsWhereItIsTold(t *testing.T) {
	for name, test := range map[string]struct {
		atEnd bool
		want  int
	}{"first": {false, 15}, "last": {true, 5}} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				t := w.t
				w.produce(0, events("s", 1, 10)...)
				h := new(fakeHandler)
				r := w.start("a", h, func(c *Config) { c.StartAtEnd = test.atEnd })
				r.awaitRole(RoleActive)
				if test.atEnd && w.committedAt(0) != 10 {
					t.Errorf("the start is not pinned: committed %d, want 10", w.committedAt(0))
				}
				w.produce(0, events("s", 100, 5)...)
				w.awaitCommit(0, 15)
				if _, settled := h.count(); settled != test.want {
					t.Errorf("settled %d records, want %d", settled, test.want)
				}
			})
		})
	}
}

// A holder that leaves does not join once more before it goes, which would cost
// the standby a generation's time.
func TestLeavingIsOneStep(t *testing.T) {
	inWorld(t, 2, func(w *world) {
		t := w.t
		a := w.start("a", new(fakeHandler))
		a.awaitRole(RoleActive)
		b := w.start("b", new(fakeHandler))
		b.awaitRole(RoleStandby)
		a.awaitRole(RoleActive)
		generation := b.c.Status().Generation
		joins := w.cluster.Fault(kfakeObserve(kmsg.JoinGroup))
		if err := a.stop(); err != nil {
			t.Error(err)
		}
		b.awaitRole(RoleActive)
		if n := joins.Hits(); n != 1 {
			t.Errorf("the group was joined %d times, want only by the one that stays", n)
		}
		if got := b.c.Status().Generation; got != generation+1 {
			t.Errorf("the one that stays is active in generation %d, after %d", got, generation)
		}
	})
}

// holdCommit has the broker hold the first commit of a settled record: held is
// closed when it is there, and closing release lets it go. It counts them all.
func (w *world) holdCommit() (held, release chan struct{}, commits *atomic.Int32) {
	held, release, commits = make(chan struct{}), make(chan struct{}), new(atomic.Int32)
	w.cluster.ControlKey(int16(kmsg.OffsetCommit), func(r kmsg.Request) (kmsg.Response, error, bool) {
		w.cluster.KeepControl()
		commit, ok := r.(*kmsg.OffsetCommitRequest)
		if ok && commit.Topics[0].Partitions[0].Offset > 0 && commits.Add(1) == 1 {
			close(held)
			w.cluster.SleepControl(func() { <-release })
		}
		return nil, nil, false
	})
	return held, release, commits
}

// A commit that is under way at the end of a drain is waited for. The next one goes
// over another connection if it is given up, and the one before may be carried out
// after it.
func TestLastCommitDoesNotOvertake(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		last := make(chan struct{})
		h := &fakeHandler{work: func(_ context.Context, _ *Gate, rec *schema.Record, _ *schema.Packed) error {
			if rec.Offset == 1 {
				<-last
			}
			return nil
		}}
		held, release, commits := w.holdCommit()
		a := w.start("a", h)
		w.produce(0, events("shop", 1, 2)...)
		<-held
		stopped := make(chan error)
		go func() { stopped <- a.stop() }()
		close(last)
		time.Sleep(requestLimit / 2) // of the bubble: the drain is over, the commit is not
		if n := commits.Load(); n != 1 {
			t.Errorf("%d commits beside one that is under way", n-1)
		}
		close(release)
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if at := w.committedAt(0); at != 2 {
			t.Errorf("committed offset %d, want 2", at)
		}
	})
}

// The commit that is waited for is given up in time to leave.
func TestLastCommitHangs(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		held, release, _ := w.holdCommit()
		defer close(release)
		a := w.start("a", new(fakeHandler), func(c *Config) { c.StopTimeout, c.LeaveTimeout = time.Second, time.Second })
		w.produce(0, events("shop", 1, 1)...)
		<-held
		began := time.Now()
		if err := a.stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("stopped after %s, want 2s at most", took)
		}
	})
}

// A broker that takes connections and never answers must not keep a member out of
// the group, nor a member that has lost its connections, if it is asked first.
func TestFirstBrokerHangs(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		const hanging = "hanging:9092"
		var asked atomic.Int32
		network := newCutNet(func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr != hanging {
				return w.vn.DialContext(ctx, network, addr)
			}
			asked.Add(1)
			conn, far := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, far) }() // until conn is closed
			return conn, nil
		})
		r := startReplica(t, "a", new(fakeHandler), network, w.brokers(), transportOver(network.DialContext, testTopic), func(c *Config) {
			c.Brokers = append([]string{hanging}, c.Brokers...)
		})
		begin := time.Now()
		r.awaitRole(RoleActive)
		if took, limit := time.Since(begin), 2*r.c.cfg.groupTimeout(); asked.Load() != 1 || took > limit {
			t.Errorf("active after %s and %d tries at the broker that hangs, want one try and %s at most", took, asked.Load(), limit)
		}
		generation := r.c.Status().Generation
		network.cut(false)
		begin = time.Now()
		await(t, "the next generation", func() bool {
			st := r.c.Status()
			return st.Generation > generation && st.Role == RoleActive
		})
		if took, limit := time.Since(begin), 2*r.c.cfg.groupTimeout(); took > limit {
			t.Errorf("active again after %s, want %s at most", took, limit)
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
}

// A standby that joins and leaves ends the holder's generations. The holder
// goes on with what it is doing and keeps all partitions.
func TestStandbyDoesNotDisturbTheHolder(t *testing.T) {
	inWorld(t, 4, func(w *world) {
		t := w.t
		release := make(chan struct{})
		var cut atomic.Int32 // handlers whose context ended
		h := &fakeHandler{work: func(ctx context.Context, g *Gate, rec *schema.Record, p *schema.Packed) error {
			err := until(release)(ctx, g, rec, p)
			if err != nil {
				cut.Add(1)
			}
			return err
		}}
		for p := range 4 {
			w.produce(p, events("s", 100*p, 5)...)
		}
		a := w.start("a", h, func(c *Config) { c.Handover = time.Second })
		await(t, "all records to be in flight", func() bool { began, _ := h.count(); return began == 20 })
		a.awaitRole(RoleActive)
		generation := a.c.Status().Generation
		closed := watchGate(t, &a.c.gate)
		idle := &fakeHandler{}
		b := w.start("b", idle, func(c *Config) { c.Handover = time.Second })
		b.awaitRole(RoleStandby)
		await(t, "the holder to be active in a new generation", func() bool {
			st := a.c.Status()
			return st.Generation > generation && st.GateOpen
		})
		if ok, why := a.c.Ready(); !ok {
			t.Errorf("the holder is not ready: %s", why)
		}
		if ok, why := b.c.Ready(); !ok {
			t.Errorf("the standby is not ready: %s", why)
		}
		generation = a.c.Status().Generation
		if err := b.stop(); err != nil {
			t.Error(err)
		}
		await(t, "the holder to be active after the standby has left", func() bool {
			st := a.c.Status()
			return st.Generation > generation && st.GateOpen
		})
		pauses := closed()
		// A pause of no time at all escapes the watcher.
		if len(pauses) > 2 {
			t.Errorf("the gate was closed %d times, want at most 2", len(pauses))
		}
		for _, p := range pauses {
			// One heartbeat is 600 ms. The gate closes when the heartbeat
			// says so, and the rest is a few exchanges.
			if p > 100*time.Millisecond {
				t.Errorf("the gate was closed for %s", p)
			}
		}
		close(release)
		for p := range 4 {
			w.awaitCommit(p, 5)
		}
		if n := cut.Load(); n != 0 {
			t.Errorf("%d handlers were told to give up", n)
		}
		if began, settled := h.count(); began != 20 || settled != 20 {
			t.Errorf("began %d and settled %d records, want 20 and 20", began, settled)
		}
		if began, _ := idle.count(); began != 0 {
			t.Errorf("the standby handled %d records", began)
		}
		w.commits.neverBack(t)
		if t.Failed() {
			t.Log(a.log)
		}
	})
}

// watchGate measures for how long a gate that is open is closed, until the
// returned function is called.
func watchGate(t *testing.T, g *Gate) (closed func() []time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var pauses []time.Duration
	var wg sync.WaitGroup
	wg.Go(func() {
		for g.Wait(ctx) == nil {
			open, done := g.Context(ctx)
			<-open.Done()
			done()
			at := time.Now()
			if g.Wait(ctx) == nil {
				pauses = append(pauses, time.Since(at))
			}
		}
	})
	return func() []time.Duration {
		cancel()
		wg.Wait()
		return pauses
	}
}

// When the holder is killed, the standby takes over from the committed offset,
// after the handover, and no commit of the dead one is accepted any more.
func TestStandbyTakesOverFromAKilledHolder(t *testing.T) {
	inWorld(t, 2, func(w *world) {
		t := w.t
		for p := range 2 {
			w.produce(p, events("s", 100*p, 10)...)
		}
		release := make(chan struct{})
		defer close(release)
		first := &fakeHandler{work: func(ctx context.Context, g *Gate, rec *schema.Record, p *schema.Packed) error {
			if rec.Offset < 4 {
				return nil
			}
			return until(release)(ctx, g, rec, p)
		}}
		a := w.start("a", first)
		w.awaitCommit(0, 4)
		w.awaitCommit(1, 4)
		var opened atomic.Int64 // when the second may call
		second := &fakeHandler{work: func(ctx context.Context, g *Gate, _ *schema.Record, _ *schema.Packed) error {
			if err := g.Wait(ctx); err != nil {
				return err
			}
			opened.CompareAndSwap(0, time.Now().UnixNano())
			return nil
		}}
		caughtUp := make(chan time.Time, 1)
		b := w.start("b", second, func(c *Config) {
			c.Handover = 3 * time.Second
			c.CatchUp = func(context.Context) error {
				caughtUp <- time.Now()
				return nil
			}
		})
		b.awaitRole(RoleStandby)
		killed := time.Now()
		a.kill()
		second.awaitSettled(t, 12)
		for p := range 2 {
			w.awaitCommit(p, 10)
		}
		// The session is 6 s, and a dead member costs at most that and one
		// heartbeat.
		if took := (<-caughtUp).Sub(killed); took > 7*time.Second {
			t.Errorf("the standby held the partitions %s after the kill", took)
		}
		if took := time.Unix(0, opened.Load()).Sub(killed); took < 8*time.Second {
			t.Errorf("the standby could call %s after the kill, before the handover was over", took)
		}
		w.commits.neverBack(t)
		if t.Failed() {
			t.Log(b.log)
		}
	})
}

// A standby that joins during the handover must not cut it short.
func TestHandoverOutlivesTheGeneration(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		begun := time.Now()
		a := w.start("a", new(fakeHandler), func(c *Config) { c.Handover = 20 * time.Second })
		await(t, "the handover to begin", func() bool { return a.c.Status().Reason == "handover: the calls of the holder before may still count" })
		for i := range 3 {
			b := w.start(fmt.Sprintf("b%d", i), new(fakeHandler))
			b.awaitRole(RoleStandby)
			time.Sleep(3 * time.Second)
			if err := b.stop(); err != nil {
				t.Error(err)
			}
		}
		if a.c.Status().Generation < 4 {
			t.Fatal("no generation came in between")
		}
		a.awaitRole(RoleActive)
		if took := time.Since(begun); took < 20*time.Second || took > 22*time.Second {
			t.Errorf("the gate opened after %s, want 20s", took)
		}
	})
}

// A member that is cut off finds its partitions with another when it comes
// back. Its handlers are told to give up, and what they finish all the same is
// not committed by it.
func TestZombieNeverCommits(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 10)...)
		release := make(chan struct{})
		causes := make(chan error, 10)
		zombie := &fakeHandler{work: func(ctx context.Context, _ *Gate, _ *schema.Record, _ *schema.Packed) error {
			<-release // a call under way: it is not cut off
			causes <- context.Cause(ctx)
			return nil
		}}
		a := w.start("a", zombie)
		await(t, "all records to be in flight", func() bool { began, _ := zombie.count(); return began == 10 })
		a.awaitRole(RoleActive)
		h := &fakeHandler{work: until(make(chan struct{}))}
		b := w.start("b", h)
		b.awaitRole(RoleStandby)
		a.net.cut(true)
		b.awaitRole(RoleActive)
		await(t, "the new holder to have the records", func() bool { began, _ := h.count(); return began == 10 })
		if a.c.gate.IsOpen() {
			t.Error("the gate of the member that was cut off is open")
		}
		a.net.heal()
		a.awaitRole(RoleStandby)
		close(release)
		await(t, "the zombie's handlers to return", func() bool { _, settled := zombie.count(); return settled == 10 })
		time.Sleep(time.Minute)
		if got := w.committedAt(0); got > 0 {
			t.Errorf("committed %d, but the holder has settled nothing", got)
		}
		for range 10 {
			if cause := <-causes; !errors.Is(cause, errRevoked) {
				t.Errorf("a handler's context ended with %v, want %v", cause, errRevoked)
			}
		}
		for _, name := range []string{"packship_consumer_lag_records", "packship_oldest_unfinished_event_age_seconds", "packship_last_commit_timestamp_seconds"} {
			if n := a.series(name); n != 0 {
				t.Errorf("%s has %d series after the partition was lost", name, n)
			}
		}
		if t.Failed() {
			t.Log(a.log)
		}
	})
}

// Records that wait in their lane when the partition is lost are not handled at
// all.
func TestWaitingRecordsOfALostPartitionAreDropped(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, event("s", 1), event("s", 1), event("s", 1))
		release := make(chan struct{})
		h := &fakeHandler{work: func(context.Context, *Gate, *schema.Record, *schema.Packed) error {
			<-release
			return nil
		}}
		a := w.start("a", h)
		await(t, "all records to be read", func() bool { return tenureOf(t, a, 0).position() == 3 })
		tn := tenureOf(t, a, 0)
		b := w.start("b", &fakeHandler{work: until(make(chan struct{}))})
		b.awaitRole(RoleStandby)
		a.net.cut(true)
		b.awaitRole(RoleActive)
		a.net.heal()
		a.awaitRole(RoleStandby)
		close(release)
		await(t, "the lane to empty", func() bool { return a.c.lanes.active() == 0 })
		if began, _ := h.count(); began != 1 {
			t.Errorf("%d records were handled, want the first only", began)
		}
		if records, bytes := tn.inMemory(); records != 0 || bytes != 0 {
			t.Errorf("%d records with %d bytes are left in memory", records, bytes)
		}
	})
}

// joinsAgain has a member meet something that its next heartbeat would not tell it
// for long, and wants it to shut its gate once, join again, and go on.
func joinsAgain(t *testing.T, meet func(w *world, r *replica)) {
	t.Helper()
	inWorld(t, 1, func(w *world) {
		t := w.t
		r := w.start("a", new(fakeHandler), func(c *Config) { c.SessionTimeout = 60 * time.Second })
		r.awaitRole(RoleActive)
		generation := r.c.Status().Generation
		closed := watchGate(t, &r.c.gate)
		meet(w, r)
		await(t, "the next generation", func() bool { return r.c.Status().Generation > generation })
		w.produce(0, event("s", 2))
		w.awaitCommit(0, 2)
		if n := len(closed()); n != 1 {
			t.Errorf("the gate was closed %d times, want once", n)
		}
	})
}

// A commit that is refused because the group has gone on without this member
// closes the gate and ends the generation, without waiting for a heartbeat to
// notice.
func TestFencedCommitEndsTheGeneration(t *testing.T) {
	for _, refusal := range []*kerr.Error{kerr.IllegalGeneration, kerr.UnknownMemberID} {
		t.Run(refusal.Message, func(t *testing.T) {
			joinsAgain(t, func(w *world, _ *replica) {
				fault := w.fault(kfakeFault(kmsg.OffsetCommit, refusal, 1))
				w.produce(0, event("s", 1))
				if err := fault.Wait(w.t.Context(), 1); err != nil {
					w.t.Fatal(err)
				}
			})
		})
	}
}

// A member that was frozen for so long that another may have its partitions shuts
// its gate by itself and joins again, without waiting to be told.
func TestFrozenMemberJoinsAgain(t *testing.T) {
	joinsAgain(t, func(w *world, r *replica) {
		w.produce(0, event("s", 1))
		w.awaitCommit(0, 1)
		r.c.gate.mu.Lock()
		defer r.c.gate.mu.Unlock()
		r.c.gate.seen = r.c.gate.seen.Add(-r.c.cfg.groupTimeout())
	})
}

// A partition that was lost and comes back while handlers of the first time
// still run begins at the committed offset; the old handlers commit nothing, and
// the new ones of the same orders wait for them.
func TestPartitionComesBackWhileOldHandlersRun(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 10)...)
		release := make(chan struct{})
		var first atomic.Int32
		h := &fakeHandler{}
		h.work = func(context.Context, *Gate, *schema.Record, *schema.Packed) error {
			if first.Add(1) <= 10 {
				<-release
			}
			return nil
		}
		a := w.start("a", h)
		await(t, "all records to be in flight", func() bool { began, _ := h.count(); return began == 10 })
		a.awaitRole(RoleActive)
		// Nobody else joins, but the group has gone through other generations
		// by the time the member is back.
		generation := a.c.Status().Generation
		a.net.cut(true)
		await(t, "the group to have dropped the member", func() bool {
			return len(w.cluster.GroupInfo(testGroup).Members) == 0
		})
		passGenerations(t, w, 3)
		a.net.heal()
		await(t, "the member to be back", func() bool {
			st := a.c.Status()
			return st.Generation > generation+1 && st.GateOpen
		})
		time.Sleep(10 * time.Second)
		if began, settled := h.count(); began != 10 || settled != 0 {
			t.Errorf("began %d and settled %d records while the old handlers ran", began, settled)
		}
		if got := w.committedAt(0); got != 0 {
			t.Errorf("committed %d, want 0", got)
		}
		close(release)
		w.awaitCommit(0, 10)
		if began, settled := h.count(); began != 20 || settled != 20 {
			t.Errorf("began %d and settled %d records, want 20 and 20", began, settled)
		}
		if h.overlaps > 0 {
			t.Errorf("%d records were handled while the same order was", h.overlaps)
		}
		w.commits.neverBack(t)
	})
}

// passGenerations lets another program join and leave the group.
func passGenerations(t *testing.T, w *world, n int) {
	t.Helper()
	for range n {
		group, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
			ID: testGroup, Brokers: w.brokers(), Topics: []string{testTopic},
			Dialer:         &kafka.Dialer{DialFunc: w.vn.DialContext},
			GroupBalancers: []kafka.GroupBalancer{newSingleHolder("other")},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := group.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := group.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// If somebody else has committed for a partition, what this member knows of it
// is no longer true, even if the generations say otherwise.
func TestForeignCommitEndsATenure(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 10)...)
		release := make(chan struct{})
		h := &fakeHandler{work: func(ctx context.Context, g *Gate, rec *schema.Record, p *schema.Packed) error {
			if rec.Offset < 8 {
				return until(release)(ctx, g, rec, p)
			}
			return nil
		}}
		a := w.start("a", h)
		await(t, "all records to be in flight", func() bool { began, _ := h.count(); return began == 10 })
		a.awaitRole(RoleActive)
		info := w.cluster.GroupInfo(testGroup)
		res, err := w.client.OffsetCommit(t.Context(), &kafka.OffsetCommitRequest{
			GroupID: testGroup, GenerationID: int(info.Epoch), MemberID: info.Members[0].MemberID,
			Topics: map[string][]kafka.OffsetCommit{testTopic: {{Partition: 0, Offset: 8}}},
		})
		if err != nil || res.Topics[testTopic][0].Error != nil {
			t.Fatal(err, res)
		}
		a.net.cut(false)
		await(t, "the partition to be read from the new offset", func() bool {
			return a.log.count("partition taken up", "offset=8") == 1
		})
		close(release)
		w.awaitCommit(0, 10)
		w.commits.neverBack(t)
		if n := a.log.count("partition given up", errMoved.Error()); n != 1 {
			t.Errorf("%d log lines say why the partition was given up, want 1", n)
		}
	})
}

// The same if the offset of the other is lower: who sets it back wants to have the
// records handled again.
func TestForeignCommitSetsATenureBack(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 10)...)
		h := new(fakeHandler)
		const handover = 20 * time.Second
		a := w.start("a", h, func(c *Config) { c.Handover = handover })
		w.awaitCommit(0, 10)
		info := w.cluster.GroupInfo(testGroup)
		res, err := w.client.OffsetCommit(t.Context(), &kafka.OffsetCommitRequest{
			GroupID: testGroup, GenerationID: int(info.Epoch), MemberID: info.Members[0].MemberID,
			Topics: map[string][]kafka.OffsetCommit{testTopic: {{Partition: 0, Offset: 4}}},
		})
		if err != nil || res.Topics[testTopic][0].Error != nil {
			t.Fatal(err, res)
		}
		cut := time.Now()
		a.net.cut(false)
		h.awaitSettled(t, 16)
		if took := time.Since(cut); took < handover {
			t.Errorf("went on after %s, want that the calls of the other are given %s", took, handover)
		}
		w.awaitCommit(0, 10)
		if n := a.log.count("partition taken up", "offset=4"); n != 1 {
			t.Errorf("%d log lines say where the partition was taken up, want 1", n)
		}
	})
}

// A tenure goes on in the generation that it knows, as after a lost connection, and
// in the next.
func TestTenureContinues(t *testing.T) {
	for generation, want := range map[int32]bool{0: false, 6: false, 7: true, 8: true, 9: false} {
		tn := &tenure{commits: commitState{generation: 7}}
		if got := tn.continues(&session{generation: generation}); got != want {
			t.Errorf("from generation 7 to %d: got %t, want %t", generation, got, want)
		}
		if want && tn.commits.generation != generation {
			t.Errorf("it is in generation %d, want %d", tn.commits.generation, generation)
		}
	}
}

// Faults of the coordinator interrupt the gate and nothing else: the same
// member goes on with what is in flight.
func TestHolderSurvivesFaults(t *testing.T) {
	faults := map[string]func(w *world, r *replica){
		"connections cut": func(_ *world, r *replica) { r.net.cut(false) },
		"coordinator moved": func(w *world, _ *replica) {
			old := w.cluster.CoordinatorFor(testGroup)
			await(w.t, "the coordinator to move", func() bool {
				w.cluster.RehashCoordinators()
				return w.cluster.CoordinatorFor(testGroup) != old
			})
		},
		"leader moved": func(w *world, _ *replica) {
			leader := w.cluster.LeaderFor(testTopic, 0)
			if err := w.cluster.MoveTopicPartition(testTopic, 0, (leader+1)%3); err != nil {
				w.t.Fatal(err)
			}
		},
		"all leaders shuffled": func(w *world, _ *replica) { w.cluster.ShufflePartitionLeaders() },
		"heartbeat: rebalance in progress": func(w *world, _ *replica) {
			w.fault(kfakeFault(kmsg.Heartbeat, kerr.RebalanceInProgress, 1))
		},
		"heartbeat: not coordinator": func(w *world, _ *replica) {
			w.fault(kfakeFault(kmsg.Heartbeat, kerr.NotCoordinator, 3))
		},
		"heartbeat: unknown member": func(w *world, _ *replica) {
			w.fault(kfakeFault(kmsg.Heartbeat, kerr.UnknownMemberID, 1))
		},
		"fetch: not leader": func(w *world, _ *replica) {
			w.fault(kfakeFault(kmsg.Fetch, kerr.NotLeaderForPartition, 20))
		},
		"fetch: offset out of range from a replica that lags": func(w *world, _ *replica) {
			w.fault(kfakeFault(kmsg.Fetch, kerr.OffsetOutOfRange, 5))
		},
		"fetch: server error": func(w *world, _ *replica) {
			w.fault(kfakeFault(kmsg.Fetch, kerr.UnknownServerError, 5))
		},
		"offset fetch: coordinator loads": func(w *world, r *replica) {
			w.fault(kfakeFault(kmsg.OffsetFetch, kerr.CoordinatorLoadInProgress, 6))
			r.net.cut(false)
		},
		"commit: rebalance in progress": func(w *world, _ *replica) {
			w.fault(kfakeFault(kmsg.OffsetCommit, kerr.RebalanceInProgress, 3))
		},
		"commit: coordinator not available": func(w *world, _ *replica) {
			w.fault(kfakeFault(kmsg.OffsetCommit, kerr.CoordinatorNotAvailable, 3))
		},
		"commit: applied, but answered as timed out": func(w *world, _ *replica) {
			w.fault(kfakeFault(kmsg.OffsetCommit, kerr.RequestTimedOut, 3))
		},
		"commit: illegal generation": func(w *world, _ *replica) {
			w.fault(kfakeFault(kmsg.OffsetCommit, kerr.IllegalGeneration, 1))
		},
		"commit: unknown member": func(w *world, _ *replica) {
			w.fault(kfakeFault(kmsg.OffsetCommit, kerr.UnknownMemberID, 1))
		},
		"a broker goes": func(w *world, r *replica) {
			node := w.cluster.LeaderFor(testTopic, 0)
			if err := w.cluster.RemoveNode(node); err != nil {
				w.t.Fatal(err)
			}
			r.net.cut(false)
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 2, func(w *world) {
				t := w.t
				for p := range 2 {
					w.produce(p, events("s", 100*p, 10)...)
				}
				release := make(chan struct{})
				var cut atomic.Int32
				h := &fakeHandler{work: func(ctx context.Context, g *Gate, rec *schema.Record, p *schema.Packed) error {
					if rec.Offset < 5 || rec.Offset >= 10 {
						return nil
					}
					err := until(release)(ctx, g, rec, p)
					if err != nil {
						cut.Add(1)
					}
					return err
				}}
				r := w.start("a", h)
				await(t, "all records to have begun", func() bool { began, _ := h.count(); return began == 20 })
				for p := range 2 {
					w.awaitCommit(p, 5)
				}
				fault(w, r)
				for p := range 2 {
					w.produce(p, events("s", 1000+100*p, 10)...)
				}
				await(t, "the later records to be settled", func() bool { _, settled := h.count(); return settled == 30 })
				close(release)
				for p := range 2 {
					w.awaitCommit(p, 20)
				}
				r.awaitRole(RoleActive)
				if n := cut.Load(); n != 0 {
					t.Errorf("%d handlers were told to give up", n)
				}
				if began, settled := h.count(); began != 40 || settled != 40 {
					t.Errorf("began %d and settled %d records, want 40 each", began, settled)
				}
				h.inOrder(t)
				w.commits.neverBack(t)
				for _, f := range w.faults {
					if f.Hits() == 0 {
						t.Error("the fault met no request")
					}
				}
				if t.Failed() {
					t.Log(r.log)
				}
			})
		})
	}
}

func TestCommitOfUnknownOutcomeIsSentAgain(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 5)...)
		fault := w.cluster.Fault(kfakeFaultWhen(kmsg.OffsetCommit, kerr.RequestTimedOut, 1, func(r kmsg.Request) bool {
			req, ok := r.(*kmsg.OffsetCommitRequest)
			return ok && req.Topics[0].Partitions[0].Offset == 5
		}))
		w.start("a", new(fakeHandler))
		if err := fault.Wait(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		sent := func() (n int) {
			for _, c := range w.commits.all() {
				if c.offsets[0] == 5 {
					n++
				}
			}
			return n
		}
		time.Sleep(2 * requestLimit)
		again := sent()
		if again < 10 {
			t.Errorf("the offset was sent %d times after an unknown outcome", again)
		}
		time.Sleep(time.Minute)
		if got := sent(); got > again+5 {
			t.Errorf("the offset is still being sent: %d times", got)
		}
		if got := w.committedAt(0); got != 5 {
			t.Errorf("committed %d, want 5", got)
		}
	})
}

// An answer that does not come must not be mistaken for "no committed offset".
func TestOffsetFetchFaultsNeverStartAnew(t *testing.T) {
	inWorld(t, 2, func(w *world) {
		t := w.t
		for p := range 2 {
			w.produce(p, events("s", 100*p, 10)...)
		}
		first := w.start("a", new(fakeHandler))
		w.awaitCommit(0, 10)
		w.awaitCommit(1, 10)
		if err := first.stop(); err != nil {
			t.Fatal(err)
		}
		fault := w.fault(kfakeFault(kmsg.OffsetFetch, kerr.CoordinatorLoadInProgress, 8))
		h := new(fakeHandler)
		r := w.start("b", h)
		if err := fault.Wait(t.Context(), 8); err != nil {
			t.Fatal(err)
		}
		r.awaitRole(RoleActive)
		w.produce(0, event("s", 999))
		w.awaitCommit(0, 11)
		if _, settled := h.count(); settled != 1 {
			t.Errorf("settled %d records, want the new one only", settled)
		}
		w.commits.neverBack(t)
	})
}

func TestMissingTopicThenCreated(t *testing.T) {
	inWorld(t, 0, func(w *world) {
		t := w.t
		h := new(fakeHandler)
		r := w.start("a", h)
		joins := w.cluster.Fault(kfakeObserve(kmsg.JoinGroup))
		time.Sleep(30 * time.Second)
		if n := joins.Hits(); n != 0 {
			t.Errorf("joined a group on a missing topic %d times", n)
		}
		if ok, why := r.c.Ready(); ok || why == "" {
			t.Errorf("ready is %v, %q", ok, why)
		}
		if n := r.log.count("not in the group"); n != 1 {
			t.Errorf("%d log lines about the missing topic, want 1:\n%s", n, r.log)
		}
		if ok, why := r.c.Alive(); !ok {
			t.Errorf("not alive: %s", why)
		}
		if err := w.cluster.CreateTopic(testTopic, 2, nil); err != nil {
			t.Fatal(err)
		}
		r.awaitRole(RoleActive)
		w.produce(1, events("s", 1, 3)...)
		w.awaitCommit(1, 3)
	})
}

func TestTopicThatIsDeletedAndMadeAnew(t *testing.T) {
	inWorld(t, 2, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 8)...)
		h := new(fakeHandler)
		r := w.start("a", h)
		w.awaitCommit(0, 8)
		joins := w.cluster.Fault(kfakeObserve(kmsg.JoinGroup))
		if err := w.cluster.DeleteTopic(testTopic); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if n := joins.Hits(); n > 5 {
			t.Errorf("%d joins in two minutes without a topic", n)
		}
		if st := r.c.Status(); st.Role != RoleJoining || st.GateOpen {
			t.Errorf("status without a topic: %+v", st)
		}
		if err := w.cluster.CreateTopic(testTopic, 2, nil); err != nil {
			t.Fatal(err)
		}
		r.awaitRole(RoleActive)
		w.produce(0, events("s", 100, 3)...)
		w.awaitCommit(0, 3)
		if _, settled := h.count(); settled != 11 {
			t.Errorf("settled %d records, want 11", settled)
		}
		if t.Failed() {
			t.Log(r.log)
		}
	})
}

func TestPartitionsAreAdded(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		release := make(chan struct{})
		h := &fakeHandler{work: func(ctx context.Context, g *Gate, rec *schema.Record, p *schema.Packed) error {
			if rec.Partition == 0 {
				return until(release)(ctx, g, rec, p)
			}
			return nil
		}}
		w.produce(0, events("s", 1, 5)...)
		r := w.start("a", h)
		await(t, "the first records to begin", func() bool { began, _ := h.count(); return began == 5 })
		res, err := w.client.CreatePartitions(t.Context(), &kafka.CreatePartitionsRequest{
			Topics: []kafka.TopicPartitionsConfig{{Name: testTopic, Count: 3}},
		})
		if err != nil || res.Errors[testTopic] != nil {
			t.Fatal(err, res)
		}
		await(t, "the new partitions to be assigned", func() bool { return len(r.c.Status().Partitions) == 3 })
		time.Sleep(time.Second)
		w.produce(2, events("s", 100, 5)...)
		w.awaitCommit(2, 5)
		close(release)
		w.awaitCommit(0, 5)
		if began, _ := h.count(); began != 10 {
			t.Errorf("began %d records, want 10: the first five once", began)
		}
		if got := r.metric("packship_assigned_partitions"); got != 3 {
			t.Errorf("packship_assigned_partitions is %v, want 3", got)
		}
	})
}

// A group that has begun at the end reads a partition that is added later from its
// beginning, also if it was filled while nothing ran.
func TestAddedPartitionsBeginAtTheirBeginning(t *testing.T) {
	for name, members := range map[string]int{"one member": 1, "two members": 2} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 4, func(w *world) {
				t := w.t
				for p := range 4 {
					w.produce(p, events("old", 10*p+1, 3)...)
				}
				h := new(fakeHandler)
				start := func(round int) (running []*replica) {
					for m := range members {
						running = append(running, w.start(fmt.Sprint(round, m), h, func(c *Config) { c.StartAtEnd, c.Shares = true, members }))
					}
					for _, r := range running {
						r.awaitRole(RoleActive)
					}
					return running
				}
				running := start(1)
				for p := range 4 {
					w.awaitCommit(p, 3)
				}
				for _, r := range running {
					if err := r.stop(); err != nil {
						t.Fatal(err)
					}
				}
				res, err := w.client.CreatePartitions(t.Context(), &kafka.CreatePartitionsRequest{
					Topics: []kafka.TopicPartitionsConfig{{Name: testTopic, Count: 6}},
				})
				if err != nil || res.Errors[testTopic] != nil {
					t.Fatal(err, res)
				}
				time.Sleep(time.Second)
				w.produce(4, events("new", 100, 3)...)
				w.produce(5, events("new", 200, 2)...)
				start(2)
				w.awaitCommit(4, 3)
				w.awaitCommit(5, 2)
				h.mu.Lock()
				defer h.mu.Unlock()
				slices.Sort(h.settled)
				want := []string{at(4, 0), at(4, 1), at(4, 2), at(5, 0), at(5, 1)}
				if got := slices.Compact(h.settled); !slices.Equal(got, want) {
					t.Errorf("settled %v, want %v, which came later", got, want)
				}
			})
		})
	}
}

func TestAddedLater(t *testing.T) {
	for name, test := range map[string]struct {
		set     string // what is committed of each partition
		members int
		want    bool
	}{
		"a new group":                          {"----", 1, false},
		"one had no leader":                    {"xx-x", 1, false},
		"two are new":                          {"xx--", 1, true},
		"the other member was first":           {"x-x-", 2, false},
		"the second member was first":          {"-x-x", 2, false},
		"two of three were first":              {"xx-xx-", 3, false},
		"the other had its new one first":      {"xx-x", 2, true},
		"the other has yet to get its new one": {"xxx-", 2, true},
	} {
		set := make([]bool, len(test.set))
		for p := range set {
			set[p] = test.set[p] == 'x'
		}
		if got := addedLater(set, test.members); got != test.want {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
}

func TestBrokersUnreachableAtStart(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, event("s", 1))
		h := new(fakeHandler)
		network := newCutNet(w.vn.DialContext)
		network.down = true
		r := startReplica(t, "a", h, network, w.brokers(), transportOver(network.DialContext, testTopic))
		time.Sleep(2 * time.Minute)
		ok, why := r.c.Ready()
		if ok || why == "" {
			t.Errorf("ready is %v, %q", ok, why)
		}
		if ok, why := r.c.Alive(); !ok {
			t.Errorf("not alive: %s", why)
		}
		if n := r.log.count("not in the group"); n != 1 {
			t.Errorf("%d log lines in two minutes, want 1:\n%s", n, r.log)
		}
		network.heal()
		w.awaitCommit(0, 1)
		r.awaitRole(RoleActive)
	})
}

func TestBrokersGoneForALongTime(t *testing.T) {
	inWorld(t, 2, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 5)...)
		h := new(fakeHandler)
		r := w.start("a", h)
		w.awaitCommit(0, 5)
		r.net.cut(true)
		time.Sleep(10 * time.Minute)
		if n := r.log.count("WARN"); n > 12 {
			t.Errorf("%d warnings in ten minutes:\n%s", n, r.log)
		}
		if st := r.c.Status(); st.Role != RoleJoining || st.GateOpen || st.Reason == "" {
			t.Errorf("status without brokers: %+v", st)
		}
		if got := r.metric("packship_assigned_partitions"); got != 0 {
			t.Errorf("packship_assigned_partitions is %v outside the group, want 0", got)
		}
		r.c.setAway("joining the group", errors.New("no coordinator"))
		r.c.setAway("joining the group", nil) // the next try
		if _, why := r.c.Ready(); why != "joining the group: no coordinator" {
			t.Errorf("not ready because of %q, which does not say how the last try failed", why)
		}
		if ok, why := r.c.Alive(); !ok {
			t.Errorf("not alive: %s", why)
		}
		r.net.heal()
		r.awaitRole(RoleActive)
		w.produce(0, events("s", 100, 5)...)
		w.awaitCommit(0, 10)
		w.commits.neverBack(t)
	})
}

// What is under way when the process is told to stop is finished and
// committed; what only waits is given up; the gate closes at once.
func TestStop(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 10)...)
		var mu sync.Mutex
		var causes []error
		h := &fakeHandler{work: func(ctx context.Context, _ *Gate, rec *schema.Record, _ *schema.Packed) error {
			switch {
			case rec.Offset < 3:
				return nil
			case rec.Offset < 6: // a call under way
				time.Sleep(8 * time.Second)
				return nil
			default: // waits for its turn
				<-ctx.Done()
				mu.Lock()
				defer mu.Unlock()
				causes = append(causes, context.Cause(ctx))
				return context.Cause(ctx)
			}
		}}
		r := w.start("a", h)
		w.awaitCommit(0, 3)
		began := time.Now()
		r.stopRun()
		synctest.Wait()
		if r.c.gate.IsOpen() {
			t.Error("the gate is open after the stop")
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 9*time.Second {
			t.Errorf("the stop took %s", took)
		}
		if got := w.committedAt(0); got != 6 {
			t.Errorf("committed %d, want 6", got)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(causes) != 4 || slices.ContainsFunc(causes, func(err error) bool { return !errors.Is(err, errStopped) }) {
			t.Errorf("waiting handlers ended with %v, want four times %v", causes, errStopped)
		}
		if n := len(w.cluster.GroupInfo(testGroup).Members); n != 0 {
			t.Errorf("the group still has %d members", n)
		}
	})
}

// A rebalance in the middle of the drain must not cost what the drain settles.
func TestRebalanceDuringTheStop(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 10)...)
		h := &fakeHandler{work: func(context.Context, *Gate, *schema.Record, *schema.Packed) error {
			time.Sleep(12 * time.Second)
			return nil
		}}
		a := w.start("a", h)
		await(t, "all records to be in flight", func() bool { began, _ := h.count(); return began == 10 })
		a.awaitRole(RoleActive)
		a.stopRun()
		second := new(fakeHandler)
		b := w.start("b", second)
		b.awaitRole(RoleStandby)
		if err := a.stop(); err != nil {
			t.Error(err)
		}
		if got := w.committedAt(0); got != 10 {
			t.Errorf("committed %d, want 10", got)
		}
		b.awaitRole(RoleActive)
		if began, _ := second.count(); began != 0 {
			t.Errorf("%d records were handled again", began)
		}
	})
}

func TestStopIsBounded(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 3)...)
		release := make(chan struct{})
		h := &fakeHandler{work: func(context.Context, *Gate, *schema.Record, *schema.Packed) error {
			<-release
			return nil
		}}
		r := w.start("a", h)
		await(t, "all records to be in flight", func() bool { began, _ := h.count(); return began == 3 })
		began := time.Now()
		if err := r.stop(); err == nil {
			t.Error("Run returned no error although handlers have not returned")
		}
		if took := time.Since(began); took > 25*time.Second {
			t.Errorf("the stop took %s with a stop timeout of 20s", took)
		}
		close(release)
	})
}

func TestStopDoesNotWaitForAHungBroker(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 3)...)
		h := &fakeHandler{work: func(ctx context.Context, _ *Gate, _ *schema.Record, _ *schema.Packed) error {
			<-ctx.Done()
			return nil
		}}
		r := w.start("a", h)
		await(t, "all records to be in flight", func() bool { began, _ := h.count(); return began == 3 })
		w.cluster.Control(func(kmsg.Request) (kmsg.Response, error, bool) {
			w.cluster.KeepControl()
			return nil, nil, true // never an answer
		})
		began := time.Now()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("the stop took %s", took)
		}
		if n := r.log.count("settled records not committed"); n != 1 {
			t.Errorf("%d log lines about the commit that was not possible, want 1", n)
		}
		r.net.cut(true)
	})
}

// A dial that never returns keeps the group's own goroutine, but not Run.
func TestStopDoesNotWaitForAHungDial(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		release := make(chan struct{})
		defer close(release)
		var hang atomic.Bool
		r := w.start("a", new(fakeHandler), func(c *Config) {
			dial := c.Dialer.DialFunc
			c.Dialer.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if hang.Load() {
					<-release
				}
				return dial(ctx, network, addr)
			}
		})
		r.awaitRole(RoleActive)
		hang.Store(true)
		began := time.Now()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 2*leaveLimit {
			t.Errorf("the stop took %s", took)
		}
		if n := r.log.count("group not left"); n != 1 {
			t.Errorf("%d log lines say that the group was not left, want 1", n)
		}
	})
}

func TestStopBeforeItEverJoined(t *testing.T) {
	inWorld(t, 0, func(w *world) {
		t := w.t
		r := w.start("a", new(fakeHandler))
		time.Sleep(3 * time.Second)
		began := time.Now()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the stop took %s", took)
		}
	})
}

// The gate opens only after the ledger has caught up, however often that takes.
func TestGateWaitsForTheLedger(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, event("s", 1))
		var tries atomic.Int32
		var failing atomic.Bool
		failing.Store(true)
		h := new(fakeHandler)
		r := w.start("a", h, func(c *Config) {
			c.CatchUp = func(ctx context.Context) error {
				tries.Add(1)
				if failing.Load() {
					return errors.New("ledger: not readable")
				}
				return ctx.Err()
			}
		})
		await(t, "several tries", func() bool { return tries.Load() > 5 })
		st := r.c.Status()
		if st.GateOpen || st.Role != RoleActive || st.Reason != "waiting for the ledger: ledger: not readable" {
			t.Errorf("status while the ledger is behind: %+v", st)
		}
		if began, _ := h.count(); began != 0 {
			t.Errorf("%d records were handled while the gate was closed", began)
		}
		failing.Store(false)
		r.awaitRole(RoleActive)
		w.awaitCommit(0, 1)
		if n := r.log.count("kafka request failed", "catch up"); n != 1 {
			t.Errorf("%d log lines about the ledger, want 1", n)
		}
	})
}

// Joins and leaves of standbys every two seconds leave the holder enough time
// to get on, and nothing is handled twice.
func TestRebalanceStorm(t *testing.T) {
	inWorld(t, 3, func(w *world) {
		t := w.t
		h := &fakeHandler{work: func(ctx context.Context, g *Gate, _ *schema.Record, _ *schema.Packed) error {
			if err := g.Wait(ctx); err != nil {
				return err
			}
			time.Sleep(1200 * time.Millisecond)
			return nil
		}}
		a := w.start("a", h)
		a.awaitRole(RoleActive)
		closed := watchGate(t, &a.c.gate)
		began := time.Now()
		const rounds = 20
		for i := range rounds {
			for p := range 3 {
				w.produce(p, events("s", 10_000*p+100*i, 10)...)
			}
			b := w.start(fmt.Sprintf("b%d", i), new(fakeHandler))
			time.Sleep(2 * time.Second)
			if err := b.stop(); err != nil {
				t.Error(err)
			}
		}
		for p := range 3 {
			w.awaitCommit(p, 10*rounds)
		}
		var shut time.Duration
		pauses := closed()
		for _, p := range pauses {
			shut += p
		}
		took := time.Since(began)
		t.Logf("%d joins and leaves in %s: gate closed %d times, %s in all", rounds, took, len(pauses), shut)
		if shut > took/10 {
			t.Errorf("the gate was closed for %s of %s", shut, took)
		}
		if began, settled := h.count(); began != 30*rounds || settled != 30*rounds {
			t.Errorf("began %d and settled %d records, want %d each", began, settled, 30*rounds)
		}
		h.inOrder(t)
		w.commits.neverBack(t)
	})
}
