package ledger

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/producer/internal/brokertest"
	"packship/schema"
)

func partOf(shop, tid, waybill string, subs ...string) *schema.Shipment {
	s := &schema.Shipment{ShopID: shop, TID: tid, Split: "0", OutSID: waybill, CompanyCode: "SF", SubTID: subs}
	if len(subs) > 0 {
		s.Split = "1"
	}
	return s
}

// other is what the ledger says of another shipment of an order.
type other struct {
	schema.Shipment

	shipped bool
}

func wantRelated(t *testing.T, r *replica, s *schema.Shipment, want ...other) {
	t.Helper()
	var got []other
	for shipped, list := range map[bool]func(context.Context, *schema.Shipment) ([]schema.Shipment, error){true: r.ShippedParts, false: r.InDoubt} {
		shipments, err := list(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range shipments {
			got = append(got, other{s, shipped})
		}
	}
	slices.SortFunc(got, func(a, b other) int { return cmp.Compare(a.OutSID, b.OutSID) })
	if diff := gocmp.Diff(want, got, gocmp.AllowUnexported(other{})); diff != "" {
		t.Errorf("related to %s of %s (-want +got):\n%s", s.OutSID, s.TID, diff)
	}
}

// TestRelated takes the shipments of an order through what can become of them and
// sees which have a bearing on another one, by who wrote the records and by who
// comes later and reads them.
func TestRelated(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
			r := start(t, b, topic, "a")
			all := partOf("7", "1", "W0")
			one, two, three := partOf("7", "1", "W1", "11"), partOf("7", "1", "W2", "12", "13"), partOf("7", "1", "W3", "14")
			whole := partOf("7", "1", "W4")
			wantRelated(t, r, all)

			// A part that was shipped, and not to itself.
			settle(t, r, one, "e1", claim(t, r, one, "e1", ""), nil)
			shippedOne := other{*one, true}
			wantRelated(t, r, all, shippedOne)
			wantRelated(t, r, one)

			// One that may be about to be shipped, and then is known not to be.
			h := claim(t, r, two, "e2", "")
			wantRelated(t, r, all, shippedOne, other{*two, false})
			settle(t, r, two, "e2", h, refusal())
			wantRelated(t, r, all, shippedOne)

			// One that may have been shipped, in whole, is tried anew, and
			// turns out to have been.
			settle(t, r, whole, "e3", claim(t, r, whole, "e3", ""), maybe())
			mayBe := other{*whole, false}
			wantRelated(t, r, all, shippedOne, mayBe)
			h = claim(t, r, whole, "e4", "")
			wantRelated(t, r, all, shippedOne, mayBe)
			if err := r.Release(t.Context(), whole, h, "429", schema.Charge{}); err != nil {
				t.Fatal(err)
			}
			wantRelated(t, r, all, shippedOne, mayBe)
			settle(t, r, whole, "e4", claim(t, r, whole, "e4", ""), nil)
			wantRelated(t, r, all, shippedOne) // it is no part

			// A part that may have been, and was.
			settle(t, r, three, "e5", claim(t, r, three, "e5", ""), maybe())
			wantRelated(t, r, all, shippedOne, other{*three, false})
			settle(t, r, three, "e6", claim(t, r, three, "e6", ""), nil)
			want := []other{shippedOne, {*three, true}}
			wantRelated(t, r, all, want...)

			// The same id in another shop is another order.
			wantRelated(t, r, partOf("8", "1", "W1", "11"))
			wantRelated(t, r, partOf("7", "2", "W1", "11"))

			wantRelated(t, start(t, b, topic, "b"), all, want...)
		})
	}
}

// TestRelatedToTheSameIDElsewhere looks at two orders that share an id and a
// partition of the ledger, so that only their records tell them apart.
func TestRelatedToTheSameIDElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, nil)
		r := start(t, b, "ledger", "a", onePartition)
		here, there := partOf("7", "1", "W1", "11"), partOf("8", "1", "W2", "11")
		for _, s := range []*schema.Shipment{here, there} {
			settle(t, r, s, "e", claim(t, r, s, "e", ""), nil)
		}
		wantRelated(t, r, partOf("7", "1", "W3", "12"), other{*here, true})
		wantRelated(t, r, partOf("8", "1", "W3", "12"), other{*there, true})
	})
}

// TestRelatedIsPatient asks while the log cannot be read, and after retention has
// removed a record.
func TestRelatedIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, nil)
		r := start(t, b, "ledger", "a", onePartition)
		one, another := partOf("7", "1", "W1", "11"), partOf("7", "1", "W9", "12")
		settle(t, r, one, "e", claim(t, r, one, "e", ""), nil)

		for _, fault := range []*kerr.Error{kerr.LeaderNotAvailable, kerr.OffsetOutOfRange} {
			r.stored[0] = newReadAhead() // what was read lately is known
			f := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: fault, Count: -1})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if got, err := r.ShippedParts(ctx, another); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: got %v, %v", fault.Message, got, err)
			}
			cancel()
			time.AfterFunc(time.Minute, f.Remove)
			wantRelated(t, r, another, other{*one, true})
		}

		b.DeleteRecords(t, "ledger", 0, 3)
		r.stored[0] = newReadAhead()
		wantRelated(t, r, another)
	})
}

// TestRelatedExpires sees that the horizon forgets these shipments like all
// others, and that nothing of them is kept.
func TestRelatedExpires(t *testing.T) {
	f := newFold(testLease)
	one, two := partOf("7", "1", "W1", "11").Key(), partOf("7", "1", "W2", "12").Key()
	at := foldStart
	f.apply(&entry{key: one, part: true, time: at, offset: 1, record: record{Kind: kindOutcome, Attempt: "w/1", Round: 1, verdict: schema.Shipped}})
	f.apply(&entry{key: two, part: true, time: at.AddDate(0, 0, 1), offset: 2, record: record{Kind: kindOutcome, Attempt: "w/2", Round: 1, verdict: schema.Shipped}})
	third := partOf("7", "1", "W3", "13").Key()
	if got := f.related(third); len(got) != 2 {
		t.Errorf("got %v, want both", got)
	}
	f.expire(dayOf(at) + 1)
	if got := f.related(third); len(got) != 1 || got[0].key != two {
		t.Errorf("got %v, want the younger one", got)
	}
	f.forget(two)
	if got := f.related(third); len(got) != 0 {
		t.Errorf("got %v, want none", got)
	}
	for _, d := range f.days {
		if len(d.kin) != 0 {
			t.Errorf("kept %v", d.kin)
		}
	}
}

func TestIsPart(t *testing.T) {
	for want, list := range map[bool][]*schema.Shipment{
		true:  {partOf("7", "1", "W", "11"), partOf("1:1", "1:1", "", "11", "12"), partOf("", "", "", "1")},
		false: {partOf("7", "1", "W"), partOf("1:1", "1:1", "1:1"), {ShopID: "7", TID: "1", Split: `"1"`}, {}},
	} {
		for _, s := range list {
			if got := isPart([]byte(s.Canonical())); got != want || got != s.IsPart() {
				t.Errorf("%q: got %t, and %t of the shipment", s.Canonical(), got, s.IsPart())
			}
		}
	}
	for _, bad := range []string{"", "1:7", "1:71:1", "1:7x", "9:"} {
		if isPart([]byte(bad)) {
			t.Errorf("%q is no shipment", bad)
		}
	}
}
