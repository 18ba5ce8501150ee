package consumer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"packship/schema"
)

// Reasons and classes of failures that packship finds without an answer of the
// API. They stand beside those of the answer table.
const (
	reasonInvalid       = "local_validation"
	classInvalid        = "invalid_request"
	reasonBeyondHorizon = "beyond_horizon"
	reasonUnknown       = "outcome_unknown"
	reasonOtherWaybill  = "shipped_with_other_waybill_possible"
	classNeedsHuman     = "needs_human"
)

// ShipperConfig is what a Shipper works with.
type ShipperConfig struct {
	Ledger    Ledger
	Upstream  Upstream
	Publisher Publisher

	// Horizon is how far back the ledger remembers. A packed record older than
	// that, of which nothing is known, is never called for.
	Horizon time.Duration
	// Park fails an order whose outcome is unknown, for a person to decide,
	// instead of asking the API again.
	Park bool
	// RetryMax bounds how often one order is tried again.
	RetryMax int
	// Settle is how long a call that was not answered may still take effect at
	// the API.
	Settle time.Duration
	// Backoff returns the pause before the n-th retry, n from 1.
	Backoff func(n int) time.Duration
	// Grace is how long what was learned from the API is still written down
	// and published after the order's context has ended.
	Grace time.Duration

	// GroupID names the consumer group in the spans, and Topic that of the
	// packed events in the metrics.
	GroupID, Topic string
	// Classes are those that a failed order may have by an answer of the API,
	// so that their series exist before the first failure.
	Classes []string

	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Tracer makes the spans of orders; nil makes none.
	Tracer trace.Tracer
}

// Shipper is what happens to one order. It brings every packed record to an
// outcome that stands in the ledger, by calling the API at most once unless an
// attempt ended in doubt, and publishes that outcome.
//
// It is safe for concurrent use, by one goroutine per order.
type Shipper struct {
	cfg      ShipperConfig
	metrics  *shipperMetrics
	underWay underWay

	shipped, failed, buried atomic.Int64

	mu      sync.Mutex
	reasons map[string]int64 // guarded by mu; of failed, by the reason
}

// NewShipper returns a Shipper.
func NewShipper(cfg ShipperConfig) *Shipper {
	return &Shipper{cfg: cfg, metrics: newShipperMetrics(cfg.Registerer, cfg.Topic, cfg.Classes), reasons: make(map[string]int64)}
}

// Counts says how many packed records this process has seen through, by what
// was published for them.
type Counts struct {
	Shipped      int64 `json:"shipped"`
	Failed       int64 `json:"failed"`
	DeadLettered int64 `json:"dead_lettered"`
}

// Counts returns the counts so far.
func (s *Shipper) Counts() Counts {
	return Counts{Shipped: s.shipped.Load(), Failed: s.failed.Load(), DeadLettered: s.buried.Load()}
}

// Failures returns how many of the failed records failed for which reason.
func (s *Shipper) Failures() map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.reasons)
}

// order is one packed event on its way through the Shipper.
type order struct {
	*schema.Packed
	rec  *schema.Record
	gate *Gate
	// tries counts the attempts that used up one of the order's retries.
	tries int
	// pending is an attempt of this order whose outcome is unknown, "" if
	// there is none. It may be followed up at notBefore, sooner than by those
	// who only see it in the ledger. Its answer is in words, for people.
	pending   string
	answer    string
	notBefore time.Time
	// violations are the rules that the event breaks by itself, once validated.
	violations []schema.Violation
	validated  bool
	// tried is true once the order has had its turn, called once this process
	// has made a call for it, and seen once more was done for it than to look up
	// its outcome.
	tried, called, seen bool
	// paid is what its calls have cost and the ledger does not know yet.
	paid schema.Charge
}

// Blocked implements [Blocker]: the orders of a halted account or a parked shop
// stand aside.
func (s *Shipper) Blocked(p *schema.Packed) (reopened <-chan struct{}, blocked bool) {
	return s.cfg.Upstream.Blocked(p)
}

// Handle sees one record through to the end: it returns nil once the outcome is
// published, so that the record's offset may be passed. It returns an error only
// if ctx has ended before that; what was learned from the API by then is in the
// ledger, unless Grace was too short for it.
func (s *Shipper) Handle(ctx context.Context, gate *Gate, rec *schema.Record, p *schema.Packed, decodeErr error) error {
	if decodeErr == nil && !s.cfg.Upstream.Serves(p) {
		s.metrics.finished.WithLabelValues(verdictSkipped, "").Inc()
		return nil
	}
	defer s.underWay.enter(rec, p)()
	ctx, span := s.startSpan(ctx, rec, p)
	err := s.see(ctx, gate, rec, p, decodeErr)
	endSpan(span, err)
	return err
}

// see is Handle within the record's span.
func (s *Shipper) see(ctx context.Context, gate *Gate, rec *schema.Record, p *schema.Packed, decodeErr error) error {
	if decodeErr != nil {
		s.underWay.step(rec, StepBury)
		return s.bury(ctx, rec, decodeErr)
	}
	o := &order{Packed: p, rec: rec, gate: gate}
	for {
		outcome, err := s.decide(ctx, o)
		if err != nil {
			return err
		}
		if err := s.publish(ctx, o, outcome); !errors.Is(err, errCorrected) {
			return err
		}
	}
}

// errCorrected says that a success has taken the place of the failure that was
// to be published.
var errCorrected = errors.New("the outcome was corrected")

// decide brings the order to an outcome in the ledger and returns it. Each turn
// of the loop looks at where the shipment stands and takes one step, of which
// the next look shows what it came to. So it makes no difference whether a step
// was ours, another replica's, or lost to a race.
func (s *Shipper) decide(ctx context.Context, o *order) (schema.Outcome, error) {
	for {
		standing := s.cfg.Ledger.Look(&o.Shipment, o.EventID)
		free, step := o.notBefore, StepRest
		if standing.State == schema.StateHeld && standing.Holder != o.pending && standing.FreeAt.After(free) {
			free, step = standing.FreeAt, StepOther
		}
		var err error
		switch {
		case standing.State == schema.StateSettled:
			var outcome schema.Outcome
			if outcome, err = s.stored(ctx, o); err == nil {
				s.underWay.trouble(o.rec, nil)
				if !o.seen {
					s.metrics.repeated.Inc()
				}
				o.seen = true
				return outcome, nil
			}
		case time.Until(free) > 0:
			o.seen = true
			s.underWay.stepUntil(o.rec, step, free)
			err = s.cfg.Ledger.Wait(ctx, &o.Shipment, o.EventID, standing, free)
		default:
			o.seen = true
			err = s.step(ctx, o, standing)
		}
		if err != nil {
			if ctx.Err() != nil {
				return schema.Outcome{}, err
			}
			// Nothing that ends by itself comes here; a person must see it.
			if s.underWay.trouble(o.rec, err) {
				s.cfg.Logger.ErrorContext(ctx, "order held up", "tid", o.TID, "err", err)
			}
			s.underWay.stepUntil(o.rec, StepRest, time.Now().Add(mishapPause))
			sleep(ctx, mishapPause)
		}
	}
}

// mishapPause is how long an order rests after an error that should not be.
const mishapPause = 5 * time.Second

// step settles an order that nobody holds if that needs no call, and makes an
// attempt if it does.
func (s *Shipper) step(ctx context.Context, o *order, standing schema.Standing) error {
	violations, err := s.violations(ctx, o)
	if err != nil {
		return err
	}
	switch {
	case len(violations) > 0:
		return s.refuse(ctx, o, standing, invalid(violations))
	case s.beyondHorizon(o, standing):
		return s.refuse(ctx, o, standing, tooOld())
	case o.rec.Time.Before(standing.LostBefore):
		return s.refuse(ctx, o, standing, lost())
	case s.cfg.Park && standing.State == schema.StateHeld:
		return s.refuse(ctx, o, standing, gaveUp())
	default:
		return s.attempt(ctx, o, standing)
	}
}

// violations lists the rules that the order breaks, in their order: those that its
// event breaks by itself, and those that it breaks by what the ledger knows of
// other shipments.
func (s *Shipper) violations(ctx context.Context, o *order) ([]schema.Violation, error) {
	if !o.validated {
		o.violations, o.validated = s.cfg.Upstream.Validate(o.Packed), true
	}
	shipped, err := s.cfg.Ledger.ShippedParts(ctx, &o.Shipment)
	if err != nil {
		return nil, err
	}
	swapped, err := s.swapped(ctx, o)
	if err != nil {
		return nil, err
	}
	all := slices.Concat(o.violations, overlaps(o, shipped), swapped)
	slices.SortStableFunc(all, func(a, b schema.Violation) int { return strings.Compare(a.Rule, b.Rule) })
	return all, nil
}

// swapped tells whether the order's waybill number was shipped for another group:
// rule V07. Events that name no group are not judged.
func (s *Shipper) swapped(ctx context.Context, o *order) ([]schema.Violation, error) {
	if o.OrderGroup == "" {
		return nil, nil
	}
	tid, err := s.cfg.Ledger.OtherGroup(ctx, &o.Shipment, o.GroupMark())
	if err != nil || tid == "" {
		return nil, err
	}
	message := fmt.Sprintf("out_sid %s is the number of order %s, which is of another order_group: are two labels swapped?", o.OutSID, tid)
	return []schema.Violation{{Rule: "V07", Field: "out_sid", Message: message}}, nil
}

// overlaps lists the parts of the order that were shipped already, and would be
// again: rule V26.
func overlaps(o *order, shipped []schema.Shipment) (violations []schema.Violation) {
	for _, other := range shipped {
		common, overlap := o.Shipment.Overlaps(&other)
		if !overlap {
			continue
		}
		field, message := "sub_tid", fmt.Sprintf("sub-orders %s were shipped already, with waybill %s; leave them out", strings.Join(common, ","), other.OutSID)
		if !o.Shipment.IsPart() {
			field, message = "is_split", fmt.Sprintf("a part of the order (sub-orders %s) was shipped already, with waybill %s; set is_split to 1 and name those that are left in sub_tid",
				strings.Join(other.SubTID, ","), other.OutSID)
		}
		violations = append(violations, schema.Violation{Rule: "V26", Field: field, Message: message})
	}
	return violations
}

// attempt makes at most one call for the order. It returns nil whatever came of
// it, and an error only if ctx has ended.
func (s *Shipper) attempt(ctx context.Context, o *order, standing schema.Standing) error {
	s.underWay.step(o.rec, StepGate)
	if err := o.gate.Wait(ctx); err != nil {
		return err
	}
	open, done := o.gate.Context(ctx)
	defer done()
	s.underWay.step(o.rec, StepTurn)
	turn, err := s.cfg.Upstream.Admit(open, o.Packed, o.tried || standing.State == schema.StateHeld)
	if err != nil {
		return ctx.Err() // nil if only the gate has closed
	}
	defer turn.Leave()
	// Swapped labels are packed together. So the other order may have been
	// shipped while this one waited for its turn, and the next step refuses it.
	if swapped, err := s.swapped(ctx, o); err != nil || len(swapped) > 0 {
		return err
	}
	s.underWay.step(o.rec, StepClaim)
	hold, held := s.claim(open, o, standing)
	if !held {
		return ctx.Err()
	}

	span := trace.SpanFromContext(ctx)
	traceClaim(span, hold, standing.Holder)
	o.tried = true
	o.gate.look() // the hold says nothing of the time before the claim
	s.underWay.step(o.rec, StepCall)
	answer := turn.Send(open, hold)
	traceAnswer(span, answer)
	s.underWay.step(o.rec, StepSettle)
	s.underWay.trouble(o.rec, nil)

	// The API may have done something now. Whatever becomes of this process's
	// place in the group, what it knows is written down.
	ctx, cancel := lingering(ctx, s.cfg.Grace)
	defer cancel()
	return s.conclude(ctx, o, hold, answer)
}

// claim has the order's attempt written down, and reports whether this process holds
// the shipment now.
func (s *Shipper) claim(ctx context.Context, o *order, standing schema.Standing) (hold schema.Hold, held bool) {
	hold, held, err := s.cfg.Ledger.Claim(ctx, &o.Shipment, o.EventID, standing.Holder, o.answerOf(standing.Holder))
	if err != nil && ctx.Err() == nil {
		// The ledger does not take it at present. That may be so of its partition
		// alone, so a turn is for others now.
		s.underWay.trouble(o.rec, errNotTaken)
		o.notBefore = time.Now().Add(mishapPause)
	}
	return hold, held && err == nil
}

// errNotTaken is what keeps up an order whose claim the ledger does not take. Why
// that is the ledger says itself.
var errNotTaken = errors.New("the ledger does not take its claim")

// conclude draws the conclusion from one answer.
func (s *Shipper) conclude(ctx context.Context, o *order, hold schema.Hold, answer schema.Answer) error {
	o.called = o.called || answer.Reached
	if answer.Charge.Points > 0 {
		o.paid = schema.Charge{Account: answer.Charge.Account, Points: o.paid.Points + answer.Charge.Points}
	}
	if answer.Counted {
		o.tries++
	}
	switch answer.Action {
	case schema.ActSucceed:
		return s.settle(ctx, o, hold, answer, nil)
	case schema.ActReconcile:
		// "Already shipped" is our own doing only if an earlier attempt for
		// this very shipment may have been executed.
		if hold.Doubt {
			return s.settle(ctx, o, hold, answer, nil)
		}
		failure, err := s.shippedByOther(ctx, o, answer)
		if err != nil {
			return err
		}
		return s.settle(ctx, o, hold, answer, failure)
	case schema.ActRetry:
		if s.cfg.Park {
			return s.settle(ctx, o, hold, answer, gaveUp())
		}
		if o.tries > min(answer.MaxRetries, s.cfg.RetryMax) {
			return s.settle(ctx, o, hold, answer, refused(answer))
		}
		o.notBefore = time.Now().Add(s.pause(o, answer))
		if answer.Effect == schema.EffectUnknown {
			o.pending, o.answer = hold.Attempt, told(answer) // stay the holder
			return nil
		}
		return s.release(ctx, o, hold, answer)
	case schema.ActHold:
		o.notBefore = time.Now().Add(answer.Wait)
		return s.release(ctx, o, hold, answer)
	default: // schema.ActFail
		return s.settle(ctx, o, hold, answer, refused(answer))
	}
}

// release gives the shipment back after a call that has shipped nothing. What was
// paid is the ledger's to keep from then on, also where that goes on in the
// background.
func (s *Shipper) release(ctx context.Context, o *order, hold schema.Hold, answer schema.Answer) error {
	paid := o.paid
	o.paid = schema.Charge{}
	return s.cfg.Ledger.Release(ctx, &o.Shipment, hold, answer.Reason, paid)
}

// answerOf says what the API answered to an attempt that is to be followed up, ""
// if it is another's.
func (o *order) answerOf(attempt string) string {
	if attempt == "" || attempt != o.pending {
		return ""
	}
	return o.answer
}

// told says in words what an attempt without a known outcome was answered.
func told(a schema.Answer) string {
	x := a.Exchange
	if x == nil {
		return "no answer that could be read"
	}
	return fmt.Sprintf("HTTP %d, code %d, %s", x.HTTPStatus, x.Code, x.Msg)
}

// shippedByOther draws the conclusion from an answer that the order is shipped
// already, although this shipment has not been tried: if another one may have
// been, its waybill may be on the order.
func (s *Shipper) shippedByOther(ctx context.Context, o *order, answer schema.Answer) (*schema.Failure, error) {
	doubtful, err := s.cfg.Ledger.InDoubt(ctx, &o.Shipment)
	if err != nil {
		return nil, err
	}
	failure := refused(answer)
	for _, other := range doubtful {
		if _, overlap := o.Shipment.Overlaps(&other); overlap {
			failure.Reason, failure.Class = reasonOtherWaybill, classNeedsHuman
			failure.Redrivable, failure.MaybeShipped = true, true
			failure.Advice = fmt.Sprintf("The order may have been shipped with waybill %s of %s, by an earlier call whose outcome is not known; look it up, and change the waybill on the platform if it is the wrong one.",
				other.OutSID, other.CompanyCode)
		}
	}
	return failure, nil
}

// pause returns how long the order rests before its next attempt. An attempt
// that was not answered may still be executed, so it must be given its time.
func (s *Shipper) pause(o *order, answer schema.Answer) time.Duration {
	pause := max(answer.Wait, s.cfg.Backoff(max(o.tries, 1)))
	if answer.Effect == schema.EffectUnknown && !answer.Answered {
		pause = max(pause, s.cfg.Settle)
	}
	return pause
}

// settle writes the outcome of a call: a failure, or a success if failure is
// nil.
func (s *Shipper) settle(ctx context.Context, o *order, hold schema.Hold, answer schema.Answer, failure *schema.Failure) error {
	result := schema.NewResult(o.Packed, o.source())
	result.Attempts = hold.Prior
	if answer.Reached {
		result.Attempts++
	}
	result.Upstream = answer.Exchange
	result.Reconciled = failure == nil && answer.Action == schema.ActReconcile
	if failure != nil {
		// A definite answer does not erase an earlier unknown one.
		failure.MaybeShipped = failure.MaybeShipped || hold.Doubt || answer.Effect == schema.EffectUnknown
		result.Failure = failure
	}
	outcome, err := result.Outcome(&o.Shipment, hold.Round, time.Now())
	if err != nil {
		return err
	}
	if err := s.cfg.Ledger.Settle(ctx, &o.Shipment, o.EventID, hold, schema.Settlement{Outcome: outcome, Group: o.GroupMark(), Paid: o.paid}); err != nil {
		return err
	}
	o.paid = schema.Charge{}
	if hold.Doubt && answer.Reached {
		told := toldShipped
		switch {
		case failure != nil:
			told = toldFailed
		case result.Reconciled:
			told = toldConfirmed
		}
		s.metrics.reconciled.WithLabelValues(told).Inc()
	}
	return nil
}

// refuse settles the order as failed without a call.
func (s *Shipper) refuse(ctx context.Context, o *order, standing schema.Standing, failure *schema.Failure) error {
	s.underWay.step(o.rec, StepSettle)
	if standing.State == schema.StateHeld {
		// The holder is gone, and what it did is not known.
		hold, held := s.claim(ctx, o, standing)
		if !held {
			return ctx.Err()
		}
		return s.settle(ctx, o, hold, schema.Answer{}, failure)
	}
	result := schema.NewResult(o.Packed, o.source())
	result.Attempts = standing.Attempts
	failure.MaybeShipped = failure.MaybeShipped || standing.Doubt
	result.Failure = failure
	outcome, err := result.Outcome(&o.Shipment, standing.Round, time.Now())
	if err != nil {
		return err
	}
	return s.cfg.Ledger.Refuse(ctx, &o.Shipment, o.EventID, outcome)
}

// beyondHorizon reports whether the record is so old that the ledger may have
// forgotten what became of it.
func (s *Shipper) beyondHorizon(o *order, standing schema.Standing) bool {
	return standing.State == schema.StateOpen && time.Since(o.rec.Time) > s.cfg.Horizon
}

// stored reads the outcome back. It is always this one that is published, never
// the one that this process may have just composed.
func (s *Shipper) stored(ctx context.Context, o *order) (schema.Outcome, error) {
	s.underWay.step(o.rec, StepSettle)
	ctx, cancel := lingering(ctx, s.cfg.Grace)
	defer cancel()
	return s.cfg.Ledger.Stored(ctx, &o.Shipment, o.EventID)
}

func (s *Shipper) publish(ctx context.Context, o *order, outcome schema.Outcome) error {
	s.underWay.step(o.rec, StepPublish)
	ctx, cancel := lingering(ctx, s.cfg.Grace)
	defer cancel()
	traceparent, _ := o.rec.Header("traceparent")
	tracestate, _ := o.rec.Header("tracestate")
	pub := schema.Publication{
		TID: o.TID, Outcome: outcome, InReplyTo: o.EventID, TraceParent: traceparent, TraceState: tracestate,
	}
	var err error
	if outcome.Verdict == schema.Failed && outcome.MaybeShipped {
		err = s.publishDoubtful(ctx, o, pub)
	} else {
		err = s.cfg.Publisher.Publish(ctx, pub)
	}
	if err != nil {
		return err
	}
	attempts := attemptsOf(outcome)
	traceOutcome(trace.SpanFromContext(ctx), outcome, attempts)
	verdict := string(outcome.Verdict)
	if outcome.Verdict == schema.Shipped {
		s.shipped.Add(1)
	} else {
		s.failed.Add(1)
		s.mu.Lock()
		s.reasons[outcome.Reason]++
		s.mu.Unlock()
	}
	if outcome.Reason == reasonInvalid {
		verdict = verdictInvalid
	}
	duration := time.Since(o.rec.Time)
	s.metrics.finished.WithLabelValues(verdict, outcome.Class).Inc()
	s.metrics.duration.WithLabelValues(string(outcome.Verdict)).Observe(max(0, duration.Seconds()))
	s.cfg.Logger.InfoContext(ctx, "order settled",
		"tid", o.TID, "shop_id", o.ShopID, "partition", o.rec.Partition, "offset", o.rec.Offset,
		"outcome", outcome.Verdict, "reason", outcome.Reason, "maybe_shipped", outcome.MaybeShipped,
		"result_id", outcome.ResultID, "attempts", attempts, "called", o.called, "retries", max(0, o.tries-1), "duration", duration)
	return nil
}

// publishDoubtful publishes a failure that may yet be corrected, by the late answer
// to an attempt that was taken over. It returns errCorrected if it was.
//
// The last word on an order has to be what the ledger says. Who has the late
// answer writes it down before publishing it. So a look at all that the ledger
// holds, after the failure was published, shows a success that may have been
// published before it, and has to be published again.
func (s *Shipper) publishDoubtful(ctx context.Context, o *order, pub schema.Publication) error {
	pub.Stale = func() bool { return s.cfg.Ledger.Look(&o.Shipment, o.EventID).Verdict == schema.Shipped }
	err := s.cfg.Publisher.Publish(ctx, pub)
	if err == nil {
		err = s.cfg.Ledger.Refresh(ctx, &o.Shipment)
	}
	if pub.Stale() {
		return errCorrected
	}
	return err
}

// attemptsOf returns the attempts that the event of an outcome tells of. Inside a
// JSON string quotes are escaped, so the field can be found without decoding the
// event, which would take a tenth of all the time that an order needs.
func attemptsOf(o schema.Outcome) int {
	_, rest, _ := bytes.Cut(o.Event, []byte(`"attempts":`))
	n := 0
	for _, digit := range rest {
		if digit < '0' || digit > '9' {
			break
		}
		n = 10*n + int(digit-'0')
	}
	return n
}

// bury sends a record that is no packed event to the dead letters.
func (s *Shipper) bury(ctx context.Context, rec *schema.Record, why error) error {
	reason, detail := schema.ReasonNotJSON, why.Error()
	if e, ok := errors.AsType[*schema.NotPackedError](why); ok {
		reason, detail = e.Reason, e.Detail
	}
	if err := s.cfg.Publisher.Bury(ctx, rec, reason, detail); err != nil {
		return err
	}
	traceBurial(trace.SpanFromContext(ctx), reason)
	s.buried.Add(1)
	s.metrics.finished.WithLabelValues(verdictDeadLettered, "").Inc()
	s.cfg.Logger.WarnContext(ctx, "record dead-lettered", "partition", rec.Partition, "offset", rec.Offset, "reason", reason)
	return nil
}

func (o *order) source() schema.Source {
	return schema.Source{Topic: o.rec.Topic, Partition: o.rec.Partition, Offset: o.rec.Offset, EventID: o.EventID}
}

func refused(a schema.Answer) *schema.Failure {
	return &schema.Failure{
		Reason: a.Reason, Class: a.Class, Advice: a.Advice,
		Redrivable: a.Redrivable, StopParcel: a.StopParcel,
	}
}

func invalid(violations []schema.Violation) *schema.Failure {
	return &schema.Failure{
		Reason: reasonInvalid, Class: classInvalid, Redrivable: true, Violations: violations,
		Advice: "The event breaks the rules named in violations and was not sent; correct it and pack the order again.",
	}
}

func tooOld() *schema.Failure {
	return &schema.Failure{
		Reason: reasonBeyondHorizon, Class: classNeedsHuman, Redrivable: true, MaybeShipped: true,
		Advice: "The event is older than the ledger remembers, so it was not sent; look the order up and redrive it if it was never shipped.",
	}
}

func gaveUp() *schema.Failure {
	return &schema.Failure{
		Reason: reasonUnknown, Class: classNeedsHuman, Redrivable: true, MaybeShipped: true,
		Advice: "A call was made whose outcome is not known; look the order up before it is sent again.",
	}
}

func lost() *schema.Failure {
	return &schema.Failure{
		Reason: reasonUnknown, Class: classNeedsHuman, Redrivable: true, MaybeShipped: true,
		Advice: "The ledger has lost records of that time, so a call may have been made that it does not know of; look the order up and redrive it if it was never shipped.",
	}
}

// lingering returns a context that ends grace after its parent has.
func lingering(parent context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(parent))
	timer := time.AfterFunc(math.MaxInt64, func() { cancel(context.Cause(parent)) })
	stop := context.AfterFunc(parent, func() { timer.Reset(grace) })
	return ctx, func() {
		stop()
		timer.Stop()
		cancel(context.Canceled)
	}
}

// Verdicts of a finished packed record beyond those of an outcome, as metric
// labels.
const (
	verdictInvalid      = "invalid"
	verdictDeadLettered = "dead_lettered"
	verdictSkipped      = "skipped"
)

// What a call for an order in doubt has told, as metric labels.
const (
	// toldConfirmed means that an earlier attempt had shipped the order.
	toldConfirmed = "confirmed"
	// toldShipped means that only this call has.
	toldShipped = "shipped"
	// toldFailed means that the order has failed all the same.
	toldFailed = "failed"
)

type shipperMetrics struct {
	finished   *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	repeated   prometheus.Counter
	reconciled *prometheus.CounterVec
}

func newShipperMetrics(reg prometheus.Registerer, topic string, classes []string) *shipperMetrics {
	m := &shipperMetrics{
		finished: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name:        "packship_events_finished_total",
			Help:        "Packed records seen through to the end, by what was published for them.",
			ConstLabels: prometheus.Labels{"topic": topic},
		}, []string{"verdict", "class"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "packship_end_to_end_duration_seconds",
			Help:    "Time from a packed record's timestamp to the acknowledgement of its result.",
			Buckets: []float64{0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200, 86400},
		}, []string{"verdict"}),
		repeated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "packship_events_repeated_total",
			Help: "Packed records of which the outcome was known when they came, so that it was only published again.",
		}),
		reconciled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "packship_reconciliations_total",
			Help: "Orders in doubt for which a further call was answered for good, by what that told.",
		}, []string{"result"}),
	}
	reg.MustRegister(m.finished, m.duration, m.repeated, m.reconciled)
	for _, result := range []string{toldConfirmed, toldShipped, toldFailed} {
		m.reconciled.WithLabelValues(result)
	}
	for _, class := range slices.Concat(classes, []string{classNeedsHuman}) {
		m.finished.WithLabelValues(string(schema.Failed), class)
	}
	m.finished.WithLabelValues(string(schema.Shipped), "")
	for _, verdict := range []schema.Verdict{schema.Shipped, schema.Failed} {
		m.duration.WithLabelValues(string(verdict))
	}
	m.finished.WithLabelValues(verdictInvalid, classInvalid)
	m.finished.WithLabelValues(verdictDeadLettered, "")
	m.finished.WithLabelValues(verdictSkipped, "")
	return m
}
