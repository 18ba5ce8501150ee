package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"packship/schema"
)

// Step is a record of the ledger, as a person sees it in the history of an order.
type Step struct {
	Time      time.Time       `json:"time"`
	Partition int             `json:"partition"`
	Offset    int64           `json:"offset"`
	Kind      string          `json:"kind"` // intent, takeover, release or outcome
	Shipment  schema.Shipment `json:"shipment"`
	// Counts is true if the record has changed anything: an intent that came
	// too late does not, for instance.
	Counts  bool   `json:"counts"`
	Attempt string `json:"attempt"`
	Prev    string `json:"prev,omitempty"`
	Event   string `json:"event,omitempty"`
	Round   int    `json:"round,omitempty"`
	Doubt   bool   `json:"doubt,omitempty"`
	// Uncalled says of an outcome that no call was made under its attempt.
	Uncalled bool            `json:"uncalled,omitempty"`
	Why      string          `json:"why,omitempty"`
	Outcome  *schema.Outcome `json:"outcome,omitempty"`
}

// The kinds of a [Step].
const (
	StepIntent   = string(kindIntent)
	StepTakeover = string(kindTakeover)
	StepRelease  = string(kindRelease)
	StepOutcome  = string(kindOutcome)
)

// History returns everything that the ledger holds of the orders with an id, of
// whatever shop, in the order of time. It is empty for an id that is not known.
// It reads whole partitions again, which may take some seconds.
func (l *Ledger) History(ctx context.Context, tid string) ([]Step, error) {
	prefix := schema.TIDPrefix(tid)
	var affected []*partition
	for _, p := range l.partitions {
		if p.knows(prefix) {
			affected = append(affected, p)
		}
	}
	return l.searchAll(ctx, affected, tid, func(int) {})
}

// maxSteps bounds the history of an order, of which the newest part counts. An
// order that probes an API for days may have thousands of attempts.
const maxSteps = 5_000

// searchers is how many partitions are read at once for a person.
const searchers = 4

// searchAll searches partitions for the records of the orders with an id. It
// calls read with the number of records that were read, from several
// goroutines.
func (l *Ledger) searchAll(ctx context.Context, partitions []*partition, tid string, read func(records int)) ([]Step, error) {
	steps := make([][]Step, len(partitions))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(searchers)
	for i, p := range partitions {
		g.Go(func() (err error) {
			steps[i], err = l.search(ctx, p, tid, read)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := slices.Concat(steps...)
	// Within a partition, and so within an order, the log's own order stays.
	slices.SortStableFunc(all, func(a, b Step) int { return a.Time.Compare(b.Time) })
	return all, nil
}

// search reads a partition from its start and returns the records of the orders
// with an id.
func (l *Ledger) search(ctx context.Context, p *partition, tid string, read func(records int)) ([]Step, error) {
	prefix := schema.TIDPrefix(tid)
	fold := newFold(0)
	fold.horizon = l.cfg.Horizon
	now := time.Now()
	var steps []Step
	err := l.sweep(ctx, p, func(b batch) error {
		for _, f := range b.records {
			key, ok := keyOf(f.key)
			if !ok || [8]byte(key[:8]) != prefix {
				continue
			}
			r, err := decode(f.value)
			s, ok := schema.ParseShipment(string(f.key))
			if err != nil || !ok || s.TID != tid {
				continue // damage is reported where the ledger is read
			}
			step := Step{
				Time: f.time, Partition: p.n, Offset: f.offset, Kind: string(r.Kind), Shipment: s,
				Counts:  fold.apply(&entry{record: r, key: key, offset: f.offset, time: f.time, read: now}),
				Attempt: r.Attempt, Prev: r.Prev, Event: r.Event, Round: r.Round, Doubt: r.Doubt, Uncalled: r.Uncalled, Why: r.Why,
			}
			if r.Kind == kindOutcome {
				step.Outcome = new(schema.Outcome)
				if err := json.Unmarshal(r.Outcome, step.Outcome); err != nil {
					return fmt.Errorf("ledger: outcome at offset %d of partition %d: %w", f.offset, p.n, err)
				}
			}
			steps = append(steps, step)
			if len(steps) >= 2*maxSteps {
				steps = slices.Clone(steps[len(steps)-maxSteps:])
			}
		}
		read(len(b.records))
		return nil
	})
	return steps[max(0, len(steps)-maxSteps):], err
}

// sweep reads a partition from its start to its present end.
func (l *Ledger) sweep(ctx context.Context, p *partition, each func(batch) error) error {
	var next, end int64
	err := patiently(ctx, func() (err error) {
		next, end, err = l.ends(ctx, p.n)
		return err
	})
	if err != nil {
		return err
	}
	for next < end {
		b, err := l.fetchMore(ctx, p.n, next)
		if err != nil {
			return err
		}
		if err := each(b); err != nil {
			return err
		}
		next = b.next
	}
	return nil
}

// fetchMore reads what comes next in a partition. It returns only with
// something, also if it has to step over what retention has removed, or once
// patience is at an end.
func (l *Ledger) fetchMore(ctx context.Context, partition int, next int64) (b batch, err error) {
	err = patiently(ctx, func() error {
		b, err = l.fetch(ctx, partition, next)
		if errors.Is(err, kafka.OffsetOutOfRange) {
			if first, _, err := l.ends(ctx, partition); err == nil && first > next {
				b = batch{next: first}
				return nil
			}
		}
		if err == nil && b.next <= next {
			err = fmt.Errorf("ledger: nothing comes from %s/%d at %d although there is more", l.cfg.Topic, partition, next)
		}
		return err
	})
	return b, err
}

// patience is for how long somebody who reads for a person puts up with a
// partition that cannot be read.
const patience = 10 * time.Second

// patiently tries until it works, or patience or ctx ends.
func patiently(ctx context.Context, try func() error) error {
	last := time.Now().Add(patience)
	for pause := minBackoff; ; pause = min(2*pause, maxBackoff) {
		err := try()
		if err == nil || ctx.Err() != nil || !time.Now().Before(last) {
			return err
		}
		sleep(ctx, pause)
	}
}

// knows reports whether there is a shipment whose key has a prefix.
func (p *partition) knows(prefix [8]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.fold.open {
		if prefixOf(key) == prefix {
			return true
		}
	}
	for _, d := range p.fold.days {
		for key := range d.shipped {
			if prefixOf(key) == prefix {
				return true
			}
		}
		for key := range d.failed {
			if prefixOf(key) == prefix {
				return true
			}
		}
	}
	return false
}
