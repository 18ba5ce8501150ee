package ledger

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/segmentio/kafka-go"

	"packship/producer"
	"packship/producer/internal/brokertest"
	"packship/schema"
)

func onePartition(c *Config) { c.Partitions = 1 }

// put appends a record to the only partition of a topic, past the Ledger.
func put(tb testing.TB, b *brokertest.Broker, topic string, key []byte, value string) {
	tb.Helper()
	a := producer.NewAppender(producer.AppenderConfig{Client: b.Client(tb, topic), Topic: topic, Logger: quiet})
	if _, err := a.Append(tb.Context(), 0, producer.Entry{Key: key, Value: []byte(value)}); err != nil {
		tb.Fatal(err)
	}
}

func putRecord(tb testing.TB, b *brokertest.Broker, topic string, r record) {
	tb.Helper()
	value, err := r.encode()
	if err != nil {
		tb.Fatal(err)
	}
	put(tb, b, topic, nil, string(value))
}

// disturbance is what may damage a ledger.
type disturbance struct {
	t *testing.T
	b *brokertest.Broker
}

// TestDamage has records lost or broken, each in a bubble of its own, and sees
// that the ledger notices, says so, and tells what it does not know from what it
// may have forgotten, also to those who read it later.
func TestDamage(t *testing.T) {
	const topic = "ledger"
	young := func() time.Time { return time.Now().Add(-time.Hour) }
	for name, tt := range map[string]struct {
		// before happens before the process starts, during while it runs.
		before, during func(d disturbance)
		want           string // in the reason; "" if there is no damage
		forgets        bool   // what was known before is not known any more
	}{
		"nothing happens": {},
		"a record that is no JSON": {
			during: func(d disturbance) { put(d.t, d.b, topic, []byte("k"), "hello") },
			want:   "cannot be read",
		},
		"a record without a value": {
			during: func(d disturbance) { put(d.t, d.b, topic, []byte("k"), "") },
			want:   "cannot be read",
		},
		"a record of no shipment": {
			during: func(d disturbance) {
				put(d.t, d.b, topic, []byte("k"), `{"kind":"intent","attempt":"x/1","event":"e","round":1}`)
			},
			want: "key is no shipment",
		},
		"the topic is created again while it is read": {
			during: func(d disturbance) {
				d.b.Delete(d.t, topic)
				d.b.Create(d.t, topic, 1, nil)
			},
			want: "was cut off or the topic created again", forgets: true,
		},
		"the topic is created again and grows": {
			during: func(d disturbance) {
				d.b.Delete(d.t, topic)
				d.b.Create(d.t, topic, 1, nil)
				// Other processes fill it up to where this one was.
				putRecord(d.t, d.b, topic, record{Kind: kindMeta, Meta: &meta{Version: 1, Partitions: 1, Horizon: testHorizon.String(), Epoch: "another"}})
				for range 20 {
					putRecord(d.t, d.b, topic, record{Kind: kindBye, Incarnation: "x/1"})
				}
			},
			want: "the topic was created again", forgets: true,
		},
		"the epoch changes": {
			during: func(d disturbance) {
				putRecord(d.t, d.b, topic, record{Kind: kindMeta, Meta: &meta{Version: 1, Partitions: 1, Horizon: testHorizon.String(), Epoch: "another", Renews: young()}})
			},
			want: "epoch has changed",
		},
		"another began the topic at the same time": {
			during: func(d disturbance) {
				putRecord(d.t, d.b, topic, record{Kind: kindMeta, Meta: &meta{Version: 1, Partitions: 1, Horizon: testHorizon.String(), Epoch: "another"}})
			},
		},
		"the meta record is deleted": {
			during: func(d disturbance) { d.b.DeleteRecords(d.t, topic, 0, 2) },
			want:   "newest meta record",
		},
		"there is no meta record at the start": {
			before: func(d disturbance) {
				putRecord(d.t, d.b, topic, record{Kind: kindBye, Incarnation: "x/1"})
			},
			want: "no meta record",
		},
		"the beginning is missing at the start": {
			before: func(d disturbance) {
				putRecord(d.t, d.b, topic, record{Kind: kindMeta, Meta: &meta{Version: 1, Partitions: 1, Horizon: testHorizon.String(), Epoch: "e", Renews: young()}})
			},
			want: "younger than the horizon",
		},
		"the beginning has expired at the start": {
			before: func(d disturbance) {
				putRecord(d.t, d.b, topic, record{Kind: kindMeta, Meta: &meta{Version: 1, Partitions: 1, Horizon: testHorizon.String(), Epoch: "e", Renews: time.Now().Add(-testHorizon)}})
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.Virtual(t)
				b.Create(t, topic, 1, nil)
				if tt.before != nil {
					tt.before(disturbance{t, b})
				}
				r := start(t, b, topic, "a", onePartition)
				settled, held := shipment(1), shipment(2)
				settle(t, r, settled, "e1", claim(t, r, settled, "e1", ""), nil)
				claim(t, r, held, "e1", "")
				if tt.during != nil {
					tt.during(disturbance{t, b})
				}
				time.Sleep(2 * choreInterval)
				if err := r.CatchUp(t.Context()); err != nil {
					t.Fatal(err)
				}

				damaged := tt.want != ""
				st := r.Status()
				if !damaged != (st.Damaged == "") || !strings.Contains(st.Damaged, tt.want) {
					t.Errorf("got damage %q, want %q", st.Damaged, tt.want)
				}
				wantDamageMetric(t, r, damaged)
				if got := strings.Count(r.log.String(), "level=ERROR"); damaged != (got == 1) {
					t.Errorf("got %d error lines:\n%s", got, r.log)
				}
				before := r.Look(shipment(3), "e1").LostBefore
				if damaged == before.IsZero() || before.After(time.Now()) {
					t.Errorf("lost before %v", before)
				}
				if got := r.Look(settled, "e1").State; (got == schema.StateSettled) == tt.forgets {
					t.Errorf("what was settled: got state %v", got)
				}
				if got := r.Look(held, "e1").State; (got == schema.StateHeld) == tt.forgets {
					t.Errorf("what was held: got state %v", got)
				}

				// It still works, and what is known is not lost.
				o := settle(t, r, shipment(4), "e1", claim(t, r, shipment(4), "e1", ""), refusal())
				wantStored(t, r, shipment(4), "e1", o)
				wantStanding(t, r, shipment(4), "e2", schema.Standing{Round: 2, Attempts: 1})

				// Who comes later reads of the loss in the log, and has no
				// news for anybody.
				later := start(t, b, topic, "b", onePartition)
				if got := later.Look(shipment(3), "e1").LostBefore; !got.Equal(before) {
					t.Errorf("to another process it is lost before %v, not %v", got, before)
				}
				if st := later.Status(); st.Damaged != "" || strings.Contains(later.log.String(), "level=ERROR") {
					t.Errorf("another process reports %q:\n%s", st.Damaged, later.log)
				}
			})
		})
	}
}

// wantDamageMetric sees whether a replica's metric tells of damage.
func wantDamageMetric(t *testing.T, r *replica, damaged bool) {
	t.Helper()
	want := 0
	if damaged {
		want = 1
	}
	text := fmt.Sprintf("# HELP packship_ledger_damaged 1 if records of the ledger were lost or cannot be read, or its topic is set so that they will be.\n# TYPE packship_ledger_damaged gauge\npackship_ledger_damaged %d\n", want)
	if err := testutil.GatherAndCompare(r.reg, strings.NewReader(text), "packship_ledger_damaged"); err != nil {
		t.Error(err)
	}
}

// TestGap looks at what comes between two records that were fetched.
func TestGap(t *testing.T) {
	at := foldStart
	rec := func(offset int64) fetched {
		return fetched{offset: offset, time: at.Add(time.Duration(offset) * time.Second)}
	}
	for name, tt := range map[string]struct {
		from   int64
		batch  batch
		want   string
		before int64 // seconds after at, of the record behind the gap; -1 for now
	}{
		"nothing came":        {from: 5, batch: batch{next: 5}},
		"one after the other": {from: 5, batch: batch{records: []fetched{rec(5), rec(6)}, next: 7}},
		"from the beginning":  {from: 5, batch: batch{records: []fetched{rec(6)}, next: 7}, want: "records 5 to 5 of partition 0 are missing", before: 6},
		"in the midst":        {from: 5, batch: batch{records: []fetched{rec(5), rec(8)}, next: 9}, want: "records 6 to 7", before: 8},
		"nothing is left":     {from: 5, batch: batch{next: 9}, want: "records 5 to 8", before: -1},
		"a marker":            {from: 5, batch: batch{records: []fetched{rec(5), rec(7)}, next: 8, markers: []int64{6}}},
		"markers at the end":  {from: 5, batch: batch{records: []fetched{rec(5)}, next: 8, markers: []int64{6, 7}}},
		"only a marker":       {from: 5, batch: batch{next: 6, markers: []int64{5}}},
		"a marker and a gap":  {from: 5, batch: batch{records: []fetched{rec(8)}, next: 9, markers: []int64{5}}, want: "records 6 to 7", before: 8},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := New(Config{
				Client: new(kafka.Client), Topic: "ledger", Partitions: 1, Horizon: testHorizon, StartBy: 1, CallTimeout: 1, Instance: "a", Logger: quiet,
			})
			if err != nil {
				t.Fatal(err)
			}
			p := l.partitions[0]
			p.live = true
			begin := time.Now()
			l.noteGap(p, tt.from, &tt.batch)
			if got := l.Status().Damaged; (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			switch want := at.Add(time.Duration(tt.before) * time.Second); {
			case tt.want == "" && !p.lostBefore.IsZero(), tt.before > 0 && !p.lostBefore.Equal(want), tt.before < 0 && p.lostBefore.Before(begin):
				t.Errorf("lost before %v", p.lostBefore)
			}
		})
	}
}

// TestTopicIsChanged has somebody change the topic's settings while it is in use.
func TestTopicIsChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, TopicConfig(testHorizon))
		r := start(t, b, "ledger", "a", onePartition)
		set := func(name, value string) {
			res, err := r.cfg.Client.IncrementalAlterConfigs(t.Context(), &kafka.IncrementalAlterConfigsRequest{
				Resources: []kafka.IncrementalAlterConfigsRequestResource{{
					ResourceType: kafka.ResourceTypeTopic, ResourceName: "ledger",
					Configs: []kafka.IncrementalAlterConfigsRequestConfig{{Name: name, Value: value, ConfigOperation: kafka.ConfigOperationSet}},
				}},
			})
			if err != nil || res.Resources[0].Error != nil {
				t.Fatal(err, res)
			}
			time.Sleep(2 * topicInterval)
		}
		for _, tt := range []struct{ name, value, want string }{
			{"segment.ms", "3600000", ""},
			{"cleanup.policy", "compact", "cleanup.policy=compact"},
			{"cleanup.policy", "delete", ""},
			{"retention.ms", "1000", "retention.ms=1000"},
		} {
			set(tt.name, tt.value)
			if got := r.Status().Unfit; (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("with %s=%s it is unfit for %q, want %q", tt.name, tt.value, got, tt.want)
			}
			wantDamageMetric(t, r, tt.want != "")
		}
		if got := strings.Count(r.log.String(), "the ledger's topic was changed"); got != 2 {
			t.Errorf("%d lines about it, want 2:\n%s", got, r.log)
		}
	})
}

// TestNewLeaderIsBehind has a leader tell once that the log ends before what was read.
// That is no proof that it was cut off.
func TestNewLeaderIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, nil)
		r := start(t, b, "ledger", "a", onePartition)
		s := shipment(1)
		settle(t, r, s, "e1", claim(t, r, s, "e1", ""), nil)
		r.brake.short.Store(1)
		if err := r.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if left := r.brake.short.Load(); left != 0 {
			t.Errorf("the leader is still behind: %d", left)
		}
		if got := r.Status().Damaged; got != "" {
			t.Errorf("damaged: %s", got)
		}
	})
}

// TestCutOffIsFoundOnce resumes work that was done when the log was longer. What is
// packed after that was found is called for.
func TestCutOffIsFoundOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, nil)
		r := start(t, b, "ledger", "a", onePartition)
		r.Resume(fmt.Sprintf(`{"ledger":%q,"read":[100]}`, r.Identity()))
		var lost []time.Time
		for range 3 {
			if err := r.CatchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			lost = append(lost, r.Look(shipment(1), "e1").LostBefore)
			time.Sleep(time.Minute)
		}
		if lost[0].IsZero() || !lost[1].Equal(lost[0]) || !lost[2].Equal(lost[0]) {
			t.Errorf("lost is what was packed before %v, want one time", lost)
		}
	})
}

// TestCutOffUnseen has a log cut off and grow again before the tail asks for more,
// so that what the tail gets looks as if nothing had happened. The first own record
// that is appended shows it, and nothing is called for under that.
func TestCutOffUnseen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, TopicConfig(testHorizon))
		r := start(t, b, "ledger", "a", onePartition)
		settle(t, r, shipment(1), "e1", claim(t, r, shipment(1), "e1", ""), nil)
		next, _ := r.partitions[0].position()
		epoch := r.partitions[0].epoch()

		release := r.brake.hold()
		time.Sleep(fetchWait) // the fetch that is under way ends
		b.Delete(t, "ledger")
		b.Create(t, "ledger", 1, TopicConfig(testHorizon))
		putRecord(t, b, "ledger", record{Kind: kindMeta, Meta: &meta{Version: 1, Partitions: 1, Horizon: testHorizon.String(), Epoch: epoch}})
		for range next - 2 { // one record is missing
			putRecord(t, b, "ledger", record{Kind: kindBye, Incarnation: "x/1"})
		}
		claimed := make(chan error, 1)
		go func() {
			_, held, err := r.Claim(t.Context(), shipment(2), "e1", "", "")
			if held {
				err = errors.New("held")
			}
			claimed <- err
		}()
		synctest.Wait()
		release()
		if err := <-claimed; err == nil || !strings.Contains(err.Error(), "was cut off") {
			t.Errorf("claim: got %v", err)
		}
		if got := r.Status().Damaged; !strings.Contains(got, "the log was cut off") {
			t.Errorf("damage: got %q", got)
		}
		if err := r.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := r.Look(shipment(1), "e1"); got.LostBefore.IsZero() {
			t.Errorf("what is gone: got %+v", got)
		}
	})
}

// A record that was appended while the log was begun once more lies where it may.
func TestCutOffIsOfOneReading(t *testing.T) {
	p := newPartition(0, testLease, nil)
	p.skip(10)
	before := p.reading()
	if !p.cutOff(before, 9) || p.cutOff(before, 10) {
		t.Error("a record before what was read must lie in the place of another, and only such a one")
	}
	p.reset(0)
	if p.cutOff(before, 9) {
		t.Error("what was read before the log was begun once more counts")
	}
	p.lose()
	if p.cutOff(p.reading(), -1) {
		t.Error("what is known to be lost counts once more")
	}
}

// TestDeletedBeforeRead has records deleted that a slow process has yet to read.
func TestDeletedBeforeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, nil)
		r := start(t, b, "ledger", "a", onePartition)
		release := r.brake.hold()
		time.Sleep(2 * fetchWait) // until the fetch that goes on has ended
		for range 5 {
			putRecord(t, b, "ledger", record{Kind: kindBye, Incarnation: "x/1"})
		}
		b.DeleteRecords(t, "ledger", 0, 4)
		release()
		if err := r.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := r.Status().Damaged; !strings.Contains(got, "deleted before they were read") {
			t.Errorf("got damage %q", got)
		}
	})
}

// TestUnusableLedger has a process refuse to start.
func TestUnusableLedger(t *testing.T) {
	for name, tt := range map[string]struct {
		meta meta
		want []string
	}{
		"made for another number of partitions": {
			meta{Version: 1, Partitions: 8, Horizon: "1h", Epoch: "e"},
			[]string{"ledger", "8 partitions, not 1", "PACKSHIP_LEDGER_PARTITIONS to 8"},
		},
		"written by another version": {
			meta{Version: 2, Partitions: 1, Horizon: "1h", Epoch: "e"},
			[]string{"ledger", "version 2", "another topic"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := brokertest.Fake(t)
			b.Create(t, "ledger", 1, nil)
			putRecord(t, b, "ledger", record{Kind: kindMeta, Meta: &tt.meta})
			l, err := New(Config{
				Client: b.Client(t, "ledger"), Topic: "ledger", Partitions: 1, Horizon: testHorizon, StartBy: 1, CallTimeout: 1,
				Instance: "a", Logger: quiet,
			})
			if err != nil {
				t.Fatal(err)
			}
			err = l.Run(t.Context())
			if err == nil {
				t.Fatal("it runs")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if got := l.WaitReady(t.Context()); got == nil || got.Error() != err.Error() {
				t.Errorf("waiting until it is ready: got %v", got)
			}
			if ok, why := l.Ready(); ok || why != err.Error() {
				t.Errorf("ready: got %v, %q", ok, why)
			}
		})
	}
}

// TestClocksThatRunAhead sees that a wrong clock alone forgets nothing.
func TestClocksThatRunAhead(t *testing.T) {
	now := time.Date(2026, 11, 24, 2, 0, 0, 0, time.UTC)
	ahead := now.AddDate(0, 1, 0)
	for name, tt := range map[string]struct {
		record, process time.Time
		forgets         bool
	}{
		"neither":            {now, now, false},
		"that of a record":   {ahead, now, false},
		"that of a process":  {now, ahead, false},
		"time really passed": {ahead, ahead, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPartition(0, testLease, nil)
			old := entry{key: shipment(1).Key(), time: now, record: record{Kind: kindOutcome, Attempt: "w/1", Round: 1, verdict: schema.Shipped}}
			last := entry{key: shipment(2).Key(), time: tt.record, record: record{Kind: kindIntent, Attempt: "w/2", Round: 1}}
			p.apply([]entry{old, last}, 2)
			p.expire(tt.process, testHorizon)
			if _, _, known := p.fold.standing(shipment(1).Key(), schema.EventHash{}, now); known == tt.forgets {
				t.Errorf("got known %v", known)
			}
		})
	}
}

// A process whose clock is far behind writes outcomes. They are remembered like
// those of others; and a clock that runs ahead keeps nothing for longer than that.
func TestClocksThatAreBehind(t *testing.T) {
	now := time.Date(2026, 11, 24, 2, 0, 0, 0, time.UTC)
	behind, ahead := now.AddDate(-26, 0, 0), now.AddDate(1, 0, 0)
	p := newPartition(0, testLease, nil)
	write := func(n int, at time.Time) {
		p.apply([]entry{{
			key: shipment(n).Key(), time: at, read: now,
			record: record{Kind: kindOutcome, Attempt: "w/1", Round: 1, verdict: schema.Shipped},
		}}, int64(n))
	}
	write(1, now.Add(-time.Hour))
	write(2, behind)
	write(3, ahead)
	write(4, behind)
	known := func(n int) bool {
		_, _, known := p.fold.standing(shipment(n).Key(), schema.EventHash{}, now)
		return known
	}
	p.expire(now, testHorizon)
	for n := range 4 {
		if !known(n + 1) {
			t.Errorf("shipment %d is forgotten", n+1)
		}
	}
	p.expire(now.Add(testHorizon+48*time.Hour), testHorizon)
	for n, want := range map[int]bool{1: false, 2: false, 3: true, 4: false} {
		if known(n) != want {
			t.Errorf("past the horizon: shipment %d is known: %v, want %v", n, !want, want)
		}
	}
}

// TestTransactionMarkers sees that what is no record to us is stepped over.
func TestTransactionMarkers(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			topic := b.Topic(t, 1, TopicConfig(testHorizon))
			r := start(t, b, topic, "a", onePartition)
			for range 3 {
				value, err := (&record{Kind: kindBye, Incarnation: "x/1"}).encode()
				if err != nil {
					t.Fatal(err)
				}
				b.ProduceTransaction(t, topic, 0, nil, value)
			}
			// Its last record is a marker.
			for _, r := range []*replica{r, start(t, b, topic, "b", onePartition)} {
				if err := r.CatchUp(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := testutil.ToFloat64(r.metrics.records[kindBye]); got != 3 {
					t.Errorf("%s: got %v records", r.self, got)
				}
				if st := r.Status(); st.Damaged != "" {
					t.Errorf("%s: damaged: %s", r.self, st.Damaged)
				}
			}
		})
	}
}
