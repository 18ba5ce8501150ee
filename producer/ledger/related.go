package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/segmentio/kafka-go"

	"packship/schema"
)

// related is another shipment of an order, and where a record of it stands.
type related struct {
	key    schema.Key
	offset int64
	shipped,
	doubt bool
}

// related lists the other shipments of an order that have a bearing on one: those
// that were shipped as a part of it, and those of which an attempt may have
// shipped, or may be about to.
func (f *fold) related(key schema.Key) []related {
	var found []related
	for other, o := range f.open {
		if sameOrder(other, key) && other != key && (o.doubt || o.holder != "") {
			found = append(found, related{key: other, offset: o.offset, doubt: true})
		}
	}
	for _, d := range f.days {
		for _, other := range d.kin[prefixOf(key)] {
			if other != key {
				_, at, _ := f.settled(other)
				found = append(found, related{key: other, offset: at.offset(), shipped: !at.failed(), doubt: at.failed()})
			}
		}
	}
	return found
}

// prefixOf returns the half of a key that is the order's.
func prefixOf(key schema.Key) [8]byte { return [8]byte(key[:8]) }

func sameOrder(a, b schema.Key) bool { return prefixOf(a) == prefixOf(b) }

// relate notes a settled shipment that has a bearing on others of its order.
func (d *day) relate(key schema.Key) {
	if d.kin == nil {
		d.kin = make(map[[8]byte][]schema.Key)
	}
	d.kin[prefixOf(key)] = append(d.kin[prefixOf(key)], key)
}

// unrelate undoes relate.
func (d *day) unrelate(key schema.Key) {
	prefix := prefixOf(key)
	if keys, ok := d.kin[prefix]; ok {
		keys = slices.DeleteFunc(keys, func(k schema.Key) bool { return k == key })
		if d.kin[prefix] = keys; len(keys) == 0 {
			delete(d.kin, prefix)
		}
	}
}

// isPart reports whether the shipment is a part of an order that is split, by its
// canonical form.
func isPart(canonical []byte) bool {
	for range 2 { // shop and order
		var ok bool
		if _, canonical, ok = cutPart(canonical); !ok {
			return false
		}
	}
	return bytes.HasPrefix(canonical, []byte("1:1"))
}

// Related lists the other shipments of the same order that have a bearing on one:
// those that were shipped as a part of it, and those that an attempt may have
// shipped, or may be about to. It tries for as long as ctx lives.
func (l *Ledger) Related(ctx context.Context, s *schema.Shipment) ([]schema.Related, error) {
	p := l.partition(s)
	p.mu.Lock()
	found := p.fold.related(s.Key())
	p.mu.Unlock()
	var others []schema.Related
	for _, r := range found {
		other, ok, err := l.shipmentAt(ctx, p, r.offset)
		if err != nil {
			return nil, fmt.Errorf("ledger: other shipments of order %s: %w", s.TID, err)
		}
		// Two orders may share a prefix, and a record may be gone.
		if ok && other.Key() == r.key && other.Order() == s.Order() {
			others = append(others, schema.Related{Shipment: other, Shipped: r.shipped, Doubt: r.doubt})
		}
	}
	return others, nil
}

// shipmentAt returns the shipment that the record at an offset is about. It
// reports false if there is no such record.
func (l *Ledger) shipmentAt(ctx context.Context, p *partition, offset int64) (s schema.Shipment, ok bool, err error) {
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		b, err := l.fetchBytes(ctx, p.n, offset, 1, fetchWait)
		if err == nil && len(b.records) > 0 {
			f := &b.records[0]
			s, ok := schema.ParseShipment(string(f.key))
			return s, ok && f.offset == offset, nil
		}
		if errors.Is(err, kafka.OffsetOutOfRange) {
			// It was deleted, or a follower that is behind has answered.
			if first, _, err := l.ends(ctx, p.n); err == nil && offset < first {
				return schema.Shipment{}, false, nil
			}
		}
		if ctx.Err() != nil {
			return schema.Shipment{}, false, errors.Join(context.Cause(ctx), err)
		}
		l.log.Debug("record not read, trying again", "partition", p.n, "offset", offset, "err", err)
		sleep(ctx, backoff)
	}
}
