package ledger

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"packship/producer/internal/brokertest"
	"packship/schema"
)

// TestExpiredAnswer has retention take the first round of a shipment. One replica
// has read that and goes by it, one has found out that it is gone, and one began
// after that. They must agree on who holds the shipment all the same.
func TestExpiredAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, map[string]string{"retention.ms": "-1"})
		old, asked := start(t, b, "ledger", "old", onePartition), start(t, b, "ledger", "asked", onePartition)
		known, unknown := shipment(1), shipment(2)
		for _, s := range []*schema.Shipment{known, unknown} {
			settle(t, old, s, "e1", claim(t, old, s, "e1", ""), refusal())
		}
		left, _ := old.partitions[0].position()
		for _, s := range []*schema.Shipment{known, unknown} {
			settle(t, old, s, "e2", claim(t, old, s, "e2", ""), refusal())
		}
		p := asked.partitions[0]
		putRecord(t, b, "ledger", record{Kind: kindMeta, Meta: &meta{Version: 1, Partitions: 1, Horizon: testHorizon.String(), Epoch: old.partitions[0].epoch(), Renews: time.Now().Add(-testHorizon)}})
		if err := asked.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.remembersNothing()
		b.DeleteRecords(t, "ledger", 0, left)
		later := start(t, b, "ledger", "later", onePartition)

		// The one who has asked refuses the event again, and the one who came
		// later takes it for a new one.
		_, _ = asked.Stored(t.Context(), known, "e1")
		if err := asked.Refuse(t.Context(), known, "e1", outcomeOf(t, known, 3, maybe())); err != nil {
			t.Fatal(err)
		}
		claim(t, later, unknown, "e1", "")
		claim(t, asked, known, "e3", "")
		for _, s := range []*schema.Shipment{known, unknown} {
			want := asked.Look(s, "e4")
			for _, r := range []*replica{old, later} {
				if err := r.CatchUp(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := r.Look(s, "e4"); got.State != schema.StateHeld || got.Holder != want.Holder || got.Round != want.Round {
					t.Errorf("%s: got %+v, want it held like by %s: %+v", r.self, got, asked.self, want)
				}
				if _, held, err := r.Claim(t.Context(), s, "e4", "", ""); held || err != nil {
					t.Errorf("%s: claimed what is held: %v, %v", r.self, held, err)
				}
			}
		}
	})
}

// Retention takes all that is known of a shipment, a while before those forget it
// who have read it. They must agree on the next attempt with who begins to read
// after that.
func TestFoldAgreesOnWhatHasExpired(t *testing.T) {
	const horizon = 7 * 24 * time.Hour
	at := foldStart.Truncate(24 * time.Hour).Add(time.Hour)
	for name, log := range map[string][]string{
		"failed":            {"intent A e1 r1", "failed A"},
		"failed twice":      {"intent A e1 r1", "failed A", "intent B e2 r2", "failed B"},
		"held":              {"intent A e1 r1"},
		"released in doubt": {"intent A e1 r1", "takeover B<A e1", "release B"},
		"shipped":           {"intent A e1 r1", "shipped A r1"},
	} {
		t.Run(name, func(t *testing.T) {
			old, later := newFold(foldLease), newFold(foldLease)
			old.horizon, later.horizon = horizon, horizon
			read := func(f *fold, notation string, at time.Time) bool {
				e := parseRecord(t, notation)
				e.time, e.read = at, at
				return f.apply(e)
			}
			for _, record := range log {
				read(old, record, at)
			}
			// Nobody has forgotten it yet, so it is a late copy, or from a clock
			// that is ahead.
			ahead := parseRecord(t, "intent C e3 r1")
			ahead.time, ahead.read = at.Add(horizon+time.Hour), at.Add(time.Minute)
			if read(old, "intent C e3 r1", at.Add(horizon-24*time.Hour)) || old.apply(ahead) {
				t.Fatal("an attempt that nothing has expired for was taken")
			}

			now := at.Add(horizon + time.Hour)
			old.expire(dayOf(now.Add(-horizon)))
			if !old.knows(foldKey) {
				t.Fatal("it has forgotten the shipment")
			}
			if read(old, "intent C e3 r9", now) {
				t.Fatal("an attempt of a later round was taken for the first of a new story")
			}
			for _, f := range []*fold{old, later} {
				if !read(f, "intent C e3 r1", now) {
					t.Error("the attempt was not taken")
				}
			}
			event := schema.HashEvent("e3")
			got, _, _ := old.standing(foldKey, event, now)
			want, _, _ := later.standing(foldKey, event, now)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("it stands differently for who has read more (-want +got):\n%s", diff)
			}
		})
	}
}

// Whoever still knows the shipment goes on with it, however old that is.
func TestFoldKeepsWhatIsOldAndKnown(t *testing.T) {
	f := newFold(foldLease)
	f.horizon = 7 * 24 * time.Hour
	at := foldStart.Truncate(24 * time.Hour).Add(time.Hour)
	for i, notation := range []string{"intent A e1 r1", "takeover B<A e1", "release B", "intent C e2 r1 doubt", "failed C maybe"} {
		e := parseRecord(t, notation)
		e.time, e.read = at, at
		if i > 2 {
			e.time = at.Add(f.horizon - 30*time.Minute)
			e.read = e.time
		}
		if !f.apply(e) {
			t.Fatalf("%q changed nothing", notation)
		}
	}
	st, _, _ := f.standing(foldKey, schema.HashEvent("e1"), at.Add(f.horizon))
	if st.State != schema.StateSettled || st.Round != 1 {
		t.Errorf("the event of the attempt in doubt: got %+v, want it answered by the round", st)
	}
}

// The fold knows the horizon, also of a log that is read from its beginning once
// more.
func TestFoldKnowsTheHorizon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, TopicConfig(testHorizon))
		p := start(t, b, "ledger", "a", onePartition).partitions[0]
		for range 2 {
			p.mu.Lock()
			got := p.fold.horizon
			p.mu.Unlock()
			if got != testHorizon {
				t.Errorf("got %s, want %s", got, testHorizon)
			}
			p.reset(0)
		}
	})
}

// With a horizon of few days what is young is never taken for expired.
func TestFoldWithAShortHorizon(t *testing.T) {
	for _, horizon := range []time.Duration{0, time.Hour, 47 * time.Hour, 48 * time.Hour} {
		f := newFold(foldLease)
		f.horizon = horizon
		at := foldStart.Truncate(24 * time.Hour).Add(23*time.Hour + 59*time.Minute)
		for _, notation := range []string{"intent A e1 r1", "failed A"} {
			e := parseRecord(t, notation)
			e.time, e.read = at, at
			f.apply(e)
		}
		e := parseRecord(t, "intent B e1 r1")
		e.time = at.Add(time.Minute)
		if horizon > 0 {
			e.time = at.Add(min(horizon, 24*time.Hour-time.Minute))
		}
		e.read = e.time
		if f.apply(e) {
			t.Errorf("%s: an attempt in the round that has failed %s ago was taken", horizon, e.time.Sub(at))
		}
	}
}
