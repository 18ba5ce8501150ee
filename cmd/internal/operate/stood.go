package operate

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"packship/cmd/internal/app"
	"packship/schema"
)

// stoodAt returns where the group stood at a time: in every partition the first
// record that was answered for the first time after it. Kafka does not tell it,
// since it keeps only the last commit of a group. Where nothing was answered
// since, the group stands there still.
func (o *Operator) stoodAt(ctx context.Context, at time.Time) (func(position) int64, error) {
	a := &answers{at: at, topic: o.settings.TopicPacked, events: map[schema.EventHash]bool{}, letters: map[place]bool{}}
	for _, source := range []struct {
		topic string
		note  func(*schema.Record)
	}{
		{o.settings.TopicShipped, a.result}, {o.settings.TopicFailed, a.result}, {o.settings.TopicDLQ, a.letter},
	} {
		if err := o.mayForget(ctx, source.topic, at); err != nil {
			return nil, err
		}
		err := o.readAll(ctx, source.topic, func(rec *schema.Record) error { source.note(rec); return nil })
		if err != nil {
			return nil, err
		}
	}
	positions, err := o.positions(ctx)
	if err != nil {
		return nil, err
	}
	stood := map[int]int64{}
	for _, p := range positions {
		if stood[p.Partition], err = o.firstSince(ctx, a, p); err != nil {
			return nil, err
		}
	}
	return func(p position) int64 { return stood[p.Partition] }, nil
}

// answers tells which records were answered before a time, and which only since.
type answers struct {
	at      time.Time
	topic   string                    // of the records
	events  map[schema.EventHash]bool // whether it was before
	letters map[place]bool
}

func (a *answers) result(rec *schema.Record) {
	if event, ok := rec.Header("in_reply_to"); ok {
		h := eventOf(event, string(rec.Key))
		a.events[h] = a.events[h] || rec.Time.Before(a.at)
	}
}

func (a *answers) letter(rec *schema.Record) {
	header := func(name string) string {
		value, _ := rec.Header(noted + name)
		return value
	}
	partition, errP := strconv.Atoi(header("partition"))
	offset, errO := strconv.ParseInt(header("offset"), 10, 64)
	if errP == nil && errO == nil && header("topic") == a.topic {
		at := place{partition, offset}
		a.letters[at] = a.letters[at] || rec.Time.Before(a.at)
	}
}

// since reports whether a record was answered, and not before the time.
func (a *answers) since(rec *schema.Record) bool {
	before, answered := a.letters[place{rec.Partition, rec.Offset}]
	if p, err := schema.DecodePacked(rec); err == nil {
		before, answered = a.events[eventOf(p.EventID, p.TID)]
	}
	return answered && !before
}

// eventOf names an event of an order. Its id alone does not: a producer may give
// the events of many orders one id, as that of their batch.
func eventOf(id, tid string) schema.EventHash { return schema.HashEvent(tid + " " + id) }

// errFound ends a read that has found what it looked for.
var errFound = errors.New("operate: found")

// firstSince returns the offset of the first record of a partition that was
// answered since the time.
func (o *Operator) firstSince(ctx context.Context, a *answers, p position) (int64, error) {
	first := p.at
	r := app.Range{Partition: p.Partition, From: p.First, To: p.End}
	o.meter.Begin(fmt.Sprintf("searching partition %d of %s", p.Partition, a.topic), r.Len())
	defer o.meter.End()
	err := o.read(ctx, a.topic, []app.Range{r}, func(rec *schema.Record) error {
		if !a.since(rec) {
			return nil
		}
		first = min(first, rec.Offset)
		return errFound
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	return first, err
}

// mayForget returns an error if a topic of answers does not reach back to a time
// any more: what was answered soon after it would seem not to have been.
func (o *Operator) mayForget(ctx context.Context, topic string, at time.Time) error {
	ranges, err := o.kafka.Ranges(ctx, topic)
	if err != nil {
		return err
	}
	emptied := false
	for _, r := range ranges {
		if r.From == 0 {
			continue
		}
		if r.Len() == 0 {
			emptied = true
			continue
		}
		var oldest time.Time
		err := o.kafka.Read(ctx, topic, r, func(rec *schema.Record) error { oldest = rec.Time; return errFound })
		if err != nil && !errors.Is(err, errFound) {
			return err
		}
		if oldest.After(at) {
			return refuse("replay: where the group stood at %s is no longer known: %s keeps results only since %s; name a later time, or begin at a time of the packed events or an offset",
				at.UTC().Format(time.RFC3339), topic, oldest.UTC().Format(time.RFC3339))
		}
	}
	if !emptied {
		return nil
	}
	// Nothing is left there to tell how far back it reached.
	kept, err := o.kafka.RetentionOf(ctx, topic)
	if err == nil && kept > 0 && time.Since(at) > kept {
		err = refuse("replay: where the group stood at %s is no longer known: %s keeps results for %s only; name a later time, or begin at a time of the packed events or an offset",
			at.UTC().Format(time.RFC3339), topic, kept)
	}
	return err
}
