package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"packship/schema"
	"packship/upstream/upstreamtest"
)

// picture is what the API's journal and the topics hold at one moment.
type picture struct {
	stats   upstreamtest.Stats
	results []published     // of both result topics
	buried  int             // records of the dead letter topic
	dead    map[string]bool // those different records that they are copies of
}

// finished is how many different events have an outcome.
func (p *picture) finished() int {
	ids := map[string]bool{}
	for _, r := range p.results {
		ids[r.replyTo] = true
	}
	return len(ids) + len(p.dead)
}

// published is a record of a result topic.
type published struct {
	id      string // ce_id
	replyTo string // in_reply_to
	value   []byte
	result  schema.Result
}

// take takes a picture.
func (d *demo) take(ctx context.Context) (picture, error) {
	p := picture{stats: d.sim.Stats(), dead: map[string]bool{}}
	for _, topic := range []string{d.settings.TopicShipped, d.settings.TopicFailed} {
		err := d.kafka.Scan(ctx, topic, func(r *schema.Record) error {
			out := published{value: r.Value}
			out.id, _ = r.Header("ce_id")
			out.replyTo, _ = r.Header("in_reply_to")
			if err := json.Unmarshal(r.Value, &out.result); err != nil {
				return fmt.Errorf("demo: %s holds what is no result: %w", topic, err)
			}
			if out.result.Status == schema.Failed && out.result.Failure == nil {
				return fmt.Errorf("demo: %s holds a failure without a reason: %s", topic, r.Value)
			}
			p.results = append(p.results, out)
			return nil
		})
		if err != nil {
			return p, err
		}
	}
	err := d.kafka.Scan(ctx, d.settings.TopicDLQ, func(r *schema.Record) error {
		partition, _ := r.Header("packship_partition")
		offset, _ := r.Header("packship_offset")
		p.buried++
		p.dead[partition+"/"+offset] = true
		return nil
	})
	return p, err
}

// judge compares what has come of the records with what must come of them, and
// prints the table.
func (d *demo) judge(before, after picture) error {
	wrong := slices.Concat(
		d.wrongOutcomes(before),
		d.wrongCalls(before.stats),
		wrongReplay(before, after, len(d.script.samples)),
	)
	d.table(before, after)
	if len(wrong) > 0 {
		return errors.New("demo: it does not add up: " + strings.Join(wrong, "; "))
	}
	d.show.tell("everything adds up")
	return nil
}

// wrongOutcomes looks for records without the outcome that they must have.
func (d *demo) wrongOutcomes(p picture) []string {
	var wrong []string
	outcomes := map[string]expectation{} // by event id
	for _, r := range p.results {
		got := expectShipped
		if r.result.Status == schema.Failed {
			got = expectFailed(r.result.Reason)
		}
		if other, ok := outcomes[r.replyTo]; ok && other != got {
			wrong = append(wrong, fmt.Sprintf("event %s has two outcomes, %s and %s", r.replyTo, other, got))
		}
		outcomes[r.replyTo] = got
	}
	dead := 0
	for _, s := range d.script.samples {
		if s.expect == expectDeadLetter {
			dead++
			continue
		}
		packed, err := schema.DecodePacked(&schema.Record{Value: s.value})
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("sample %s: %v", s.key, err))
			continue
		}
		if got := outcomes[packed.EventID]; got != s.expect {
			wrong = append(wrong, fmt.Sprintf("event %s came to %q and not to %q", packed.EventID, got, s.expect))
		}
	}
	if len(p.dead) != dead {
		wrong = append(wrong, fmt.Sprintf("%d dead letters and not %d", len(p.dead), dead))
	}
	return wrong
}

// wrongCalls looks for what must never happen at the API.
func (d *demo) wrongCalls(stats upstreamtest.Stats) []string {
	var wrong []string
	for _, v := range d.sim.Verify() {
		wrong = append(wrong, "the API saw: "+v.Rule+": "+v.Detail)
	}
	if stats.BlindRepeats > 0 {
		wrong = append(wrong, fmt.Sprintf("%d calls were repeated although the first was answered", stats.BlindRepeats))
	}
	if stats.Overlaps > 0 {
		wrong = append(wrong, fmt.Sprintf("%d calls overlapped another for the same order", stats.Overlaps))
	}
	shipments := map[schema.Key]bool{}
	for _, s := range d.script.samples {
		if packed, err := schema.DecodePacked(&schema.Record{Value: s.value}); err == nil && s.expect == expectShipped {
			shipments[packed.Shipment.Key()] = true
		}
	}
	if stats.Applied != len(shipments) {
		wrong = append(wrong, fmt.Sprintf("the API shipped %d parcels and not %d", stats.Applied, len(shipments)))
	}
	return wrong
}

// wrongReplay looks for what a replay must not do: call, or say anything new.
func wrongReplay(before, after picture, records int) []string {
	var wrong []string
	if calls := after.stats.Calls - before.stats.Calls; calls != 0 {
		wrong = append(wrong, fmt.Sprintf("the replay made %d calls", calls))
	}
	if n := len(after.results) - len(before.results) + after.buried - before.buried; n < records {
		wrong = append(wrong, fmt.Sprintf("the replay published %d of %d results again", n, records))
	}
	first := map[string][]byte{}
	for _, r := range after.results {
		value, ok := first[r.id]
		if !ok {
			first[r.id] = r.value
		} else if !bytes.Equal(value, r.value) {
			wrong = append(wrong, fmt.Sprintf("result %s was published with different bytes", r.id))
		}
	}
	ids := map[string]bool{}
	for _, r := range before.results {
		ids[r.id] = true
	}
	for id := range first {
		if !ids[id] {
			wrong = append(wrong, fmt.Sprintf("the replay published a new result %s", id))
		}
	}
	return wrong
}

// table prints what has come of everything.
func (d *demo) table(before, after picture) {
	results := map[string]schema.Result{} // by result id
	for _, r := range before.results {
		results[r.id] = r.result
	}
	shipped, reconciled := 0, 0
	failed := map[string]int{}
	for _, r := range results {
		if r.Status == schema.Shipped {
			shipped++
			if r.Reconciled {
				reconciled++
			}
			continue
		}
		failed[r.Reason]++
	}
	stats := before.stats
	orders, _ := d.script.count()
	rows := [][2]string{
		{"records", fmt.Sprintf("%d, for %d orders", len(d.script.samples), orders)},
		{"calls", fmt.Sprintf("%d, costing %d points", stats.Calls, stats.TotalCharge)},
		{"shipped", fmt.Sprintf("%d, of which %d were told by a repeated call after one without an answer", shipped, reconciled)},
	}
	for _, reason := range slices.Sorted(maps.Keys(failed)) {
		rows = append(rows, [2]string{"failed", fmt.Sprintf("%d %s", failed[reason], reason)})
	}
	rows = append(rows,
		[2]string{"dead letters", fmt.Sprint(len(before.dead))},
		[2]string{"calls repeated", fmt.Sprintf("%d, each after a call without a final answer", stats.Repeats)},
		[2]string{"calls repeated blindly", fmt.Sprint(stats.BlindRepeats)},
		[2]string{"parcels shipped twice", fmt.Sprint(stats.AppliedTwice)},
		[2]string{"peak", fmt.Sprintf("%d calls in a second, the limit being %d", stats.MaxInAnySecond, rate)},
		[2]string{"replayed", fmt.Sprintf("%d records with %d calls", len(d.script.samples), after.stats.Calls-stats.Calls)},
		[2]string{"time", time.Since(d.show.begin).Round(100 * time.Millisecond).String()},
	)
	d.show.print(rows)
}
