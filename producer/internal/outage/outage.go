// Package outage turns a fault that is met again and again into two log lines:
// one when it begins and one when it has passed.
package outage

import (
	"log/slog"
	"sync"
	"time"
)

// Gravity says how bad a fault is.
type Gravity int

// The gravities of a fault.
const (
	// Passing faults end by themselves, like the loss of a leader.
	Passing Gravity = iota + 1
	// Lasting faults need a person, like a missing permission.
	Lasting
)

// Log logs the changes between working and failing of several like things, the
// partitions of a topic for instance. Its methods may be called at the same
// time.
type Log struct {
	log    *slog.Logger
	what   string
	remedy func(error) string

	mu     sync.Mutex
	failed map[int]Gravity // the things that fail at present
	since  time.Time
	fault  string // what is wrong, as it was last logged
}

// New returns a Log that speaks of what, "appending" for instance. If remedy is
// not nil it says what a person may do about a fault.
func New(log *slog.Logger, what string, remedy func(error) string) *Log {
	return &Log{log: log, what: what, remedy: remedy, failed: make(map[int]Gravity)}
}

// Failed notes that thing n has failed with err. It logs only if nothing failed
// before, or if this is graver than all that did.
func (l *Log) Failed(n int, g Gravity, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	worst := Gravity(0)
	for _, other := range l.failed {
		worst = max(worst, other)
	}
	if worst == 0 {
		l.since = time.Now()
	}
	l.failed[n] = max(g, l.failed[n])
	if g <= worst {
		l.log.Debug("still failing", "what", l.what, "partition", n, "err", err)
		return
	}
	attrs := []any{"what", l.what, "partition", n, "err", err}
	l.fault = err.Error()
	if l.remedy != nil {
		if r := l.remedy(err); r != "" {
			attrs = append(attrs, "remedy", r)
			l.fault += "; " + r
		}
	}
	if g == Lasting {
		l.log.Error("refused, trying again slowly", attrs...)
		return
	}
	l.log.Warn("failing, trying again", attrs...)
}

// Fault says what is wrong and what to do, "" if nothing fails.
func (l *Log) Fault() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failed) == 0 {
		return ""
	}
	return l.fault
}

// Worked notes that thing n works. It logs if that ends an outage.
func (l *Log) Worked(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failed) == 0 {
		return
	}
	delete(l.failed, n)
	if len(l.failed) == 0 {
		l.log.Info("works again", "what", l.what, "duration", time.Since(l.since))
	}
}
