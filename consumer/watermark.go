package consumer

import (
	"slices"
	"sort"
	"time"
)

// watermark tells up to where a partition is settled. Records are added in the
// order of the log and finished in any order; the mark is the offset that may
// be committed: everything below it is settled.
//
// The naive way is to keep the highest offset h such that h-1, h-2, … have all
// finished, and to move it when h finishes.
//
// That is not enough. Offsets have gaps: compaction removes records, and a
// transaction's marker takes an offset of its own, so h+1 may never come and the
// mark would stand for ever. And the highest finished offset alone says nothing
// about a slower record below it.
//
// Two invariants hold instead:
//
//	W1  Slots stand in the order of their offsets, and the first slot, if there
//	    is one, is not finished.
//	W2  Every record below next has a slot, or is finished.
//
// So the mark is the offset of the first slot, or next if there is none, and it
// never moves back, because the first slot is only ever replaced by a later one:
//
//	add(o):     append slot(o); next = o+1
//	finish(o):  slot(o).finished = true
//	            while the first slot is finished: remove it
//	skip(o):    next = max(next, o)             nothing lies between
//	mark():     first slot's offset, or next
//
// This is the commit queue of the Pebble storage engine, with one addition. A
// record may stay unfinished for days while thousands behind it finish, if its
// shop is parked. Their slots would pile up, so that once half of the slots are
// finished they are squeezed out: memory follows the unfinished records, at a
// constant cost per record. A heap of the unfinished offsets would need no
// squeezing, but every operation would cost a logarithm, and the shelf could
// not walk the slots of a shop in order.
//
// A watermark is not safe for concurrent use.
type watermark struct {
	slots []slot
	head  int   // slots before it have been removed
	gaps  int   // finished slots behind head
	next  int64 // the offset behind the last record that was added or skipped
}

// slot is the place of one record between its arrival and the moment when
// everything before it is finished too. It is all that is kept of a record on
// the shelf, so it is kept small: 16 bytes.
type slot struct {
	offset int64
	at     int32 // seconds since the epoch, the record's own time
	place  place
}

// place says where the record of a slot is: in memory, finished, or on the shelf
// under the shop with this id.
type place uint32

const (
	inMemory place = 0
	finished place = 1<<32 - 1
)

// shelved reports whether the record is on the shelf.
func (p place) shelved() bool { return p != inMemory && p != finished }

// squeezeAbove is the number of finished slots from which squeezing them out is
// worth the copy.
const squeezeAbove = 64

func newWatermark(start int64) *watermark { return &watermark{next: start} }

// mark returns the offset below which everything is settled.
func (w *watermark) mark() int64 {
	if w.head < len(w.slots) {
		return w.slots[w.head].offset
	}
	return w.next
}

// add takes a record in. Offsets must rise.
func (w *watermark) add(offset int64, at time.Time) {
	w.slots = append(w.slots, slot{offset: offset, at: epochSeconds(at)})
	w.next = offset + 1
}

// skip says that there are no records below the offset but those already
// added.
func (w *watermark) skip(offset int64) { w.next = max(w.next, offset) }

// find returns the slot of a record, nil if it is finished and gone.
func (w *watermark) find(offset int64) *slot {
	live := w.slots[w.head:]
	i := sort.Search(len(live), func(i int) bool { return live[i].offset >= offset })
	if i == len(live) || live[i].offset != offset {
		return nil
	}
	return &live[i]
}

// finish says that a record is settled. Finishing it again does nothing.
func (w *watermark) finish(offset int64) {
	s := w.find(offset)
	if s == nil || s.place == finished {
		return
	}
	s.place = finished
	w.gaps++
	for w.head < len(w.slots) && w.slots[w.head].place == finished {
		w.head++
		w.gaps--
	}
	switch {
	case w.head == len(w.slots):
		w.slots, w.head = w.slots[:0], 0
		if cap(w.slots) > 4*squeezeAbove {
			w.slots = nil
		}
	case w.gaps+w.head > squeezeAbove && 2*(w.gaps+w.head) > len(w.slots):
		w.squeeze()
	}
}

// squeeze removes all finished slots.
func (w *watermark) squeeze() {
	live := slices.DeleteFunc(w.slots[w.head:], func(s slot) bool { return s.place == finished })
	w.slots = append(make([]slot, 0, len(live)+len(live)/4+1), live...)
	w.head, w.gaps = 0, 0
}

// unfinished returns the number of records that are not settled.
func (w *watermark) unfinished() int { return len(w.slots) - w.head - w.gaps }

// first returns the first unfinished record, nil if there is none.
func (w *watermark) first() *slot {
	if w.head == len(w.slots) {
		return nil
	}
	return &w.slots[w.head]
}

// from returns the slots at and after an offset, finished ones included.
func (w *watermark) from(offset int64) []slot {
	live := w.slots[w.head:]
	i := sort.Search(len(live), func(i int) bool { return live[i].offset >= offset })
	return live[i:]
}

// epochSeconds squeezes a time into 32 bits: until 2038 exactly, then as late
// as it can say. It is used for an age that people look at.
func epochSeconds(t time.Time) int32 {
	return int32(min(max(t.Unix(), 0), 1<<31-1))
}
