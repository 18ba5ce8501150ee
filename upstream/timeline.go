package upstream

import "time"

// timeline counts calls by the second in which they left, for the last ten minutes.
// The zero value is empty. It is not safe for concurrent use.
type timeline struct {
	counts [timelineSeconds]uint32
	newest int64 // second of the epoch that was counted last
}

const (
	// timelineSlots slots of timelineSlot seconds are shown.
	timelineSlots, timelineSlot = 120, 5
	// The second that is not over, and what is left of its slot, have to be
	// remembered beside them.
	timelineSeconds = (timelineSlots + 1) * timelineSlot
)

// add counts a call.
func (l *timeline) add(now time.Time) {
	l.counts[l.move(now)]++
}

// move forgets what is too old, and returns the place of the present second. A
// clock that was set back goes on counting where it was.
func (l *timeline) move(now time.Time) int64 {
	second := max(now.Unix(), l.newest)
	for s := max(l.newest+1, second-timelineSeconds+1); s <= second; s++ {
		l.counts[s%timelineSeconds] = 0
	}
	l.newest = second
	return second % timelineSeconds
}

// slots returns the counts of the last ten minutes by slots of five seconds,
// oldest first. The last one is the last that is over, so that what is shown of a
// slot does not change any more.
func (l *timeline) slots(now time.Time) []int {
	l.move(now)
	slots := make([]int, timelineSlots)
	end := l.newest / timelineSlot * timelineSlot
	first := end - timelineSlots*timelineSlot
	for s := max(first, 0); s < end; s++ {
		slots[(s-first)/timelineSlot] += int(l.counts[s%timelineSeconds])
	}
	return slots
}

// perSecond returns how many calls left in a second, on average over the last
// five that are over.
func (l *timeline) perSecond(now time.Time) float64 {
	l.move(now)
	n := 0
	for s := max(l.newest-timelineSlot, 0); s < l.newest; s++ {
		n += int(l.counts[s%timelineSeconds])
	}
	return float64(n) / timelineSlot
}
