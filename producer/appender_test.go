package producer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/producer/internal/brokertest"
)

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

// lines returns the lines of a level.
func (l *logs) lines(level string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []string
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, "level="+level+" ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func newLogger() (*slog.Logger, *logs) {
	l := new(logs)
	return slog.New(slog.NewTextHandler(l, nil)), l
}

// wire looks at the produce requests of a client.
type wire struct {
	kafka.RoundTripper

	mu       sync.Mutex
	inFlight map[int32]int // by partition
	overlaps int
	requests int
	records  int // the most in a request
}

func watch(client *kafka.Client) *wire {
	w := &wire{RoundTripper: client.Transport, inFlight: make(map[int32]int)}
	client.Transport = w
	return w
}

func (w *wire) RoundTrip(ctx context.Context, addr net.Addr, req kafka.Request) (kafka.Response, error) {
	if r, ok := req.(*produce.Request); ok {
		p := r.Topics[0].Partitions[0]
		n, again := count(p.RecordSet.Records)
		r.Topics[0].Partitions[0].RecordSet.Records = again
		w.mu.Lock()
		w.requests++
		w.records = max(w.records, n)
		if w.inFlight[p.Partition]++; w.inFlight[p.Partition] > 1 {
			w.overlaps++
		}
		w.mu.Unlock()
		defer func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.inFlight[p.Partition]--
		}()
	}
	return w.RoundTripper.RoundTrip(ctx, addr, req)
}

func count(r protocol.RecordReader) (int, protocol.RecordReader) {
	var records []protocol.Record
	for {
		rec, err := r.ReadRecord()
		if err != nil {
			return len(records), protocol.NewRecordReader(records...)
		}
		records = append(records, *rec)
	}
}

func newAppender(client *kafka.Client, topic string) (*Appender, *logs) {
	log, lines := newLogger()
	return NewAppender(AppenderConfig{Client: client, Topic: topic, Logger: log}), lines
}

func text(s string) Entry { return Entry{Value: []byte(s)} }

// load has callers that each append numbered records one after the other, and
// checks that the log has all of them where it was said, in each caller's order.
type load struct {
	callers, records, partitions int
}

func (l load) run(t *testing.T, b *brokertest.Broker, a *Appender, topic string) {
	t.Helper()
	type ack struct {
		partition int
		offset    int64
		value     string
	}
	acks := make([][]ack, l.callers)
	var wg sync.WaitGroup
	for c := range l.callers {
		wg.Go(func() {
			for n := range l.records {
				value := fmt.Sprintf("%d/%d", c, n)
				partition := c % l.partitions
				offset, err := a.Append(t.Context(), partition, text(value))
				if err != nil {
					t.Errorf("append %s: %v", value, err)
					return
				}
				acks[c] = append(acks[c], ack{partition, offset, value})
			}
		})
	}
	wg.Wait()
	copies := 0
	for p := range l.partitions {
		log := b.Log(t, topic, p)
		newest := make(map[string]int)
		for _, rec := range log {
			caller, number, _ := strings.Cut(string(rec.Value), "/")
			n, _ := strconv.Atoi(number)
			if last, ok := newest[caller]; ok && n < last {
				t.Errorf("partition %d: %s comes after %s/%d", p, rec.Value, caller, last)
			} else if ok && n == last {
				copies++
			}
			newest[caller] = n
		}
		at := make(map[int64]string)
		for _, rec := range log {
			at[rec.Offset] = string(rec.Value)
		}
		for _, acked := range acks {
			for _, k := range acked {
				if k.partition == p && at[k.offset] != k.value {
					t.Errorf("partition %d offset %d: got %q, want %q", p, k.offset, at[k.offset], k.value)
				}
			}
		}
	}
	t.Logf("%d callers, %d records each, %d copies", l.callers, l.records, copies)
}

func TestAppenderGroupsRecords(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			topic := b.Topic(t, 2, nil)
			client := b.Client(t, topic)
			w := watch(client)
			a, _ := newAppender(client, topic)
			load{callers: 64, records: 20, partitions: 2}.run(t, b, a, topic)
			if err := a.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if w.overlaps > 0 {
				t.Errorf("%d requests overlapped another of their partition", w.overlaps)
			}
			if w.requests >= 64*20/2 {
				t.Errorf("%d requests for %d records: they were not grouped", w.requests, 64*20)
			}
			t.Logf("%d requests, at most %d records in one", w.requests, w.records)
		})
	}
}

// TestAppenderSurvives appends while the cluster misbehaves.
func TestAppenderSurvives(t *testing.T) {
	fault := func(err *kerr.Error, count int) func(*brokertest.Broker, string) {
		return func(b *brokertest.Broker, topic string) {
			b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Err: err, Count: count})
		}
	}
	for name, inject := range map[string]func(*brokertest.Broker, string){
		"lost acknowledgements":       fault(kerr.RequestTimedOut, 10),
		"too few replicas":            fault(kerr.NotEnoughReplicas, 6),
		"too few replicas afterwards": fault(kerr.NotEnoughReplicasAfterAppend, 6),
		"not the leader":              fault(kerr.NotLeaderForPartition, 6),
		"leader not available":        fault(kerr.LeaderNotAvailable, 6),
		"unknown server errors":       fault(kerr.UnknownServerError, 6),
		"storage errors":              fault(kerr.KafkaStorageError, 6),
		"corrupt on the way":          fault(kerr.CorruptMessage, 6),
		"leaders move": func(b *brokertest.Broker, topic string) {
			for range 3 {
				for p := range int32(2) {
					_ = b.Fake.MoveTopicPartition(topic, p, rand.Int32N(3))
				}
			}
		},
		"connections are cut": func(b *brokertest.Broker, _ string) {
			for range 20 {
				b.Cut()
				time.Sleep(5 * time.Millisecond)
			}
		},
		"a connection is cut instead of an answer": func(b *brokertest.Broker, _ string) {
			var left atomic.Int32
			left.Store(5)
			b.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
				if left.Add(-1) < 0 {
					return nil, nil, false
				}
				b.Fake.KeepControl()
				return nil, errors.New("cut"), true
			})
		},
		"the partitions have no leader for a while": func(b *brokertest.Broker, topic string) {
			until := time.Now().Add(1500 * time.Millisecond)
			b.Fake.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
				if time.Now().After(until) {
					return nil, nil, false
				}
				b.Fake.KeepControl()
				return leaderless(b.Fake, req, topic), nil, true
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := brokertest.Fake(t)
			topic := b.Topic(t, 2, nil)
			client := b.Client(t, topic)
			w := watch(client)
			a, lines := newAppender(client, topic)
			if _, err := a.Append(t.Context(), 0, text("x/0")); err != nil { // connects
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() { inject(b, topic) })
			load{callers: 16, records: 50, partitions: 2}.run(t, b, a, topic)
			wg.Wait()
			if w.overlaps > 0 {
				t.Errorf("%d requests overlapped another of their partition", w.overlaps)
			}
			t.Logf("%d requests; warnings: %d", w.requests, len(lines.lines("WARN")))
			if n := len(lines.lines("ERROR")); n > 0 {
				t.Errorf("%d error lines for faults that pass", n)
			}
		})
	}
}

// leaderless answers a metadata request: the topic's two partitions have no
// leader.
func leaderless(c *kfake.Cluster, req kmsg.Request, topic string) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.MetadataResponse) //nolint:errcheck // it is one
	for i, addr := range c.ListenAddrs() {
		host, port, _ := net.SplitHostPort(addr)
		n, _ := strconv.Atoi(port)
		broker := kmsg.NewMetadataResponseBroker()
		broker.NodeID, broker.Host, broker.Port = int32(i), host, int32(n)
		resp.Brokers = append(resp.Brokers, broker)
	}
	mt := kmsg.NewMetadataResponseTopic()
	mt.Topic = &topic
	for p := range int32(2) {
		part := kmsg.NewMetadataResponseTopicPartition()
		part.Partition, part.Leader, part.ErrorCode = p, -1, kerr.LeaderNotAvailable.Code
		mt.Partitions = append(mt.Partitions, part)
	}
	resp.Topics = append(resp.Topics, mt)
	return resp
}

// TestAppenderSaysThatNothingIsRefusedAnyMore has records that were refused taken
// after all: the last of them is the end of the trouble, which is logged.
func TestAppenderSaysThatNothingIsRefusedAnyMore(t *testing.T) {
	a, lines := newAppender(nil, "t")
	refused := func() *group { return &group{entries: []Entry{text("x")}, refused: true, done: make(chan struct{})} }
	first, second := refused(), refused()
	a.refused = 2
	for _, step := range []struct {
		taken *group
		want  int
	}{
		{first, 0},
		{&group{entries: []Entry{text("y")}, done: make(chan struct{})}, 0},
		{second, 1},
		{&group{entries: []Entry{text("z")}, done: make(chan struct{})}, 1},
	} {
		a.acknowledge([]*group{step.taken}, 0)
		if got := lines.lines("INFO"); len(got) != step.want {
			t.Errorf("got %q, want %d lines", got, step.want)
		}
	}
}

func TestAppenderSplitsWhatIsTooLarge(t *testing.T) {
	const limit = 20_000
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			topic := b.Topic(t, 1, map[string]string{"max.message.bytes": strconv.Itoa(limit)})
			a, lines := newAppender(b.Client(t, topic), topic)
			noise := func(n int) Entry {
				data := make([]byte, n)
				for i := range data {
					data[i] = byte(rand.IntN(256))
				}
				return Entry{Value: data}
			}
			ctx, cancel := context.WithCancel(t.Context())
			var wg, good sync.WaitGroup
			wg.Go(func() {
				if _, err := a.Append(ctx, 0, noise(2*limit)); !errors.Is(err, context.Canceled) {
					t.Errorf("what cannot be appended: got %v", err)
				}
			})
			for range 40 {
				good.Go(func() {
					if _, err := a.Append(ctx, 0, noise(limit/4)); err != nil {
						t.Error(err)
					}
				})
			}
			good.Go(func() {
				if _, err := a.Append(ctx, 0, text(strings.Repeat("compressible ", limit))); err != nil {
					t.Error(err)
				}
			})
			good.Wait() // in spite of the one that is refused
			waitFor(t, func() bool { return len(lines.lines("ERROR")) > 0 })
			if got := a.Blocked(); !strings.Contains(got, "a record of ") || !strings.Contains(got, "raise max.message.bytes") {
				t.Errorf("blocked by %q, want the record that is refused and what to do", got)
			}
			cancel()
			wg.Wait()
			if got := len(b.Log(t, topic, 0)); got != 41 {
				t.Errorf("got %d records, want 41", got)
			}
			if got := lines.lines("ERROR"); len(got) != 1 || !strings.Contains(got[0], "raise max.message.bytes") {
				t.Errorf("got error lines %q, want one that says what to do", got)
			}
			if err := a.Wait(t.Context()); err != nil {
				t.Error(err)
			}
			if got := a.Blocked(); got != "" || a.refused != 0 {
				t.Errorf("blocked by %q, %d records refused, after nobody waits any more", got, a.refused)
			}
		})
	}
}

// TestAppenderRestsForNobody gives up what waits for a right to be granted. Nobody
// has to wait for the end of the pause then.
func TestAppenderRestsForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "topic", 1, nil)
		a, _ := newAppender(b.Client(t, "topic"), "topic")
		defer b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.TopicAuthorizationFailed, Count: -1}).Remove()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if _, err := a.Append(ctx, 0, text("x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if err := a.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("took %s, want a second", took)
		}
	})
}

// waitFor waits until a condition holds.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen")
		}
	}
}

func TestAppenderKeepsRequestsSmall(t *testing.T) {
	b := brokertest.Fake(t)
	topic := b.Topic(t, 1, nil)
	client := b.Client(t, topic)
	w := watch(client)
	a, _ := newAppender(client, topic)
	var wg sync.WaitGroup
	for range 3000 {
		wg.Go(func() {
			if _, err := a.Append(t.Context(), 0, text("small")); err != nil {
				t.Error(err)
			}
		})
	}
	large := strings.Repeat("x", maxBatchBytes/3)
	for range 10 {
		wg.Go(func() {
			if _, err := a.Append(t.Context(), 0, text(large), text("its neighbour")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if w.records > maxBatchRecords {
		t.Errorf("a request had %d records", w.records)
	}
	log := b.Log(t, topic, 0)
	if len(log) != 3020 {
		t.Errorf("got %d records", len(log))
	}
	for i, rec := range log {
		if len(rec.Value) == len(large) && string(log[i+1].Value) != "its neighbour" {
			t.Error("the entries of one call were torn apart")
		}
	}
}

// TestAppenderOutages looks at what is logged over long outages, and at the pace
// of the tries.
func TestAppenderOutages(t *testing.T) {
	for name, tt := range map[string]struct {
		err      *kerr.Error
		outage   time.Duration
		mintries int
		maxtries int
		level    string
		says     string
	}{
		"passing": {kerr.NotEnoughReplicas, time.Minute, 30, 60, "WARN", "min.insync.replicas"},
		"lasting": {kerr.TopicAuthorizationFailed, time.Minute, 6, 8, "ERROR", "the right Write on topic"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.Virtual(t)
				b.Create(t, "results", 1, nil)
				a, lines := newAppender(b.Client(t, "results"), "results")
				f := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: tt.err, Count: -1})
				time.AfterFunc(tt.outage, f.Remove)
				time.AfterFunc(tt.outage/2, func() {
					if got := a.Blocked(); !strings.Contains(got, tt.says) {
						t.Errorf("blocked by %q during the outage, want %q", got, tt.says)
					}
				})
				start := time.Now()
				if _, err := a.Append(t.Context(), 0, text("patience")); err != nil {
					t.Fatal(err)
				}
				took := time.Since(start)
				if took < tt.outage || took > tt.outage+slowBackoff {
					t.Errorf("took %s for an outage of %s", took, tt.outage)
				}
				if n := f.Hits(); n < tt.mintries || n > tt.maxtries {
					t.Errorf("got %d tries, want %d to %d", n, tt.mintries, tt.maxtries)
				}
				got := append(lines.lines("WARN"), lines.lines("ERROR")...)
				if len(got) != 1 || !strings.Contains(got[0], "level="+tt.level) || !strings.Contains(got[0], tt.says) {
					t.Errorf("got %q, want one line of level %s about %q", got, tt.level, tt.says)
				}
				if got := lines.lines("INFO"); len(got) != 1 || !strings.Contains(got[0], "works again") {
					t.Errorf("got %q, want one line that it works again", got)
				}
				if got := a.Blocked(); got != "" {
					t.Errorf("blocked by %q after the outage", got)
				}
			})
		})
	}
}

// slow holds produce requests until they are let go.
type slow struct {
	kafka.RoundTripper
	letGo chan struct{}
}

func (s *slow) RoundTrip(ctx context.Context, addr net.Addr, req kafka.Request) (kafka.Response, error) {
	if _, ok := req.(*produce.Request); ok {
		<-s.letGo
	}
	return s.RoundTripper.RoundTrip(ctx, addr, req)
}

// TestAppenderKeepsOrder gives records one after the other, without waiting for
// their acknowledgement, while requests are under way and fail.
func TestAppenderKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "results", 1, nil)
		client := b.Client(t, "results")
		s := &slow{client.Transport, make(chan struct{})}
		client.Transport = s
		a, _ := newAppender(client, "results")
		b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: 3})
		var wg sync.WaitGroup
		const n = 50
		for i := range n {
			wg.Go(func() {
				if _, err := a.Append(t.Context(), 0, text(strconv.Itoa(i))); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
			if i%10 == 5 {
				s.letGo <- struct{}{}
			}
		}
		close(s.letGo)
		wg.Wait()
		log := b.Log(t, "results", 0)
		if len(log) != n {
			t.Errorf("got %d records", len(log))
		}
		for i, rec := range log {
			if string(rec.Value) != strconv.Itoa(i) {
				t.Fatalf("record %d is %s", i, rec.Value)
			}
		}
	})
}

func TestAppenderGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "results", 1, nil)
		a, _ := newAppender(b.Client(t, "results"), "results")
		if _, err := a.Append(t.Context(), 0, text("first")); err != nil {
			t.Fatal(err)
		}
		// The broker does not answer any more.
		b.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			b.Fake.KeepControl()
			return nil, nil, true
		})
		give := func(name string) (after time.Duration, err error) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			_, err = a.Append(ctx, 0, text(name))
			return time.Since(start), err
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if after, err := give("under way"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrMaybeAppended) || after != time.Second {
				t.Errorf("under way: got %v after %s", err, after)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if after, err := give("behind it"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrMaybeAppended) || after != time.Second {
				t.Errorf("behind it: got %v after %s", err, after)
			}
		})
		wg.Wait()
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := a.Append(ended, 0, text("too late")); !errors.Is(err, context.Canceled) || errors.Is(err, ErrMaybeAppended) {
			t.Errorf("too late: got %v", err)
		}
		// Nobody waits for anything, so the partition's worker ends once its
		// request has.
		start := time.Now()
		if err := a.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > tryTimeout {
			t.Errorf("the worker took %s to end", took)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() { _, _ = a.Append(short, 0, text("more")) }()
		synctest.Wait()
		if err := a.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want that the wait is given up", err)
		}
		if err := a.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestAppenderLeavesOutWhatIsStale lets one of two entries become stale while the
// broker turns requests down.
func TestAppenderLeavesOutWhatIsStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "results", 1, nil)
		a, _ := newAppender(b.Client(t, "results"), "results")
		f := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
		var stale atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() {
			e := text("failed")
			e.Stale = stale.Load
			if _, err := a.Append(t.Context(), 0, e); !errors.Is(err, ErrStale) {
				t.Errorf("stale: got %v", err)
			}
		})
		wg.Go(func() {
			e := text("shipped")
			e.Stale = func() bool { return false }
			if _, err := a.Append(t.Context(), 0, e); err != nil {
				t.Errorf("not stale: %v", err)
			}
		})
		time.Sleep(time.Second)
		if f.Hits() == 0 {
			t.Fatal("no request was turned down")
		}
		stale.Store(true)
		f.Remove()
		wg.Wait()
		log := b.Log(t, "results", 0)
		if len(log) != 1 || string(log[0].Value) != "shipped" {
			t.Errorf("got %d records, want the one that is not stale", len(log))
		}
		if err := a.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
