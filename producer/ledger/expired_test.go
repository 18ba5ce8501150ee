package ledger

import (
	"testing"
	"testing/synctest"
	"time"

	"packship/producer/internal/brokertest"
	"packship/schema"
)

// TestExpiredAnswer has retention take the first round of a shipment. One replica
// has read that and goes by it, one has found out that it is gone, and one began
// after that. They must agree on who holds the shipment all the same.
func TestExpiredAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		b.Create(t, "ledger", 1, map[string]string{"retention.ms": "-1"})
		old, asked := start(t, b, "ledger", "old", onePartition), start(t, b, "ledger", "asked", onePartition)
		known, unknown := shipment(1), shipment(2)
		for _, s := range []*schema.Shipment{known, unknown} {
			settle(t, old, s, "e1", claim(t, old, s, "e1", ""), refusal())
		}
		left, _ := old.partitions[0].position()
		for _, s := range []*schema.Shipment{known, unknown} {
			settle(t, old, s, "e2", claim(t, old, s, "e2", ""), refusal())
		}
		p := asked.partitions[0]
		putRecord(t, b, "ledger", record{Kind: kindMeta, Meta: &meta{Version: 1, Partitions: 1, Horizon: testHorizon.String(), Epoch: old.partitions[0].epoch(), Renews: time.Now().Add(-testHorizon)}})
		if err := asked.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		p.recent = recent{}
		p.mu.Unlock()
		b.DeleteRecords(t, "ledger", 0, left)
		later := start(t, b, "ledger", "later", onePartition)

		// The one who has asked refuses the event again, and the one who came
		// later takes it for a new one.
		_, _ = asked.Stored(t.Context(), known, "e1")
		if err := asked.Refuse(t.Context(), known, "e1", outcomeOf(t, known, 3, maybe())); err != nil {
			t.Fatal(err)
		}
		claim(t, later, unknown, "e1", "")
		claim(t, asked, known, "e3", "")
		for _, s := range []*schema.Shipment{known, unknown} {
			want := asked.Look(s, "e4")
			for _, r := range []*replica{old, later} {
				if err := r.CatchUp(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := r.Look(s, "e4"); got.State != schema.StateHeld || got.Holder != want.Holder || got.Round != want.Round {
					t.Errorf("%s: got %+v, want it held like by %s: %+v", r.self, got, asked.self, want)
				}
				if _, held, err := r.Claim(t.Context(), s, "e4", "", ""); held || err != nil {
					t.Errorf("%s: claimed what is held: %v, %v", r.self, held, err)
				}
			}
		}
	})
}
