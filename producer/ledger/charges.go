package ledger

import (
	"slices"
	"time"

	"packship/schema"
)

// charges tells what the attempts in the log have cost: those of every replica,
// and those before this process began. What an answer said that was lost before it
// was written down is not among them.
type charges struct {
	tell func(paid schema.Charge, at time.Time) // nil: nobody wants to know
	// told is a ring of the attempts that were told last, whose oldest is at
	// next. A record that is in the log twice is told once.
	told []string
	next int
	// newest is the newest timestamp of what was told. After the log was found
	// to be another one and is read once more, what is not newer than again was
	// told before.
	newest, again time.Time
}

// toldAttempts are more than a partition has under way when the append of their
// records is tried again.
const toldAttempts = 256

// add tells what a record says its attempt has cost. Fresh is true if the record
// changed something, so that it is certainly not read for the second time. What it
// did to its shipment does not matter otherwise: a result that loses was paid for
// as well.
func (c *charges) add(e *entry, fresh bool) {
	if c.tell == nil || e.Points <= 0 || !e.time.After(c.again) || !fresh && slices.Contains(c.told, e.Attempt) {
		return
	}
	if len(c.told) < toldAttempts {
		c.told = append(c.told, e.Attempt)
	} else {
		c.told[c.next] = e.Attempt
		c.next = (c.next + 1) % toldAttempts
	}
	if e.time.After(c.newest) {
		c.newest = e.time
	}
	c.tell(schema.Charge{Account: e.Account, Points: e.Points}, e.time)
}

// restart says that the log is read from its beginning once more.
func (c *charges) restart() { c.again = c.newest }
