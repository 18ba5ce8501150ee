package ledger

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"packship/producer/internal/brokertest"
	"packship/schema"
)

// heapAlloc returns what of the heap is in use.
func heapAlloc() uint64 {
	runtime.GC()
	runtime.GC() // what was in pools goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkMemory tells what a settled shipment takes of the heap, spread over
// the partitions and the days of the horizon.
func BenchmarkMemory(b *testing.B) {
	const shipments, partitions, days = 1_000_000, 8, 7
	for _, share := range []struct {
		name   string
		failed func(n int) bool
		groups bool
	}{
		{"shipped", func(int) bool { return false }, false},
		{"shipped-in-groups", func(int) bool { return false }, true},
		{"5%-failed", func(n int) bool { return n%20 == 0 }, false},
		{"failed", func(int) bool { return true }, false},
	} {
		b.Run(share.name, func(b *testing.B) {
			for b.Loop() {
				before := heapAlloc()
				folds := make([]*fold, partitions)
				for i := range folds {
					folds[i] = newFold(testLease)
				}
				for n := range shipments {
					var e entry
					binary.BigEndian.PutUint64(e.key[:], uint64(n)*0x9e3779b97f4a7c15)
					binary.BigEndian.PutUint64(e.key[8:], uint64(n)*0xc2b2ae3d27d4eb4f)
					e.time = foldStart.Add(time.Duration(n) * days * 24 * time.Hour / shipments)
					e.record = record{Kind: kindIntent, Attempt: "w/1", Event: "evt", Round: 1}
					f := folds[n%partitions]
					f.apply(&e)
					e.Kind, e.verdict, e.offset = kindOutcome, schema.Shipped, int64(n)
					if share.failed(n) {
						e.verdict = schema.Failed
					}
					if share.groups {
						e.group = group(n + 1)
						binary.BigEndian.PutUint64(e.waybill[:], uint64(n)*0xc2b2ae3d27d4eb4f)
					}
					f.apply(&e)
				}
				b.ReportMetric(float64(heapAlloc()-before)/shipments, "B/shipment")
				runtime.KeepAlive(folds)
			}
		})
	}
}

// BenchmarkClaim tells how long it takes to append an intent and read it back.
func BenchmarkClaim(b *testing.B) {
	for _, callers := range []int{1, 16, 256} {
		for name, cluster := range brokertest.All {
			b.Run(fmt.Sprintf("%s/callers=%d", name, callers), func(b *testing.B) { benchmarkClaim(b, cluster(b), callers) })
		}
	}
}

func benchmarkClaim(b *testing.B, broker *brokertest.Broker, callers int) {
	b.Helper()
	topic := broker.Topic(b, 8, nil)
	r := start(b, broker, topic, "a", func(c *Config) { c.Partitions, c.Logger = 8, quiet })
	var n atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range callers {
		wg.Go(func() {
			for {
				i := n.Add(1)
				if i > int64(b.N) {
					return
				}
				if _, held, err := r.Claim(b.Context(), shipment(int(i)), "evt", "", ""); err != nil || !held {
					b.Error(held, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// The shipments that are restored have two records each.
var (
	restoreShipments = flag.Int("restore.shipments", 300_000, "how many shipments BenchmarkRestore restores")
	restoreGroups    = flag.Bool("restore.groups", false, "whether each of them is for an order group of its own")
)

// BenchmarkRestore tells how fast a ledger of 600,000 records is read, or as many
// as are asked for, beside a bare fetch of the same records in the same run, and
// what it takes of the heap.
func BenchmarkRestore(b *testing.B) {
	for name, cluster := range brokertest.All {
		b.Run(name, func(b *testing.B) { benchmarkRestore(b, cluster(b)) })
	}
}

func benchmarkRestore(b *testing.B, broker *brokertest.Broker) {
	b.Helper()
	const partitions = 8
	shipments := *restoreShipments
	topic := broker.Topic(b, partitions, nil)
	mark := func(int) string { return "" }
	if *restoreGroups {
		mark = func(n int) string { return markOf(fmt.Sprint(n)) }
	}
	fillFor(b, broker, topic, partitions, shipments, mark)
	var bare, full time.Duration
	var heap uint64
	rounds := 0
	for b.Loop() {
		begin := time.Now()
		var wg sync.WaitGroup
		for p := range partitions {
			wg.Go(func() { bareFetch(b, broker, topic, p) })
		}
		wg.Wait()
		bare += time.Since(begin)

		before := heapAlloc()
		begin = time.Now()
		r := start(b, broker, topic, "a", func(c *Config) { c.Partitions, c.Logger = partitions, quiet })
		full += time.Since(begin)
		if st := r.Status(); st.Entries != shipments || st.Damaged != "" {
			b.Fatalf("got %+v", st)
		}
		heap += max(before, heapAlloc()) - before
		runtime.KeepAlive(r)
		if err := r.kill(); err != nil {
			b.Fatal(err)
		}
		rounds++
	}
	records := float64(2 * shipments * rounds)
	b.ReportMetric(records/full.Seconds(), "records/s")
	b.ReportMetric(records/bare.Seconds(), "bare-records/s")
	b.ReportMetric(bare.Seconds()/full.Seconds(), "of-bare")
	b.ReportMetric(float64(heap)/float64(shipments*rounds), "B/shipment")
}

// bareFetch reads all keys and values of a partition.
func bareFetch(b *testing.B, broker *brokertest.Broker, topic string, partition int) {
	b.Helper()
	client := broker.Client(b, topic)
	ends, err := client.ListOffsets(b.Context(), &kafka.ListOffsetsRequest{
		Topics: map[string][]kafka.OffsetRequest{topic: {kafka.LastOffsetOf(partition)}},
	})
	if err != nil {
		b.Error(err)
		return
	}
	for next := int64(0); next < ends.Topics[topic][0].LastOffset; {
		res, err := client.Fetch(b.Context(), &kafka.FetchRequest{
			Topic: topic, Partition: partition, Offset: next, MinBytes: 1, MaxBytes: fetchBytes, MaxWait: fetchWait,
		})
		if err == nil {
			err = res.Error
		}
		if err != nil {
			b.Error(err)
			return
		}
		for {
			rec, err := res.Records.ReadRecord()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				b.Error(err)
				return
			}
			for _, part := range []protocol.Bytes{rec.Key, rec.Value} {
				if part == nil {
					continue
				}
				if _, err := protocol.ReadAll(part); err != nil {
					b.Error(err)
				}
				_ = part.Close()
			}
			next = rec.Offset + 1
		}
	}
}
