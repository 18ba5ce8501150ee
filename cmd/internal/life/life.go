package life

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"packship/producer/ledger"
	"packship/schema"
)

// Story is the life of the orders with one id.
type Story struct {
	TID string `json:"tid"`
	// Standing is one sentence: where the order stands, and what to do.
	Standing  string     `json:"standing"`
	Shipments []Shipment `json:"shipments"`
	Timeline  []Moment   `json:"timeline"`
	// Results are the result events of all outcomes, oldest first, each once.
	Results []json.RawMessage `json:"results"`
	// Note says what was not searched, "" if everything was.
	Note string `json:"note,omitempty"`
}

// Shipment is one parcel of the order, or one way in which it was tried to be
// shipped.
type Shipment struct {
	ShopID      string   `json:"shop_id"`
	IsSplit     int      `json:"is_split"` // 0 also if it breaks a rule, as in a result
	SubTID      []string `json:"sub_tid"`
	OutSID      string   `json:"out_sid"`
	CompanyCode string   `json:"company_code"`
	State       State    `json:"state"`
	// Standing says where the shipment stands and what to do.
	Standing string `json:"standing"`

	key     schema.Shipment
	last    schema.Result // the outcome, if State is StateShipped or StateFailed
	at      time.Time     // of the last thing that counts
	holder  string
	why     string   // of the last release
	waiting *waiting // an event that was not taken up yet, nil if there is none
	// unanswered is true if the group has not passed an event that was taken up,
	// and no result was published in reply to it.
	unanswered bool
}

// waiting is a packed event in front of which the group stands.
type waiting struct {
	event     string
	topic     string
	partition int
	ahead     int64 // records before it
}

// State is where a shipment stands.
type State string

// The states of a shipment.
const (
	StateWaiting State = "waiting" // packed, and not taken up yet
	StateHeld    State = "held"    // a call is under way, or was left without an answer
	StateOpen    State = "open"    // its last attempt reached nothing
	StateShipped State = "shipped"
	StateFailed  State = "failed"
	StateUnknown State = "unknown" // nothing is known of it any more
)

// Kind is what a moment is.
type Kind string

// The kinds of moments. The four of the ledger are called as there.
const (
	KindPacked     Kind = "packed"
	KindIntent     Kind = Kind(ledger.StepIntent)
	KindTakeover   Kind = Kind(ledger.StepTakeover)
	KindRelease    Kind = Kind(ledger.StepRelease)
	KindOutcome    Kind = Kind(ledger.StepOutcome)
	KindPublished  Kind = "published"
	KindDeadLetter Kind = "dead_letter"
)

// Moment is one record that has to do with the order.
type Moment struct {
	Time      time.Time `json:"time"`
	Kind      Kind      `json:"kind"`
	Topic     string    `json:"topic"`
	Partition int       `json:"partition"`
	Offset    int64     `json:"offset"`
	// Shipment counts from 1 in [Story].Shipments; 0 is none.
	Shipment int    `json:"shipment,omitempty"`
	EventID  string `json:"event_id,omitempty"`
	// RedriveOf is the failed result that a packed event was made from,
	// ResentFrom the dead letter, as topic/partition/offset.
	RedriveOf  string `json:"redrive_of,omitempty"`
	ResentFrom string `json:"resent_from,omitempty"`

	Attempt string `json:"attempt,omitempty"`
	Prev    string `json:"prev,omitempty"` // the attempt that was taken over
	Round   int    `json:"round,omitempty"`
	Doubt   bool   `json:"doubt,omitempty"`
	Why     string `json:"why,omitempty"`
	// Ignored is true if the record came too late to change anything.
	Ignored bool `json:"ignored,omitempty"`

	ResultID     string          `json:"result_id,omitempty"`
	Verdict      schema.Verdict  `json:"verdict,omitempty"`
	Reason       string          `json:"reason,omitempty"`
	MaybeShipped bool            `json:"maybe_shipped,omitempty"`
	Result       json.RawMessage `json:"result,omitempty"` // the event, with an outcome
}

// Instance is the process whose attempt the moment is about.
func (m *Moment) Instance() string {
	name, _, _ := strings.Cut(m.Attempt, "/")
	return name
}

// RedriveMark is the header, and the field, of a packed event that name the
// failed result that it was made from.
const RedriveMark = "redrive_of"

// RedrivePrefix begins the event id of such a packed event.
const RedrivePrefix = "redrive-"

// ResentMark is the header of a packed record that names the dead letter which
// it was, as topic/partition/offset.
const ResentMark = "resent_from"

// Packed is a packed event that was found.
type Packed struct {
	*schema.Packed
	Record     *schema.Record
	RedriveOf  string
	ResentFrom string
	// Ahead is how many offsets the group has still to pass before it, -1 if
	// it has passed the record.
	Ahead int64
}

// PackedOf returns the packed event of a record, if it is one of the order.
func PackedOf(rec *schema.Record, tid string, ahead int64) (Packed, bool) {
	p, err := schema.DecodePacked(rec)
	if err != nil || p.TID != tid {
		return Packed{}, false
	}
	found := Packed{Packed: p, Record: rec, Ahead: ahead}
	found.RedriveOf, _ = rec.Header(RedriveMark)
	found.ResentFrom, _ = rec.Header(ResentMark)
	return found, true
}

// Found is everything that was found of an order.
type Found struct {
	TID         string
	LedgerTopic string
	Steps       []ledger.Step // in the order of time
	Packed      []Packed
	Published   []*schema.Record
	// Unsearched is true if there may be publications that were not found.
	Unsearched  bool
	DeadLetters []*schema.Record
}

// Tell tells the story. Without anything found its time line is empty.
func Tell(f Found) Story {
	t := teller{Story: Story{TID: f.TID, Shipments: []Shipment{}, Timeline: []Moment{}, Results: []json.RawMessage{}}, found: &f}
	for i := range f.Steps {
		t.step(f.LedgerTopic, &f.Steps[i])
	}
	for i := range f.Packed {
		t.packed(&f.Packed[i])
	}
	for _, r := range f.Published {
		t.published(r)
	}
	for _, r := range f.DeadLetters {
		why, _ := r.Header("packship_reason")
		t.add(Moment{Time: r.Time, Kind: KindDeadLetter, Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Why: why})
	}
	slices.SortStableFunc(t.Timeline, func(a, b Moment) int {
		if c := a.Time.Compare(b.Time); c != 0 {
			return c
		}
		return rank(a.Kind) - rank(b.Kind)
	})
	t.results()
	t.judge()
	return t.Story
}

// rank orders what happened within the same millisecond.
func rank(k Kind) int {
	switch k {
	case KindPacked:
		return 0
	case KindPublished, KindDeadLetter:
		return 2
	default:
		return 1
	}
}

// teller puts a story together.
type teller struct {
	Story
	known map[string]bool // results that are on the time line as outcomes
	found *Found
}

func (t *teller) add(m Moment) { t.Timeline = append(t.Timeline, m) }

// shipment returns the number of a shipment, from 1, which is new if it was not
// met before.
func (t *teller) shipment(s schema.Shipment) int {
	canonical := s.Canonical()
	for i := range t.Shipments {
		if t.Shipments[i].key.Canonical() == canonical {
			return i + 1
		}
	}
	sub := slices.Clone(s.SubTID)
	if sub == nil {
		sub = []string{}
	}
	split := 0
	if s.Split == "1" {
		split = 1
	}
	t.Shipments = append(t.Shipments, Shipment{
		ShopID: s.ShopID, IsSplit: split, SubTID: sub, OutSID: s.OutSID, CompanyCode: s.CompanyCode,
		State: StateUnknown, key: s,
	})
	return len(t.Shipments)
}

func (t *teller) step(topic string, step *ledger.Step) {
	n := t.shipment(step.Shipment)
	m := Moment{
		Time: step.Time, Kind: Kind(step.Kind), Topic: topic, Partition: step.Partition, Offset: step.Offset, Shipment: n,
		EventID: step.Event, Attempt: step.Attempt, Prev: step.Prev, Round: step.Round, Doubt: step.Doubt, Why: step.Why, Ignored: !step.Counts,
	}
	if o := step.Outcome; o != nil {
		m.ResultID, m.Verdict, m.Reason, m.MaybeShipped, m.Result = o.ResultID, o.Verdict, o.Reason, o.MaybeShipped, o.Event
	}
	t.add(m)
	if !step.Counts {
		return
	}
	s := &t.Shipments[n-1]
	s.at = step.Time
	switch step.Kind {
	case ledger.StepIntent, ledger.StepTakeover:
		s.State, s.holder = StateHeld, m.Instance()
	case ledger.StepRelease:
		s.State, s.why = StateOpen, step.Why
	case ledger.StepOutcome:
		s.settle(m.Result)
	}
}

// settle gives the shipment the outcome that a result event tells.
func (s *Shipment) settle(event []byte) {
	var r schema.Result
	if json.Unmarshal(event, &r) != nil {
		return // not an event of packship's
	}
	s.last, s.State = r, StateFailed
	if r.Status == schema.Shipped {
		s.State = StateShipped
	}
}

func (t *teller) packed(p *Packed) {
	n := t.shipment(p.Shipment)
	t.add(Moment{
		Time: p.Record.Time, Kind: KindPacked, Topic: p.Record.Topic, Partition: p.Record.Partition, Offset: p.Record.Offset,
		Shipment: n, EventID: p.EventID, RedriveOf: p.RedriveOf, ResentFrom: p.ResentFrom,
	})
	s := &t.Shipments[n-1]
	if p.Ahead < 0 {
		return
	}
	if t.attempted(n, p.EventID) {
		s.unanswered = s.unanswered || !t.answered(p.EventID)
		return
	}
	if s.waiting == nil || s.waiting.ahead > p.Ahead {
		s.waiting = &waiting{p.EventID, p.Record.Topic, p.Record.Partition, p.Ahead}
	}
	if s.State == StateUnknown {
		s.State = StateWaiting
	}
}

// attempted reports whether the ledger has a record about an event.
func (t *teller) attempted(shipment int, event string) bool {
	return slices.ContainsFunc(t.Timeline, func(m Moment) bool {
		return m.Attempt != "" && m.Shipment == shipment && m.EventID == event
	})
}

// answered reports whether a result was published in reply to an event, or may
// have been.
func (t *teller) answered(event string) bool {
	return t.found.Unsearched || slices.ContainsFunc(t.found.Published, func(r *schema.Record) bool {
		to, _ := r.Header("in_reply_to")
		return to == event
	})
}

func (t *teller) published(r *schema.Record) {
	m := Moment{Time: r.Time, Kind: KindPublished, Topic: r.Topic, Partition: r.Partition, Offset: r.Offset}
	m.EventID, _ = r.Header("in_reply_to")
	m.ResultID, _ = r.Header("ce_id")
	var event schema.Result
	if json.Unmarshal(r.Value, &event) == nil {
		m.Verdict = event.Status
		if event.Failure != nil {
			m.Reason, m.MaybeShipped = event.Reason, event.MaybeShipped
		}
		m.Shipment = t.shipmentOf(m.ResultID, &event)
		m.Result = r.Value
		t.remember(&m, &event)
	}
	t.add(m)
}

// remember has a shipment that the ledger has forgotten stand where its newest
// result says.
func (t *teller) remember(m *Moment, event *schema.Result) {
	s := &t.Shipments[m.Shipment-1]
	if slices.ContainsFunc(t.Timeline, func(o Moment) bool { return o.Attempt != "" && o.Shipment == m.Shipment }) {
		return
	}
	if s.waiting != nil && s.waiting.event == m.EventID {
		s.waiting = nil // it is answered, and about to be answered again
	}
	if s.State != StateShipped && event.OccurredAt >= s.last.OccurredAt {
		s.at = m.Time
		s.settle(m.Result)
	}
}

// shipmentOf finds the shipment that a result is about. The event repeats its
// parts, but not where they break a rule.
func (t *teller) shipmentOf(resultID string, r *schema.Result) int {
	for _, m := range t.Timeline {
		if m.Shipment > 0 && (m.Kind == KindOutcome && m.ResultID == resultID || m.Kind == KindPacked && m.EventID == r.Source.EventID) {
			return m.Shipment
		}
	}
	split := "0"
	if r.IsSplit != 0 {
		split = "1"
	}
	return t.shipment(schema.Shipment{ShopID: r.ShopID, TID: r.TID, Split: split, SubTID: r.SubTID, OutSID: r.OutSID, CompanyCode: r.CompanyCode})
}

// results gathers the result events.
func (t *teller) results() {
	t.known = map[string]bool{}
	for i := range t.Timeline {
		m := &t.Timeline[i]
		if m.ResultID != "" && !m.Ignored && len(m.Result) > 0 && !t.known[m.ResultID] {
			t.known[m.ResultID] = true
			t.Results = append(t.Results, m.Result)
		}
		if m.Kind == KindPublished {
			m.Result = nil // it stands among the results
		}
	}
}
