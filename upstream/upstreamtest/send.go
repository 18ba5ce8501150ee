package upstreamtest

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// check is one step of the order of checks. It returns the row that answers the
// call, 0 if the call passes. The simulator's mutex is held.
type check func(*call) int

// The checks of the platform, in their order: the first that fails answers.
// That the state of the order comes before the waybill is what makes a repeated
// identical call be answered as already shipped.
var (
	checks = []check{
		(*call).named, (*call).splitPair, (*call).featureGrammar, (*call).owned, (*call).kind,
		(*call).open, (*call).notShipped, (*call).payable, (*call).splitAgrees, (*call).addresses,
		(*call).carrierServes, (*call).waybillGood, (*call).notToSender,
	}
	waybillFirst = []check{
		(*call).named, (*call).splitPair, (*call).featureGrammar, (*call).owned, (*call).kind,
		(*call).open, (*call).carrierServes, (*call).waybillUnused, (*call).waybillGood,
		(*call).notShipped, (*call).payable, (*call).splitAgrees, (*call).addresses, (*call).notToSender,
	}
)

// ship makes steps 10 to 23 of the order of checks: it ships what the call asks
// for and returns row 1, or the row of the first check that fails. With apply
// false, it stops short of shipping. The caller holds the simulator's mutex.
func (c *call) ship(apply bool) int {
	steps := checks
	if c.sw.WaybillFirst {
		steps = waybillFirst
	}
	for _, step := range steps {
		if row := step(c); row != 0 {
			return row
		}
	}
	if !apply {
		return rowOK
	}
	if c.spend(ChargeSuccess) {
		return rowNoBalance
	}
	c.apply()
	return rowOK
}

// apply ships the parcel.
func (c *call) apply() {
	t := c.trade
	i := c.parcel
	if c.carve {
		i = t.carve(i, c.subTIDs)
	}
	p := &t.Parcels[i]
	p.State, p.OutSID, p.Company, p.ByHand = ParcelSent, c.outSID(), c.companyCode(), false
	p.applied++
	t.advance()
	if c.carrier != nil && (t.Receiver != "" || c.sw.WaybillFirst) {
		c.s.world.book(c.carrier.Code, p.OutSID, t.Receiver)
	}
	c.s.journal.applied(c.entry, p.ID, p.applied)
}

func (c *call) outSID() string { return strings.ToUpper(strings.TrimSpace(c.form.value("out_sid"))) }

func (c *call) companyCode() string { return strings.TrimSpace(c.form.value("company_code")) }

// named is step 10: a carrier and a waybill are given.
func (c *call) named() int {
	switch {
	case c.companyCode() == "":
		return rowNoCarrier
	case c.outSID() == "":
		return rowNoWaybill
	default:
		return 0
	}
}

// splitPair is step 11: the split flag and the list of parts come together.
func (c *call) splitPair() int {
	flag, list := c.form.value("is_split"), c.form.value("sub_tid")
	switch {
	case flag == "1" && list == "":
		return rowNoSubTID
	case (flag == "") != (list == ""):
		return rowSplitPair
	case flag == "":
		return 0
	case flag != "0" && flag != "1":
		return rowParameterInvalid
	}
	var ok bool
	if c.subTIDs, ok = parseSubTIDs(list); !ok {
		return rowParameterInvalid
	}
	return 0
}

// featureGrammar is step 12. Shops with stores must say which one.
func (c *call) featureGrammar() int {
	var got feature
	if s := c.form.value("feature"); s != "" {
		var ok bool
		if got, ok = parseFeature(s); !ok {
			return rowFeature
		}
	}
	if c.shop.OmniChannel && got.store == "" {
		return rowFeature
	}
	return 0
}

// owned is step 13: the order exists and is the seller's.
func (c *call) owned() int {
	s := c.s
	tid := c.form.value("tid")
	if platform := or(c.shop.Platform, "taobao"); platform != "taobao" && platform != "tmall" {
		return or(c.sw.MissingTradeRow, rowNoTrade)
	}
	if c.trade = s.world.trade(c.shop.ID, tid); c.trade != nil {
		return 0
	}
	if _, ok := s.world.owners[tid]; ok {
		return or(c.sw.ForeignTradeRow, rowForeignTrade)
	}
	if !s.opts.AutoCreate {
		return or(c.sw.MissingTradeRow, rowNoTrade)
	}
	c.trade = s.autoTrade(c.shop, tid)
	return 0
}

// autoTrade makes an order, and forgets the oldest one so made if there are too
// many. The caller holds mu.
func (s *Simulator) autoTrade(shop *Shop, tid string) *Trade {
	w := s.world
	t := w.addTrade(Trade{Shop: shop.ID, TID: tid, Auto: true})
	if limit := s.opts.TradeLimit; limit > 0 && len(w.auto) > limit {
		oldest := w.auto[0]
		w.auto = w.auto[1:]
		if old := w.trades[oldest]; old != nil && old.Auto {
			delete(w.trades, oldest)
			s.journal.forget(old.Shop, old.TID)
		}
	}
	return t
}

// kind is step 14: some orders are shipped by other means only.
func (c *call) kind() int {
	switch c.trade.Kind {
	case KindVirtual, KindHome, KindCOD, KindOnline:
		return rowTypeMismatch
	case KindThirdParty:
		return rowNotByThisEndpoint
	default:
		return 0
	}
}

// open is step 15: the order has not been refunded or cancelled.
func (c *call) open() int {
	if c.trade.closed() {
		return or(c.sw.ClosedRow, rowParcelClosed)
	}
	return 0
}

// notShipped is step 16: something of the order is left to ship.
func (c *call) notShipped() int {
	if !c.trade.shipped() || c.sw.AllowRepeats {
		return 0
	}
	if len(c.sw.ShippedRows) == 0 {
		return rowStatusWrong
	}
	return c.s.turn("shipped", c.sw.ShippedRows)
}

// payable is step 17: the order is paid and nobody holds it back.
func (c *call) payable() int {
	if c.trade.onHold() {
		return or(c.sw.OnHoldRow, rowTradeStatus)
	}
	return 0
}

// splitAgrees is step 18: what is asked for is one parcel that waits, or a part
// of one.
func (c *call) splitAgrees() int {
	t, part := c.trade, c.subTIDs
	flag := c.form.value("is_split")
	c.parcel, c.carve = 0, false
	switch {
	case len(part) == 0 && t.split():
		return or(c.sw.SplitMissingRow, rowSplitFlow)
	case len(part) == 0:
		return 0
	case flag != "1" && t.split():
		return rowSplitFlagOne
	case flag != "1":
		return rowNotSplit
	}
	for i := range t.Parcels {
		p := &t.Parcels[i]
		// The remainder of an order made by AutoCreate lists nothing.
		if !sameSet(part, p.SubTIDs) || !t.split() {
			continue
		}
		c.parcel = i
		switch {
		case p.State == ParcelClosed:
			return rowParcelClosed
		case p.State == ParcelSent && !c.sw.AllowRepeats:
			if len(c.sw.RepeatedPartRows) == 0 {
				return c.s.turn("repeated", []int{rowStatusWrong, rowParcelNotNew, rowSplitCheck})
			}
			return c.s.turn("repeated", c.sw.RepeatedPartRows)
		}
		return 0
	}
	return c.carves()
}

// carves looks for the waiting parcel of which the call asks for a part.
func (c *call) carves() int {
	t, part := c.trade, c.subTIDs
	known := 0
	for _, id := range part {
		if slices.ContainsFunc(t.Parcels, func(p Parcel) bool { return slices.Contains(p.SubTIDs, id) }) {
			known++
		}
	}
	if t.Auto {
		i := slices.IndexFunc(t.Parcels, func(p Parcel) bool { return p.State == ParcelNew })
		if known > 0 || i < 0 {
			return rowNoExactMatch
		}
		c.parcel, c.carve = i, true
		return 0
	}
	switch {
	case known == 0:
		return rowNoParcel
	case known < len(part):
		return rowSplitCheck
	case !t.split() && len(part) == len(t.Parcels[0].SubTIDs):
		return rowNotSplit
	}
	for i := range t.Parcels {
		p := &t.Parcels[i]
		if p.State == ParcelNew && subset(part, p.SubTIDs) && (!t.split() || !c.sw.SplitOnce) {
			c.parcel, c.carve = i, true
			return 0
		}
	}
	return rowNoExactMatch
}

// addresses is step 19: the shop has the addresses that the call names, or
// default ones.
func (c *call) addresses() int {
	for _, name := range []string{"sender_id", "cancel_id"} {
		id := c.form.value(name)
		switch {
		case id == "" && c.shop.NoDefaultAddress:
			return rowAddressBook
		case id == "":
			continue
		case !isID(id):
			return rowParameterInvalid
		case c.shop.AddressBook != nil && !slices.Contains(c.shop.AddressBook, id):
			return rowAddressBook
		}
	}
	return 0
}

// maxCarrierName is the length of a carrier's name in characters.
const maxCarrierName = 20

// carrierServes is step 20: the carrier takes this parcel.
func (c *call) carrierServes() int {
	company := c.companyCode()
	if utf8.RuneCountInString(company) > maxCarrierName {
		return rowNameTooLong
	}
	c.carrier = c.s.world.carriers[strings.ToUpper(company)]
	if c.carrier == nil {
		// A carrier outside the catalogue goes by its Chinese name.
		named := strings.ContainsFunc(company, func(r rune) bool { return r >= utf8.RuneSelf })
		if !named && (!c.sw.AnyCarrier || strings.EqualFold(company, "other")) {
			return rowCarrierUnknown
		}
		return 0
	}
	switch k := c.carrier; {
	case k.Disabled:
		return rowCarrierUnknown
	case k.Removed:
		return rowCarrierRemoved
	case k.NotSelfContact:
		return rowNotSelfContact
	case k.NeedsSubscription && !slices.Contains(c.shop.Subscriptions, k.Code):
		return rowNotSubscribed
	case k.NeedsSubscription && c.trade.OutOfRange:
		return rowOutOfRange
	default:
		return 0
	}
}

// waybillUnused refuses any waybill that has been used, by this order or
// another. It is not part of the usual order of checks.
func (c *call) waybillUnused() int {
	if c.carrier == nil {
		return 0
	}
	if b := c.s.world.waybills[waybillKey{c.carrier.Code, c.outSID()}]; b != nil && b.Used {
		return rowWaybillRule
	}
	return 0
}

// waybillGood is step 21: the waybill can be this order's. Only the numbers of
// the carriers in the catalogue are looked at.
func (c *call) waybillGood() int {
	if c.carrier == nil {
		return 0
	}
	if !c.carrier.fits(c.outSID()) {
		return rowWaybillRule
	}
	b, t := c.s.world.waybills[waybillKey{c.carrier.Code, c.outSID()}], c.trade
	switch {
	case b == nil:
		return 0
	case b.Fake:
		return rowWaybillFake
	case b.Expired:
		return rowWaybillExpired
	case !b.CollectedAt.IsZero() && b.CollectedAt.Before(t.PaidAt):
		return rowCollectedEarly
	case b.SignedBy != "" && t.Receiver != "" && b.SignedBy != t.Receiver:
		return rowAddressDiffers
	case !b.Used, b.Receiver != "" && b.Receiver == t.Receiver:
		return 0
	case t.Suspect:
		return rowUsedSuspect
	default:
		return rowWaybillUsed
	}
}

// notToSender is step 22: the parcel does not go back to where it comes from.
func (c *call) notToSender() int {
	if c.trade.Receiver != "" && c.trade.Receiver == c.trade.Sender {
		return rowSameAddress
	}
	return 0
}
