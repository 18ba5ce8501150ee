package producer

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	published *prometheus.CounterVec
	failures  *prometheus.CounterVec
}

// newMetrics registers the metrics of a Producer with reg, which may be nil. The
// series of all topics are there from the start.
func newMetrics(reg prometheus.Registerer, topics []string) *metrics {
	auto := promauto.With(reg)
	m := &metrics{
		published: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "packship_results_published_total",
			Help: "Records written to a topic and acknowledged by all in-sync replicas.",
		}, []string{"topic"}),
		failures: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "packship_result_publish_failures_total",
			Help: "Requests to write to a topic that failed and were tried again.",
		}, []string{"topic"}),
	}
	for _, topic := range topics {
		m.published.WithLabelValues(topic)
		m.failures.WithLabelValues(topic)
	}
	return m
}
