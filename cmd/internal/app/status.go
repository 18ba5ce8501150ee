package app

import (
	"math"
	"time"

	"packship/consumer"
	"packship/producer/ledger"
	"packship/schema"
	"packship/upstream"
)

// Status is what is going on in a replica, as /api/status shows it.
type Status struct {
	Role  consumer.Role `json:"role"`
	Ready bool          `json:"ready"`
	// Reason says why the replica is not ready, or ready and yet may start no
	// call.
	Reason string `json:"reason,omitempty"`
	// Leaving is true once the replica was told to stop.
	Leaving bool `json:"leaving,omitempty"`
	// Health is the state of the replica in one word, and Notices what there is
	// to know beyond that, the most urgent first.
	Health  Health   `json:"health"`
	Notices []Notice `json:"notices"`

	Instance string    `json:"instance"`
	Version  string    `json:"version"`
	Now      time.Time `json:"now"`
	Started  time.Time `json:"started"`
	// Members are the replicas in the consumer group, a few seconds ago.
	Members []consumer.Member `json:"members"`

	Accounts   []upstream.AccountStatus `json:"accounts"`
	Partitions []PartitionStatus        `json:"partitions"`
	Backlog    Backlog                  `json:"backlog"`
	// Ledger is the ledger's own account of itself, null before it exists.
	Ledger      any                   `json:"ledger"`
	ParkedShops []upstream.ParkedShop `json:"parked_shops"`
	// Spending is what this process has called and been charged for, by
	// account and shop.
	Spending []upstream.Spending `json:"spending"`
	Counts   consumer.Counts     `json:"counts"`
	// Failures are the failed of Counts by their reason.
	Failures map[string]int64 `json:"failures"`
	// OldestOrder is the oldest order that was taken in and is not settled,
	// null if there is none.
	OldestOrder *OldestOrder `json:"oldest_order"`
	// OldestUnderWay is the oldest order that is neither settled nor on the
	// shelf; null if there is none.
	OldestUnderWay *OldestOrder `json:"oldest_under_way"`
	// Overdue has the orders that should have been settled long ago although
	// nothing holds them, at most maxOverdue of them, and OverdueCount how many
	// there are.
	Overdue      []OverdueOrder `json:"overdue"`
	OverdueCount int            `json:"overdue_count"`

	// refused says which topics do not take what is to be written to them, and
	// why. It is told in the notices.
	refused map[string]string
	// others counts the orders that wait until an earlier attempt can no longer
	// take effect, and othersUntil is when the last of them need wait no more.
	others      int
	othersUntil time.Time
}

// maxOverdue orders are shown one by one.
const maxOverdue = 10

// PartitionStatus is how far a partition has come, and when it will be done.
type PartitionStatus struct {
	consumer.PartitionStatus
	// DrainSeconds is after how long its waiting records will be settled at
	// the present rate if no further ones come, and not before each of them may
	// go on; null if no account sends, or if everything that waits is overdue.
	DrainSeconds *float64 `json:"drain_seconds"`
}

// Backlog is what is not settled in all partitions.
type Backlog struct {
	Waiting int64 `json:"waiting"` // for its turn
	Held    int64 `json:"held"`    // until its shop is unparked or its account goes on
	// DrainSeconds is after how long what waits will be settled; null as that of
	// a partition.
	DrainSeconds *float64 `json:"drain_seconds"`
}

// OldestOrder is the oldest order that was taken in and is not settled.
type OldestOrder struct {
	TID        string  `json:"tid"` // "" if it is no longer in memory, as that of a parked shop may be
	ShopID     string  `json:"shop_id"`
	Partition  int     `json:"partition"`
	Offset     int64   `json:"offset"`
	AgeSeconds float64 `json:"age_seconds"`
	// Held is true if it waits for its shop to be unparked or its account to go
	// on.
	Held bool `json:"held"`
	// Step is what it does or waits for, "" if it is on the shelf or about to
	// be handled.
	Step  consumer.Step `json:"step,omitempty"`
	Since time.Time     `json:"since,omitzero"`
	Until time.Time     `json:"until,omitzero"`
	// Standing says the same in a sentence.
	Standing string `json:"standing"`
}

// Status returns what is going on now. It is safe for concurrent use, also
// before and after Run.
func (c *Connector) Status() Status {
	c.mu.Lock()
	memory, reader, shipper, results, broken, leaving := c.ledger, c.reader, c.shipper, c.results, c.broken, c.leaving
	c.mu.Unlock()
	st := Status{
		Role: consumer.RoleJoining, Leaving: leaving, Instance: c.name, Version: BuildInfo().Version, Now: time.Now(), Started: c.started,
		// A program that reads the lists finds lists, also when they are empty.
		Accounts:    append([]upstream.AccountStatus{}, c.api.Accounts()...),
		Partitions:  []PartitionStatus{},
		Members:     []consumer.Member{},
		ParkedShops: append([]upstream.ParkedShop{}, c.api.ParkedShops()...),
		Spending:    append([]upstream.Spending{}, c.api.Spending()...),
		Failures:    map[string]int64{},
		Overdue:     []OverdueOrder{},
	}
	st.Ready, st.Reason = c.Ready()
	if memory != nil {
		st.Ledger = memory.Status()
	}
	if reader != nil {
		r := reader.Status()
		st.Role, st.Members = r.Role, r.Members
		if st.Reason == "" {
			st.Reason = r.Reason
		}
		st.measure(r.Partitions)
	}
	if shipper != nil {
		st.Counts, st.Failures = shipper.Counts(), shipper.Failures()
		st.findOldest(shipper, c.api)
	}
	overdue := c.watchdog.list()
	st.OverdueCount = len(overdue)
	st.Overdue = append(st.Overdue, overdue[:min(len(overdue), maxOverdue)]...)
	st.admitStuck()
	if results != nil {
		st.refused = results.Blocked()
	}
	st.judge(broken)
	return st
}

// Lag is the number of records that wait, over all partitions of this replica.
func (st *Status) Lag() int64 {
	var n int64
	for i := range st.Partitions {
		n += st.Partitions[i].Lag
	}
	return n
}

// measure takes the partitions over and says when they will be done. They share
// the rate: a partition is done when it had its turn as often as it has records,
// and up to then each of the others had as many, or all that it has.
func (st *Status) measure(partitions []consumer.PartitionStatus) {
	rate := st.attainable()
	drain := func(calls int64) *float64 {
		if rate == 0 {
			return nil
		}
		seconds := float64(calls) / rate
		return &seconds
	}
	for i := range partitions {
		p := PartitionStatus{PartitionStatus: partitions[i]}
		var before int64
		for j := range partitions {
			before += min(p.Waiting, partitions[j].Waiting)
		}
		p.DrainSeconds = drain(before)
		st.Backlog.Waiting += p.Waiting
		st.Backlog.Held += int64(p.Shelved)
		st.Partitions = append(st.Partitions, p)
	}
	inMemory := min(st.heldInMemory(), st.Backlog.Waiting)
	st.Backlog.Waiting -= inMemory
	st.Backlog.Held += inMemory
	st.Backlog.DrainSeconds = drain(st.Backlog.Waiting)
}

// attainable is how many orders a second are settled of what waits. An account
// helps with its own orders only: those that are in memory tell whose the others
// are likely to be.
func (st *Status) attainable() float64 {
	parked := map[string]int{}
	for i := range st.ParkedShops {
		parked[st.ParkedShops[i].Account] += st.ParkedShops[i].Waiting
	}
	var all float64
	orders := make([]float64, len(st.Accounts))
	for i := range st.Accounts {
		if a := &st.Accounts[i]; !a.Held() {
			orders[i] = float64(max(0, a.Waiting-parked[a.Name]) + a.InFlight)
			all += orders[i]
		}
	}
	var sum float64
	least := math.Inf(1)
	for i := range st.Accounts {
		if a := &st.Accounts[i]; !a.Held() {
			sum += a.Attainable
			if orders[i] > 0 {
				least = min(least, a.Attainable*all/orders[i])
			}
		}
	}
	return min(sum, least)
}

// rest takes in when an order may go on that can do nothing before. It is in one of
// the partitions, which is not drained before that.
func (st *Status) rest(u *consumer.UnderWay) {
	if !u.Until.After(st.Now) {
		return
	}
	if u.Step == consumer.StepOther {
		st.others++
		if u.Until.After(st.othersUntil) {
			st.othersUntil = u.Until
		}
	}
	later := func(drain *float64) {
		if drain != nil {
			*drain = max(*drain, u.Until.Sub(st.Now).Seconds())
		}
	}
	later(st.Backlog.DrainSeconds)
	for i := range st.Partitions {
		if p := &st.Partitions[i]; p.Partition == u.Partition {
			later(p.DrainSeconds)
		}
	}
}

// admitStuck takes back what was said of the time at which all is settled, if
// nothing goes on, or not here.
func (st *Status) admitStuck() {
	l, _ := st.Ledger.(ledger.Status)
	outside := st.Role == consumer.RoleJoining || l.Failing != "" // no call is made without group and ledger
	stuck := st.OverdueCount > 0 && int64(st.OverdueCount) >= st.Backlog.Waiting
	if !st.Leaving && !outside && !stuck {
		return
	}
	st.Backlog.DrainSeconds = nil
	for i := range st.Partitions {
		st.Partitions[i].DrainSeconds = nil
	}
}

// heldInMemory counts the orders that wait for a shop or an account and are not
// on the shelf, because nobody needs their room.
func (st *Status) heldInMemory() (n int64) {
	halted := map[string]bool{}
	for i := range st.Accounts {
		if a := &st.Accounts[i]; a.State == upstream.StateHalted {
			halted[a.Name] = true
			n += int64(a.Waiting)
		}
	}
	for i := range st.ParkedShops {
		if p := &st.ParkedShops[i]; !halted[p.Account] {
			n += int64(p.Waiting)
		}
	}
	return n
}

// findOldest finds the oldest order among the first of all partitions, and the
// oldest of those under way. On its way it looks which of these rest.
func (st *Status) findOldest(shipper *consumer.Shipper, api *upstream.Upstream) {
	blocked := func(u *consumer.UnderWay) bool {
		_, blocked := api.Blocked(&schema.Packed{ShopID: u.ShopID})
		return blocked && u.Step == consumer.StepTurn
	}
	var of *PartitionStatus
	for i := range st.Partitions {
		if p := &st.Partitions[i]; p.Oldest != nil && (of == nil || p.Oldest.Time.Before(of.Oldest.Time)) {
			of = p
		}
	}
	// It goes through the orders once, and copies none that it does not want.
	var first, same consumer.UnderWay
	shipper.UnderWay(func(u *consumer.UnderWay) bool {
		st.rest(u)
		if first.Time.IsZero() || u.Time.Before(first.Time) {
			first = *u
		}
		if of != nil && u.Partition == of.Partition && u.Offset == of.Oldest.Offset {
			same = *u
		}
		return false
	})
	if same.Time.IsZero() && of != nil {
		same = consumer.UnderWay{Partition: of.Partition, Offset: of.Oldest.Offset, TID: of.Oldest.TID, ShopID: of.Oldest.ShopID}
	} else if !same.Time.IsZero() && !first.Time.Before(same.Time) {
		first = same
	}
	if of != nil {
		st.OldestOrder = st.oldest(&same, of.Oldest.Time, of.Oldest.Shelved || blocked(&same), api.AccountOf(same.ShopID))
	}
	switch {
	case first.Time.IsZero():
	case first == same:
		st.OldestUnderWay = st.OldestOrder
	default:
		st.OldestUnderWay = st.oldest(&first, first.Time, blocked(&first), api.AccountOf(first.ShopID))
	}
}

// oldest describes an order that is unsettled since a time, and that may be held
// with its shop or its account.
func (st *Status) oldest(u *consumer.UnderWay, since time.Time, held bool, account string) *OldestOrder {
	o := &OldestOrder{
		TID: u.TID, ShopID: u.ShopID, Partition: u.Partition, Offset: u.Offset, Held: held,
		AgeSeconds: max(0, st.Now.Sub(since).Seconds()), Step: u.Step, Since: u.Since, Until: u.Until,
	}
	if held {
		o.Standing = st.holds(u.ShopID, account)
	} else {
		o.Standing = o.sentence(st.Now, st.Leaving)
	}
	return o
}
