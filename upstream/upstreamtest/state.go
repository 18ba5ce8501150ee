package upstreamtest

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Account is a customer of the vendor: who pays for calls.
type Account struct {
	Name string `yaml:"name"`
	// Token is the current access token; any other token is invalid.
	Token string `yaml:"token,omitempty"`
	// TokenIP is the address that the token is bound to, if any.
	TokenIP string `yaml:"token_ip,omitempty"`
	// TokenExpires is when the token stops to be valid. The zero time is never.
	TokenExpires time.Time `yaml:"token_expires,omitempty"`
	// ClientID and Secret fetch a new token.
	ClientID string `yaml:"client_id,omitempty"`
	Secret   string `yaml:"secret,omitempty"`
	// Balance is what is left, in points. Nil is as much as it takes.
	Balance *int64 `yaml:"balance,omitempty"`
	// Denied are the endpoints that the account has not opened: send,
	// fullinfo, detail, shop-authorize.
	Denied []string `yaml:"denied,omitempty,flow"`
	// VVTypes are the editions that the account may use. None is all.
	VVTypes []int `yaml:"vvtypes,omitempty,flow"`

	auto bool // made by AutoCreate
}

func (a *Account) validate() error {
	errs := []error{}
	if a.Name == "" {
		errs = append(errs, errors.New("upstreamtest: an account needs a name"))
	}
	for _, e := range a.Denied {
		errs = append(errs, oneOf("denied endpoint", endpoint(e), endpointSend, endpointFullInfo, endpointDetail, endpointAuthorize))
	}
	return errors.Join(errs...)
}

// Shop is a seller's shop.
type Shop struct {
	ID string `yaml:"id"`
	// Account is the only account that may act for the shop. "" is any.
	Account string `yaml:"account,omitempty"`
	// Seller is the shop's nick. Shops of one seller share their orders. ""
	// is a seller of its own.
	Seller string `yaml:"seller,omitempty"`
	// Platform other than "taobao" has no orders that the API can ship.
	Platform string `yaml:"platform,omitempty"`
	// Unauthorised shops have not let the vendor act for them.
	Unauthorised bool `yaml:"unauthorised,omitempty"`
	// SessionExpired shops have to authorise the vendor again.
	SessionExpired bool `yaml:"session_expired,omitempty"`
	// NoDefaultAddress shops have no address for a call that names none.
	NoDefaultAddress bool `yaml:"no_default_address,omitempty"`
	// AddressBook are the contact ids that a call may name. Nil is any.
	AddressBook []string `yaml:"address_book,omitempty,flow"`
	// OmniChannel shops must name the store with each shipment.
	OmniChannel bool `yaml:"omni_channel,omitempty"`
	// Subscriptions are the carriers, of those that need one, that the shop
	// has subscribed to.
	Subscriptions []string `yaml:"subscriptions,omitempty,flow"`
}

func (s *Shop) validate() error {
	if s.ID == "" {
		return errors.New("upstreamtest: a shop needs an id")
	}
	return nil
}

func (s *Shop) seller() string { return or(s.Seller, s.ID) }

// Status is the state of an order on the platform.
type Status string

// The states of an order.
const (
	WaitBuyerPay     Status = "WAIT_BUYER_PAY"
	WaitSellerSend   Status = "WAIT_SELLER_SEND_GOODS" // the default
	ConsignedPart    Status = "SELLER_CONSIGNED_PART"
	ForbidConsign    Status = "PAID_FORBID_CONSIGN"
	WaitBuyerConfirm Status = "WAIT_BUYER_CONFIRM_GOODS" // shipped
	Finished         Status = "TRADE_FINISHED"
	Closed           Status = "TRADE_CLOSED"
	ClosedByTaobao   Status = "TRADE_CLOSED_BY_TAOBAO"
)

// Kind is what sort of order it is.
type Kind string

// The kinds of order. Only the normal one can be shipped by self-contact.
const (
	KindNormal     Kind = "normal" // the default
	KindVirtual    Kind = "virtual"
	KindHome       Kind = "home"    // home decoration
	KindCOD        Kind = "cod"     // cash on delivery
	KindOnline     Kind = "online"  // ordered with the carrier through the platform
	KindThirdParty Kind = "threepl" // cross-border third-party logistics
)

// Trade is an order.
type Trade struct {
	Shop string `yaml:"shop"`
	TID  string `yaml:"tid"`
	// Status is by default WAIT_SELLER_SEND_GOODS.
	Status Status `yaml:"status,omitempty"`
	Kind   Kind   `yaml:"kind,omitempty"`
	// Items are by default one, whose id is that of the order.
	Items  []Item    `yaml:"items,omitempty"`
	PaidAt time.Time `yaml:"paid_at,omitempty"`
	// Receiver and Sender stand for addresses: what matters is whether two are
	// equal. An empty one equals none.
	Receiver string `yaml:"receiver,omitempty"`
	Sender   string `yaml:"sender,omitempty"`
	// Suspect orders are watched by the platform's risk control.
	Suspect bool `yaml:"suspect,omitempty"`
	// OutOfRange orders go where a carrier that needs a subscription does not.
	OutOfRange bool `yaml:"out_of_range,omitempty"`
	// Parcels are the logistics orders: by default one with all items.
	Parcels []Parcel `yaml:"parcels,omitempty"`
	// Auto marks an order made by AutoCreate: whatever part of it is named
	// exists.
	Auto bool `yaml:"auto,omitempty"`
}

// Item is a part order: one line of an order.
type Item struct {
	OID      string `yaml:"oid"`
	Quantity int    `yaml:"quantity,omitempty"`
	Refunded bool   `yaml:"refunded,omitempty"`
}

// ParcelState is the state of a logistics order.
type ParcelState string

// The states of a logistics order.
const (
	ParcelNew    ParcelState = "NEW" // the default
	ParcelSent   ParcelState = "SENT"
	ParcelClosed ParcelState = "CLOSED"
)

// Parcel is a logistics order: what is shipped under one waybill.
type Parcel struct {
	ID      string      `yaml:"id,omitempty"`
	SubTIDs []string    `yaml:"sub_tids,omitempty,flow"`
	State   ParcelState `yaml:"state,omitempty"`
	OutSID  string      `yaml:"out_sid,omitempty"`
	Company string      `yaml:"company,omitempty"`
	// ByHand is true if somebody shipped it in the seller's back office.
	ByHand bool `yaml:"by_hand,omitempty"`

	applied int // by how many calls
}

func (t *Trade) validate() error {
	var errs []error
	if t.Shop == "" || !isID(t.TID) {
		errs = append(errs, fmt.Errorf("upstreamtest: an order needs a shop and a tid of digits, not %q and %q", t.Shop, t.TID))
	}
	errs = append(errs,
		oneOf("status of order "+t.TID, t.Status, WaitBuyerPay, WaitSellerSend, ConsignedPart, ForbidConsign,
			WaitBuyerConfirm, Finished, Closed, ClosedByTaobao),
		oneOf("kind of order "+t.TID, t.Kind, KindNormal, KindVirtual, KindHome, KindCOD, KindOnline, KindThirdParty))
	for _, it := range t.Items {
		if !isID(it.OID) {
			errs = append(errs, fmt.Errorf("upstreamtest: order %s has an item without an oid of digits", t.TID))
		}
	}
	for _, p := range t.Parcels {
		for _, id := range p.SubTIDs {
			if !isID(id) {
				errs = append(errs, fmt.Errorf("upstreamtest: order %s has a parcel with part %q, not digits", t.TID, id))
			}
		}
		errs = append(errs, oneOf("state of a parcel of order "+t.TID, p.State, ParcelNew, ParcelSent, ParcelClosed))
	}
	return errors.Join(errs...)
}

// settle fills in what a new order leaves open.
func (t *Trade) settle() {
	t.Status = or(t.Status, WaitSellerSend)
	t.Kind = or(t.Kind, KindNormal)
	if len(t.Items) == 0 && !t.Auto {
		t.Items = []Item{{OID: t.TID, Quantity: 1}}
	}
	if len(t.Parcels) == 0 {
		t.Parcels = []Parcel{{SubTIDs: t.oids()}}
		switch t.Status {
		case WaitBuyerConfirm, Finished:
			t.Parcels[0].State = ParcelSent
		case Closed, ClosedByTaobao:
			t.Parcels[0].State = ParcelClosed
		default: // nothing has been shipped
		}
	}
	for i := range t.Parcels {
		p := &t.Parcels[i]
		p.State = or(p.State, ParcelNew)
		p.ID = or(p.ID, t.parcelID(i+1))
	}
}

func (t *Trade) parcelID(n int) string { return "LP" + t.TID + "-" + strconv.Itoa(n) }

func (t *Trade) oids() []string {
	ids := make([]string, len(t.Items))
	for i := range t.Items {
		ids[i] = t.Items[i].OID
	}
	return ids
}

// split reports whether the order has been split into several parcels.
func (t *Trade) split() bool { return len(t.Parcels) > 1 }

func (t *Trade) closed() bool { return t.Status == Closed || t.Status == ClosedByTaobao }

func (t *Trade) shipped() bool { return t.Status == WaitBuyerConfirm || t.Status == Finished }

// onHold reports whether the order waits for its payment or a release.
func (t *Trade) onHold() bool { return t.Status == WaitBuyerPay || t.Status == ForbidConsign }

// advance sets the status after parcels have changed.
func (t *Trade) advance() {
	news, sent := 0, 0
	for i := range t.Parcels {
		switch t.Parcels[i].State {
		case ParcelNew:
			news++
		case ParcelSent:
			sent++
		case ParcelClosed:
		}
	}
	switch {
	case news > 0 && sent > 0:
		t.Status = ConsignedPart
	case news == 0 && sent > 0:
		t.Status = WaitBuyerConfirm
	case news == 0:
		t.Status = Closed
	}
}

// carve takes the part orders out of a parcel into a new one, which it returns.
func (t *Trade) carve(from int, part []string) int {
	rest := slices.DeleteFunc(slices.Clone(t.Parcels[from].SubTIDs), func(id string) bool {
		return slices.Contains(part, id)
	})
	t.Parcels[from].SubTIDs = rest
	t.Parcels = append(t.Parcels, Parcel{ID: t.parcelID(len(t.Parcels) + 1), SubTIDs: part, State: ParcelNew})
	return len(t.Parcels) - 1
}

// sameSet reports whether two lists without repeats hold the same ids.
func sameSet(a, b []string) bool {
	return len(a) == len(b) && subset(a, b)
}

// subset reports whether every id of a is in b.
func subset(a, b []string) bool {
	for _, id := range a {
		if !slices.Contains(b, id) {
			return false
		}
	}
	return true
}

// Waybill is what the platform knows of a waybill number.
type Waybill struct {
	Company string `yaml:"company"`
	OutSID  string `yaml:"out_sid"`
	// Receiver is that of the first order shipped with it.
	Receiver string `yaml:"receiver,omitempty"`
	Used     bool   `yaml:"used,omitempty"`
	Fake     bool   `yaml:"fake,omitempty"`
	Expired  bool   `yaml:"expired,omitempty"`
	// CollectedAt is when the carrier picked the parcel up.
	CollectedAt time.Time `yaml:"collected_at,omitempty"`
	// SignedBy is the address at which the parcel was delivered.
	SignedBy string `yaml:"signed_by,omitempty"`
}

func (w *Waybill) validate() error {
	if w.Company == "" || w.OutSID == "" {
		return errors.New("upstreamtest: a waybill needs a company and an out_sid")
	}
	return nil
}

// Carrier is a carrier that works with the platform.
type Carrier struct {
	Code string `yaml:"code"`
	Name string `yaml:"name,omitempty"`
	// Pattern is a regular expression for its waybill numbers. "" is any.
	Pattern string `yaml:"pattern,omitempty"`
	// Disabled carriers are treated as unknown, Removed ones have left the
	// platform.
	Disabled bool `yaml:"disabled,omitempty"`
	Removed  bool `yaml:"removed,omitempty"`
	// NotSelfContact carriers can only be ordered through the platform.
	NotSelfContact bool `yaml:"not_self_contact,omitempty"`
	// NeedsSubscription carriers serve only shops that have subscribed.
	NeedsSubscription bool `yaml:"needs_subscription,omitempty"`

	pattern *regexp.Regexp
}

func (c *Carrier) validate() error {
	if c.Code == "" {
		return errors.New("upstreamtest: a carrier needs a code")
	}
	if _, err := regexp.Compile(c.Pattern); err != nil {
		return fmt.Errorf("upstreamtest: pattern of carrier %s: %w", c.Code, err)
	}
	return nil
}

// fits reports whether a waybill number keeps the carrier's rule.
func (c *Carrier) fits(outSID string) bool {
	return c.pattern == nil || c.pattern.MatchString(outSID)
}

// tradeKey finds an order. Order ids are unique on the platform; the seller is
// part of the key so that AutoCreate can give any shop any order.
type tradeKey struct{ seller, tid string }

type waybillKey struct{ company, outSID string }

// world is everything that exists in the simulated API. The simulator's mutex
// guards it.
type world struct {
	accounts map[string]*Account // by name
	byToken  map[string]*Account
	// customers is true once an account has been added by hand.
	customers bool
	dead      map[string]bool // tokens that were good once
	shops     map[string]*Shop
	trades    map[tradeKey]*Trade
	owners    map[string]string // tid to the seller of an order added by hand
	auto      []tradeKey        // orders made by AutoCreate, oldest first
	waybills  map[waybillKey]*Waybill
	carriers  map[string]*Carrier
}

func newWorld() *world {
	return &world{
		accounts: map[string]*Account{}, byToken: map[string]*Account{}, dead: map[string]bool{}, shops: map[string]*Shop{},
		trades: map[tradeKey]*Trade{}, owners: map[string]string{},
		waybills: map[waybillKey]*Waybill{}, carriers: map[string]*Carrier{},
	}
}

// setToken gives an account another token, or none. The one before is dead.
func (w *world) setToken(a *Account, token string) {
	if w.byToken[a.Token] == a {
		delete(w.byToken, a.Token)
		w.dead[a.Token] = true
	}
	a.Token, a.TokenIP, a.TokenExpires = token, "", time.Time{}
	if token != "" {
		w.byToken[token] = a
		delete(w.dead, token)
	}
}

func (w *world) addAccount(a Account) {
	w.customers = true
	if old := w.accounts[a.Name]; old != nil {
		w.setToken(old, "")
	}
	acc := &a
	w.accounts[a.Name] = acc
	if a.Token != "" {
		w.byToken[a.Token] = acc
	}
}

func (w *world) addTrade(t Trade) *Trade {
	t.Items, t.Parcels = slices.Clone(t.Items), slices.Clone(t.Parcels)
	t.settle()
	key := tradeKey{w.sellerOf(t.Shop), t.TID}
	w.trades[key] = &t
	if t.Auto {
		w.auto = append(w.auto, key)
	} else {
		w.owners[t.TID] = key.seller
	}
	return &t
}

// addShop adds a shop, or replaces it; its orders stay its own.
func (w *world) addShop(s Shop) {
	before := w.sellerOf(s.ID)
	w.shops[s.ID] = &s
	if before == s.seller() {
		return
	}
	for key, t := range w.trades {
		if t.Shop != s.ID {
			continue
		}
		delete(w.trades, key)
		w.trades[tradeKey{s.seller(), t.TID}] = t
		if !t.Auto {
			w.owners[t.TID] = s.seller()
		}
	}
}

func (w *world) sellerOf(shop string) string {
	if s := w.shops[shop]; s != nil {
		return s.seller()
	}
	return shop
}

func (w *world) trade(shop, tid string) *Trade {
	return w.trades[tradeKey{w.sellerOf(shop), tid}]
}

func (w *world) addCarrier(c Carrier) {
	c.Code = strings.ToUpper(c.Code)
	if c.Pattern != "" {
		c.pattern = regexp.MustCompile(c.Pattern)
	}
	w.carriers[c.Code] = &c
}

func (w *world) addWaybill(b Waybill) {
	b.Company, b.OutSID = strings.ToUpper(b.Company), strings.ToUpper(b.OutSID)
	w.waybills[waybillKey{b.Company, b.OutSID}] = &b
}

// book notes the first use of a waybill.
func (w *world) book(company, outSID, receiver string) {
	key := waybillKey{company, outSID}
	b := w.waybills[key]
	if b == nil {
		b = &Waybill{Company: company, OutSID: outSID}
		w.waybills[key] = b
	}
	if !b.Used {
		b.Used, b.Receiver = true, receiver
	}
}

// partners is the built-in catalogue: carriers that work with the platform, and
// what is publicly known of their waybill numbers, in a loose form.
var partners = []Carrier{
	{Code: "POST", Name: "中国邮政", Pattern: `^[A-Z0-9]{8,20}$`},
	{Code: "POSTB", Name: "邮政快递包裹", Pattern: `^([0-9]{13}|[A-Z]{2}[0-9]{11})$`},
	{Code: "EMS", Name: "EMS", Pattern: `^([A-Z]{2}[0-9]{9}[A-Z]{2}|[0-9]{13})$`},
	{Code: "EYB", Name: "EMS经济快递", Pattern: `^([A-Z]{2}[0-9]{9}[A-Z]{2}|[0-9]{13})$`},
	{Code: "ZJS", Name: "宅急送", Pattern: `^([A-Z0-9]{10}|A[0-9]{12}|ZJS[0-9]{12})$`},
	{Code: "SF", Name: "顺丰速运", Pattern: `^(SF[0-9]{12,14}|[0-9]{12,15})$`},
	{Code: "STO", Name: "申通快递", Pattern: `^([0-9]{12,16}|STO[0-9]{10})$`},
	{Code: "YTO", Name: "圆通速递", Pattern: `^(YT[0-9]{8,20}|[A-Z0-9]{10,12}|[A-Z0-9]{2}[0-9]{10,13}|[6-9][0-9]{17}|88[A-Z0-9]{16}|DD[89][0-9]{15})$`},
	{Code: "ZTO", Name: "中通快递", Pattern: `^(ZT[0-9]{10,12}|[0-9]{12,15})$`},
	{Code: "YUNDA", Name: "韵达快递", Pattern: `^([0-9]{13}|[0-9]{15}|YD[0-9]{10,13})$`},
	{Code: "HTKY", Name: "百世快递", Pattern: `^(JT[0-9]{12,13}|[A-Z]{1,4}[0-9]{7,13}|[0-9]{11,16})$`},
	{Code: "TTKDEX", Name: "天天快递", Pattern: `^([0-9]{12,14}|TT[0-9]{13})$`},
	{Code: "JD", Name: "京东配送", Pattern: `^JD[A-Z0-9]{10,18}$`},
	{Code: "UC", Name: "优速快递", Pattern: `^(VIP[0-9]{9}|V[0-9]{11}|[0-9]{12})$`},
	{Code: "QFKD", Name: "全峰快递", Pattern: `^([0-9]{12,15}|S[0-9]{9,11}-?P[0-9]{1,2})$`},
	{Code: "GTO", Name: "国通快递", Pattern: `^[0-9]{10,12}$`},
	{Code: "FAST", Name: "快捷快递", Pattern: `^([0-9]{9,13}|P330[0-9]{8}|D[0-9]{11})$`},
	{Code: "DBL", Name: "德邦物流", Pattern: `^([0-9]{8,10}|[0-9]{15,}[-0-9]*|DPK[0-9]{11,}[-0-9]*)$`},
	{Code: "FEDEX", Name: "联邦快递", Pattern: `^[0-9]{12}$`},
	{Code: "CRE", Name: "中铁快运", Pattern: `^K[0-9]{11}$`},
	{Code: "LBEX", Name: "龙邦速递", Pattern: `^([0-9]{12}|[0-9]{15})$`},
	{Code: "NEDA", Name: "能达快递", Pattern: `^[0-9]{9,12}$`},
}
