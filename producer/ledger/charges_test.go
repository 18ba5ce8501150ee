package ledger

import (
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"packship/producer/internal/brokertest"
	"packship/schema"
)

// TestCharges reads records one after the other and compares what is told of them.
func TestCharges(t *testing.T) {
	at := time.Date(2026, 11, 30, 8, 0, 0, 0, time.UTC)
	type paid struct {
		attempt, account string
		points           int64
		stale            bool // it changed nothing
	}
	again := paid{attempt: "restart"} // the log is read from its beginning once more
	tests := map[string]struct {
		records []paid
		want    []schema.Charge
	}{
		"nothing":              {nil, nil},
		"a call that was free": {[]paid{{"w/1", "north", 0, false}}, nil},
		"two calls": {
			[]paid{{"w/1", "north", 1, false}, {"w/2", "南", 2, false}},
			[]schema.Charge{{Account: "north", Points: 1}, {Account: "南", Points: 2}},
		},
		"a copy of a record": {
			[]paid{{"w/1", "north", 1, false}, {"w/2", "north", 2, false}, {"w/1", "north", 1, true}},
			[]schema.Charge{{Account: "north", Points: 1}, {Account: "north", Points: 2}},
		},
		"a result that lost": {
			[]paid{{"w/1", "north", 1, false}, {"v/1", "north", 2, true}, {"v/1", "north", 2, true}},
			[]schema.Charge{{Account: "north", Points: 1}, {Account: "north", Points: 2}},
		},
		"read once more": {
			[]paid{{"w/1", "north", 1, false}, {"w/2", "north", 2, false}, again, {"w/1", "north", 1, false}, {"w/2", "north", 2, false}, {"w/3", "north", 3, false}},
			[]schema.Charge{{Account: "north", Points: 1}, {Account: "north", Points: 2}, {Account: "north", Points: 3}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got []schema.Charge
			c := charges{tell: func(paid schema.Charge, when time.Time) {
				if when.Before(at) {
					t.Errorf("told to be of %s", when)
				}
				got = append(got, paid)
			}}
			n := 0
			for _, p := range tt.records {
				if n++; p == again {
					c.restart()
					n = 0
					continue
				}
				c.add(&entry{time: at.Add(time.Duration(n) * time.Second), record: record{Attempt: p.attempt, Account: p.account, Points: p.points}}, !p.stale)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("told (-want +got):\n%s", diff)
			}
		})
	}

	t.Run("copies are known for a while", func(t *testing.T) {
		told := 0
		c := charges{tell: func(schema.Charge, time.Time) { told++ }}
		add := func(n int, fresh bool) {
			c.add(&entry{time: at, record: record{Attempt: fmt.Sprint("w/", n), Account: "north", Points: 1}}, fresh)
		}
		for n := range 3 * toldAttempts {
			add(n, true)
		}
		for n := range toldAttempts {
			add(2*toldAttempts+n, false)
		}
		if told != 3*toldAttempts || len(c.told) != toldAttempts {
			t.Errorf("%d attempts told and %d known, want %d and %d", told, len(c.told), 3*toldAttempts, toldAttempts)
		}
	})

	t.Run("nobody wants to know", func(*testing.T) {
		new(charges).add(&entry{time: at, record: record{Attempt: "w/1", Account: "north", Points: 1}}, true)
	})
}

// purse adds up what a replica is told, by account.
type purse struct {
	mu     sync.Mutex
	points map[string]int64
}

func (p *purse) charged(paid schema.Charge, _ time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.points[paid.Account] += paid.Points
}

// TestCharged has two replicas spend, and one that was not there read of it.
func TestCharged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", testPartitions, TopicConfig(testHorizon))
		var purses []*purse
		launch := func(instance string) *replica {
			p := &purse{points: map[string]int64{}}
			purses = append(purses, p)
			return start(t, b, "ledger", instance, func(c *Config) { c.Charged = p.charged })
		}
		a, other := launch("a"), launch("b")
		want := map[string]int64{}
		spend := func(r *replica, n int, paid schema.Charge, failure *schema.Failure) {
			s := shipment(n)
			h := claim(t, r, s, "e1", "")
			if err := r.Settle(t.Context(), s, "e1", h, schema.Settlement{Outcome: outcomeOf(t, s, h.Round, failure), Paid: paid}); err != nil {
				t.Fatal(err)
			}
			want[paid.Account] += paid.Points
		}
		for n := range 20 {
			spend(a, n, schema.Charge{Account: "north", Points: 1}, nil)
		}
		spend(other, 20, schema.Charge{Account: "south", Points: 3}, nil)
		spend(other, 21, schema.Charge{Account: "south", Points: 1}, refusal())
		spend(other, 22, schema.Charge{Account: "south"}, refusal())
		s := shipment(23)
		if err := a.Release(t.Context(), s, claim(t, a, s, "e1", ""), "http_429", schema.Charge{Account: "north", Points: 7}); err != nil {
			t.Fatal(err)
		}
		want["north"] += 7

		late := launch("c")
		for i, r := range []*replica{a, other, late} {
			if err := r.CatchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := purses[i].points; !maps.Equal(got, want) {
				t.Errorf("replica %d was told of %v, want %v", i, got, want)
			}
		}
	})
}

// TestChargedAfterAReset has the log found to be another one, so that it is read
// once more.
func TestChargedAfterAReset(t *testing.T) {
	var told int
	p := newPartition(0, testLease, func(schema.Charge, time.Time) { told++ })
	now := time.Now()
	outcome := func(n int) entry {
		return entry{key: shipment(n).Key(), offset: int64(n), time: now.Add(time.Duration(n) * time.Second), record: record{
			Kind: kindOutcome, Attempt: fmt.Sprint("w/", n), Round: 1, Account: "north", Points: 1, verdict: schema.Shipped,
		}}
	}
	p.apply([]entry{outcome(1), outcome(2)}, 3)
	p.reset(1)
	p.apply([]entry{outcome(1), outcome(2), outcome(3)}, 4)
	if told != 3 {
		t.Errorf("told %d times of three outcomes", told)
	}
}
