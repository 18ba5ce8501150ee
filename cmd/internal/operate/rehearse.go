package operate

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"packship/cmd/internal/app"
	"packship/consumer"
	"packship/producer/ledger"
	"packship/schema"
)

// fate is what becomes of a packed record.
type fate int

const (
	fateSkipped    fate = iota // another deployment's
	fateShipped                // its result is published again
	fateFailed                 // it is answered by a failure without a call
	fateInDoubt                // called for, or given up, after an attempt that nobody knows the outcome of
	fateNew                    // called for
	fateTooOld                 // it is older than the ledger remembers
	fateDeadLetter             // it is no packed event
	fates
)

// rehearsal has the connector's own Shipper handle packed records without any
// effect, and notes what it does with them. It stands in for the ledger, the API
// and the producer: the ledger is the one that was read, and what the rehearsal
// itself has decided; every call is answered with a success.
type rehearsal struct {
	shipper *consumer.Shipper
	gate    *consumer.Gate
	ledger  *ledger.Reader
	orders  *app.Orders

	count [fates]int64
	calls map[string]int64 // by account
	// shipped and failed are the shipments that are settled by the rehearsal.
	shipped map[schema.Key]struct{}
	failed  map[schema.Key]*failing
	// parts are those of split orders that are shipped by the rehearsal, and
	// parcels the waybill numbers that it ships for a group.
	parts   map[schema.OrderKey][]schema.Shipment
	parcels map[waybill]parcel

	now fate // of the record that is being handled
	hit bool // whether that is decided
}

// waybill is a waybill number of a carrier.
type waybill struct{ carrier, number string }

// parcel says for which group a waybill number is shipped, and for which order.
type parcel struct{ group, tid string }

// failing is a shipment that has failed in the rehearsal.
type failing struct {
	standing schema.Standing // for an event that is not answered
	answered []schema.EventHash
}

func newRehearsal(s *app.Settings, orders *app.Orders, l *ledger.Reader) *rehearsal {
	r := &rehearsal{
		gate: consumer.OpenGate(), ledger: l, orders: orders,
		calls: map[string]int64{}, shipped: map[schema.Key]struct{}{}, failed: map[schema.Key]*failing{},
		parts: map[schema.OrderKey][]schema.Shipment{}, parcels: map[waybill]parcel{},
	}
	r.shipper = consumer.NewShipper(consumer.ShipperConfig{
		Ledger: r, Upstream: r, Publisher: r,
		Horizon: s.LedgerHorizon, Park: s.UnknownPolicy == "park", RetryMax: s.RetryMax,
		Backoff: func(int) time.Duration { return 0 }, Grace: time.Second,
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	return r
}

// handle has one record handled.
func (r *rehearsal) handle(ctx context.Context, rec *schema.Record) error {
	r.now, r.hit = fateSkipped, false
	p, err := schema.DecodePacked(rec)
	if err := r.shipper.Handle(ctx, r.gate, rec, p, err); err != nil {
		return err
	}
	r.count[r.now]++
	return nil
}

// decide notes the fate of the record. The first decision counts: what follows
// is the publication of what it led to.
func (r *rehearsal) decide(f fate) {
	if !r.hit {
		r.now, r.hit = f, true
	}
}

// Look tells where a shipment stands by the ledger and the rehearsal. Nobody has
// to wait: to a Reader of the ledger every attempt is over, as it is when the
// plan is carried out.
func (r *rehearsal) Look(s *schema.Shipment, event string) schema.Standing {
	key := s.Key()
	if _, ok := r.shipped[key]; ok {
		return schema.Standing{State: schema.StateSettled, Verdict: schema.Shipped}
	}
	st := r.ledger.Look(s, event)
	if f := r.failed[key]; f != nil && st.State != schema.StateSettled {
		if slices.Contains(f.answered, schema.HashEvent(event)) {
			return schema.Standing{State: schema.StateSettled, Verdict: schema.Failed}
		}
		return f.standing
	}
	return st
}

// Wait returns at once.
func (*rehearsal) Wait(context.Context, *schema.Shipment, string, schema.Standing, time.Time) error {
	return nil
}

// Refresh returns at once.
func (*rehearsal) Refresh(context.Context, *schema.Shipment) error { return nil }

// Claim always succeeds.
func (r *rehearsal) Claim(_ context.Context, s *schema.Shipment, event, prev, _ string) (schema.Hold, bool, error) {
	st := r.Look(s, event)
	h := schema.Hold{Attempt: "rehearsal", Round: st.Round, Prior: st.Attempts, Doubt: st.Doubt}
	if prev != "" {
		h.Prior++
		h.Doubt = true
	}
	if h.Doubt {
		r.decide(fateInDoubt)
	} else {
		r.decide(fateNew)
	}
	return h, true, nil
}

// Release is not called: no call of the rehearsal is turned away.
func (*rehearsal) Release(context.Context, *schema.Shipment, schema.Hold, string, schema.Charge) error {
	return nil
}

// Settle notes the outcome of an attempt.
func (r *rehearsal) Settle(_ context.Context, s *schema.Shipment, event string, h schema.Hold, o schema.Settlement) error {
	if o.Verdict == schema.Shipped {
		key := s.Key()
		r.shipped[key] = struct{}{}
		delete(r.failed, key)
		if s.IsPart() {
			r.parts[s.Order()] = append(r.parts[s.Order()], *s)
		}
		if o.Group != "" {
			r.parcels[waybill{s.CompanyCode, s.OutSID}] = parcel{o.Group, s.TID}
		}
		return nil
	}
	r.fail(s, event, schema.Standing{Round: h.Round, Attempts: h.Prior + 1, Doubt: h.Doubt || o.MaybeShipped})
	return nil
}

// Refuse notes a failure without a call.
func (r *rehearsal) Refuse(_ context.Context, s *schema.Shipment, event string, o schema.Outcome) error {
	switch o.Reason {
	case reasonBeyondHorizon:
		r.decide(fateTooOld)
	case reasonUnknown:
		r.decide(fateInDoubt)
	default:
		r.decide(fateFailed)
	}
	st := r.Look(s, event)
	r.fail(s, event, schema.Standing{Round: st.Round, Attempts: st.Attempts, Doubt: st.Doubt || o.MaybeShipped})
	return nil
}

// ShippedParts lists the other parts of the order by the ledger and the rehearsal.
func (r *rehearsal) ShippedParts(ctx context.Context, s *schema.Shipment) ([]schema.Shipment, error) {
	parts, err := r.ledger.ShippedParts(ctx, s)
	return slices.Concat(parts, r.parts[s.Order()]), err
}

// OtherGroup returns an order that was shipped with the waybill number for another
// group, by the ledger or the rehearsal.
func (r *rehearsal) OtherGroup(ctx context.Context, s *schema.Shipment, group string) (tid string, err error) {
	if known, ok := r.parcels[waybill{s.CompanyCode, s.OutSID}]; ok {
		if known.group == group {
			return "", nil
		}
		return known.tid, nil
	}
	return r.ledger.OtherGroup(ctx, s, group)
}

// InDoubt is not called: no answer of the rehearsal says that an order is shipped.
func (*rehearsal) InDoubt(context.Context, *schema.Shipment) ([]schema.Shipment, error) {
	return nil, nil
}

// The reasons of failures of records that are older than the ledger remembers,
// and of those that it may have forgotten.
const (
	reasonBeyondHorizon = "beyond_horizon"
	reasonUnknown       = "outcome_unknown"
)

func (r *rehearsal) fail(s *schema.Shipment, event string, over schema.Standing) {
	key := s.Key()
	f := r.failed[key]
	if f == nil {
		f = &failing{}
		r.failed[key] = f
	}
	over.State = schema.StateOpen
	over.Round++
	f.standing = over
	f.answered = append(f.answered, schema.HashEvent(event))
}

// Stored returns an outcome without an event: nobody reads it.
func (r *rehearsal) Stored(_ context.Context, s *schema.Shipment, _ string) (schema.Outcome, error) {
	_, now := r.shipped[s.Key()]
	if now || r.ledger.Shipped(s) {
		r.decide(fateShipped)
		return schema.Outcome{Verdict: schema.Shipped}, nil
	}
	r.decide(fateFailed)
	return schema.Outcome{Verdict: schema.Failed}, nil
}

// Serves reports whether the event's shop is this deployment's business.
func (r *rehearsal) Serves(p *schema.Packed) bool { return r.orders.Serves(p) }

// Validate returns every rule that the event breaks.
func (r *rehearsal) Validate(p *schema.Packed) []schema.Violation { return r.orders.Validate(p) }

// Admit lets every order through.
func (r *rehearsal) Admit(_ context.Context, p *schema.Packed, _ bool) (consumer.Turn, error) {
	return turn{r, r.orders.Account(p.ShopID)}, nil
}

// Blocked reports no order as blocked: a plan is about what comes in the end.
func (*rehearsal) Blocked(*schema.Packed) (<-chan struct{}, bool) { return nil, false }

// turn is a call that is only counted.
type turn struct {
	of      *rehearsal
	account string
}

// Send counts a call and answers that it went well.
func (t turn) Send(context.Context, schema.Hold) schema.Answer {
	t.of.calls[t.account]++
	return schema.Answer{Effect: schema.EffectShipped, Action: schema.ActSucceed, Reached: true, Counted: true, Answered: true}
}

// Leave gives nothing back.
func (turn) Leave() {}

// Publish publishes nothing.
func (*rehearsal) Publish(context.Context, schema.Publication) error { return nil }

// Bury notes a dead letter.
func (r *rehearsal) Bury(context.Context, *schema.Record, string, string) error {
	r.decide(fateDeadLetter)
	return nil
}
