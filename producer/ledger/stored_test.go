package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/producer"
	"packship/producer/internal/brokertest"
	"packship/schema"
)

// fill appends n shipped orders, of which shipment says which, to the partitions
// of a topic, as fast as it can, and returns their outcomes.
func fill(tb testing.TB, b *brokertest.Broker, topic string, partitions, n int) []schema.Outcome {
	tb.Helper()
	return fillFor(tb, b, topic, partitions, n, func(int) string { return "" })
}

// fillFor is fill with the marks of the order groups.
func fillFor(tb testing.TB, b *brokertest.Broker, topic string, partitions, n int, mark func(n int) string) []schema.Outcome {
	tb.Helper()
	a := producer.NewAppender(producer.AppenderConfig{Client: b.Client(tb, topic), Topic: topic, Logger: quiet})
	outcomes := make([]schema.Outcome, n)
	batches := make([][]producer.Entry, partitions)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	flush := func(p int) {
		entries := batches[p]
		batches[p] = nil
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if _, err := a.Append(tb.Context(), p, entries...); err != nil {
				tb.Error(err)
			}
		})
	}
	add := func(p int, s *schema.Shipment, r *record) {
		value, err := r.encode()
		if err != nil {
			tb.Fatal(err)
		}
		batches[p] = append(batches[p], producer.Entry{Key: []byte(s.Canonical()), Value: value})
	}
	for p := range partitions {
		add(p, &schema.Shipment{}, &record{Kind: kindMeta, Meta: &meta{Version: version, Partitions: partitions, Horizon: testHorizon.String(), Epoch: "e"}})
		flush(p)
	}
	for i := range n {
		s := shipment(i)
		p := s.Order().LedgerPartition(partitions)
		outcomes[i] = realisticOutcome(tb, s, i)
		event, attempt := fmt.Sprintf("evt-%d", i), fmt.Sprintf("packship-5d9c7b6f4-x2x7q/1f0c9a3e/%d", i)
		add(p, s, &record{Kind: kindIntent, Attempt: attempt, Event: event, Round: 1})
		r, err := outcomeRecord(attempt, event, 1, &outcomes[i])
		if err != nil {
			tb.Fatal(err)
		}
		r.Group = mark(i)
		add(p, s, r)
		if len(batches[p]) >= 400 {
			flush(p)
		}
	}
	for p := range partitions {
		if len(batches[p]) > 0 {
			flush(p)
		}
	}
	wg.Wait()
	return outcomes
}

func realisticOutcome(tb testing.TB, s *schema.Shipment, n int) schema.Outcome {
	tb.Helper()
	r := schema.Result{
		ShopID: s.ShopID, TID: s.TID, OutSID: s.OutSID, CompanyCode: s.CompanyCode, Attempts: 1,
		Upstream: &schema.Exchange{HTTPStatus: 200, Msg: "成功", Msec: 1193, Time: 1612416107, Withheld: 1},
		Source:   schema.Source{Topic: "erp.order.packed.v1", Partition: n % 6, Offset: int64(n), EventID: fmt.Sprintf("evt-%d", n)},
	}
	o, err := r.Outcome(s, 1, foldStart.Add(time.Duration(n)*100*time.Millisecond))
	if err != nil {
		tb.Fatal(err)
	}
	return o
}

// TestReplay asks for the outcomes of a whole ledger again.
func TestReplay(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			const n = 30_000
			topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
			outcomes := fill(t, b, topic, testPartitions, n)
			r := start(t, b, topic, "a")
			if st := r.Status(); st.Entries != n || st.Damaged != "" {
				t.Fatalf("got %+v", st)
			}
			check := func(t *testing.T, i int) {
				t.Helper()
				got, err := r.Stored(t.Context(), shipment(i), "whatever")
				if err != nil {
					t.Error(err)
				} else if got.ResultID != outcomes[i].ResultID || string(got.Event) != string(outcomes[i].Event) {
					t.Errorf("shipment %d: got %s", i, got.Event)
				}
			}
			replay := func(t *testing.T, workers, jump, most int) {
				t.Helper()
				before := r.brake.fetches.Load()
				var wg sync.WaitGroup
				next := make(chan int)
				for range workers {
					wg.Go(func() {
						for i := range next {
							check(t, i)
						}
					})
				}
				for i := range n {
					next <- min(n-1, i+rand.IntN(jump))
				}
				close(next)
				wg.Wait()
				got := int(r.brake.fetches.Load() - before)
				t.Logf("%d fetches for %d outcomes, the polls of the tail included", got, n)
				if got > most {
					t.Errorf("got %d fetches, want at most %d", got, most)
				}
			}
			t.Run("in order", func(t *testing.T) { replay(t, 1, 1, 200) })
			t.Run("by many, somewhat out of order", func(t *testing.T) { replay(t, 32, 100, 400) })
			for _, c := range r.stored {
				if len(c.chunks) > readAheadChunks {
					t.Errorf("%d chunks are kept", len(c.chunks))
				}
			}
			// What is settled now is at hand.
			for _, c := range r.stored {
				c.chunks = nil
			}
			for i := n; i < n+100; i++ {
				o := settle(t, r, shipment(i), "evt", claim(t, r, shipment(i), "evt", ""), nil)
				wantStored(t, r, shipment(i), "evt", o)
			}
			for _, c := range r.stored {
				if len(c.chunks) > 0 {
					t.Error("what was just settled was fetched")
				}
			}
		})
	}
}

// TestStoredIsGone has the outcome deleted that is asked for.
func TestStoredIsGone(t *testing.T) {
	for name, tt := range map[string]struct {
		age     time.Duration
		damaged bool
	}{
		"before the horizon": {time.Hour, true},
		"at the horizon":     {testHorizon + 24*time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.Virtual(t)
				b.Create(t, "ledger", 1, map[string]string{"retention.ms": "-1"})
				r := start(t, b, "ledger", "a", onePartition)
				s := shipment(1)
				settle(t, r, s, "e1", claim(t, r, s, "e1", ""), nil)
				p := r.partitions[0]

				// It is so old that it is not in memory any more, and the tail
				// does no chores while time flies.
				p.mu.Lock()
				p.recent = recent{}
				for _, d := range p.fold.days {
					d.n -= int(tt.age / (24 * time.Hour))
				}
				p.mu.Unlock()
				putRecord(t, b, "ledger", record{Kind: kindMeta, Meta: &meta{Version: 1, Partitions: 1, Horizon: testHorizon.String(), Epoch: p.epoch(), Renews: time.Now()}})
				if err := r.CatchUp(t.Context()); err != nil {
					t.Fatal(err)
				}
				b.DeleteRecords(t, "ledger", 0, 3)
				if _, err := r.Stored(t.Context(), s, "e1"); !errors.Is(err, kafka.OffsetOutOfRange) || !errors.Is(err, ErrNotSettled) {
					t.Errorf("got %v", err)
				}
				if got := r.Status().Damaged; (got != "") != tt.damaged || tt.damaged && !strings.Contains(got, "before the horizon") {
					t.Errorf("got damage %q", got)
				}
				// It is not known any more, so that a replay does not wait for
				// it for ever.
				if got := r.Look(s, "e1"); got.State != schema.StateOpen || got.LostBefore.IsZero() == tt.damaged {
					t.Errorf("got %+v", got)
				}
			})
		})
	}
}

// remembersNothing has outcomes read back from the log, as those are that are not
// among the last.
func (p *partition) remembersNothing() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recent = recent{}
}

// TestStoredIsPatient asks for an outcome while the log cannot be read.
func TestStoredIsPatient(t *testing.T) {
	for name, fault := range map[string]*kerr.Error{
		"no leader":            kerr.LeaderNotAvailable,
		"a follower is behind": kerr.OffsetOutOfRange,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.Virtual(t)
				b.Create(t, "ledger", 1, nil)
				r := start(t, b, "ledger", "a", onePartition)
				s := shipment(1)
				want := settle(t, r, s, "e1", claim(t, r, s, "e1", ""), nil)
				r.partitions[0].remembersNothing()
				f := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: fault, Count: -1})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if _, err := r.Stored(ctx, s, "e1"); err == nil || errors.Is(err, ErrNotSettled) {
					t.Errorf("got %v, want that it is given up", err)
				}
				begin := time.Now()
				time.AfterFunc(time.Minute, f.Remove)
				wantStored(t, r, s, "e1", want)
				if took := time.Since(begin); took < time.Minute {
					t.Errorf("took %s", took)
				}
				if st := r.Status(); st.Damaged != "" {
					t.Errorf("damaged: %s", st.Damaged)
				}
			})
		})
	}
}

// TestStoredWhileTheLeaderIsBehind asks for an outcome that stands at the end of the
// log, of a leader that is new and holds back what it has: a fetch of that brings
// nothing, and no error.
func TestStoredWhileTheLeaderIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, nil)
		r := start(t, b, "ledger", "a", onePartition)
		s := shipment(1)
		want := settle(t, r, s, "e1", claim(t, r, s, "e1", ""), nil)
		r.partitions[0].remembersNothing()
		r.brake.behind.Store(true)
		time.AfterFunc(10*time.Second, func() { r.brake.behind.Store(false) })
		wantStored(t, r, s, "e1", want)
		if st := r.Status(); st.Damaged != "" {
			t.Errorf("damaged: %s", st.Damaged)
		}
	})
}

// TestOverTheQuota has a broker answer with nothing at all. That is not to be taken
// for a topic that is missing.
func TestOverTheQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, nil)
		r := start(t, b, "ledger", "a", onePartition)
		r.brake.over.Store(true)
		time.Sleep(10 * time.Second)
		if got := r.Status().Failing; !strings.Contains(got, "quota") || strings.Contains(got, "topics create") {
			t.Errorf("failing: %q", got)
		}
		r.brake.over.Store(false)
		s := shipment(1)
		wantStored(t, r, s, "e1", settle(t, r, s, "e1", claim(t, r, s, "e1", ""), nil))
		if got := r.Status().Failing; got != "" {
			t.Errorf("failing: %q", got)
		}
	})
}

// TestStoredWhileTheLogIsMadeAnew asks for an outcome that stands behind the end of a
// log that was made anew.
func TestStoredWhileTheLogIsMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, nil)
		r := start(t, b, "ledger", "a", onePartition)
		s := shipment(1)
		settle(t, r, s, "e1", claim(t, r, s, "e1", ""), nil)
		r.partitions[0].remembersNothing()
		b.Delete(t, "ledger")
		b.Create(t, "ledger", 1, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		if _, err := r.Stored(ctx, s, "e1"); !errors.Is(err, ErrNotSettled) {
			t.Errorf("got %v, want that the shipment has to be looked at again", err)
		}
		if got := r.Look(s, "e1"); got.State != schema.StateOpen || got.LostBefore.IsZero() {
			t.Errorf("got %+v, want open, and lost", got)
		}
	})
}

// TestStoredOfAnother sees that a record is not taken for the outcome of another
// shipment.
func TestStoredOfAnother(t *testing.T) {
	r := newReadAhead()
	body := `{"verdict":"shipped"}`
	b := batch{next: 12, records: []fetched{
		{offset: 10, key: []byte("k"), value: []byte(`{"kind":"outcome","attempt":"a","round":1,"outcome":` + body + `}`)},
		{offset: 11, key: []byte("k"), value: []byte(`{"kind":"release","attempt":"a"}`)},
	}}
	for _, tt := range []struct {
		offset   int64
		shipment string
		want     error
	}{{10, "k", nil}, {10, "other", errGone}, {11, "k", errGone}, {9, "k", errGone}} {
		record, err := r.get(t.Context(), 1, tt.offset, func(int64) (batch, error) { return b, nil })
		var got []byte
		if err == nil {
			got, err = record.outcomeOf(tt.shipment)
		}
		if !errors.Is(err, tt.want) || err == nil && string(got) != body {
			t.Errorf("%d of %s: got %s, %v", tt.offset, tt.shipment, got, err)
		}
	}
}

// TestExpiredRounds has retention take the first round of a shipment, and leave
// the second. Who has read both and who reads what is left must agree on the
// second, and nobody waits for the outcome that is gone.
func TestExpiredRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, map[string]string{"retention.ms": "-1"})
		r := start(t, b, "ledger", "a", onePartition)
		s, doubtful := shipment(1), shipment(2)
		settle(t, r, s, "e1", claim(t, r, s, "e1", ""), refusal())
		settle(t, r, doubtful, "e1", claim(t, r, doubtful, "e1", ""), refusal())
		p := r.partitions[0]
		left, _ := p.position()
		second := settle(t, r, s, "e2", claim(t, r, s, "e2", ""), refusal())
		open := claim(t, r, doubtful, "e2", "")

		p.remembersNothing()
		putRecord(t, b, "ledger", record{Kind: kindMeta, Meta: &meta{Version: 1, Partitions: 1, Horizon: testHorizon.String(), Epoch: p.epoch(), Renews: time.Now().Add(-testHorizon)}})
		if err := r.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.DeleteRecords(t, "ledger", 0, left)

		if _, err := r.Stored(t.Context(), s, "e1"); !errors.Is(err, ErrNotSettled) {
			t.Errorf("the outcome that is gone: got %v", err)
		}
		if got := r.Look(s, "e1"); got.State != schema.StateOpen || got.Round != 3 || !got.LostBefore.Equal(always) {
			t.Errorf("the event whose answer is gone: got %+v, want open in round 3, and not to be called for", got)
		}
		if _, err := r.Stored(t.Context(), doubtful, "e1"); !errors.Is(err, ErrNotSettled) {
			t.Errorf("the outcome that is gone: got %v", err)
		}
		if got := r.Look(doubtful, "e1"); got.State != schema.StateHeld || got.Holder != open.Attempt || !got.LostBefore.Equal(always) {
			t.Errorf("the event whose answer is gone: got %+v, want held, and not to be called for", got)
		}
		if got := r.Status().Damaged; got != "" {
			t.Errorf("damaged: %s", got)
		}
		third := outcomeOf(t, s, 3, maybe())
		if err := r.Refuse(t.Context(), s, "e1", third); err != nil {
			t.Fatal(err)
		}
		wantStored(t, r, s, "e1", third)
		claim(t, r, s, "e3", "")
		wantStored(t, r, s, "e1", third)

		later := start(t, b, "ledger", "b", onePartition)
		for _, r := range []*replica{r, later} {
			wantStored(t, r, s, "e2", second)
			if got := r.Look(doubtful, "e2"); got.State != schema.StateHeld || got.Holder != open.Attempt || got.Round != 2 {
				t.Errorf("%s: what is under way: got %+v, want held by %s in round 2", r.self, got, open.Attempt)
			}
		}
	})
}

// TestStoredAfterTheLogWasMadeAnew has outcomes stand where others stood in the log
// that was read before. What is kept of that is not theirs.
func TestStoredAfterTheLogWasMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, TopicConfig(testHorizon))
		r := start(t, b, "ledger", "a", onePartition)
		p := r.partitions[0]
		readBack := func(s *schema.Shipment, want schema.Outcome) {
			t.Helper()
			p.remembersNothing()
			wantStored(t, r, s, "e1", want)
		}
		readBack(shipment(1), settle(t, r, shipment(1), "e1", claim(t, r, shipment(1), "e1", ""), nil))

		b.Delete(t, "ledger")
		b.Create(t, "ledger", 1, TopicConfig(testHorizon))
		if err := r.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		readBack(shipment(2), settle(t, r, shipment(2), "e1", claim(t, r, shipment(2), "e1", ""), nil))
		if _, held, err := r.Claim(t.Context(), shipment(2), "e2", "", ""); held || err != nil {
			t.Errorf("claimed what is shipped: %v, %v", held, err)
		}
	})
}
