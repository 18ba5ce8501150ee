package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"packship/schema"
)

func all(*UnderWay) bool { return true }

// only returns the one order that is under way.
func (b *bench) only(t *testing.T) UnderWay {
	t.Helper()
	list := b.shipper.UnderWay(all)
	if len(list) != 1 {
		t.Fatalf("%d orders under way, want 1", len(list))
	}
	return list[0]
}

// TestUnderWay follows an order through a call that is not answered, and looks
// where it stands at each point where it can be looked at.
func TestUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(nil, silence, yes)
		b.closeGate()
		started := time.Now()
		var calling []UnderWay
		b.upstream.onSend = func() { calling = append(calling, b.only(t)) }
		done := make(chan error, 1)
		go func() { done <- b.handle(t, t.Context(), "e") }()

		synctest.Wait()
		want := UnderWay{Partition: 2, Offset: 41, TID: "2345678901234567891", ShopID: "7", Time: started, Step: StepGate, Since: started}
		if d := cmp.Diff(want, b.only(t)); d != "" {
			t.Errorf("behind the gate (-want +got):\n%s", d)
		}
		time.Sleep(time.Minute)
		b.openGate()
		synctest.Wait()
		opened := started.Add(time.Minute)
		want.Step, want.Since, want.Until = StepRest, opened, opened.Add(30*time.Second)
		if d := cmp.Diff(want, b.only(t)); d != "" {
			t.Errorf("after a call without an answer (-want +got):\n%s", d)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if list := b.shipper.UnderWay(all); len(list) != 0 {
			t.Errorf("settled, and still under way: %+v", list)
		}
		if len(calling) != 2 || calling[0].Step != StepCall || !calling[0].Until.IsZero() {
			t.Errorf("while it was called for: %+v", calling)
		}
	})
}

// TestUnderWayWithTrouble has the ledger refuse an outcome for a while: an order
// that is held up by what should not be says so, since when it has been, and
// forgets it afterwards.
func TestUnderWayWithTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(nil, later, yes)
		var logs strings.Builder
		b.shipper.cfg.Logger = slog.New(slog.NewTextHandler(&logs, nil))
		b.ledger.settleErr = errors.New("too large")
		b.upstream.violations = []schema.Violation{{Rule: "V01"}}
		b.ledger.standing = schema.Standing{State: schema.StateHeld, Holder: "another/1", Round: 1}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		begin := time.Now()
		go func() { done <- b.handle(t, ctx, "e") }()
		time.Sleep(3*time.Minute + time.Second) // it is tried every minute
		synctest.Wait()
		got := b.only(t)
		if got.Trouble != "too large" || !got.TroubledSince.Equal(begin) {
			t.Errorf("got %+v, want trouble since %s", got, begin)
		}
		if n := strings.Count(logs.String(), "order held up"); n != 1 {
			t.Errorf("%d lines for the same trouble, want 1:\n%s", n, logs.String())
		}
		cancel()
		if err := <-done; err == nil {
			t.Error("settled although the ledger refuses")
		}
	})
}

func TestFailuresByReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(nil, no)
		if err := b.handle(t, t.Context(), "e1"); err != nil {
			t.Fatal(err)
		}
		if err := b.handle(t, t.Context(), "e1"); err != nil { // a replay
			t.Fatal(err)
		}
		got := b.shipper.Failures()
		if d := cmp.Diff(map[string]int64{"waybill_already_used": 2}, got); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
		got["another"] = 1
		if len(b.shipper.Failures()) != 1 {
			t.Error("the caller can change the counts")
		}
	})
}

// TestOldest asks for the oldest record of a partition: while it is handled,
// while it is on the shelf, and after the one before it has come back.
func TestOldest(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		release := make(chan struct{})
		h := &blockingHandler{fakeHandler: fakeHandler{work: until(release)}}
		h.block("parked")
		w.produce(0, events("parked", 100, 2)...)
		w.produce(0, events("other", 1, 1)...)
		r := w.start("a", h)
		await(t, "the other order to be handled", func() bool { began, _ := h.count(); return began == 1 })
		status := func() PartitionStatus { return r.c.Status().Partitions[0] }
		ignore := cmpopts.IgnoreFields(Oldest{}, "Time")
		st := status()
		if d := cmp.Diff(&Oldest{Offset: 0, Shelved: true, ShopID: "parked", TID: "100"}, st.Oldest, ignore); d != "" {
			t.Errorf("on the shelf (-want +got):\n%s", d)
		}
		if st.Waiting != 1 || st.Lag != 3 || st.Shelved != 2 || time.Since(st.Oldest.Time) > time.Minute {
			t.Errorf("got %+v with oldest %+v", st, st.Oldest)
		}
		h.unblock("parked")
		await(t, "the parked orders to come back", func() bool { return status().Shelved == 0 })
		await(t, "their handlers", func() bool { began, _ := h.count(); return began == 3 })
		if d := cmp.Diff(&Oldest{Offset: 0, ShopID: "parked", TID: "100"}, status().Oldest, ignore); d != "" {
			t.Errorf("in memory (-want +got):\n%s", d)
		}
		close(release)
		w.awaitCommit(0, 3)
		if st := status(); st.Oldest != nil || st.Waiting != 0 {
			t.Errorf("nothing is left, and the status is %+v with oldest %+v", st, st.Oldest)
		}
	})
}

// TestMembers asks a standby who the others are, and which of them holds.
func TestMembers(t *testing.T) {
	inWorld(t, 3, func(w *world) {
		t := w.t
		a := w.start("a", new(fakeHandler))
		a.awaitRole(RoleActive)
		b := w.start("b", new(fakeHandler))
		b.awaitRole(RoleStandby)
		want := func(self string) []Member {
			return []Member{{Name: "a", Partitions: 3, Self: self == "a"}, {Name: "b", Self: self == "b"}}
		}
		for self, r := range map[string]*replica{"a": a, "b": b} {
			await(t, fmt.Sprintf("%s to know the members", self), func() bool {
				return cmp.Equal(want(self), r.c.Status().Members, cmpopts.IgnoreFields(Member{}, "Host"))
			})
		}
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
		b.awaitRole(RoleActive)
		await(t, "b to be alone", func() bool {
			return cmp.Equal([]Member{{Name: "b", Partitions: 3, Self: true}}, b.c.Status().Members, cmpopts.IgnoreFields(Member{}, "Host"))
		})
	})
}
