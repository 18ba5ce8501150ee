package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/fetch"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/producer/internal/brokertest"
	"packship/schema"
)

const (
	testPartitions = 4
	testHorizon    = 168 * time.Hour
	testStartBy    = 5 * time.Second
	testLease      = (5 + 15 + 30) * time.Second * 101 / 100
)

// replica is a Ledger that runs.
type replica struct {
	*Ledger
	log   *logs
	reg   *prometheus.Registry
	brake *brake
	// kill ends it without a good-bye, as a crash does, and returns what Run has
	// returned.
	kill func() error
}

// logs collects what is logged.
type logs struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.String()
}

// quiet logs nothing.
var quiet = slog.New(slog.DiscardHandler)

// brake holds up the fetches of a client.
type brake struct {
	kafka.RoundTripper
	held    atomic.Pointer[chan struct{}]
	stopped sync.Map     // by partition: that a fetch was held up
	behind  atomic.Bool  // the leader is new, and does not know yet how far others have read
	over    atomic.Bool  // the client is over its quota
	short   atomic.Int32 // as many ends are told as if the last record were not there
	fetches atomic.Int32
	looks   atomic.Int32 // for the ends of partitions
}

// hold holds up the fetches that begin from now on, until release is called.
func (b *brake) hold() (release func()) {
	held := make(chan struct{})
	b.held.Store(&held)
	return func() {
		b.held.Store(nil)
		close(held)
	}
}

// await waits until a fetch of a partition is held up: none is under way any more.
func (b *brake) await(partition int) {
	for _, ok := b.stopped.Load(partition); !ok; _, ok = b.stopped.Load(partition) {
		time.Sleep(time.Millisecond)
	}
}

func (b *brake) RoundTrip(ctx context.Context, addr net.Addr, req kafka.Request) (kafka.Response, error) {
	if req, ok := req.(*fetch.Request); ok {
		b.fetches.Add(1)
		if held := b.held.Load(); held != nil {
			b.stopped.Store(int(req.Topics[0].Partitions[0].Partition), true)
			select {
			case <-*held:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if b.over.Load() {
			return &fetch.Response{ThrottleTimeMs: 1000}, nil
		}
		if b.behind.Load() {
			time.Sleep(fetchWait)
			return &fetch.Response{Topics: []fetch.ResponseTopic{{Partitions: make([]fetch.ResponsePartition, 1)}}}, nil
		}
	}
	if _, ok := req.(*listoffsets.Request); ok {
		b.looks.Add(1)
	}
	res, err := b.RoundTripper.RoundTrip(ctx, addr, req)
	if ends, ok := res.(*listoffsets.Response); ok && b.short.Load() > 0 {
		for _, t := range ends.Topics {
			for i := range t.Partitions {
				if p := &t.Partitions[i]; p.Offset > 0 {
					p.Offset--
					b.short.Add(-1)
				}
			}
		}
	}
	return res, err
}

// launch starts a replica without waiting until it is ready.
func launch(tb testing.TB, b *brokertest.Broker, topic, instance string, change ...func(*Config)) *replica {
	tb.Helper()
	r := &replica{log: new(logs), reg: prometheus.NewPedanticRegistry()}
	cfg := Config{
		Client: b.Client(tb, topic), Topic: topic, Partitions: testPartitions, Horizon: testHorizon,
		StartBy: testStartBy, CallTimeout: 15 * time.Second, Settle: 30 * time.Second,
		Instance: instance, Logger: slog.New(slog.NewTextHandler(r.log, nil)), Registerer: r.reg,
	}
	for _, c := range change {
		c(&cfg)
	}
	r.brake = &brake{RoundTripper: cfg.Client.Transport}
	cfg.Client.Transport = r.brake
	l, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	r.Ledger = l
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	r.kill = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	tb.Cleanup(func() {
		if err := r.kill(); err != nil && !tb.Failed() {
			tb.Errorf("run: %v", err)
		}
	})
	return r
}

// start starts a replica and waits until it is ready.
func start(tb testing.TB, b *brokertest.Broker, topic, instance string, change ...func(*Config)) *replica {
	tb.Helper()
	r := launch(tb, b, topic, instance, change...)
	if err := r.WaitReady(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return r
}

func shipment(n int) *schema.Shipment {
	return &schema.Shipment{ShopID: "7", TID: fmt.Sprint(1000 + n), Split: "0", OutSID: fmt.Sprintf("SF%d", n), CompanyCode: "SF"}
}

func outcomeOf(tb testing.TB, s *schema.Shipment, round int, failure *schema.Failure) schema.Outcome {
	tb.Helper()
	r := schema.Result{
		ShopID: s.ShopID, TID: s.TID, OutSID: s.OutSID, CompanyCode: s.CompanyCode, Failure: failure,
		Upstream: &schema.Exchange{HTTPStatus: 200},
	}
	o, err := r.Outcome(s, round, time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	return o
}

func refusal() *schema.Failure {
	return &schema.Failure{Reason: "waybill_already_used", Class: "waybill_rejected"}
}

func maybe() *schema.Failure {
	f := refusal()
	f.MaybeShipped = true
	return f
}

func claim(tb testing.TB, r *replica, s *schema.Shipment, event, prev string) schema.Hold {
	tb.Helper()
	h, held, err := r.Claim(tb.Context(), s, event, prev, "")
	if err != nil || !held {
		tb.Fatalf("claim %s for %s: got %v, %v", s.TID, event, held, err)
	}
	return h
}

func settle(tb testing.TB, r *replica, s *schema.Shipment, event string, h schema.Hold, failure *schema.Failure) schema.Outcome {
	tb.Helper()
	return settleFor(tb, r, s, event, h, failure, "")
}

// settleFor settles a shipment for an order group.
func settleFor(tb testing.TB, r *replica, s *schema.Shipment, event string, h schema.Hold, failure *schema.Failure, group string) schema.Outcome {
	tb.Helper()
	o := outcomeOf(tb, s, h.Round, failure)
	if err := r.Settle(tb.Context(), s, event, h, schema.Settlement{Outcome: o, Group: group}); err != nil {
		tb.Fatal(err)
	}
	return o
}

func wantStored(tb testing.TB, r *replica, s *schema.Shipment, event string, want schema.Outcome) {
	tb.Helper()
	got, err := r.Stored(tb.Context(), s, event)
	if err != nil {
		tb.Fatalf("stored: %v", err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Errorf("stored outcome of %s for %s (-want +got):\n%s", s.TID, event, diff)
	}
}

func wantStanding(tb testing.TB, r *replica, s *schema.Shipment, event string, want schema.Standing) {
	tb.Helper()
	if diff := cmp.Diff(want, r.Look(s, event), cmpopts.IgnoreFields(schema.Standing{}, "FreeAt")); diff != "" {
		tb.Errorf("%s for %s (-want +got):\n%s", s.TID, event, diff)
	}
}

// TestLife takes a shipment through everything that can come of it.
func TestLife(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
			r := start(t, b, topic, "a")
			s := shipment(1)
			wantStanding(t, r, s, "e1", schema.Standing{Round: 1})
			if _, err := r.Stored(t.Context(), s, "e1"); !errors.Is(err, ErrNotSettled) {
				t.Errorf("stored before anything: got %v", err)
			}

			before := time.Now()
			h := claim(t, r, s, "e1", "")
			if h.Round != 1 || h.Prior != 0 || h.Doubt || h.StartBy.Before(before.Add(testStartBy)) || h.StartBy.After(time.Now().Add(testStartBy)) {
				t.Errorf("got %+v", h)
			}
			wantStanding(t, r, s, "e1", schema.Standing{State: schema.StateHeld, Round: 1, Holder: h.Attempt, Mine: true})
			if _, held, err := r.Claim(t.Context(), s, "e1", "", ""); held || err != nil {
				t.Errorf("a second claim: got %v, %v", held, err)
			}
			if err := r.Release(t.Context(), s, h, "throttled", schema.Charge{}); err != nil {
				t.Fatal(err)
			}
			wantStanding(t, r, s, "e1", schema.Standing{Round: 1})

			h = claim(t, r, s, "e1", "")
			first := settle(t, r, s, "e1", h, refusal())
			wantStanding(t, r, s, "e1", schema.Standing{State: schema.StateSettled, Verdict: schema.Failed, Round: 1, Attempts: 1})
			wantStored(t, r, s, "e1", first)
			if _, held, err := r.Claim(t.Context(), s, "e1", "", ""); held || err != nil {
				t.Errorf("a claim for an answered event: got %v, %v", held, err)
			}

			// A corrected event is a new round. Its first call stays without an
			// answer.
			wantStanding(t, r, s, "e2", schema.Standing{Round: 2, Attempts: 1})
			h = claim(t, r, s, "e2", "")
			if h.Round != 2 || h.Prior != 1 || h.Doubt {
				t.Errorf("second round: got %+v", h)
			}
			wantStanding(t, r, s, "e1", schema.Standing{State: schema.StateSettled, Verdict: schema.Failed, Round: 1, Attempts: 1})
			h = claim(t, r, s, "e2", h.Attempt)
			if h.Round != 2 || h.Prior != 2 || !h.Doubt {
				t.Errorf("second round, second attempt: got %+v", h)
			}
			if err := r.Settle(t.Context(), s, "e2", h, schema.Settlement{Outcome: outcomeOf(t, s, 2, refusal())}); err == nil {
				t.Error("a failure that hides a doubt was settled")
			}
			if err := r.Settle(t.Context(), s, "e2", h, schema.Settlement{Outcome: outcomeOf(t, s, 1, maybe())}); err == nil {
				t.Error("an outcome of another round was settled")
			}
			second := settle(t, r, s, "e2", h, maybe())
			wantStored(t, r, s, "e1", first)
			wantStored(t, r, s, "e2", second)

			// A third event ships, which then answers all of them.
			wantStanding(t, r, s, "e3", schema.Standing{Round: 3, Attempts: 3, Doubt: true})
			third := settle(t, r, s, "e3", claim(t, r, s, "e3", ""), nil)
			for _, event := range []string{"e1", "e2", "e3", "e4"} {
				wantStanding(t, r, s, event, schema.Standing{State: schema.StateSettled, Verdict: schema.Shipped, Round: 3})
				wantStored(t, r, s, event, third)
			}
			if err := r.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if _, held, err := r.Claim(t.Context(), shipment(2), "e", "", ""); held || err == nil {
				t.Error("a claim after the good-bye succeeded")
			}
		})
	}
}

func TestRefuse(t *testing.T) {
	b := brokertest.Fake(t)
	topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
	r := start(t, b, topic, "a")
	s := shipment(1)

	// An outcome that was made for another round loses.
	if err := r.Refuse(t.Context(), s, "e1", outcomeOf(t, s, 2, refusal())); err != nil {
		t.Fatal(err)
	}
	wantStanding(t, r, s, "e1", schema.Standing{Round: 1})

	o := outcomeOf(t, s, 1, refusal())
	if err := r.Refuse(t.Context(), s, "e1", o); err != nil {
		t.Fatal(err)
	}
	wantStored(t, r, s, "e1", o)
	wantStanding(t, r, s, "e2", schema.Standing{Round: 2}) // no attempt was made

	// Somebody else holds it.
	h := claim(t, r, s, "e2", "")
	if err := r.Refuse(t.Context(), s, "e3", outcomeOf(t, s, 2, refusal())); err != nil {
		t.Fatal(err)
	}
	wantStanding(t, r, s, "e3", schema.Standing{State: schema.StateHeld, Round: 2, Holder: h.Attempt, Mine: true})

	// It is in doubt.
	settle(t, r, s, "e2", h, maybe())
	if err := r.Refuse(t.Context(), s, "e3", outcomeOf(t, s, 3, refusal())); err == nil {
		t.Error("a refusal that hides a doubt was accepted")
	}
	if err := r.Refuse(t.Context(), s, "e3", outcomeOf(t, s, 3, maybe())); err != nil {
		t.Fatal(err)
	}
	wantStanding(t, r, s, "e4", schema.Standing{Round: 4, Attempts: 1, Doubt: true})
}

// TestClaimRace has two processes claim the same shipments at the same time.
func TestClaimRace(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			race(t, b, 200, func(string) {})
		})
	}
}

// TestClaimRaceOnFaultyBrokers does so while the cluster misbehaves.
func TestClaimRaceOnFaultyBrokers(t *testing.T) {
	b := brokertest.Fake(t)
	race(t, b, 200, func(topic string) {
		b.Fake.Fault(
			kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Err: kerr.RequestTimedOut, Count: 10},
			kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Err: kerr.NotEnoughReplicas, Count: 10},
			kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: topic, Err: kerr.NotLeaderForPartition, Count: 10},
			kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: topic, Err: kerr.OffsetOutOfRange, Count: 5},
		)
		for range 10 {
			for p := range int32(testPartitions) {
				_ = b.Fake.MoveTopicPartition(topic, p, rand.Int32N(3))
			}
			b.Cut()
			time.Sleep(5 * time.Millisecond)
		}
	})
}

// race has two processes claim the same shipments, one of which gets each. Then
// the same is settled by the holders.
func race(t *testing.T, b *brokertest.Broker, shipments int, disturb func(topic string)) {
	t.Helper()
	topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
	replicas := []*replica{start(t, b, topic, "a"), start(t, b, topic, "b")}
	holds := make([][]string, shipments)
	var mu sync.Mutex
	var wg sync.WaitGroup
	wg.Go(func() { disturb(topic) })
	for n := range shipments {
		for i, r := range replicas {
			for try := range 2 {
				wg.Go(func() {
					h, held, err := r.Claim(t.Context(), shipment(n), fmt.Sprintf("e%d-%d", i, try), "", "")
					if err != nil {
						t.Errorf("claim: %v", err)
					}
					if held {
						mu.Lock()
						defer mu.Unlock()
						holds[n] = append(holds[n], h.Attempt)
					}
				})
			}
		}
	}
	wg.Wait()
	wins := make(map[string]int)
	for _, r := range replicas {
		if err := r.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st := r.Status(); st.Damaged != "" {
			t.Errorf("damaged: %s", st.Damaged)
		}
	}
	for n, got := range holds {
		if len(got) != 1 {
			t.Errorf("shipment %d is held by %q", n, got)
			continue
		}
		wins[got[0][:1]]++
		for _, r := range replicas {
			if st := r.Look(shipment(n), "e"); st.Holder != got[0] {
				t.Errorf("shipment %d: got holder %q, want %q", n, st.Holder, got[0])
			}
		}
	}
	t.Logf("%d shipments, won: %v", shipments, wins)
}

// TestTakeover has a process die with a claim, and another wait for it.
func TestTakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", testPartitions, TopicConfig(testHorizon))
		a, other := start(t, b, "ledger", "a"), start(t, b, "ledger", "b")
		s := shipment(1)
		h := claim(t, a, s, "e1", "")
		if err := other.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := a.kill(); err != nil {
			t.Fatal(err)
		}

		st := other.Look(s, "e1")
		if st.Mine || st.Holder != h.Attempt {
			t.Errorf("got %+v", st)
		}
		if wait := time.Until(st.FreeAt); wait > testLease || wait < testLease-time.Second {
			t.Errorf("free in %s, want %s from the reading on", wait, testLease)
		}
		if _, held, err := other.Claim(t.Context(), s, "e1", st.Holder, ""); held || err == nil {
			t.Errorf("a takeover before the time: got %v, %v", held, err)
		}
		for time.Now().Before(st.FreeAt) {
			if err := other.Wait(t.Context(), s, "e1", st, st.FreeAt); err != nil {
				t.Fatal(err)
			}
			st = other.Look(s, "e1")
		}
		if _, held, err := other.Claim(t.Context(), s, "e1", "somebody else's", ""); held || err != nil {
			t.Errorf("a takeover from who does not hold it: got %v, %v", held, err)
		}
		taken := claim(t, other, s, "e1", st.Holder)
		if taken.Round != 1 || taken.Prior != 1 || !taken.Doubt {
			t.Errorf("got %+v", taken)
		}
		if got := testutil.ToFloat64(other.metrics.takeovers); got != 1 {
			t.Errorf("got %v takeovers counted", got)
		}

		// The dead one was only asleep. Its failure counts no more, its
		// success does.
		a = start(t, b, "ledger", "a")
		stale := outcomeOf(t, s, 1, refusal())
		if err := a.Settle(t.Context(), s, "e1", h, schema.Settlement{Outcome: stale}); err != nil {
			t.Fatal(err)
		}
		wantStanding(t, a, s, "e1", schema.Standing{State: schema.StateHeld, Round: 1, Attempts: 1, Doubt: true, Holder: taken.Attempt})
		shipped := settle(t, a, s, "e1", h, nil)
		if err := other.Settle(t.Context(), s, "e1", taken, schema.Settlement{Outcome: outcomeOf(t, s, 1, maybe())}); err != nil {
			t.Fatal(err)
		}
		wantStored(t, other, s, "e1", shipped)
	})
}

// TestFailedWithoutAnswer has a failure settled while its call may still take
// effect, and another event come for the same shipment.
func TestFailedWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", testPartitions, TopicConfig(testHorizon))
		a := start(t, b, "ledger", "a")
		s := shipment(1)
		begin := time.Now()
		h := claim(t, a, s, "e1", "")
		r := schema.Result{ShopID: s.ShopID, TID: s.TID, Failure: maybe()}
		o, err := r.Outcome(s, 1, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Settle(t.Context(), s, "e1", h, schema.Settlement{Outcome: o}); err != nil {
			t.Fatal(err)
		}
		wantStored(t, a, s, "e1", o)
		wantStanding(t, a, s, "e2", schema.Standing{State: schema.StateHeld, Round: 2, Attempts: 1, Doubt: true, Holder: h.Attempt, Mine: true})
		for _, prev := range []string{"", h.Attempt} {
			if _, held, _ := a.Claim(t.Context(), s, "e2", prev, ""); held {
				t.Errorf("it was claimed at once, with prev %q", prev)
			}
		}
		seen := a.Look(s, "e2")
		if err := a.Wait(t.Context(), s, "e2", seen, begin.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < testLease || took > testLease+time.Second {
			t.Errorf("the next round may begin after %s, want %s", took, testLease)
		}
		if h := claim(t, a, s, "e2", ""); h.Round != 2 || !h.Doubt {
			t.Errorf("got %+v", h)
		}
	})
}

// TestBye has a process stop cleanly: what it certainly did not call is free at
// once, the rest is not.
func TestBye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, TopicConfig(testHorizon))
		one := func(c *Config) { c.Partitions = 1 }
		a, other := start(t, b, "ledger", "a", one), start(t, b, "ledger", "b", one)
		called, released, settled := shipment(1), shipment(2), shipment(3)
		claim(t, a, called, "e1", "")
		hold := claim(t, a, released, "e1", "")
		settle(t, a, settled, "e1", claim(t, a, settled, "e1", ""), nil)

		// The release does not get through before the end.
		f := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.Release(ctx, released, hold, "stopped", schema.Charge{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("release: got %v", err)
		}
		if err := a.kill(); err != nil {
			t.Fatal(err)
		}
		f.Remove()
		seen := other.Look(released, "e1")
		woken := make(chan error, 1)
		go func() { woken <- other.Wait(t.Context(), released, "e1", seen, time.Now().Add(time.Hour)) }()
		if err := a.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-woken; err != nil {
			t.Fatal(err)
		}
		if st := other.Look(released, "e1"); st.Holder != hold.Attempt || st.FreeAt.After(time.Now()) {
			t.Errorf("what was released: got %+v", st)
		}
		claim(t, other, released, "e1", hold.Attempt)
		if st := other.Look(called, "e1"); time.Until(st.FreeAt) < testLease/2 {
			t.Errorf("what may have been called is free in %s", time.Until(st.FreeAt))
		}
		if st := other.Look(settled, "e1"); st.State != schema.StateSettled {
			t.Errorf("what was settled: got %+v", st)
		}
	})
}

// TestByeOfNobody has a process told to stop before it has read the ledger, or
// even begun an empty one. A good-bye that stood before the first meta record would
// look as if the beginning of the log were lost.
func TestByeOfNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, TopicConfig(testHorizon))
		f := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Err: kerr.LeaderNotAvailable, Count: -1})
		early := launch(t, b, "ledger", "a", onePartition)
		if err := early.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := early.kill(); err != nil {
			t.Error(err)
		}
		f.Remove()
		if st := start(t, b, "ledger", "b", onePartition).Status(); st.Damaged != "" || st.LostBefore != "" {
			t.Errorf("got %+v, want a ledger of which nothing is lost", st)
		}
	})
}

// TestAbandonedClaim has the context of a claim end while nobody knows whether
// its intent is in the log.
func TestAbandonedClaim(t *testing.T) {
	for name, appended := range map[string]bool{"appended": true, "not appended": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.Virtual(t)
				b.Create(t, "ledger", testPartitions, TopicConfig(testHorizon))
				a, other := start(t, b, "ledger", "a"), start(t, b, "ledger", "b")
				s := shipment(1)
				fault := kerr.NotEnoughReplicas
				if appended {
					fault = kerr.RequestTimedOut
				}
				f := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: fault, Count: -1})
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				if _, held, err := a.Claim(ctx, s, "e1", "", ""); held || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, %v", held, err)
				}
				f.Remove()
				// It is released in the background, so that nobody has to wait
				// for the end of its lease.
				ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				for {
					if err := other.CatchUp(ctx); err != nil {
						t.Fatal(err)
					}
					st := other.Look(s, "e1")
					if st.State == schema.StateOpen {
						break
					}
					if err := other.Wait(ctx, s, "e1", st, time.Now().Add(time.Minute)); err != nil {
						t.Fatal(err)
					}
				}
				claim(t, other, s, "e1", "")
			})
		})
	}
}

// TestUnsentLeavesNothing gives up what was never sent. Nothing will ever be read
// of it, so nothing may be kept of it, or it would be kept for ever.
func TestUnsentLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, TopicConfig(testHorizon))
		r := start(t, b, "ledger", "a", onePartition)
		ended, end := context.WithCancel(t.Context())
		end()
		s := shipment(1)
		if _, _, err := r.Claim(ended, s, "e1", "", ""); err == nil {
			t.Error("claimed")
		}
		if err := r.Refuse(ended, s, "e1", outcomeOf(t, s, 1, refusal())); err == nil {
			t.Error("refused")
		}
		p := r.partitions[0]
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.claiming)+len(p.disowned) != 0 {
			t.Errorf("kept %v and %v", p.claiming, p.disowned)
		}
	})
}

// TestNoLedgerNoClaim sees that nothing is claimed while the ledger is away, and that
// a claim does not wait any longer than a call under it could begin.
func TestNoLedgerNoClaim(t *testing.T) {
	for name, key := range map[string]kmsg.Key{"it takes nothing": kmsg.Produce, "it tells nothing": kmsg.Fetch} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.Virtual(t)
				b.Create(t, "ledger", testPartitions, TopicConfig(testHorizon))
				a := start(t, b, "ledger", "a")
				s := shipment(1)
				f := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{key}, Err: kerr.LeaderNotAvailable, Count: -1})
				for range 3 {
					begin := time.Now()
					_, held, err := a.Claim(t.Context(), s, "e1", "", "")
					if held || !errors.Is(err, errTooLate) {
						t.Errorf("got %v, %v", held, err)
					}
					if took := time.Since(begin); took != testStartBy {
						t.Errorf("took %s, want %s", took, testStartBy)
					}
				}
				time.Sleep(time.Minute)
				if got := a.log.String(); strings.Count(got, "level=WARN") > 2 {
					t.Errorf("too many lines for one outage:\n%s", got)
				}
				f.Remove()
				begin := time.Now()
				for st := a.Look(s, "e1"); st.State != schema.StateOpen || time.Since(begin) < 10*time.Second; st = a.Look(s, "e1") {
					if time.Since(begin) > testLease/2 {
						t.Fatalf("what was given up is not released: %+v", st)
					}
					time.Sleep(time.Second)
				}
				claim(t, a, s, "e1", "")
				p := a.partition(s)
				p.mu.Lock()
				defer p.mu.Unlock()
				if len(p.claiming)+len(p.disowned) != 0 {
					t.Errorf("kept %v and %v", p.claiming, p.disowned)
				}
			})
		})
	}
}

// history has replicas do random things, the same for the same seed.
func history(tb testing.TB, seed uint64, steps int, replicas ...*replica) {
	tb.Helper()
	rnd := rand.New(rand.NewPCG(seed, 0))
	holds := make(map[int]schema.Hold)
	for range steps {
		n := rnd.IntN(50)
		s := shipment(n)
		event := fmt.Sprintf("e%d", rnd.IntN(4))
		r := replicas[rnd.IntN(len(replicas))]
		if err := r.CatchUp(tb.Context()); err != nil {
			tb.Fatal(err)
		}
		st := r.Look(s, event)
		switch {
		case st.State == schema.StateOpen && rnd.IntN(4) == 0:
			o := outcomeOf(tb, s, st.Round, refusal())
			if st.Doubt {
				o = outcomeOf(tb, s, st.Round, maybe())
			}
			if err := r.Refuse(tb.Context(), s, event, o); err != nil {
				tb.Fatal(err)
			}
		case st.State == schema.StateOpen:
			holds[n] = claim(tb, r, s, event, "")
		case st.State == schema.StateHeld:
			switch h := holds[n]; rnd.IntN(5) {
			case 0:
				if err := r.Release(tb.Context(), s, h, "throttled", schema.Charge{}); err != nil {
					tb.Fatal(err)
				}
			case 1:
				if st.Mine {
					holds[n] = claim(tb, r, s, event, st.Holder)
				}
			case 2:
				settle(tb, r, s, event, h, nil)
			default:
				f := refusal()
				if h.Doubt {
					f = maybe()
				}
				settle(tb, r, s, event, h, f)
			}
		}
	}
}

// snapshot describes everything that a replica knows, but for its clock.
func snapshot(r *replica) map[string]any {
	all := make(map[string]any)
	for _, p := range r.partitions {
		p.mu.Lock()
		for key, o := range p.fold.open {
			copied := *o
			copied.read, copied.freeAt = time.Time{}, time.Time{}
			all[fmt.Sprintf("%x", key)] = copied
		}
		for _, d := range p.fold.days {
			for key, at := range d.shipped {
				all[fmt.Sprintf("%x", key)] = fmt.Sprint(d.n, at.offset(), at.round(), at.failed())
			}
			for key, f := range d.failed {
				all[fmt.Sprintf("%x", key)] = fmt.Sprint(d.n, f.at().offset(), f.at().round(), f.attempts, f.doubt, d.answers(key))
			}
		}
		p.mu.Unlock()
	}
	return all
}

// TestRestore sees that a process that is started knows what those know that
// were there from the beginning.
func TestRestore(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
			a, other := start(t, b, topic, "a"), start(t, b, topic, "b")
			history(t, seed, 500, a, other)
			for _, r := range []*replica{a, other} {
				if err := r.CatchUp(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			late := start(t, b, topic, "c")
			want := snapshot(a)
			for _, r := range []*replica{other, late} {
				if diff := cmp.Diff(want, snapshot(r), cmp.AllowUnexported(open{}, answer{})); diff != "" {
					t.Errorf("%s differs from a (-a +it):\n%s", r.self, diff)
				}
			}
			if st := late.Status(); st.Entries != a.Status().Entries || !st.Ready || st.Damaged != "" || st.RestoreSeconds <= 0 {
				t.Errorf("got status %+v", st)
			}
			t.Logf("%d entries: %+v", len(want), late.Status())
		})
	}
}

// TestEpochs has several processes find the topic empty at the same time.
func TestEpochs(t *testing.T) {
	b := brokertest.Fake(t)
	topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
	var replicas []*replica
	for n := range 4 {
		replicas = append(replicas, launch(t, b, topic, fmt.Sprint(n)))
	}
	for _, r := range replicas {
		if err := r.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range replicas {
		if st := r.Status(); st.Damaged != "" {
			t.Errorf("%s: damaged: %s", r.self, st.Damaged)
		}
		for n, p := range r.partitions {
			if got, want := p.epoch(), replicas[0].partitions[n].epoch(); got != want || got == "" {
				t.Errorf("%s, partition %d: got epoch %q, want %q", r.self, n, got, want)
			}
		}
	}
}

// TestMetaIsRenewed sees that there is a fresh meta record at all times.
func TestMetaIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, TopicConfig(testHorizon))
		one := func(c *Config) { c.Partitions, c.Horizon = 1, 20*time.Minute }
		a := start(t, b, "ledger", "a", one)
		epoch := a.partitions[0].epoch()
		time.Sleep(53 * time.Minute)
		log := b.Log(t, "ledger", 0)
		if len(log) < 9 || len(log) > 11 {
			t.Errorf("got %d meta records in 53 minutes with a horizon of 20", len(log))
		}
		for i, rec := range log {
			r, err := decode(rec.Value)
			if err != nil || r.Kind != kindMeta || r.Meta.Epoch != epoch || r.Meta.Renews.IsZero() != (i == 0) {
				t.Errorf("record %d: got %s, %v", i, rec.Value, err)
			}
		}
		if st := start(t, b, "ledger", "b", one).Status(); st.Damaged != "" {
			t.Errorf("damaged: %s", st.Damaged)
		}
	})
}

// TestMetaOutlivesTheRest has a ledger stand still for so long that retention takes
// all but what was written last. It is still the same ledger, and nothing is lost.
func TestMetaOutlivesTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, map[string]string{"retention.ms": "-1"})
		one := func(c *Config) { c.Partitions, c.Horizon = 1, 20*time.Minute }
		a := start(t, b, "ledger", "a", one)
		time.Sleep(4 * time.Minute)
		last, _ := a.partitions[0].position()
		settle(t, a, shipment(1), "e1", claim(t, a, shipment(1), "e1", ""), nil)
		mark := a.Bookmark()
		if err := a.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := a.kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(17 * time.Minute)
		b.DeleteRecords(t, "ledger", 0, last)
		r := start(t, b, "ledger", "b", one)
		r.Resume(mark)
		if err := r.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st := r.Status(); st.Damaged != "" || st.LostBefore != "" {
			t.Errorf("got %+v, want a ledger of which nothing is lost", st)
		}
	})
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", testPartitions, TopicConfig(testHorizon))
		a := start(t, b, "ledger", "a")
		s := shipment(1)

		begin := time.Now()
		if err := a.Wait(t.Context(), s, "e1", a.Look(s, "e1"), begin.Add(time.Minute)); err != nil || time.Since(begin) != time.Minute {
			t.Errorf("nothing happens: got %v after %s", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.Wait(ctx, s, "e1", a.Look(s, "e1"), begin.Add(time.Hour)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the context ends: got %v", err)
		}
		if err := a.Wait(t.Context(), s, "e1", a.Look(s, "e1"), begin); err != nil {
			t.Errorf("the time has passed: got %v", err)
		}

		// Thousands wait for their shipments, and are woken by what concerns
		// them only.
		const shipments, waiters = 100, 50
		seen := make(map[int]schema.Standing)
		holds := make(map[int]schema.Hold)
		for n := range shipments {
			holds[n] = claim(t, a, shipment(n), "e1", "")
			seen[n] = a.Look(shipment(n), "e1")
		}
		var wg sync.WaitGroup
		woken := make(chan int, shipments*waiters)
		for n := range shipments {
			for range waiters {
				wg.Go(func() {
					if err := a.Wait(t.Context(), shipment(n), "e1", seen[n], time.Now().Add(5*time.Minute)); err != nil {
						t.Error(err)
					}
					woken <- n
				})
			}
		}
		synctest.Wait()
		for n := range shipments / 2 {
			settle(t, a, shipment(n), "e1", holds[n], nil)
		}
		synctest.Wait()
		if got := len(woken); got != shipments/2*waiters {
			t.Errorf("%d were woken, want %d", got, shipments/2*waiters)
		}
		for range shipments / 2 * waiters {
			if n := <-woken; n >= shipments/2 {
				t.Errorf("a waiter for %d was woken", n)
			}
		}
		begin = time.Now()
		wg.Wait() // the others come back at their time
		if took := time.Since(begin); took < 4*time.Minute || took > 5*time.Minute {
			t.Errorf("took %s", took)
		}
		for _, p := range a.partitions {
			if len(p.watched) > 0 {
				t.Errorf("partition %d still watches %d shipments", p.n, len(p.watched))
			}
		}
	})
}

// TestCatchUp sees that whatever was acknowledged before is known afterwards.
func TestCatchUp(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
			a, other := start(t, b, topic, "a"), start(t, b, topic, "b")
			for n := range 50 {
				h := claim(t, a, shipment(n), "e1", "")
				if err := other.CatchUp(t.Context()); err != nil {
					t.Fatal(err)
				}
				if st := other.Look(shipment(n), "e1"); st.Holder != h.Attempt {
					t.Fatalf("shipment %d: got %+v, want holder %s", n, st, h.Attempt)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := other.CatchUp(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestCatchUpWaits sees that it does not give up while the ledger is away.
func TestCatchUpWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", testPartitions, TopicConfig(testHorizon))
		a := start(t, b, "ledger", "a")
		f := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Err: kerr.OffsetNotAvailable, Count: -1})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := a.CatchUp(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, kafka.OffsetNotAvailable) {
			t.Errorf("got %v", err)
		}
		begin := time.Now()
		time.AfterFunc(time.Minute, f.Remove)
		if err := a.CatchUp(t.Context()); err != nil || time.Since(begin) < time.Minute {
			t.Errorf("got %v after %s", err, time.Since(begin))
		}
		if st := a.Status(); st.Damaged != "" {
			t.Errorf("damaged: %s", st.Damaged)
		}
	})
}

// TestRefresh settles a shipment while the fetches of another replica are held up.
func TestRefresh(t *testing.T) {
	b := brokertest.Fake(t)
	topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
	a, other := start(t, b, topic, "a"), start(t, b, topic, "b")
	release := other.brake.hold()
	// A fetch that was under way brings the first of them, not the second.
	var s *schema.Shipment
	for _, waybill := range []string{"SF1", "SF2"} {
		s = shipment(1)
		s.OutSID = waybill
		settle(t, a, s, "e1", claim(t, a, s, "e1", ""), refusal())
		other.brake.await(other.partition(s).n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := other.Refresh(ctx, s); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v while nothing can be read", err)
	}
	wantStanding(t, other, s, "e1", schema.Standing{Round: 1})
	release()
	if err := other.Refresh(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	wantStanding(t, other, s, "e1", schema.Standing{State: schema.StateSettled, Verdict: schema.Failed, Round: 1, Attempts: 1})
}

// TestRefreshTogether has many wait for the same look at the ledger.
func TestRefreshTogether(t *testing.T) {
	const waiters = 50
	b := brokertest.Fake(t)
	a := start(t, b, b.Topic(t, testPartitions, TopicConfig(testHorizon)), "a")
	release := a.brake.hold()
	before := a.brake.looks.Load()
	var wg sync.WaitGroup
	for range waiters {
		wg.Go(func() {
			if err := a.Refresh(t.Context(), shipment(1)); err != nil {
				t.Error(err)
			}
		})
	}
	p := a.partition(shipment(1))
	for p.looks.Load() == 0 {
		runtime.Gosched()
	}
	release()
	wg.Wait()
	// Those that came after the first look had begun have shared the next ones.
	if looks := a.brake.looks.Load() - before; looks < 1 || looks >= waiters/2 {
		t.Errorf("the end of the ledger was asked for %d times by %d waiters", looks, waiters)
	}
}

func TestMetricsAndStatus(t *testing.T) {
	b := brokertest.Fake(t)
	topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
	a := start(t, b, topic, "a")
	h := claim(t, a, shipment(1), "e1", "")
	claim(t, a, shipment(1), "e1", h.Attempt)
	settle(t, a, shipment(2), "e1", claim(t, a, shipment(2), "e1", ""), nil)
	want := `
# HELP packship_in_doubt Shipments without an outcome of which an attempt may have shipped.
# TYPE packship_in_doubt gauge
packship_in_doubt 1
# HELP packship_ledger_damaged 1 if records of the ledger were lost or cannot be read, or its topic is set so that they will be.
# TYPE packship_ledger_damaged gauge
packship_ledger_damaged 0
# HELP packship_ledger_entries Shipments that the ledger knows.
# TYPE packship_ledger_entries gauge
packship_ledger_entries 2
# HELP packship_ledger_records_total Records read from the ledger, also those of other replicas.
# TYPE packship_ledger_records_total counter
packship_ledger_records_total{kind="bye"} 0
packship_ledger_records_total{kind="intent"} 2
packship_ledger_records_total{kind="meta"} 4
packship_ledger_records_total{kind="outcome"} 1
packship_ledger_records_total{kind="release"} 0
packship_ledger_records_total{kind="takeover"} 1
# HELP packship_takeovers_total Shipments that this process took over from an attempt with an unknown outcome, its own included.
# TYPE packship_takeovers_total counter
packship_takeovers_total 1
`
	if err := testutil.GatherAndCompare(a.reg, strings.NewReader(want), "packship_in_doubt", "packship_ledger_damaged",
		"packship_ledger_entries", "packship_ledger_records_total", "packship_takeovers_total"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"packship_ledger_append_duration_seconds", "packship_ledger_readback_duration_seconds", "packship_ledger_restore_seconds"} {
		if n, err := testutil.GatherAndCount(a.reg, name); err != nil || n != 1 {
			t.Errorf("%s: got %d series, %v", name, n, err)
		}
	}
	got := a.Status()
	if got.RestoreSeconds <= 0 || !strings.HasPrefix(got.Incarnation, "a/") {
		t.Errorf("got %+v", got)
	}
	got.RestoreSeconds, got.Incarnation = 0, ""
	if diff := cmp.Diff(Status{Ready: true, Partitions: testPartitions, Entries: 2, Held: 1, InDoubt: 1}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// scrapedAtOnce is a registry that is scraped whenever it gets a collector, as
// one that is already served can be.
type scrapedAtOnce struct {
	*prometheus.Registry
	tb testing.TB
}

func (s scrapedAtOnce) Register(c prometheus.Collector) error {
	err := s.Registry.Register(c)
	if _, failed := s.Gather(); failed != nil {
		s.tb.Error(failed)
	}
	return err
}

func (s scrapedAtOnce) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		if err := s.Register(c); err != nil {
			panic(err)
		}
	}
}

// TestScrapeWhileMade has the metrics asked for while the ledger is not whole.
func TestScrapeWhileMade(t *testing.T) {
	reg := scrapedAtOnce{prometheus.NewPedanticRegistry(), t}
	_, err := New(Config{
		Client: &kafka.Client{}, Topic: "ledger", Partitions: 1, Horizon: testHorizon,
		StartBy: testStartBy, CallTimeout: 15 * time.Second, Settle: 30 * time.Second,
		Instance: "a", Logger: quiet, Registerer: reg,
	})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := testutil.GatherAndCount(reg, "packship_in_doubt"); err != nil || n != 1 {
		t.Errorf("got %d series, %v", n, err)
	}
}

func TestNewReportsAllProblems(t *testing.T) {
	_, err := New(Config{})
	if err == nil {
		t.Fatal("got no error")
	}
	for _, what := range []string{"client", "topic", "instance", "partitions", "horizon", "time limits"} {
		if !strings.Contains(err.Error(), what) {
			t.Errorf("%q does not speak of the %s", err, what)
		}
	}
}

func TestCheckTopic(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			for name, tt := range map[string]struct {
				partitions int
				settings   map[string]string
				want       []string // in the error; none if the topic is fine
			}{
				"as it should be":   {8, TopicConfig(testHorizon), nil},
				"keeps longer":      {8, map[string]string{"retention.ms": "704800000"}, nil},
				"keeps for ever":    {8, map[string]string{"retention.ms": "-1"}, nil},
				"few partitions":    {6, nil, []string{"6 partitions", "instead of 8", "PACKSHIP_LEDGER_PARTITIONS"}},
				"compacted":         {8, map[string]string{"cleanup.policy": "compact"}, []string{"cleanup.policy=compact", "delete"}},
				"compacts as well":  {8, map[string]string{"cleanup.policy": "compact,delete"}, []string{"cleanup.policy=compact,delete"}},
				"keeps too short":   {8, map[string]string{"retention.ms": "604799999"}, []string{"retention.ms=604799999", "604800000"}},
				"keeps by size":     {8, map[string]string{"retention.bytes": "1000000"}, []string{"retention.bytes=1000000"}},
				"wrong in all ways": {1, map[string]string{"cleanup.policy": "compact", "retention.ms": "1"}, []string{"1 partitions", "cleanup.policy", "retention.ms"}},
			} {
				t.Run(name, func(t *testing.T) {
					topic := b.Topic(t, tt.partitions, tt.settings)
					err := CheckTopic(t.Context(), b.Client(t, topic), topic, 8, testHorizon)
					if (err == nil) != (tt.want == nil) {
						t.Fatalf("got %v", err)
					}
					for _, what := range append(tt.want, topic) {
						if err != nil && !strings.Contains(err.Error(), what) {
							t.Errorf("%q does not say %q", err, what)
						}
					}
				})
			}
			err := CheckTopic(t.Context(), b.Client(t, "packship-test-none"), "packship-test-none", 8, testHorizon)
			if err == nil || !strings.Contains(err.Error(), "packship topics create") {
				t.Errorf("no topic: got %v", err)
			}
		})
	}
}

// TestCheckTopicJustCreated checks a topic that not every broker knows yet.
func TestCheckTopicJustCreated(t *testing.T) {
	b := brokertest.Fake(t)
	topic := b.Topic(t, 8, TopicConfig(testHorizon))
	unknown := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.DescribeConfigs}, Err: kerr.UnknownTopicOrPartition, Count: 2})
	if err := CheckTopic(t.Context(), b.Client(t, topic), topic, 8, testHorizon); err != nil {
		t.Error(err)
	}
	if got := unknown.Hits(); got != 2 {
		t.Errorf("the broker did not know the topic %d times, want 2", got)
	}
}

func TestTopicConfig(t *testing.T) {
	want := map[string]string{
		"cleanup.policy": "delete", "retention.ms": "604800000", "retention.bytes": "-1",
		"segment.ms": "75600000", "message.timestamp.type": "LogAppendTime",
	}
	if diff := cmp.Diff(want, TopicConfig(testHorizon)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
