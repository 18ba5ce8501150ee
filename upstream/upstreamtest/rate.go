package upstreamtest

import "time"

// limiter counts the calls of one token, or account, to one endpoint.
type limiter struct {
	// accepted are the arrivals of the last calls let through, as a ring of
	// one second's worth, for the sliding window.
	accepted []time.Time
	next     int
	// window and count are for the fixed window.
	window int64
	count  int
	// level and at are for the leaky bucket.
	level float64
	at    time.Time
}

// allow reports whether a call that arrived at t is within the rate, and if not,
// how long it will be until one would be.
func (l *limiter) allow(r Rate, t time.Time) (wait time.Duration, ok bool) {
	switch r.Window {
	case FixedWindow:
		return l.fixed(r, t)
	case LeakyBucket:
		return l.leaky(r, t)
	default:
		return l.sliding(r, t)
	}
}

func (l *limiter) sliding(r Rate, t time.Time) (time.Duration, bool) {
	if len(l.accepted) != r.PerSecond {
		l.accepted, l.next = make([]time.Time, r.PerSecond), 0
	}
	// Handlers may run in another order than their requests arrived in. Later
	// arrivals stay in front: a window is never found emptier than it is.
	if newest := l.accepted[(l.next+r.PerSecond-1)%r.PerSecond]; t.Before(newest) {
		t = newest
	}
	oldest := l.accepted[l.next]
	ok := oldest.IsZero() || t.Sub(oldest) >= time.Second
	if ok || r.CountRefused {
		l.accepted[l.next] = t
		l.next = (l.next + 1) % r.PerSecond
	}
	return time.Second - t.Sub(oldest), ok
}

func (l *limiter) fixed(r Rate, t time.Time) (time.Duration, bool) {
	if w := t.Unix(); w > l.window {
		l.window, l.count = w, 0
	}
	ok := l.count < r.PerSecond
	if ok || r.CountRefused {
		l.count++
	}
	return time.Unix(l.window+1, 0).Sub(t), ok
}

func (l *limiter) leaky(r Rate, t time.Time) (time.Duration, bool) {
	capacity := float64(r.PerSecond)
	if l.at.IsZero() {
		l.at = t
	}
	if passed := t.Sub(l.at).Seconds(); passed > 0 {
		l.level = max(0, l.level-passed*capacity)
		l.at = t
	}
	ok := l.level+1 <= capacity
	if ok || r.CountRefused {
		l.level = min(l.level+1, capacity)
	}
	return time.Duration((l.level + 1 - capacity) / capacity * float64(time.Second)), ok
}
