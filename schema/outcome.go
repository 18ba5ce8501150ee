package schema

import (
	"encoding/json"
	"time"
)

// Verdict is the terminal state of a shipment: what a result event says.
type Verdict string

// The verdicts.
const (
	Shipped Verdict = "shipped"
	Failed  Verdict = "failed"
)

// Outcome is a verdict with the result event that tells it. It is stored in the
// ledger and published from there, so that every publication has the same bytes.
type Outcome struct {
	Verdict      Verdict         `json:"verdict"`
	ResultID     string          `json:"result_id"`
	At           time.Time       `json:"at"` // the time of the outcome, and of its event
	Reason       string          `json:"reason,omitempty"`
	Class        string          `json:"class,omitempty"`
	MaybeShipped bool            `json:"maybe_shipped,omitempty"`
	Event        json.RawMessage `json:"event"` // the value of the result event, verbatim
}

// Settlement is an outcome with what the ledger keeps beside it.
type Settlement struct {
	Outcome

	// Group is the mark of the event's order group; see [Packed.GroupMark].
	Group string
	Paid  Charge
}

// Charge is what calls have cost, as far as the API said so.
type Charge struct {
	Account string
	Points  int64 // 0.01 CNY each
}

// Effect says what an attempt did at the API, as far as its answer tells.
type Effect int

// The effects of an attempt.
const (
	// EffectNone means that this attempt changed nothing.
	EffectNone Effect = iota
	// EffectShipped means that the API says it has shipped the order.
	EffectShipped
	// EffectUnknown means that the order may or may not have been shipped.
	EffectUnknown
)

// String returns the effect as a label: not_shipped, shipped or unknown.
func (e Effect) String() string {
	switch e {
	case EffectShipped:
		return "shipped"
	case EffectUnknown:
		return "unknown"
	default:
		return "not_shipped"
	}
}

// Action says what is to be done after an answer.
type Action int

// The actions after an answer.
const (
	// ActFail publishes a failure: the answer is final.
	ActFail Action = iota
	// ActSucceed publishes a success.
	ActSucceed
	// ActReconcile is a success if an earlier attempt for this same shipment
	// has an unknown outcome, else a failure.
	ActReconcile
	// ActRetry tries again after Answer.Wait, at most Answer.MaxRetries times.
	ActRetry
	// ActHold means that the attempt certainly reached nothing, or was turned
	// away before it was looked at, and that the order waits until the account
	// or shop may send again. It never fails an order.
	ActHold
)

// Answer is what one attempt at a call came to. It is never an error: a broken
// connection is an answer too, one whose effect is unknown.
type Answer struct {
	Effect Effect
	Action Action
	// Reached is true if the attempt may have reached the platform, so that
	// it counts as one of the shipment's attempts.
	Reached bool
	// Counted is true if the attempt uses up one of the order's retries. An
	// attempt made while the breaker was not closed does not.
	Counted bool
	// Answered is true if there was a readable answer; without one the API may
	// still be working on the request.
	Answered bool

	Reason     string // a slug of the answer table or one beyond it
	Class      string
	Advice     string // for a person
	Redrivable bool
	// StopParcel advises to stop the parcel: the order may have been refunded.
	StopParcel bool
	// MaxRetries bounds the retries of this answer, for ActRetry.
	MaxRetries int
	// Wait is how long to wait before the next attempt, at least.
	Wait time.Duration

	// Exchange is what the API answered, nil if nothing readable.
	Exchange *Exchange
	// Charge is what the call has cost.
	Charge Charge
}

// Exchange is the answer of the API as a result event shows it.
type Exchange struct {
	HTTPStatus int    `json:"http_status"`
	Code       int64  `json:"code"`
	Msg        string `json:"msg"`
	Msec       int64  `json:"msec"`
	Time       int64  `json:"time"` // seconds since the epoch
	Withheld   int64  `json:"withholding_money"`
}

// Standing is where a shipment stands for one packed event, by what has been
// read of the ledger.
type Standing struct {
	State State
	// Verdict is that of the outcome that answers the event, if State is
	// StateSettled.
	Verdict Verdict
	// Round is the round of the present holder or outcome, or the one that an
	// intent would open now. The first is 1.
	Round int
	// Attempts counts the attempts of all rounds that may have reached the API,
	// the present holder's not included.
	Attempts int
	// Doubt is true if an attempt before the present holder's has an unknown
	// outcome.
	Doubt bool
	// Holder is the attempt that holds the shipment, if State is StateHeld.
	Holder string
	// Mine is true if the holder is an attempt of this process.
	Mine bool
	// FreeAt is when the holder may be taken over because its attempt can no
	// longer take effect, on this process's monotonic clock. It is set if
	// State is StateHeld.
	FreeAt time.Time
	// LostBefore is set if nothing is known of the shipment and records of the
	// ledger were lost: a packed record of before that time may have been acted
	// on all the same.
	LostBefore time.Time
}

// State is a state of a shipment.
type State int

// The states of a shipment.
const (
	// StateOpen means that an intent would get the shipment.
	StateOpen State = iota
	// StateHeld means that an attempt holds it.
	StateHeld
	// StateSettled means that there is an outcome that answers the event.
	StateSettled
)

// Hold is a shipment held by an attempt of this process.
type Hold struct {
	Attempt string // the attempt's id
	Round   int
	// Prior counts earlier attempts that may have reached the API.
	Prior int
	// Doubt is true if one of them has an unknown outcome.
	Doubt bool
	// StartBy is the last moment at which the first byte of a call may be
	// written under this hold, on the monotonic clock.
	StartBy time.Time
}
