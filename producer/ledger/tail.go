package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"packship/producer"
	"packship/producer/internal/outage"
	"packship/schema"
)

const (
	fetchBytes = 1 << 20
	fetchWait  = 500 * time.Millisecond

	minBackoff = 20 * time.Millisecond
	maxBackoff = 2 * time.Second

	// choreInterval is how often a partition is looked after: whether it is
	// still the log that was read, and whether its meta record is fresh.
	choreInterval = 30 * time.Second
)

// tail reads one partition from its start for as long as ctx lives. It returns
// an error only if the ledger cannot be used as it is.
func (l *Ledger) tail(ctx context.Context, p *partition) error {
	backoff := minBackoff
	failed := func(err error) {
		if ctx.Err() == nil {
			l.metrics.readFailures.Inc()
			l.reading.Failed(p.n, outage.Passing, err)
			sleep(ctx, backoff/2+rand.N(backoff))
			backoff = min(2*backoff, maxBackoff)
		}
	}
	begun, ready := false, false
	var next, end int64
	var entries []entry
	chores := time.Now().Add(choreInterval)
	for ; ctx.Err() == nil; p.turned.Store(0) {
		if !begun {
			var err error
			if next, end, err = l.begin(ctx, p); err != nil {
				failed(err)
				continue
			}
			begun = true
		}
		if !time.Now().Before(chores) {
			chores = time.Now().Add(choreInterval)
			if err := l.lookAfter(ctx, p); err != nil {
				failed(err)
			}
		}
		if p.isLost() {
			begun = false
			continue
		}
		if p.unmarked() {
			if err := l.mark(ctx, p); err != nil {
				failed(err)
			}
		}
		p.turned.Store(time.Now().UnixNano())
		batch, err := l.fetch(ctx, p.n, next)
		if errors.Is(err, kafka.OffsetOutOfRange) {
			if next, err = l.relocate(ctx, p, err); err == nil {
				continue
			}
		}
		if err != nil {
			failed(err)
			continue
		}
		l.reading.Worked(p.n)
		backoff = minBackoff
		l.noteGap(p, next, &batch)
		entries = l.decode(p, batch, entries)
		for i := range entries {
			if e := &entries[i]; e.Kind == kindMeta {
				if err := l.see(p, e); err != nil {
					return err
				}
			}
		}
		next = batch.next
		p.apply(entries, next)
		p.turned.Store(0)
		if !ready && next >= end {
			ready, entries = true, nil // the room for a restore is not needed any more
			l.arrived(ctx, p)
		}
	}
	return nil
}

// relocate finds out why there is nothing at the offset to be read next, and
// returns where to go on. It returns the error outOfRange if there should be
// something: a follower that is behind has answered.
func (l *Ledger) relocate(ctx context.Context, p *partition, outOfRange error) (int64, error) {
	before, _ := p.position()
	if _, err := l.inspect(ctx, p); err != nil {
		return before, err
	}
	if next, _ := p.position(); next != before {
		return next, nil
	}
	return before, outOfRange
}

// begin finds where a partition begins and where it ends now. It gives an empty
// one its meta record.
func (l *Ledger) begin(ctx context.Context, p *partition) (first, end int64, err error) {
	first, end, err = l.ends(ctx, p.n)
	if err != nil {
		return 0, 0, err
	}
	p.reset(first)
	if first == end {
		offset, err := l.appendMeta(ctx, p, time.Time{}, uuid.NewString())
		if err != nil {
			return 0, 0, err
		}
		end = offset + 1
	}
	return first, end, nil
}

// arrived notes that a partition has been read to the end that it had at first.
func (l *Ledger) arrived(ctx context.Context, p *partition) {
	p.goLive()
	l.reportLosses(p)
	if p.epoch() == "" {
		l.damaged(p, time.Now(), fmt.Sprintf("partition %d has records but no meta record: its beginning is gone", p.n))
		if _, err := l.appendMeta(ctx, p, time.Time{}, uuid.NewString()); err != nil {
			l.log.Debug("meta record not appended", "partition", p.n, "err", err)
		}
	}
	if l.behind.Add(-1) == 0 {
		l.restored = time.Since(l.started)
		l.metrics.restore.Set(l.restored.Seconds())
		l.log.Info("ledger read", "entries", l.Status().Entries, "duration", l.restored)
		close(l.ready)
	}
}

// batch is what one fetch has brought.
type batch struct {
	records []fetched
	next    int64 // the offset to go on at
	// markers has the offsets of the markers of transactions, which are no
	// records.
	markers []int64
}

type fetched struct {
	offset     int64
	time       time.Time
	key, value []byte
}

// fetch reads what is in the log from an offset on, or waits a moment for it.
func (l *Ledger) fetch(ctx context.Context, partition int, offset int64) (batch, error) {
	return l.fetchBytes(ctx, partition, offset, fetchBytes, fetchWait)
}

func (l *Ledger) fetchBytes(ctx context.Context, partition int, offset, bytes int64, wait time.Duration) (batch, error) {
	res, err := l.cfg.Client.Fetch(ctx, &kafka.FetchRequest{
		Topic: l.cfg.Topic, Partition: partition, Offset: offset,
		MinBytes: 1, MaxBytes: bytes, MaxWait: wait,
	})
	if err == nil {
		err = res.Error
	} else if _, unsent := errors.AsType[*protocol.TopicError](err); errors.Is(err, protocol.ErrNoTopic) && !unsent {
		// The topic is known, or the request would not have been sent.
		err = errThrottled
	}
	if err != nil {
		return batch{}, fmt.Errorf("ledger: fetch %s/%d at %d: %w", l.cfg.Topic, partition, offset, err)
	}
	b := batch{next: offset}
	stream, _ := res.Records.(*protocol.RecordStream)
	if stream != nil {
		for _, part := range stream.Records {
			if control, ok := part.(*protocol.ControlBatch); ok {
				b.markers = append(b.markers, control.Offset())
			}
		}
	}
	var room arena
	for {
		rec, err := res.Records.ReadRecord()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return batch{}, fmt.Errorf("ledger: read %s/%d at %d: %w", l.cfg.Topic, partition, b.next, err)
		}
		f, err := room.take(rec)
		if err != nil {
			return batch{}, fmt.Errorf("ledger: read %s/%d at %d: %w", l.cfg.Topic, partition, rec.Offset, err)
		}
		if f.offset >= b.next { // a batch may begin before the offset
			b.records = append(b.records, f)
			b.next = f.offset + 1
		}
	}
	if stream != nil && len(b.records) == 0 && len(stream.Records) > 0 && offset < res.HighWatermark {
		// Nothing of what came is a record to us. Everything before the last
		// batch was in the answer, so it can be stepped over.
		if last, ok := stream.Records[len(stream.Records)-1].(interface{ Offset() int64 }); ok {
			b.next = max(offset, last.Offset()) + 1
		} else {
			b.next = offset + 1
		}
	}
	return b, nil
}

// errThrottled means that a broker has answered a fetch with nothing at all, as it
// does to a client that is over its quota.
var errThrottled = errors.New("the broker holds its answers back, as for a client that is over its quota")

// arena gives room to the keys and values of a batch. Two allocations for every
// record would cost as much as reading it does.
type arena []byte

// take copies a record out of the client's buffers and gives them back.
func (a *arena) take(rec *protocol.Record) (fetched, error) {
	f := fetched{offset: rec.Offset, time: rec.Time}
	var errs [2]error
	f.key, errs[0] = a.readAll(rec.Key)
	f.value, errs[1] = a.readAll(rec.Value)
	return f, errors.Join(errs[:]...)
}

func (a *arena) readAll(b protocol.Bytes) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	defer b.Close() //nolint:errcheck // it only counts references
	data := a.bytes(b.Len())
	_, err := io.ReadFull(b, data)
	return data, err
}

// bytes returns room for n bytes.
func (a *arena) bytes(n int) []byte {
	const least, most = 1 << 10, 1 << 16
	if cap(*a)-len(*a) < n {
		// Most batches are of one record, those of a restore of thousands.
		*a = make([]byte, 0, max(n, min(max(2*cap(*a), least), most)))
	}
	*a = (*a)[:len(*a)+n]
	return (*a)[len(*a)-n : len(*a) : len(*a)]
}

// decode turns records into entries, for which it uses the room in buf. One that
// cannot be read is damage: it may have been an outcome.
func (l *Ledger) decode(p *partition, b batch, buf []entry) []entry {
	entries := slices.Grow(buf[:0], len(b.records))
	read := time.Now()
	for i := range b.records {
		f := &b.records[i]
		entries = entries[:len(entries)+1]
		e := &entries[len(entries)-1]
		*e = entry{offset: f.offset, time: f.time, read: read}
		var err error
		if e.record, err = decode(f.value); err == nil {
			switch e.Kind {
			case kindMeta, kindBye:
			default:
				var ok bool
				if e.key, ok = keyOf(f.key); !ok {
					err = fmt.Errorf("%w: its key is no shipment", errUnreadable)
				}
				if e.verdict == schema.Shipped {
					e.part = isPart(f.key)
					e.parcel(f.key)
				}
			}
		}
		if err != nil {
			l.damaged(p, f.time, fmt.Sprintf("the record at offset %d of partition %d cannot be read: %v", f.offset, p.n, err))
			entries = entries[:len(entries)-1]
			continue
		}
		l.metrics.records[e.Kind].Inc()
	}
	return entries
}

// ends returns where the log of a partition begins and ends, by its leader.
func (l *Ledger) ends(ctx context.Context, partition int) (first, end int64, err error) {
	res, err := l.cfg.Client.ListOffsets(ctx, &kafka.ListOffsetsRequest{
		Topics: map[string][]kafka.OffsetRequest{
			l.cfg.Topic: {kafka.FirstOffsetOf(partition), kafka.LastOffsetOf(partition)},
		},
	})
	if err != nil {
		return 0, 0, fmt.Errorf("ledger: look up the ends of %s/%d: %w", l.cfg.Topic, partition, err)
	}
	for _, o := range res.Topics[l.cfg.Topic] {
		if o.Partition != partition {
			continue
		}
		if o.Error != nil {
			return 0, 0, fmt.Errorf("ledger: look up the ends of %s/%d: %w", l.cfg.Topic, partition, o.Error)
		}
		return o.FirstOffset, o.LastOffset, nil
	}
	return 0, 0, fmt.Errorf("ledger: look up the ends of %s/%d: %w", l.cfg.Topic, partition, kafka.UnknownTopicOrPartition)
}

// appendMeta appends a meta record that renews one of the time renews, or begins
// the partition's log.
func (l *Ledger) appendMeta(ctx context.Context, p *partition, renews time.Time, epoch string) (int64, error) {
	p.mu.Lock()
	lostBefore, replaces := p.lostBefore.UTC(), slices.Clone(p.replaces)
	p.mu.Unlock()
	r := record{Kind: kindMeta, Meta: &meta{
		Version: version, Partitions: l.cfg.Partitions, Horizon: l.cfg.Horizon.String(), Epoch: epoch, Renews: renews,
		LostBefore: lostBefore, Replaces: replaces,
	}}
	value, err := r.encode()
	if err != nil {
		return 0, err
	}
	return l.appender.Append(ctx, p.n, producer.Entry{Value: value})
}

// mark appends what is known to be lost.
func (l *Ledger) mark(ctx context.Context, p *partition) error {
	p.mu.Lock()
	known := p.metas
	p.mu.Unlock()
	_, err := l.appendMeta(ctx, p, known.newest, known.epoch)
	return err
}

// sleep waits for a while or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// remedy says what a person may do about an error of reading.
func (c *Config) remedy(err error) string {
	switch {
	case errors.Is(err, kafka.UnknownTopicOrPartition), errors.Is(err, protocol.ErrNoTopic), errors.Is(err, protocol.ErrNoPartition):
		return "create the topic with `packship topics create`"
	case errors.Is(err, kafka.TopicAuthorizationFailed):
		return "grant " + cmp.Or(c.Principal, "this client") + " the right Read on topic " + c.Topic
	case errors.Is(err, errThrottled):
		return "raise the quota of " + cmp.Or(c.Principal, "this client") + " (consumer_byte_rate or request_percentage) if it goes on"
	default:
		return ""
	}
}
