package life

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"packship/schema"
)

// judge writes the sentences.
func (t *teller) judge() {
	for i := range t.Shipments {
		s := &t.Shipments[i]
		s.Standing = s.sentence()
	}
	parts := t.parts()
	for _, p := range parts {
		best, by := p.best(), p.replaced(parts)
		for _, s := range p {
			switch {
			case s.State == StateFailed && best.State == StateShipped:
				s.Standing = fmt.Sprintf("failed at %s, and what it was to ship was shipped with waybill %s; nothing to do", s.last.OccurredAt, best.OutSID)
			case by != nil:
				s.Standing = fmt.Sprintf("failed at %s, and what it was to ship was packed again in other parcels, one of them with waybill %s; nothing to do for this one", s.last.OccurredAt, by.OutSID)
			}
		}
	}
	t.Standing = t.sentence(slices.DeleteFunc(parts, func(p part) bool { return p.replaced(parts) != nil }))
}

// unpublished is what there is to say of an outcome that only the ledger has.
const unpublished = "its result is not published yet: /api/status says what holds that up"

// sentence says where a shipment stands and what to do.
func (s *Shipment) sentence() string {
	switch s.State {
	case StateShipped:
		how := ""
		if s.last.Reconciled {
			how = ", which the API confirmed after a call that it had not answered"
		}
		end := "nothing to do"
		if s.unanswered {
			end = unpublished
		}
		return fmt.Sprintf("shipped at %s with waybill %s%s; %s", s.last.OccurredAt, s.OutSID, how, end)
	case StateFailed:
		return s.failed()
	case StateHeld:
		return fmt.Sprintf("held since %s by %s: a call is under way or has no known outcome; packship goes on with it by itself as long as a replica runs, so do not ship it by hand", clock(s.at), s.holder)
	case StateOpen:
		return fmt.Sprintf("waits to be called for: its last attempt, at %s, reached nothing (%s); packship tries again by itself, and /api/status says what holds it up", clock(s.at), cmp.Or(s.why, "no reason given"))
	case StateWaiting:
		return fmt.Sprintf("waits in partition %d of %s with %s before it; see on /api/status whether a replica is active, and what holds it up", s.waiting.partition, s.waiting.topic, records(s.waiting.ahead))
	default:
		return "packed, but neither ledger nor results know of it: it is older than they remember, or its shop belongs to another deployment; look it up at the platform before anything is sent"
	}
}

// ruleAccount is broken by the settings as much as by an event: no field that
// could be set would help.
const ruleAccount = "V02"

func (s *Shipment) failed() string {
	f := s.last.Failure
	if f == nil {
		f = &schema.Failure{Reason: "an unknown reason"}
	}
	what := fmt.Sprintf("failed at %s with %s", s.last.OccurredAt, f.Reason)
	var broken []string
	for _, v := range f.Violations {
		broken = append(broken, strings.TrimSpace(v.Rule+" "+v.Message))
	}
	if len(broken) > 0 {
		what += " (" + strings.Join(broken, "; ") + ")"
	}
	if s.unanswered && s.waiting == nil {
		what += " (" + unpublished + ")"
	}
	if f.StopParcel {
		what += "; stop the parcel, the order may be refunded"
	}
	switch {
	case s.waiting != nil:
		return fmt.Sprintf("%s, and was sent again: event %s waits in partition %d with %s before it", what, s.waiting.event, s.waiting.partition, records(s.waiting.ahead))
	case f.MaybeShipped:
		return fmt.Sprintf("%s, and may be shipped all the same: look it up at the platform, and only if it is not shipped run `packship redrive --tid %s --force --execute`", what, s.last.TID)
	case len(broken) > 0 && !slices.ContainsFunc(f.Violations, func(v schema.Violation) bool { return v.Rule != ruleAccount }):
		return fmt.Sprintf("%s; put the shop into an account and restart the replicas, then run `packship redrive --tid %s --execute`, or pack the order anew if its shop_id is wrong", what, s.last.TID)
	case len(broken) > 0:
		return fmt.Sprintf("%s; correct it with `packship redrive --tid %s --set FIELD=VALUE --execute`", what, s.last.TID)
	case f.Redrivable && correction(f) != "":
		return fmt.Sprintf("%s: %s; or send it corrected with `packship redrive --tid %s --set %s --execute`", what, advice(f), s.last.TID, correction(f))
	case f.Redrivable && strings.HasPrefix(s.last.Source.EventID, RedrivePrefix):
		return fmt.Sprintf("%s, when it was sent again: %s; when that is done run `packship redrive --tid %s --force --execute`", what, advice(f), s.last.TID)
	case f.Redrivable:
		return fmt.Sprintf("%s: %s; when that is done run `packship redrive --tid %s --execute`", what, advice(f), s.last.TID)
	default:
		return fmt.Sprintf("%s: %s; sending it again does not help", what, advice(f))
	}
}

// records writes a number of them.
func records(n int64) string {
	if n == 1 {
		return "1 record"
	}
	return fmt.Sprintf("%d records", n)
}

// correction is what has to be set for an event to be worth another call, "" if
// it is not the event that is wrong.
func correction(f *schema.Failure) string {
	switch f.Class {
	case "waybill_rejected":
		return "out_sid=WAYBILL"
	case "carrier_rejected":
		return "company_code=CARRIER"
	case "invalid_request", "split_mismatch":
		return "FIELD=VALUE"
	default:
		return ""
	}
}

// advice is that of a failure, as a part of a sentence.
func advice(f *schema.Failure) string {
	return strings.TrimRight(cmp.Or(strings.TrimSpace(f.Advice), "no advice is known"), ".")
}

// sentence says where the whole order stands, by the parts that count.
func (t *teller) sentence(parts []part) string {
	if len(t.Timeline) == 0 {
		return "nothing is known of order " + t.TID
	}
	if len(t.Shipments) == 0 {
		m := t.Timeline[len(t.Timeline)-1]
		return fmt.Sprintf("a record that seems to be about the order is no packed event (%s) and lies in the dead letters: see `packship dlq show %d/%d`", m.Why, m.Partition, m.Offset)
	}
	if len(parts) == 1 {
		return parts[0].sentence()
	}
	states := map[State]int{}
	var unsettled []string
	for _, p := range parts {
		best := p.best()
		states[best.State]++
		if best.State != StateShipped || best.unanswered || p.twice() {
			unsettled = append(unsettled, fmt.Sprintf("waybill %s: %s", cmp.Or(best.OutSID, "-"), p.sentence()))
		}
	}
	var counts []string
	for _, s := range []State{StateShipped, StateFailed, StateHeld, StateOpen, StateWaiting, StateUnknown} {
		if states[s] > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", states[s], s))
		}
	}
	text := fmt.Sprintf("%d parcels: %s", len(parts), strings.Join(counts, ", "))
	if len(unsettled) == 0 {
		return text + "; nothing to do"
	}
	return text + ". " + strings.Join(unsettled, ". ")
}

// part is what is to be shipped, with all the ways in which that was tried: the
// same items under another waybill are the same part.
type part []*Shipment

// parts groups the shipments, in the order in which they were met.
func (t *teller) parts() []part {
	var names []string
	byName := map[string]part{}
	for i := range t.Shipments {
		s := &t.Shipments[i]
		what := schema.Shipment{ShopID: s.key.ShopID, TID: s.key.TID, Split: s.key.Split, SubTID: s.key.SubTID}
		name := what.Canonical()
		if byName[name] == nil {
			names = append(names, name)
		}
		byName[name] = append(byName[name], s)
	}
	parts := make([]part, len(names))
	for i, name := range names {
		parts[i] = byName[name]
	}
	return parts
}

// best returns the shipment that decides where the part stands: one that is
// shipped, else one that is not over, else the newest failure.
func (p part) best() *Shipment {
	return slices.MaxFunc(p, func(a, b *Shipment) int {
		if c := weight(a.State) - weight(b.State); c != 0 {
			return c
		}
		return a.at.Compare(b.at)
	})
}

func weight(s State) int {
	switch s {
	case StateShipped:
		return 3
	case StateHeld, StateOpen, StateWaiting:
		return 2
	case StateFailed:
		return 1
	default:
		return 0
	}
}

// replaced returns what was packed, in other parcels, of the same items after the
// part had failed, nil if nothing was.
func (p part) replaced(parts []part) *Shipment {
	best := p.best()
	if best.State != StateFailed {
		return nil
	}
	for _, other := range parts {
		o := other.best()
		if _, same := o.key.Overlaps(&best.key); !same || o == best || o.key.Order() != best.key.Order() {
			continue
		}
		if o.State == StateShipped || o.State == StateWaiting || o.at.After(best.at) {
			return o
		}
	}
	return nil
}

// twice reports whether the part was shipped under more than one waybill.
func (p part) twice() bool {
	n := 0
	for _, s := range p {
		if s.State == StateShipped {
			n++
		}
	}
	return n > 1
}

func (p part) sentence() string {
	best := p.best()
	if !p.twice() {
		return best.Standing
	}
	var waybills []string
	for _, s := range p {
		if s.State == StateShipped {
			waybills = append(waybills, s.OutSID)
		}
	}
	return fmt.Sprintf("shipped under more than one waybill (%s): check at the platform which of them counts, and stop the other parcel", strings.Join(waybills, ", "))
}

// clock writes a time as a result event does.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z07:00") }
