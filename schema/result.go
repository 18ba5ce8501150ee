package schema

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// namespace is the UUID namespace of result ids.
var namespace = uuid.MustParse("6f1d4a0e-5d0c-5c55-9b0a-7c1f3a5c2e11")

// ResultID returns the id of the result that a round of a shipment ends with: a
// UUID of version 5 (RFC 9562) over the shipment's canonical form, the round, the
// verdict and the time of the outcome, in milliseconds.
//
// The verdict is part of it because a success may be learned after a failure was
// published; that correction is another event. The time is part of it because
// the ledger forgets beyond its horizon, and then the rounds of a shipment begin
// with 1 again: the new outcome must not pass for the forgotten one. The id stays
// the same all the same, because an outcome is composed once and then read from
// the ledger.
func ResultID(s *Shipment, round int, v Verdict, at time.Time) string {
	name := appendPart([]byte(s.Canonical()), strconv.Itoa(round))
	name = appendPart(name, string(v))
	name = appendPart(name, strconv.FormatInt(at.UnixMilli(), 10))
	return uuid.NewSHA1(namespace, name).String()
}

// Result is the value of a result event.
type Result struct {
	ResultID    string    `json:"result_id"`
	Status      Verdict   `json:"status"`
	OccurredAt  string    `json:"occurred_at"` // RFC 3339 in UTC with milliseconds
	ShopID      string    `json:"shop_id"`
	TID         string    `json:"tid"`
	OutSID      string    `json:"out_sid"`
	CompanyCode string    `json:"company_code"`
	IsSplit     int       `json:"is_split"`
	SubTID      []string  `json:"sub_tid"`
	Attempts    int       `json:"attempts"`
	Reconciled  bool      `json:"reconciled"`
	Upstream    *Exchange `json:"upstream,omitempty"`
	Source      Source    `json:"source"`

	// Failure is there if the status is failed.
	*Failure
}

// Failure is what a failed result event says beyond a shipped one.
type Failure struct {
	Reason       string      `json:"reason"`
	Class        string      `json:"class"`
	Redrivable   bool        `json:"redrivable"`
	MaybeShipped bool        `json:"maybe_shipped"`
	StopParcel   bool        `json:"stop_parcel_advised"`
	Advice       string      `json:"advice"`
	Violations   []Violation `json:"violations"`
}

// timeFormat is RFC 3339 with exactly three digits of milliseconds.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"

// NewResult returns a result without a verdict for a packed event: the fields
// that repeat what was asked for. What is longer than any rule allows is cut
// short.
func NewResult(p *Packed, src Source) Result {
	return Result{
		ShopID: p.ShopID, TID: p.TID,
		OutSID: cut(p.OutSID, maxText), CompanyCode: cut(p.CompanyCode, maxText),
		IsSplit: p.IsSplit, SubTID: cutSubTID(p.SubTID), Source: src,
	}
}

// Outcome seals the result as the outcome of a round at the time at: shipped,
// or failed if there is a Failure. It does not keep or change anything that the
// result points to. Its event takes less than half of a record of 1 MiB, whatever
// the packed event and the answer were.
func (r Result) Outcome(s *Shipment, round int, at time.Time) (Outcome, error) {
	at = at.UTC().Truncate(time.Millisecond)
	r.Status = Shipped
	o := Outcome{At: at}
	if r.Failure != nil {
		f := *r.Failure
		f.Advice = cut(f.Advice, maxMessage)
		f.Violations = cutViolations(f.Violations)
		r.Failure = &f
		r.Status = Failed
		o.Reason, o.Class, o.MaybeShipped = f.Reason, f.Class, f.MaybeShipped
	}
	if r.Upstream != nil {
		x := *r.Upstream
		x.Msg = cut(x.Msg, maxMessage)
		r.Upstream = &x
	}
	if r.SubTID == nil {
		r.SubTID = []string{}
	}
	r.ResultID = ResultID(s, round, r.Status, at)
	r.OccurredAt = at.Format(timeFormat)
	o.Verdict, o.ResultID = r.Status, r.ResultID
	// Characters such as & stand escaped in the event: the ledger encodes it
	// as a part of a larger value, and that would escape them otherwise, so that
	// the bytes stored would differ from these.
	event, err := json.Marshal(r)
	if err != nil {
		return Outcome{}, fmt.Errorf("schema: encode result of %s: %w", r.TID, err)
	}
	o.Event = event
	return o, nil
}

// Publication is an outcome on its way to a result topic: the record that one
// packed event causes.
type Publication struct {
	TID     string
	Outcome Outcome
	// InReplyTo is the id of the packed event that causes this publication. It
	// may differ from the one that caused the outcome.
	InReplyTo string
	// TraceParent and TraceState continue the packed record's trace, "" if it
	// has none. Absurdly long ones are left out of the headers.
	TraceParent, TraceState string
	// Stale, if not nil, reports whether the outcome no longer is what the
	// ledger says. It is asked before every try to publish.
	Stale func() bool
}

// Headers returns the headers of the publication: a CloudEvent in binary mode
// (CloudEvents 1.0.2, Kafka protocol binding). The event type is the name of
// the event, and source is that of this connector.
func (p *Publication) Headers(eventType, source string) []Header {
	h := []Header{
		{"ce_specversion", []byte("1.0")},
		{"ce_id", []byte(p.Outcome.ResultID)},
		{"ce_type", []byte(eventType)},
		{"ce_source", []byte(source)},
		{"ce_subject", []byte(p.TID)},
		{"ce_time", []byte(p.Outcome.At.UTC().Format(timeFormat))},
		{"content-type", []byte("application/json")},
		{"in_reply_to", []byte(p.InReplyTo)},
	}
	if p.TraceParent != "" && len(p.TraceParent) <= maxText {
		h = append(h, Header{"traceparent", []byte(p.TraceParent)})
	}
	if p.TraceState != "" && len(p.TraceState) <= maxTraceState {
		h = append(h, Header{"tracestate", []byte(p.TraceState)})
	}
	return h
}

// The types of the events, as ce_type says them.
const (
	TypePacked  = "erp.order.packed.v1"
	TypeShipped = "erp.order.shipped.v1"
	TypeFailed  = "erp.order.shipment-failed.v1"
)
