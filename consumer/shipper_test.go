package consumer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"packship/schema"
)

// memoryLedger is a ledger of one process and one shipment, with the rules of
// the real one: it knows what a claim, a takeover, a release and an outcome do.
type memoryLedger struct {
	mu       sync.Mutex // guards all but the hooks
	standing schema.Standing
	answered map[string]schema.Outcome // by event id
	shipped  *schema.Outcome
	attempts int
	log      []string
	changed  chan struct{}
	// beforeClaim runs before a claim is decided, as a rival that is faster.
	beforeClaim func()
	// claimErrs are what the first claims come to.
	claimErrs  []error
	settleErr  error
	releaseErr error // of the next release, which goes on in the background
	// parts and doubtful are the other shipments of the order.
	parts, doubtful []schema.Shipment
	// parcel is another order with the same waybill number, and parcelOf the
	// mark of its group; group is that of the success.
	parcel, parcelOf, group string
	// paid is what each release and outcome said that the order has cost.
	paid []schema.Charge
	// told is what each takeover said that the attempt before was answered.
	told []string
	// unread is a success that stands in the ledger and was not read yet;
	// refreshed counts the calls of Refresh.
	unread    *schema.Outcome
	refreshed int
	hang      bool // Refresh waits for the end of its context
	// storedErrs are what Stored answers before it answers.
	storedErrs []error
}

func newMemoryLedger() *memoryLedger {
	return &memoryLedger{
		standing: schema.Standing{Round: 1}, answered: map[string]schema.Outcome{}, changed: make(chan struct{}),
	}
}

// note logs a record and wakes those who wait. The caller holds mu.
func (l *memoryLedger) note(format string, args ...any) {
	l.log = append(l.log, fmt.Sprintf(format, args...))
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *memoryLedger) Look(_ *schema.Shipment, event string) schema.Standing {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.standing
	if _, ok := l.answered[event]; ok {
		st.State, st.Verdict = schema.StateSettled, schema.Failed
	}
	if l.shipped != nil {
		st.State, st.Verdict = schema.StateSettled, schema.Shipped
	}
	return st
}

func (l *memoryLedger) Refresh(ctx context.Context, _ *schema.Shipment) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refreshed++
	if l.hang {
		<-ctx.Done()
	}
	if l.unread != nil {
		l.shipped, l.unread = l.unread, nil
		l.note("late success read")
	}
	return ctx.Err()
}

func (l *memoryLedger) ShippedParts(context.Context, *schema.Shipment) ([]schema.Shipment, error) {
	return l.parts, nil
}

func (l *memoryLedger) InDoubt(context.Context, *schema.Shipment) ([]schema.Shipment, error) {
	return l.doubtful, nil
}

func (l *memoryLedger) OtherGroup(_ context.Context, _ *schema.Shipment, group string) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if group == l.parcelOf {
		return "", nil
	}
	return l.parcel, nil
}

func (l *memoryLedger) Wait(ctx context.Context, _ *schema.Shipment, _ string, _ schema.Standing, until time.Time) error {
	l.mu.Lock()
	changed := l.changed
	l.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(until)):
	case <-changed:
	}
	return nil
}

func (l *memoryLedger) Claim(_ context.Context, _ *schema.Shipment, _, prev, answer string) (schema.Hold, bool, error) {
	if l.beforeClaim != nil {
		l.beforeClaim()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.claimErrs) > 0 {
		err := l.claimErrs[0]
		l.claimErrs = l.claimErrs[1:]
		return schema.Hold{}, false, err
	}
	if l.standing.Holder != prev {
		l.note("claim lost")
		return schema.Hold{}, false, nil
	}
	l.attempts++
	id := fmt.Sprintf("me-%d", l.attempts)
	if prev != "" {
		l.told = append(l.told, answer)
		l.standing.Doubt = true
		l.standing.Attempts++
		l.note("takeover of %s", prev)
	} else {
		l.note("intent")
	}
	l.standing.State, l.standing.Holder, l.standing.Mine = schema.StateHeld, id, true
	l.standing.FreeAt = time.Now().Add(time.Minute)
	return schema.Hold{
		Attempt: id, Round: l.standing.Round, Prior: l.standing.Attempts, Doubt: l.standing.Doubt,
		StartBy: time.Now().Add(5 * time.Second),
	}, true, nil
}

func (l *memoryLedger) Release(_ context.Context, _ *schema.Shipment, h schema.Hold, why string, paid schema.Charge) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.standing.Holder == h.Attempt {
		l.standing.State, l.standing.Holder = schema.StateOpen, ""
	}
	l.paid = append(l.paid, paid)
	l.note("release: %s", why)
	err := l.releaseErr
	l.releaseErr = nil
	return err
}

func (l *memoryLedger) Settle(ctx context.Context, _ *schema.Shipment, event string, h schema.Hold, o schema.Settlement) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.settleErr != nil {
		return l.settleErr
	}
	l.paid = append(l.paid, o.Paid)
	switch {
	case l.shipped != nil:
	case o.Verdict == schema.Shipped:
		l.shipped, l.group = &o.Outcome, o.Group
	case l.standing.Holder == h.Attempt:
		l.answered[event] = o.Outcome
		l.standing.State, l.standing.Holder, l.standing.Round = schema.StateOpen, "", l.standing.Round+1
		l.standing.Attempts++
		l.standing.Doubt = o.MaybeShipped
	}
	l.note("outcome: %s", o.Verdict)
	return nil
}

func (l *memoryLedger) Refuse(_ context.Context, _ *schema.Shipment, event string, o schema.Outcome) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.standing.State == schema.StateOpen {
		l.answered[event] = o
		l.standing.Round++
	}
	l.note("refused: %s", o.Reason)
	return nil
}

func (l *memoryLedger) Stored(_ context.Context, _ *schema.Shipment, event string) (schema.Outcome, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.storedErrs) > 0 {
		err := l.storedErrs[0]
		l.storedErrs = l.storedErrs[1:]
		return schema.Outcome{}, err
	}
	if l.shipped != nil {
		return *l.shipped, nil
	}
	o, ok := l.answered[event]
	if !ok {
		return schema.Outcome{}, errors.New("no outcome")
	}
	return o, nil
}

// scriptedUpstream answers the calls in order, the last answer for ever.
type scriptedUpstream struct {
	answers    []schema.Answer
	violations []schema.Violation
	foreign    bool
	calls      int
	at         []time.Time
	holds      []schema.Hold // what the calls were made for
	onSend     func()
	onAdmit    func()
	admitted   int
	again      []bool // what Admit was told
	left       int
}

func (u *scriptedUpstream) Serves(*schema.Packed) bool                   { return !u.foreign }
func (u *scriptedUpstream) Validate(*schema.Packed) []schema.Violation   { return u.violations }
func (*scriptedUpstream) Blocked(*schema.Packed) (<-chan struct{}, bool) { return nil, false }

func (u *scriptedUpstream) Admit(ctx context.Context, _ *schema.Packed, again bool) (Turn, error) {
	u.again = append(u.again, again)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	u.admitted++
	if u.onAdmit != nil {
		u.onAdmit()
	}
	return u, nil
}
func (u *scriptedUpstream) Leave() { u.left++ }

func (u *scriptedUpstream) Send(gate context.Context, hold schema.Hold) schema.Answer {
	if gate.Err() != nil || time.Now().After(hold.StartBy) {
		return schema.Answer{Action: schema.ActHold, Reason: "not_sent"}
	}
	if u.onSend != nil {
		u.onSend()
	}
	a := u.answers[min(u.calls, len(u.answers)-1)]
	u.calls++
	u.at = append(u.at, time.Now())
	u.holds = append(u.holds, hold)
	return a
}

type recordingPublisher struct {
	published []schema.Publication
	buried    []string
	err       error
	// beforeTry runs before each of the tries to publish, which the publication
	// may become stale by.
	beforeTry func()
}

func (p *recordingPublisher) Publish(_ context.Context, pub schema.Publication) error {
	if p.err != nil {
		return p.err
	}
	if p.beforeTry != nil {
		p.beforeTry()
	}
	if pub.Stale != nil && pub.Stale() {
		return errors.New("stale")
	}
	p.published = append(p.published, pub)
	return nil
}

func (p *recordingPublisher) Bury(_ context.Context, _ *schema.Record, reason, _ string) error {
	p.buried = append(p.buried, reason)
	return p.err
}

// The answers that the tests speak of.
var (
	yes     = schema.Answer{Effect: schema.EffectShipped, Action: schema.ActSucceed, Reached: true, Answered: true, Reason: "ok", Exchange: &schema.Exchange{HTTPStatus: 200, Msg: "成功", Withheld: 1}}
	no      = schema.Answer{Effect: schema.EffectNone, Action: schema.ActFail, Reached: true, Answered: true, Reason: "waybill_already_used", Class: "waybill_rejected", Redrivable: true}
	already = schema.Answer{Effect: schema.EffectNone, Action: schema.ActReconcile, Reached: true, Answered: true, Reason: "order_status_wrong", Class: "order_state", StopParcel: true}
	silence = schema.Answer{Effect: schema.EffectUnknown, Action: schema.ActRetry, Reached: true, Counted: true, Reason: "outcome_unknown", Class: "needs_human", MaxRetries: 3}
	busy    = schema.Answer{Effect: schema.EffectUnknown, Action: schema.ActRetry, Reached: true, Counted: true, Answered: true, Reason: "system_exception", Class: "transient", MaxRetries: 1}
	later   = schema.Answer{Effect: schema.EffectNone, Action: schema.ActHold, Reason: "throttled"}
)

func uncounted(a schema.Answer) schema.Answer {
	a.Counted = false
	return a
}

type bench struct {
	ledger    *memoryLedger
	upstream  *scriptedUpstream
	publisher *recordingPublisher
	shipper   *Shipper
	gate      *Gate
}

func newBench(change func(*ShipperConfig), answers ...schema.Answer) *bench {
	b := &bench{ledger: newMemoryLedger(), upstream: &scriptedUpstream{answers: answers}, publisher: &recordingPublisher{}, gate: &Gate{}}
	b.openGate()
	cfg := ShipperConfig{
		Ledger: b.ledger, Upstream: b.upstream, Publisher: b.publisher,
		Horizon: 7 * 24 * time.Hour, RetryMax: 3, Settle: 30 * time.Second,
		Backoff: func(n int) time.Duration { return time.Duration(n) * time.Second },
		Grace:   10 * time.Second,
		Logger:  slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	}
	if change != nil {
		change(&cfg)
	}
	b.shipper = NewShipper(cfg)
	return b
}

func (b *bench) openGate()  { b.gate.open(context.Background()) }
func (b *bench) closeGate() { b.gate.shut(context.Background()) }

func (b *bench) handle(t *testing.T, ctx context.Context, event string) error { //nolint:revive // t first reads better in a helper
	t.Helper()
	rec := packedRecord(event, time.Now())
	p, err := schema.DecodePacked(rec)
	return b.shipper.Handle(ctx, b.gate, rec, p, err)
}

func packedRecord(event string, at time.Time) *schema.Record {
	return &schema.Record{
		Topic: "in", Partition: 2, Offset: 41, Time: at,
		Value:   []byte(`{"event_id":"` + event + `","shop_id":"7","tid":2345678901234567891,"out_sid":"SF1234567890123","company_code":"SF"}`),
		Headers: []schema.Header{{Key: "traceparent", Value: []byte("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")}},
	}
}

// TestShipperDecides runs one packed event against scripted answers and compares
// what is written to the ledger and what is published.
func TestShipperDecides(t *testing.T) {
	park := func(c *ShipperConfig) { c.Park = true }
	heldByDead := func(b *bench) {
		b.ledger.standing = schema.Standing{State: schema.StateHeld, Round: 1, Holder: "dead-1", FreeAt: time.Now().Add(50 * time.Second)}
	}
	tests := map[string]struct {
		change   func(*ShipperConfig)
		prepare  func(*bench)
		answers  []schema.Answer
		log      []string
		calls    int
		verdict  schema.Verdict
		reason   string
		maybe    bool
		attempts int
		recon    bool
	}{
		"yes": {
			answers: []schema.Answer{yes}, calls: 1, verdict: schema.Shipped, attempts: 1,
			log: []string{"intent", "outcome: shipped"},
		},
		"no": {
			answers: []schema.Answer{no}, calls: 1, verdict: schema.Failed, reason: "waybill_already_used", attempts: 1,
			log: []string{"intent", "outcome: failed"},
		},
		"already shipped by somebody else": {
			answers: []schema.Answer{already}, calls: 1, verdict: schema.Failed, reason: "order_status_wrong", attempts: 1,
			log: []string{"intent", "outcome: failed"},
		},
		"silence, then already shipped, is ours": {
			answers: []schema.Answer{silence, already}, calls: 2, verdict: schema.Shipped, attempts: 2, recon: true,
			log: []string{"intent", "takeover of me-1", "outcome: shipped"},
		},
		"silence, then yes": {
			answers: []schema.Answer{silence, yes}, calls: 2, verdict: schema.Shipped, attempts: 2,
			log: []string{"intent", "takeover of me-1", "outcome: shipped"},
		},
		"silence, then no, may be shipped": {
			answers: []schema.Answer{silence, no}, calls: 2, verdict: schema.Failed, reason: "waybill_already_used", maybe: true, attempts: 2,
			log: []string{"intent", "takeover of me-1", "outcome: failed"},
		},
		"silence for ever": {
			answers: []schema.Answer{silence}, calls: 4, verdict: schema.Failed, reason: "outcome_unknown", maybe: true, attempts: 4,
			log: []string{"intent", "takeover of me-1", "takeover of me-2", "takeover of me-3", "outcome: failed"},
		},
		"the row's own bound is smaller": {
			answers: []schema.Answer{busy}, calls: 2, verdict: schema.Failed, reason: "system_exception", maybe: true, attempts: 2,
			log: []string{"intent", "takeover of me-1", "outcome: failed"},
		},
		"silence that is not asked about again may be shipped": {
			change:  func(c *ShipperConfig) { c.RetryMax = 0 },
			answers: []schema.Answer{silence}, calls: 1, verdict: schema.Failed, reason: "outcome_unknown", maybe: true, attempts: 1,
			log: []string{"intent", "outcome: failed"},
		},
		"an answer that proves nothing may be shipped": {
			answers: []schema.Answer{{Effect: schema.EffectUnknown, Action: schema.ActFail, Reached: true, Answered: true, Reason: "unlisted_code", Class: "needs_human"}},
			calls:   1, verdict: schema.Failed, reason: "unlisted_code", maybe: true, attempts: 1,
			log: []string{"intent", "outcome: failed"},
		},
		"an outage uses up no retries": {
			answers: []schema.Answer{uncounted(silence), uncounted(silence), uncounted(silence), uncounted(silence), uncounted(silence), uncounted(silence), already},
			calls:   7, verdict: schema.Shipped, attempts: 7, recon: true,
			log: []string{"intent", "takeover of me-1", "takeover of me-2", "takeover of me-3", "takeover of me-4", "takeover of me-5", "takeover of me-6", "outcome: shipped"},
		},
		"turned away, then yes": {
			answers: []schema.Answer{later, later, yes}, calls: 3, verdict: schema.Shipped, attempts: 1,
			log: []string{"intent", "release: throttled", "intent", "release: throttled", "intent", "outcome: shipped"},
		},
		"turned away, then already shipped, is not ours": {
			answers: []schema.Answer{later, already}, calls: 2, verdict: schema.Failed, reason: "order_status_wrong", attempts: 1,
			log: []string{"intent", "release: throttled", "intent", "outcome: failed"},
		},
		"policy park after silence": {
			change: park, answers: []schema.Answer{silence}, calls: 1, verdict: schema.Failed, reason: "outcome_unknown", maybe: true, attempts: 1,
			log: []string{"intent", "outcome: failed"},
		},
		"a dead holder is taken over in doubt": {
			prepare: heldByDead, answers: []schema.Answer{already}, calls: 1, verdict: schema.Shipped, attempts: 2, recon: true,
			log: []string{"takeover of dead-1", "outcome: shipped"},
		},
		"policy park calls for no dead holder's order": {
			change: park, prepare: heldByDead, answers: []schema.Answer{yes}, calls: 0, verdict: schema.Failed, reason: "outcome_unknown", maybe: true, attempts: 1,
			log: []string{"takeover of dead-1", "outcome: failed"},
		},
		"a rival that claims first is waited for": {
			prepare: func(b *bench) {
				b.ledger.beforeClaim = func() {
					b.ledger.beforeClaim = nil
					b.ledger.standing = schema.Standing{State: schema.StateHeld, Round: 1, Holder: "rival", FreeAt: time.Now().Add(time.Minute)}
					time.AfterFunc(time.Second, func() {
						b.ledger.mu.Lock()
						defer b.ledger.mu.Unlock()
						b.ledger.shipped = &schema.Outcome{Verdict: schema.Shipped, ResultID: "rival's", Event: json.RawMessage(`{"attempts":1,"reconciled":false}`)}
						b.ledger.note("rival ships")
					})
				}
			},
			answers: []schema.Answer{yes}, calls: 0, verdict: schema.Shipped, attempts: 1,
			log: []string{"claim lost", "rival ships"},
		},
		"a process that was frozen before its claim makes no call for it": {
			prepare: func(b *bench) {
				const asleep = 3 * time.Second
				b.gate.alive(asleep)
				b.ledger.beforeClaim = func() {
					b.ledger.beforeClaim = nil
					time.Sleep(asleep + time.Second)
					time.AfterFunc(time.Second, func() {
						b.gate.alive(asleep)
						b.openGate()
					})
				}
			},
			answers: []schema.Answer{yes}, calls: 1, verdict: schema.Shipped, attempts: 1,
			log: []string{"intent", "release: not_sent", "intent", "outcome: shipped"},
		},
		"an event that breaks a rule costs nothing": {
			prepare: func(b *bench) {
				b.upstream.violations = []schema.Violation{{Rule: "V05", Field: "out_sid", Message: "no"}}
			},
			answers: []schema.Answer{yes}, calls: 0, verdict: schema.Failed, reason: "local_validation",
			log: []string{"refused: local_validation"},
		},
		"a broken rule after a round in doubt leaves the doubt": {
			prepare: func(b *bench) {
				b.ledger.standing = schema.Standing{Round: 2, Attempts: 1, Doubt: true}
				b.upstream.violations = []schema.Violation{{Rule: "V05", Field: "out_sid", Message: "no"}}
			},
			answers: []schema.Answer{yes}, calls: 0, verdict: schema.Failed, reason: "local_validation", maybe: true, attempts: 1,
			log: []string{"refused: local_validation"},
		},
		"a broken rule after somebody's call leaves a doubt": {
			prepare: func(b *bench) {
				heldByDead(b)
				b.upstream.violations = []schema.Violation{{Rule: "V05", Field: "out_sid", Message: "no"}}
			},
			answers: []schema.Answer{yes}, calls: 0, verdict: schema.Failed, reason: "local_validation", maybe: true, attempts: 1,
			log: []string{"takeover of dead-1", "outcome: failed"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(tt.change, tt.answers...)
				if tt.prepare != nil {
					tt.prepare(b)
				}
				if err := b.handle(t, t.Context(), "E1"); err != nil {
					t.Fatalf("Handle: %v", err)
				}
				if diff := cmp.Diff(tt.log, b.ledger.log); diff != "" {
					t.Errorf("ledger (-want +got):\n%s", diff)
				}
				if b.upstream.calls != tt.calls {
					t.Errorf("%d calls, want %d", b.upstream.calls, tt.calls)
				}
				if len(b.publisher.published) != 1 {
					t.Fatalf("%d publications, want 1", len(b.publisher.published))
				}
				o := b.publisher.published[0].Outcome
				if o.Verdict != tt.verdict || o.Reason != tt.reason || o.MaybeShipped != tt.maybe {
					t.Errorf("published %s %q maybe=%t, want %s %q maybe=%t", o.Verdict, o.Reason, o.MaybeShipped, tt.verdict, tt.reason, tt.maybe)
				}
				var r schema.Result
				if err := json.Unmarshal(o.Event, &r); err != nil {
					t.Fatalf("result %s: %v", o.Event, err)
				}
				if r.Attempts != tt.attempts || r.Reconciled != tt.recon {
					t.Errorf("result says attempts=%d reconciled=%t, want %d %t", r.Attempts, r.Reconciled, tt.attempts, tt.recon)
				}
				if b.upstream.admitted > 0 && b.upstream.left != b.upstream.admitted {
					t.Errorf("%d turns taken, %d left", b.upstream.admitted, b.upstream.left)
				}
			})
		})
	}
}

// TestShipperGivesAnUnansweredCallItsTime: after silence the next call is not
// made before the first can no longer be executed; after an answer it is.
func TestShipperGivesAnUnansweredCallItsTime(t *testing.T) {
	for name, tt := range map[string]struct {
		first schema.Answer
		pause time.Duration
	}{
		"no answer": {silence, 30 * time.Second},
		"an answer": {busy, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(nil, tt.first, yes)
				if err := b.handle(t, t.Context(), "E1"); err != nil {
					t.Fatal(err)
				}
				if got := b.upstream.at[1].Sub(b.upstream.at[0]); got != tt.pause {
					t.Errorf("second call %v after the first, want %v", got, tt.pause)
				}
				if got := b.upstream.holds[1].StartBy.Sub(b.upstream.at[1]); got != 5*time.Second {
					t.Errorf("second call may start for %v, want a fresh 5s", got)
				}
			})
		})
	}
}

// TestShipperTellsWhatWasPaid: what the calls of an order have cost stands in the
// ledger, each point once, whichever record is the next one.
func TestShipperTellsWhatWasPaid(t *testing.T) {
	costs := func(a schema.Answer, points int64) schema.Answer {
		a.Charge = schema.Charge{Account: "north", Points: points}
		return a
	}
	north := func(points int64) schema.Charge { return schema.Charge{Account: "north", Points: points} }
	for name, tt := range map[string]struct {
		answers []schema.Answer
		want    []schema.Charge
	}{
		"a success":                  {[]schema.Answer{costs(yes, 1)}, []schema.Charge{north(1)}},
		"a refusal":                  {[]schema.Answer{costs(no, 3)}, []schema.Charge{north(3)}},
		"a refusal that was free":    {[]schema.Answer{costs(no, 0)}, []schema.Charge{{}}},
		"turned away, for money":     {[]schema.Answer{costs(later, 2), costs(yes, 1)}, []schema.Charge{north(2), north(1)}},
		"turned away, free":          {[]schema.Answer{costs(later, 0), costs(yes, 1)}, []schema.Charge{{}, north(1)}},
		"an unknown outcome is paid": {[]schema.Answer{costs(busy, 1), costs(already, 1)}, []schema.Charge{north(2)}},
		"silence has told no price":  {[]schema.Answer{costs(silence, 0), costs(yes, 1)}, []schema.Charge{north(1)}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(nil, tt.answers...)
				if err := b.handle(t, t.Context(), "E1"); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, b.ledger.paid); diff != "" {
					t.Errorf("paid (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestShipperTellsOnceWhatWasPaid: a release that is not known to stand in the
// ledger is brought there in the background, with what was paid.
func TestShipperTellsOnceWhatWasPaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turnedAway, shipped := later, yes
		turnedAway.Charge = schema.Charge{Account: "north", Points: 2}
		shipped.Charge = schema.Charge{Account: "north", Points: 1}
		b := newBench(nil, turnedAway, shipped)
		b.ledger.releaseErr = errors.New("the log was cut off")
		if err := b.handle(t, t.Context(), "E1"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]schema.Charge{turnedAway.Charge, shipped.Charge}, b.ledger.paid); diff != "" {
			t.Errorf("paid (-want +got):\n%s", diff)
		}
	})
}

// TestShipperTellsWhatWasAnswered: what the API said to an attempt whose outcome is
// unknown stands in the ledger with the attempt that follows it up. What it said to
// another process nobody knows.
func TestShipperTellsWhatWasAnswered(t *testing.T) {
	spoken := busy
	spoken.Exchange = &schema.Exchange{HTTPStatus: 200, Code: 614, Msg: "系统异常"}
	for name, tt := range map[string]struct {
		prepare func(*bench)
		answers []schema.Answer
		want    []string
	}{
		"an answer":   {nil, []schema.Answer{spoken, yes}, []string{"HTTP 200, code 614, 系统异常"}},
		"silence":     {nil, []schema.Answer{silence, yes}, []string{"no answer that could be read"}},
		"no takeover": {nil, []schema.Answer{later, yes}, nil},
		"another's": {func(b *bench) {
			b.ledger.standing = schema.Standing{State: schema.StateHeld, Round: 1, Holder: "dead-1", FreeAt: time.Now()}
		}, []schema.Answer{spoken, yes}, []string{"", "HTTP 200, code 614, 系统异常"}},
		"another's after ours": {func(b *bench) {
			claims := 0
			b.ledger.beforeClaim = func() {
				if claims++; claims == 2 {
					b.ledger.mu.Lock()
					defer b.ledger.mu.Unlock()
					b.ledger.standing.Holder, b.ledger.standing.FreeAt = "dead-2", time.Now()
				}
			}
		}, []schema.Answer{spoken, yes}, []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(nil, tt.answers...)
				if tt.prepare != nil {
					tt.prepare(b)
				}
				if err := b.handle(t, t.Context(), "E1"); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, b.ledger.told); diff != "" {
					t.Errorf("told (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestShipperLeavesItsTurn: an order that the ledger does not take at present gives
// its turn back, and rests before it wants another: those behind it may be in a
// partition of the ledger that works.
func TestShipperLeavesItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(nil, yes)
		away := errors.New("no leader")
		b.ledger.claimErrs = []error{away, away}
		var turns []time.Duration
		begin := time.Now()
		b.upstream.onAdmit = func() {
			if b.upstream.left != len(turns) {
				t.Errorf("the order has %d turns and has left %d", len(turns), b.upstream.left)
			}
			turns = append(turns, time.Since(begin))
			o := b.shipper.UnderWay(func(*UnderWay) bool { return true })[0]
			if again := len(turns) > 1; again != (o.Trouble != "") || again && !o.TroubledSince.Equal(begin) {
				t.Errorf("at turn %d: trouble %q since %v", len(turns), o.Trouble, o.TroubledSince)
			}
		}
		if err := b.handle(t, t.Context(), "E1"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]time.Duration{0, mishapPause, 2 * mishapPause}, turns); diff != "" {
			t.Errorf("its turns came after (-want +got):\n%s", diff)
		}
		if b.upstream.calls != 1 || len(b.publisher.published) != 1 {
			t.Errorf("%d calls, %d results, want one each", b.upstream.calls, len(b.publisher.published))
		}
	})
}

// TestShipperGivesUpInItsTime: an order that is to fail without a call waits for the
// ledger as one that is to be called for. Nobody has to see to it, so it is no error.
func TestShipperGivesUpInItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b := newBench(func(c *ShipperConfig) {
			c.Park, c.Logger = true, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))
		})
		begin := time.Now()
		b.ledger.standing = schema.Standing{State: schema.StateHeld, Round: 1, Holder: "dead-1", FreeAt: begin}
		b.ledger.claimErrs = []error{errors.New("no leader")}
		if err := b.handle(t, t.Context(), "E1"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != mishapPause || b.upstream.calls != 0 || len(b.publisher.published) != 1 {
			t.Errorf("took %s, %d calls, %d results; want a result after a pause, and no call", took, b.upstream.calls, len(b.publisher.published))
		}
		if log.Len() > 0 {
			t.Errorf("logged: %s", log.String())
		}
	})
}

// TestShipperLetsRetriesGoFirst: an order that had its turn, here or at a replica
// that is gone, is older than it looks to the rate limit.
func TestShipperLetsRetriesGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(nil, later, silence, yes)
		if err := b.handle(t, t.Context(), "E1"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]bool{false, true, true}, b.upstream.again); diff != "" {
			t.Errorf("comes again (-want +got):\n%s", diff)
		}
		for i, doubt := range []bool{false, false, true} {
			if got := b.upstream.holds[i].Doubt; got != doubt {
				t.Errorf("call %d: made in doubt %t, want %t", i+1, got, doubt)
			}
		}
		b = newBench(nil, yes)
		b.ledger.standing = schema.Standing{State: schema.StateHeld, Round: 1, Holder: "dead-1", FreeAt: time.Now()}
		if err := b.handle(t, t.Context(), "E1"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]bool{true}, b.upstream.again); diff != "" {
			t.Errorf("comes again after a takeover (-want +got):\n%s", diff)
		}
	})
}

// TestShipperReplays: an event that was answered is answered again with the same
// bytes and no call; a new event after a failure is a new round.
func TestShipperReplays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(nil, no, no, yes)
		for _, event := range []string{"E1", "E2", "E1", "E2", "E3", "E1", "E2", "E3"} {
			if err := b.handle(t, t.Context(), event); err != nil {
				t.Fatal(err)
			}
		}
		if b.upstream.calls != 3 {
			t.Errorf("%d calls for three events, want 3", b.upstream.calls)
		}
		bytesOf := map[string]string{}
		var ids []string
		for _, p := range b.publisher.published {
			o := p.Outcome
			if old, ok := bytesOf[o.ResultID]; ok && old != string(o.Event) {
				t.Errorf("result %s has two bodies", o.ResultID)
			}
			bytesOf[o.ResultID] = string(o.Event)
			ids = append(ids, o.ResultID)
		}
		if len(bytesOf) != 3 {
			t.Errorf("%d result ids, want 3", len(bytesOf))
		}
		if ids[0] != ids[2] || ids[1] != ids[3] || ids[0] == ids[1] {
			t.Errorf("replays of failed events gave other results: %v", ids)
		}
		if p := b.publisher.published[2]; p.InReplyTo != "E1" {
			t.Errorf("in_reply_to %q, want E1", p.InReplyTo)
		}
	})
}

// TestShipperRemembersDoubtAcrossRounds: a new event for a shipment that may
// have been shipped by an earlier round counts "already shipped" as ours.
func TestShipperRemembersDoubtAcrossRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(func(c *ShipperConfig) { c.Park = true }, silence, already)
		for _, event := range []string{"E1", "E2"} {
			if err := b.handle(t, t.Context(), event); err != nil {
				t.Fatal(err)
			}
		}
		if o := b.publisher.published[1].Outcome; o.Verdict != schema.Shipped {
			t.Errorf("second event: %s %s, want shipped", o.Verdict, o.Reason)
		}
	})
}

func TestShipperKeepsToTheHorizon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(nil, yes)
		// The second event finds a round that the first one has ended.
		for _, event := range []string{"old", "older"} {
			rec := packedRecord(event, time.Now().Add(-8*24*time.Hour))
			p, err := schema.DecodePacked(rec)
			if err := b.shipper.Handle(t.Context(), b.gate, rec, p, err); err != nil {
				t.Fatal(err)
			}
			o := b.publisher.published[len(b.publisher.published)-1].Outcome
			if b.upstream.calls != 0 || o.Reason != "beyond_horizon" || !o.MaybeShipped || o.Class != "needs_human" {
				t.Errorf("%d calls, outcome %+v; want none, beyond_horizon, maybe shipped", b.upstream.calls, o)
			}
		}
	})
}

// TestShipperStops: a stop during a call still writes down and publishes what the
// call came to; a stop during a wait does not, and says so.
func TestShipperStops(t *testing.T) {
	t.Run("during a call", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(nil, yes)
			ctx, cancel := context.WithCancel(t.Context())
			b.upstream.onSend = func() { b.closeGate(); cancel(); time.Sleep(time.Second) }
			if err := b.handle(t, ctx, "E1"); err != nil {
				t.Fatalf("Handle: %v", err)
			}
			if len(b.publisher.published) != 1 {
				t.Errorf("%d publications, want 1", len(b.publisher.published))
			}
		})
	})
	t.Run("during the wait after silence", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(nil, silence, yes)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := b.handle(t, ctx, "E1"); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("Handle: %v, want the context's error", err)
			}
			if b.upstream.calls != 1 || len(b.publisher.published) != 0 || b.ledger.standing.Holder != "me-1" {
				t.Errorf("%d calls, %d publications, holder %q; want 1, 0, me-1", b.upstream.calls, len(b.publisher.published), b.ledger.standing.Holder)
			}
		})
	})
	t.Run("while the gate is closed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(nil, yes)
			b.closeGate()
			time.AfterFunc(3*time.Second, b.openGate)
			start := time.Now()
			if err := b.handle(t, t.Context(), "E1"); err != nil {
				t.Fatal(err)
			}
			if got := b.upstream.at[0].Sub(start); got != 3*time.Second {
				t.Errorf("call after %v, want when the gate opened, after 3s", got)
			}
			if got := strings.Join(b.ledger.log, ", "); got != "intent, outcome: shipped" {
				t.Errorf("ledger: %s; want nothing while the gate was closed", got)
			}
		})
	})
	t.Run("the grace ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(nil, yes)
			ctx, cancel := context.WithCancel(t.Context())
			b.upstream.onSend = func() { cancel(); time.Sleep(time.Second) }
			b.ledger.settleErr = context.Canceled
			if err := b.handle(t, ctx, "E1"); err == nil {
				t.Fatal("Handle: nil although the outcome was not written")
			}
			if len(b.publisher.published) != 0 {
				t.Error("an outcome that is not in the ledger was published")
			}
		})
	})
}

func TestShipperPassesOverWhatIsNotItsBusiness(t *testing.T) {
	b := newBench(nil, yes)
	b.upstream.foreign = true
	if err := b.handle(t, t.Context(), "E1"); err != nil {
		t.Fatal(err)
	}
	if b.upstream.calls+len(b.publisher.published)+len(b.ledger.log) != 0 {
		t.Error("an event of another deployment's shop left a trace")
	}

	rec := &schema.Record{Topic: "in", Value: []byte(`{"shop_id":"7","tid":"0012"}`)}
	p, err := schema.DecodePacked(rec)
	if err := b.shipper.Handle(t.Context(), b.gate, rec, p, err); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{schema.ReasonTIDUnusable}, b.publisher.buried); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	if got, want := b.shipper.Counts(), (Counts{DeadLettered: 1}); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
}

// TestLateSuccess lets another replica's late answer come while a failure that
// says maybe_shipped is published.
func TestLateSuccess(t *testing.T) {
	late := &schema.Outcome{Verdict: schema.Shipped, ResultID: "late", Event: json.RawMessage(`{"attempts":1}`)}
	tests := map[string]struct {
		answer    schema.Answer
		beforeTry func(*memoryLedger)
		published []schema.Verdict
		refreshed int
	}{
		"none": {
			answer: silence, beforeTry: func(*memoryLedger) {},
			published: []schema.Verdict{schema.Failed}, refreshed: 1,
		},
		"read before the failure is sent": {
			answer:    silence,
			beforeTry: func(l *memoryLedger) { l.shipped = late },
			published: []schema.Verdict{schema.Shipped},
		},
		"read after the failure is published": {
			answer:    silence,
			beforeTry: func(l *memoryLedger) { l.unread = late },
			published: []schema.Verdict{schema.Failed, schema.Shipped}, refreshed: 1,
		},
		"not possible": {
			answer:    no,
			beforeTry: func(l *memoryLedger) { l.unread = late },
			published: []schema.Verdict{schema.Failed},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(func(c *ShipperConfig) { c.Park = true }, tt.answer)
			b.publisher.beforeTry = sync.OnceFunc(func() { tt.beforeTry(b.ledger) })
			if err := b.handle(t, t.Context(), "E1"); err != nil {
				t.Fatal(err)
			}
			var published []schema.Verdict
			for _, p := range b.publisher.published {
				published = append(published, p.Outcome.Verdict)
			}
			if diff := cmp.Diff(tt.published, published); diff != "" {
				t.Errorf("published (-want +got):\n%s", diff)
			}
			if b.upstream.calls != 1 || b.ledger.refreshed != tt.refreshed {
				t.Errorf("got %d calls and %d looks at the whole ledger, want 1 and %d", b.upstream.calls, b.ledger.refreshed, tt.refreshed)
			}
			last := tt.published[len(tt.published)-1]
			if got, want := b.shipper.Counts(), (Counts{Shipped: int64(count(last, schema.Shipped)), Failed: int64(count(last, schema.Failed))}); got != want {
				t.Errorf("counted %+v, want %+v", got, want)
			}
			if n := testutil.ToFloat64(b.shipper.metrics.repeated); n != 0 {
				t.Errorf("counted %g repeated events", n)
			}
		})
	}
}

func count(got, want schema.Verdict) int {
	if got == want {
		return 1
	}
	return 0
}

// TestLateSuccessNotLookedFor ends the order's time while the ledger does not
// answer: what was published may not be the last word, so the record is not done.
func TestLateSuccessNotLookedFor(t *testing.T) {
	b := newBench(func(c *ShipperConfig) { c.Park, c.Grace = true, 0 }, silence)
	ctx, cancel := context.WithCancel(t.Context())
	b.publisher.beforeTry = cancel
	b.ledger.hang = true
	if err := b.handle(t, ctx, "E1"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the context", err)
	}
	if len(b.publisher.published) != 1 {
		t.Errorf("got %d publications, want 1", len(b.publisher.published))
	}
}
