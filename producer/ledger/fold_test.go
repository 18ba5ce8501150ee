package ledger

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"packship/schema"
)

var (
	foldKey   = modelShipment.Key()
	foldStart = time.Date(2026, 11, 24, 2, 0, 0, 0, time.UTC)
)

const foldLease = 50 * time.Second

// foldLog folds records that are written one a second, in the notation of
// parseRecord.
type foldLog struct {
	*fold
	n int
}

func (l *foldLog) add(t *testing.T, notation string) (changed bool) {
	t.Helper()
	e := parseRecord(t, notation)
	at := foldStart.Add(time.Duration(l.n) * time.Second)
	e.offset, e.time, e.read = int64(100+l.n), at, at
	l.n++
	return l.apply(e)
}

func newFoldLog(t *testing.T, notations ...string) *foldLog {
	t.Helper()
	l := &foldLog{fold: newFold(foldLease)}
	for _, n := range notations {
		if !l.add(t, n) && !strings.HasPrefix(n, "bye") {
			t.Fatalf("%q changed nothing", n)
		}
	}
	return l
}

// parseRecord reads a record from a short notation:
//
//	intent A e1 r1 [doubt]    takeover A<B e1    release A    shipped A r1
//	failed A [e1] [r1] [maybe] [uncalled] [unanswered]    bye w [A ...]    meta
//
// Attempt A is of the incarnation w, all others are of v.
func parseRecord(t *testing.T, notation string) *entry {
	t.Helper()
	words := strings.Fields(notation)
	e := &entry{key: foldKey, record: record{Kind: kind(words[0])}}
	attempt := func(name string) string {
		if name == "A" {
			return "w/A"
		}
		return "v/" + name
	}
	arg := ""
	if len(words) > 1 {
		arg = words[1]
	}
	for _, w := range words[min(2, len(words)):] {
		switch {
		case e.Kind == kindBye:
			e.Open = append(e.Open, attempt(w))
		case w == "doubt", w == "maybe":
			e.Doubt = true
		case w == "uncalled":
			e.Uncalled = true
		case w == "unanswered":
			e.Unanswered = true
		case w[0] == 'r':
			if _, err := fmt.Sscanf(w, "r%d", &e.Round); err != nil {
				t.Fatal(err)
			}
		case w[0] == 'e':
			e.Event = w
		default:
			t.Fatalf("what is %q in %q?", w, notation)
		}
	}
	switch words[0] {
	case "shipped", "failed":
		e.Kind, e.verdict, e.Attempt = kindOutcome, schema.Verdict(words[0]), attempt(arg)
		e.Round = max(e.Round, 1)
		if e.Event == "" {
			e.Event = "e1"
		}
	case "takeover":
		name, prev, _ := strings.Cut(arg, "<")
		e.Attempt, e.Prev = attempt(name), attempt(prev)
	case "bye":
		e.Incarnation = arg
	case "intent", "release":
		e.Attempt = attempt(arg)
	}
	return e
}

// show describes how the shipment stands for the events e1 and e2.
func (l *foldLog) show() string {
	var parts []string
	for _, event := range []string{"e1", "e2"} {
		st, offset, _ := l.standing(foldKey, schema.HashEvent(event), foldStart.Add(time.Duration(l.n)*time.Second))
		s := ""
		switch st.State {
		case schema.StateOpen:
			s = "open"
		case schema.StateHeld:
			s = "held by " + st.Holder[2:]
			if free := st.FreeAt.Sub(foldStart.Add(time.Duration(l.n) * time.Second)); free < foldLease/2 {
				s += " free"
			}
		case schema.StateSettled:
			parts = append(parts, fmt.Sprintf("answer @%d r%d", offset, st.Round))
			continue
		}
		s += fmt.Sprintf(" r%d", st.Round)
		if st.Attempts > 0 {
			s += fmt.Sprintf(" a%d", st.Attempts)
		}
		if st.Doubt {
			s += " doubt"
		}
		parts = append(parts, s)
	}
	if parts[0] == parts[1] {
		return parts[0]
	}
	return parts[0] + " | " + parts[1]
}

// TestFold goes through every cell of the table of states and records.
func TestFold(t *testing.T) {
	for _, state := range []struct {
		name string
		log  []string
		show string // of the state itself
		// becomes has what the records make of it; those that are not in it
		// change nothing.
		becomes map[string]string
	}{
		{
			name: "none", show: "open r1",
			becomes: map[string]string{
				"intent C e1 r1":       "held by C r1",
				"intent C e2 r1":       "held by C r1",
				"intent C e2 r1 doubt": "held by C r1 doubt",
				"shipped A r1":         "answer @100 r1",
				"shipped C r1":         "answer @100 r1",

				// What stood before them has expired.
				"intent C e1 r2":            "held by C r2",
				"intent C e2 r2":            "held by C r2",
				"intent C e2 r2 doubt":      "held by C r2 doubt",
				"intent C e2 r3 doubt":      "held by C r3 doubt",
				"takeover C<A e1":           "held by C r1 a1 doubt",
				"takeover C<A e2":           "held by C r1 a1 doubt",
				"takeover C<D e1":           "held by C r1 a1 doubt",
				"failed A":                  "answer @100 r1 | open r2 a1",
				"failed A maybe":            "answer @100 r1 | open r2 a1 doubt",
				"failed A maybe unanswered": "answer @100 r1 | held by A r2 a1 doubt",
				"failed A uncalled":         "answer @100 r1 | open r2",
				"failed C maybe":            "answer @100 r1 | open r2 a1 doubt",
			},
		},
		{
			name: "released", log: []string{"intent A e1 r1", "release A"}, show: "open r1",
			becomes: map[string]string{
				"intent C e1 r1":       "held by C r1",
				"intent C e2 r1":       "held by C r1",
				"intent C e2 r1 doubt": "held by C r1 doubt",
				"shipped A r1":         "answer @102 r1",
				"shipped C r1":         "answer @102 r1",
			},
		},
		{
			name: "released in doubt", log: []string{"intent B e1 r1", "takeover A<B e1", "release A"}, show: "open r1 a1 doubt",
			becomes: map[string]string{
				"intent C e2 r1 doubt": "held by C r1 a1 doubt",
				"shipped A r1":         "answer @103 r1",
				"shipped C r1":         "answer @103 r1",
			},
		},
		{
			name: "held", log: []string{"intent A e1 r1"}, show: "held by A r1",
			becomes: map[string]string{
				"takeover C<A e1": "held by C r1 a1 doubt",
				"takeover C<A e2": "held by C r1 a1 doubt",
				"release A":       "open r1",
				"failed A":        "answer @101 r1 | open r2 a1",
				"failed A maybe":  "answer @101 r1 | open r2 a1 doubt",

				"failed A maybe unanswered": "answer @101 r1 | held by A r2 a1 doubt",
				"failed A uncalled":         "answer @101 r1 | open r2",
				"shipped A r1":              "answer @101 r1",
				"shipped C r1":              "answer @101 r1",
				"bye w":                     "held by A free r1",
			},
		},
		{
			name: "held in doubt", log: []string{"intent B e1 r1", "takeover A<B e2"}, show: "held by A r1 a1 doubt",
			becomes: map[string]string{
				"takeover C<A e1":   "held by C r1 a2 doubt",
				"takeover C<A e2":   "held by C r1 a2 doubt",
				"release A":         "open r1 a1 doubt",
				"failed A":          "answer @102 r1",
				"failed A maybe":    "answer @102 r1",
				"failed A uncalled": "answer @102 r1",

				"failed A maybe unanswered": "answer @102 r1",
				"shipped A r1":              "answer @102 r1",
				"shipped C r1":              "answer @102 r1",
				"bye w":                     "held by A free r1 a1 doubt",
			},
		},
		{
			name: "failed", log: []string{"intent A e1 r1", "failed A"}, show: "answer @101 r1 | open r2 a1",
			becomes: map[string]string{
				"intent C e1 r2":       "answer @101 r1 | held by C r2 a1", // of one for whom the answer has expired
				"intent C e2 r2":       "answer @101 r1 | held by C r2 a1",
				"intent C e2 r2 doubt": "answer @101 r1 | held by C r2 a1 doubt",
				"shipped A r1":         "answer @102 r1",
				"shipped C r1":         "answer @102 r1",
			},
		},
		{
			name: "failed in doubt", log: []string{"intent A e1 r1", "failed A maybe"}, show: "answer @101 r1 | open r2 a1 doubt",
			becomes: map[string]string{
				"intent C e2 r2 doubt": "answer @101 r1 | held by C r2 a1 doubt",
				"shipped A r1":         "answer @102 r1",
				"shipped C r1":         "answer @102 r1",
			},
		},
		{
			name: "failed without an answer", log: []string{"intent A e1 r1", "failed A maybe unanswered"}, show: "answer @101 r1 | held by A r2 a1 doubt",
			becomes: map[string]string{
				"intent C e2 r2 doubt": "answer @101 r1 | held by C r2 a1 doubt",
				"shipped A r1":         "answer @102 r1",
				"shipped C r1":         "answer @102 r1",
			},
		},
		{
			name: "held in the second round",
			log:  []string{"intent B e1 r1", "failed B", "intent A e2 r2"}, show: "answer @101 r1 | held by A r2 a1",
			becomes: map[string]string{
				"takeover C<A e1": "answer @101 r1 | held by C r2 a2 doubt",
				"takeover C<A e2": "answer @101 r1 | held by C r2 a2 doubt",
				"release A":       "answer @101 r1 | open r2 a1",
				"failed A":        "answer @101 r1 | answer @103 r2",
				"failed A maybe":  "answer @101 r1 | answer @103 r2",

				"failed A maybe unanswered": "answer @101 r1 | answer @103 r2",
				"failed A uncalled":         "answer @101 r1 | answer @103 r2",
				"shipped A r1":              "answer @103 r1",
				"shipped C r1":              "answer @103 r1",
				"bye w":                     "answer @101 r1 | held by A free r2 a1",
			},
		},
		{
			name: "released in the second round",
			log:  []string{"intent B e1 r1", "failed B", "intent A e2 r2", "release A"}, show: "answer @101 r1 | open r2 a1",
			becomes: map[string]string{
				"intent C e1 r2":       "answer @101 r1 | held by C r2 a1", // of one for whom the answer has expired
				"intent C e2 r2":       "answer @101 r1 | held by C r2 a1",
				"intent C e2 r2 doubt": "answer @101 r1 | held by C r2 a1 doubt",
				"shipped A r1":         "answer @104 r1",
				"shipped C r1":         "answer @104 r1",
			},
		},
		{
			name: "shipped", log: []string{"intent A e1 r1", "shipped A r1"}, show: "answer @101 r1",
			becomes: map[string]string{},
		},
	} {
		seen := make(map[string]bool)
		for _, rec := range []string{
			"intent A e1 r1", "intent C e1 r1", "intent C e2 r1", "intent C e2 r1 doubt", "intent C e1 r2", "intent C e2 r2", "intent C e2 r2 doubt", "intent C e2 r3 doubt",
			"takeover C<A e1", "takeover C<A e2", "takeover C<D e1",
			"release A", "release C",
			"failed A", "failed A maybe", "failed A maybe unanswered", "failed A uncalled", "failed C maybe",
			"shipped A r1", "shipped C r1",
			"bye w", "bye w A", "bye v", "meta",
		} {
			seen[rec] = true
			t.Run(state.name+"/"+rec, func(t *testing.T) {
				l := newFoldLog(t, state.log...)
				if diff := cmp.Diff(state.show, l.show()); diff != "" {
					t.Fatalf("the state itself is not what was meant (-want +got):\n%s", diff)
				}
				want, changes := state.becomes[rec]
				if rec == "intent A e1 r1" && state.name == "none" {
					want, changes = "held by A r1", true
				}
				if !changes {
					want = state.show
				}
				if got := l.add(t, rec); got != changes {
					t.Errorf("got changed %v, want %v", got, changes)
				}
				if diff := cmp.Diff(want, l.show()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		}
		for rec := range state.becomes {
			if !seen[rec] {
				t.Errorf("%s: no record %q was tried", state.name, rec)
			}
		}
	}
}

func TestFoldHistories(t *testing.T) {
	for name, tt := range map[string]struct {
		log  []string
		want string
	}{
		"a copy of a released intent does not hold": {
			[]string{"intent A e1 r1", "release A", "intent A e1 r1"}, "open r1",
		},
		"two rounds answer two events": {
			[]string{"intent A e1 r1", "failed A", "intent B e2 r2", "failed B"}, "answer @101 r1 | answer @103 r2",
		},
		"a third round remembers both": {
			[]string{"intent A e1 r1", "failed A", "intent B e2 r2", "failed B", "intent C e3 r3", "failed C"}, "answer @101 r1 | answer @103 r2",
		},
		"doubt survives rounds and releases": {
			[]string{"intent A e3 r1", "takeover B<A e3", "failed B maybe", "intent C e4 r2 doubt", "release C"}, "open r2 a2 doubt",
		},
		"who was taken over is answered too": {
			[]string{"intent A e1 r1", "takeover B<A e2", "failed B maybe"}, "answer @102 r1",
		},
		"a takeover after a release needs an intent first": {
			[]string{"intent A e1 r1", "release A", "takeover B<A e1"}, "open r1",
		},
		"success after failure corrects it for all": {
			[]string{"intent A e1 r1", "failed A", "shipped B r1"}, "answer @102 r1",
		},
		"the first success counts": {
			[]string{"intent A e1 r1", "shipped A r1", "shipped B r1", "failed A"}, "answer @101 r1",
		},
		"a round before this one has expired": {
			[]string{"intent A e2 r2", "failed A"}, "open r3 a1 | answer @101 r2",
		},
		"a round before a doubt has expired": {
			[]string{"intent A e2 r2", "takeover B<A e2"}, "held by B r2 a1 doubt",
		},
		"all of a round but its end has expired": {
			[]string{"failed A e2 r2 maybe", "intent B e3 r3 doubt", "failed B e3 r3"}, "open r4 a2 doubt | answer @100 r2",
		},
		"what has expired of a takeover's round": {
			[]string{"takeover B<A e2 r3", "failed B maybe"}, "open r4 a2 doubt | answer @101 r3",
		},
		"a late takeover of a settled round": {
			[]string{"intent A e1 r1", "failed A", "takeover B<A e1 r1"}, "answer @101 r1 | open r2 a1",
		},
		"bye frees only once": {
			[]string{"intent A e1 r1", "bye w", "bye w"}, "held by A free r1",
		},
		"an intent after bye is a new hold": {
			[]string{"intent A e1 r1", "bye w", "takeover B<A e1"}, "held by B r1 a1 doubt",
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := &foldLog{fold: newFold(foldLease)}
			for _, n := range tt.log {
				l.add(t, n)
			}
			if diff := cmp.Diff(tt.want, l.show()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFoldCools(t *testing.T) {
	l := newFoldLog(t, "intent A e1 r1", "failed A maybe unanswered")
	event := schema.HashEvent("e2")
	free := foldStart.Add(foldLease)
	for _, tt := range []struct {
		now  time.Time
		want schema.State
	}{{foldStart, schema.StateHeld}, {free.Add(-1), schema.StateHeld}, {free, schema.StateOpen}} {
		if st, _, _ := l.standing(foldKey, event, tt.now); st.State != tt.want || st.State == schema.StateHeld && !st.FreeAt.Equal(free) {
			t.Errorf("after %s: got %+v", tt.now.Sub(foldStart), st)
		}
		if st, _, _ := l.standing(foldKey, schema.HashEvent("e1"), tt.now); st.State != schema.StateSettled {
			t.Errorf("after %s: the answered event got %+v", tt.now.Sub(foldStart), st)
		}
	}
	l.cool(free.Add(-1))
	if len(l.cooling) != 1 {
		t.Error("it has cooled down too early")
	}
	l.cool(free)
	if len(l.cooling) != 0 {
		t.Error("it does not cool down")
	}
}

func TestFoldExpires(t *testing.T) {
	f := newFold(foldLease)
	key := func(n int) schema.Key { return schema.Key{0: byte(n), 1: byte(n >> 8)} }
	const days = 20
	for n := range days {
		at := foldStart.AddDate(0, 0, n)
		e := &entry{key: key(n), time: at, read: at, record: record{Kind: kindIntent, Attempt: "w/1", Event: "e", Round: 1}}
		f.apply(e)
		switch n % 3 {
		case 0:
			e.Kind, e.verdict = kindOutcome, schema.Shipped
			f.apply(e)
		case 1:
			e.Kind, e.verdict = kindOutcome, schema.Failed
			f.apply(e)
		}
	}
	if got := f.entries(); got != days {
		t.Fatalf("got %d entries, want %d", got, days)
	}
	f.expire(dayOf(foldStart.AddDate(0, 0, 12)))
	for n := range days {
		if _, _, known := f.standing(key(n), schema.EventHash{}, foldStart); known != (n >= 12) {
			t.Errorf("day %d: got known %v", n, known)
		}
	}
	if got := f.entries(); got != days-12 {
		t.Errorf("got %d entries, want %d", got, days-12)
	}
}

func TestPlace(t *testing.T) {
	for _, offset := range []int64{0, 1, 1 << 40, maxOffset} {
		for _, round := range []int{1, 2, maxRound} {
			for _, failed := range []bool{false, true} {
				p := placeOf(offset, round, failed)
				if p.offset() != offset || p.round() != round || p.failed() != failed || p == 0 {
					t.Errorf("%d, %d, %v became %d, %d, %v", offset, round, failed, p.offset(), p.round(), p.failed())
				}
			}
		}
	}
}
