package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/producer/internal/brokertest"
	"packship/schema"
)

// markOf returns the mark of an order group.
func markOf(name string) string { return (&schema.Packed{OrderGroup: name}).GroupMark() }

// parcelOf returns the shipment of an order in the parcel with a waybill number.
func parcelOf(tid, waybill string) *schema.Shipment { return partOf("7", tid, waybill) }

// ship has an order shipped for a group.
func ship(t *testing.T, r *replica, s *schema.Shipment, group string) {
	t.Helper()
	settleFor(t, r, s, "e", claim(t, r, s, "e", ""), nil, markOf(group))
}

// wantOther sees which order of another group a replica knows for a shipment.
func wantOther(t *testing.T, r *replica, what string, s *schema.Shipment, group, want string) {
	t.Helper()
	if got, err := r.OtherGroup(t.Context(), s, markOf(group)); err != nil || got != want {
		t.Errorf("%s: got order %q of another group, %v; want %q", what, got, err, want)
	}
}

// TestOtherGroup asks for whom a waybill number was shipped: of who shipped it, of
// another replica, and of one that starts afterwards.
func TestOtherGroup(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
			r, second := start(t, b, topic, "a"), start(t, b, topic, "b")
			one := parcelOf("1", "W1")
			h := claim(t, r, one, "e1", "")
			wantOther(t, r, "one that is about to be shipped", parcelOf("2", "W1"), "south", "")
			settleFor(t, r, one, "e1", h, refusal(), markOf("north"))
			wantOther(t, r, "one that was refused", parcelOf("2", "W1"), "south", "")
			settleFor(t, r, one, "e2", claim(t, r, one, "e2", ""), nil, markOf("north"))
			// The orders of these are all over the partitions.
			ship(t, r, parcelOf("2", "W1"), "north")
			ship(t, r, parcelOf("3", "W2"), "")
			both := parcelOf("4", "W3")
			ship(t, r, both, "north")
			ship(t, r, parcelOf("5", "W3"), "south")

			if err := second.CatchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			for name, r := range map[string]*replica{"itself": r, "another": second, "one that starts later": start(t, b, topic, "c")} {
				for _, tid := range []string{"6", "7", "8", "9", "10"} {
					s := parcelOf(tid, "W1")
					if got, err := r.OtherGroup(t.Context(), s, markOf("south")); err != nil || !slices.Contains([]string{"1", "2"}, got) {
						t.Errorf("%s: another group: got order %q, %v; want 1 or 2", name, got, err)
					}
					wantOther(t, r, name+": the same group", s, "north", "")
					wantOther(t, r, name+": no group", s, "", "")
				}
				wantOther(t, r, name+": shipped for no group", parcelOf("6", "W2"), "south", "")
				wantOther(t, r, name+": another number", parcelOf("6", "W4"), "south", "")
				other := parcelOf("6", "W1")
				other.CompanyCode = "STO"
				wantOther(t, r, name+": another carrier", other, "south", "")
				wantOther(t, r, name+": shipped for both", parcelOf("6", "W3"), "south", "")
				wantOther(t, r, name+": shipped for both", parcelOf("6", "W3"), "north", "")
			}
		})
	}
}

// TestOtherGroupIsPatient asks while the log cannot be read, after retention has
// removed a record, and where another number has the same short name.
func TestOtherGroupIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, nil)
		r := start(t, b, "ledger", "a", onePartition)
		ship(t, r, parcelOf("1", "W1"), "north")
		another := parcelOf("2", "W1")

		f := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.LeaderNotAvailable, Count: -1})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if got, err := r.OtherGroup(ctx, another, markOf("south")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %q, %v", got, err)
		}
		time.AfterFunc(time.Minute, f.Remove)
		wantOther(t, r, "once it can be read", another, "south", "1")

		namesake := parcelOf("2", "W2")
		parcels := &r.partitions[0].fold.parcels
		parcels.young.of[waybillOfShipment(t, namesake)] = parcels.young.of[waybillOfShipment(t, another)]
		wantOther(t, r, "a number with the same short name", namesake, "south", "")

		b.DeleteRecords(t, "ledger", 0, 3)
		r.stored[0] = newReadAhead() // what was read lately is known
		wantOther(t, r, "a record that is gone", another, "south", "")
	})
}

func waybillOfShipment(t *testing.T, s *schema.Shipment) waybill {
	t.Helper()
	w, ok := waybillOf([]byte(s.Canonical()))
	if !ok {
		t.Fatalf("%q has no waybill number", s.Canonical())
	}
	return w
}

// TestGroupOfARecord sees which records name a group, and in what form.
func TestGroupOfARecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, nil)
		r := start(t, b, "ledger", "a", onePartition)
		one, two := parcelOf("1", "W1"), parcelOf("2", "W2")
		settleFor(t, r, one, "e1", claim(t, r, one, "e1", ""), refusal(), markOf("北方"))
		settleFor(t, r, one, "e2", claim(t, r, one, "e2", ""), nil, markOf("北方"))
		settleFor(t, r, two, "e1", claim(t, r, two, "e1", ""), nil, "")
		batch, err := r.fetch(t.Context(), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range batch.records {
			rec, ok := scan(f.value)
			if !ok && len(f.key) > 0 {
				t.Errorf("%s is not in the form that is read fast", f.value)
			}
			if rec.Kind == kindOutcome {
				got = append(got, string(rec.verdict)+" "+rec.Group)
			} else if rec.Group != "" {
				t.Errorf("%s names a group", f.value)
			}
		}
		if want := []string{"failed ", "shipped 78e20875d600228f", "shipped "}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// shippedParcel returns a success in the parcel n.
func shippedParcel(n, day int, mark string) *entry {
	var key schema.Key
	binary.BigEndian.PutUint64(key[:], uint64(n))
	return &entry{
		key: key, waybill: waybill(key[:8]), group: groupOf(mark), time: foldStart.AddDate(0, 0, day),
		record: record{Kind: kindOutcome, Attempt: "w/1", Round: 1, verdict: schema.Shipped},
	}
}

// TestParcelsAreBounded ships more parcels than are remembered.
func TestParcelsAreBounded(t *testing.T) {
	f := newFold(foldLease)
	first := shippedParcel(0, 0, markOf("north"))
	f.apply(first)
	known := func() bool {
		_, ok := f.parcels.find(first.waybill)
		return ok
	}
	n := 1
	more := func(parcels int, mark string) {
		for range parcels {
			f.apply(shippedParcel(n, 0, mark))
			n++
		}
	}
	more(2*maxParcels, "")
	if !known() || len(f.parcels.young.of) != 1 {
		t.Errorf("shipments of no group: known %t, %d are remembered", known(), len(f.parcels.young.of))
	}
	more(2*maxParcels-1, "1")
	if !known() {
		t.Error("it is forgotten too early")
	}
	more(1, "1")
	if known() {
		t.Error("it is not forgotten")
	}
	if n := len(f.parcels.young.of) + len(f.parcels.old.of); n > 2*maxParcels {
		t.Errorf("%d parcels are remembered", n)
	}
}

// TestParcelsExpire sees that the horizon forgets them like all shipments, whole
// generations at a time.
func TestParcelsExpire(t *testing.T) {
	f := newFold(foldLease)
	for n := range maxParcels + 2 {
		f.apply(shippedParcel(n, n/maxParcels, markOf("north")))
	}
	old, young := shippedParcel(0, 0, ""), shippedParcel(maxParcels, 1, "")
	for day, want := range [][2]bool{{true, true}, {false, true}, {false, false}} {
		f.expire(dayOf(foldStart.AddDate(0, 0, day)))
		_, older := f.parcels.find(old.waybill)
		_, younger := f.parcels.find(young.waybill)
		if got := [2]bool{older, younger}; got != want {
			t.Errorf("before day %d: got %t, want %t", day, got, want)
		}
	}
	if f.parcels.young.of != nil || f.parcels.old.of != nil {
		t.Error("something is kept")
	}
}

// TestNoGroupTakesNothing sees that shipments of no group take no memory, and that
// a mark from another version does no harm.
func TestNoGroupTakesNothing(t *testing.T) {
	f := newFold(foldLease)
	for n, mark := range []string{"", "north", "-1", "0", "f0f1e2d3c4b5a69788"} {
		e := shippedParcel(n, 0, "")
		e.Group = mark
		e.parcel([]byte(parcelOf("1", "W1").Canonical()))
		f.apply(e)
		if f.parcels.young.of != nil {
			t.Errorf("%q is a group", mark)
		}
	}
	e := shippedParcel(9, 0, "")
	e.Group = markOf("north")
	e.parcel([]byte(parcelOf("1", "W1").Canonical()))
	f.apply(e)
	if _, ok := f.parcels.find(waybillOfShipment(t, parcelOf("2", "W1"))); !ok {
		t.Error("a group is none")
	}
}

func TestWaybillOf(t *testing.T) {
	of := func(s schema.Shipment) waybill {
		w, ok := waybillOf([]byte(s.Canonical()))
		if !ok {
			t.Fatalf("%q has no waybill number", s.Canonical())
		}
		return w
	}
	one := of(schema.Shipment{ShopID: "7", TID: "1", Split: "0", OutSID: "W1", CompanyCode: "SF"})
	for _, same := range []schema.Shipment{
		{ShopID: "8:1", TID: "2", Split: "1", SubTID: []string{"3", "4"}, OutSID: "W1", CompanyCode: "SF"},
		{OutSID: "W1", CompanyCode: "SF"},
	} {
		if of(same) != one {
			t.Errorf("%q is another parcel", same.Canonical())
		}
	}
	for _, other := range []schema.Shipment{
		{ShopID: "7", TID: "1", Split: "0", OutSID: "W2", CompanyCode: "SF"},
		{ShopID: "7", TID: "1", Split: "0", OutSID: "W1", CompanyCode: "STO"},
		{ShopID: "7", TID: "1", Split: "0", OutSID: "W1S", CompanyCode: "F"},
		{},
	} {
		if of(other) == one {
			t.Errorf("%q is the same parcel", other.Canonical())
		}
	}
	for _, bad := range []string{"", "1:7", "1:71:11:0", "1:71:11:02:W1", "1:71:11:02:W12:S", "9:"} {
		if _, ok := waybillOf([]byte(bad)); ok {
			t.Errorf("%q is no shipment", bad)
		}
	}
}
