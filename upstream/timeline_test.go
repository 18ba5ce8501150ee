package upstream

import (
	"testing"
	"time"
)

func TestTimeline(t *testing.T) {
	start := time.Unix(1_700_000_000, 0) // a slot begins here
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	var l timeline
	for _, s := range []int{0, 0, 4, 5, 9, 9, 9, 10} {
		l.add(at(s))
	}
	sum := func(slots []int) (n int) {
		for _, c := range slots {
			n += c
		}
		return n
	}
	slots := l.slots(at(11))
	if len(slots) != timelineSlots {
		t.Fatalf("%d slots, want %d", len(slots), timelineSlots)
	}
	if last := slots[timelineSlots-2:]; last[0] != 3 || last[1] != 4 || sum(slots) != 7 {
		t.Errorf("the last slots are %v of %d calls; want 3 and 4, without the slot that is not over", last, sum(slots))
	}
	if got := l.perSecond(at(11)); got != 4.0/5 {
		t.Errorf("%g calls a second from 6 to 10, want 4 in 5 s", got)
	}
	if slots = l.slots(at(15)); slots[timelineSlots-1] != 1 || slots[timelineSlots-3] != 3 {
		t.Errorf("five seconds later the slots end with %v", slots[timelineSlots-3:])
	}
	l.add(at(3)) // a clock that was set back
	if n := sum(l.slots(at(20))); n != 9 {
		t.Errorf("%d calls, want all 9", n)
	}
	if slots = l.slots(at(600)); slots[0] != 3 || sum(slots) != 9 {
		t.Errorf("after ten minutes the first slot is %d of %d, want 3 of 9", slots[0], sum(slots))
	}
	if slots = l.slots(at(605)); slots[0] != 4 || sum(slots) != 6 {
		t.Errorf("five seconds later it is %d of %d, want 4 of 6", slots[0], sum(slots))
	}
	if n := sum(l.slots(at(100_000))); n != 0 {
		t.Errorf("a day later there are %d calls left", n)
	}
	l.add(at(100_000))
	if n := sum(l.slots(at(100_010))); n != 1 {
		t.Errorf("%d calls after a day without any, want 1", n)
	}
}

func TestDaySpent(t *testing.T) {
	var d daySpent
	evening := time.Date(2026, 12, 31, 23, 59, 0, 0, time.Local)
	d.on(evening).Points++
	d.on(evening.UTC()).Points++
	if got := d.on(evening.Add(59 * time.Second)).Points; got != 2 {
		t.Errorf("%d points on the same day, want 2", got)
	}
	if got := d.on(evening.Add(time.Minute)).Points; got != 0 {
		t.Errorf("%d points after midnight, want 0", got)
	}
	if d.on(evening.AddDate(0, 0, 1)).Points++; d.on(evening.AddDate(1, 0, 1)).Points != 0 {
		t.Error("the same day of another year is not another day")
	}
}
