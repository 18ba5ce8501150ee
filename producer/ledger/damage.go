package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// loss is damage that was found: records that are missing or cannot be read, all
// of them about packed records of before a time.
type loss struct {
	reason string
	before time.Time
}

// damaged notes that records of a partition were lost or cannot be read. What is
// not known and was packed before that may have been called for. A mark in the
// log tells that to everybody who reads it, also after a restart; a loss that is
// marked already is no news.
func (l *Ledger) damaged(p *partition, before time.Time, reason string) {
	p.mu.Lock()
	if before.After(p.lostBefore) {
		p.lostBefore = before
	}
	if !p.live {
		// The mark may be yet to be read.
		p.losses = append(p.losses, loss{reason, before})
		p.mu.Unlock()
		return
	}
	news := before.After(p.metas.lostBefore)
	p.mu.Unlock()
	if news {
		l.report(reason, before)
	}
}

// reportLosses reports what was found to be lost while a partition was read, but
// for what the log says itself.
func (l *Ledger) reportLosses(p *partition) {
	p.mu.Lock()
	losses := slices.DeleteFunc(p.losses, func(x loss) bool { return !x.before.After(p.metas.lostBefore) })
	p.losses = nil
	p.mu.Unlock()
	for _, x := range losses {
		l.report(x.reason, x.before)
	}
}

// report tells a person of damage, once.
func (l *Ledger) report(reason string, before time.Time) {
	if !l.damage.CompareAndSwap(nil, &reason) {
		l.log.Debug("more damage", "reason", reason, "before", before)
		return
	}
	l.log.Error("ledger damaged: what was packed before and has no record will not be called for, but fails as outcome_unknown",
		"reason", reason, "before", before.UTC())
}

// unmarked reports whether something is known to be lost, or replaced, that the
// log does not say.
func (p *partition) unmarked() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unmarkedLocked()
}

func (p *partition) unmarkedLocked() bool {
	return p.live && !p.lost && p.metas.epoch != "" &&
		(p.lostBefore.After(p.metas.lostBefore) || len(p.replaces) > len(p.metas.replaces))
}

// maxReplaced bounds the list of the ledgers that one has replaced.
const maxReplaced = 16

// replace notes that this ledger has taken the place of another. The caller holds
// the mutex.
func (p *partition) replace(identity string) {
	if !slices.Contains(p.replaces, identity) && len(p.replaces) < maxReplaced {
		p.replaces = append(p.replaces, identity)
	}
}

// Identity names this very ledger: it is another one for a topic that was created
// again, even under the same name. It is "" before the ledger is ready. It stays
// what it was until the log of the new one says what it has replaced, so that
// whoever keeps it beside something else, such as an offset, can tell by
// [Ledger.Resume] that the ledger has changed.
func (l *Ledger) Identity() string {
	if ready, _ := l.Ready(); !ready {
		return ""
	}
	sum := sha256.New()
	marked := true
	for _, p := range l.partitions {
		p.mu.Lock()
		marked = marked && !p.lost && p.metas.epoch != "" && !p.unmarkedLocked()
		sum.Write([]byte(p.metas.epoch + "\n"))
		p.mu.Unlock()
	}
	now := hex.EncodeToString(sum.Sum(nil)[:8])
	l.identity.Lock()
	defer l.identity.Unlock()
	switch {
	case !marked:
	case l.identity.name == "" || l.identity.name == now:
		l.identity.name = now
	default:
		// The next call finds it, once the log says so.
		p := l.partitions[0]
		p.mu.Lock()
		if p.replace(l.identity.name); len(p.replaces) == len(p.metas.replaces) {
			l.identity.name = now
		}
		p.mu.Unlock()
	}
	return l.identity.name
}

// bookmark is what [Ledger.Bookmark] tells and [Ledger.Resume] understands.
type bookmark struct {
	Ledger string `json:"ledger"`
	// Read has the offset up to which each partition was read.
	Read []int64 `json:"read"`
}

// Bookmark says, in a few bytes for each partition, which ledger this is and how
// far it has been read. Whoever keeps it beside what was done by then, such as the
// offsets of a group, can tell by [Ledger.Resume] that the ledger has lost
// something since. It is "" before the ledger is ready.
func (l *Ledger) Bookmark() string {
	b := bookmark{Ledger: l.Identity()}
	if b.Ledger == "" {
		return ""
	}
	for _, p := range l.partitions {
		p.mu.Lock()
		b.Read = append(b.Read, p.next)
		p.mu.Unlock()
	}
	text, err := json.Marshal(b)
	if err != nil {
		return ""
	}
	return string(text)
}

// Resume says that work goes on which was done with the ledger of a bookmark. If
// that is not this one, nor one that it is known to have replaced, everything
// that the other one knew is lost; if it is this one, its end must not lie before
// where it was then, which the next [Ledger.CatchUp] looks into. A text that is no
// bookmark says nothing.
func (l *Ledger) Resume(text string) {
	var b bookmark
	now := l.Identity()
	if json.Unmarshal([]byte(text), &b) != nil || b.Ledger == "" || now == "" {
		return
	}
	if b.Ledger != now {
		l.replaces(b.Ledger)
		return
	}
	for i, p := range l.partitions {
		if i < len(b.Read) {
			p.mu.Lock()
			p.promised = max(p.promised, b.Read[i])
			p.mu.Unlock()
		}
	}
}

// replaces takes note of another ledger that this one has taken the place of.
func (l *Ledger) replaces(identity string) {
	p := l.partitions[0]
	p.mu.Lock()
	known := slices.Contains(p.replaces, identity)
	p.replace(identity)
	p.mu.Unlock()
	if known {
		return
	}
	l.identity.Lock()
	l.identity.name = identity
	l.identity.Unlock()
	for _, p := range l.partitions {
		l.damaged(p, time.Now(), "it is not the ledger that the group's offsets were committed with: the topic was created again, or another one is set")
	}
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
		p.metas.epoch, p.metas.offset, p.metas.newest = m.Epoch, e.offset, e.time
	case !m.Renews.IsZero():
		p.metas.epoch, p.metas.offset, p.metas.newest = m.Epoch, e.offset, e.time
	default:
		// Another process began the log of an empty partition at the same
		// time. The first one counts.
	}
	p.marked(m)
	p.mu.Unlock()

	switch {
	case known.epoch == "" && !m.Renews.IsZero() && time.Since(m.Renews) < l.cfg.Horizon*99/100:
		l.damaged(p, e.time, fmt.Sprintf("records of partition %d from %s and before were deleted although they are younger than the horizon",
			p.n, m.Renews.UTC().Format(time.RFC3339)))
	case known.epoch != "" && known.epoch != m.Epoch && !m.Renews.IsZero():
		l.damaged(p, e.time, fmt.Sprintf("partition %d is not the log that was read before: its epoch has changed", p.n))
	}
	if known.epoch == "" && m.Horizon != l.cfg.Horizon.String() && p.n == 0 {
		l.log.Warn("the ledger was made for another horizon: what is older than the shorter one is not known",
			"made_for", m.Horizon, "set", l.cfg.Horizon.String())
	}
	return nil
}

// marked takes in what a meta record says of losses. The caller holds the mutex.
func (p *partition) marked(m *meta) {
	if m.LostBefore.After(p.metas.lostBefore) {
		p.metas.lostBefore = m.LostBefore
	}
	if m.LostBefore.After(p.lostBefore) {
		p.lostBefore = m.LostBefore
	}
	for _, identity := range m.Replaces {
		p.replace(identity)
		if !slices.Contains(p.metas.replaces, identity) {
			p.metas.replaces = append(p.metas.replaces, identity)
		}
	}
}

// inspect looks whether the log of a partition still is the one that was read,
// and returns where it ends.
func (l *Ledger) inspect(ctx context.Context, p *partition) (end int64, err error) {
	p.mu.Lock()
	next, promised, known, newest := p.next, p.promised, p.metas, p.newest
	p.mu.Unlock()
	first, end, err := l.ends(ctx, p.n)
	if err != nil {
		return 0, err
	}
	if end < max(next, promised) {
		// Be sure: a new leader may not know yet how far the old one was.
		sleep(ctx, maxBackoff)
		if first, end, err = l.ends(ctx, p.n); err != nil {
			return 0, err
		}
	}
	switch {
	case end < next:
		l.damaged(p, time.Now(), fmt.Sprintf("partition %d ends at offset %d although %d was read: the log was cut off or the topic created again", p.n, end, next-1))
		p.lose()
		return end, nil
	case end < promised:
		l.damaged(p, time.Now(), fmt.Sprintf("partition %d ends at offset %d although %d was read when offsets were committed last: the log was cut off", p.n, end, promised-1))
		p.mu.Lock()
		p.promised = 0
		p.mu.Unlock()
		return end, nil
	case first > next:
		// Where the log is read that is about to expire, retention may
		// overtake the reader.
		if time.Since(newest) < l.cfg.Horizon {
			l.damaged(p, time.Now(), fmt.Sprintf("records %d to %d of partition %d were deleted before they were read", next, first-1, p.n))
		}
		p.skip(first)
		return end, nil
	case known.epoch == "" || known.offset == gone:
		return end, nil
	case first > known.offset:
		l.damaged(p, time.Now(), fmt.Sprintf("the newest meta record of partition %d was deleted: the topic keeps less than the horizon", p.n))
		p.forgetMeta()
		return end, nil
	}
	epoch, err := l.epochAt(ctx, p.n, known.offset)
	if err != nil {
		return 0, err
	}
	if epoch != known.epoch {
		l.damaged(p, time.Now(), fmt.Sprintf("partition %d is not the log that was read before: the topic was created again", p.n))
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

// noteGap takes note of records that are missing between an offset that was asked
// for and what came. Retention takes from the beginning of the log alone; in the
// midst of it only compaction does.
func (l *Ledger) noteGap(p *partition, from int64, b *batch) {
	next := from
	reach := func(offset int64, at time.Time) {
		for ; next < offset && slices.Contains(b.markers, next); next++ {
		}
		if next < offset {
			l.damaged(p, at, fmt.Sprintf("records %d to %d of partition %d are missing: the topic was compacted", next, offset-1, p.n))
		}
		next = offset + 1
	}
	for i := range b.records {
		reach(b.records[i].offset, b.records[i].time)
	}
	reach(b.next, time.Now())
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
