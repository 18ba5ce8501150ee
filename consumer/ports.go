package consumer

import (
	"context"
	"time"

	"packship/schema"
)

// Ledger is the memory of all replicas, as the Shipper needs it. Every method
// speaks of what this process has read of the log so far.
type Ledger interface {
	// Look tells where the shipment stands for the packed event.
	Look(s *schema.Shipment, eventID string) schema.Standing
	// Wait blocks until the shipment's standing may have changed since it was
	// looked at, or until the time until, whichever is first. It returns the
	// context's error if that ends first.
	Wait(ctx context.Context, s *schema.Shipment, eventID string, seen schema.Standing, until time.Time) error
	// Refresh blocks until everything has been read that the ledger held about
	// the shipment when it was called.
	Refresh(ctx context.Context, s *schema.Shipment) error
	// Claim appends an intent, or a takeover from the attempt prev if that is
	// not empty, waits until it has read its own record, and reports whether
	// this process now holds the shipment. With a takeover it keeps what the
	// previous attempt was answered, as far as this process knows. It gives up
	// when no call could begin under the claim any more.
	Claim(ctx context.Context, s *schema.Shipment, eventID, prev, answer string) (schema.Hold, bool, error)
	// Release says that the hold's attempt has certainly shipped nothing, and
	// what it has cost all the same. If it fails it goes on in the background.
	Release(ctx context.Context, s *schema.Shipment, h schema.Hold, why string, paid schema.Charge) error
	// Settle appends the outcome of a hold and waits until it has read it. The
	// outcome that counts is the one that Stored returns afterwards; it may be
	// another's.
	Settle(ctx context.Context, s *schema.Shipment, eventID string, h schema.Hold, o schema.Settlement) error
	// Refuse settles a shipment that needs no call: it appends an intent and
	// the outcome of the given round in one go. Like Settle, it may lose.
	Refuse(ctx context.Context, s *schema.Shipment, eventID string, o schema.Outcome) error
	// ShippedParts lists the other shipments of the same order that were
	// shipped as a part of it, and InDoubt those that an attempt may have
	// shipped.
	ShippedParts(ctx context.Context, s *schema.Shipment) ([]schema.Shipment, error)
	InDoubt(ctx context.Context, s *schema.Shipment) ([]schema.Shipment, error)
	// OtherGroup returns an order that was shipped lately with the same waybill
	// number for another group, by its id, and "" if none is known.
	OtherGroup(ctx context.Context, s *schema.Shipment, group string) (tid string, err error)
	// Stored returns the outcome that answers the event.
	Stored(ctx context.Context, s *schema.Shipment, eventID string) (schema.Outcome, error)
}

// Upstream is the shipping API, as the Shipper needs it.
type Upstream interface {
	// Serves reports whether the event's shop is this deployment's business.
	// The events of other shops are passed over without a result.
	Serves(p *schema.Packed) bool
	// Validate returns every rule that the event breaks.
	Validate(p *schema.Packed) []schema.Violation
	// Admit blocks until the account of the event's shop may send, its shop is
	// not parked, and the rate limit is about to let one more call through. An
	// order that comes again after an attempt goes before those that do not.
	Admit(ctx context.Context, p *schema.Packed, again bool) (Turn, error)
	// Blocked reports whether the orders of the event's shop have to wait for
	// a repair, and returns a channel that is closed when one may be tried.
	Blocked(p *schema.Packed) (reopened <-chan struct{}, blocked bool)
}

// Turn is a place in front of the rate limiter. It is used once.
type Turn interface {
	// Send makes one call for the hold. Until the first byte is written, it
	// gives up when gate ends or the hold's StartBy passes, and answers that
	// nothing was reached; from then on only the call's own time limit ends it.
	Send(gate context.Context, hold schema.Hold) schema.Answer
	// Leave gives the place back if it has not been used. It may always be
	// called.
	Leave()
}

// Publisher writes to the result topics and the dead letters.
type Publisher interface {
	// Publish returns once the result is acknowledged by all in-sync replicas,
	// or with an error if the context ends or the result has become stale.
	Publish(ctx context.Context, p schema.Publication) error
	// Bury writes a record that is no packed event to the dead letters.
	Bury(ctx context.Context, rec *schema.Record, reason, detail string) error
}
