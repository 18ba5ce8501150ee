package ledger

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
	// Damaged is why shipments without a record count as in doubt, "" if they
	// do not.
	Damaged        string  `json:"damaged,omitempty"`
	RestoreSeconds float64 `json:"restore_seconds"`
}

// Status returns the present status.
func (l *Ledger) Status() Status {
	s := Status{Incarnation: l.self, Partitions: len(l.partitions)}
	s.Ready, s.Reason = l.Ready()
	select {
	case <-l.ready:
		s.RestoreSeconds = l.restored.Seconds()
	default:
	}
	if reason := l.damage.Load(); reason != nil {
		s.Damaged = *reason
	}
	for _, p := range l.partitions {
		p.mu.Lock()
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
	return s
}
