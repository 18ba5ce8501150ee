package upstream

import (
	"slices"
	"strings"
	"time"

	"packship/schema"
)

// spend books a call. Callers hold mu.
func (a *account) spend(id string, x *schema.Exchange) {
	s := a.spending[id]
	if s == nil {
		s = &Spending{Account: a.name, ShopID: id}
		a.spending[id] = s
	}
	now := time.Now()
	points := int64(0)
	if x != nil {
		points = x.Withheld
	}
	for _, book := range []*Spending{s, &a.total, a.today.on(now)} {
		book.Calls++
		if points > 0 {
			book.Charged++
			book.Points += points
		}
	}
	if a.balance == nil {
		return
	}
	if a.balance.spend(points, now) {
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

// daySpending is what was spent since the last midnight, by the process's own
// time zone.
type daySpending struct {
	Spending
	day int // the year and its day
}

// on returns the book of a day, which is new on another one.
func (d *daySpending) on(now time.Time) *Spending {
	if day := 1000*now.Year() + now.YearDay(); d.day != day {
		*d = daySpending{day: day}
	}
	return &d.Spending
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
