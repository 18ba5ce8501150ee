package upstream

import (
	"slices"
	"strings"
	"time"

	"packship/schema"
)

// spend books a call of this process and returns what it has cost. Callers hold
// mu.
func (a *account) spend(id string, x *schema.Exchange) schema.Charge {
	s := a.spending[id]
	if s == nil {
		s = &Spending{Account: a.name, ShopID: id}
		a.spending[id] = s
	}
	paid := schema.Charge{Account: a.name}
	if x != nil {
		paid.Points = max(0, x.Withheld)
	}
	for _, book := range []*Spending{s, &a.total} {
		book.Calls++
		if paid.Points > 0 {
			book.Charged++
			book.Points += paid.Points
		}
	}
	return paid
}

// Charged books what an attempt has cost that stands in the ledger, at the time
// of its record. It is told of each, whichever process made it, also of those
// before this one started: that is where the day's spending and the balance come
// from.
func (u *Upstream) Charged(paid schema.Charge, at time.Time) {
	for _, a := range u.accounts {
		if a.name == paid.Account {
			a.charged(paid.Points, at)
		}
	}
}

func (a *account) charged(points int64, at time.Time) {
	a.mu.Lock()
	defer a.unlock()
	now := time.Now()
	if today := a.today.on(now); dayOf(at) == a.today.day {
		today.Charged++
		today.Points += points
	}
	if a.balance == nil {
		return
	}
	if a.balance.charge(points, at, now) {
		last, _ := a.balance.lasts(now)
		a.note(a.logger.Warn, "balance is running out", "points", a.balance.left, "lasts", last.Round(time.Minute))
	}
	a.metrics.balance.WithLabelValues(a.name).Set(float64(a.balance.left))
}

// broke notes that the API says that nothing is left. Callers hold mu.
func (a *account) broke() {
	if a.balance == nil {
		return
	}
	a.note(a.logger.Warn, "balance is used up", "points_expected", a.balance.left)
	a.balance.left = 0
	a.metrics.balance.WithLabelValues(a.name).Set(0)
}

// toppedUp notes that there are points again, nobody has said how many. Callers
// hold mu.
func (a *account) toppedUp() {
	if a.balance == nil {
		return
	}
	a.balance = nil
	a.metrics.balance.DeleteLabelValues(a.name)
	a.note(a.logger.Warn, "balance is not known since the top-up; set it in the accounts file and restart")
}

// daySpent is what was spent since the last midnight, by the process's own time
// zone.
type daySpent struct {
	Spent
	day int // by dayOf
}

// on returns the book of a day, which is new on another one.
func (d *daySpent) on(now time.Time) *Spent {
	if day := dayOf(now); d.day != day {
		*d = daySpent{day: day}
	}
	return &d.Spent
}

// dayOf is the year of a time and its day, by the process's own time zone.
func dayOf(t time.Time) int {
	t = t.Local()
	return 1000*t.Year() + t.YearDay()
}

func (a *account) spendings(all []Spending) []Spending {
	a.mu.Lock()
	defer a.unlock()
	first := len(all)
	for _, s := range a.spending {
		all = append(all, *s)
	}
	slices.SortFunc(all[first:], func(x, y Spending) int { return strings.Compare(x.ShopID, y.ShopID) })
	return all
}
