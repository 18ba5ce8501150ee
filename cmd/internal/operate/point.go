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
}

// days are units that durations do not have.
var days = regexp.MustCompile(`^([0-9]{1,5})d$`)

// ParsePoint reads a point: first, an offset, a time as RFC 3339, or a duration,
// which is that long before now.
func ParsePoint(text string, now time.Time) (Point, error) {
	p := Point{text: text}
	trimmed := strings.TrimSpace(text)
	if trimmed == "first" {
		p.first = true
		return p, nil
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
		return p, fmt.Errorf("%q is neither first, nor an offset, nor a time like 2026-11-24T02:00:00Z, nor a duration like 90m or 3d", text)
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
	if err != nil || p.at.IsZero() {
		return time.Time{}, fmt.Errorf("%q is neither a time like 2026-11-24T02:00:00Z nor a duration like 90m or 3d", text)
	}
	return p.at, nil
}

// IsZero reports whether the point names no place.
func (p Point) IsZero() bool { return p == Point{} }

// String returns the point as it was written.
func (p Point) String() string { return p.text }
