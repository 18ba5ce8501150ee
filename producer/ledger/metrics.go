package ledger

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	records   map[kind]prometheus.Counter
	append    prometheus.Histogram
	readback  prometheus.Histogram
	restore   prometheus.Gauge
	takeovers prometheus.Counter
	// appendFailures and readFailures count requests that were tried again.
	appendFailures, readFailures prometheus.Counter
}

// newMetrics registers what a ledger counts and times with reg, which may be nil.
func newMetrics(reg prometheus.Registerer) *metrics {
	auto := promauto.With(reg)
	seconds := prometheus.ExponentialBuckets(0.001, 2, 14) // 1 ms to 8 s
	records := auto.NewCounterVec(prometheus.CounterOpts{
		Name: "packship_ledger_records_total",
		Help: "Records read from the ledger, also those of other replicas.",
	}, []string{"kind"})
	m := &metrics{
		records: make(map[kind]prometheus.Counter),
		append: auto.NewHistogram(prometheus.HistogramOpts{
			Name:    "packship_ledger_append_duration_seconds",
			Help:    "Time from handing a record over until all in-sync replicas have it.",
			Buckets: seconds,
		}),
		readback: auto.NewHistogram(prometheus.HistogramOpts{
			Name:    "packship_ledger_readback_duration_seconds",
			Help:    "Time from the acknowledgement of a record until it has been read back.",
			Buckets: seconds,
		}),
		restore: auto.NewGauge(prometheus.GaugeOpts{
			Name: "packship_ledger_restore_seconds",
			Help: "Time it took to read the ledger at the start, 0 while that goes on.",
		}),
		takeovers: auto.NewCounter(prometheus.CounterOpts{
			Name: "packship_takeovers_total",
			Help: "Shipments that this process took over from an attempt with an unknown outcome, its own included.",
		}),
		appendFailures: auto.NewCounter(prometheus.CounterOpts{
			Name: "packship_ledger_append_failures_total",
			Help: "Requests to append to the ledger that failed and were tried again.",
		}),
		readFailures: auto.NewCounter(prometheus.CounterOpts{
			Name: "packship_ledger_read_failures_total",
			Help: "Requests to read the ledger that failed and were tried again.",
		}),
	}
	for _, k := range kinds {
		m.records[k] = records.WithLabelValues(string(k))
	}
	return m
}

// exposeStatus registers the metrics that read the ledger's status with reg,
// which may be nil. They may be asked for at once, so the ledger must be whole.
func exposeStatus(reg prometheus.Registerer, l *Ledger) {
	auto := promauto.With(reg)
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "packship_ledger_damaged",
		Help: "1 if records of the ledger were lost or cannot be read, or its topic is set so that they will be.",
	}, func() float64 {
		if st := l.Status(); st.Damaged != "" || st.Unfit != "" {
			return 1
		}
		return 0
	})
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "packship_ledger_entries",
		Help: "Shipments that the ledger knows.",
	}, func() float64 { return float64(l.Status().Entries) })
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "packship_in_doubt",
		Help: "Shipments without an outcome of which an attempt may have shipped.",
	}, func() float64 { return float64(l.Status().InDoubt) })
}
