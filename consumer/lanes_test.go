package consumer

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"packship/schema"
)

// laneItem returns a record of an order.
func laneItem(tn *tenure, partition int, offset int64, tid string) *item {
	it := &item{tenure: tn, rec: &schema.Record{Partition: partition, Offset: offset}}
	if tid != "" {
		it.packed = &schema.Packed{ShopID: "s", TID: tid, Shipment: schema.Shipment{ShopID: "s", TID: tid}}
	}
	return it
}

func TestLanesServeAnOrderInItsOrderAndOrdersInParallel(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	const perOrder, nOrders = 40, 25
	synctest.Test(t, func(t *testing.T) {
		var (
			mu      sync.Mutex
			seen    = make(map[string][]int64)
			busy    = make(map[string]bool)
			atOnce  int
			mostAll int
		)
		ls := newLanes(func(it *item) {
			tid := it.packed.TID
			mu.Lock()
			if busy[tid] {
				t.Errorf("two records of order %s at once", tid)
			}
			busy[tid] = true
			atOnce++
			mostAll = max(mostAll, atOnce)
			pause := time.Duration(rng.IntN(20)) * time.Millisecond
			mu.Unlock()
			time.Sleep(pause)
			mu.Lock()
			defer mu.Unlock()
			busy[tid] = false
			atOnce--
			seen[tid] = append(seen[tid], it.rec.Offset)
		}, func() {})
		for i := range perOrder * nOrders {
			ls.push(laneItem(nil, 0, int64(i), strconv.Itoa(i%nOrders)))
			if i%100 == 0 {
				time.Sleep(5 * time.Millisecond) // some lanes empty and are given up
			}
		}
		if !ls.wait(t.Context()) {
			t.Fatal("lanes not idle")
		}
		for tid, offsets := range seen {
			for i, offset := range offsets {
				first, err := strconv.Atoi(tid)
				if err != nil {
					t.Fatal(err)
				}
				if want := int64(first + i*nOrders); offset != want {
					t.Fatalf("order %s: record %d is %d, want %d", tid, i, offset, want)
				}
			}
			if len(offsets) != perOrder {
				t.Errorf("order %s: %d records served, want %d", tid, len(offsets), perOrder)
			}
		}
		if mostAll < nOrders/2 {
			t.Errorf("at most %d orders were served at once", mostAll)
		}
		if n := ls.active(); n != 0 {
			t.Errorf("%d lanes are left", n)
		}
	})
}

func TestLanesUndecodableRecordsHaveTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running atomic.Int32
		release := make(chan struct{})
		ls := newLanes(func(*item) {
			running.Add(1)
			<-release
		}, func() {})
		for i := range 5 {
			ls.push(laneItem(nil, 0, int64(i), ""))
		}
		synctest.Wait()
		if n := running.Load(); n != 5 {
			t.Errorf("%d records served at once, want 5", n)
		}
		close(release)
		ls.wait(t.Context())
	})
}

func TestLanesCountOrdersInTwoPartitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		crossed := 0
		release := make(chan struct{})
		var served atomic.Int32
		ls := newLanes(func(*item) {
			<-release
			served.Add(1)
		}, func() { crossed++ })
		for i, p := range []int{0, 0, 1, 1, 0} {
			ls.push(laneItem(nil, p, int64(i), "7"))
		}
		ls.push(laneItem(nil, 1, 9, "8"))
		if crossed != 2 {
			t.Errorf("counted %d, want 2", crossed)
		}
		close(release)
		ls.wait(t.Context())
		if n := served.Load(); n != 6 {
			t.Errorf("served %d records, want 6", n)
		}
	})
}

func TestLanesTakeWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var mu sync.Mutex
		var served []int64
		ls := newLanes(func(it *item) {
			<-release
			mu.Lock()
			defer mu.Unlock()
			served = append(served, it.rec.Offset)
		}, func() {})
		mine, other := new(tenure), new(tenure)
		order := laneItem(mine, 0, 1, "7").packed.Shipment.Order()
		if got := ls.takeWaiting(order, mine); got != nil {
			t.Errorf("took %d records out of no lane", len(got))
		}
		ls.push(laneItem(mine, 0, 1, "7"))
		ls.push(laneItem(mine, 0, 2, "7"))
		ls.push(laneItem(other, 0, 3, "7"))
		ls.push(laneItem(mine, 0, 4, "7"))
		ls.push(laneItem(mine, 0, 5, "8"))
		var took []int64
		for _, it := range ls.takeWaiting(order, mine) {
			took = append(took, it.rec.Offset)
		}
		if len(took) != 2 || took[0] != 2 || took[1] != 4 {
			t.Errorf("took %v, want [2 4]", took)
		}
		close(release)
		ls.wait(t.Context())
		if len(served) != 3 {
			t.Errorf("served %v, want 1, 3 and 5", served)
		}
	})
}

func TestLanesWaitIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		ls := newLanes(func(*item) { <-release }, func() {})
		ls.push(laneItem(nil, 0, 1, "7"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if ls.wait(ctx) {
			t.Error("lanes were idle although a record was being served")
		}
		close(release)
		if !ls.wait(t.Context()) {
			t.Error("lanes were not idle")
		}
	})
}
