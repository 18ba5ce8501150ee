package ledger

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"

	"packship/schema"
)

// parcels remembers whose parcels were shipped lately, by their waybill numbers,
// so that one is not paid for a second time under the name of somebody else.
// Merged parcels are normal: the orders of one group share a number. Shipments
// of no group are not remembered, and cost nothing.
//
// It is a saving and no promise: beyond a bound it forgets the oldest.
type parcels struct {
	// Two generations make forgetting cheap: the older one goes when the
	// younger is full.
	young, old generation
}

// generation has the parcels that were shipped up to a day.
type generation struct {
	day int
	of  map[waybill]parcel
}

// waybill is a short name of a waybill number and its carrier.
type waybill [8]byte

// parcel says for which group a waybill number was shipped, and where the record
// of that stands.
type parcel struct {
	group  group
	offset int64
}

// group is the short name of an order group, 0 for none.
type group uint64

// maxParcels is how many parcels a generation holds. Each partition of the ledger
// has two.
const maxParcels = 1 << 14

// remember notes for which group the shipment of an outcome was shipped.
func (s *parcels) remember(e *entry) {
	if e.group == 0 {
		return
	}
	if len(s.young.of) >= maxParcels {
		s.old, s.young = s.young, generation{}
	}
	if s.young.of == nil {
		s.young.of = make(map[waybill]parcel)
	}
	s.young.of[e.waybill] = parcel{e.group, e.offset}
	s.young.day = max(s.young.day, dayOf(e.time))
}

// find returns what is remembered of a waybill number.
func (s *parcels) find(w waybill) (known parcel, ok bool) {
	if known, ok = s.young.of[w]; !ok {
		known, ok = s.old.of[w]
	}
	return known, ok
}

// expire forgets the generations that ended before a day.
func (s *parcels) expire(before int) {
	for _, g := range []*generation{&s.young, &s.old} {
		if g.day < before {
			*g = generation{}
		}
	}
}

// groupOf reads the short name of a group. One that this version cannot read is
// as good as none.
func groupOf(mark string) group {
	g, err := strconv.ParseUint(mark, 16, 64)
	if err != nil {
		return 0
	}
	return group(g)
}

// waybillOf returns the short name of the waybill number and the carrier of a
// shipment, by its canonical form.
func waybillOf(canonical []byte) (w waybill, ok bool) {
	for range 3 { // shop, order, and whether it is a part
		if _, canonical, ok = cutPart(canonical); !ok {
			return waybill{}, false
		}
	}
	number, rest, ok := cutPart(canonical)
	if !ok {
		return waybill{}, false
	}
	carrier, _, ok := cutPart(rest)
	if !ok {
		return waybill{}, false
	}
	sum := sha256.Sum256(canonical[:len(number)+len(carrier)])
	return waybill(sum[:8]), true
}

// OtherGroup returns an order that was shipped lately with the shipment's waybill
// number for another group, by its id, and "" if none is known. That a number was
// shipped for the group itself is enough to find nothing wrong with it. It tries
// for as long as ctx lives.
func (l *Ledger) OtherGroup(ctx context.Context, s *schema.Shipment, mark string) (tid string, err error) {
	own := groupOf(mark)
	w, ok := waybillOf([]byte(s.Canonical()))
	if own == 0 || !ok {
		return "", nil
	}
	type standing struct {
		begun  int
		offset int64
	}
	foreign := make(map[*partition]standing) // an order may be in any partition
	for _, p := range l.partitions {
		known, begun, ok := p.parcel(w)
		switch {
		case !ok:
		case known.group == own:
			return "", nil
		default:
			foreign[p] = standing{begun, known.offset}
		}
	}
	for p, at := range foreign {
		other, ok, err := l.shipmentAt(ctx, p, at.begun, at.offset)
		if err != nil {
			return "", fmt.Errorf("ledger: other orders with waybill %s: %w", s.OutSID, err)
		}
		// Two numbers may share a short name, and a record may be gone.
		if ok && other.OutSID == s.OutSID && other.CompanyCode == s.CompanyCode {
			return other.TID, nil
		}
	}
	return "", nil
}

// parcel returns what is remembered of a waybill number, by the log that has been
// begun so often.
func (p *partition) parcel(w waybill) (known parcel, begun int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known, ok = p.fold.parcels.find(w)
	return known, p.begun, ok
}
