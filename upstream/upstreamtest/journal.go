package upstreamtest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Entry is what the journal has of one request.
type Entry struct {
	N int `json:"n"` // 1 is the first request
	// Arrived is when the request's first byte was read from the connection,
	// where the server is set up for it (see [Simulator.Listener]), else when
	// its handler began.
	Arrived time.Time `json:"arrived"`
	// Done is when the caller had the answer, or went away. It is zero before.
	Done     time.Time `json:"done,omitzero"`
	Endpoint string    `json:"endpoint"` // send, token, fullinfo, detail, shop-authorize, or "" for another path
	Method   string    `json:"method"`
	Path     string    `json:"path"`
	Remote   string    `json:"remote,omitempty"`
	Token    string    `json:"token,omitempty"`
	Account  string    `json:"account,omitempty"` // "" if the token is nobody's
	Form     []Field   `json:"form,omitempty"`    // in the order of the wire
	Shipment Shipment  `json:"shipment,omitzero"`

	Status    int    `json:"status,omitempty"` // HTTP status, 0 if none was answered
	Row       int    `json:"row,omitempty"`    // of the answer table, 0 if the answer is none of it
	Fault     string `json:"fault,omitempty"`
	Applied   bool   `json:"applied,omitempty"` // the call has shipped its parcel
	Parcel    string `json:"parcel,omitempty"`  // which
	Charge    int64  `json:"charge,omitempty"`
	Throttled bool   `json:"throttled,omitempty"` // the call was over the rate
	// Delivered is true if the API's own answer, whole and unspoilt by a fault,
	// was written to a caller that was still there.
	Delivered bool `json:"delivered,omitempty"`

	IdempotencyKey bool   `json:"idempotency_key,omitempty"` // the header was there
	Cookie         string `json:"cookie,omitempty"`
	// ContentLength is the header's, -1 for a chunked body.
	ContentLength int64 `json:"content_length"`
	Redirected    bool  `json:"redirected,omitempty"` // the caller followed a redirect
	// Overlap is true if another call for the same order was going on when
	// this one came.
	Overlap bool `json:"overlap,omitempty"`
	// Blind is true if an earlier call for the same shipment had been answered
	// for good.
	Blind bool `json:"blind,omitempty"`
}

// Shipment is what makes two calls the same shipment. It is comparable.
type Shipment struct {
	ShopID      string `json:"shop_id"`
	TID         string `json:"tid"`
	Split       bool   `json:"split,omitempty"`
	SubTIDs     string `json:"sub_tids,omitempty"` // sorted, joined by commas
	OutSID      string `json:"out_sid"`
	CompanyCode string `json:"company_code"`
}

// NewShipment returns the shipment of an order, or of parts of it.
func NewShipment(shop, tid, outSID, company string, subTIDs ...string) Shipment {
	return Shipment{
		ShopID: shop, TID: tid, OutSID: outSID, CompanyCode: company,
		Split: len(subTIDs) > 0, SubTIDs: strings.Join(slices.Sorted(slices.Values(subTIDs)), ","),
	}
}

func shipmentOf(f fields) Shipment {
	s := Shipment{
		ShopID: f.value("shop_id"), TID: f.value("tid"), Split: f.value("is_split") == "1",
		OutSID: f.value("out_sid"), CompanyCode: f.value("company_code"),
	}
	if list := f.value("sub_tid"); list != "" {
		s.SubTIDs = strings.Join(slices.Sorted(strings.SplitSeq(list, ",")), ",")
	}
	return s
}

// Stats counts what the journal has seen since the start or its last Reset.
type Stats struct {
	Requests int `json:"requests"` // of every kind
	Calls    int `json:"calls"`    // to the send endpoint
	// Shipments is how many different shipments the calls were for, and
	// Repeats how many calls were not the first for their shipment.
	Shipments int `json:"shipments"`
	Repeats   int `json:"repeats"`
	// BlindRepeats are the calls for a shipment after an earlier call for it
	// had been answered for good, Overlaps those during another call for the
	// same order.
	BlindRepeats int `json:"blind_repeats"`
	Overlaps     int `json:"overlaps"`
	// Applied is how many parcels calls have shipped, AppliedTwice how often
	// that was one shipped before.
	Applied      int   `json:"applied"`
	AppliedTwice int   `json:"applied_twice"`
	Charged      int   `json:"charged"` // requests that cost something
	TotalCharge  int64 `json:"total_charge"`
	// MaxInAnySecond is the largest number of calls to the send endpoint with
	// one token that arrived in any second.
	MaxInAnySecond int `json:"max_in_any_second"`
	Throttled      int `json:"throttled"`     // requests over the rate
	UnknownToken   int `json:"unknown_token"` // requests whose token was not good
	TokenCalls     int `json:"token_calls"`   // requests to the token endpoint
	InFlight       int `json:"in_flight"`     // requests that wait for their answer
	// IdempotencyKeys, SampleCookies and Redirected count requests with marks
	// of a careless client.
	IdempotencyKeys int `json:"idempotency_keys"`
	SampleCookies   int `json:"sample_cookies"`
	Redirected      int `json:"redirected"`
	// Rows counts answers to calls by row, Faults calls by what hit them.
	Rows   map[int]int    `json:"rows"`
	Faults map[string]int `json:"faults"`
	// ByAccount has requests and points by the name of the account.
	ByAccount map[string]AccountStats `json:"by_account"`
}

// AccountStats counts what one account has done.
type AccountStats struct {
	Requests int   `json:"requests"`
	Spent    int64 `json:"spent"`
}

// Violation is something that a caller of the API must never do.
type Violation struct {
	Rule   string `json:"rule"` // applied_once, idempotency_key, sample_cookie, redirect, rate
	Detail string `json:"detail"`
}

// Journal is the memory of a [Simulator]: what was asked and what came of it.
// It is safe for concurrent use.
type Journal struct {
	limit int

	mu        sync.Mutex
	entries   []*Entry
	seen      int
	stats     Stats
	peaks     map[peakKey]*peak
	shipments map[Shipment]*shipmentStats
	orders    map[orderKey]*orderStats
	twice     []string // parcels shipped more than once, the first few
	waiting   chan struct{}
}

type peakKey struct {
	endpoint endpoint
	token    string
}

type orderKey struct{ shop, tid string }

type orderStats struct {
	calls, inFlight int
	shipments       []Shipment
}

type shipmentStats struct {
	calls, applied int
	concluded      int // calls that have been answered for good
}

func newJournal(limit int) *Journal {
	j := &Journal{limit: limit}
	j.Reset()
	return j
}

// Reset forgets everything but the numbering of requests.
func (j *Journal) Reset() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries, j.twice = nil, nil
	j.stats = Stats{Rows: map[int]int{}, Faults: map[string]int{}, ByAccount: map[string]AccountStats{}, InFlight: j.stats.InFlight}
	j.peaks = map[peakKey]*peak{}
	j.shipments = map[Shipment]*shipmentStats{}
	j.orders = map[orderKey]*orderStats{}
}

// begin notes a request at its arrival.
func (j *Journal) begin(e *Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seen++
	e.N = j.seen
	j.entries = append(j.entries, e)
	// Trimming in batches makes it cost nothing.
	if j.limit > 0 && len(j.entries) >= 2*j.limit {
		j.entries = append(j.entries[:0:0], j.entries[len(j.entries)-j.limit:]...)
	}
	s := &j.stats
	s.Requests++
	s.InFlight++
	if e.IdempotencyKey {
		s.IdempotencyKeys++
	}
	if hasSampleCookie(e.Cookie) {
		s.SampleCookies++
	}
	if e.Redirected {
		s.Redirected++
	}
	if e.Endpoint == string(endpointToken) {
		s.TokenCalls++
	}
	if e.Endpoint != "" {
		key := peakKey{endpoint(e.Endpoint), e.Token}
		p := j.peaks[key]
		if p == nil {
			p = &peak{}
			j.peaks[key] = p
		}
		p.add(e.Arrived)
		if e.Endpoint == string(endpointSend) {
			s.Calls++
			s.MaxInAnySecond = max(s.MaxInAnySecond, p.most)
		}
	}
	j.wake()
}

// describe notes the form of a request and returns which call of its order it
// is.
func (j *Journal) describe(e *Entry, form fields) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.Form = form
	if e.Endpoint != string(endpointSend) {
		return e.N
	}
	e.Shipment = shipmentOf(form)
	key := orderKey{e.Shipment.ShopID, e.Shipment.TID}
	o := j.orders[key]
	if o == nil {
		o = &orderStats{}
		j.orders[key] = o
	}
	sh := j.shipments[e.Shipment]
	if sh == nil {
		sh = &shipmentStats{}
		j.shipments[e.Shipment] = sh
		o.shipments = append(o.shipments, e.Shipment)
		j.stats.Shipments++
	} else {
		j.stats.Repeats++
	}
	sh.calls++
	o.calls++
	if sh.concluded > 0 {
		e.Blind = true
		j.stats.BlindRepeats++
	}
	if o.inFlight > 0 {
		e.Overlap = true
		j.stats.Overlaps++
	}
	// A caller may be gone before its form is read; done has come then.
	if e.Done.IsZero() {
		o.inFlight++
	}
	j.wake()
	return o.calls
}

// done notes that the caller gets its answer now or has gone away. The first
// call counts.
func (j *Journal) done(e *Entry, delivered bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !e.Done.IsZero() {
		return
	}
	e.Done = time.Now()
	e.Delivered = delivered
	j.stats.InFlight--
	if o := j.orders[orderKey{e.Shipment.ShopID, e.Shipment.TID}]; o != nil && o.inFlight > 0 && e.Endpoint == string(endpointSend) {
		o.inFlight--
	}
	if sh := j.shipments[e.Shipment]; sh != nil && delivered && conclusive(e.Row) {
		sh.concluded++
	}
	j.wake()
}

// lost notes that an answer has not reached the caller after all.
func (j *Journal) lost(e *Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !e.Delivered {
		return
	}
	e.Delivered = false
	if sh := j.shipments[e.Shipment]; sh != nil && conclusive(e.Row) {
		sh.concluded--
	}
	j.wake()
}

// conclusive reports whether an answer says for good what became of a call.
// The others leave it open, or turn the caller away for now.
func conclusive(row int) bool {
	switch row {
	case rowOK, rowBadRequest:
		return true
	case rowNoSession, rowSystemException, rowShipException:
		return false
	default:
		return row > rowBadPath
	}
}

// note records what the simulator decided about a request.
func (j *Journal) note(e *Entry, change func(e *Entry)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	before := *e
	change(e)
	s := &j.stats
	if e.Account != before.Account {
		a := s.ByAccount[e.Account]
		a.Requests++
		s.ByAccount[e.Account] = a
	}
	if cost := e.Charge - before.Charge; cost != 0 {
		if before.Charge == 0 {
			s.Charged++
		}
		s.TotalCharge += cost
		a := s.ByAccount[e.Account]
		a.Spent += cost
		s.ByAccount[e.Account] = a
	}
	if e.Row != before.Row && e.Endpoint == string(endpointSend) {
		if before.Row != 0 {
			s.Rows[before.Row]--
		}
		s.Rows[e.Row]++
	}
	if e.Row == rowBadToken && before.Row != rowBadToken && e.Account == "" {
		s.UnknownToken++
	}
	if e.Throttled && !before.Throttled {
		s.Throttled++
	}
	if e.Fault != before.Fault {
		s.Faults[e.Fault]++
	}
	j.wake()
}

// applied records that a request has shipped a parcel, for the nth time.
func (j *Journal) applied(e *Entry, parcel string, nth int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.Applied, e.Parcel = true, parcel
	j.stats.Applied++
	if sh := j.shipments[e.Shipment]; sh != nil {
		sh.applied++
	}
	if nth > 1 {
		j.stats.AppliedTwice++
		if len(j.twice) < 10 {
			j.twice = append(j.twice, parcel)
		}
	}
	j.wake()
}

// forget drops what is known of an order.
func (j *Journal) forget(shop, tid string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	key := orderKey{shop, tid}
	if o := j.orders[key]; o != nil {
		for _, s := range o.shipments {
			delete(j.shipments, s)
		}
		delete(j.orders, key)
	}
}

// wake tells those who wait that something has changed. The caller holds mu.
func (j *Journal) wake() {
	if j.waiting != nil {
		close(j.waiting)
		j.waiting = nil
	}
}

// Wait blocks until cond holds, and returns the context's error if that ends
// first. It looks at cond after every change; cond may use the journal.
func (j *Journal) Wait(ctx context.Context, cond func(Stats) bool) error {
	for {
		j.mu.Lock()
		if j.waiting == nil {
			j.waiting = make(chan struct{})
		}
		changed := j.waiting
		j.mu.Unlock()
		if cond(j.Stats()) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("upstreamtest: wait for calls: %w", context.Cause(ctx))
		case <-changed:
		}
	}
}

// Stats returns the counters.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.stats
	s.Rows, s.Faults, s.ByAccount = maps.Clone(s.Rows), maps.Clone(s.Faults), maps.Clone(s.ByAccount)
	maps.DeleteFunc(s.Rows, func(_, n int) bool { return n == 0 })
	return s
}

// Requests returns what is kept of all requests, in the order in which they
// arrived.
func (j *Journal) Requests() []Entry { return j.filter(func(*Entry) bool { return true }) }

// Calls returns what is kept of the calls to the send endpoint.
func (j *Journal) Calls() []Entry {
	return j.filter(func(e *Entry) bool { return e.Endpoint == string(endpointSend) })
}

// CallsOf returns what is kept of the calls for a shipment.
func (j *Journal) CallsOf(s Shipment) []Entry {
	return j.filter(func(e *Entry) bool { return e.Shipment == s && e.Endpoint == string(endpointSend) })
}

// CallsOfOrder returns what is kept of the calls for an order, of whatever shop
// and waybill.
func (j *Journal) CallsOfOrder(tid string) []Entry {
	return j.filter(func(e *Entry) bool { return e.Shipment.TID == tid && e.Endpoint == string(endpointSend) })
}

// UnknownTokenCalls returns what is kept of the requests whose token was not
// good.
func (j *Journal) UnknownTokenCalls() []Entry {
	return j.filter(func(e *Entry) bool { return e.Row == rowBadToken && e.Account == "" })
}

// BlindRepeats returns what is kept of the calls for a shipment after an
// earlier call for it had been answered for good. An operator who sends a
// failed order once more causes one, too.
func (j *Journal) BlindRepeats() []Entry { return j.filter(func(e *Entry) bool { return e.Blind }) }

func (j *Journal) filter(keep func(*Entry) bool) []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	kept := j.entries
	if j.limit > 0 && len(kept) > j.limit {
		kept = kept[len(kept)-j.limit:]
	}
	var found []Entry
	for _, e := range kept {
		if keep(e) {
			found = append(found, *e)
		}
	}
	slices.SortStableFunc(found, func(a, b Entry) int {
		return cmp.Or(a.Arrived.Compare(b.Arrived), cmp.Compare(a.N, b.N))
	})
	return found
}

// CountOf returns how many calls there were for a shipment, and how many of
// them shipped a parcel.
func (j *Journal) CountOf(s Shipment) (calls, applied int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if sh := j.shipments[s]; sh != nil {
		return sh.calls, sh.applied
	}
	return 0, 0
}

// Applied returns how often calls have shipped something, by shipment.
func (j *Journal) Applied() map[Shipment]int {
	j.mu.Lock()
	defer j.mu.Unlock()
	counts := map[Shipment]int{}
	for s, sh := range j.shipments {
		if sh.applied > 0 {
			counts[s] = sh.applied
		}
	}
	return counts
}

// MaxInAnySecond returns the largest number of calls to the send endpoint with
// one token that arrived in any second. Calls exactly a second apart are not in
// the same one.
func (j *Journal) MaxInAnySecond() int { return j.Stats().MaxInAnySecond }

// MaxInAnySecondOf returns the peak of one token.
func (j *Journal) MaxInAnySecondOf(token string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	if p := j.peaks[peakKey{endpointSend, token}]; p != nil {
		return p.most
	}
	return 0
}

// TotalCharge returns what all requests have cost, in points.
func (j *Journal) TotalCharge() int64 { return j.Stats().TotalCharge }

// Repeats returns how many calls were not the first for their shipment.
func (j *Journal) Repeats() int { return j.Stats().Repeats }

// verify returns the violations that the journal can judge, where limit is the
// rate, or 0 for none.
func (j *Journal) verify(limit int) []Violation {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []Violation
	report := func(n int, rule, format string, args ...any) {
		if n > 0 {
			found = append(found, Violation{rule, fmt.Sprintf(format, args...)})
		}
	}
	s := &j.stats
	report(s.AppliedTwice, "applied_once", "%d times a parcel was shipped again: %s", s.AppliedTwice, strings.Join(j.twice, ", "))
	report(s.IdempotencyKeys, "idempotency_key", "%d requests had an Idempotency-Key header", s.IdempotencyKeys)
	report(s.SampleCookies, "sample_cookie", "%d requests had the cookies of the documentation's sample", s.SampleCookies)
	report(s.Redirected, "redirect", "%d requests followed a redirect", s.Redirected)
	if limit == 0 {
		return found
	}
	keys := slices.SortedFunc(maps.Keys(j.peaks), func(a, b peakKey) int {
		return cmp.Or(cmp.Compare(a.endpoint, b.endpoint), cmp.Compare(a.token, b.token))
	})
	for _, key := range keys {
		if key.endpoint != endpointToken && j.peaks[key].most > limit {
			report(1, "rate", "%d requests to %s with one token within a second, %d are allowed", j.peaks[key].most, key.endpoint, limit)
		}
	}
	return found
}

// hasSampleCookie reports whether the cookies include one of those in the
// code samples of the vendor's page, which belong to somebody.
func hasSampleCookie(header string) bool {
	cookies, err := http.ParseCookie(header)
	return err == nil && slices.ContainsFunc(cookies, func(c *http.Cookie) bool {
		return c.Name == "PHPSESSID" || c.Name == "_csrf" || c.Name == "__yjs_duid"
	})
}
