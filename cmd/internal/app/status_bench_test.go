package app

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	benchParked   = 10_000
	benchFinished = 100_000
)

// BenchmarkStatus asks a replica that has finished 100,000 orders, and holds
// 10,000 parked ones of as many shops, for its status, its page, and the life of
// an order. It reports the time of a whole request over HTTP, on average and of
// the slowest of a hundred.
func BenchmarkStatus(b *testing.B) {
	url := busyReplica(b)
	for name, path := range map[string]string{
		"json": "/api/status", "page": "/", "ready": "/readyz", "metrics": "/metrics",
		"order": fmt.Sprintf("/api/orders/%d", benchParked+benchFinished/2), "parked-order": "/api/orders/77",
	} {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			size := 0
			for b.Loop() {
				begin := time.Now()
				size = len(fetch(b, url+path))
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
			b.ReportMetric(ms(took[len(took)/2]), "ms/request")
			b.ReportMetric(ms(took[len(took)*99/100]), "ms-at-99%")
			b.ReportMetric(float64(size)/1000, "kB")
		})
	}
}

func fetch(b *testing.B, url string) string {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url, nil)
	if err != nil {
		b.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		b.Fatalf("%s: %d %.300s %v", url, res.StatusCode, text, err)
	}
	return string(text)
}

// busyReplica starts a replica and returns its address once it has done what
// there is to do.
func busyReplica(b *testing.B) string {
	b.Helper()
	broker := newBenchBroker(b, 0)
	for p := range 6 {
		var records []kafka.Record
		for i := p; i < benchParked+benchFinished; i += 6 {
			event := order(i+1, "")
			if i < benchParked {
				event = strings.Replace(event, testShop, fmt.Sprintf("parked-%d", i), 1)
			}
			records = append(records, kafka.Record{Key: kafka.NewBytes(fmt.Appendf(nil, "%d", i+1)), Value: kafka.NewBytes([]byte(event)), Time: time.Now()})
		}
		for batch := range slices.Chunk(records, 500) {
			res, err := broker.kafka.Client.Produce(b.Context(), &kafka.ProduceRequest{
				Topic: broker.settings.TopicPacked, Partition: p, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(batch...),
			})
			if err != nil || res.Error != nil {
				b.Fatal(err, res)
			}
		}
	}
	s := broker.settings
	s.UpstreamURL = pickyAPI(b)
	addr := make(chan net.Addr, 1)
	c, err := New(s, Options{Logger: slog.New(slog.DiscardHandler), Serving: func(a net.Addr) { addr <- a }})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	url := "http://" + (<-addr).String()
	for st := c.Status(); st.Counts.Shipped < benchFinished || len(st.ParkedShops) < benchParked; st = c.Status() {
		time.Sleep(100 * time.Millisecond)
	}
	return url
}

// pickyAPI answers as freeAPI does, but does not know the shops whose names say
// that they are parked.
func pickyAPI(b *testing.B) string {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		form, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		if bytes.Contains(form, []byte("parked-")) {
			_, _ = io.WriteString(w, `{"code":302,"msg":"未授权店铺","url":"https://auth.example/?shop=1","data":[]}`)
			return
		}
		_, _ = io.WriteString(w, `{"code":0,"msg":"成功","msec":1,"time":1612416107,"data":[{"withholding_money":1,"success":true}]}`)
	})}
	go func() { _ = server.Serve(listener) }()
	b.Cleanup(func() { _ = server.Close() })
	return "http://" + listener.Addr().String() + "/tool/erps/send"
}
