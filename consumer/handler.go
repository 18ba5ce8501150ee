package consumer

import (
	"context"

	"packship/schema"
)

// Handler sees single records through to their outcome. [Shipper] is one.
type Handler interface {
	// Handle sees one record through to the end: nil means settled, so that
	// its offset may be passed. An error means not settled; it is returned
	// only when ctx has ended, which it does when the partition was taken
	// away, when the process stops, or when the record is put on the shelf
	// (see [Blocker]).
	//
	// What must not be cut off, such as a call that is under way, goes on
	// under context.WithoutCancel with a limit of its own. The gate says
	// whether a call may start.
	//
	// Either p or decodeErr is nil: the record has been decoded once already.
	//
	// Records of one order are handled one at a time, in the order of the
	// log; everything else is handled at the same time.
	Handle(ctx context.Context, gate *Gate, rec *schema.Record, p *schema.Packed, decodeErr error) error
}

// Blocker is implemented by a [Handler] that can tell orders which may not be
// sent at all for the time being from those that only wait for their turn: their
// account is halted or their shop is parked. The consumer puts such orders on
// the shelf, so that they do not stand in the way of others.
//
// Blocked is called often, and must not block. What it says depends on nothing
// but the event's shop. The channel is closed when the order may be tried
// again; it is not nil if blocked is true. The same channel should be returned
// for as long as the same block lasts.
type Blocker interface {
	Blocked(p *schema.Packed) (reopened <-chan struct{}, blocked bool)
}
