package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"packship/cmd/internal/life"
	"packship/consumer"
	"packship/producer"
	"packship/producer/ledger"
	"packship/schema"
)

const (
	// searchLimit bounds a search of the ledger for somebody who waits for it.
	// It is shorter than a response may take.
	searchLimit = 25 * time.Second
	// besideLimit bounds what is looked for beside the ledger: packed events
	// and publications.
	besideLimit = 5 * time.Second
	// maxWaitingRead bounds the records that are read of those which nobody
	// has handled yet, and maxPublishedRead those that are read of a result
	// topic after an outcome.
	maxWaitingRead, maxPublishedRead = 50_000, 2_000
	// maxSources bounds the packed events that are fetched one by one.
	maxSources = 20
)

const unknownOrder = "the ledger knows no order with that id, and none waits in the packed topic"

// orderError is why there is no answer about an order.
type orderError struct {
	code int // of HTTP
	text string
}

func (e *orderError) Error() string { return e.text }

// orderHandlers answer what is known of an order, as JSON and as a page. They
// search for one request after the other, because each reads a part of the
// ledger, which must not take the machine from those who ship.
func (c *Connector) orderHandlers() (asJSON, asPage http.HandlerFunc) {
	searching := make(chan struct{}, 1)
	find := func(ctx context.Context, tid string) (*life.Story, *orderError) {
		ctx, cancel := context.WithTimeout(ctx, searchLimit)
		defer cancel()
		select {
		case searching <- struct{}{}:
			defer func() { <-searching }()
		case <-ctx.Done():
			return nil, &orderError{http.StatusServiceUnavailable, "others are searching; try again, or use packship trace"}
		}
		return c.findOrder(ctx, tid)
	}
	asJSON = func(w http.ResponseWriter, r *http.Request) {
		story, err := find(r.Context(), r.PathValue("tid"))
		if err != nil {
			writeError(w, err.code, err.text)
			return
		}
		writeJSON(w, http.StatusOK, story)
	}
	asPage = func(w http.ResponseWriter, r *http.Request) {
		view := &orderView{TID: strings.TrimSpace(r.FormValue("tid")), Now: time.Now()}
		code := http.StatusOK
		if view.TID != "" {
			story, err := find(r.Context(), view.TID)
			if view.Story = story; err != nil {
				code, view.Trouble, view.Unknown = err.code, err.text, err.code == http.StatusNotFound
			}
		}
		c.render(w, code, "orders", view)
	}
	return asJSON, asPage
}

// findOrder tells everything that is known of an order.
func (c *Connector) findOrder(ctx context.Context, tid string) (*life.Story, *orderError) {
	c.mu.Lock()
	memory, kafka := c.ledger, c.kafka
	c.mu.Unlock()
	if memory == nil {
		return nil, &orderError{http.StatusServiceUnavailable, "the ledger is not there yet"}
	}
	if ok, why := memory.Ready(); !ok {
		return nil, &orderError{http.StatusServiceUnavailable, why}
	}
	if !schema.ValidID(tid) {
		return nil, &orderError{http.StatusNotFound, unknownOrder + "; ids are whole numbers from 1 to 9223372036854775807"}
	}
	steps, err := memory.History(ctx, tid)
	if err != nil {
		c.log.Warn("order not looked up", "tid", tid, "err", err)
		return nil, &orderError{http.StatusServiceUnavailable, "the ledger cannot be searched now; see the log"}
	}
	s := &search{
		kafka: kafka, settings: &c.settings, partitions: c.partitions(),
		found: life.Found{TID: tid, LedgerTopic: c.settings.TopicLedger, Steps: steps},
	}
	s.beside(ctx)
	story := life.Tell(s.found)
	story.Note = strings.Join(s.notes, "; ")
	if len(story.Timeline) == 0 {
		text := unknownOrder
		if story.Note != "" {
			text += " (" + story.Note + ")"
		}
		return nil, &orderError{http.StatusNotFound, text + "; `packship trace` reads everything"}
	}
	return &story, nil
}

// partitions returns how far the partitions have come.
func (c *Connector) partitions() []consumer.PartitionStatus {
	c.mu.Lock()
	reader := c.reader
	c.mu.Unlock()
	if reader == nil {
		return nil
	}
	return reader.Status().Partitions
}

// search looks beside the ledger for what else is known of an order. Unlike a
// trace it does not read whole topics: it knows from the ledger where to look.
type search struct {
	kafka      *Kafka
	settings   *Settings
	partitions []consumer.PartitionStatus
	found      life.Found
	notes      []string // what was not searched
}

func (s *search) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// beside looks for packed events and publications. What cannot be read is noted:
// the ledger's own part is worth showing without.
func (s *search) beside(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, besideLimit)
	defer cancel()
	if err := s.sources(ctx); err != nil {
		s.note("the packed events were not all read: %v", err)
	}
	if err := s.waiting(ctx); err != nil {
		s.note("the records that wait were not all read: %v", err)
	}
	if err := s.publications(ctx); err != nil {
		s.found.Unsearched = true
		s.note("the results were not all read: %v", err)
	}
}

// errEnough ends a read that has found what it looked for.
var errEnough = errors.New("app: enough records")

// sources fetches the packed events that the outcomes name.
func (s *search) sources(ctx context.Context) error {
	type place struct {
		partition int
		offset    int64
	}
	var places []place
	for i := range s.found.Steps {
		o := s.found.Steps[i].Outcome
		if o == nil {
			continue
		}
		var event schema.Result
		if json.Unmarshal(o.Event, &event) == nil && event.Source.Topic == s.settings.TopicPacked {
			places = append(places, place{event.Source.Partition, event.Source.Offset})
		}
	}
	slices.SortFunc(places, func(a, b place) int {
		return slices.Compare([]int64{int64(a.partition), a.offset}, []int64{int64(b.partition), b.offset})
	})
	places = slices.Compact(places)
	if len(places) > maxSources {
		s.note("only the newest %d of %d packed events were fetched", maxSources, len(places))
		places = places[len(places)-maxSources:]
	}
	for _, p := range places {
		err := s.kafka.Read(ctx, s.settings.TopicPacked, Range{p.partition, p.offset, p.offset + 1}, func(rec *schema.Record) error {
			if rec.Offset == p.offset {
				s.packed(rec, -1)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// packed takes a packed event of the order.
func (s *search) packed(rec *schema.Record, ahead int64) {
	for i := range s.found.Packed {
		if p := &s.found.Packed[i]; p.Record.Partition == rec.Partition && p.Record.Offset == rec.Offset {
			p.Ahead = ahead
			return
		}
	}
	if p, ok := life.PackedOf(rec, s.found.TID, ahead); ok {
		s.found.Packed = append(s.found.Packed, p)
	}
}

// waiting looks through the records that the group has not passed: the order's
// event may be among them, unread or parked.
func (s *search) waiting(ctx context.Context) error {
	budget := int64(maxWaitingRead)
	id := []byte(s.found.TID)
	for i := range s.partitions {
		p := &s.partitions[i]
		r := Range{p.Partition, max(0, p.Committed), p.End}
		if r.Len() > budget {
			s.note("of the records that wait in partition %d, %d of %d were looked at", p.Partition, budget, r.Len())
			r.To = r.From + budget
		}
		budget -= r.Len()
		err := s.kafka.Read(ctx, s.settings.TopicPacked, r, func(rec *schema.Record) error {
			if bytes.Contains(rec.Value, id) {
				s.packed(rec, rec.Offset-r.From)
			}
			return ctx.Err()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// publications looks for the result of each outcome where it was published
// first: soon after, in the partition of its order.
func (s *search) publications(ctx context.Context) error {
	for i := range s.found.Steps {
		step := &s.found.Steps[i]
		if o := step.Outcome; o == nil || !step.Counts || s.published(o.ResultID) {
			continue
		}
		if err := s.publication(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

func (s *search) published(resultID string) bool {
	return slices.ContainsFunc(s.found.Published, func(r *schema.Record) bool {
		id, _ := r.Header("ce_id")
		return id == resultID
	})
}

// clockSlack is by how much the clocks that stamp ledger and results may differ.
const clockSlack = 5 * time.Second

func (s *search) publication(ctx context.Context, step *ledger.Step) error {
	topic := s.settings.TopicFailed
	if step.Outcome.Verdict == schema.Shipped {
		topic = s.settings.TopicShipped
	}
	from, err := s.kafka.OffsetsAt(ctx, topic, step.Time.Add(-clockSlack))
	if err != nil {
		return err
	}
	partition := producer.PartitionOf([]byte(s.found.TID), len(from))
	ranges, err := s.kafka.Ranges(ctx, topic)
	if err != nil {
		return err
	}
	for _, r := range ranges {
		if r.Partition != partition {
			continue
		}
		r.From = from[partition]
		bounded := r.Len() > maxPublishedRead
		r.To = min(r.To, r.From+maxPublishedRead)
		err := s.kafka.Read(ctx, topic, r, func(rec *schema.Record) error {
			if string(rec.Key) != s.found.TID {
				return ctx.Err()
			}
			if !slices.ContainsFunc(s.found.Published, func(r *schema.Record) bool { return r.Topic == rec.Topic && r.Offset == rec.Offset }) {
				s.found.Published = append(s.found.Published, rec)
			}
			if id, _ := rec.Header("ce_id"); id == step.Outcome.ResultID {
				return errEnough
			}
			return ctx.Err()
		})
		switch {
		case errors.Is(err, errEnough):
		case err != nil:
			return err
		case bounded:
			s.found.Unsearched = true
			s.note("result %s was looked for in the %d records of %s after its outcome", step.Outcome.ResultID, maxPublishedRead, topic)
		}
	}
	return nil
}

// orderView is an order as its page shows it.
type orderView struct {
	TID     string
	Now     time.Time
	Story   *life.Story
	Trouble string // why there is no story
	Unknown bool   // because nothing is known of the order
}

// Tone is the colour of the order's standing: that of its worst shipment.
func (v *orderView) Tone() string {
	states := map[life.State]bool{}
	for i := range v.Story.Shipments {
		states[v.Story.Shipments[i].State] = true
	}
	switch {
	case states[life.StateShipped] && len(states) == 1:
		return "ok"
	case states[life.StateFailed] && !states[life.StateShipped]:
		return "bad"
	default:
		return "wait"
	}
}

// Note says what was not searched, as a sentence.
func (v *orderView) Note() string {
	if v.Story.Note == "" {
		return ""
	}
	return asSentence(v.Story.Note)
}

// resultRow is a result event, to be unfolded.
type resultRow struct{ Summary, Text string }

// Results are the result events, indented.
func (v *orderView) Results() []resultRow {
	var rows []resultRow
	for _, raw := range v.Story.Results {
		var event struct {
			ID     string `json:"result_id"`
			Status string `json:"status"`
			At     string `json:"occurred_at"`
		}
		var text bytes.Buffer
		if json.Unmarshal(raw, &event) != nil || json.Indent(&text, raw, "", "  ") != nil {
			continue // not an event of packship's
		}
		rows = append(rows, resultRow{fmt.Sprintf("%s at %s, result %s", event.Status, event.At, event.ID), text.String()})
	}
	return rows
}
