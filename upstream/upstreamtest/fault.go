package upstreamtest

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Kind names of faults. Those with a number are made by the functions below.
//
// A fault strikes either at the gate, before the vendor looks at the request,
// or at the platform, in the place of step 9 of the order of checks: then it
// strikes only calls whose token, balance, rate, shop and so on are in order.
const (
	// None is no fault: in a script, a call that goes well.
	None FaultKind = "none"

	// Slow does everything, Delay later than usual.
	Slow FaultKind = "slow"
	// ApplyThenHang does everything and never answers.
	ApplyThenHang FaultKind = "apply_then_hang"
	// HangThenApply waits until the caller has gone away, and Delay longer,
	// and then does everything.
	HangThenApply FaultKind = "hang_then_apply"
	// ApplyThenReset does everything and resets the connection.
	ApplyThenReset FaultKind = "apply_then_reset"

	// Hang reads the request and never answers. It strikes at the gate.
	Hang FaultKind = "hang"
	// ResetBeforeRead resets the connection without reading the form, unless
	// the fault's selectors need it. It strikes at the gate.
	ResetBeforeRead FaultKind = "reset_before_read"
	// ResetAfterRead reads the request and resets the connection. It strikes
	// at the gate.
	ResetAfterRead FaultKind = "reset_after_read_no_apply"
	// HTML200 answers with a page and HTTP status 200. It strikes at the gate.
	HTML200 FaultKind = "html_200"
	// Empty200 answers with HTTP status 200 and nothing. It strikes at the gate.
	Empty200 FaultKind = "empty_200"
	// Yii200 answers with a Yii error body wrapped in HTTP status 200, whose
	// inner code is 0 and inner status the fault's Status, by default 404. It
	// strikes at the gate.
	Yii200 FaultKind = "yii_200_success_false"
	// Raw answers with the fault's Status, Headers and Body. It strikes at the
	// gate.
	Raw FaultKind = "raw"

	// TruncatedJSON does everything and cuts the answer's JSON short.
	TruncatedJSON FaultKind = "truncated_json"
	// CutOff does everything and breaks the connection amid the answer.
	CutOff FaultKind = "cut_off"
	// TrailingComma does everything and answers with one comma too many.
	TrailingComma FaultKind = "trailing_comma"
	// StringTypes does everything and answers with strings for numbers and
	// an object for data's array.
	StringTypes FaultKind = "string_types"
	// HugeBody does everything and answers with Size bytes, by default 2 MiB.
	HugeBody FaultKind = "huge_body"
	// SlowDrip does everything and answers one byte each Delay, by default
	// 100 ms.
	SlowDrip FaultKind = "slow_drip"
	// SuccessFalse charges, does not ship, and answers code 0 with success
	// false.
	SuccessFalse FaultKind = "code0_success_false"
	// DataEmpty does everything and answers code 0 with empty data.
	DataEmpty FaultKind = "code0_data_empty"
	// NoData does everything and answers code 0 without data.
	NoData FaultKind = "code0_no_data"

	// FlowControl answers as the platform does to a caller that is too fast,
	// with the fault's Text, and goes on for as long as the text says.
	FlowControl FaultKind = "flow_control"
	// Code answers with the fault's Code and Text, as the platform.
	Code FaultKind = "code"

	// TokenDisplaced replaces the call's token before looking at the call.
	TokenDisplaced FaultKind = "token_displaced"
	// BalanceZero uses up the account's balance before looking at the call.
	BalanceZero FaultKind = "balance_zero"
	// ShopUnauthorised takes the shop's authorisation back before looking at
	// the call.
	ShopUnauthorised FaultKind = "shop_unauthorised"
)

// HTTPStatus answers with an HTTP error status and a page, as a gateway does.
// It strikes at the gate; with Apply, everything is done nevertheless.
func HTTPStatus(status int) FaultKind { return FaultKind(fmt.Sprintf("http_%d", status)) }

// YiiError answers with an HTTP error status and a Yii error body, whose code
// is 0. It strikes at the gate.
func YiiError(status int) FaultKind { return FaultKind(fmt.Sprintf("yii_code0_%d", status)) }

// Redirect answers with an HTTP redirect to the fault's Location. It strikes at
// the gate.
func Redirect(status int) FaultKind { return FaultKind(fmt.Sprintf("redirect_%d", status)) }

// AnyRow answers with a row of the answer table, as the platform; with Apply,
// everything is done nevertheless.
func AnyRow(n int) FaultKind { return FaultKind(fmt.Sprintf("any_row(%d)", n)) }

// FaultKind names a kind of fault.
type FaultKind string

// Fault is something that goes wrong, and with which calls. A call is hit if
// all the conditions that are set hold; a fault without conditions hits every
// call. Of several faults, the first one added that hits is the one.
type Fault struct {
	Kind FaultKind `yaml:"kind"`

	// TID, Shop and Token select calls. They are patterns with * and ? as of
	// [path.Match].
	TID   string `yaml:"tid,omitempty"`
	Shop  string `yaml:"shop,omitempty"`
	Token string `yaml:"token,omitempty"`
	// Endpoint is send (the default), token, fullinfo, detail,
	// shop-authorize, or * for all.
	Endpoint string `yaml:"endpoint,omitempty"`
	// Nth is the only call hit, and Every the distance of the calls hit. Both
	// count the calls that the conditions above select and that come to where
	// the fault strikes, even those that another fault hits.
	Nth   int `yaml:"nth,omitempty"`
	Every int `yaml:"every,omitempty"`
	// Probability, if set, is that of each selected call to be hit.
	Probability float64 `yaml:"probability,omitempty"`
	// Count is how many calls are hit at most. 0 is all.
	Count int `yaml:"count,omitempty"`

	// Apply says whether the order is shipped all the same, instead of what
	// is usual for the kind.
	Apply *bool `yaml:"apply,omitempty"`
	// Delay is for HangThenApply the wait before it applies, for SlowDrip
	// that between two bytes. For the others it is added to the latency, or,
	// for what strikes at the gate, waited before the answer.
	Delay    time.Duration     `yaml:"delay,omitempty"`
	Text     string            `yaml:"text,omitempty"`
	Code     int               `yaml:"code,omitempty"`
	Status   int               `yaml:"status,omitempty"`
	Headers  map[string]string `yaml:"headers,omitempty"`
	Body     string            `yaml:"body,omitempty"`
	Size     int               `yaml:"size,omitempty"`
	Location string            `yaml:"location,omitempty"`
}

// Script is a sequence of faults for successive calls: each step is for one
// call, whatever order or shop it is for, unless TID or Shop select. The steps'
// own conditions are not used. Scripts go before faults.
type Script struct {
	TID   string  `yaml:"tid,omitempty"`
	Shop  string  `yaml:"shop,omitempty"`
	Steps []Fault `yaml:"steps"`
	// Loop starts again after the last step.
	Loop bool `yaml:"loop,omitempty"`
}

// Validate returns what is wrong with the fault.
func (f *Fault) Validate() error {
	_, err := f.spec()
	errs := []error{err}
	for _, pattern := range []string{f.TID, f.Shop, f.Token} {
		if _, err := path.Match(pattern, ""); err != nil {
			errs = append(errs, fmt.Errorf("upstreamtest: fault %s: pattern %q: %w", f.Kind, pattern, err))
		}
	}
	if f.Nth < 0 || f.Every < 0 || f.Count < 0 || f.Delay < 0 || f.Size < 0 || f.Size > maxHugeBody {
		errs = append(errs, fmt.Errorf("upstreamtest: fault %s: a number is out of range", f.Kind))
	}
	if !(f.Probability >= 0 && f.Probability <= 1) {
		errs = append(errs, fmt.Errorf("upstreamtest: fault %s: a probability is between 0 and 1", f.Kind))
	}
	if f.Status != 0 && (f.Status < 200 || f.Status > 599) {
		errs = append(errs, fmt.Errorf("upstreamtest: fault %s: no HTTP status %d", f.Kind, f.Status))
	}
	if f.Endpoint != "*" {
		errs = append(errs, oneOf("endpoint of fault "+string(f.Kind), endpoint(f.Endpoint),
			endpointSend, endpointToken, endpointFullInfo, endpointDetail, endpointAuthorize))
	}
	return errors.Join(errs...)
}

// Validate returns what is wrong with the script.
func (s *Script) Validate() error {
	var errs []error
	if len(s.Steps) == 0 {
		errs = append(errs, errors.New("upstreamtest: a script needs steps"))
	}
	for i := range s.Steps {
		errs = append(errs, s.Steps[i].Validate())
	}
	for _, pattern := range []string{s.TID, s.Shop} {
		if _, err := path.Match(pattern, ""); err != nil {
			errs = append(errs, fmt.Errorf("upstreamtest: script: pattern %q: %w", pattern, err))
		}
	}
	return errors.Join(errs...)
}

const maxHugeBody = 64 << 20

// effect is what a fault does to the order.
type effect int

const (
	effectNone  effect = iota // nothing is looked at
	effectRow                 // the vendor's checks are made, the platform fails
	effectDry                 // all checks are made, nothing is shipped
	effectApply               // everything is done
	effectLate                // everything is done once the caller has gone away
	effectState               // the state changes, then the call goes its way
)

// manner is how a fault answers.
type manner int

const (
	mannerUsual manner = iota
	mannerHang
	mannerReset
	mannerCutOff
	mannerDrip
	mannerHTTP
	mannerYii
	mannerYii200
	mannerHTML
	mannerEmpty
	mannerRaw
	mannerRedirect
	mannerTruncated
	mannerComma
	mannerStrings
	mannerHuge
	mannerFalse
	mannerDataEmpty
	mannerNoData
)

// spec is a kind of fault, taken apart.
type spec struct {
	gate   bool
	effect effect
	manner manner
	n      int // the number in the kind's name
}

var specs = map[FaultKind]spec{
	None:             {effect: effectApply},
	Slow:             {effect: effectApply},
	ApplyThenHang:    {effect: effectApply, manner: mannerHang},
	HangThenApply:    {effect: effectLate, manner: mannerHang},
	ApplyThenReset:   {effect: effectApply, manner: mannerReset},
	Hang:             {gate: true, manner: mannerHang},
	ResetBeforeRead:  {gate: true, manner: mannerReset},
	ResetAfterRead:   {gate: true, manner: mannerReset},
	HTML200:          {gate: true, manner: mannerHTML},
	Empty200:         {gate: true, manner: mannerEmpty},
	Yii200:           {gate: true, manner: mannerYii200},
	Raw:              {gate: true, manner: mannerRaw},
	TruncatedJSON:    {effect: effectApply, manner: mannerTruncated},
	CutOff:           {effect: effectApply, manner: mannerCutOff},
	TrailingComma:    {effect: effectApply, manner: mannerComma},
	StringTypes:      {effect: effectApply, manner: mannerStrings},
	HugeBody:         {effect: effectApply, manner: mannerHuge},
	SlowDrip:         {effect: effectApply, manner: mannerDrip},
	SuccessFalse:     {effect: effectDry, manner: mannerFalse},
	DataEmpty:        {effect: effectApply, manner: mannerDataEmpty},
	NoData:           {effect: effectApply, manner: mannerNoData},
	FlowControl:      {effect: effectRow},
	Code:             {effect: effectRow},
	TokenDisplaced:   {gate: true, effect: effectState},
	BalanceZero:      {gate: true, effect: effectState},
	ShopUnauthorised: {gate: true, effect: effectState},
}

var (
	numberedKind = regexp.MustCompile(`^(http|yii_code0|redirect)_([1-5][0-9]{2})$`)
	rowKind      = regexp.MustCompile(`^any_row\(([1-9][0-9]?)\)$`)
)

// spec takes the fault's kind apart.
func (f *Fault) spec() (spec, error) {
	sp, ok := specs[f.Kind]
	if m := numberedKind.FindStringSubmatch(string(f.Kind)); m != nil {
		n, _ := strconv.Atoi(m[2])
		sp, ok = spec{gate: true, n: n}, true
		switch m[1] {
		case "http":
			sp.manner, ok = mannerHTTP, n >= 400
		case "yii_code0":
			sp.manner, ok = mannerYii, n >= 400
		case "redirect":
			sp.manner, ok = mannerRedirect, n/100 == 3
		}
	}
	if m := rowKind.FindStringSubmatch(string(f.Kind)); m != nil {
		n, _ := strconv.Atoi(m[1])
		_, ok = RowN(n)
		sp = spec{effect: effectRow, n: n}
		if n == rowOK {
			sp.effect = effectApply
		}
	}
	if !ok {
		return spec{}, fmt.Errorf("upstreamtest: there is no fault %q", f.Kind)
	}
	return sp, nil
}

// armed is a fault in place, with its counters.
type armed struct {
	Fault
	spec
	id       int
	selected int // calls that its selectors have matched
	hit      int
}

// applies reports whether the order is to be shipped under the fault.
func (a *armed) applies() bool {
	if a.Apply != nil {
		return *a.Apply
	}
	return a.effect == effectApply || a.effect == effectLate || a.effect == effectState
}

// needsForm reports whether the fault's conditions look into the form.
func (a *armed) needsForm() bool { return a.TID != "" || a.Shop != "" }

// running is a script in place.
type running struct {
	Script
	steps []*armed
	next  int
}

// faults holds what goes wrong. It is safe for concurrent use.
type faults struct {
	seed uint64

	mu      sync.Mutex
	nextID  int
	list    []*armed
	scripts []*running
}

func (fs *faults) arm(f Fault) *armed {
	sp, err := f.spec()
	if err != nil {
		panic(err)
	}
	fs.nextID++
	return &armed{Fault: f, spec: sp, id: fs.nextID}
}

func (fs *faults) add(f Fault) int {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	a := fs.arm(f)
	fs.list = append(fs.list, a)
	return a.id
}

func (fs *faults) addScript(s Script) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	r := &running{Script: s}
	for _, f := range s.Steps {
		r.steps = append(r.steps, fs.arm(f))
	}
	fs.scripts = append(fs.scripts, r)
}

func (fs *faults) clear() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.list, fs.scripts = nil, nil
}

// remaining returns the faults and the scripts, without the steps done.
func (fs *faults) remaining() ([]Fault, []Script) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var list []Fault
	for _, a := range fs.list {
		f := a.Fault
		if f.Count > 0 {
			if a.hit == f.Count {
				continue
			}
			f.Count -= a.hit
		}
		list = append(list, f)
	}
	var scripts []Script
	for _, r := range fs.scripts {
		s := r.Script
		if !s.Loop {
			s.Steps = s.Steps[r.next:]
		}
		if len(s.Steps) > 0 {
			scripts = append(scripts, s)
		}
	}
	return list, scripts
}

// point is where in the life of a call a fault is looked for.
type point int

const (
	beforeRead point = iota // of the body
	atGate                  // the form has been read
	atPlatform              // step 9 of the order of checks
)

// at reports whether the fault strikes at the point.
func (a *armed) at(p point) bool {
	switch p {
	case beforeRead:
		return a.Kind == ResetBeforeRead && !a.needsForm()
	case atGate:
		return a.gate && (a.Kind != ResetBeforeRead || a.needsForm())
	default:
		return !a.gate
	}
}

// suspect is a call as the faults look at it.
type suspect struct {
	endpoint         endpoint
	tid, shop, token string
	attempt          int // which call of its order it is
}

// pick returns the fault that hits the call at the point, nil for none.
func (fs *faults) pick(p point, c suspect) *armed {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var hit *armed
	for _, r := range fs.scripts {
		if hit = r.pick(p, c); hit != nil {
			break
		}
	}
	// Every fault counts the calls that it selects, whoever hits them.
	for _, a := range fs.list {
		if !a.at(p) || !a.selects(c) {
			continue
		}
		a.selected++
		if hit == nil && a.strikes(fs.seed, c) {
			hit = a
		}
	}
	return hit
}

func (r *running) pick(p point, c suspect) *armed {
	if len(r.steps) == r.next || c.endpoint != endpointSend || !matches(r.TID, c.tid) || !matches(r.Shop, c.shop) {
		return nil
	}
	a := r.steps[r.next]
	// A script that selects by the form cannot strike before it is read.
	if a.Kind == ResetBeforeRead && (r.TID != "" || r.Shop != "") {
		if p != atGate {
			return nil
		}
	} else if !a.at(p) {
		return nil
	}
	r.next++
	if r.Loop && r.next == len(r.steps) {
		r.next = 0
	}
	return a
}

func (a *armed) selects(c suspect) bool {
	return (a.Endpoint == "*" || or(endpoint(a.Endpoint), endpointSend) == c.endpoint) &&
		matches(a.TID, c.tid) && matches(a.Shop, c.shop) && matches(a.Token, c.token)
}

// strikes reports whether the fault hits the call that it has just selected.
func (a *armed) strikes(seed uint64, c suspect) bool {
	switch {
	case a.Nth > 0 && a.selected != a.Nth,
		a.Every > 0 && a.selected%a.Every != 0,
		a.Count > 0 && a.hit == a.Count,
		a.Probability > 0 && chance(seed, uint64(a.id), c).Float64() >= a.Probability: //nolint:gosec // a small counter
		return false
	}
	a.hit++
	return true
}

func matches(pattern, s string) bool {
	if pattern == "" {
		return true
	}
	if !strings.ContainsAny(pattern, `*?[\`) {
		return pattern == s
	}
	ok, _ := path.Match(pattern, s)
	return ok
}

// chance returns the random numbers of one purpose for one call. They depend on
// the call's order and attempt alone, so that a seed means the same whatever
// else is going on.
func chance(seed, purpose uint64, c suspect) *rand.Rand {
	h := fnv.New64a()
	for _, s := range []string{string(c.endpoint), c.shop, c.tid} {
		_, _ = h.Write([]byte(s)) // a hash never fails to be written to
		_, _ = h.Write([]byte{0})
	}
	return rand.New(rand.NewPCG(seed^h.Sum64(), purpose<<32|uint64(c.attempt))) //nolint:gosec // not for secrets; a small counter
}
