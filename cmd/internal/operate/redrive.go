package operate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"packship/schema"
)

// RedriveFilter says which failed results are to be sent again, and how. The
// zero value means all of them, as they were.
type RedriveFilter struct {
	Reasons, Classes, Shops, Accounts, TIDs []string
	// Since and Until bound the time of the outcome.
	Since, Until time.Time
	// MaybeShipped means only those that may be shipped.
	MaybeShipped bool
	// Set and Corrections change the events. With corrections only the orders
	// that they name are meant.
	Set         []Change
	Corrections *Corrections
	// Limit bounds how many are sent, 0: no limit.
	Limit int
	// PerSecond is how many are sent a second at most, 0: no limit.
	PerSecond float64
	// Force also sends what may be shipped, and whatever else a person may
	// know better.
	Force bool
}

// FilterError is about a filter that can mean nothing.
type FilterError struct{ text string }

func (e *FilterError) Error() string { return e.text }

// Refused is why a failed result is not sent again.
type Refused string

// The refusals.
const (
	RefusedShipped       Refused = "shipped"
	RefusedOrderShipped  Refused = "order_shipped"
	RefusedMaybeShipped  Refused = "maybe_shipped"
	RefusedUnderWay      Refused = "under_way"
	RefusedSuperseded    Refused = "superseded"
	RefusedSent          Refused = "sent"
	RefusedSentBefore    Refused = "sent_before"
	RefusedNotRedrivable Refused = "not_redrivable"
	RefusedInvalid       Refused = "invalid"
	RefusedNotServed     Refused = "not_served"
	RefusedGone          Refused = "gone"
	RefusedUnchangeable  Refused = "unchangeable"
	RefusedAmbiguous     Refused = "ambiguous"
)

// Meaning explains a refusal to a person.
func (r Refused) Meaning() string {
	switch r {
	case RefusedShipped:
		return "the ledger knows it as shipped"
	case RefusedOrderShipped:
		return "the order was shipped by another event; --force sends it all the same"
	case RefusedMaybeShipped:
		return "it may be shipped: look it up at the platform; --force sends it all the same"
	case RefusedUnderWay:
		return "it is being called for now"
	case RefusedSuperseded:
		return "the order, or a part of it, has failed again, or was packed again, since then"
	case RefusedSent:
		return "it was sent again already, and waits or is answered"
	case RefusedSentBefore:
		return "it was sent again and has failed again, and nothing is changed; --force sends it all the same"
	case RefusedNotRedrivable:
		return "sending it again does not help; --force sends it all the same"
	case RefusedInvalid:
		return "it still breaks a rule: correct it with --set or --corrections"
	case RefusedNotServed:
		return "its shop belongs to another deployment"
	case RefusedGone:
		return "its packed event is no longer in the topic: pack it again with packship pack"
	case RefusedUnchangeable:
		return "its packed event cannot be changed"
	case RefusedAmbiguous:
		return "a correction is about several parcels of the order: give it a result_id"
	default:
		return string(r)
	}
}

// Redrive is a selection of failed results and what is to become of them.
type Redrive struct {
	Executed bool `json:"executed"`
	// Found is how many results the filter means, each once; Selected of them
	// are sent again, Refused are not, and Left are beyond the limit.
	Found    int `json:"found"`
	Selected int `json:"selected"`
	Refused  int `json:"refused"`
	Left     int `json:"left"`
	Sent     int `json:"sent"`
	// Calls, Points and Seconds are as in a [Plan].
	Calls   int64   `json:"calls"`
	Points  int64   `json:"points"`
	Seconds float64 `json:"seconds"`

	Reasons  []RedriveReason  `json:"reasons"`
	Refusals []RedriveRefusal `json:"refusals"`
	Orders   []RedriveOrder   `json:"orders"`
	// Unmatched are the lines of the corrections that no failure was found for.
	Unmatched []UnmatchedLine `json:"unmatched"`
	// Damaged is as in a [Plan].
	Damaged string `json:"damaged,omitempty"`

	events    []redriven
	perSecond float64
}

// RedriveReason counts by the reason of the failure.
type RedriveReason struct {
	Reason   string `json:"reason"`
	Class    string `json:"class"`
	Found    int    `json:"found"`
	Selected int    `json:"selected"`
	Refused  int    `json:"refused"`
}

// RedriveRefusal counts by why it is not sent again.
type RedriveRefusal struct {
	Why     Refused `json:"why"`
	Count   int     `json:"count"`
	Meaning string  `json:"meaning"`
}

// RedriveOrder is one failed result.
type RedriveOrder struct {
	TID      string `json:"tid"`
	ShopID   string `json:"shop_id"`
	ResultID string `json:"result_id"`
	Reason   string `json:"reason"`
	// EventID is that of the packed event that is sent, "" if it is refused.
	EventID string  `json:"event_id,omitempty"`
	Refused Refused `json:"refused,omitempty"`
	Detail  string  `json:"detail,omitempty"` // of the refusal
}

// UnmatchedLine is a line of the corrections.
type UnmatchedLine struct {
	Line int    `json:"line"`
	TID  string `json:"tid"`
}

// redriven is a packed event that is to be sent.
type redriven struct {
	tid, account string
	record       *schema.Record
}

// candidate is a failed result that the filter means.
type candidate struct {
	result schema.Result
	row    *correction
}

// PlanRedrive selects failed results, and changes nothing.
func (o *Operator) PlanRedrive(ctx context.Context, f RedriveFilter) (*Redrive, error) {
	orders, err := o.settings.Orders()
	if err != nil {
		return nil, err
	}
	for _, account := range f.Accounts {
		if !slices.Contains(orders.Accounts(), account) {
			return nil, &FilterError{fmt.Sprintf("redrive: there is no account %q; there are %s", account, strings.Join(orders.Accounts(), ", "))}
		}
	}
	s := &selection{
		Operator: o, filter: f, orders: orders, plan: &Redrive{perSecond: f.PerSecond, Refusals: []RedriveRefusal{}, Orders: []RedriveOrder{}, Unmatched: []UnmatchedLine{}},
		reasons: map[string]bool{}, classes: map[string]bool{}, told: map[schema.EventHash]bool{}, newest: map[order][]failure{}, sent: map[string]bool{}, repacked: map[order][]schema.Shipment{}, chosen: map[schema.Key]bool{}, alike: map[string]map[part]bool{},
	}
	for _, step := range []func(context.Context) error{s.findPlace, s.findFailures, s.knowWords, s.findShipped, s.findStanding, s.findWaiting, s.judge, s.mayShare} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	s.sum()
	return s.plan, nil
}
