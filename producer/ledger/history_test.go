package ledger

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"packship/producer/internal/brokertest"
	"packship/schema"
)

func TestHistory(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
			a, other := start(t, b, topic, "a"), start(t, b, topic, "b")
			one := shipment(1)
			elsewhere := *one // the same order id in another shop
			elsewhere.ShopID = "elsewhere"
			for elsewhere.Order().LedgerPartition(testPartitions) == one.Order().LedgerPartition(testPartitions) {
				elsewhere.ShopID += "-"
			}

			h := claim(t, a, one, "e1", "")
			settle(t, a, shipment(2), "e1", claim(t, a, shipment(2), "e1", ""), nil)
			if err := other.CatchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := a.Release(t.Context(), one, h, "throttled", schema.Charge{}); err != nil {
				t.Fatal(err)
			}
			h = claim(t, a, one, "e1", "")
			settle(t, other, one, "e1", schema.Hold{Attempt: "b/0/1", Round: 1}, refusal())
			shipped := settle(t, a, one, "e1", h, nil)
			failed := settle(t, a, &elsewhere, "e2", claim(t, a, &elsewhere, "e2", ""), refusal())

			steps, err := a.History(t.Context(), one.TID)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			var outcomes []schema.Outcome
			for i, s := range steps {
				got = append(got, fmt.Sprintf("%s %s %v", strings.TrimRight(s.Shipment.ShopID, "-"), s.Kind, s.Counts))
				if s.Outcome != nil && s.Counts {
					outcomes = append(outcomes, *s.Outcome)
				}
				if s.Time.IsZero() || s.Shipment.TID != one.TID || i > 0 && s.Time.Before(steps[i-1].Time) {
					t.Errorf("got step %+v", s)
				}
			}
			want := []string{"7 intent true", "7 release true", "7 intent true", "7 outcome false", "7 outcome true", "elsewhere intent true", "elsewhere outcome true"}
			slices.Sort(got) // times are in milliseconds
			slices.Sort(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]schema.Outcome{shipped, failed}, outcomes); diff != "" {
				t.Errorf("outcomes (-want +got):\n%s", diff)
			}
			if steps, err := a.History(t.Context(), "404"); err != nil || len(steps) > 0 {
				t.Errorf("an unknown order: got %v, %v", steps, err)
			}
		})
	}
}
