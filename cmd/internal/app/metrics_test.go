package app

import (
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"packship/upstream/upstreamtest"
)

// sample is one series of a metric. The value is that of a counter or gauge.
type sample struct {
	name   string
	labels map[string]string
	value  float64
}

// samples returns what a replica shows.
func (r *replica) samples() []sample {
	r.t.Helper()
	families, err := r.c.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	var all []sample
	for _, f := range families {
		for _, m := range f.GetMetric() {
			s := sample{f.GetName(), map[string]string{}, m.GetCounter().GetValue() + m.GetGauge().GetValue()}
			for _, l := range m.GetLabel() {
				s.labels[l.GetName()] = l.GetValue()
			}
			all = append(all, s)
		}
	}
	return all
}

// value returns the sum of the series of a metric that have the labels, written
// as name=value, and whether there are any.
func (r *replica) value(name string, labels ...string) (sum float64, found bool) {
	r.t.Helper()
	for _, s := range r.samples() {
		if s.name == name && !slices.ContainsFunc(labels, func(l string) bool {
			key, value, _ := strings.Cut(l, "=")
			return s.labels[key] != value
		}) {
			sum, found = sum+s.value, true
		}
	}
	return sum, found
}

// series returns the number of series of each metric.
func (r *replica) series() map[string]int {
	r.t.Helper()
	all := map[string]int{}
	for _, s := range r.samples() {
		all[s.name]++
	}
	return all
}

// TestMetricsLint holds all metrics of a replica that has worked to the rules of
// Prometheus, and to packship's own: a help text, and no label that grows with
// the orders.
func TestMetricsLint(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.ApplyThenReset, TID: "2", Count: 1})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(35), TID: "3"})
	w.produce(orders(1, 40)...)
	w.produce("not json")
	r := w.start()
	few := r.series()
	w.await(39, 1, 1)
	w.committed()

	after := r.series()
	names := slices.Collect(maps.Keys(after))
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, "packship_") })
	problems, err := testutil.GatherAndLint(r.c.registry, names...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	allowed := []string{
		"topic", "partition", "verdict", "class", "account", "outcome", "source", "reason", "kind", "request", "result", "charged_for",
		"signal", "version", "revision", "goversion",
	}
	for _, s := range r.samples() {
		for label := range s.labels {
			if strings.HasPrefix(s.name, "packship_") && !slices.Contains(allowed, label) {
				t.Errorf("%s has a label %s", s.name, label)
			}
		}
	}
	// All series are there before the first order, but for those of the
	// partitions, which come with them.
	for name, n := range after {
		if n != few[name] && !slices.Contains([]string{
			"packship_consumer_lag_records", "packship_oldest_unfinished_event_age_seconds",
			"packship_last_commit_timestamp_seconds", "packship_skipped_offsets_total",
		}, name) {
			t.Errorf("%s has %d series after the orders and %d before", name, n, few[name])
		}
	}
	for _, name := range []string{
		"packship_events_consumed_total", "packship_events_finished_total", "packship_events_repeated_total",
		"packship_oldest_unfinished_event_age_seconds", "packship_consumer_lag_records", "packship_last_commit_timestamp_seconds",
		"packship_end_to_end_duration_seconds", "packship_calls_total", "packship_call_duration_seconds", "packship_calls_in_flight",
		"packship_slot_wait_seconds", "packship_slots_held", "packship_slot_window_seconds", "packship_rate_limit_calls_per_second", "packship_throttled_total", "packship_breaker_state",
		"packship_ledger_records_total", "packship_ledger_append_duration_seconds", "packship_ledger_readback_duration_seconds",
		"packship_ledger_append_failures_total", "packship_ledger_read_failures_total",
		"packship_ledger_entries", "packship_ledger_restore_seconds", "packship_ledger_damaged", "packship_in_doubt",
		"packship_takeovers_total", "packship_reconciliations_total", "packship_results_published_total",
		"packship_result_publish_failures_total", "packship_consumer_request_failures_total", "packship_rebalances_total",
		"packship_assigned_partitions", "packship_generation", "packship_skipped_offsets_total", "packship_withheld_points_total",
		"packship_account_halted", "packship_shops_parked", "packship_build_info", "packship_telemetry_export_failures_total", "packship_telemetry_dropped_spans_total",
		"go_goroutines", "process_start_time_seconds",
	} {
		if after[name] == 0 {
			t.Errorf("%s is missing", name)
		}
	}
}

// TestOneLineForEveryOrder reads the log as somebody does who looks for an
// order: there is one line for each record, and it tells what became of it.
func TestOneLineForEveryOrder(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick}, func(s *Settings) {
		s.UpstreamTimeout, s.UpstreamSettle = 300*time.Millisecond, 200*time.Millisecond
	})
	lines := new(lineLog)
	w.logger = slog.New(slog.NewJSONHandler(lines, &slog.HandlerOptions{Level: w.settings.Level()}))
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.ApplyThenHang, TID: "2", Count: 1})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(35), TID: "3"})
	w.append(traced(0, 1))
	w.append(traced(1, 2))
	w.produce(order(3, ""), strings.Replace(order(4, ""), `"SF0000000000004"`, `""`, 1))
	r := w.start()
	w.await(2, 2, 0)
	w.append(traced(0, 1)) // once more
	w.await(3, 2, 0)
	w.committed()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	type told struct {
		Level        string
		Outcome      string `json:"outcome"`
		Reason       string `json:"reason"`
		Attempts     int    `json:"attempts"`
		Called       bool   `json:"called"`
		MaybeShipped bool   `json:"maybe_shipped"`
		ShopID       string `json:"shop_id"`
		TraceID      string `json:"trace_id"`
	}
	got := map[string][]told{}
	for line := range strings.Lines(lines.String()) {
		var l struct {
			Msg string `json:"msg"`
			TID string `json:"tid"`
			told
			ResultID string `json:"result_id"`
			Duration int64  `json:"duration"`
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		for _, secret := range []string{testToken, "e2e-admin"} {
			if strings.Contains(line, secret) {
				t.Errorf("a line tells %s: %s", secret, line)
			}
		}
		if l.Msg != "order settled" {
			continue
		}
		if l.ResultID == "" || l.Duration <= 0 {
			t.Errorf("no result id or duration: %s", line)
		}
		got[l.TID] = append(got[l.TID], l.told)
	}
	shipped := told{Level: "INFO", Outcome: "shipped", Attempts: 1, Called: true, ShopID: testShop, TraceID: producerTrace}
	again, twice := shipped, shipped
	again.Called, twice.Attempts = false, 2
	want := map[string][]told{
		"1": {shipped, again},
		"2": {twice},
		"3": {{Level: "INFO", Outcome: "failed", Reason: "waybill_already_used", Attempts: 1, Called: true, ShopID: testShop}},
		"4": {{Level: "INFO", Outcome: "failed", Reason: "local_validation", ShopID: testShop}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("lines of %s (-want +got):\n%s", slices.Sorted(maps.Keys(got)), d)
	}
}
