package upstreamtest

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Options say what the simulated API is like at the start: what exists in it,
// how it behaves and what goes wrong. It is also the content of a scenario
// file, see [LoadScenario]. The zero value is an API in which nothing exists,
// which answers at once and counts no rate; [Defaults] is the one that most
// resembles the real API.
type Options struct {
	// Seed fixes everything random: latencies and which calls faults hit. What
	// happens to a call depends on the seed, its order id and how many calls
	// that order has had, not on how calls of different orders interleave.
	Seed uint64 `yaml:"seed,omitempty"`
	// AutoCreate makes every shop and order exist from the moment of the
	// first call for it, authorised, paid and unshipped. While no account has
	// been added, every token is good, too.
	AutoCreate bool     `yaml:"auto_create,omitempty"`
	Latency    Latency  `yaml:"latency"`
	Rate       Rate     `yaml:"rate"`
	Switches   Switches `yaml:"switches,omitempty"`
	// Price of one charged call in points. The default is 1.
	Price int64 `yaml:"price,omitempty"`

	Accounts []Account `yaml:"accounts,omitempty"`
	Shops    []Shop    `yaml:"shops,omitempty"`
	Trades   []Trade   `yaml:"trades,omitempty"`
	Waybills []Waybill `yaml:"waybills,omitempty"`
	// Carriers replaces the built-in catalogue of carriers.
	Carriers []Carrier `yaml:"carriers,omitempty"`

	Faults  []Fault  `yaml:"faults,omitempty"`
	Scripts []Script `yaml:"scripts,omitempty"`
	Outages []Outage `yaml:"outages,omitempty"`

	// JournalLimit is how many calls the journal keeps one by one. Counters
	// and the peak go on for ever. 0 keeps all.
	JournalLimit int `yaml:"journal_limit,omitempty"`
	// TradeLimit is how many orders made by AutoCreate are kept; past it the
	// oldest are forgotten, so that calling for one of them ships it again. 0
	// keeps all.
	TradeLimit int `yaml:"trade_limit,omitempty"`
	// IdleTimeout is after how long Serve and Start close a connection that
	// waits for its next request. 0 never does.
	IdleTimeout time.Duration `yaml:"idle_timeout,omitempty"`
	// NoControl turns the control API under /__sim/ off.
	NoControl bool `yaml:"no_control,omitempty"`
}

// Defaults returns the options of an API like the real one: ten calls in any
// second per token, and latencies as they were seen.
func Defaults() Options {
	return Options{Latency: VendorLatency, Rate: Rate{PerSecond: 10}}
}

// Validate returns everything that is wrong with the options.
func (o *Options) Validate() error {
	errs := []error{o.Latency.validate(), o.Rate.validate(), o.Switches.validate()}
	if o.Price < 0 || o.JournalLimit < 0 || o.TradeLimit < 0 || o.IdleTimeout < 0 {
		errs = append(errs, errors.New("upstreamtest: price, journal_limit, trade_limit and idle_timeout cannot be negative"))
	}
	for i := range o.Accounts {
		errs = append(errs, o.Accounts[i].validate())
	}
	for i := range o.Shops {
		errs = append(errs, o.Shops[i].validate())
	}
	for i := range o.Trades {
		errs = append(errs, o.Trades[i].validate())
	}
	for i := range o.Waybills {
		errs = append(errs, o.Waybills[i].validate())
	}
	for i := range o.Carriers {
		errs = append(errs, o.Carriers[i].validate())
	}
	for i := range o.Faults {
		errs = append(errs, o.Faults[i].Validate())
	}
	for i := range o.Scripts {
		errs = append(errs, o.Scripts[i].Validate())
	}
	for i := range o.Outages {
		errs = append(errs, o.Outages[i].validate())
	}
	return errors.Join(errs...)
}

// Latency is how long the platform takes for a call. Calls that the vendor
// itself turns away are answered at once. The zero value is no latency.
type Latency struct {
	// Fixed, if set, is the latency of every call.
	Fixed time.Duration `yaml:"fixed,omitempty"`
	// Median and P99 are those of a log-normal distribution.
	Median time.Duration `yaml:"median"`
	P99    time.Duration `yaml:"p99"`
	// Factor scales the drawn latency. 0 is 1.
	Factor float64 `yaml:"factor,omitempty"`
}

// VendorLatency is the latency of the real API.
var VendorLatency = Latency{Median: 1100 * time.Millisecond, P99: 4 * time.Second}

// p99 is the 99 % quantile of the standard normal distribution.
const p99 = 2.3263478740408408

func (l Latency) validate() error {
	switch {
	case l.Fixed < 0 || l.Median < 0 || l.P99 < 0 || l.Factor < 0 || math.IsNaN(l.Factor) || math.IsInf(l.Factor, 0):
		return errors.New("upstreamtest: a latency cannot be negative or infinite")
	case l.P99 != 0 && l.P99 < l.Median:
		return errors.New("upstreamtest: the latency's p99 is below its median")
	default:
		return nil
	}
}

func (l Latency) draw(r *rand.Rand) time.Duration {
	d := float64(l.Fixed)
	if d == 0 && l.Median > 0 {
		sigma := 0.0
		if l.P99 > 0 {
			sigma = math.Log(float64(l.P99)/float64(l.Median)) / p99
		}
		d = float64(l.Median) * math.Exp(sigma*r.NormFloat64())
	}
	if l.Factor > 0 {
		d *= l.Factor
	}
	return time.Duration(min(d, float64(24*time.Hour)))
}

// Rate is the limit of calls per second. The zero value is no limit.
type Rate struct {
	PerSecond int        `yaml:"per_second"`
	Window    RateWindow `yaml:"window,omitempty"`
	Scope     RateScope  `yaml:"scope,omitempty"`
	Answer    RateAnswer `yaml:"answer,omitempty"`
	// CountRefused makes refused calls use up the limit as well.
	CountRefused bool `yaml:"count_refused,omitempty"`
	// RetryAfter adds that header to an answer with HTTP status 429.
	RetryAfter bool `yaml:"retry_after,omitempty"`
}

// RateWindow is how calls per second are counted.
type RateWindow string

// The ways to count.
const (
	SlidingWindow RateWindow = "sliding" // the default: no second holds more
	FixedWindow   RateWindow = "fixed"   // no second of the clock holds more
	LeakyBucket   RateWindow = "leaky"   // a full bucket at once, then evenly
)

// RateScope is who shares a limit. Every endpoint has its own.
type RateScope string

// The scopes.
const (
	PerToken   RateScope = "token" // the default
	PerAccount RateScope = "account"
)

// RateAnswer is the answer to a call too many.
type RateAnswer string

// The answers to a call too many.
const (
	RateHTTP429 RateAnswer = "http429" // the default: a Yii error body
	RateRow     RateAnswer = "row"     // row 6, as for any overload
	RateCode429 RateAnswer = "code429" // code 429 in HTTP status 200
)

func (r Rate) validate() error {
	return errors.Join(
		atLeastZero("rate.per_second", r.PerSecond),
		oneOf("rate.window", r.Window, SlidingWindow, FixedWindow, LeakyBucket),
		oneOf("rate.scope", r.Scope, PerToken, PerAccount),
		oneOf("rate.answer", r.Answer, RateHTTP429, RateRow, RateCode429),
	)
}

// Switches choose between behaviours that the vendor's page leaves open. The
// zero value of each is the first one named.
type Switches struct {
	// AcceptURLEncoded takes forms that are not multipart, too.
	AcceptURLEncoded bool `yaml:"accept_urlencoded,omitempty"`
	// NotFound is the answer to a wrong path or method.
	NotFound NotFoundStyle `yaml:"not_found,omitempty"`
	// ErrorData is the data field of an answer that is no success.
	ErrorData DataStyle `yaml:"error_data,omitempty"`
	// Messages is the style of the platform's texts.
	Messages MessageStyle `yaml:"messages,omitempty"`
	// RawChinese leaves Chinese text as it is instead of escaping it like PHP.
	RawChinese bool `yaml:"raw_chinese,omitempty"`

	// MissingTradeRow is 13 or 47, ForeignTradeRow 49 or 54, ClosedRow 59, 15
	// or 26, OnHoldRow 26 or 14, SplitMissingRow (a whole shipment of a split
	// order) 40, 39 or 41.
	MissingTradeRow int `yaml:"missing_trade_row,omitempty"`
	ForeignTradeRow int `yaml:"foreign_trade_row,omitempty"`
	ClosedRow       int `yaml:"closed_row,omitempty"`
	OnHoldRow       int `yaml:"on_hold_row,omitempty"`
	SplitMissingRow int `yaml:"split_missing_row,omitempty"`
	// ShippedRows are answered in turn where the order has been shipped
	// completely: any of 15, 23, 26 and 58, by default only 15.
	ShippedRows []int `yaml:"shipped_rows,omitempty,flow"`
	// RepeatedPartRows are answered in turn to a repeat of a part shipment:
	// any of 15, 58 and 50, by default all three.
	RepeatedPartRows []int `yaml:"repeated_part_rows,omitempty,flow"`

	// WaybillFirst checks the waybill before the state of the order, so that
	// a repeated call is answered with row 18.
	WaybillFirst bool `yaml:"waybill_first,omitempty"`
	// SplitOnce refuses to split the rest of a split order again.
	SplitOnce bool `yaml:"split_once,omitempty"`
	// AllowRepeats ships an order again each time it is asked to. It shows
	// whether the caller's own memory prevents repeats.
	AllowRepeats bool `yaml:"allow_repeats,omitempty"`
	// AnyCarrier accepts carrier codes outside the catalogue and does not
	// check their waybills.
	AnyCarrier bool `yaml:"any_carrier,omitempty"`

	// ChargeOn says which calls cost something.
	ChargeOn ChargeMode `yaml:"charge_on,omitempty"`
	// ShowCharge has charged failures say what they cost, too.
	ShowCharge bool `yaml:"show_charge,omitempty"`
	// BindTokenIP ties a token to the address that fetched it, or first used
	// it. A use from elsewhere kills the token.
	BindTokenIP bool `yaml:"bind_token_ip,omitempty"`
}

// NotFoundStyle is an answer to a wrong path or method.
type NotFoundStyle string

// The answers to a wrong path or method.
const (
	NotFoundCode NotFoundStyle = "code" // row 12 in HTTP status 200
	NotFoundYii  NotFoundStyle = "yii"  // HTTP status 404 with a Yii error body
	NotFoundHTML NotFoundStyle = "html" // HTTP status 404 with a page
)

// DataStyle is what an answer without data has in its data field.
type DataStyle string

// The contents of an empty data field.
const (
	DataArray  DataStyle = "array"
	DataObject DataStyle = "object"
	DataNull   DataStyle = "null"
	DataString DataStyle = "string"
	DataAbsent DataStyle = "absent"
)

// MessageStyle is how the platform's texts are written.
type MessageStyle string

// The styles of a text.
const (
	MessagesDoc     MessageStyle = "doc"     // as the vendor's page has it
	MessagesTop     MessageStyle = "top"     // full-width commas, no spaces, two longer texts
	MessagesSubCode MessageStyle = "subcode" // with the platform's error code before it
)

// ChargeMode says which calls cost something.
type ChargeMode string

// The charge modes.
const (
	ChargeCall     ChargeMode = "call"     // every call within the rate: the worst case
	ChargePlatform ChargeMode = "platform" // what reached the platform
	ChargeSuccess  ChargeMode = "success"  // what was shipped
)

func (s *Switches) validate() error {
	return errors.Join(
		oneOf("switches.not_found", s.NotFound, NotFoundCode, NotFoundYii, NotFoundHTML),
		oneOf("switches.error_data", s.ErrorData, DataArray, DataObject, DataNull, DataString, DataAbsent),
		oneOf("switches.messages", s.Messages, MessagesDoc, MessagesTop, MessagesSubCode),
		oneOf("switches.charge_on", s.ChargeOn, ChargeCall, ChargePlatform, ChargeSuccess),
		oneOf("switches.missing_trade_row", s.MissingTradeRow, rowNoTrade, rowTradeNotFound),
		oneOf("switches.foreign_trade_row", s.ForeignTradeRow, rowForeignTrade, rowForeignNick),
		oneOf("switches.closed_row", s.ClosedRow, rowParcelClosed, rowStatusWrong, rowTradeStatus),
		oneOf("switches.on_hold_row", s.OnHoldRow, rowTradeStatus, rowNoRight),
		oneOf("switches.split_missing_row", s.SplitMissingRow, rowSplitFlow, rowSplitNeedsList, rowSplitNeedsBoth),
		eachOf("switches.shipped_rows", s.ShippedRows, rowStatusWrong, rowAlreadyCreated, rowTradeStatus, rowParcelNotNew),
		eachOf("switches.repeated_part_rows", s.RepeatedPartRows, rowStatusWrong, rowParcelNotNew, rowSplitCheck),
	)
}

// oneOf checks a choice. The zero value stands for the default.
func oneOf[T comparable](name string, got T, choices ...T) error {
	var zero T
	if got == zero || slices.Contains(choices, got) {
		return nil
	}
	return fmt.Errorf("upstreamtest: %s is %v, choose one of %v", name, got, choices)
}

func eachOf(name string, got []int, choices ...int) error {
	for _, n := range got {
		if !slices.Contains(choices, n) {
			return fmt.Errorf("upstreamtest: %s has %d, choose of %v", name, n, choices)
		}
	}
	return nil
}

func atLeastZero(name string, n int) error {
	if n < 0 {
		return fmt.Errorf("upstreamtest: %s cannot be negative", name)
	}
	return nil
}

// or returns the choice made, or the default.
func or[T comparable](choice, byDefault T) T {
	var zero T
	if choice == zero {
		return byDefault
	}
	return choice
}
