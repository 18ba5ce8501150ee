package schema

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// examples returns the JSON blocks of docs/events.md by what the second word
// after their fence says they are.
func examples(t *testing.T) map[string][]string {
	t.Helper()
	blocks := regexp.MustCompile("(?ms)^```([^\n]*)\n(.*?)^```$")
	byKind := map[string][]string{}
	for _, block := range blocks.FindAllStringSubmatch(eventsPage(t), -1) {
		if kind, isJSON := strings.CutPrefix(block[1], "json"); isJSON {
			kind = strings.TrimSpace(kind)
			byKind[kind] = append(byKind[kind], block[2])
		}
	}
	return byKind
}

func eventsPage(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "docs", "events.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

func TestDocumentedExamplesWork(t *testing.T) {
	const structured = "application/cloudevents+json"
	byKind := examples(t)
	for kind, wanted := range map[string]int{
		"order.packed.v1": 2, "cloudevent": 1, "broken": 1, "order.shipped.v1": 1, "order.shipment-failed.v1": 2,
	} {
		if n := len(byKind[kind]); n != wanted {
			t.Errorf("%d examples of %s, want %d", n, kind, wanted)
		}
	}
	for kind, texts := range byKind {
		for i, text := range texts {
			name, value, rec := kind, []byte(text), record(text)
			switch kind {
			case "order.packed.v1":
			case "cloudevent":
				var envelope struct {
					Type string          `json:"type"`
					Data json.RawMessage `json:"data"`
				}
				if err := json.Unmarshal(value, &envelope); err != nil {
					t.Fatal(err)
				}
				if envelope.Type != TypePacked {
					t.Errorf("%s %d: is of type %q", kind, i, envelope.Type)
				}
				name, value, rec = "order.packed.v1", envelope.Data, record(text, "content-type", structured)
			case "order.shipped.v1", "order.shipment-failed.v1":
				rec = nil
			case "broken":
				if validate(t, "order.packed.v1", value) == nil {
					t.Errorf("%s %d: is not broken by the JSON Schema", kind, i)
				}
				continue
			default:
				t.Errorf("a JSON block is marked %q, which is no kind of event:\n%s", kind, text)
				continue
			}
			if err := validate(t, name, value); err != nil {
				t.Errorf("%s %d: %v", kind, i, err)
			}
			if rec == nil {
				continue
			}
			if p := decode(t, rec); len(p.Violations) > 0 {
				t.Errorf("%s %d: breaks %+v", kind, i, p.Violations)
			}
		}
	}
}

// The documented results are what the documented events lead to.
func TestDocumentedResultsAreTheRealOnes(t *testing.T) {
	byKind := examples(t)
	for name, test := range map[string]struct {
		packed, documented, ceID string
		offset                   int64
		at                       time.Time
		change                   func(*Result, *Packed)
	}{
		"shipped": {
			packed: byKind["order.packed.v1"][0], documented: byKind["order.shipped.v1"][0], ceID: "evt-1",
			offset: 12, at: time.Date(2026, 11, 24, 2, 0, 0, 123e6, time.UTC),
			change: func(r *Result, _ *Packed) {
				r.Attempts = 1
				r.Upstream = &Exchange{HTTPStatus: 200, Code: 0, Msg: "成功", Msec: 1193, Time: 1612416107, Withheld: 1}
			},
		},
		"refused": {
			packed: byKind["broken"][0], documented: byKind["order.shipment-failed.v1"][1],
			offset: 14, at: time.Date(2026, 11, 24, 2, 0, 2, 0, time.UTC),
			change: func(r *Result, p *Packed) {
				r.Failure = &Failure{
					Reason: "local_validation", Class: "invalid_request", Redrivable: true,
					Advice:     "The event breaks the rules named in violations and was not sent; correct it and pack the order again.",
					Violations: p.Violations,
				}
			},
		},
	} {
		p := decode(t, record(test.packed, "ce_id", test.ceID))
		r := NewResult(p, Source{Topic: TypePacked, Partition: 0, Offset: test.offset, EventID: p.EventID})
		test.change(&r, p)
		o, err := r.Outcome(&p.Shipment, 1, test.at)
		if err != nil {
			t.Fatal(err)
		}
		var documented bytes.Buffer
		if err := json.Compact(&documented, []byte(test.documented)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(o.Event), documented.String()); diff != "" {
			t.Errorf("%s (-real +documented):\n%s", name, diff)
		}
	}
}

func TestPageNamesEverything(t *testing.T) {
	page := eventsPage(t)
	var names []string
	for _, name := range Names() {
		names = append(names, name)
		for _, def := range []string{"", "upstream", "source", "violation"} {
			all, _ := properties(t, name, def)
			names = append(names, all...)
		}
	}
	traced := Publication{TraceParent: "a", TraceState: "b"}
	for _, h := range traced.Headers(TypeShipped, "packship/packship") {
		names = append(names, h.Key)
	}
	names = append(names, NotPackedReasons...)
	names = append(names, TypePacked, TypeShipped, TypeFailed,
		"packship_reason", "packship_detail", "packship_topic", "packship_partition", "packship_offset", "packship_at")
	for _, name := range names {
		if !strings.Contains(page, "`"+name+"`") && !strings.Contains(page, "`packship schema "+name+"`") {
			t.Errorf("docs/events.md does not name %s", name)
		}
	}
}
