package consumer

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the metrics of the consumer. Series of a partition exist while
// the partition is this member's, so that a member that has lost one does not
// go on showing an old lag.
type metrics struct {
	consumed   prometheus.Counter
	lag        *prometheus.GaugeVec
	oldest     *prometheus.GaugeVec
	lastCommit *prometheus.GaugeVec
	skipped    *prometheus.CounterVec
	rebalances prometheus.Counter
	assigned   prometheus.Gauge
	generation prometheus.Gauge
	gateOpen   prometheus.GaugeFunc
	crossed    prometheus.Counter
	failures   *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, topic string, gateOpen func() bool) (*metrics, error) {
	partition := []string{"topic", "partition"}
	m := &metrics{
		consumed: prometheus.NewCounter(prometheus.CounterOpts{
			Name:        "packship_events_consumed_total",
			Help:        "Records taken in from the topic, repeated reads included.",
			ConstLabels: prometheus.Labels{"topic": topic},
		}),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "packship_consumer_lag_records",
			Help: "Records between the committed offset and the end of the partition.",
		}, partition),
		oldest: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "packship_oldest_unfinished_event_age_seconds",
			Help: "Age of the oldest record that was taken in and is not settled, by its own time; 0 if there is none.",
		}, partition),
		lastCommit: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "packship_last_commit_timestamp_seconds",
			Help: "Time of the last accepted offset commit.",
		}, partition),
		skipped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "packship_skipped_offsets_total",
			Help: "Offsets that left the log before they were read.",
		}, partition),
		rebalances: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "packship_rebalances_total",
			Help: "Generations of the group that this member has joined.",
		}),
		assigned: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "packship_assigned_partitions",
			Help: "Partitions that the present generation gives to this member, 0 while it is in none.",
		}),
		generation: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "packship_generation",
			Help: "Number of the group's generation that this member joined last.",
		}),
		gateOpen: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "packship_gate_open",
			Help: "1 while this process may start calls, else 0.",
		}, func() float64 {
			if gateOpen() {
				return 1
			}
			return 0
		}),
		crossed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "packship_order_in_two_partitions_total",
			Help: "Times an order met records of itself from another partition; its producer does not key by tid.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "packship_consumer_request_failures_total",
			Help: "Requests to Kafka for the group, its records and its offsets that failed and were tried again.",
		}, []string{"request"}),
	}
	for _, request := range []string{
		requestFetch, requestRecall, requestTakeUp, requestCatchUp, requestCommit, requestLastCommit, requestJoin,
	} {
		m.failures.WithLabelValues(request)
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.consumed, m.lag, m.oldest, m.lastCommit, m.skipped,
		m.rebalances, m.assigned, m.generation, m.gateOpen, m.crossed, m.failures,
	} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

// begin makes the series of a partition exist.
func (m *metrics) begin(topic string, partition int) {
	p := partitionLabel(partition)
	m.lag.WithLabelValues(topic, p)
	m.oldest.WithLabelValues(topic, p)
	m.lastCommit.WithLabelValues(topic, p)
	m.skipped.WithLabelValues(topic, p)
}

// forget removes the series of a partition, but for the count of what was
// skipped: that is not to disappear with the partition.
func (m *metrics) forget(topic string, partition int) {
	p := partitionLabel(partition)
	m.lag.DeleteLabelValues(topic, p)
	m.oldest.DeleteLabelValues(topic, p)
	m.lastCommit.DeleteLabelValues(topic, p)
}

// committed notes an accepted commit.
func (m *metrics) committed(topic string, partition int, at time.Time) {
	m.lastCommit.WithLabelValues(topic, partitionLabel(partition)).Set(float64(at.UnixMilli()) / 1000)
}

func partitionLabel(partition int) string { return strconv.Itoa(partition) }
