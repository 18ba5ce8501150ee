package upstreamtest_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"packship/upstream/upstreamtest"
)

// closedWorld is an API with one account, one shop and one order of three items
// in it, all in order.
func closedWorld() upstreamtest.Options {
	return upstreamtest.Options{
		Accounts: []upstreamtest.Account{{Name: "north", Token: token, Balance: new(int64(1000))}},
		Shops: []upstreamtest.Shop{
			{ID: "S1", Seller: "nick", AddressBook: []string{"77"}},
			{ID: "S2"},
			{ID: "PDD", Platform: "pinduoduo"},
		},
		Trades: []upstreamtest.Trade{
			{
				Shop: "S1", TID: "1001", Receiver: "r1", Sender: "s1",
				PaidAt: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
				Items:  []upstreamtest.Item{{OID: "11", Quantity: 2}, {OID: "12"}, {OID: "13"}},
			},
			{Shop: "S2", TID: "2002"},
		},
	}
}

// trade changes the order of the closed world.
func trade(change func(*upstreamtest.Trade)) func(*upstreamtest.Options) {
	return func(o *upstreamtest.Options) { change(&o.Trades[0]) }
}

func shop(change func(*upstreamtest.Shop)) func(*upstreamtest.Options) {
	return func(o *upstreamtest.Options) { change(&o.Shops[0]) }
}

func account(change func(*upstreamtest.Account)) func(*upstreamtest.Options) {
	return func(o *upstreamtest.Options) { change(&o.Accounts[0]) }
}

func switches(sw upstreamtest.Switches) func(*upstreamtest.Options) {
	return func(o *upstreamtest.Options) { o.Switches = sw }
}

func status(s upstreamtest.Status) func(*upstreamtest.Options) {
	return trade(func(t *upstreamtest.Trade) { t.Status = s })
}

func waybill(b upstreamtest.Waybill) func(*upstreamtest.Options) {
	b.Company, b.OutSID = "SF", "SF1234567890123"
	return func(o *upstreamtest.Options) { o.Waybills = []upstreamtest.Waybill{b} }
}

func carrier(k upstreamtest.Carrier) func(*upstreamtest.Options) {
	k.Code = "SF"
	return func(o *upstreamtest.Options) { o.Carriers = []upstreamtest.Carrier{k} }
}

func fault(f upstreamtest.Fault) func(*upstreamtest.Options) {
	return func(o *upstreamtest.Options) { o.Faults = append(o.Faults, f) }
}

// splitTrade has its order split into one parcel sent, one waiting and one
// closed.
var splitTrade = trade(func(t *upstreamtest.Trade) {
	t.Items = append(t.Items, upstreamtest.Item{OID: "14"}, upstreamtest.Item{OID: "15", Refunded: true})
	t.Status = upstreamtest.ConsignedPart
	t.Parcels = []upstreamtest.Parcel{
		{SubTIDs: []string{"11"}, State: upstreamtest.ParcelSent, OutSID: "SF0000000000001", Company: "SF"},
		{SubTIDs: []string{"12", "13", "14"}},
		{SubTIDs: []string{"15"}, State: upstreamtest.ParcelClosed},
	}
})

type rowCase struct {
	name  string
	row   int
	setup []func(*upstreamtest.Options)
	form  form
	// request changes the request itself.
	request func(*http.Request)
	// before is done to the API before the call.
	before func(*testing.T, *upstreamtest.Simulator)
}

var good = order("S1", "1001")

type opt = []func(*upstreamtest.Options)

// rowCases has a legitimate state and request for each row that the order of
// checks can come to, and more than one for most.
var rowCases = []rowCase{
	{name: "whole order", row: 1, form: good},
	{name: "first part", row: 1, form: good.with("is_split", "1", "sub_tid", "11")},
	{name: "whole waiting parcel", row: 1, setup: opt{splitTrade}, form: good.with("is_split", "1", "sub_tid", "14,12,13")},
	{name: "part of a waiting parcel", row: 1, setup: opt{splitTrade}, form: good.with("is_split", "1", "sub_tid", "14,12")},
	{name: "a carrier by its name", row: 1, form: good.with("company_code", "平安达腾飞", "out_sid", "whatever")},
	{name: "addresses of the book", row: 1, form: good.with("sender_id", "77", "cancel_id", "77")},
	{name: "feature", row: 1, form: good.with("feature", "identCode=11:A1,A2|12:B1;machineCode=13:M")},
	{name: "a waybill used for the same receiver", row: 1, setup: opt{waybill(upstreamtest.Waybill{Used: true, Receiver: "r1"})}, form: good},
	{name: "an edition offered", row: 1, setup: opt{account(func(a *upstreamtest.Account) { a.VVTypes = []int{1, 3} })}, form: good.with("vvtype", "3")},
	{name: "code in lower case", row: 1, form: good.with("company_code", "sf", "out_sid", "sf1234567890123")},
	{name: "an unknown carrier let through", row: 1, setup: opt{switches(upstreamtest.Switches{AnyCarrier: true})}, form: good.with("company_code", "JTSD")},

	{name: "no shop_id", row: 2, form: good.with("shop_id", "-")},
	{name: "no tid", row: 2, form: good.with("tid", "-")},
	{name: "tid with a zero before it", row: 2, form: good.with("tid", "01001")},
	{name: "tid beyond 64 bits", row: 2, form: good.with("tid", "9223372036854775808")},
	{name: "tid with letters", row: 2, form: good.with("tid", "201117-681808213123308")},
	{name: "vvtype out of range", row: 2, form: good.with("vvtype", "5")},
	{name: "vvtype not a number", row: 2, form: good.with("vvtype", "11")},
	{name: "no form", row: 2, form: good, request: func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }},
	{name: "URL encoding", row: 2, form: good, request: func(r *http.Request) {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}},
	{name: "no boundary", row: 2, form: good, request: func(r *http.Request) { r.Header.Set("Content-Type", "multipart/form-data") }},

	{name: "a gateway timeout", row: 3, setup: opt{fault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(3)})}, form: good},
	{name: "an unknown shop", row: 4, form: good.with("shop_id", "S9")},
	{name: "a system error", row: 5, setup: opt{fault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(5)})}, form: good},
	{name: "a system error for now", row: 6, setup: opt{fault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(6)})}, form: good},
	{name: "over the rate", row: 6, setup: opt{func(o *upstreamtest.Options) {
		o.Rate = upstreamtest.Rate{PerSecond: 1, Answer: upstreamtest.RateRow}
	}}, form: good, before: func(t *testing.T, sim *upstreamtest.Simulator) {
		t.Helper()
		send(t, sim, order("S2", "2002"))
	}},
	{name: "an edition not offered", row: 7, setup: opt{account(func(a *upstreamtest.Account) { a.VVTypes = []int{1} })}, form: good.with("vvtype", "3")},
	{name: "endpoint not opened", row: 8, setup: opt{account(func(a *upstreamtest.Account) { a.Denied = []string{"send"} })}, form: good},
	{name: "no balance", row: 9, setup: opt{account(func(a *upstreamtest.Account) { a.Balance = new(int64) })}, form: good},
	{name: "less than the price", row: 9, setup: opt{
		account(func(a *upstreamtest.Account) { a.Balance = new(int64(2)) }), func(o *upstreamtest.Options) { o.Price = 3 },
	}, form: good},
	{name: "shop not authorised", row: 10, setup: opt{shop(func(s *upstreamtest.Shop) { s.Unauthorised = true })}, form: good},
	{name: "shop of another account", row: 10, setup: opt{shop(func(s *upstreamtest.Shop) { s.Account = "south" })}, form: good},
	{name: "no token", row: 11, form: good, request: func(r *http.Request) { r.Header.Del("Authorization") }},
	{name: "another token", row: 11, form: good, request: func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }},
	{name: "no bearer", row: 11, form: good, request: func(r *http.Request) { r.Header.Set("Authorization", token) }},
	{name: "token expired", row: 11, setup: opt{account(func(a *upstreamtest.Account) { a.TokenExpires = time.Now().Add(-time.Second) })}, form: good},
	{name: "token of another address", row: 11, setup: opt{account(func(a *upstreamtest.Account) { a.TokenIP = "10.9.9.9" })}, form: good},
	{name: "another path", row: 12, form: good, request: func(r *http.Request) { r.URL.Path = "/tool/erps/sent" }},
	{name: "another method", row: 12, form: good, request: func(r *http.Request) { r.Method = http.MethodPut }},

	{name: "no such order", row: 13, form: good.with("tid", "999")},
	{name: "an order of another platform", row: 13, form: good.with("shop_id", "PDD")},
	{name: "on hold, by switch", row: 14, setup: opt{status(upstreamtest.ForbidConsign), switches(upstreamtest.Switches{OnHoldRow: 14})}, form: good},
	{name: "shipped", row: 15, setup: opt{status(upstreamtest.WaitBuyerConfirm)}, form: good},
	{name: "finished", row: 15, setup: opt{status(upstreamtest.Finished)}, form: good},
	{name: "shipped by a call", row: 15, form: good, before: func(t *testing.T, sim *upstreamtest.Simulator) {
		t.Helper()
		wantRow(t, send(t, sim, good), 1)
	}},
	{name: "shipped by hand", row: 15, form: good, before: func(t *testing.T, sim *upstreamtest.Simulator) {
		t.Helper()
		if err := sim.ShipByHand("S1", "1001", "YTO", "YT0000000001"); err != nil {
			t.Fatal(err)
		}
	}},
	{name: "closed, by switch", row: 15, setup: opt{status(upstreamtest.Closed), switches(upstreamtest.Switches{ClosedRow: 15})}, form: good},
	{name: "no carrier", row: 16, form: good.with("company_code", "-")},
	{name: "blank carrier", row: 16, form: good.with("company_code", " ")},
	{name: "no waybill", row: 17, form: good.with("out_sid", "-")},
	{name: "blank waybill", row: 17, form: good.with("out_sid", "  ")},
	{name: "against the carrier's rule", row: 18, form: good.with("out_sid", "123")},
	{name: "used, waybill first", row: 18, setup: opt{switches(upstreamtest.Switches{WaybillFirst: true})}, form: good, before: func(t *testing.T, sim *upstreamtest.Simulator) {
		t.Helper()
		wantRow(t, send(t, sim, good), 1)
	}},
	{name: "a list that is none", row: 19, form: good.with("is_split", "1", "sub_tid", "11,,12")},
	{name: "a list with a full-width comma", row: 19, form: good.with("is_split", "1", "sub_tid", "11，12")},
	{name: "a list with a repeat", row: 19, form: good.with("is_split", "1", "sub_tid", "11,11")},
	{name: "a list too long", row: 19, form: good.with("is_split", "1", "sub_tid", idList(51))},
	{name: "a flag that is none", row: 19, form: good.with("is_split", "true", "sub_tid", "11")},
	{name: "an address that is no number", row: 19, form: good.with("sender_id", "abc")},
	{name: "an address of somebody else", row: 21, form: good.with("sender_id", "78")},
	{name: "a return address of somebody else", row: 21, form: good.with("sender_id", "77", "cancel_id", "78")},
	{name: "no default address", row: 21, setup: opt{shop(func(s *upstreamtest.Shop) { s.NoDefaultAddress = true })}, form: good},
	{name: "session expired", row: 22, setup: opt{shop(func(s *upstreamtest.Shop) { s.SessionExpired = true })}, form: good},
	{name: "shipped, by switch", row: 23, setup: opt{status(upstreamtest.WaitBuyerConfirm), switches(upstreamtest.Switches{ShippedRows: []int{23}})}, form: good},
	{name: "a name too long", row: 24, form: good.with("company_code", strings.Repeat("快", 21))},
	{name: "not by self-contact", row: 25, setup: opt{carrier(upstreamtest.Carrier{NotSelfContact: true})}, form: good},
	{name: "unpaid", row: 26, setup: opt{status(upstreamtest.WaitBuyerPay)}, form: good},
	{name: "on hold", row: 26, setup: opt{status(upstreamtest.ForbidConsign)}, form: good},
	{name: "shipped, by another switch", row: 26, setup: opt{status(upstreamtest.WaitBuyerConfirm), switches(upstreamtest.Switches{ShippedRows: []int{26}})}, form: good},
	{name: "not subscribed", row: 27, setup: opt{carrier(upstreamtest.Carrier{NeedsSubscription: true})}, form: good},
	{name: "out of range", row: 28, setup: opt{
		carrier(upstreamtest.Carrier{NeedsSubscription: true}),
		shop(func(s *upstreamtest.Shop) { s.Subscriptions = []string{"SF"} }),
		trade(func(t *upstreamtest.Trade) { t.OutOfRange = true }),
	}, form: good},
	{name: "fake", row: 30, setup: opt{waybill(upstreamtest.Waybill{Fake: true})}, form: good},
	{name: "expired", row: 31, setup: opt{waybill(upstreamtest.Waybill{Expired: true})}, form: good},
	{name: "collected before it was paid", row: 32, setup: opt{waybill(upstreamtest.Waybill{CollectedAt: time.Date(2026, 10, 31, 0, 0, 0, 0, time.UTC)})}, form: good},
	{name: "delivered to somebody else", row: 33, setup: opt{waybill(upstreamtest.Waybill{SignedBy: "r2"})}, form: good},
	{name: "used, and the order is suspect", row: 34, setup: opt{
		waybill(upstreamtest.Waybill{Used: true, Receiver: "r2"}), trade(func(t *upstreamtest.Trade) { t.Suspect = true }),
	}, form: good},
	{name: "used", row: 35, setup: opt{waybill(upstreamtest.Waybill{Used: true, Receiver: "r2"})}, form: good},
	{name: "used by nobody known", row: 35, setup: opt{waybill(upstreamtest.Waybill{Used: true})}, form: good},
	{name: "used by another call", row: 35, setup: opt{func(o *upstreamtest.Options) {
		o.Trades[1].Receiver = "r2"
	}}, form: good, before: func(t *testing.T, sim *upstreamtest.Simulator) {
		t.Helper()
		wantRow(t, send(t, sim, order("S2", "2002")), 1)
	}},
	{name: "back to the sender", row: 36, setup: opt{trade(func(t *upstreamtest.Trade) { t.Sender = "r1" })}, form: good},
	{name: "a flag alone", row: 37, form: good.with("is_split", "0")},
	{name: "a flag with an empty list", row: 37, form: good.with("is_split", "0", "sub_tid", "")},
	{name: "a list alone", row: 37, form: good.with("sub_tid", "11")},
	{name: "split into nothing", row: 38, form: good.with("is_split", "1")},
	{name: "split into an empty list", row: 38, form: good.with("is_split", "1", "sub_tid", "")},
	{name: "whole, but split, by switch", row: 39, setup: opt{splitTrade, switches(upstreamtest.Switches{SplitMissingRow: 39})}, form: good},
	{name: "whole, but split", row: 40, setup: opt{splitTrade}, form: good},
	{name: "whole, but split, by another switch", row: 41, setup: opt{splitTrade, switches(upstreamtest.Switches{SplitMissingRow: 41})}, form: good},
	{name: "split, but the flag is 0", row: 42, setup: opt{splitTrade}, form: good.with("is_split", "0", "sub_tid", "12,13,14")},
	{name: "parts of no parcel", row: 44, form: good.with("is_split", "1", "sub_tid", "98,99")},
	{name: "all parts of an order not split", row: 45, form: good.with("is_split", "1", "sub_tid", "13,12,11")},
	{name: "a list for an order not split", row: 45, form: good.with("is_split", "0", "sub_tid", "11")},
	{name: "parts of two parcels", row: 46, setup: opt{splitTrade}, form: good.with("is_split", "1", "sub_tid", "11,12")},
	{name: "splitting twice, by switch", row: 46, setup: opt{splitTrade, switches(upstreamtest.Switches{SplitOnce: true})}, form: good.with("is_split", "1", "sub_tid", "12,13")},
	{name: "no such order, by switch", row: 47, setup: opt{switches(upstreamtest.Switches{MissingTradeRow: 47})}, form: good.with("tid", "999")},
	{name: "an order of another seller", row: 49, form: good.with("tid", "2002")},
	{name: "some parts of no parcel", row: 50, form: good.with("is_split", "1", "sub_tid", "11,99")},
	{name: "a part once more, by switch", row: 50, setup: opt{splitTrade, switches(upstreamtest.Switches{RepeatedPartRows: []int{50}})}, form: good.with("is_split", "1", "sub_tid", "11")},
	{name: "virtual", row: 51, setup: opt{trade(func(t *upstreamtest.Trade) { t.Kind = upstreamtest.KindVirtual })}, form: good},
	{name: "home decoration", row: 51, setup: opt{trade(func(t *upstreamtest.Trade) { t.Kind = upstreamtest.KindHome })}, form: good},
	{name: "cash on delivery", row: 51, setup: opt{trade(func(t *upstreamtest.Trade) { t.Kind = upstreamtest.KindCOD })}, form: good},
	{name: "ordered online", row: 51, setup: opt{trade(func(t *upstreamtest.Trade) { t.Kind = upstreamtest.KindOnline })}, form: good},
	{name: "feature against the grammar", row: 52, form: good.with("feature", "identCode=tid:aaa,bbb")},
	{name: "no store of a shop with stores", row: 52, setup: opt{shop(func(s *upstreamtest.Shop) { s.OmniChannel = true })}, form: good},
	{name: "system exception", row: 53, setup: opt{fault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(53)})}, form: good},
	{name: "an order of another seller, by switch", row: 54, setup: opt{switches(upstreamtest.Switches{ForeignTradeRow: 54})}, form: good.with("tid", "2002")},
	{name: "ship exception", row: 55, setup: opt{fault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(55)})}, form: good},
	{name: "other", row: 56, form: good.with("company_code", "other")},
	{name: "other, with any carrier let through", row: 56, setup: opt{switches(upstreamtest.Switches{AnyCarrier: true})}, form: good.with("company_code", "OTHER")},
	{name: "an unknown carrier", row: 56, form: good.with("company_code", "XYZ")},
	{name: "a disabled carrier", row: 56, setup: opt{carrier(upstreamtest.Carrier{Disabled: true})}, form: good},
	{name: "a removed carrier", row: 57, setup: opt{carrier(upstreamtest.Carrier{Removed: true})}, form: good},
	{name: "shipped, by a third switch", row: 58, setup: opt{status(upstreamtest.WaitBuyerConfirm), switches(upstreamtest.Switches{ShippedRows: []int{58}})}, form: good},
	{name: "refunded", row: 59, setup: opt{status(upstreamtest.Closed)}, form: good},
	{name: "never paid", row: 59, setup: opt{status(upstreamtest.ClosedByTaobao)}, form: good},
	{name: "a refunded part", row: 59, setup: opt{splitTrade}, form: good.with("is_split", "1", "sub_tid", "15")},
	{name: "third-party logistics", row: 60, setup: opt{trade(func(t *upstreamtest.Trade) { t.Kind = upstreamtest.KindThirdParty })}, form: good},
}

// injectedRows come of no state that is simulated.
var injectedRows = []int{20, 29, 43, 48}

func idList(n int) string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprint(100 + i)
	}
	return strings.Join(ids, ",")
}

func (tc *rowCase) run(t *testing.T) (*upstreamtest.Simulator, reply) {
	t.Helper()
	opts := closedWorld()
	for _, change := range tc.setup {
		change(&opts)
	}
	sim := open(t, opts)
	if tc.before != nil {
		tc.before(t, sim)
	}
	r := tc.form.request(upstreamtest.SendPath)
	if tc.request != nil {
		tc.request(r)
	}
	return sim, post(t, sim, r)
}

func TestEachRowIsReached(t *testing.T) {
	reached := map[int]bool{}
	for _, tc := range rowCases {
		reached[tc.row] = true
		t.Run(fmt.Sprintf("%d %s", tc.row, tc.name), func(t *testing.T) {
			sim, got := tc.run(t)
			wantRow(t, got, tc.row)
			calls := sim.Journal().Requests()
			last := calls[len(calls)-1]
			if last.Row != tc.row {
				t.Errorf("the journal has row %d", last.Row)
			}
			if applied := tc.row == 1; last.Applied != applied {
				t.Errorf("applied: got %t, want %t", last.Applied, applied)
			}
			if linked := tc.row == 10; (got.URL != "") != linked {
				t.Errorf("got url %q", got.URL)
			}
		})
	}
	for _, n := range injectedRows {
		if reached[n] {
			t.Errorf("row %d is reached by a state, too", n)
		}
		reached[n] = true
		t.Run(fmt.Sprintf("%d injected", n), func(t *testing.T) {
			tc := rowCase{form: good, setup: opt{fault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(n)})}}
			_, got := tc.run(t)
			wantRow(t, got, n)
		})
	}
	for n := 1; n <= 60; n++ {
		if !reached[n] {
			t.Errorf("row %d is not reached", n)
		}
	}
}

// TestOrderOfChecks breaks a call in two ways at once, in all pairs that go
// together: the earlier check answers.
func TestOrderOfChecks(t *testing.T) {
	steps := []struct {
		name    string
		row     int // 0 is HTTP status 429
		change  func(*upstreamtest.Options)
		fields  []string
		request func(*http.Request)
		twice   bool   // the call is made once before
		clash   string // steps of one clash cannot be broken at once
	}{
		{name: "path", row: 12, request: func(r *http.Request) { r.URL.Path = "/" }},
		{name: "token", row: 11, request: func(r *http.Request) { r.Header.Set("Authorization", "Bearer y") }},
		{name: "permission", row: 8, change: account(func(a *upstreamtest.Account) { a.Denied = []string{"send"} })},
		{name: "balance", row: 9, change: account(func(a *upstreamtest.Account) { a.Balance = new(int64) })},
		{name: "rate", change: func(o *upstreamtest.Options) { o.Rate.PerSecond = 1 }, twice: true},
		{name: "parameters", row: 2, fields: []string{"vvtype", "9"}},
		{name: "shop", row: 10, change: shop(func(s *upstreamtest.Shop) { s.Unauthorised = true })},
		{name: "session", row: 22, change: shop(func(s *upstreamtest.Shop) { s.SessionExpired = true })},
		{name: "fault", row: 55, change: fault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(55)})},
		{name: "carrier given", row: 16, fields: []string{"company_code", ""}, clash: "company"},
		{name: "split pair", row: 37, fields: []string{"is_split", "0"}, clash: "split"},
		{name: "feature", row: 52, fields: []string{"feature", "x"}},
		{name: "order", row: 13, fields: []string{"tid", "999"}, clash: "order"},
		{name: "kind", row: 51, change: trade(func(t *upstreamtest.Trade) { t.Kind = upstreamtest.KindHome })},
		{name: "closed", row: 59, change: status(upstreamtest.Closed), clash: "status"},
		{name: "shipped", row: 15, change: status(upstreamtest.WaitBuyerConfirm), clash: "status"},
		{name: "unpaid", row: 26, change: status(upstreamtest.WaitBuyerPay), clash: "status"},
		{name: "split", row: 44, fields: []string{"is_split", "1", "sub_tid", "99"}, clash: "split"},
		{name: "address", row: 21, fields: []string{"sender_id", "5"}},
		{name: "carrier", row: 56, fields: []string{"company_code", "OTHER"}, clash: "company"},
		{name: "waybill", row: 18, fields: []string{"out_sid", "1"}},
		{name: "receiver", row: 36, change: trade(func(t *upstreamtest.Trade) { t.Sender = t.Receiver })},
	}
	for i, first := range steps {
		for _, second := range steps[i+1:] {
			if first.clash != "" && first.clash == second.clash {
				continue
			}
			t.Run(first.name+" before "+second.name, func(t *testing.T) {
				opts := closedWorld()
				f := good
				sim := func() *upstreamtest.Simulator {
					for _, s := range []func(*upstreamtest.Options){first.change, second.change} {
						if s != nil {
							s(&opts)
						}
					}
					return open(t, opts)
				}()
				f = f.with(first.fields...).with(second.fields...)
				request := func() *http.Request {
					r := f.request(upstreamtest.SendPath)
					if first.request != nil {
						first.request(r)
					}
					if second.request != nil {
						second.request(r)
					}
					return r
				}
				if first.twice {
					post(t, sim, request())
				}
				got := post(t, sim, request())
				if first.row == 0 {
					if got.Status != http.StatusTooManyRequests {
						t.Fatalf("got %d %s, want 429", got.Status, got.Body)
					}
					return
				}
				wantRow(t, got, first.row)
			})
		}
	}
}

func TestAnswersTakeTurns(t *testing.T) {
	opts := closedWorld()
	opts.Switches.ShippedRows = []int{15, 23, 26, 58}
	sim := open(t, opts)
	wantRow(t, send(t, sim, good), 1)
	for _, want := range []int{15, 23, 26, 58, 15} {
		wantRow(t, send(t, sim, good), want)
	}
}

// TestSplitMachine ships an order of three items in parts.
func TestSplitMachine(t *testing.T) {
	sim := open(t, closedWorld())
	part := func(list, outSID string) form {
		return good.with("is_split", "1", "sub_tid", list, "out_sid", outSID)
	}
	steps := []struct {
		form   form
		row    int
		status upstreamtest.Status
	}{
		{part("12", "SF000000000001"), 1, upstreamtest.ConsignedPart},
		{part("12", "SF000000000001"), 15, upstreamtest.ConsignedPart}, // repeats take turns
		{part("12", "SF000000000001"), 58, upstreamtest.ConsignedPart},
		{part("12", "SF000000000001"), 50, upstreamtest.ConsignedPart},
		{good, 40, upstreamtest.ConsignedPart},
		{part("12,11", "SF000000000002"), 46, upstreamtest.ConsignedPart},
		{part("13,77", "SF000000000002"), 50, upstreamtest.ConsignedPart},
		{part("77", "SF000000000002"), 44, upstreamtest.ConsignedPart},
		{part("11,12,13", "SF000000000002"), 46, upstreamtest.ConsignedPart},
		{part("13", "SF000000000002"), 1, upstreamtest.ConsignedPart},
		{part("11", "SF000000000003"), 1, upstreamtest.WaitBuyerConfirm},
		{part("11", "SF000000000003"), 15, upstreamtest.WaitBuyerConfirm},
		{good, 15, upstreamtest.WaitBuyerConfirm},
	}
	for i, step := range steps {
		wantRow(t, send(t, sim, step.form), step.row)
		got, _ := sim.Trade("S1", "1001")
		if got.Status != step.status {
			t.Fatalf("step %d: status %s, want %s", i, got.Status, step.status)
		}
	}
	got, _ := sim.Trade("S1", "1001")
	waybills := map[string]string{}
	for _, p := range got.Parcels {
		waybills[strings.Join(p.SubTIDs, ",")] = p.OutSID
	}
	want := map[string]string{"11": "SF000000000003", "12": "SF000000000001", "13": "SF000000000002"}
	if !maps.Equal(waybills, want) {
		t.Errorf("got waybills %v, want %v", waybills, want)
	}
	if st := sim.Stats(); st.Applied != 3 || st.AppliedTwice != 0 || st.Shipments != 8 {
		t.Errorf("got %d applied, %d twice, %d shipments, want 3, 0, 8", st.Applied, st.AppliedTwice, st.Shipments)
	}
	if v := sim.Verify(); len(v) != 0 {
		t.Errorf("violations: %v", v)
	}
}

func TestSplitOfAutoCreatedOrder(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true})
	part := func(list string) form { return order("S", "5", "is_split", "1", "sub_tid", list) }
	wantRow(t, send(t, sim, part("11")), 1)
	wantRow(t, send(t, sim, part("12,13")), 1)
	wantRow(t, send(t, sim, part("13,12")), 15)
	wantRow(t, send(t, sim, part("13,14")), 46)
	wantRow(t, send(t, sim, order("S", "5")), 40)
	wantRow(t, send(t, sim, part("14")), 1)
	if st := sim.Stats(); st.Applied != 3 || st.Repeats != 1 {
		t.Errorf("got %d applied, %d repeats, want 3 and 1", st.Applied, st.Repeats)
	}
}

func TestStateMachine(t *testing.T) {
	type step struct {
		name string
		do   func(*upstreamtest.Simulator) error
		fail bool
		want upstreamtest.Status
	}
	do := func(f func(s *upstreamtest.Simulator, shop, tid string) error) func(*upstreamtest.Simulator) error {
		return func(s *upstreamtest.Simulator) error { return f(s, "S1", "1001") }
	}
	pay, cancel := do((*upstreamtest.Simulator).Pay), do((*upstreamtest.Simulator).Cancel)
	hold, release, confirm := do((*upstreamtest.Simulator).Hold), do((*upstreamtest.Simulator).Release), do((*upstreamtest.Simulator).Confirm)
	refund := func(oids ...string) func(*upstreamtest.Simulator) error {
		return func(s *upstreamtest.Simulator) error { return s.Refund("S1", "1001", oids...) }
	}
	byHand := func(oids ...string) func(*upstreamtest.Simulator) error {
		return func(s *upstreamtest.Simulator) error {
			return s.ShipByHand("S1", "1001", "SF", "SF000000000009", oids...)
		}
	}
	tests := map[string]struct {
		from  upstreamtest.Status
		steps []step
	}{
		"paid, shipped, received": {upstreamtest.WaitBuyerPay, []step{
			{"ship", byHand(), true, upstreamtest.WaitBuyerPay},
			{"pay", pay, false, upstreamtest.WaitSellerSend},
			{"pay again", pay, true, upstreamtest.WaitSellerSend},
			{"confirm", confirm, true, upstreamtest.WaitSellerSend},
			{"ship", byHand(), false, upstreamtest.WaitBuyerConfirm},
			{"ship again", byHand(), true, upstreamtest.WaitBuyerConfirm},
			{"confirm", confirm, false, upstreamtest.Finished},
			{"refund", refund(), true, upstreamtest.Finished},
		}},
		"cancelled": {upstreamtest.WaitBuyerPay, []step{
			{"refund", refund(), true, upstreamtest.WaitBuyerPay},
			{"cancel", cancel, false, upstreamtest.ClosedByTaobao},
			{"pay", pay, true, upstreamtest.ClosedByTaobao},
		}},
		"held and released": {"", []step{
			{"release", release, true, upstreamtest.WaitSellerSend},
			{"hold", hold, false, upstreamtest.ForbidConsign},
			{"ship", byHand(), true, upstreamtest.ForbidConsign},
			{"release", release, false, upstreamtest.WaitSellerSend},
		}},
		"refunded": {"", []step{
			{"refund", refund(), false, upstreamtest.Closed},
			{"hold", hold, true, upstreamtest.Closed},
		}},
		"refunded item by item": {"", []step{
			{"no such item", refund("99"), true, upstreamtest.WaitSellerSend},
			{"one", refund("11"), false, upstreamtest.WaitSellerSend},
			{"others", refund("12", "13"), false, upstreamtest.Closed},
		}},
		"parts by hand, rest refunded": {"", []step{
			{"ship one", byHand("12"), false, upstreamtest.ConsignedPart},
			{"ship none", byHand("12"), true, upstreamtest.ConsignedPart},
			{"refund one of the rest", refund("11"), false, upstreamtest.ConsignedPart},
			{"refund the rest", refund("13"), false, upstreamtest.WaitBuyerConfirm},
		}},
		"parts by hand": {"", []step{
			{"ship one", byHand("12"), false, upstreamtest.ConsignedPart},
			{"ship the rest", byHand(), false, upstreamtest.WaitBuyerConfirm},
			{"refund", refund(), false, upstreamtest.Closed},
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			opts := closedWorld()
			opts.Trades[0].Status = tt.from
			sim := open(t, opts)
			for i, st := range tt.steps {
				if err := st.do(sim); (err != nil) != st.fail {
					t.Fatalf("step %d, %s: got error %v", i, st.name, err)
				}
				got, _ := sim.Trade("S1", "1001")
				if got.Status != st.want {
					t.Fatalf("step %d, %s: got %s, want %s", i, st.name, got.Status, st.want)
				}
			}
		})
	}
}

func TestCharging(t *testing.T) {
	tests := map[upstreamtest.ChargeMode]int64{
		"": 4 * 3, upstreamtest.ChargeCall: 4 * 3, // all but the one over the rate
		upstreamtest.ChargePlatform: 3 * 3, // and the one with bad parameters
		upstreamtest.ChargeSuccess:  1 * 3,
	}
	for mode, want := range tests {
		t.Run("on "+string(mode), func(t *testing.T) {
			opts := closedWorld()
			opts.Price = 3
			opts.Rate = upstreamtest.Rate{PerSecond: 4}
			opts.Switches.ChargeOn, opts.Switches.ShowCharge = mode, true
			sim := open(t, opts)
			wantRow(t, send(t, sim, good.with("tid", "x")), 2)
			shipped := send(t, sim, good)
			wantRow(t, shipped, 1)
			wantRow(t, send(t, sim, good), 15)
			failed := send(t, sim, good.with("tid", "999"))
			wantRow(t, failed, 13)
			if got := send(t, sim, good); got.Status != http.StatusTooManyRequests {
				t.Errorf("the fifth call is answered with %d %s", got.Status, got.Body)
			}
			if got, want := string(shipped.Data), `[{"withholding_money":3,"success":true}]`; got != want {
				t.Errorf("got data %s, want %s", got, want)
			}
			wantData := `[{"withholding_money":3,"success":false}]`
			if mode == upstreamtest.ChargeSuccess {
				wantData = `[]`
			}
			if got := string(failed.Data); got != wantData {
				t.Errorf("got data %s, want %s", got, wantData)
			}
			if got := sim.Journal().TotalCharge(); got != want {
				t.Errorf("got a charge of %d, want %d", got, want)
			}
			acc, _ := sim.Account("north")
			if got := *acc.Balance; got != 1000-want {
				t.Errorf("got a balance of %d, want %d", got, 1000-want)
			}
			if got := sim.Stats().ByAccount["north"]; got != (upstreamtest.AccountStats{Requests: 5, Spent: want}) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestBalanceRunsOutMidway has two calls under way with the price of one left.
func TestBalanceRunsOutMidway(t *testing.T) {
	for _, mode := range []upstreamtest.ChargeMode{upstreamtest.ChargePlatform, upstreamtest.ChargeSuccess} {
		t.Run(string(mode), func(t *testing.T) {
			opts := closedWorld()
			opts.Accounts[0].Balance = new(int64(1))
			opts.Switches.ChargeOn = mode
			opts.Latency.Fixed = 20 * time.Millisecond
			sim := open(t, opts)
			answers := make(chan reply)
			for _, f := range []form{good, order("S2", "2002", "out_sid", "SF0000000000002")} {
				go func() { answers <- send(t, sim, f) }()
			}
			codes := []int{*(<-answers).Code, *(<-answers).Code}
			slices.Sort(codes)
			if !slices.Equal(codes, []int{0, 204}) {
				t.Errorf("got codes %v, want one success and one 204", codes)
			}
			if st := sim.Stats(); st.Applied != 1 || st.TotalCharge != 1 {
				t.Errorf("got %d applied for %d points, want 1 for 1", st.Applied, st.TotalCharge)
			}
		})
	}
}

func TestAllowRepeats(t *testing.T) {
	opts := closedWorld()
	opts.Switches.AllowRepeats = true
	sim := open(t, opts)
	for range 3 {
		wantRow(t, send(t, sim, good), 1)
	}
	if got := sim.Stats().AppliedTwice; got != 2 {
		t.Errorf("got %d repeats applied, want 2", got)
	}
	v := sim.Verify()
	if len(v) != 1 || v[0].Rule != "applied_once" || !strings.Contains(v[0].Detail, "LP1001-1") {
		t.Errorf("got violations %v", v)
	}
	calls, applied := sim.Journal().CountOf(upstreamtest.NewShipment("S1", "1001", "SF1234567890123", "SF"))
	if calls != 3 || applied != 3 {
		t.Errorf("got %d calls, %d applied, want 3 and 3", calls, applied)
	}
}
