package ledger

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"packship/schema"
)

// ReaderConfig is what a Reader needs.
type ReaderConfig struct {
	Client     *kafka.Client
	Topic      string
	Partitions int
	Horizon    time.Duration
	// Read is called with the number of records that were read, from several
	// goroutines; nil: nobody wants to know.
	Read func(records int)
}

// Reader reads a ledger and never writes to it: it is for commands, which are no
// replicas. Look, Shipped and Damaged speak of what Load has read.
type Reader struct {
	ledger *Ledger
	read   func(records int)
}

// OpenReader returns a Reader of a topic that is there and can be a ledger.
// Otherwise its error says in one sentence what is wrong and what to do.
func OpenReader(ctx context.Context, cfg ReaderConfig) (*Reader, error) {
	if err := CheckTopic(ctx, cfg.Client, cfg.Topic, cfg.Partitions, cfg.Horizon); err != nil {
		return nil, err
	}
	l, err := New(Config{
		Client: cfg.Client, Topic: cfg.Topic, Partitions: cfg.Partitions, Horizon: cfg.Horizon,
		// A Reader holds nothing and waits for nobody's attempt to end.
		StartBy: 1, CallTimeout: 1, Instance: "reader",
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	r := &Reader{ledger: l, read: cfg.Read}
	if r.read == nil {
		r.read = func(int) {}
	}
	return r, nil
}

// Size returns how many records there are to read, more or less.
func (r *Reader) Size(ctx context.Context) (int64, error) {
	var n int64
	for _, p := range r.ledger.partitions {
		first, end, err := r.ledger.ends(ctx, p.n)
		if err != nil {
			return 0, err
		}
		n += end - first
	}
	return n, nil
}

// Load reads the whole ledger as it is now.
func (r *Reader) Load(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(searchers)
	for _, p := range r.ledger.partitions {
		g.Go(func() error { return r.load(ctx, p) })
	}
	return g.Wait()
}

func (r *Reader) load(ctx context.Context, p *partition) error {
	l := r.ledger
	p.reset(0)
	records := 0
	var entries []entry
	err := l.sweep(ctx, p, func(b batch) error {
		entries = l.decode(p, b, entries)
		for i := range entries {
			if e := &entries[i]; e.Kind == kindMeta {
				if err := l.see(p, e); err != nil {
					return err
				}
			}
		}
		p.apply(entries, b.next)
		records += len(b.records)
		r.read(len(b.records))
		return nil
	})
	if err != nil {
		return err
	}
	p.goLive()
	l.reportLosses(p)
	if records > 0 && p.epoch() == "" {
		l.damaged(p, time.Now(), fmt.Sprintf("partition %d has records but no meta record: its beginning is gone", p.n))
	}
	p.expire(time.Now(), l.cfg.Horizon)
	return nil
}

// Look tells where the shipment stands for the packed event. A shipment that is
// held may be taken over at once: nobody acts on what a Reader says before the
// holder's time is over.
func (r *Reader) Look(s *schema.Shipment, event string) schema.Standing {
	return r.ledger.Look(s, event)
}

// ShippedParts lists the other parts of the order, like [Ledger.ShippedParts].
func (r *Reader) ShippedParts(ctx context.Context, s *schema.Shipment) ([]schema.Shipment, error) {
	return r.ledger.ShippedParts(ctx, s)
}

// OtherGroup returns an order that was shipped with the waybill number for another
// group, like [Ledger.OtherGroup].
func (r *Reader) OtherGroup(ctx context.Context, s *schema.Shipment, mark string) (tid string, err error) {
	return r.ledger.OtherGroup(ctx, s, mark)
}

// Shipped reports whether the ledger knows the shipment as shipped.
func (r *Reader) Shipped(s *schema.Shipment) bool {
	p := r.ledger.partition(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	_, at, settled := p.fold.settled(s.Key())
	return settled && !at.failed()
}

// Damaged says what was lost of the ledger, or that something was before a time,
// "" for nothing.
func (r *Reader) Damaged() string {
	st := r.ledger.Status()
	if st.Damaged == "" && st.LostBefore != "" {
		return "records of before " + st.LostBefore + " were lost"
	}
	return st.Damaged
}

// History returns everything that the ledger holds of the orders with an id, of
// whatever shop, in the order of time. It reads the whole ledger and needs no
// Load.
func (r *Reader) History(ctx context.Context, tid string) ([]Step, error) {
	return r.ledger.searchAll(ctx, r.ledger.partitions, tid, r.read)
}
