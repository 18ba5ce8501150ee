package schema

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestResultIDsNeverChange(t *testing.T) {
	split := shipment()
	whole := shipment()
	whole.Split, whole.SubTID = "0", nil
	for _, test := range []struct {
		s       Shipment
		round   int
		verdict Verdict
		at      int64
		want    string
	}{
		{whole, 1, Shipped, 1795485600123, "eeb018ba-5691-59af-960e-1d063fa46cbb"},
		{whole, 1, Failed, 1795485600123, "3416cb53-186c-5a63-a1e6-3b169c7a078e"},
		{whole, 2, Failed, 1795485600123, "4596d950-1aa3-5336-b905-18606cbe1f5c"},
		{split, 1, Shipped, 1795485600123, "ac032743-9cfb-58b3-b67f-95faf1bc0b40"},
		{split, 12, Shipped, 1795485600124, "62e9c52c-9595-52d8-8926-b7a667899145"},
	} {
		got := ResultID(&test.s, test.round, test.verdict, time.UnixMilli(test.at))
		if got != test.want {
			t.Errorf("round %d, %s: result id %s, want %s", test.round, test.verdict, got, test.want)
		}
		if id, err := uuid.Parse(got); err != nil || id.Version() != 5 || id.Variant() != uuid.RFC4122 {
			t.Errorf("result id %s is not a UUID of version 5", got)
		}
	}
}

func TestResultIDsDiffer(t *testing.T) {
	seen := map[string]string{}
	for _, waybill := range []string{"SF1", "SF11"} {
		for round := range 120 {
			for _, verdict := range []Verdict{Shipped, Failed} {
				for at := range int64(3) {
					s := shipment()
					s.OutSID = waybill
					id := ResultID(&s, round, verdict, time.UnixMilli(at))
					name := fmt.Sprint(waybill, " ", round, " ", verdict, " ", at)
					if other, ok := seen[id]; ok {
						t.Errorf("%s and %s have the same result id", name, other)
					}
					seen[id] = name
				}
			}
		}
	}
}

func TestResultIDIsThatOfTheOutcome(t *testing.T) {
	s, reordered := shipment(), shipment()
	slices.Reverse(reordered.SubTID)
	at := time.Date(2026, 11, 24, 2, 0, 0, 123456789, time.UTC)
	want := ResultID(&s, 3, Failed, at)
	if got := ResultID(&reordered, 3, Failed, at.In(time.FixedZone("CST", 8*3600)).Truncate(time.Millisecond)); got != want {
		t.Errorf("result id %s, want %s whatever the order of the sub-orders, the zone and the microseconds", got, want)
	}
	o, err := Result{Failure: &Failure{}}.Outcome(&s, 3, at)
	if err != nil {
		t.Fatal(err)
	}
	if o.ResultID != want {
		t.Errorf("the outcome's result id is %s, want %s", o.ResultID, want)
	}
}

// The golden file holds the events as they are published. Whoever has read one
// may see it again after an upgrade, and its bytes must be the same.
func TestResultBytesNeverChange(t *testing.T) {
	all := results(t)
	var got bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&got, "# %s\n%s\n", name, all[name].Event)
	}
	golden := filepath.Join("testdata", "results.golden")
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("events (-golden +got), rewrite with -update if that is meant:\n%s", diff)
	}
}

func TestOutcomeRepeatsItsEvent(t *testing.T) {
	for name, o := range results(t) {
		var r Result
		if err := json.Unmarshal(o.Event, &r); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if r.ResultID != o.ResultID || r.Status != o.Verdict || r.OccurredAt != "2026-11-24T02:00:00.123Z" {
			t.Errorf("%s: event %+v does not repeat outcome %+v", name, r, o)
		}
		if want := time.Date(2026, 11, 24, 2, 0, 0, 123e6, time.UTC); !o.At.Equal(want) || o.At.Location() != time.UTC {
			t.Errorf("%s: at %v, want %v", name, o.At, want)
		}
		if (r.Failure == nil) != (o.Verdict == Shipped) {
			t.Errorf("%s: failure %+v", name, r.Failure)
		}
		if r.Failure != nil && (o.Reason != r.Reason || o.Class != r.Class || o.MaybeShipped != r.MaybeShipped) {
			t.Errorf("%s: outcome %+v, failure %+v", name, o, r.Failure)
		}
		if r.Failure == nil && (o.Reason != "" || o.Class != "" || o.MaybeShipped) {
			t.Errorf("%s: a shipped outcome has a reason: %+v", name, o)
		}
	}
}

// An outcome goes through the ledger's JSON, more than once after a failure,
// and whoever encodes it may or may not escape HTML. Its event stays as it is.
func TestOutcomeKeepsItsBytesInJSON(t *testing.T) {
	p := decode(t, record(`{"shop_id":"1","tid":12,"out_sid":"<A>&\u2028\ufffd\ud800","company_code":"顺丰 <&>"}`))
	r := NewResult(p, Source{Topic: TypePacked, EventID: "<&>"})
	r.Upstream = &Exchange{HTTPStatus: 200, Code: 614, Msg: "not\xffUTF-8 <b>&</b>"}
	r.Failure = &Failure{Reason: "unrecognised_614", Class: "needs_human", Advice: `Say "why" & retry.`}
	o, err := r.Outcome(&p.Shipment, 1, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	event := bytes.Clone(o.Event)
	for _, escape := range []bool{true, false, true} {
		var stored bytes.Buffer
		enc := json.NewEncoder(&stored)
		enc.SetEscapeHTML(escape)
		if err := enc.Encode(map[string]any{"record": o}); err != nil {
			t.Fatal(err)
		}
		var back struct {
			Record Outcome `json:"record"`
		}
		if err := json.Unmarshal(stored.Bytes(), &back); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(back.Record.Event, event) {
			t.Fatalf("escape %t:\n got %s\nwant %s", escape, back.Record.Event, event)
		}
		if diff := cmp.Diff(o, back.Record); diff != "" {
			t.Errorf("escape %t (-before +after):\n%s", escape, diff)
		}
		o = back.Record
	}
	if err := validate(t, "order.shipment-failed.v1", event); err != nil {
		t.Error(err)
	}
}

func TestOutcomeLeavesTheResultAlone(t *testing.T) {
	p := decode(t, record(bare))
	r := NewResult(p, Source{Topic: TypePacked, EventID: "evt-1"})
	long := strings.Repeat("长", 10_000)
	r.Upstream = &Exchange{Msg: long}
	r.Failure = &Failure{Reason: "local_validation", Advice: long}
	for range 1000 {
		r.Violations = append(r.Violations, Violation{Rule: "V16", Field: "feature", Message: long})
	}
	r.Violations = append(r.Violations, Violation{Rule: "V18", Field: "vvtype", Message: "odd"})
	o, err := r.Outcome(&p.Shipment, 1, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if r.ResultID != "" || r.Status != "" || r.OccurredAt != "" || r.Upstream.Msg != long || r.Advice != long || len(r.Violations) != 1001 || r.Violations[0].Message != long {
		t.Error("the result was changed")
	}
	if len(o.Event) > 16<<10 {
		t.Errorf("the event is %d bytes long", len(o.Event))
	}
	var event Result
	if err := json.Unmarshal(o.Event, &event); err != nil {
		t.Fatal(err)
	}
	if n := len(event.Violations); n != 5 || event.Violations[n-1].Rule != "V18" {
		t.Errorf("%d violations, want four of V16 and then V18", n)
	}
	if !strings.HasSuffix(event.Upstream.Msg, "长…") || !strings.HasPrefix(event.Upstream.Msg, "长长") {
		t.Errorf("message cut to %q", event.Upstream.Msg)
	}
}

func TestOutcomeAlwaysFitsARecord(t *testing.T) {
	// A control character takes six bytes in JSON.
	long := strings.Repeat("\x01", 1<<20)
	p := &Packed{ShopID: "1", TID: "12", OutSID: long, CompanyCode: long, SubTID: []string{long, long, long}}
	for i := range 1 << 16 {
		p.SubTID = append(p.SubTID, fmt.Sprint("\x01", i))
	}
	r := NewResult(p, Source{Topic: TypePacked, EventID: long[:maxText]})
	r.Upstream = &Exchange{HTTPStatus: 200, Msg: long}
	r.Failure = &Failure{Reason: "local_validation", Class: "invalid_request", Advice: long}
	for i := range 27 * 100 {
		r.Violations = append(r.Violations, Violation{Rule: fmt.Sprintf("V%02d", i%27+1), Field: "feature", Message: long})
	}
	o, err := r.Outcome(&p.Shipment, 1, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if len(o.Event) > 1<<19 {
		t.Errorf("the event is %d bytes long", len(o.Event))
	}
	if err := validate(t, "order.shipment-failed.v1", o.Event); err != nil {
		t.Error(err)
	}
}

func TestOutcomeIsDeterministic(t *testing.T) {
	a, b := results(t), results(t)
	if diff := cmp.Diff(a, b); diff != "" {
		t.Errorf("composed twice (-first +second):\n%s", diff)
	}
}

func TestPublicationHeaders(t *testing.T) {
	o := results(t)["shipped"]
	for name, test := range map[string]struct {
		p    Publication
		want []string
	}{
		"plain": {
			Publication{TID: "3941893279420000001", Outcome: o, InReplyTo: "evt-1"},
			nil,
		},
		"traced": {
			Publication{
				TID: "3941893279420000001", Outcome: o, InReplyTo: "evt-1",
				TraceParent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", TraceState: "a=1,b=2",
			},
			[]string{"traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate=a=1,b=2"},
		},
		"absurd trace": {
			Publication{
				TID: "3941893279420000001", Outcome: o, InReplyTo: "evt-1",
				TraceParent: strings.Repeat("0", 1<<20), TraceState: strings.Repeat("a", 1<<20),
			},
			nil,
		},
	} {
		want := append([]string{
			"ce_specversion=1.0",
			"ce_id=" + o.ResultID,
			"ce_type=erp.order.shipped.v1",
			"ce_source=packship/packship",
			"ce_subject=3941893279420000001",
			"ce_time=2026-11-24T02:00:00.123Z",
			"content-type=application/json",
			"in_reply_to=evt-1",
		}, test.want...)
		var got []string
		for _, h := range test.p.Headers(TypeShipped, "packship/packship") {
			got = append(got, h.Key+"="+string(h.Value))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: headers (-want +got):\n%s", name, diff)
		}
	}
}

func TestTypes(t *testing.T) {
	want := []string{"erp.order.packed.v1", "erp.order.shipped.v1", "erp.order.shipment-failed.v1"}
	if diff := cmp.Diff(want, []string{TypePacked, TypeShipped, TypeFailed}); diff != "" {
		t.Errorf("event types (-want +got):\n%s", diff)
	}
}

func TestEffectLabels(t *testing.T) {
	for effect, want := range map[Effect]string{EffectNone: "not_shipped", EffectShipped: "shipped", EffectUnknown: "unknown"} {
		if got := effect.String(); got != want {
			t.Errorf("Effect(%d) is %q, want %q", effect, got, want)
		}
	}
}

func TestRecordHeader(t *testing.T) {
	rec := record("", "a", "1", "b", "2", "a", "3")
	if v, ok := rec.Header("a"); v != "3" || !ok {
		t.Errorf("header a is %q, %t; want the last one", v, ok)
	}
	if v, ok := rec.Header("A"); v != "" || ok {
		t.Errorf("header A is %q, %t; want none", v, ok)
	}
}
