package upstream

import (
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"packship/schema"
)

// metrics are the counters of all accounts. Every series exists from the start,
// so that the first fault is a change and not a beginning.
type metrics struct {
	calls        *prometheus.CounterVec
	duration     *prometheus.HistogramVec
	inFlight     *prometheus.GaugeVec
	breaker      *prometheus.GaugeVec
	throttled    *prometheus.CounterVec
	slotWait     *prometheus.HistogramVec
	window       *prometheus.GaugeVec
	rate         *prometheus.GaugeVec
	withheld     *prometheus.CounterVec
	balance      *prometheus.GaugeVec
	halted       *prometheus.GaugeVec
	parked       *prometheus.GaugeVec
	unreachable  *prometheus.CounterVec
	unrecognised *prometheus.CounterVec
	mismatches   prometheus.Counter
	noToken      *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer, accounts []Account) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "packship_" + name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "packship_" + name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "packship_" + name, Help: help, Buckets: buckets}, labels)
	}
	m := &metrics{
		calls: counter("calls_total", "Calls that were sent to the shipping API, by what they did and the class of the answer.", "account", "outcome", "class"),
		duration: histogram("call_duration_seconds", "Time from the first byte of a call to the end of its answer.",
			[]float64{0.01, 0.05, 0.1, 0.25, 0.5, 0.8, 1, 1.2, 1.5, 2, 3, 5, 10, 15, 30}, "account", "outcome"),
		inFlight:  gauge("calls_in_flight", "Calls that were sent and are not answered yet.", "account"),
		breaker:   gauge("breaker_state", "State of the circuit breaker: 0 closed, 1 half-open, 2 open.", "account"),
		throttled: counter("throttled_total", "Answers that said that the rate is too high, by how they said it.", "account", "source"),
		slotWait: histogram("slot_wait_seconds", "Time that a call waits for its place in the rate limit once its connection stands.",
			[]float64{0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5}, "account"),
		window:       gauge("slot_window_seconds", "What the rate limit takes for one second; it grows when the API throttles.", "account"),
		rate:         gauge("rate_limit_calls_per_second", "Calls that may leave in a second for the account, those of all replicas together.", "account"),
		withheld:     counter("withheld_points_total", "Points that the API says it has charged, by whether the call followed up one without a known outcome.", "account", "charged_for"),
		balance:      gauge("balance_points", "Points that are left of the configured balance; absent for accounts without one.", "account"),
		halted:       gauge("account_halted", "1 while the account is halted for the reason.", "account", "reason"),
		parked:       gauge("shops_parked", "Shops whose orders are held, by the reason.", "reason"),
		unreachable:  counter("unreachable_total", "Calls that could not be sent because there was no connection.", "account"),
		unrecognised: counter("unrecognised_answers_total", "Answers that are in no row of the answer table.", "account"),
		mismatches: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "packship_waybill_mismatches_total", Help: "Waybill numbers that do not look like their carrier's and were sent all the same.",
		}),
	}
	m.noToken = gauge("token_file_unusable", "1 while the token file of the account cannot be used, and the last token that it held is.", "account")
	for _, c := range []prometheus.Collector{
		m.calls, m.duration, m.inFlight, m.breaker, m.throttled, m.slotWait, m.window, m.rate, m.withheld,
		m.balance, m.halted, m.parked, m.unreachable, m.unrecognised, m.mismatches, m.noToken,
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("upstream: register metrics: %w", err)
		}
	}
	for _, reason := range answers.parkReasons() {
		m.parked.WithLabelValues(reason)
	}
	for _, a := range accounts {
		m.zero(a.Name)
		m.rate.WithLabelValues(a.Name).Set(a.RatePerSecond)
	}
	return m, nil
}

// slots shows how many places of an account's rate limit are taken. It is asked
// for when it is read, since a place becomes free without anything happening.
func (*metrics) slots(reg prometheus.Registerer, account string, held func() int) error {
	err := reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "packship_slots_held", Help: "Calls that left within the last slot window; at the rate limit's number the next one waits.",
		ConstLabels: prometheus.Labels{"account": account},
	}, func() float64 { return float64(held()) }))
	if err != nil {
		return fmt.Errorf("upstream: register metrics: %w", err)
	}
	return nil
}

// zero creates the series of an account.
func (m *metrics) zero(account string) {
	for _, k := range answers.callKinds() {
		m.calls.WithLabelValues(account, k.outcome, k.class)
		m.duration.WithLabelValues(account, k.outcome)
	}
	for _, purpose := range []string{chargedForShip, chargedForRepeat} {
		m.withheld.WithLabelValues(account, purpose)
	}
	for _, vec := range []*prometheus.CounterVec{m.unreachable, m.unrecognised} {
		vec.WithLabelValues(account)
	}
	for _, vec := range []*prometheus.GaugeVec{m.inFlight, m.breaker, m.window, m.noToken} {
		vec.WithLabelValues(account)
	}
	m.slotWait.WithLabelValues(account)
	for _, source := range []throttleSource{throttleHTTP, throttleText} {
		m.throttled.WithLabelValues(account, string(source))
	}
	for _, reason := range answers.haltReasons() {
		m.halted.WithLabelValues(account, reason)
	}
}

// What points are charged for, as a metric label.
const (
	chargedForShip = "ship"
	// chargedForRepeat means that the call followed an attempt of which nobody
	// knows the outcome, which may have been charged for, too.
	chargedForRepeat = "repeat"
)

// callKind is a pair of labels of the calls metric.
type callKind struct{ outcome, class string }

// callKinds lists the pairs that can occur.
func (t *table) callKinds() []callKind {
	kinds := []callKind{
		{schema.EffectUnknown.String(), classNeedsHuman}, // no answer, an unlisted one, an unproven success
		{schema.EffectNone.String(), classNeedsHuman},    // accepted and not shipped
		{schema.EffectNone.String(), classThrottled},
		{schema.EffectNone.String(), classConfig},     // redirected
		{schema.EffectNone.String(), classPermission}, // code 204 with an unknown text
	}
	for _, r := range t.rows {
		kinds = append(kinds, callKind{r.effect.String(), r.class})
	}
	slices.SortFunc(kinds, func(a, b callKind) int {
		return slices.Compare([]string{a.outcome, a.class}, []string{b.outcome, b.class})
	})
	return slices.Compact(kinds)
}

// failureClasses lists the classes that a failed order may have.
func (t *table) failureClasses() []string {
	var classes []string
	for _, r := range t.rows {
		if r.effect != schema.EffectShipped {
			classes = append(classes, r.class)
		}
	}
	slices.Sort(classes)
	return slices.Compact(classes)
}

// haltReasons lists the reasons for which an account can be halted.
func (t *table) haltReasons() []string {
	reasons := []string{reasonRedirect, reasonCode204}
	for _, r := range t.rows {
		if r.action == actHalt {
			reasons = append(reasons, r.slug)
		}
	}
	return reasons
}

// parkReasons lists the reasons for which a shop can be parked.
func (t *table) parkReasons() []string {
	var reasons []string
	for _, r := range t.rows {
		if r.action == actPark || r.number == rowAddress || shopFaultRows[r.number] {
			reasons = append(reasons, r.slug)
		}
	}
	slices.Sort(reasons)
	return slices.Compact(reasons)
}

// called notes an answered call. Doubt is true if it followed an attempt of which
// nobody knows the outcome.
func (m *metrics) called(account string, f *finding, took time.Duration, doubt bool) {
	m.calls.WithLabelValues(account, f.Effect.String(), f.Class).Inc()
	m.duration.WithLabelValues(account, f.Effect.String()).Observe(took.Seconds())
	if f.unrecognised {
		m.unrecognised.WithLabelValues(account).Inc()
	}
	if f.source != "" {
		m.throttled.WithLabelValues(account, string(f.source)).Inc()
	}
	if f.Exchange != nil && f.Exchange.Withheld > 0 {
		purpose := chargedForShip
		if doubt {
			purpose = chargedForRepeat
		}
		m.withheld.WithLabelValues(account, purpose).Add(float64(f.Exchange.Withheld))
	}
}
