package consumer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/schema"
)

// tenureOf returns the consumer's present tenure of a partition.
func tenureOf(t *testing.T, r *replica, partition int) *tenure {
	t.Helper()
	var tn *tenure
	await(t, fmt.Sprintf("partition %d to be held", partition), func() bool {
		r.c.mu.Lock()
		defer r.c.mu.Unlock()
		tn = r.c.held[partition]
		return tn != nil
	})
	return tn
}

// inMemory returns how many records and bytes a tenure holds in memory.
func (t *tenure) inMemory() (records, bytes int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.loaded, t.bytes
}

func TestWindowBoundsTheRecordsInMemory(t *testing.T) {
	const window = 25
	inWorld(t, 2, func(w *world) {
		t := w.t
		for p := range 2 {
			w.produce(p, events("s", 10_000*p, 500)...)
		}
		release := make(chan struct{})
		h := &fakeHandler{work: until(release)}
		r := w.start("a", h, func(c *Config) { c.Window = window })
		await(t, "both windows to be full", func() bool { began, _ := h.count(); return began == 2*window })
		time.Sleep(time.Minute)
		fetches := w.cluster.Fault(kfakeObserve(kmsg.Fetch))
		time.Sleep(time.Minute)
		if n := fetches.Hits(); n != 0 {
			t.Errorf("%d fetches while the windows were full", n)
		}
		if began, _ := h.count(); began != 2*window {
			t.Errorf("%d records began, want %d", began, 2*window)
		}
		close(release)
		for p := range 2 {
			w.awaitCommit(p, 500)
			if records, bytes := tenureOf(t, r, p).inMemory(); records != 0 || bytes != 0 {
				t.Errorf("partition %d: %d records with %d bytes are left in memory", p, records, bytes)
			}
		}
		if h.maxBusy > 2*window {
			t.Errorf("%d records were handled at once, with two windows of %d", h.maxBusy, window)
		}
	})
}

func TestWindowBoundsTheBytesInMemory(t *testing.T) {
	const window = 64 << 10
	inWorld(t, 1, func(w *world) {
		t := w.t
		padded := func(tid, size int) string {
			return strings.Replace(event("s", tid), "{", `{"note":"`+strings.Repeat("x", size)+`",`, 1)
		}
		var values []string
		for i := range 100 {
			values = append(values, padded(1+i, 5_000))
		}
		values[50] = padded(1000, 200_000) // more than the window
		w.produce(0, values...)
		var most atomic.Int64
		var r *replica
		ready := make(chan struct{})
		h := &fakeHandler{work: func(_ context.Context, _ *Gate, _ *schema.Record, _ *schema.Packed) error {
			<-ready
			records, bytes := tenureOf(t, r, 0).inMemory()
			if records > 1 {
				most.Store(max(most.Load(), int64(bytes)))
			}
			time.Sleep(10 * time.Millisecond)
			return nil
		}}
		r = w.start("a", h, func(c *Config) { c.WindowBytes = window })
		close(ready)
		w.awaitCommit(0, 100)
		if got := most.Load(); got > window || got < window/2 {
			t.Errorf("at most %d bytes were in memory, with a window of %d", got, window)
		}
	})
}

// A handler must not give up before its context ends. If it does, its record is
// handled again and not passed.
func TestHandlerThatGivesUpEarlyIsCalledAgain(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 3)...)
		var tries atomic.Int32
		h := &fakeHandler{work: func(_ context.Context, _ *Gate, rec *schema.Record, _ *schema.Packed) error {
			if rec.Offset == 1 && tries.Add(1) < 5 {
				return errors.New("not today")
			}
			return nil
		}}
		r := w.start("a", h)
		await(t, "the second try", func() bool { return tries.Load() == 2 })
		if got := w.committedAt(0); got != 1 {
			t.Errorf("committed %d while record 1 was unsettled", got)
		}
		w.awaitCommit(0, 3)
		if n := r.log.count("record not settled", "not today"); n != 4 {
			t.Errorf("%d log lines, want 4", n)
		}
	})
}

// commitAs sets the committed offset of a group without members.
func commitAs(t *testing.T, w *world, partition int, offset int64) {
	t.Helper()
	res, err := w.client.OffsetCommit(t.Context(), &kafka.OffsetCommitRequest{
		GroupID: testGroup, GenerationID: -1,
		Topics: map[string][]kafka.OffsetCommit{testTopic: {{Partition: partition, Offset: offset}}},
	})
	if err != nil || res.Topics[testTopic][0].Error != nil {
		t.Fatal(err, res)
	}
}

func TestRetentionHasPassedTheCommittedOffset(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		for i := range 30 {
			w.produce(0, event("s", 1+i)) // a batch each, so that any can be removed
		}
		commitAs(t, w, 0, 5)
		if err := w.cluster.DeleteRecords(testTopic, 0, 20); err != nil {
			t.Fatal(err)
		}
		h := new(fakeHandler)
		r := w.start("a", h)
		w.awaitCommit(0, 30)
		if _, settled := h.count(); settled != 10 {
			t.Errorf("settled %d records, want the 10 that are left", settled)
		}
		if got := r.metric("packship_skipped_offsets_total", "topic="+testTopic, "partition=0"); got != 15 {
			t.Errorf("packship_skipped_offsets_total is %v, want 15", got)
		}
		if n := r.log.count("ERROR offsets skipped", "from=5", "to=19", "count=15"); n != 1 {
			t.Errorf("%d log lines name the hole, want 1:\n%s", n, r.log)
		}
	})
}

func TestRetentionPassesTheReader(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		for i := range 60 {
			w.produce(0, event("s", 1+i))
		}
		release := make(chan struct{})
		h := &fakeHandler{work: until(release)}
		r := w.start("a", h, func(c *Config) { c.Window = 10 })
		await(t, "the window to be full", func() bool { began, _ := h.count(); return began == 10 })
		tn := tenureOf(t, r, 0)
		if err := w.cluster.DeleteRecords(testTopic, 0, 60); err != nil {
			t.Fatal(err)
		}
		w.produce(0, events("s", 100, 5)...)
		close(release)
		w.awaitCommit(0, 65)
		_, settled := h.count()
		skipped := int(r.metric("packship_skipped_offsets_total", "partition=0"))
		// One answer may have been in hand when the records went.
		if settled+skipped != 65 || settled < 15 || skipped == 0 && settled != 65 {
			t.Errorf("settled %d and skipped %d of 65 offsets", settled, skipped)
		}
		if tenureOf(t, r, 0) != tn {
			t.Error("the tenure did not go on")
		}
		w.commits.neverBack(t)
	})
}

// The committed offset is beyond the end: the log was truncated, or the topic
// was made anew under a group that was not running. What is there is read.
func TestCommittedOffsetBeyondTheEnd(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 10)...)
		commitAs(t, w, 0, 40)
		h := new(fakeHandler)
		r := w.start("a", h)
		r.awaitRole(RoleActive)
		time.Sleep(truncatedAfter / 2)
		if began, _ := h.count(); began != 0 {
			t.Error("the log was believed to be truncated too soon")
		}
		w.awaitCommit(0, 10)
		if _, settled := h.count(); settled != 10 {
			t.Errorf("settled %d records, want 10", settled)
		}
		if got := r.metric("packship_skipped_offsets_total", "partition=0"); got != 30 {
			t.Errorf("packship_skipped_offsets_total is %v, want 30", got)
		}
		if n := r.log.count("ERROR offsets skipped", "from=10", "to=39"); n != 1 {
			t.Errorf("%d log lines name the hole, want 1:\n%s", n, r.log)
		}
		// It also survives a generation that comes in between.
		r.net.cut(false)
		w.produce(0, event("s", 99))
		w.awaitCommit(0, 11)
	})
}

// A log that was cut off under the reader may have grown again before that is
// believed. What is new in it was never read, although its offsets were.
func TestLogIsCutOffAndGrows(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("old", 1, 10)...)
		h := new(fakeHandler)
		r := w.start("a", h)
		w.awaitCommit(0, 10)
		if err := w.cluster.DeleteTopic(testTopic); err != nil {
			t.Fatal(err)
		}
		if err := w.cluster.CreateTopic(testTopic, 1, nil); err != nil {
			t.Fatal(err)
		}
		w.produce(0, events("new", 1, 5)...)
		await(t, "the log to be found shorter", func() bool { return r.log.count("beyond the end") > 0 })
		w.produce(0, events("new", 10, 10)...)
		h.awaitSettled(t, 25)
		w.awaitCommit(0, 15)
		seen := map[string]bool{}
		h.mu.Lock()
		for order := range h.perOrder {
			seen[order] = true
		}
		h.mu.Unlock()
		if len(seen) != 25 {
			t.Errorf("settled %d orders, want the 10 of the old log and the 15 of the new one", len(seen))
		}
		if n := r.log.count("ERROR log was cut off and has grown again"); n != 1 {
			t.Errorf("%d log lines tell, want 1:\n%s", n, r.log)
		}
	})
}

// While the log grows again it is looked at more than once. What was new at the
// first of these looks is read once more as well, so far as the window reaches.
func TestLogIsCutOffAndGrowsUnderTheEyes(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("old", 1, 10)...)
		h := new(fakeHandler)
		r := w.start("a", h, func(c *Config) { c.Window = 2 })
		w.awaitCommit(0, 10)
		if err := w.cluster.DeleteTopic(testTopic); err != nil {
			t.Fatal(err)
		}
		if err := w.cluster.CreateTopic(testTopic, 1, nil); err != nil {
			t.Fatal(err)
		}
		w.produce(0, events("new", 1, 2)...)
		await(t, "the log to be found shorter", func() bool { return r.log.count("beyond the end") > 0 })
		w.produce(0, events("new", 3, 6)...)
		tries := r.metric("packship_consumer_request_failures_total", "request=fetch")
		await(t, "the log to be looked at again", func() bool {
			return r.metric("packship_consumer_request_failures_total", "request=fetch") >= tries+2
		})
		w.produce(0, events("new", 9, 4)...)
		h.awaitSettled(t, 22)
		w.awaitCommit(0, 12)
		h.mu.Lock()
		defer h.mu.Unlock()
		if n := len(h.perOrder); n != 22 {
			t.Errorf("settled %d orders, want the 10 of the old log and the 12 of the new one", n)
		}
	})
}

// A log that is empty now has its end committed as well, or the offset beyond it
// would be met again at the next start, when the log may have grown past it.
func TestLogIsCutOffToNothing(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		commitAs(t, w, 0, 40)
		w.start("a", new(fakeHandler))
		w.awaitCommit(0, 0)
	})
}

// Transactions leave markers in the log that are no records.
func TestTransactionMarkersArePassed(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		cl, err := kgo.NewClient(
			kgo.SeedBrokers(w.brokers()...), kgo.Dialer(w.vn.DialContext), kgo.TransactionalID("t"),
			kgo.DefaultProduceTopic(testTopic), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		)
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		for i := range 6 {
			if err := cl.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			for j := range 3 {
				if err := cl.ProduceSync(t.Context(), kgo.StringRecord(event("s", 1+10*i+j))).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
			if err := cl.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
				t.Fatal(err)
			}
		}
		end := w.cluster.PartitionInfo(testTopic, 0).HighWatermark
		if end != 24 {
			t.Fatalf("the log ends at %d, want 18 records and 6 markers", end)
		}
		h := new(fakeHandler)
		r := w.start("a", h)
		w.awaitCommit(0, end) // the last marker included
		if _, settled := h.count(); settled != 18 {
			t.Errorf("settled %d records, want 18", settled)
		}
		if got := r.metric("packship_skipped_offsets_total", "partition=0"); got != 0 {
			t.Errorf("packship_skipped_offsets_total is %v for markers", got)
		}
	})
}

// What a transaction may yet take back is no order, and what one has taken back
// never was.
func TestAbortedTransactionsAreNoOrders(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		producer := func(id string) *kgo.Client {
			cl, err := kgo.NewClient(
				kgo.SeedBrokers(w.brokers()...), kgo.Dialer(w.vn.DialContext), kgo.TransactionalID(id),
				kgo.DefaultProduceTopic(testTopic), kgo.RecordPartitioner(kgo.ManualPartitioner()),
			)
			if err != nil {
				t.Fatal(err)
			}
			return cl
		}
		a, b := producer("a"), producer("b")
		defer a.Close()
		defer b.Close()
		begin := func(cl *kgo.Client) {
			t.Helper()
			if err := cl.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
		}
		end := func(cl *kgo.Client, commit kgo.TransactionEndTry) {
			t.Helper()
			if err := cl.EndTransaction(t.Context(), commit); err != nil {
				t.Fatal(err)
			}
		}
		pack := func(cl *kgo.Client, from, n int) {
			t.Helper()
			var recs []*kgo.Record
			for i := range n {
				recs = append(recs, kgo.StringRecord(event("s", from+i)))
			}
			if err := cl.ProduceSync(t.Context(), recs...).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		h := new(fakeHandler)
		for round := range 3 { // the two interleave
			begin(a)
			begin(b)
			pack(a, 1000+100*round, 3)
			pack(b, 10*round+1, 2)
			pack(a, 1050+100*round, 2)
			pack(b, 10*round+3, 1)
			end(a, kgo.TryAbort)
			end(b, kgo.TryCommit)
			w.produce(0, event("s", 10*round+4))
		}
		w.start("a", h)
		w.awaitCommit(0, 33) // eight in transactions, their two markers and another one, three times
		begin(a)
		pack(a, 500, 2)
		w.produce(0, event("s", 90))
		time.Sleep(10 * time.Second) // it is given up after 40 s
		check := func(when string, want int) {
			t.Helper()
			h.mu.Lock()
			defer h.mu.Unlock()
			if len(h.settled) != want {
				t.Errorf("%s: settled %v, want %d", when, h.settled, want)
			}
			for order := range h.perOrder {
				if len(strings.TrimPrefix(order, "s/")) > 3 {
					t.Errorf("%s: order %s was taken back", when, order)
				}
			}
		}
		check("while a transaction is open", 12)
		end(a, kgo.TryCommit)
		w.awaitCommit(0, 37)
		check("once it is committed", 15)
	})
}

// A compacted log has gaps of any size.
func TestCompactedLogIsRead(t *testing.T) {
	inWorld(t, 0, func(w *world) {
		t := w.t
		if err := w.cluster.CreateTopic(testTopic, 1, map[string]string{"cleanup.policy": "compact"}); err != nil {
			t.Fatal(err)
		}
		cl, err := kgo.NewClient(kgo.SeedBrokers(w.brokers()...), kgo.Dialer(w.vn.DialContext),
			kgo.DefaultProduceTopic(testTopic), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		var batch []*kgo.Record
		for i := range 300 {
			batch = append(batch, &kgo.Record{Key: fmt.Append(nil, i%7), Value: []byte(event("s", 1+i))})
			if len(batch) == 20 {
				if err := cl.ProduceSync(t.Context(), batch...).FirstErr(); err != nil {
					t.Fatal(err)
				}
				batch = nil
			}
		}
		w.cluster.Compact()
		first := w.cluster.PartitionInfo(testTopic, 0).LogStartOffset
		commitAs(t, w, 0, first)
		h := new(fakeHandler)
		w.start("a", h)
		w.awaitCommit(0, 300)
		if _, settled := h.count(); settled == 0 || settled == 300 {
			t.Errorf("settled %d records of a compacted log", settled)
		}
	})
}

// A record whose tail was compacted away is answered with its batch and no
// usable record, for ever. The reader steps over it.
func TestStepsOverABatchWithoutUsableRecords(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("s", 1, 10)...)  // one batch: 0 to 9
		w.produce(0, events("s", 100, 5)...) // 10 to 14
		// Answer fetches from 8 and 9 with the first batch cut down to its
		// first 8 records, as after a compaction.
		w.cluster.ControlKey(int16(kmsg.Fetch), func(r kmsg.Request) (kmsg.Response, error, bool) {
			w.cluster.KeepControl()
			res := shortenedBatch(r, 8, 9)
			return res, nil, res != nil
		})
		commitAs(t, w, 0, 8)
		h := new(fakeHandler)
		w.start("a", h)
		w.awaitCommit(0, 15)
		if _, settled := h.count(); settled != 5 {
			t.Errorf("settled %d records, want the last 5", settled)
		}
	})
}

// shortenedBatch answers a fetch from one of the offsets with a batch of the
// records 0 to 7 whose header still says that it goes up to offset 9. It returns
// nil for other requests.
func shortenedBatch(r kmsg.Request, offsets ...int64) kmsg.Response {
	req, ok := r.(*kmsg.FetchRequest)
	if !ok || len(req.Topics) == 0 {
		return nil
	}
	p := req.Topics[0].Partitions[0]
	if !slices.Contains(offsets, p.FetchOffset) {
		return nil
	}
	res, ok := req.ResponseKind().(*kmsg.FetchResponse)
	if !ok {
		return nil
	}
	rp := kmsg.NewFetchResponseTopicPartition()
	rp.Partition, rp.HighWatermark, rp.LastStableOffset = p.Partition, 15, 15
	rp.RecordBatches = recordBatch(0, 9, events("s", 1, 8))
	rt := kmsg.NewFetchResponseTopic()
	rt.Topic, rt.Partitions = req.Topics[0].Topic, []kmsg.FetchResponseTopicPartition{rp}
	res.Topics = []kmsg.FetchResponseTopic{rt}
	return res
}
