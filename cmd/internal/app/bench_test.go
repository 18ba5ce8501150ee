package app

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"packship/schema"
)

// BenchmarkPipeline measures what the ledger costs when the API is not the
// bottleneck: packship with everything it does, next to the plainest loop that
// one could write with the same client, which reads, calls and produces, and
// knows nothing of what it did before. Both run in one process with the embedded
// broker and an API that answers at once, in turn, several times; the ratio is
// what counts, because the machine's own speed cancels out.
//
// An iteration is one order. The CPU time is that of the whole process, broker
// and API included.
func BenchmarkPipeline(b *testing.B) {
	const orders, pairs = 12_000, 3
	api := freeAPI(b)
	rates, cpus := byTurns(b, orders, pairs, func(broker *benchBroker, plain bool) float64 {
		if plain {
			return runPlainLoop(b, broker, api)
		}
		return runPackship(b, broker, api)
	})
	ratios := ratiosOf(rates)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(rates[0]), "orders/s")
	b.ReportMetric(median(rates[1]), "plain-orders/s")
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(median(cpus[0]), "cpu-µs/order")
	b.ReportMetric(median(cpus[1]), "plain-cpu-µs/order")
	b.Logf("%d CPUs, %d orders a run, %d pairs: packship %.0f orders/s with its ledger, plain loop %.0f orders/s without, ratio %.2f; CPU per order %.0f µs and %.0f µs",
		runtime.GOMAXPROCS(0), orders, len(ratios), median(rates[0]), median(rates[1]), median(ratios), median(cpus[0]), median(cpus[1]))
}

// byTurns has a run and a plain one of the same kind take turns, each with a broker
// of its own. It returns what they returned, orders a second, and the CPU time of
// an order in microseconds, of the plain ones as the second.
func byTurns(b *testing.B, orders, pairs int, run func(broker *benchBroker, plain bool) float64) (rates, cpus [2][]float64) {
	b.Helper()
	for b.Loop() {
		for range pairs {
			for i, plain := range []bool{false, true} {
				broker := newBenchBroker(b, orders)
				cpu := cpuTime(b)
				rates[i] = append(rates[i], run(broker, plain))
				cpus[i] = append(cpus[i], float64((cpuTime(b)-cpu).Microseconds())/float64(orders))
			}
		}
	}
	return rates, cpus
}

// ratiosOf returns, pair by pair, the first over the plain one.
func ratiosOf(values [2][]float64) (ratios []float64) {
	for i := range values[0] {
		ratios = append(ratios, values[0][i]/values[1][i])
	}
	return ratios
}

// BenchmarkTracing measures what traces cost: packship that exports the spans of
// every order to a collector that throws them away, next to packship that traces
// nothing, in turn and in one process. It fails if a span is lost, since one that
// is dropped costs nothing.
//
// The CPU time is that of the whole process, broker, API and collector included.
func BenchmarkTracing(b *testing.B) {
	const orders, pairs = 12_000, 5
	const spansPerOrder = 3 // the order, its call, its result
	api := freeAPI(b)
	spans := spanSink(b)
	// By default 2,048 spans may wait; there are more than that in an instant here.
	b.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", strconv.Itoa(spansPerOrder*orders))
	rates, cpus := byTurns(b, orders, pairs, func(broker *benchBroker, plain bool) float64 {
		traces, want := transferHTTP, spansPerOrder*orders
		if plain {
			traces, want = transferNone, 0
		}
		broker.settings.signals = signals{traces: traces}
		rate := runPackship(b, broker, api)
		if got := spans(); got != want {
			b.Fatalf("%d spans of %d orders were exported, want %d", got, orders, want)
		}
		return rate
	})
	ratios, cpuRatios := ratiosOf(rates), ratiosOf(cpus)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(rates[0]), "orders/s")
	b.ReportMetric(median(rates[1]), "untraced-orders/s")
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(median(cpus[0]), "cpu-µs/order")
	b.ReportMetric(median(cpus[1]), "untraced-cpu-µs/order")
	b.ReportMetric(median(cpuRatios), "cpu-ratio")
	b.Logf("%d CPUs, %d orders a run, %d pairs: %.0f orders/s with traces, %.0f without, ratio %.2f (%.2f to %.2f); CPU per order %.0f µs and %.0f µs, ratio %.2f",
		runtime.GOMAXPROCS(0), orders, len(ratios), median(rates[0]), median(rates[1]), median(ratios), slices.Min(ratios), slices.Max(ratios),
		median(cpus[0]), median(cpus[1]), median(cpuRatios))
}

// spanSink is a collector of OpenTelemetry, to which the exporters of this process
// send. It returns a function that counts the spans that have come since it was
// last called: they are not looked at before, so that the sink costs next to
// nothing.
func spanSink(b *testing.B) (spans func() int) {
	b.Helper()
	var (
		mu      sync.Mutex
		batches [][]byte
	)
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		batch, err := io.ReadAll(r.Body)
		if err != nil {
			b.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		batches = append(batches, batch)
	}))
	b.Cleanup(sink.Close)
	b.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.URL)
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		n := 0
		for _, batch := range batches {
			var req coltrace.ExportTraceServiceRequest
			if err := proto.Unmarshal(batch, &req); err != nil {
				b.Fatal(err)
			}
			for _, resource := range req.GetResourceSpans() {
				for _, scope := range resource.GetScopeSpans() {
					n += len(scope.GetSpans())
				}
			}
		}
		batches = nil
		return n
	}
}

// benchBroker is an embedded broker with packed events in it.
type benchBroker struct {
	settings Settings
	kafka    *Kafka
	orders   int
}

func newBenchBroker(b *testing.B, orders int) *benchBroker {
	b.Helper()
	const partitions = 6
	s := Defaults()
	if brokers := os.Getenv("PACKSHIP_TEST_BROKERS"); brokers != "" {
		s.KafkaBrokers = strings.Split(brokers, ",")
		unique := fmt.Sprintf("bench-%d-", time.Now().UnixNano())
		for _, name := range []*string{&s.TopicPacked, &s.TopicShipped, &s.TopicFailed, &s.TopicDLQ, &s.TopicLedger, &s.KafkaGroupID} {
			*name = unique + *name
		}
	} else {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(0))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(cluster.Close)
		s.KafkaBrokers = cluster.ListenAddrs()
	}
	s.HTTPAddr = "127.0.0.1:0"
	s.UpstreamToken = "bench"
	s.RatePerSecond, s.MaxInFlight = 1_000_000, 256
	k := NewKafka(&s, nil, s.Topics()...)
	b.Cleanup(k.Close)
	if err := k.Connect(b.Context()); err != nil {
		b.Fatal(err)
	}
	if _, err := k.CreateTopics(b.Context(), partitions, 1); err != nil {
		b.Fatal(err)
	}
	for p := range partitions {
		var tids []int
		for i := p; i < orders; i += partitions {
			tids = append(tids, i+1)
		}
		for batch := range slices.Chunk(tids, 500) {
			for {
				var records []kafka.Record // a try reads them out
				for _, tid := range batch {
					records = append(records, kafka.Record{
						Key: kafka.NewBytes(fmt.Appendf(nil, "%d", tid)), Value: kafka.NewBytes([]byte(order(tid, ""))), Time: time.Now(),
					})
				}
				res, err := k.Client.Produce(b.Context(), &kafka.ProduceRequest{
					Topic: s.TopicPacked, Partition: p, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...),
				})
				if err == nil && errors.Is(res.Error, kafka.NotLeaderForPartition) {
					time.Sleep(50 * time.Millisecond) // the topic is new
					continue
				}
				if err != nil || res.Error != nil {
					b.Fatal(err, res)
				}
				break
			}
		}
	}
	return &benchBroker{settings: s, kafka: k, orders: orders}
}

// published waits until there is a result of every order in the shipped topic,
// beyond those that were there before, and returns how many there were a second,
// from the moment the first ones were seen: joining a group and waiting one rate
// window before the first call is no throughput.
func (bb *benchBroker) published(b *testing.B, before int64) float64 {
	b.Helper()
	var (
		begin time.Time
		had   int64
	)
	all := before + int64(bb.orders)
	var asked []kafka.OffsetRequest
	for p := range 6 {
		asked = append(asked, kafka.LastOffsetOf(p))
	}
	for {
		res, err := bb.kafka.Client.ListOffsets(b.Context(), &kafka.ListOffsetsRequest{
			Topics: map[string][]kafka.OffsetRequest{bb.settings.TopicShipped: asked},
		})
		if err != nil {
			b.Fatal(err)
		}
		var n int64
		for _, p := range res.Topics[bb.settings.TopicShipped] {
			n += p.LastOffset
		}
		switch {
		case n > all:
			b.Fatalf("%d results for %d orders", n-before, bb.orders)
		case n == all:
			return float64(n-had) / time.Since(begin).Seconds()
		case n > before && begin.IsZero():
			begin, had = time.Now(), n
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// replayOrders is how many orders BenchmarkReplay replays.
var replayOrders = flag.Int("replay.orders", 100_000, "how many orders BenchmarkReplay replays")

// BenchmarkReplay ships orders, moves the group back to the start, and measures
// how fast the stored results are published again, next to how fast the orders
// were shipped by the same replica with an API that answers at once. It fails if
// the replay makes a call. With PACKSHIP_TEST_BROKERS the brokers are elsewhere, and
// the peak of the heap is that of packship alone.
func BenchmarkReplay(b *testing.B) {
	api, calls := countingAPI(b)
	for b.Loop() {
		broker := newBenchBroker(b, *replayOrders)
		first := runPackship(b, broker, api)
		before := calls.Load()
		offsets := map[int]int64{}
		for p := range 6 {
			offsets[p] = 0
		}
		if err := broker.kafka.Rewind(b.Context(), offsets); err != nil {
			b.Fatal(err)
		}
		peak := watchHeap()
		again := replayPackship(b, broker, api)
		heap, live := peak()
		if n := calls.Load() - before; before != int64(broker.orders) || n != 0 {
			b.Fatalf("%d calls for %d orders and %d more for the replay", before, broker.orders, n)
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(again, "orders/s")
		b.ReportMetric(again/first, "of-shipping")
		b.ReportMetric(float64(heap>>20), "peak-heap-MiB")
		b.ReportMetric(float64(live>>20), "peak-live-MiB")
		b.Logf("%d orders replayed with %.0f orders/s and 0 calls, after having been shipped with %.0f orders/s; peak of the heap %d MiB, of what is in use on it %d MiB",
			broker.orders, again, first, heap>>20, live>>20)
	}
}

// watchHeap returns a function that returns the largest size of the heap since,
// and the most that a collection has left on it.
func watchHeap() (peak func() (heap, live uint64)) {
	runtime.GC() // of what was before
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
	var heap, live uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				metrics.Read(sample)
				heap, live = max(heap, sample[0].Value.Uint64()), max(live, sample[1].Value.Uint64())
			}
		}
	}()
	return func() (uint64, uint64) {
		close(stop)
		<-done
		return heap, live
	}
}

func runPackship(b *testing.B, bb *benchBroker, api string) float64 {
	b.Helper()
	return bb.packship(b, api, 0)
}

// replayPackship does it again, with everything done.
func replayPackship(b *testing.B, bb *benchBroker, api string) float64 {
	b.Helper()
	return bb.packship(b, api, int64(bb.orders))
}

// packship runs a replica until all orders have another result than before.
func (bb *benchBroker) packship(b *testing.B, api string, before int64) float64 {
	b.Helper()
	s := bb.settings
	s.UpstreamURL = api
	c, err := New(s, Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	rate := bb.published(b, before)
	for lag := int64(1); lag > 0; time.Sleep(50 * time.Millisecond) {
		progress, err := bb.kafka.Progress(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		lag = 0
		for _, p := range progress {
			lag += p.Lag()
		}
	}
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	return rate
}

// runPlainLoop is the rival: a reader per partition, a pool of workers, a writer.
func runPlainLoop(b *testing.B, bb *benchBroker, api string) float64 {
	b.Helper()
	const partitions, workers = 6, 64
	ctx, cancel := context.WithCancel(b.Context())
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
	w := &kafka.Writer{
		Addr: kafka.TCP(bb.settings.KafkaBrokers...), Topic: bb.settings.TopicShipped, Balancer: kafka.Murmur2Balancer{},
		RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond, BatchSize: 100,
	}
	packed := make(chan kafka.Message, workers)
	var readers, callers sync.WaitGroup
	for p := range partitions {
		readers.Go(func() {
			r := kafka.NewReader(kafka.ReaderConfig{
				Brokers: bb.settings.KafkaBrokers, Topic: bb.settings.TopicPacked, Partition: p, MinBytes: 1, MaxBytes: 1 << 20, MaxWait: 100 * time.Millisecond,
			})
			defer func() { _ = r.Close() }()
			for {
				m, err := r.ReadMessage(ctx)
				if err != nil {
					return
				}
				packed <- m
			}
		})
	}
	for range workers {
		callers.Go(func() {
			for m := range packed {
				p, err := schema.DecodePacked(&schema.Record{Value: m.Value})
				if err != nil {
					b.Error(err)
					return
				}
				answer, err := plainCall(b.Context(), client, api, p)
				if err == nil {
					err = w.WriteMessages(b.Context(), kafka.Message{Key: []byte(p.TID), Value: answer})
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	rate := bb.published(b, 0)
	cancel()
	readers.Wait()
	close(packed)
	callers.Wait()
	client.CloseIdleConnections()
	if err := w.Close(); err != nil {
		b.Error(err)
	}
	return rate
}

func plainCall(ctx context.Context, client *http.Client, api string, p *schema.Packed) ([]byte, error) {
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for _, field := range [][2]string{{"shop_id", p.ShopID}, {"tid", p.TID}, {"out_sid", p.OutSID}, {"company_code", p.CompanyCode}} {
		if err := form.WriteField(field[0], field[1]); err != nil {
			return nil, err
		}
	}
	if err := form.Close(); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, api, &body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", form.FormDataContentType())
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	return io.ReadAll(res.Body)
}

// freeAPI answers every call at once with success.
func freeAPI(b *testing.B) string {
	b.Helper()
	url, _ := countingAPI(b)
	return url
}

// countingAPI does, and counts them.
func countingAPI(b *testing.B) (url string, calls *atomic.Int64) {
	b.Helper()
	calls = new(atomic.Int64)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"code":0,"msg":"成功","msec":1,"time":1612416107,"data":[{"withholding_money":1,"success":true}]}`)
	})}
	go func() { _ = server.Serve(listener) }()
	b.Cleanup(func() { _ = server.Close() })
	return "http://" + listener.Addr().String() + "/tool/erps/send", calls
}

// cpuTime is the CPU time that this process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
