package operate

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Point is a place in the logs of a topic, as a person names it. The zero value
// names none.
type Point struct {
	text   string
	first  bool
	offset int64
	at     time.Time // if set, it is what counts
	stood  bool      // the place where the group stood at that time
}

// days are units that durations do not have.
var days = regexp.MustCompile(`^([0-9]{1,5})d$`)

// stoodAt begins a point that names where the group stood at a time.
const stoodAt = "commit@"

// ParsePoint reads a point: first, an offset, a time as RFC 3339, a duration,
// which is that long before now, or either with commit@ before it, which is where
// the group stood then.
func ParsePoint(text string, now time.Time) (Point, error) {
	p := Point{text: text}
	trimmed := strings.TrimSpace(text)
	if trimmed == "first" {
		p.first = true
		return p, nil
	}
	if then, ok := strings.CutPrefix(trimmed, stoodAt); ok {
		at, err := ParseTime(then, now)
		p.at, p.stood = at, true
		return p, err
	}
	if offset, err := strconv.ParseInt(trimmed, 10, 64); err == nil {
		if offset < 0 {
			return p, fmt.Errorf("offset %d is negative", offset)
		}
		p.offset = offset
		return p, nil
	}
	if at, err := time.Parse(time.RFC3339, trimmed); err == nil {
		p.at = at
		return p, nil
	}
	ago, err := time.ParseDuration(trimmed)
	if m := days.FindStringSubmatch(trimmed); m != nil {
		n, _ := strconv.Atoi(m[1]) // digits, and few
		ago, err = time.Duration(n)*24*time.Hour, nil
	}
	if err != nil {
		return p, fmt.Errorf("%q is neither first, nor an offset, nor a time like 2026-11-24T02:00:00Z, nor a duration like 90m or 3d, nor commit@ and a time or duration", text)
	}
	if ago < 0 {
		return p, fmt.Errorf("duration %s is negative; a duration is that long ago", ago)
	}
	p.at = now.Add(-ago)
	return p, nil
}

// ParseTime reads a time as RFC 3339, or a duration, which is that long before
// now.
func ParseTime(text string, now time.Time) (time.Time, error) {
	p, err := ParsePoint(text, now)
	if err != nil || p.at.IsZero() || p.stood {
		return time.Time{}, fmt.Errorf("%q is neither a time like 2026-11-24T02:00:00Z nor a duration like 90m or 3d", text)
	}
	return p.at, nil
}

// IsZero reports whether the point names no place.
func (p Point) IsZero() bool { return p == Point{} }

// After reports whether the point lies after another of its kind: both are times,
// or both are offsets.
func (p Point) After(other Point) bool {
	switch {
	case p.first || other.first || p.stood != other.stood || p.at.IsZero() != other.at.IsZero():
		return false
	case p.at.IsZero():
		return p.offset > other.offset
	default:
		return p.at.After(other.at)
	}
}

// Future reports whether the point is a time that has not come yet.
func (p Point) Future(now time.Time) bool { return p.at.After(now) }

// String returns the point as it was written.
func (p Point) String() string { return p.text }
