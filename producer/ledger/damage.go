package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// damaged notes that records were lost or cannot be read. From then on, and
// until this process is restarted by somebody who has heard of it, a shipment of
// which nothing is known counts as in doubt: it may have been called for.
func (l *Ledger) damaged(reason string) {
	if !l.damage.CompareAndSwap(nil, &reason) {
		l.log.Debug("more damage", "reason", reason)
		return
	}
	l.metrics.damaged.Set(1)
	l.log.Error("ledger damaged: shipments without a record count as in doubt until a restart", "reason", reason)
}

// see takes note of a meta record. The error says why this ledger cannot be
// used.
func (l *Ledger) see(p *partition, e *entry) error {
	m := e.Meta
	if m.Version != version {
		return fmt.Errorf("ledger: topic %s holds records of version %d and this packship writes version %d: run the packship that wrote them, or name another topic", l.cfg.Topic, m.Version, version)
	}
	if m.Partitions != l.cfg.Partitions {
		return fmt.Errorf("ledger: topic %s was made for %d partitions, not %d: set PACKSHIP_LEDGER_PARTITIONS to %d", l.cfg.Topic, m.Partitions, l.cfg.Partitions, m.Partitions)
	}
	p.mu.Lock()
	known := p.metas
	switch {
	case known.epoch == "" || known.epoch == m.Epoch:
		p.metas = metas{epoch: m.Epoch, offset: e.offset, newest: e.time}
	case !m.Renews.IsZero():
		p.metas = metas{epoch: m.Epoch, offset: e.offset, newest: e.time}
	default:
		// Another process began the log of an empty partition at the same
		// time. The first one counts.
	}
	p.mu.Unlock()

	switch {
	case known.epoch == "" && !m.Renews.IsZero() && time.Since(m.Renews) < l.cfg.Horizon*99/100:
		l.damaged(fmt.Sprintf("records of partition %d from %s and before were deleted although they are younger than the horizon",
			p.n, m.Renews.UTC().Format(time.RFC3339)))
	case known.epoch != "" && known.epoch != m.Epoch && !m.Renews.IsZero():
		l.damaged(fmt.Sprintf("partition %d is not the log that was read before: its epoch has changed", p.n))
	}
	if known.epoch == "" && m.Horizon != l.cfg.Horizon.String() && p.n == 0 {
		l.log.Warn("the ledger was made for another horizon: what is older than the shorter one is not known",
			"made_for", m.Horizon, "set", l.cfg.Horizon.String())
	}
	return nil
}

// inspect looks whether the log of a partition still is the one that was read,
// and returns where it ends.
func (l *Ledger) inspect(ctx context.Context, p *partition) (end int64, err error) {
	p.mu.Lock()
	next, known, newest := p.next, p.metas, p.newest
	p.mu.Unlock()
	first, end, err := l.ends(ctx, p.n)
	if err != nil {
		return 0, err
	}
	if end < next {
		// Be sure: a new leader may not know yet how far the old one was.
		sleep(ctx, maxBackoff)
		if first, end, err = l.ends(ctx, p.n); err != nil {
			return 0, err
		}
	}
	switch {
	case end < next:
		l.damaged(fmt.Sprintf("partition %d ends at offset %d although %d was read: the log was cut off or the topic created again", p.n, end, next-1))
		p.lose()
		return end, nil
	case first > next:
		// Where the log is read that is about to expire, retention may
		// overtake the reader.
		if time.Since(newest) < l.cfg.Horizon {
			l.damaged(fmt.Sprintf("records %d to %d of partition %d were deleted before they were read", next, first-1, p.n))
		}
		p.skip(first)
		return end, nil
	case known.epoch == "" || known.offset == gone:
		return end, nil
	case first > known.offset:
		l.damaged(fmt.Sprintf("the newest meta record of partition %d was deleted: the topic keeps less than the horizon", p.n))
		p.forgetMeta()
		return end, nil
	}
	epoch, err := l.epochAt(ctx, p.n, known.offset)
	if err != nil {
		return 0, err
	}
	if epoch != known.epoch {
		l.damaged(fmt.Sprintf("partition %d is not the log that was read before: the topic was created again", p.n))
		p.lose()
	}
	return end, nil
}

// epochAt returns the epoch of the meta record at an offset, "" if there is
// something else.
func (l *Ledger) epochAt(ctx context.Context, partition int, offset int64) (string, error) {
	b, err := l.fetchBytes(ctx, partition, offset, 1, fetchWait)
	if err != nil {
		return "", err
	}
	if len(b.records) == 0 {
		return "", errors.New("ledger: the record that was to be checked did not come")
	}
	if r, err := decode(b.records[0].value); err == nil && r.Kind == kindMeta && b.records[0].offset == offset {
		return r.Meta.Epoch, nil
	}
	return "", nil
}

// lookAfter does what a partition needs from time to time.
func (l *Ledger) lookAfter(ctx context.Context, p *partition) error {
	p.expire(time.Now(), l.cfg.Horizon)
	if _, err := l.inspect(ctx, p); err != nil {
		return err
	}
	p.mu.Lock()
	known, lost := p.metas, p.lost
	p.mu.Unlock()
	// Retention must never remove the last meta record.
	if lost || known.epoch != "" && time.Since(known.newest) < l.cfg.Horizon/4 {
		return nil
	}
	epoch := known.epoch
	if epoch == "" {
		epoch = uuid.NewString()
	}
	_, err := l.appendMeta(ctx, p, known.newest, epoch)
	return err
}

// epoch returns the epoch of the partition's log, "" if it is not known.
func (p *partition) epoch() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.metas.epoch
}

// lose notes that the log is another one than was read, so that the tail starts
// again.
func (p *partition) lose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = true
}

func (p *partition) isLost() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

// skip goes on at a later offset.
func (p *partition) skip(to int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if to > p.next {
		p.move(to)
	}
}

// forgetMeta notes that the newest meta record is gone, so that it is appended
// again.
func (p *partition) forgetMeta() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.metas.offset, p.metas.newest = gone, time.Time{}
}

// expire forgets what the horizon has passed. It trusts neither this process's
// clock nor the timestamps of the records alone: one that runs ahead must not
// make the ledger forget.
func (p *partition) expire(now time.Time, horizon time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fold.cool(now)
	if p.newest.Before(now) {
		now = p.newest
	}
	if !now.IsZero() {
		p.fold.expire(dayOf(now.Add(-horizon)))
	}
}
