package app

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/schema"
	"packship/upstream/upstreamtest"
)

// TestEveryFaultShows provokes faults, one after the other, and finds each in a
// metric that was at rest before and in a line of the log that is written by
// default (I11). Somebody who is called at night sees what is wrong, whichever of
// the two he looks at.
func TestEveryFaultShows(t *testing.T) {
	api := func(f upstreamtest.Fault) func(*world, *replica) {
		return func(w *world, _ *replica) {
			w.sim.AddFault(f)
			w.produce(orders(1, 1)...)
		}
	}
	broker := func(f kfake.Fault) func(*world, *replica) {
		return func(w *world, _ *replica) {
			f.Topic = map[string]string{"": "", "LEDGER": w.settings.TopicLedger, "PACKED": w.settings.TopicPacked}[f.Topic]
			w.cluster.Fault(f)
			w.produce(orders(1, 1)...)
		}
	}
	for name, tt := range map[string]struct {
		change func(*testing.T, *Settings)
		strike func(*world, *replica)
		metric []string // name and labels
		line   []string // texts in one line
	}{
		"the API answers 429": {
			strike: api(upstreamtest.Fault{Kind: upstreamtest.HTTPStatus(429), Count: 1}),
			metric: []string{"packship_throttled_total", "source=http_429"},
			line:   []string{"level=WARN", "api throttles", "account=default", "told_by=http_429"},
		},
		"the platform throttles": {
			strike: api(upstreamtest.Fault{Kind: upstreamtest.FlowControl, Text: "请求过于频繁，请1秒后重试", Count: 1}),
			metric: []string{"packship_throttled_total", "source=text"},
			line:   []string{"level=WARN", "api throttles", "told_by=text"},
		},
		"the API answers with errors": {
			strike: api(upstreamtest.Fault{Kind: upstreamtest.HTTPStatus(502)}),
			metric: []string{"packship_calls_total", "outcome=unknown"},
			line:   []string{"level=WARN", "call not answered", "tid=1", "http_status=502"},
		},
		"the API is down for long": {
			change: func(_ *testing.T, s *Settings) { s.UpstreamSettle = time.Millisecond },
			strike: func(w *world, _ *replica) {
				w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.HTTPStatus(503)})
				w.produce(orders(1, 10)...)
			},
			metric: []string{"packship_breaker_state", "account=default"},
			line:   []string{"level=WARN", "breaker changed", "account=default", "to=open"},
		},
		"the API refuses connections": {
			change: func(t *testing.T, s *Settings) {
				t.Helper()
				l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				_ = l.Close() // nobody listens there now
				s.UpstreamURL = "http://" + l.Addr().String() + "/send"
			},
			strike: func(w *world, _ *replica) { w.produce(orders(1, 1)...) },
			metric: []string{"packship_unreachable_total", "account=default"},
			line:   []string{"level=WARN", "api not reached", "connection refused"},
		},
		"the token is not known": {
			strike: func(w *world, _ *replica) {
				if err := w.sim.SetToken("default", "another"); err != nil {
					w.t.Fatal(err)
				}
				w.produce(orders(1, 1)...)
			},
			metric: []string{"packship_account_halted", "account=default"},
			line:   []string{"level=ERROR", "account halted", "account=default", "reason="},
		},
		"the token file is gone": {
			change: func(t *testing.T, s *Settings) {
				t.Helper()
				s.UpstreamTokenFile = filepath.Join(t.TempDir(), "token")
				if err := os.WriteFile(s.UpstreamTokenFile, []byte(testToken), 0o600); err != nil {
					t.Fatal(err)
				}
				s.UpstreamToken = ""
			},
			strike: func(w *world, _ *replica) {
				if err := os.Remove(w.settings.UpstreamTokenFile); err != nil {
					w.t.Fatal(err)
				}
			},
			metric: []string{"packship_token_file_unusable", "account=default"},
			line:   []string{"level=WARN", "token file not usable", "account=default"},
		},
		"the shop is not authorised": {
			strike: api(upstreamtest.Fault{Kind: upstreamtest.ShopUnauthorised, Count: 1}),
			metric: []string{"packship_shops_parked", "reason=shop_not_authorized"},
			line:   []string{"level=WARN", "shop parked", "shop_id=" + testShop},
		},
		"a connection is reset": {
			strike: api(upstreamtest.Fault{Kind: upstreamtest.ApplyThenReset, Count: 1}),
			metric: []string{"packship_calls_total", "outcome=unknown"},
			line:   []string{"level=WARN", "call not answered", "tid=1", "reset"},
		},
		"a call hangs": {
			change: func(_ *testing.T, s *Settings) { s.UpstreamTimeout = 200 * time.Millisecond },
			strike: api(upstreamtest.Fault{Kind: upstreamtest.Hang, Count: 1}),
			metric: []string{"packship_calls_total", "outcome=unknown"},
			line:   []string{"level=WARN", "call not answered", "tid=1"},
		},
		"an answer is broken": {
			strike: api(upstreamtest.Fault{Kind: upstreamtest.TruncatedJSON, Count: 1}),
			metric: []string{"packship_calls_total", "outcome=unknown"},
			line:   []string{"level=WARN", "call not answered", "tid=1", "http_status=200"},
		},
		"an answer is reconciled": {
			strike: api(upstreamtest.Fault{Kind: upstreamtest.ApplyThenReset, Count: 1}),
			metric: []string{"packship_reconciliations_total", "result=confirmed"},
			line:   []string{"level=INFO", "order settled", "tid=1", "outcome=shipped", "attempts=2"},
		},
		"a call is made again and paid for": {
			change: func(_ *testing.T, s *Settings) {
				s.UpstreamTimeout, s.UpstreamSettle = 200*time.Millisecond, 200*time.Millisecond
			},
			strike: api(upstreamtest.Fault{Kind: upstreamtest.Hang, Count: 1}),
			metric: []string{"packship_withheld_points_total", "account=default", "charged_for=repeat"},
			line:   []string{"level=INFO", "order settled", "tid=1", "outcome=shipped"},
		},
		"an answer is in no table": {
			strike: api(upstreamtest.Fault{Kind: upstreamtest.Code, Code: 614, Text: "从未见过", Count: 1}),
			metric: []string{"packship_unrecognised_answers_total", "account=default"},
			line:   []string{"level=INFO", "order settled", "reason=unrecognised_614"},
		},
		"an order is rejected": {
			strike: api(upstreamtest.Fault{Kind: upstreamtest.AnyRow(35), Count: 1}),
			metric: []string{"packship_events_finished_total", "verdict=failed", "class=waybill_rejected"},
			line:   []string{"level=INFO", "order settled", "outcome=failed", "reason=waybill_already_used"},
		},
		"an order breaks the rules": {
			strike: func(w *world, _ *replica) { w.produce(strings.Replace(order(1, ""), `"SF0000000000001"`, `""`, 1)) },
			metric: []string{"packship_events_finished_total", "verdict=invalid"},
			line:   []string{"level=INFO", "order settled", "reason=local_validation", "called=false"},
		},
		"a record is no event": {
			strike: func(w *world, _ *replica) { w.produce("not json") },
			metric: []string{"packship_events_finished_total", "verdict=dead_lettered"},
			line:   []string{"level=WARN", "record dead-lettered", "reason=not_json"},
		},
		"results are refused": {
			strike: func(w *world, _ *replica) {
				relent := w.refuseResults()
				w.t.Cleanup(relent)
				w.produce(orders(1, 1)...)
			},
			metric: []string{"packship_result_publish_failures_total", "topic=SHIPPED"},
			line:   []string{"level=WARN", "failing, trying again", "what=appending", "topic=SHIPPED", "remedy="},
		},
		"the ledger takes nothing": {
			strike: broker(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "LEDGER", Err: kerr.NotEnoughReplicas, Count: 2}),
			metric: []string{"packship_ledger_append_failures_total"},
			line:   []string{"level=WARN", "failing, trying again", "what=appending", "topic=LEDGER"},
		},
		"the ledger cannot be read": {
			strike: broker(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: "LEDGER", Err: kerr.UnknownServerError, Count: 2}),
			metric: []string{"packship_ledger_read_failures_total"},
			line:   []string{"level=WARN", "failing, trying again", `what="reading the ledger"`, "topic=LEDGER"},
		},
		"packed events cannot be read": {
			strike: broker(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: "PACKED", Err: kerr.UnknownServerError, Count: 2}),
			metric: []string{"packship_consumer_request_failures_total", "request=fetch"},
			line:   []string{"level=WARN", "kafka request failed", "request=fetch"},
		},
		"packed events are deleted before they are read": {
			strike: func(w *world, _ *replica) {
				deaf := w.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: w.settings.TopicPacked, Err: kerr.UnknownServerError, Count: -1})
				if err := deaf.Wait(w.t.Context(), testPartitions); err != nil {
					w.t.Fatal(err)
				}
				w.append(schema.Record{Partition: 0, Key: []byte("key"), Value: []byte(order(1, ""))})
				deleteRecords(w.t, w.settings.KafkaBrokers, w.settings.TopicPacked, 0, 1)
				deaf.Remove()
			},
			metric: []string{"packship_skipped_offsets_total", "partition=0"},
			line:   []string{"level=ERROR", "offsets skipped", "from=0", "to=0", "count=1"},
		},
		"the ledger is lost": {
			strike: func(w *world, _ *replica) { w.recreateLedger() },
			metric: []string{"packship_ledger_damaged"},
			line:   []string{"level=ERROR", "ledger damaged"},
		},
		"offsets cannot be committed": {
			strike: broker(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.CoordinatorNotAvailable, Count: 2}),
			metric: []string{"packship_consumer_request_failures_total", "request=commit"},
			line:   []string{"level=WARN", "kafka request failed", "request=commit"},
		},
		"the group cannot be joined": {
			strike: func(w *world, _ *replica) {
				w.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Err: kerr.GroupAuthorizationFailed, Count: 3, TopLevel: true})
				w.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Err: kerr.UnknownMemberID, TopLevel: true})
			},
			metric: []string{"packship_consumer_request_failures_total", "request=join the group"},
			line:   []string{"level=WARN", "not in the group", "reason="},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			if os.Getenv("PACKSHIP_TEST_BROKERS") != "" {
				t.Skip("the embedded broker fails on request")
			}
			lines := new(lineLog)
			w := newWorld(t, upstreamtest.Options{Latency: quick}, func(s *Settings) {
				if tt.change != nil {
					tt.change(t, s)
				}
			})
			w.logger = slog.New(slog.NewTextHandler(lines, &slog.HandlerOptions{Level: w.settings.Level()}))
			r := w.start()
			r.eventually("at work", func() bool {
				open, _ := r.value("packship_gate_open")
				return open == 1 && r.series()["packship_consumer_lag_records"] == testPartitions
			})

			names := strings.NewReplacer("SHIPPED", w.settings.TopicShipped, "LEDGER", w.settings.TopicLedger)
			var metric, line []string
			for _, text := range tt.metric {
				metric = append(metric, names.Replace(text))
			}
			for _, text := range tt.line {
				line = append(line, names.Replace(text))
			}
			before, found := r.value(metric[0], metric[1:]...)
			if !found {
				t.Errorf("%v is not there before the fault, so that its first change could be missed", metric)
			}
			if n := lines.count(line...); n != 0 {
				t.Errorf("the log speaks of it before it happens:\n%s", lines)
			}
			tt.strike(w, r)
			r.eventually(strings.Join(metric, " ")+" has moved", func() bool {
				after, _ := r.value(metric[0], metric[1:]...)
				return after > before
			})
			r.eventually("a line with "+strings.Join(line, " ")+" in "+lines.String(), func() bool { return lines.count(line...) > 0 })
		})
	}
}
