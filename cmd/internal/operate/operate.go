package operate

import (
	"context"
	"fmt"

	"packship/cmd/internal/app"
	"packship/producer/ledger"
	"packship/schema"
)

// Operator works for a person. It is used for one command.
type Operator struct {
	settings *app.Settings
	kafka    *app.Kafka
	meter    Meter
}

// Meter shows how far a long work has come. Add may be called from several
// goroutines.
type Meter interface {
	Begin(what string, whole int64)
	Add(n int)
	End()
}

// New returns an Operator. The meter may be nil.
func New(s *app.Settings, k *app.Kafka, m Meter) *Operator {
	if m == nil {
		m = silent{}
	}
	return &Operator{settings: s, kafka: k, meter: m}
}

type silent struct{}

func (silent) Begin(string, int64) {}
func (silent) Add(int)             {}
func (silent) End()                {}

// openLedger opens the ledger for reading. The meter moves with what is read.
func (o *Operator) openLedger(ctx context.Context) (*ledger.Reader, error) {
	return ledger.OpenReader(ctx, ledger.ReaderConfig{
		Client: o.kafka.Client, Topic: o.settings.TopicLedger,
		Partitions: o.settings.LedgerPartitions, Horizon: o.settings.LedgerHorizon,
		Read: o.meter.Add,
	})
}

// loadLedger reads the whole ledger.
func (o *Operator) loadLedger(ctx context.Context) (*ledger.Reader, error) {
	r, err := o.openLedger(ctx)
	if err != nil {
		return nil, err
	}
	size, err := r.Size(ctx)
	if err != nil {
		return nil, err
	}
	o.meter.Begin("reading the ledger", size)
	defer o.meter.End()
	return r, r.Load(ctx)
}

// read calls each for every record in ranges of a topic, one range after the
// other.
func (o *Operator) read(ctx context.Context, topic string, ranges []app.Range, each func(*schema.Record) error) error {
	for _, r := range ranges {
		next := r.From
		err := o.kafka.Read(ctx, topic, r, func(rec *schema.Record) error {
			o.meter.Add(int(rec.Offset + 1 - next))
			next = rec.Offset + 1
			return each(rec)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// readAll calls each for every record of a topic.
func (o *Operator) readAll(ctx context.Context, topic string, each func(*schema.Record) error) error {
	ranges, err := o.kafka.Ranges(ctx, topic)
	if err != nil {
		return err
	}
	o.meter.Begin("reading "+topic, total(ranges))
	defer o.meter.End()
	return o.read(ctx, topic, ranges, each)
}

// total is how many offsets ranges have.
func total(ranges []app.Range) int64 {
	var n int64
	for _, r := range ranges {
		n += r.Len()
	}
	return n
}

// recordAt returns one record of a topic, nil if there is none at its place.
func (o *Operator) recordAt(ctx context.Context, topic string, partition int, offset int64) (*schema.Record, error) {
	ranges, err := o.kafka.Ranges(ctx, topic)
	if err != nil {
		return nil, err
	}
	for _, r := range ranges {
		if r.Partition != partition || offset < r.From || offset >= r.To {
			continue
		}
		var found *schema.Record
		err := o.kafka.Read(ctx, topic, app.Range{Partition: partition, From: offset, To: offset + 1}, func(rec *schema.Record) error {
			found = rec
			return nil
		})
		return found, err
	}
	return nil, nil //nolint:nilnil // no record is an answer
}

// positions tells where the group goes on in every partition of the packed
// topic.
func (o *Operator) positions(ctx context.Context) ([]position, error) {
	progress, err := o.kafka.Progress(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]position, len(progress))
	for i, p := range progress {
		at := max(p.Committed, p.First)
		if p.Committed < 0 && o.settings.KafkaStart == "last" {
			at = p.End
		}
		list[i] = position{Progress: p, at: at}
	}
	return list, nil
}

// position is where the group stands in a partition.
type position struct {
	app.Progress
	at int64 // the offset of the next record that it handles
}

// plural writes a number of things.
func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
