package operate

import (
	"strings"
	"testing"

	"packship/schema"
)

func TestNearest(t *testing.T) {
	for name, want := range map[string]string{
		"waybill_used":          "waybill_already_used",
		"waybill_alredy_used":   "waybill_already_used",
		"Waybill-Already-Used":  "waybill_already_used",
		"local_validaton":       "local_validation",
		"beyondhorizon":         "beyond_horizon",
		"uknown":                "outcome_unknown",
		"system_exeption":       "system_exception",
		"unrecognized_614":      "unrecognised_614",
		"outcome_unknwn":        "outcome_unknown",
		"access_token_invlaid":  "access_token_invalid",
		"order_status_wrong,":   "order_status_wrong",
		"logistics order close": "logistics_order_closed",
	} {
		got := nearest(name, schema.Reasons(), 3)
		if len(got) != 3 || !strings.Contains(strings.Join(got, " "), want) {
			t.Errorf("%q: got %q, want %s among three", name, got, want)
		}
	}
	if got := nearest("a", []string{"b", "a", "b"}, 3); strings.Join(got, " ") != "a b" {
		t.Errorf("got %q, want each once", got)
	}
}
