package upstreamtest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// AddAccount adds an account, or replaces the one of that name. It panics, like
// all the methods that add something, if what is added is not valid.
func (s *Simulator) AddAccount(a Account) {
	must(a.validate())
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.Balance != nil {
		a.Balance = new(*a.Balance)
	}
	s.world.addAccount(a)
}

// AddShop adds a shop, or replaces the one with that id.
func (s *Simulator) AddShop(shop Shop) {
	must(shop.validate())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.world.addShop(shop)
}

// AddTrade adds an order, or replaces the one with that id. Its shop need not
// exist yet.
func (s *Simulator) AddTrade(t Trade) {
	must(t.validate())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.world.addTrade(t)
}

// AddWaybill tells the platform something about a waybill.
func (s *Simulator) AddWaybill(b Waybill) {
	must(b.validate())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.world.addWaybill(b)
}

// AddCarrier adds a carrier to the catalogue, or replaces the one with that
// code.
func (s *Simulator) AddCarrier(k Carrier) {
	must(k.validate())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.world.addCarrier(k)
}

// AddFault makes something go wrong from now on, after the faults that are
// there already.
func (s *Simulator) AddFault(f Fault) {
	must(f.Validate())
	s.faults.add(f)
}

// SetFault makes this the only thing that goes wrong.
func (s *Simulator) SetFault(f Fault) {
	s.ClearFaults()
	s.AddFault(f)
}

// AddScript makes things go wrong in a certain order.
func (s *Simulator) AddScript(sc Script) {
	must(sc.Validate())
	s.faults.addScript(sc)
}

// ClearFaults ends all faults and scripts. Calls that they have hit already
// stay hit.
func (s *Simulator) ClearFaults() { s.faults.clear() }

// SetLatency changes how long later calls take.
func (s *Simulator) SetLatency(l Latency) {
	must(l.validate())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opts.Latency = l
}

// SetRate changes the limit of calls per second.
func (s *Simulator) SetRate(r Rate) {
	must(r.validate())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opts.Rate = r
}

// SetSwitches changes the behaviours that are left open.
func (s *Simulator) SetSwitches(sw Switches) {
	must(sw.validate())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opts.Switches = sw
}

// Advance puts the API's clock forward. Tokens expire by it and answers tell
// it; waits that are going on are not cut short.
func (s *Simulator) Advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offset += d
}

// TopUp adds points to an account's balance. An account without a balance gets
// one.
func (s *Simulator) TopUp(account string, points int64) error {
	return s.withAccount(account, func(a *Account) {
		a.Balance = new(points + valueOf(a.Balance))
	})
}

// RotateToken gives an account a new token, which it returns. The old one is
// no longer good.
func (s *Simulator) RotateToken(account string) (token string, err error) {
	err = s.withAccount(account, func(a *Account) {
		token = s.newToken(a.Name)
		s.world.setToken(a, token)
	})
	return token, err
}

// SetToken makes a token the good one of an account.
func (s *Simulator) SetToken(account, token string) error {
	return s.withAccount(account, func(a *Account) { s.world.setToken(a, token) })
}

// Deny closes endpoints for an account and opens all the others.
func (s *Simulator) Deny(account string, endpoints ...string) error {
	if err := (&Account{Name: account, Denied: endpoints}).validate(); err != nil {
		return err
	}
	return s.withAccount(account, func(a *Account) { a.Denied = endpoints })
}

// Account returns an account as it is now.
func (s *Simulator) Account(name string) (Account, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.world.accounts[name]
	if a == nil {
		return Account{}, false
	}
	return cloneAccount(a), true
}

// Authorise lets a shop be acted for again: its authorisation and its session
// are good.
func (s *Simulator) Authorise(shop string) error {
	return s.withShop(shop, func(sh *Shop) { sh.Unauthorised, sh.SessionExpired = false, false })
}

// Unauthorise takes a shop's authorisation back.
func (s *Simulator) Unauthorise(shop string) error {
	return s.withShop(shop, func(sh *Shop) { sh.Unauthorised = true })
}

// ExpireSession ends a shop's session with the platform.
func (s *Simulator) ExpireSession(shop string) error {
	return s.withShop(shop, func(sh *Shop) { sh.SessionExpired = true })
}

// Trade returns an order as it is now.
func (s *Simulator) Trade(shop, tid string) (Trade, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.world.trade(shop, tid)
	if t == nil {
		return Trade{}, false
	}
	return cloneTrade(t), true
}

// Pay pays an order.
func (s *Simulator) Pay(shop, tid string) error {
	return s.withTrade(shop, tid, func(t *Trade) error {
		if t.PaidAt.IsZero() {
			t.PaidAt = s.now()
		}
		return t.move(WaitSellerSend, WaitBuyerPay)
	})
}

// Cancel closes an order that has not been paid.
func (s *Simulator) Cancel(shop, tid string) error {
	return s.withTrade(shop, tid, func(t *Trade) error {
		if err := t.move(ClosedByTaobao, WaitBuyerPay); err != nil {
			return err
		}
		t.closeParcels()
		return nil
	})
}

// Hold forbids to ship an order for now.
func (s *Simulator) Hold(shop, tid string) error {
	return s.withTrade(shop, tid, func(t *Trade) error { return t.move(ForbidConsign, WaitSellerSend) })
}

// Release ends a hold.
func (s *Simulator) Release(shop, tid string) error {
	return s.withTrade(shop, tid, func(t *Trade) error { return t.move(WaitSellerSend, ForbidConsign) })
}

// Confirm says that the buyer has received a shipped order.
func (s *Simulator) Confirm(shop, tid string) error {
	return s.withTrade(shop, tid, func(t *Trade) error { return t.move(Finished, WaitBuyerConfirm) })
}

// Refund gives the buyer of an order the money back, for all of it or for some
// items: what has not been shipped of them is closed.
func (s *Simulator) Refund(shop, tid string, oids ...string) error {
	return s.withTrade(shop, tid, func(t *Trade) error { return t.refund(oids) })
}

// ShipByHand ships an order, or the given part of it, as somebody does in the
// seller's back office.
func (s *Simulator) ShipByHand(shop, tid, company, outSID string, oids ...string) error {
	return s.withTrade(shop, tid, func(t *Trade) error { return t.shipByHand(company, outSID, oids) })
}

// move changes the status if it is one of those from which that is possible.
func (t *Trade) move(to Status, from ...Status) error {
	if !slices.Contains(from, t.Status) {
		return fmt.Errorf("upstreamtest: order %s cannot become %s, it is %s", t.TID, to, t.Status)
	}
	t.Status = to
	return nil
}

func (t *Trade) closeParcels() {
	for i := range t.Parcels {
		if t.Parcels[i].State == ParcelNew {
			t.Parcels[i].State = ParcelClosed
		}
	}
}

func (t *Trade) refund(oids []string) error {
	if len(oids) > 0 && !subset(oids, t.oids()) {
		return fmt.Errorf("upstreamtest: order %s has no such items: %v", t.TID, oids)
	}
	for i := range t.Items {
		if len(oids) == 0 || slices.Contains(oids, t.Items[i].OID) {
			t.Items[i].Refunded = true
		}
	}
	left := slices.ContainsFunc(t.Items, func(it Item) bool { return !it.Refunded })
	if len(oids) == 0 || !left {
		if err := t.move(Closed, WaitSellerSend, ForbidConsign, ConsignedPart, WaitBuyerConfirm); err != nil {
			return err
		}
		t.closeParcels()
		return nil
	}
	for i := range t.Parcels {
		p := &t.Parcels[i]
		if p.State == ParcelNew && subset(p.SubTIDs, t.refunded()) {
			p.State = ParcelClosed
		}
	}
	if t.Status == ConsignedPart {
		t.advance()
	}
	return nil
}

func (t *Trade) refunded() []string {
	var ids []string
	for _, it := range t.Items {
		if it.Refunded {
			ids = append(ids, it.OID)
		}
	}
	return ids
}

func (t *Trade) shipByHand(company, outSID string, oids []string) error {
	if t.Status != WaitSellerSend && t.Status != ConsignedPart {
		return fmt.Errorf("upstreamtest: order %s cannot be shipped, it is %s", t.TID, t.Status)
	}
	shipped := false
	for i := range t.Parcels {
		p := &t.Parcels[i]
		switch {
		case p.State != ParcelNew:
			continue
		case len(oids) == 0, sameSet(oids, p.SubTIDs):
		case t.Auto || subset(oids, p.SubTIDs):
			p = &t.Parcels[t.carve(i, oids)]
		default:
			continue
		}
		p.State, p.Company, p.OutSID, p.ByHand = ParcelSent, company, outSID, true
		shipped = true
	}
	if !shipped {
		return fmt.Errorf("upstreamtest: order %s has no waiting parcel of %v", t.TID, oids)
	}
	t.advance()
	return nil
}

func (s *Simulator) withAccount(name string, do func(*Account)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.world.accounts[name]
	if a == nil {
		return fmt.Errorf("upstreamtest: there is no account %q", name)
	}
	do(a)
	return nil
}

func (s *Simulator) withShop(id string, do func(*Shop)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	shop := s.shopOf(id)
	if shop == nil {
		return fmt.Errorf("upstreamtest: there is no shop %q", id)
	}
	do(shop)
	return nil
}

func (s *Simulator) withTrade(shop, tid string, do func(*Trade) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.world.trade(shop, tid)
	if t == nil && s.opts.AutoCreate && isID(tid) {
		if sh := s.shopOf(shop); sh != nil {
			t = s.autoTrade(sh, tid)
		}
	}
	if t == nil {
		return fmt.Errorf("upstreamtest: there is no order %s of shop %q", tid, shop)
	}
	return do(t)
}

// Dump returns the present state as options, from which a simulator in this
// state could be made. Counters of faults begin anew; a fault that has hit
// some of its Count is left the rest.
func (s *Simulator) Dump() Options {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.opts
	o.Accounts = sorted(s.world.accounts, cloneAccount, func(a *Account) string { return a.Name })
	o.Accounts = slices.DeleteFunc(o.Accounts, func(a Account) bool { return a.auto })
	o.Shops = sorted(s.world.shops, func(sh *Shop) Shop { return *sh }, func(sh *Shop) string { return sh.ID })
	o.Trades = sorted(s.world.trades, cloneTrade, func(t *Trade) string { return t.Shop + "\x00" + t.TID })
	o.Waybills = sorted(s.world.waybills, func(b *Waybill) Waybill { return *b }, func(b *Waybill) string { return b.Company + "\x00" + b.OutSID })
	o.Carriers = sorted(s.world.carriers, func(k *Carrier) Carrier { return *k }, func(k *Carrier) string { return k.Code })
	o.Outages = slices.Clone(o.Outages)
	o.Faults, o.Scripts = s.faults.remaining()
	return o
}

// sorted returns copies of a map's values in the order of their names.
func sorted[K comparable, V any](m map[K]*V, clone func(*V) V, name func(*V) string) []V {
	values := slices.SortedFunc(maps.Values(m), func(a, b *V) int { return cmp.Compare(name(a), name(b)) })
	var clones []V
	for _, v := range values {
		clones = append(clones, clone(v))
	}
	return clones
}

func cloneAccount(a *Account) Account {
	c := *a
	if a.Balance != nil {
		c.Balance = new(*a.Balance)
	}
	return c
}

func cloneTrade(t *Trade) Trade {
	c := *t
	c.Items, c.Parcels = slices.Clone(t.Items), slices.Clone(t.Parcels)
	for i := range c.Parcels {
		c.Parcels[i].SubTIDs = slices.Clone(c.Parcels[i].SubTIDs)
	}
	return c
}

func valueOf(p *int64) int64 {
	if p == nil {
		return 0
	}
	return *p
}

// must panics with what a caller has got wrong.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
