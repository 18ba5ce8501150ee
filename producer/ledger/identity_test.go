package ledger

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"packship/producer/internal/brokertest"
	"packship/schema"
)

// resumed starts a replica that goes on with what was done with a ledger, and
// waits until the log says what there is to say of it.
func resumed(t *testing.T, b *brokertest.Broker, instance, bookmark string) *replica {
	t.Helper()
	r := start(t, b, "ledger", instance, onePartition)
	r.Resume(bookmark)
	time.Sleep(2 * fetchWait)
	return r
}

// TestIdentity follows the identity of a ledger through restarts and through the
// loss of the whole topic while nobody looks.
func TestIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, nil)
		first := start(t, b, "ledger", "a", onePartition)
		was, mark := first.Identity(), first.Bookmark()
		if was == "" {
			t.Fatal("a ledger has no identity")
		}
		settle(t, first, shipment(1), "e1", claim(t, first, shipment(1), "e1", ""), nil)
		_ = first.kill()

		// The same ledger after a restart, and one without a past.
		for instance, bookmark := range map[string]string{"b": mark, "c": "", "d": "v1", "e": "{}", "f": `{"ledger":"` + was + `"}`} {
			r := resumed(t, b, instance, bookmark)
			if st := r.Look(shipment(2), "e1"); r.Identity() != was || !st.LostBefore.IsZero() || r.Status().Damaged != "" {
				t.Errorf("%s: got %+v, identity %q, damage %q", instance, st, r.Identity(), r.Status().Damaged)
			}
			_ = r.kill()
		}

		// The topic is created again while no process runs.
		b.Delete(t, "ledger")
		b.Create(t, "ledger", 1, nil)
		packed := time.Now()
		time.Sleep(time.Second)
		fresh := start(t, b, "ledger", "d", onePartition)
		fresh.Resume(mark)
		if got := fresh.Identity(); got != was {
			t.Errorf("before the log says what it replaces the identity is %q, not %q", got, was)
		}
		if st := fresh.Look(shipment(1), "e1"); st.State != schema.StateOpen || !packed.Before(st.LostBefore) {
			t.Errorf("a shipment of before: got %+v", st)
		}
		if got := fresh.Status().Damaged; !strings.Contains(got, "not the ledger that the group's offsets were committed with") {
			t.Errorf("got damage %q", got)
		}
		time.Sleep(2 * fetchWait)
		is, newMark := fresh.Identity(), fresh.Bookmark()
		if is == was || is == "" {
			t.Errorf("the identity stays %q", is)
		}
		before := fresh.Look(shipment(1), "e1").LostBefore
		_ = fresh.kill()

		// Partitions in which nothing was committed since still have the old
		// identity, which is no news then, and what is packed later is not lost.
		for instance, bookmark := range map[string]string{"g": mark, "h": newMark} {
			r := resumed(t, b, instance, bookmark)
			if st := r.Status(); st.LostBefore != before.UTC().Format(time.RFC3339) {
				t.Errorf("%s: the status says lost before %q, not %v", instance, st.LostBefore, before)
			}
			if st := r.Look(shipment(1), "e1"); !st.LostBefore.Equal(before) || r.Identity() != is || r.Status().Damaged != "" {
				t.Errorf("%s: got %+v, identity %q, damage %q", instance, st, r.Identity(), r.Status().Damaged)
			}
			_ = r.kill()
		}
	})
}

// TestIdentityWhileRunning has the topic created again under a process that goes
// on: whoever starts after it knows both ledgers.
func TestIdentityWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, nil)
		r := start(t, b, "ledger", "a", onePartition)
		was, mark := r.Identity(), r.Bookmark()
		settle(t, r, shipment(1), "e1", claim(t, r, shipment(1), "e1", ""), nil)
		b.Delete(t, "ledger")
		b.Create(t, "ledger", 1, nil)
		time.Sleep(2 * choreInterval)
		if err := r.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 3 { // it is asked for with every commit
			r.Identity()
			time.Sleep(2 * fetchWait)
		}
		is := r.Identity()
		if is == was {
			t.Fatal("the identity stays the same")
		}
		before := r.Look(shipment(1), "e1").LostBefore
		if before.IsZero() {
			t.Error("nothing is lost")
		}
		_ = r.kill()
		next := resumed(t, b, "b", mark)
		if st := next.Look(shipment(1), "e1"); !st.LostBefore.Equal(before) || next.Identity() != is || next.Status().Damaged != "" {
			t.Errorf("got %+v, identity %q, damage %q; want lost before %v, %q, none", st, next.Identity(), next.Status().Damaged, before, is)
		}
	})
}

// TestCutOffWhileNothingRuns has the end of the log lost between two runs, as by
// an unclean election: the ledger is the same one, and shorter than it was when
// offsets were committed last.
func TestCutOffWhileNothingRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, nil)
		r := start(t, b, "ledger", "a", onePartition)
		settle(t, r, shipment(1), "e1", claim(t, r, shipment(1), "e1", ""), nil)
		mark := r.Bookmark()
		_ = r.kill()

		for name, tt := range map[string]struct {
			bookmark string
			damaged  bool
		}{
			"as long as it was":  {mark, false},
			"shorter":            {strings.Replace(mark, "[3]", "[5]", 1), true},
			"negative":           {strings.Replace(mark, "[3]", "[-1]", 1), false},
			"of more partitions": {strings.Replace(mark, "[3]", "[3,9]", 1), false},
		} {
			next := start(t, b, "ledger", name, onePartition)
			next.Resume(tt.bookmark)
			begin := time.Now()
			if err := next.CatchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			st := next.Look(shipment(2), "e1")
			if got := strings.Contains(next.Status().Damaged, "cut off"); got != tt.damaged || st.LostBefore.Before(begin) == tt.damaged {
				t.Errorf("%s: got damage %q, %+v", name, next.Status().Damaged, st)
			}
			if next.Look(shipment(1), "e1").State != schema.StateSettled {
				t.Errorf("%s: what is left is not known", name)
			}
			_ = next.kill()
		}
	})
}

// TestIdentityOfTwo sees that replicas that begin a ledger together agree on it.
func TestIdentityOfTwo(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
			x, y := launch(t, b, topic, "x"), launch(t, b, topic, "y")
			for _, r := range []*replica{x, y} {
				if err := r.WaitReady(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := r.CatchUp(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if x.Identity() != y.Identity() || x.Identity() == "" {
				t.Errorf("got %q and %q", x.Identity(), y.Identity())
			}
		})
	}
}

// TestIdentityWaitsForAllMarks sees that no new identity is given out while a
// loss in any partition is known to this process alone.
func TestIdentityWaitsForAllMarks(t *testing.T) {
	b := brokertest.Fake(t)
	l, err := New(Config{
		Client: b.Client(t, "ledger"), Topic: "ledger", Partitions: 2, Horizon: testHorizon, StartBy: 1, CallTimeout: 1,
		Instance: "a", Logger: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Identity(); got != "" {
		t.Errorf("before anything is read it is %q", got)
	}
	close(l.ready)
	for _, p := range l.partitions {
		p.live, p.metas.epoch = true, "old"
	}
	was := l.Identity()
	l.partitions[0].metas.epoch, l.partitions[1].metas.epoch = "new", "new"
	l.partitions[1].lostBefore = foldStart
	if got := l.Identity(); got != was || len(l.partitions[0].replaces) != 0 {
		t.Errorf("with a loss that is not marked it is %q, replacing %q", got, l.partitions[0].replaces)
	}
	l.partitions[1].metas.lostBefore = foldStart
	for range 2 {
		if got := l.Identity(); got != was {
			t.Errorf("before the log says what is replaced it is %q", got)
		}
	}
	l.partitions[0].marked(&meta{Replaces: []string{was}})
	if got := l.Identity(); got == was {
		t.Errorf("it stays %q", got)
	}
}
