package ledger

import (
	"cmp"
	"fmt"
	"time"
)

// Status is what the ledger knows of itself, for people.
type Status struct {
	Ready bool `json:"ready"`
	// Reason says why it is not ready.
	Reason string `json:"reason,omitempty"`
	// Incarnation names this process in the log.
	Incarnation string `json:"incarnation"`
	Partitions  int    `json:"partitions"`
	// Entries counts the shipments that are known, Held those of them that an
	// attempt holds, and InDoubt those without an outcome of which an attempt
	// may have shipped.
	Entries int `json:"entries"`
	Held    int `json:"held"`
	InDoubt int `json:"in_doubt"`
	// Damaged is what this process has found to be lost, "" for nothing, and
	// LostBefore the time before which something may have been, also by what
	// the log says, RFC 3339, "" for never. A packed event of before that, of
	// whose shipment nothing is known, is not called for.
	Damaged    string `json:"damaged,omitempty"`
	LostBefore string `json:"lost_before,omitempty"`
	// Unfit is what is wrong with the topic's settings, so that it will lose
	// records, "" if nothing is.
	Unfit string `json:"unfit,omitempty"`
	// Failing is why the ledger cannot be read or written at present and what
	// to do about it, "" if it can.
	Failing        string  `json:"failing,omitempty"`
	RestoreSeconds float64 `json:"restore_seconds"`
}

// Status returns the present status.
func (l *Ledger) Status() Status {
	s := Status{Incarnation: l.self, Partitions: len(l.partitions), Failing: cmp.Or(l.appender.Blocked(), l.reading.Fault())}
	s.Ready, s.Reason = l.Ready()
	select {
	case <-l.ready:
		s.RestoreSeconds = l.restored.Seconds()
	default:
	}
	if reason := l.damage.Load(); reason != nil {
		s.Damaged = *reason
	}
	if unfit := l.unfit.Load(); unfit != nil {
		s.Unfit = *unfit
	}
	var lost time.Time
	for _, p := range l.partitions {
		p.mu.Lock()
		if p.lostBefore.After(lost) {
			lost = p.lostBefore
		}
		s.Entries += p.fold.entries()
		for _, o := range p.fold.open {
			if o.holder != "" {
				s.Held++
			}
			if o.doubt {
				s.InDoubt++
			}
		}
		p.mu.Unlock()
	}
	if !lost.IsZero() && time.Since(lost) < l.cfg.Horizon {
		s.LostBefore = lost.UTC().Format(time.RFC3339)
	}
	return s
}

// aliveWithin is how long a step of a tail may take that is bounded by much less.
const aliveWithin = 30 * time.Second

// Alive reports whether the loops that read the ledger turn. It does not depend
// on Kafka: a request that is not answered ends within seconds.
func (l *Ledger) Alive() (bool, string) {
	for _, p := range l.partitions {
		at := p.turned.Load()
		if d := time.Since(time.Unix(0, at)); at != 0 && d > aliveWithin {
			return false, fmt.Sprintf("the loop that reads partition %d of the ledger has not turned for %s", p.n, d.Round(time.Second))
		}
	}
	return true, ""
}
