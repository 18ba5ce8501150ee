package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"packship/schema"
	"packship/upstream/upstreamtest"
)

// TestDemo is the whole performance.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute of real time")
	}
	var out bytes.Buffer
	if err := Run(t.Context(), Options{Out: &out, Addr: "127.0.0.1:0"}); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []string{
		`records +132, for 124 orders`,
		`failed +1 waybill_already_used`,
		`failed +4 local_validation`,
		`dead letters +2\n`,
		`calls repeated blindly +0\n`,
		`parcels shipped twice +0\n`,
		`peak +\d+ calls in a second, the limit being 10`,
		`replayed +132 records with 0 calls`,
		`everything adds up\n$`,
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("no match of %q in\n%s", want, &out)
		}
	}
	if strings.ContainsAny(out.String(), "\033#") {
		t.Error("escape codes or a progress bar were written to what is no terminal")
	}
}

// TestInterrupted stops the demo at its beginning.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	time.AfterFunc(time.Second, func() { cancel(errors.New("enough")) })
	var out bytes.Buffer
	err := Run(ctx, Options{Out: &out, Addr: "127.0.0.1:0"})
	if err == nil || !strings.Contains(err.Error(), "stopped before the end: enough") {
		t.Errorf("got %v, want the cause of the end", err)
	}
}

// perfect returns a demo that is over, with pictures in which all is well.
func perfect(t *testing.T) (d *demo, before, after picture) {
	t.Helper()
	d = &demo{script: newScript(), sim: upstreamtest.New(upstreamtest.Options{}), show: &show{w: new(bytes.Buffer)}}
	t.Cleanup(func() {
		if err := d.sim.Close(); err != nil {
			t.Error(err)
		}
	})
	shipments := map[schema.Key]bool{}
	before.dead = map[string]bool{}
	for i, s := range d.script.samples {
		if s.expect == expectDeadLetter {
			before.dead[fmt.Sprintf("0/%d", i)] = true
			before.buried++
			continue
		}
		p, err := schema.DecodePacked(&schema.Record{Value: s.value})
		if err != nil {
			t.Fatal(err)
		}
		r := schema.NewResult(p, schema.Source{EventID: p.EventID})
		if reason, failed := strings.CutPrefix(string(s.expect), "failed: "); failed {
			r.Failure = &schema.Failure{Reason: reason}
		} else {
			shipments[p.Shipment.Key()] = true
		}
		o, err := r.Outcome(&p.Shipment, 1, time.Unix(0, 0))
		if err != nil {
			t.Fatal(err)
		}
		out := published{id: o.ResultID, replyTo: p.EventID, value: o.Event}
		// A later event of the same shipment gets the first one's result.
		for _, earlier := range before.results {
			if earlier.id == out.id {
				out.value = earlier.value
			}
		}
		if err := json.Unmarshal(out.value, &out.result); err != nil {
			t.Fatal(err)
		}
		before.results = append(before.results, out)
	}
	before.stats.Applied, before.stats.Calls = len(shipments), 140
	after = before
	after.results = append(append([]published(nil), before.results...), before.results...)
	after.buried *= 2
	return d, before, after
}

func TestJudge(t *testing.T) {
	tests := map[string]struct {
		spoil func(before, after *picture)
		want  string // "" for a good ending
	}{
		"all well":          {func(_, _ *picture) {}, ""},
		"dead letter twice": {func(before, after *picture) { before.buried, after.buried = before.buried+1, after.buried+1 }, ""},
		"lost result":       {func(before, _ *picture) { before.results = slices.Delete(slices.Clone(before.results), 20, 21) }, `event evt-\d+ came to "" and not to "shipped"`},
		"wrong outcome": {func(before, _ *picture) {
			before.results[20].result = schema.Result{Status: schema.Failed, Failure: &schema.Failure{Reason: "x"}}
		}, `came to "failed: .*" and not to|two outcomes`},
		"lost dead letter":   {func(before, _ *picture) { clear(before.dead) }, `0 dead letters and not 2`},
		"blind repeat":       {func(before, _ *picture) { before.stats.BlindRepeats = 1 }, `1 calls were repeated although`},
		"overlap":            {func(before, _ *picture) { before.stats.Overlaps = 2 }, `2 calls overlapped`},
		"parcel too many":    {func(before, _ *picture) { before.stats.Applied++ }, `the API shipped \d+ parcels and not`},
		"call in the replay": {func(_, after *picture) { after.stats.Calls++ }, `the replay made 1 calls`},
		"short replay":       {func(_, after *picture) { after.results = after.results[:len(after.results)-1] }, `the replay published \d+ of 132 results again`},
		"other bytes":        {func(_, after *picture) { after.results[len(after.results)-1].value = []byte("{}") }, `different bytes`},
		"new result":         {func(_, after *picture) { after.results[len(after.results)-1].id = "new" }, `a new result new`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d, before, after := perfect(t)
			tt.spoil(&before, &after)
			err := d.judge(before, after)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v, want a good ending", err)
			case tt.want != "" && (err == nil || !regexp.MustCompile(tt.want).MatchString(err.Error())):
				t.Errorf("got %v, want a match of %q", err, tt.want)
			}
		})
	}
}

func TestScript(t *testing.T) {
	s := newScript()
	orders, events := s.count()
	if orders < 120 {
		t.Errorf("%d orders, want at least 120", orders)
	}
	if events >= len(s.samples) {
		t.Errorf("%d events in %d records, want copies among them", events, len(s.samples))
	}
	for _, f := range s.faults {
		if err := f.Validate(); err != nil {
			t.Error(err)
		}
	}
	for _, sample := range s.samples {
		if strings.ContainsAny(sample.key, "[] ") {
			t.Errorf("an event has the key %q", sample.key)
		}
	}
}

func TestShow(t *testing.T) {
	var out bytes.Buffer
	s := &show{w: &out, terminal: true, begin: time.Now()}
	s.block([]string{"one", "two"})
	s.block([]string{"three"})
	s.tell("told")
	if got, want := out.String(), "   one\n   two\n\033[2A\033[J   three\n\033[1A\033[J  0.0 s  told\n"; got != want {
		t.Errorf("on a terminal: got %q, want %q", got, want)
	}
	out.Reset()
	s = &show{w: &out, begin: time.Now()}
	s.block([]string{"one", "two"})
	s.block([]string{"three"}) // too soon to be told again
	if got, want := out.String(), "  0.0 s    one; two\n"; got != want {
		t.Errorf("elsewhere: got %q, want %q", got, want)
	}
	if got := s.bar(1, 4); got != "" {
		t.Errorf("bar %q where it would be a line of a log, want none", got)
	}
	s.terminal = true
	if got := s.bar(1, 4); got != "[##########..............................] " {
		t.Errorf("bar %s", got)
	}
	if got := s.bar(9, 4); strings.Contains(got, ".") || len(got) != 43 {
		t.Errorf("bar beyond the whole %s", got)
	}
}
