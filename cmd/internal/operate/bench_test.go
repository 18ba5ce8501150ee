package operate

import (
	"fmt"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"packship/cmd/internal/app"
)

// BenchmarkLongReads tells how many packed events a second a plan and a trace go
// through: the first time each is new, the second time of the same shipments
// each is settled.
func BenchmarkLongReads(b *testing.B) {
	const batch, batches = 1000, 100
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		b.Fatal(err)
	}
	defer cluster.Close()
	s := app.Defaults()
	s.KafkaBrokers, s.UpstreamToken = cluster.ListenAddrs(), "t"
	k := app.NewKafka(&s, nil, s.Topics()...)
	defer k.Close()
	if _, err := k.CreateTopics(b.Context(), 2, 1); err != nil {
		b.Fatal(err)
	}
	for i := range 2 * batches {
		var records []kafka.Record
		for j := range batch {
			tid := 1 + i%batches*batch + j
			records = append(records, kafka.Record{Key: kafka.NewBytes([]byte(fmt.Sprint(tid))), Value: kafka.NewBytes([]byte(packedEvent(tid, "")))})
		}
		res, err := k.Client.Produce(b.Context(), &kafka.ProduceRequest{
			Topic: s.TopicPacked, Partition: i / batches, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...),
		})
		if err != nil || res.Error != nil {
			b.Fatal(err, res)
		}
	}
	o := New(&s, k, nil)
	rate := func(b *testing.B, records int, begin time.Time) {
		b.Helper()
		b.ReportMetric(float64(records*b.N)/time.Since(begin).Seconds(), "records/s")
	}
	for partition, name := range []string{"plan/new", "plan/both"} {
		b.Run(name, func(b *testing.B) {
			begin, records := time.Now(), (1+partition)*batch*batches
			for b.Loop() {
				r := ReplayRange{From: Point{text: "first", first: true}}
				if partition == 0 {
					r.Partitions = []int{0}
				}
				p, err := o.PlanReplay(b.Context(), r)
				if err != nil || p.Records != int64(records) || p.New != batch*batches {
					b.Fatalf("%+v, %v", p, err)
				}
			}
			rate(b, records, begin)
		})
	}
	b.Run("trace", func(b *testing.B) {
		begin := time.Now()
		for b.Loop() {
			if s, err := o.Trace(b.Context(), "77"); err != nil || len(s.Timeline) != 2 {
				b.Fatalf("%+v, %v", s, err)
			}
		}
		rate(b, 2*batch*batches, begin)
	})
}
