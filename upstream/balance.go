package upstream

import "time"

// Balance is how many points an account had at a time, as its owner has read
// them off the vendor's site. The API does not say what is left.
type Balance struct {
	Points int64
	At     time.Time
}

// BalanceStatus is what is left of a configured balance.
type BalanceStatus struct {
	// Points is what is left, by what the ledger says was charged since.
	Points int64 `json:"points"`
	// At is when the configured balance was read.
	At time.Time `json:"at"`
	// DaysLeft is how long the points last at the present pace, absent while
	// nothing is charged.
	DaysLeft *float64 `json:"days_left,omitempty"`
}

const (
	paceHours = 24 // the pace is that of a whole day, since a shop has one
	day       = 24 * time.Hour
	// lowBalance is when the points are about to run out, and warnEvery how
	// often that is said.
	lowBalance = day
	warnEvery  = time.Hour
)

// forecast counts a balance down. Its account's mu guards it.
type forecast struct {
	Balance
	left  int64
	first time.Time // of the charges since At, zero before there is one
	// hours are the points of the last day, one place for each hour since At;
	// hour is the latest.
	hours  [paceHours]int64
	hour   int
	warned time.Time
}

func newForecast(b *Balance) *forecast {
	if b == nil {
		return nil
	}
	return &forecast{Balance: *b, left: b.Points}
}

// charge counts points that were charged at a time, and reports whether it is time
// to warn that few are left. The charges need not come in their order.
func (f *forecast) charge(points int64, at, now time.Time) (warn bool) {
	if at.Before(f.At) {
		return false
	}
	f.advance(now)
	if hour := min(f.hourOf(at), f.hour); hour > f.hour-paceHours { // another's clock may be ahead
		f.hours[hour%paceHours] += points
	}
	if f.first.IsZero() || at.Before(f.first) {
		f.first = at
	}
	f.left = max(0, f.left-points)
	last, pace := f.lasts(now)
	if !pace || last >= lowBalance || now.Sub(f.warned) < warnEvery {
		return false
	}
	f.warned = now
	return true
}

// hourOf is the hour of a time since At.
func (f *forecast) hourOf(t time.Time) int { return max(0, int(t.Sub(f.At)/time.Hour)) }

// advance goes on to the present hour and forgets those of a day ago.
func (f *forecast) advance(now time.Time) {
	hour := f.hourOf(now)
	if hour-f.hour >= paceHours {
		clear(f.hours[:])
		f.hour = hour
	}
	for f.hour < hour {
		f.hour++
		f.hours[f.hour%paceHours] = 0
	}
}

// lasts returns how long the points last at the present pace; there is none if
// nothing was charged within a day.
func (f *forecast) lasts(now time.Time) (last time.Duration, pace bool) {
	f.advance(now)
	var points int64
	for _, n := range f.hours {
		points += n
	}
	if points == 0 {
		return 0, false
	}
	// What the first minutes spend says little of a day.
	over := min(max(now.Sub(f.first), time.Hour), day)
	days := float64(f.left) / float64(points) * over.Hours() / day.Hours()
	const most = 36500 // as long as a duration can say, and longer than matters
	return time.Duration(min(days, most) * float64(day)), true
}

func (f *forecast) status(now time.Time) *BalanceStatus {
	if f == nil {
		return nil
	}
	st := &BalanceStatus{Points: f.left, At: f.At}
	if last, pace := f.lasts(now); pace {
		days := last.Hours() / day.Hours()
		st.DaysLeft = &days
	}
	return st
}
