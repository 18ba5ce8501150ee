package ledger

import (
	"slices"
	"testing"
)

// exploration is a configuration of the model with what it is expected to show.
type exploration struct {
	name  string
	model model
	calls int8 // the most calls that one shipment may cost
	long  bool // left out of short runs
}

var explorations = []exploration{
	{"rebalances only, a redrive and a replay", model{workers: 2, events: 2, budget: mBudget{bad: 2, replay: 1}}, 2, false},
	{"timeout, redrive", model{workers: 2, events: 2, budget: mBudget{bad: 2, timeout: 1}}, 3, false},
	{"pause, crash", model{workers: 2, events: 1, budget: mBudget{bad: 1, pause: 1, crash: 1}}, 3, false},
	{"clean stop, timeout", model{workers: 2, events: 1, budget: mBudget{bad: 1, stop: 1, timeout: 1}}, 2, false},
	{"records twice, throttling", model{workers: 2, events: 1, budget: mBudget{bad: 1, copies: 1, reject: 1}}, 1, false},
	{"foreign shipper, crash, timeout", model{workers: 2, events: 1, budget: mBudget{foreign: 1, crash: 1, timeout: 1}}, 3, false},
	{"refusal without a call, crash", model{workers: 2, events: 2, refuse: true, budget: mBudget{bad: 1, crash: 1}}, 2, false},
	{"records twice, crash", model{workers: 2, events: 1, budget: mBudget{bad: 1, copies: 1, crash: 1}}, 2, true},
	{"clean stop, crash", model{workers: 2, events: 1, budget: mBudget{bad: 1, stop: 1, crash: 1}}, 2, true},
	{"crash, redrive", model{workers: 2, events: 2, budget: mBudget{bad: 1, crash: 1}}, 3, true},
	{"two crashes, timeout", model{workers: 2, events: 1, budget: mBudget{bad: 1, crash: 2, timeout: 1}}, 4, true},
	{"crash, timeout, throttling", model{workers: 2, events: 1, budget: mBudget{bad: 1, crash: 1, timeout: 1, reject: 1}}, 3, true},
	{"three workers, crash", model{workers: 3, events: 1, budget: mBudget{bad: 1, crash: 1}}, 2, true},
	{"three workers, redrive", model{workers: 3, events: 2, budget: mBudget{bad: 1}}, 2, true},
}

func TestExplore(t *testing.T) {
	states := 0
	for _, x := range explorations {
		t.Run(x.name, func(t *testing.T) {
			if x.long && (testing.Short() || raceDetector) {
				t.Skip("long")
			}
			m := x.model
			complete := m.run(10_000_000)
			states += len(m.states)
			t.Logf("%d states, %d log prefixes, at most %d calls, %d effects, %d violations",
				len(m.states), len(m.nodes), m.maxCalls, m.effects, len(m.violations))
			if !complete {
				t.Error("too many states: the exploration is not complete")
			}
			if m.maxCalls != x.calls {
				t.Errorf("got at most %d calls, want %d", m.maxCalls, x.calls)
			}
			for what, n := range m.violations {
				t.Errorf("%s:\n%s", what, m.trace(n))
			}
		})
	}
	t.Logf("%d states in all", states)
}

// TestExploreFlaws breaks the ledger in the ways that suggest themselves, and
// sees whether the explorer notices.
func TestExploreFlaws(t *testing.T) {
	key := modelShipment.Key()
	nothing := func() {}
	for _, flaw := range []struct {
		name  string
		model model
		want  []string
	}{
		{
			name:  "calls without having read the intent back",
			model: model{workers: 2, events: 1, noReadBack: true},
			want:  []string{"overlap"},
		},
		{
			name: "the last record wins",
			model: model{workers: 2, events: 1, budget: mBudget{bad: 1}, warp: func(f *fold, e *entry) func() {
				was := f.open[key]
				f.forget(key)
				f.open[key] = &open{round: e.Round}
				switch e.Kind {
				case kindTakeover:
					f.open[key].holder = e.Prev
				case kindRelease, kindOutcome:
					f.open[key].holder = e.Attempt
				default:
				}
				if was != nil {
					f.open[key].doubt = was.doubt && e.Doubt
				}
				return nothing
			}},
			want: []string{"blind repeat", "overlap", "two stories"},
		},
		{
			name: "a takeover need not name the holder",
			model: model{workers: 3, events: 1, budget: mBudget{crash: 1}, warp: func(f *fold, e *entry) func() {
				if o := f.open[key]; o != nil && e.Kind == kindTakeover && o.holder != "" {
					e.Prev = o.holder
				}
				return nothing
			}},
			want: []string{"overlap"},
		},
		{
			name: "only the event answered last is remembered",
			model: model{workers: 2, events: 2, budget: mBudget{bad: 3, replay: 1}, warp: func(f *fold, _ *entry) func() {
				return func() {
					if o := f.open[key]; o != nil && len(o.answered) > 1 {
						o.answered = o.answered[len(o.answered)-1:]
					}
					if d, _, ok := f.settled(key); ok {
						delete(d.earlier, key)
					}
				}
			}},
			want: []string{"blind repeat"},
		},
		{
			name: "a failure does not answer those who were taken over",
			model: model{workers: 2, events: 2, budget: mBudget{bad: 3, crash: 1}, warp: func(f *fold, e *entry) func() {
				if o := f.open[key]; o != nil && e.Kind == kindOutcome {
					o.unsure = nil
				}
				return nothing
			}},
			want: []string{"blind repeat"},
		},
		{
			name: "a failure counts from anybody",
			model: model{workers: 2, events: 1, budget: mBudget{bad: 1, crash: 1, pause: 1}, warp: func(f *fold, e *entry) func() {
				if o := f.open[key]; o != nil && o.holder != "" && e.Kind == kindOutcome {
					e.Attempt = o.holder
				}
				return nothing
			}},
			want: []string{"false failed"},
		},
		{
			name: "doubt is forgotten",
			model: model{workers: 2, events: 1, budget: mBudget{bad: 1, crash: 1, reject: 1}, warp: func(f *fold, e *entry) func() {
				return func() {
					if o := f.open[key]; o != nil && e.Kind == kindRelease {
						o.doubt = false
					}
				}
			}},
			want: []string{"false failed"},
		},
		{
			name: "an intent need not fit",
			model: model{workers: 3, events: 2, refuse: true, budget: mBudget{bad: 2}, warp: func(f *fold, e *entry) func() {
				if st, _, _ := f.standing(key, e.hash(), e.read); e.Kind == kindIntent {
					e.Round, e.Doubt = st.Round, st.Doubt
				}
				return nothing
			}},
			want: []string{"two stories"},
		},
		{
			name: "bye frees everything",
			model: model{workers: 2, events: 1, budget: mBudget{timeout: 1, stop: 1}, warp: func(_ *fold, e *entry) func() {
				e.Open = nil
				return nothing
			}},
			want: []string{"early bye"},
		},
		{
			name: "a round begins while the call of the last one may still take effect",
			model: model{workers: 2, events: 2, budget: mBudget{timeout: 1}, warp: func(f *fold, _ *entry) func() {
				return func() { clear(f.cooling) }
			}},
			want: []string{"overlap"},
		},
	} {
		t.Run(flaw.name, func(t *testing.T) {
			m := flaw.model
			m.run(3_000_000, flaw.want...)
			t.Logf("%d states, violations %q", len(m.states), m.found())
			for _, want := range flaw.want {
				if !slices.Contains(m.found(), want) {
					t.Errorf("%q was not found", want)
				}
			}
		})
	}
}
