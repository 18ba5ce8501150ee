package consumer

import (
	"encoding/json"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The names are part of the product: /api/status shows them.
func TestStatusAsJSON(t *testing.T) {
	st := Status{
		Role: RoleActive, Reason: "why", GateOpen: true, Generation: 3,
		Partitions: []PartitionStatus{{Partition: 1, Committed: 2, End: 5, Lag: 3, OldestUnfinishedSeconds: 1.5, Unsettled: 4, Shelved: 2, Waiting: 2}},
		Members:    []Member{{Name: "a", Host: "10.0.0.1", Partitions: 3, Self: true}},
	}
	got, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"role":"active","reason":"why","gate_open":true,"generation":3,"partitions":[` +
		`{"partition":1,"committed":2,"end":5,"lag":3,"oldest_unfinished_seconds":1.5,"unsettled":4,"shelved":2,"waiting":2}],"members":[{"name":"a","host":"10.0.0.1","partitions":3,"self":true}]}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	if got, err := json.Marshal(Status{Role: RoleJoining, Partitions: []PartitionStatus{}, Members: []Member{}}); err != nil || string(got) != `{"role":"joining","gate_open":false,"generation":0,"partitions":[],"members":[]}` {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestPartitionStatus(t *testing.T) {
	for name, test := range map[string]struct {
		b         bounds
		committed int64
		lag       int64
	}{
		"some way behind":                     {bounds{0, 10}, 4, 6},
		"all read":                            {bounds{0, 10}, 10, 0},
		"nothing committed":                   {bounds{3, 10}, -1, 7},
		"committed what has left the log":     {bounds{6, 10}, 2, 4},
		"committed more than is there":        {bounds{0, 10}, 12, 0},
		"empty log":                           {bounds{0, 0}, -1, 0},
		"empty log that was not always empty": {bounds{8, 8}, -1, 0},
	} {
		if got := partitionStatus(0, test.b, test.committed); got.Lag != test.lag || got.End != test.b.last || got.Committed != test.committed {
			t.Errorf("%s: %+v, want lag %d", name, got, test.lag)
		}
	}
}

// A standby shows the holder's progress, so that the lag is known whichever
// replica is asked.
func TestStandbyKnowsTheLag(t *testing.T) {
	inWorld(t, 3, func(w *world) {
		t := w.t
		release := make(chan struct{})
		h := &fakeHandler{work: until(release)}
		a := w.start("a", h)
		a.awaitRole(RoleActive)
		b := w.start("b", new(fakeHandler))
		b.awaitRole(RoleStandby)
		w.produce(1, events("s", 1, 25)...)
		want := []PartitionStatus{
			{Partition: 0},
			{Partition: 1, End: 25, Lag: 25, Waiting: 25},
			{Partition: 2},
		}
		await(t, "the standby to see the lag", func() bool { return slices.Equal(b.c.Status().Partitions, want) })
		if n := b.series("packship_consumer_lag_records"); n != 0 {
			t.Errorf("the standby has %d series of the lag: the sum over the replicas would be wrong", n)
		}
		close(release)
		want[1] = PartitionStatus{Partition: 1, Committed: 25, End: 25}
		await(t, "the standby to see the progress", func() bool { return slices.Equal(b.c.Status().Partitions, want) })
		st := a.c.Status().Partitions
		if diff := cmp.Diff(want, st); diff != "" {
			t.Errorf("the holder's view differs: %s", diff)
		}
		if got := a.metric("packship_gate_open"); got != 1 {
			t.Errorf("packship_gate_open is %v for the holder", got)
		}
		if got := b.metric("packship_gate_open"); got != 0 {
			t.Errorf("packship_gate_open is %v for the standby", got)
		}
		if got := a.metric("packship_last_commit_timestamp_seconds", "partition=1"); got == 0 {
			t.Error("no time of the last commit")
		}
		if a.metric("packship_rebalances_total") < 2 || a.metric("packship_generation") < 2 {
			t.Error("the second generation was not counted")
		}
	})
}

// Readiness does not flap with a rejoin, and says why it is lost.
func TestReadyThroughARejoin(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		r := w.start("a", new(fakeHandler))
		if ok, why := r.c.Ready(); ok || why == "" {
			t.Errorf("before it joined: ready is %v, %q", ok, why)
		}
		r.awaitRole(RoleActive)
		r.net.cut(true)
		await(t, "the gate to close", func() bool { return !r.c.gate.IsOpen() })
		if ok, _ := r.c.Ready(); !ok {
			t.Error("not ready right after the generation ended")
		}
		if st := r.c.Status(); st.Role != RoleActive || st.GateOpen || st.Reason == "" {
			t.Errorf("status right after the generation ended: %+v", st)
		}
		time.Sleep(rejoinGrace + time.Second)
		if ok, why := r.c.Ready(); ok || why == "" {
			t.Errorf("long after the generation ended: ready is %v, %q", ok, why)
		}
		r.net.heal()
		r.awaitRole(RoleActive)
		if ok, why := r.c.Ready(); !ok {
			t.Errorf("not ready after the rejoin: %s", why)
		}
		r.stopRun()
		synctest.Wait()
		if ok, why := r.c.Ready(); ok || why != "stopping" {
			t.Errorf("after the stop: ready is %v, %q", ok, why)
		}
	})
}

func TestAliveNoticesALoopThatStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := new(Consumer)
		if ok, why := c.Alive(); !ok {
			t.Errorf("not alive without a step: %s", why)
		}
		end := c.pulse.begin()
		other := c.pulse.begin()
		time.Sleep(aliveWithin)
		if ok, why := c.Alive(); !ok {
			t.Errorf("not alive in time: %s", why)
		}
		time.Sleep(time.Second)
		if ok, why := c.Alive(); ok || why == "" {
			t.Errorf("alive is %v, %q with a step that does not end", ok, why)
		}
		end()
		other()
		if ok, why := c.Alive(); !ok {
			t.Errorf("not alive after the step has ended: %s", why)
		}
	})
}
