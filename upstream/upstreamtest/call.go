package upstreamtest

import (
	"cmp"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// endpoint names what a request asks for.
type endpoint string

const (
	endpointSend      endpoint = "send"
	endpointToken     endpoint = "token"
	endpointFullInfo  endpoint = "fullinfo"
	endpointDetail    endpoint = "detail"
	endpointAuthorize endpoint = "shop-authorize"
)

// SendPath is the path of the send endpoint.
const SendPath = "/tool/erps/send"

// TokenPath is the path of the token endpoint.
const TokenPath = "/api/proxy/oauth/token" //nolint:gosec // a path, not a credential

var paths = map[string]endpoint{
	SendPath:                    endpointSend,
	TokenPath:                   endpointToken,
	"/tool/erps/fullinfo":       endpointFullInfo,
	"/tool/erps/detail":         endpointDetail,
	"/tool/erps/shop-authorize": endpointAuthorize,
}

// movedPath is where redirects lead if they are not told otherwise, so that a
// caller who follows one is found out.
const movedPath = "/moved"

// call is one request on its way through the API.
type call struct {
	s        *Simulator
	w        http.ResponseWriter
	r        *http.Request
	endpoint endpoint // "" if there is none for the path and method
	token    string
	ip       string
	arrived  time.Time
	entry    *Entry

	// How the API behaved when the call came.
	sw      Switches
	rate    Rate
	latency Latency
	price   int64

	form    fields
	formErr error
	subTIDs []string
	attempt int // which call of its order it is

	// What the checks have found so far. The simulator's mutex guards what
	// they point to.
	account *Account
	shop    *Shop
	trade   *Trade
	carrier *Carrier // nil for one outside the catalogue
	parcel  int      // the index of the trade's parcel to ship
	carve   bool     // only a part of that parcel
	charged bool
}

func (s *Simulator) newCall(w http.ResponseWriter, r *http.Request, arrived time.Time) *call {
	c := &call{s: s, w: w, r: r, arrived: arrived}
	s.mu.Lock()
	c.sw, c.rate, c.latency, c.price = s.opts.Switches, s.opts.Rate, s.opts.Latency, or(s.opts.Price, 1)
	s.mu.Unlock()
	if r.Method == http.MethodPost {
		c.endpoint = paths[r.URL.Path]
	}
	if given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		c.token = given
	}
	c.ip = r.RemoteAddr
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		c.ip = host
	}
	_, hasKey := r.Header["Idempotency-Key"]
	_, hasXKey := r.Header["X-Idempotency-Key"] // of the same effect in Go's client
	c.entry = &Entry{
		Arrived: arrived, Endpoint: string(c.endpoint), Method: r.Method, Path: r.URL.Path,
		Remote: r.RemoteAddr, Token: c.token,
		IdempotencyKey: hasKey || hasXKey,
		Cookie:         strings.Join(r.Header["Cookie"], "; "),
		ContentLength:  r.ContentLength,
		Redirected:     strings.HasPrefix(r.URL.Path, movedPath+"/"),
	}
	return c
}

// serve answers the request.
func (c *call) serve(stamped *stampedConn) {
	down := c.s.downNow()
	if down == Refusing {
		abort(c.w)
		return
	}
	if f := c.pick(beforeRead); f != nil {
		c.deliver(f, answer{})
		return
	}
	body, err := readBody(c.r, stamped)
	if err != nil {
		abort(c.w)
		return
	}
	// The token endpoint takes what OAuth clients send.
	urlencoded := c.endpoint == endpointToken || c.sw.AcceptURLEncoded
	c.form, c.formErr = parseForm(c.r.Header.Get("Content-Type"), body, urlencoded)
	c.attempt = c.s.journal.describe(c.entry, c.form)
	if down == Unavailable {
		c.writePage(http.StatusServiceUnavailable)
		return
	}
	f := c.pick(atGate)
	if f != nil && f.effect == effectState {
		c.strikeState(f)
		f = nil
	}
	var a answer
	if f == nil || f.applies() {
		var ok bool
		if a, f, ok = c.handle(f); !ok {
			abort(c.w)
			return
		}
	}
	c.deliver(f, a)
}

// suspect is the call as faults and chance look at it.
func (c *call) suspect() suspect {
	return suspect{
		endpoint: c.endpoint, tid: c.form.value("tid"), shop: c.form.value("shop_id"),
		token: c.token, attempt: c.attempt,
	}
}

// pick returns the fault that strikes the call here, and notes it.
func (c *call) pick(p point) *armed {
	f := c.s.faults.pick(p, c.suspect())
	if f == nil || f.Kind == None {
		return nil
	}
	c.s.journal.note(c.entry, func(e *Entry) { e.Fault = string(f.Kind) })
	return f
}

// strikeState changes the state under the call.
func (c *call) strikeState(f *armed) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accountOf(c.token)
	switch f.Kind {
	case TokenDisplaced:
		if a != nil {
			s.world.setToken(a, s.newToken(a.Name))
		}
	case BalanceZero:
		if a != nil {
			a.Balance = new(int64)
		}
	default: // ShopUnauthorised
		if shop := s.shopOf(c.form.value("shop_id")); shop != nil {
			shop.Unauthorised = true
		}
	}
}

// handle makes the checks in their order and does what is asked for. It returns
// the answer, and the fault with which to deliver it; not ok means that the
// simulator was closed meanwhile.
func (c *call) handle(f *armed) (a answer, by *armed, ok bool) {
	s := c.s
	if c.endpoint == endpointToken {
		return c.handleToken(), f, true
	}
	s.mu.Lock()
	row := c.vendor()
	s.mu.Unlock()
	if row != 0 {
		return c.answerRow(row), f, true
	}
	if f == nil {
		f = c.pick(atPlatform)
	}
	if !c.atWork(f) {
		return answer{}, nil, false
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if c.spend(ChargePlatform) {
		return c.answerRow(rowNoBalance), f, true
	}
	if text, banned := c.flowControl(f); banned {
		return answer{code: platformCode, msg: text}, f, true
	}
	if f != nil && f.effect == effectRow {
		if f.applies() {
			c.ship(true)
		}
		return c.answerFault(f), f, true
	}
	if c.endpoint != endpointSend {
		return c.look(), f, true
	}
	return c.answerRow(c.ship(f == nil || f.applies())), f, true
}

// atWork waits for as long as the platform takes.
func (c *call) atWork(f *armed) bool {
	took := c.latency.draw(chance(c.s.faults.seed, 0, c.suspect()))
	switch {
	case f == nil:
	case f.effect == effectLate:
		if !c.untilGone() {
			return false
		}
		took = or(f.Delay, 500*time.Millisecond)
	case !f.gate && f.manner != mannerDrip:
		took += f.Delay
	}
	return c.s.sleep(took)
}

// untilGone waits for the caller to give up.
func (c *call) untilGone() bool {
	select {
	case <-c.r.Context().Done():
		return true
	case <-c.s.closing:
		return false
	}
}

// rateExceeded stands for the answer to a call too many among the numbers of
// rows.
const rateExceeded = -1

// vendor makes steps 1 to 8 of the order of checks, what the vendor itself looks
// at, and returns the row of the first that fails, 0 if none does. The caller
// holds the simulator's mutex.
func (c *call) vendor() int {
	s := c.s
	if c.endpoint == "" {
		return rowBadPath
	}
	if c.account = s.accountOf(c.token); c.account == nil || !c.tokenGood() {
		return rowBadToken
	}
	s.journal.note(c.entry, func(e *Entry) { e.Account = c.account.Name })
	for _, denied := range c.account.Denied {
		if endpoint(denied) == c.endpoint {
			return rowNoPermission
		}
	}
	if c.account.Balance != nil && *c.account.Balance < c.price {
		return rowNoBalance
	}
	if c.rate.PerSecond > 0 && !c.withinRate() {
		return rateExceeded
	}
	if c.spend(ChargeCall) {
		return rowNoBalance
	}
	return cmp.Or(c.vendorParameters(), c.vendorShop())
}

// tokenGood reports whether the token is valid for this caller. One used from
// another address than its own is taken as stolen, and dies.
func (c *call) tokenGood() bool {
	a := c.account
	if !a.TokenExpires.IsZero() && !c.s.now().Before(a.TokenExpires) {
		return false
	}
	if c.sw.BindTokenIP && a.TokenIP == "" {
		a.TokenIP = c.ip
	}
	if a.TokenIP != "" && a.TokenIP != c.ip {
		c.s.world.setToken(a, "")
		return false
	}
	return true
}

func (c *call) withinRate() bool {
	s := c.s
	key := limiterKey{c.endpoint, c.token}
	if c.rate.Scope == PerAccount {
		key.who = c.account.Name
	}
	l := s.limiters[key]
	if l == nil {
		l = &limiter{}
		s.limiters[key] = l
	}
	wait, ok := l.allow(c.rate, c.arrived)
	if !ok {
		s.journal.note(c.entry, func(e *Entry) { e.Throttled = true })
	}
	if !ok && or(c.rate.Answer, RateHTTP429) == RateHTTP429 {
		seconds := strconv.Itoa(int((wait + time.Second - 1) / time.Second))
		c.w.Header().Set("X-Rate-Limit-Limit", strconv.Itoa(c.rate.PerSecond))
		c.w.Header().Set("X-Rate-Limit-Remaining", "0")
		c.w.Header().Set("X-Rate-Limit-Reset", seconds)
		if c.rate.RetryAfter {
			c.w.Header().Set("Retry-After", seconds)
		}
	}
	return ok
}

// spend books the price of the call if that is what is charged for, and reports
// whether the balance does not suffice. A call is charged for once.
func (c *call) spend(mode ChargeMode) (short bool) {
	if or(c.sw.ChargeOn, ChargeCall) != mode || c.charged {
		return false
	}
	if b := c.account.Balance; b != nil {
		if *b < c.price {
			return true
		}
		*b -= c.price
	}
	c.charged = true
	c.s.journal.note(c.entry, func(e *Entry) { e.Charge = c.price })
	return false
}

func (c *call) vendorParameters() int {
	tid, vvtype := c.form.value("tid"), c.form.value("vvtype")
	switch {
	case c.formErr != nil, c.form.value("shop_id") == "":
		return rowBadRequest
	case c.endpoint != endpointAuthorize && !isID(tid):
		return rowBadRequest
	case vvtype == "":
		return 0
	case len(vvtype) != 1 || vvtype < "1" || vvtype > "4":
		return rowBadRequest
	}
	if n := int(vvtype[0] - '0'); len(c.account.VVTypes) > 0 && !slices.Contains(c.account.VVTypes, n) {
		return rowNotOffered
	}
	return 0
}

func (c *call) vendorShop() int {
	c.shop = c.s.shopOf(c.form.value("shop_id"))
	switch {
	case c.shop == nil:
		return rowNoSeller
	case c.shop.Unauthorised, c.shop.Account != "" && c.shop.Account != c.account.Name:
		return rowShopUnauthorised
	case c.shop.SessionExpired:
		return rowNoSession
	default:
		return 0
	}
}

// accountOf returns whose token it is, nil if nobody's. The caller holds mu.
func (s *Simulator) accountOf(token string) *Account {
	if token == "" {
		return nil
	}
	a := s.world.byToken[token]
	if a == nil && s.opts.AutoCreate && !s.world.customers && !s.world.dead[token] {
		a = &Account{Name: "auto-" + token, Token: token, auto: true}
		s.world.accounts[a.Name], s.world.byToken[token] = a, a
	}
	return a
}

// shopOf returns the shop, nil if there is none. The caller holds mu.
func (s *Simulator) shopOf(id string) *Shop {
	shop := s.world.shops[id]
	if shop == nil && s.opts.AutoCreate && id != "" {
		shop = &Shop{ID: id}
		s.world.shops[id] = shop
	}
	return shop
}

var banText = regexp.MustCompile(`(\d+) more second`)

// flowControl reports whether the platform turns the account away for its
// speed, and what it says. A fault of that kind begins such a ban. The caller
// holds the simulator's mutex.
func (c *call) flowControl(f *armed) (text string, banned bool) {
	now := time.Now()
	who := c.account.Name
	if f != nil && f.Kind == FlowControl {
		text = or(f.Text, "This ban will last for 3 more seconds")
		if m := banText.FindStringSubmatch(text); m != nil {
			if n, err := strconv.Atoi(m[1]); err == nil && n < 1e6 {
				c.s.bans[who] = now.Add(time.Duration(n) * time.Second)
			}
		}
		return "App Call Limited " + text, true
	}
	until, ok := c.s.bans[who]
	if !ok || !now.Before(until) {
		delete(c.s.bans, who)
		return "", false
	}
	left := int((until.Sub(now) + time.Second - 1) / time.Second)
	c.s.journal.note(c.entry, func(e *Entry) { e.Fault = string(FlowControl) })
	return "App Call Limited This ban will last for " + strconv.Itoa(left) + " more seconds", true
}
