package consumer

import (
	"context"
	"errors"

	"github.com/segmentio/kafka-go"

	"packship/schema"
)

// shelf is where the orders of blocked shops wait without standing in the way of
// others: nothing is kept of such a record but its slot in the watermark, which
// says the shop. When the shop reopens, its records are fetched again.
//
// The naive way is to keep the blocked records in their lanes. Then a shop with
// more records than the window holds stops its whole partition, for as long as
// it is blocked. And to keep an order's records on a list of offsets of its own
// costs more for the list than for the offsets.
//
// Three invariants keep the records of an order in their order:
//
//	H1  If a shop has a record on the shelf, its later records go to the shelf
//	    as well. So a record in a lane has no earlier record of its shop on the
//	    shelf, or entered its lane before that one went to the shelf.
//	H2  When a record in a lane goes to the shelf, so do all the later records
//	    of its order, which wait in the same lane, under the same lock.
//	H3  A shop's records come back in the order of their offsets, each into the
//	    end of its lane.
//
// A shelf belongs to one tenure and is guarded by its mutex.
type shelf struct {
	size   int                          // records on the shelf
	open   int                          // shops whose records may come back
	shops  map[string]*shop             // those with records on the shelf
	byID   map[place]*shop              // the same
	lastID place                        // ids begin with 1 and are not used twice
	waits  map[<-chan struct{}]struct{} // the channels that are waited for
}

// shop is a shop with records on the shelf.
type shop struct {
	id    place
	name  string
	count int
	first int64 // none of its shelved records has a lower offset
	// reopened is closed when the shop may be tried again; nil while its
	// records come back.
	reopened <-chan struct{}
}

func newShelf() *shelf {
	return &shelf{
		shops: make(map[string]*shop), byID: make(map[place]*shop),
		waits: make(map[<-chan struct{}]struct{}),
	}
}

// holds reports whether records of the item's shop are on the shelf.
func (s *shelf) holds(it *item) bool {
	return it.packed != nil && s.shops[it.packed.ShopID] != nil
}

// shopOf returns the shop of an event, which is new to the shelf if it has no
// records there.
func (s *shelf) shopOf(p *schema.Packed, offset int64) *shop {
	sh := s.shops[p.ShopID]
	if sh == nil {
		s.lastID++
		sh = &shop{id: s.lastID, name: p.ShopID, first: offset}
		s.shops[sh.name], s.byID[sh.id] = sh, sh
		s.open++
	}
	return sh
}

// remove takes one record of a shop off the shelf.
func (s *shelf) remove(sh *shop) {
	s.size--
	if sh.count--; sh.count == 0 {
		delete(s.shops, sh.name)
		delete(s.byID, sh.id)
		if sh.reopened == nil {
			s.open--
		}
	}
}

// block notes that a shop's records may not come back before the channel is
// closed, and reports whether the channel is new.
func (s *shelf) block(sh *shop, reopened <-chan struct{}) bool {
	sh.reopened = reopened
	s.open--
	_, waited := s.waits[reopened]
	s.waits[reopened] = struct{}{}
	return !waited
}

// reopen notes that the channel is closed.
func (s *shelf) reopen(reopened <-chan struct{}) {
	delete(s.waits, reopened)
	for _, sh := range s.shops {
		if sh.reopened == reopened {
			sh.reopened = nil
			s.open++
		}
	}
}

// put puts a record that has a slot but is in no lane on the shelf. The caller
// holds mu.
func (t *tenure) put(it *item, reopened <-chan struct{}) {
	offset := it.rec.Offset
	sh := t.shelf.shopOf(it.packed, offset)
	t.marks.find(offset).place = sh.id
	sh.count++
	sh.first = min(sh.first, offset)
	t.shelf.size++
	switch {
	case sh.reopened != nil:
		return // it waits already
	case reopened == nil:
		t.roomToRecall.raise() // it comes back with those before it
		return
	}
	if t.shelf.block(sh, reopened) {
		t.c.loops.Go(func() { t.awaitReopening(reopened) })
	}
}

// putBack moves a record from its lane to the shelf, and all later records of
// its order with it. The caller holds mu.
func (t *tenure) putBack(it *item, reopened <-chan struct{}) {
	for _, it := range append([]*item{it}, t.c.lanes.takeWaiting(it.packed.Shipment.Order(), t)...) {
		t.unload(it)
		t.put(it, reopened)
	}
}

// awaitReopening waits for the channel and then lets the records of all shops
// that wait for it come back.
func (t *tenure) awaitReopening(reopened <-chan struct{}) {
	select {
	case <-reopened:
	case <-t.ctx.Done():
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shelf.reopen(reopened)
	t.roomToRecall.raise()
}

// interruptBlocked ends the contexts of those handlers that wait with an order
// which is blocked by now. What is under way is finished all the same; the
// others go to the shelf.
func (t *tenure) interruptBlocked() {
	t.mu.Lock()
	items := make([]*item, 0, len(t.started))
	for it := range t.started {
		items = append(items, it)
	}
	t.mu.Unlock()
	for _, it := range items {
		if _, blocked := t.c.blocked(it); !blocked {
			continue
		}
		t.mu.Lock()
		if it.interrupt != nil {
			it.interrupt(errShelved)
		}
		t.mu.Unlock()
	}
}

// recallShare is the part of the window for records that come back from the
// shelf.
func (t *tenure) recallShare() int { return max(t.c.cfg.Window/4, 1) }

// hasRoomForRecalled reports whether a record of the given size may come back
// now. The caller holds mu. As with new records, one that is larger than the
// window is let in alone.
func (t *tenure) hasRoomForRecalled(size int) bool {
	return t.recalled < t.recallShare() && t.loaded < t.c.cfg.Window &&
		(t.bytes+size <= t.c.cfg.WindowBytes || t.recalled == 0)
}

// recall brings the records of reopened shops back until the tenure ends.
func (t *tenure) recall() {
	tr := trouble{log: t.log, what: "fetch from the shelf", named: t.c.cfg.named}
	for {
		if wanted := t.wanted(); len(wanted) == 0 {
			select {
			case <-t.roomToRecall:
			case <-t.ctx.Done():
				return
			}
		} else if t.c.gate.Wait(t.ctx) != nil {
			return
		} else if err := t.recallAll(wanted); t.ctx.Err() != nil {
			return
		} else if err != nil {
			tr.note(err)
			if !tr.pause(t.ctx) {
				return
			}
		} else {
			tr.over()
		}
	}
}

// recallBatch is the number of records that are wanted from the log at a time.
// They come back one by one as there is room, while the answer that they are in
// is kept: to fetch only as many as there is room for would transfer every
// record many times.
const recallBatch = 4096

// wanted returns the offsets of records that may come back, the lowest first.
func (t *tenure) wanted() []int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shelf.open == 0 || !t.hasRoomForRecalled(0) {
		return nil
	}
	from := t.marks.next
	for _, sh := range t.shelf.shops {
		if sh.reopened == nil {
			from = min(from, sh.first)
		}
	}
	var wanted []int64
	for _, s := range t.marks.from(from) {
		if sh := t.shelf.byID[s.place]; sh != nil && sh.reopened == nil {
			if wanted = append(wanted, s.offset); len(wanted) == recallBatch {
				break
			}
		}
	}
	return wanted
}

// errEnough ends a read when all wanted records have been seen.
var errEnough = errors.New("consumer: enough records")

// recallAll fetches records of the shelf again, those that lie together in one
// fetch, and puts them into their lanes. A record that is no longer in the log
// is reported as lost.
func (t *tenure) recallAll(wanted []int64) error {
	for len(wanted) > 0 {
		at := wanted[0]
		next, err := t.read(at, func(rec *schema.Record) error {
			wanted = t.giveUp(wanted, rec.Offset)
			if len(wanted) > 0 && wanted[0] == rec.Offset {
				if err := t.comeBack(rec); err != nil {
					return err
				}
				wanted = wanted[1:]
			}
			if len(wanted) == 0 {
				return errEnough
			}
			return nil
		})
		switch {
		case errors.Is(err, errEnough):
			return nil
		case errors.Is(err, kafka.OffsetOutOfRange):
			b, err := t.c.boundsOf(t.ctx, t.partition)
			if err != nil {
				return err
			}
			if b.first <= at {
				return kafka.OffsetOutOfRange
			}
			wanted = t.giveUp(wanted, b.first)
		case err != nil:
			return err
		default:
			wanted = t.giveUp(wanted, next)
		}
	}
	return nil
}

// giveUp reports those of the wanted records as lost that lie below an offset
// up to which the log has been read, and returns the rest.
func (t *tenure) giveUp(wanted []int64, below int64) []int64 {
	for len(wanted) > 0 && wanted[0] < below {
		offset := wanted[0]
		wanted = wanted[1:]
		t.mu.Lock()
		s := t.marks.find(offset)
		if s == nil || !s.place.shelved() {
			t.mu.Unlock()
			continue // it has come back another way
		}
		t.shelf.remove(t.shelf.byID[s.place])
		s.place = inMemory
		t.marks.finish(offset)
		t.mu.Unlock()
		t.reportHole(offset, offset+1, "a record of a blocked shop has left the log before the shop reopened")
	}
	return wanted
}

// comeBack moves a record from the shelf to its lane as soon as there is room.
// It stays where it is if its shop has been blocked again, or if an earlier
// record of the shop went back to the shelf meanwhile.
func (t *tenure) comeBack(rec *schema.Record) error {
	it := t.newItem(rec)
	it.recalled = true
	for {
		t.mu.Lock()
		done := t.readmit(it)
		t.mu.Unlock()
		if done {
			return nil
		}
		if !t.awaitChange(t.roomToRecall) {
			return context.Cause(t.ctx)
		}
	}
}

// readmit is comeBack without the wait. The caller holds mu.
func (t *tenure) readmit(it *item) bool {
	offset := it.rec.Offset
	s := t.marks.find(offset)
	if s == nil || !s.place.shelved() {
		return true
	}
	sh := t.shelf.byID[s.place]
	if sh.reopened != nil {
		return true
	}
	for _, earlier := range t.marks.from(sh.first) {
		if earlier.offset >= offset {
			break
		}
		if earlier.place == sh.id {
			return true
		}
	}
	if !t.hasRoomForRecalled(it.size) {
		return false
	}
	s.place = inMemory
	sh.first = offset + 1
	t.shelf.remove(sh)
	t.load(it)
	return true
}
