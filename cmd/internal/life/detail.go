package life

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"packship/schema"
)

// Detail says more about a moment of the story, as a part of a line.
func (s *Story) Detail(m *Moment) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	switch m.Kind {
	case KindPacked:
		p := s.Shipments[m.Shipment-1]
		add("event %s", m.EventID)
		if m.RedriveOf != "" {
			add("sent again for result %s", m.RedriveOf)
		}
		if m.ResentFrom != "" {
			add("sent again from dead letter %s", m.ResentFrom)
		}
		add("shop %s, waybill %s, carrier %s", p.ShopID, dash(p.OutSID), dash(p.CompanyCode))
	case KindIntent:
		add("round %d for event %s by %s", m.Round, m.EventID, m.Instance())
		if m.Doubt {
			add("an earlier attempt may have shipped")
		}
	case KindTakeover:
		previous := Moment{Attempt: m.Prev}
		answer := ""
		if m.Why != "" {
			answer = fmt.Sprintf(": %q", m.Why)
		}
		add("for event %s by %s from %s, whose call has no known outcome%s", m.EventID, m.Instance(), previous.Instance(), answer)
	case KindRelease:
		add("the attempt of %s reached nothing: %s", m.Instance(), cmp.Or(m.Why, "no reason given"))
	case KindOutcome:
		add("%s", m.outcome())
		add("%s", m.answer())
		if m.Attempt != "" {
			add("told by %s", m.Instance())
		}
		add("result %s", m.ResultID)
	case KindPublished:
		add("%s", m.outcome())
		add("result %s in reply to %s", m.ResultID, m.EventID)
	case KindDeadLetter:
		add("%s; see `packship dlq show %d/%d`", dash(m.Why), m.Partition, m.Offset)
	}
	if m.Ignored {
		add("came too late and changes nothing")
	}
	return strings.Join(parts, ", ")
}

func (m *Moment) outcome() string {
	if m.Verdict == schema.Shipped {
		return "shipped"
	}
	text := "failed with " + dash(m.Reason)
	if m.MaybeShipped {
		text += ", may be shipped all the same"
	}
	return text
}

// answer says what the API has answered in the end, and to how many calls.
func (m *Moment) answer() string {
	var r schema.Result
	if json.Unmarshal(m.Result, &r) != nil {
		return "result unreadable"
	}
	calls := fmt.Sprintf("%d calls", r.Attempts)
	switch r.Attempts {
	case 0:
		return "no call"
	case 1:
		calls = "1 call"
	}
	u := r.Upstream
	if u == nil {
		return calls + " without an answer that could be read"
	}
	return fmt.Sprintf("%s, answered with HTTP %d, code %d %q in %d ms", calls, u.HTTPStatus, u.Code, u.Msg, u.Msec)
}

// dash stands for what is empty.
func dash(text string) string { return cmp.Or(text, "-") }
