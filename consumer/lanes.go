package consumer

import (
	"context"
	"sync"

	"packship/schema"
)

// item is a record in memory, on its way to its outcome.
type item struct {
	tenure    *tenure // whose record it is
	rec       *schema.Record
	packed    *schema.Packed // nil if the record could not be decoded
	decodeErr error
	size      int  // bytes, as they count against the window
	recalled  bool // it has been on the shelf

	// interrupt ends the handler's context. It is nil until the handler
	// starts; guarded by tenure.mu.
	interrupt context.CancelCauseFunc
}

// lanes keeps the records of one order in line while different orders run in
// parallel: a lane is the queue of one order, and a goroutine serves it for as
// long as it has records.
//
// The lanes belong to the consumer and not to a partition. So a handler that
// still runs for a partition that was lost and came back holds up the same
// order's record of the new reading, and an order that stands in two partitions
// is still handled one record at a time.
type lanes struct {
	serve func(*item) // sees one record through; called in turn for the records of one order
	cross func()      // called when an order meets records of another partition

	mu      sync.Mutex
	byOrder map[schema.OrderKey]*lane // guarded by mu; only lanes in use
	running sync.WaitGroup
}

// lane is the queue of one order. It is guarded by lanes.mu.
type lane struct {
	queue     []*item // waiting, without the one that is being handled
	partition int     // of the last record that was pushed
}

func newLanes(serve func(*item), cross func()) *lanes {
	return &lanes{serve: serve, cross: cross, byOrder: make(map[schema.OrderKey]*lane)}
}

// push puts a record at the end of its order's lane. It never blocks. A record
// that could not be decoded has no order, and so a lane of its own.
func (ls *lanes) push(it *item) {
	if it.packed == nil {
		ls.running.Go(func() { ls.serve(it) })
		return
	}
	key := it.packed.Shipment.Order()
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.byOrder[key]; l != nil {
		if l.partition != it.rec.Partition {
			l.partition = it.rec.Partition
			ls.cross()
		}
		l.queue = append(l.queue, it)
		return
	}
	l := &lane{partition: it.rec.Partition}
	ls.byOrder[key] = l
	ls.running.Go(func() { ls.run(key, l, it) })
}

// run serves a lane until it is empty.
func (ls *lanes) run(key schema.OrderKey, l *lane, it *item) {
	for it != nil {
		ls.serve(it)
		it = ls.next(key, l)
	}
}

// next takes the first waiting record out of a lane. An empty lane is given up
// under the same lock, so that a later record finds either a lane that is
// served or none.
func (ls *lanes) next(key schema.OrderKey, l *lane) *item {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if len(l.queue) == 0 {
		delete(ls.byOrder, key)
		return nil
	}
	it := l.queue[0]
	l.queue[0] = nil
	l.queue = l.queue[1:]
	return it
}

// takeWaiting removes the records of a tenure that wait in an order's lane
// and returns them in their order.
func (ls *lanes) takeWaiting(key schema.OrderKey, t *tenure) []*item {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.byOrder[key]
	if l == nil {
		return nil
	}
	var taken, kept []*item
	for _, it := range l.queue {
		if it.tenure == t {
			taken = append(taken, it)
		} else {
			kept = append(kept, it)
		}
	}
	l.queue = kept
	return taken
}

// active returns the number of lanes in use by orders.
func (ls *lanes) active() int {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return len(ls.byOrder)
}

// wait blocks until no lane is in use or the context ends, and reports which.
// Nothing may be pushed meanwhile.
func (ls *lanes) wait(ctx context.Context) bool {
	idle := make(chan struct{})
	go func() {
		ls.running.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return true
	case <-ctx.Done():
		return false
	}
}
