package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

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

// ShippedParts lists the other shipments of the same order that were shipped as a
// part of it. It tries for as long as ctx lives.
func (l *Ledger) ShippedParts(ctx context.Context, s *schema.Shipment) ([]schema.Shipment, error) {
	return l.others(ctx, s, func(r related) bool { return r.shipped })
}

// InDoubt lists the other shipments of the same order that an attempt may have
// shipped, or may be about to. It tries for as long as ctx lives.
func (l *Ledger) InDoubt(ctx context.Context, s *schema.Shipment) ([]schema.Shipment, error) {
	return l.others(ctx, s, func(r related) bool { return r.doubt })
}

// others lists those of the other shipments of an order that are wanted.
func (l *Ledger) others(ctx context.Context, s *schema.Shipment, wanted func(related) bool) (others []schema.Shipment, err error) {
	p := l.partition(s)
	p.mu.Lock()
	found, begun := p.fold.related(s.Key()), p.begun
	p.mu.Unlock()
	for _, r := range found {
		if !wanted(r) {
			continue
		}
		other, ok, err := l.shipmentAt(ctx, p, begun, r.offset)
		if err != nil {
			return nil, fmt.Errorf("ledger: other shipments of order %s: %w", s.TID, err)
		}
		// Two orders may share a prefix, and a record may be gone.
		if ok && other.Key() == r.key && other.Order() == s.Order() {
			others = append(others, other)
		}
	}
	return others, nil
}

// shipmentAt returns the shipment that the record at an offset is about, of the log
// that has been begun so often. It reports false if there is no such record.
func (l *Ledger) shipmentAt(ctx context.Context, p *partition, begun int, offset int64) (s schema.Shipment, ok bool, err error) {
	r, err := l.recordAt(ctx, p, begun, offset)
	switch {
	case errors.Is(err, errGone):
		return schema.Shipment{}, false, nil
	case err != nil:
		return schema.Shipment{}, false, err
	}
	s, ok = schema.ParseShipment(r.shipment)
	return s, ok, nil
}
