package app

import (
	"context"
	"net/http"
	"time"

	"packship/cmd/internal/life"
	"packship/schema"
)

// searchLimit bounds a search of the ledger for somebody who waits for it. It is
// shorter than a response may take.
const searchLimit = 25 * time.Second

const unknownOrder = "the ledger knows no order with that id"

// orderHandler answers what the ledger knows of an order. It has one request
// after the other searched for, because each reads a large part of the ledger,
// which must not take the machine from those who ship.
func (c *Connector) orderHandler() http.HandlerFunc {
	searching := make(chan struct{}, 1)
	return func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		memory := c.ledger
		c.mu.Unlock()
		if memory == nil {
			writeError(w, http.StatusServiceUnavailable, "the ledger is not there yet")
			return
		}
		if ok, why := memory.Ready(); !ok {
			writeError(w, http.StatusServiceUnavailable, why)
			return
		}
		tid := r.PathValue("tid")
		if !schema.ValidID(tid) {
			writeError(w, http.StatusNotFound, unknownOrder)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), searchLimit)
		defer cancel()
		select {
		case searching <- struct{}{}:
			defer func() { <-searching }()
		case <-ctx.Done():
			writeError(w, http.StatusServiceUnavailable, "others are searching; try again, or use packship trace")
			return
		}
		steps, err := memory.History(ctx, tid)
		switch {
		case err != nil:
			c.log.Warn("order not looked up", "tid", tid, "err", err)
			writeError(w, http.StatusServiceUnavailable, "the ledger cannot be searched now; see the log")
		case len(steps) == 0:
			writeError(w, http.StatusNotFound, unknownOrder)
		default:
			writeJSON(w, http.StatusOK, life.FromLedger(tid, c.settings.TopicLedger, steps))
		}
	}
}
