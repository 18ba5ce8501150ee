package consumer

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"packship/schema"
)

// Step is what an order that is under way does or waits for.
type Step string

// The steps of an order.
const (
	StepGate    Step = "gate"    // waits until this process may start calls
	StepTurn    Step = "turn"    // waits for its account, its shop and its place in the rate
	StepClaim   Step = "claim"   // writes its intent to the ledger and reads it back
	StepCall    Step = "call"    // the call is about to leave or under way
	StepSettle  Step = "settle"  // writes what came of it to the ledger, or reads it
	StepRest    Step = "rest"    // rests before its next attempt
	StepOther   Step = "other"   // waits until another process's attempt can no longer take effect
	StepPublish Step = "publish" // waits until the result topic has the result
	StepBury    Step = "bury"    // waits until the dead letters have the record
)

// UnderWay is where an order stands that a [Shipper] is at work on.
type UnderWay struct {
	Partition int    `json:"partition"`
	Offset    int64  `json:"offset"`
	TID       string `json:"tid"` // "" if the record is no packed event
	ShopID    string `json:"shop_id"`
	// Time is the record's own.
	Time time.Time `json:"time"`
	Step Step      `json:"step"`
	// Since is when the step began, and Until when it ends by itself, zero if
	// that is not known.
	Since time.Time `json:"since"`
	Until time.Time `json:"until,omitzero"`
	// Trouble is what keeps the order up that should not be, "" if nothing
	// does, and TroubledSince when it began.
	Trouble       string    `json:"trouble,omitempty"`
	TroubledSince time.Time `json:"troubled_since,omitzero"`
}

// underWay knows the orders that a Shipper is at work on. The zero value is
// ready.
type underWay struct {
	mu     sync.Mutex
	orders map[*schema.Record]*UnderWay // guarded by mu, with what it points to
}

// enter takes an order in. leave is to be called when it is over.
func (u *underWay) enter(rec *schema.Record, p *schema.Packed) (leave func()) {
	o := &UnderWay{Partition: rec.Partition, Offset: rec.Offset, Time: rec.Time, Since: time.Now()}
	if p != nil {
		o.TID, o.ShopID = p.TID, p.ShopID
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.orders == nil {
		u.orders = make(map[*schema.Record]*UnderWay)
	}
	u.orders[rec] = o
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.orders, rec)
	}
}

// step notes what an order does from now on.
func (u *underWay) step(rec *schema.Record, s Step) { u.stepUntil(rec, s, time.Time{}) }

// stepUntil notes what an order does from now on, and when that ends by itself.
// A step that begins again, as when a wait is woken too early, goes on.
func (u *underWay) stepUntil(rec *schema.Record, s Step, until time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	o := u.orders[rec]
	if o == nil {
		return
	}
	if o.Step != s {
		o.Step, o.Since = s, time.Now()
	}
	o.Until = until
}

// trouble notes what keeps an order up, or with nil that nothing does any more. It
// reports whether that is another thing than before.
func (u *underWay) trouble(rec *schema.Record, err error) (news bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	o := u.orders[rec]
	switch {
	case o == nil:
	case err == nil:
		o.Trouble, o.TroubledSince = "", time.Time{}
	default:
		if o.Trouble == "" {
			o.TroubledSince = time.Now()
		}
		news = o.Trouble != err.Error()
		o.Trouble = err.Error()
	}
	return news
}

// list returns the orders that a condition holds for, by partition and offset.
func (u *underWay) list(cond func(*UnderWay) bool) []UnderWay {
	u.mu.Lock()
	var list []UnderWay
	for _, o := range u.orders {
		if cond(o) {
			list = append(list, *o)
		}
	}
	u.mu.Unlock()
	slices.SortFunc(list, func(a, b UnderWay) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	return list
}

// UnderWay returns the orders that the Shipper is at work on and that a
// condition holds for, by partition and offset. The condition must be quick, and
// must not keep what it is given.
func (s *Shipper) UnderWay(cond func(*UnderWay) bool) []UnderWay { return s.underWay.list(cond) }
