package ledger

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"packship/schema"
)

func TestSmoke(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(8, "ledger"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tr := &kafka.Transport{MetadataTTL: 500 * time.Millisecond, MetadataTopics: []string{"ledger"}}
	defer tr.CloseIdleConnections()
	cl := &kafka.Client{Addr: kafka.TCP(c.ListenAddrs()...), Transport: tr, Timeout: 5 * time.Second}
	l, err := New(Config{Client: cl, Topic: "ledger", Partitions: 8, Horizon: 168 * time.Hour, StartBy: 5 * time.Second, CallTimeout: 15 * time.Second, Settle: 30 * time.Second, Instance: "a", Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	if err := l.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	s := &schema.Shipment{ShopID: "1", TID: "2", Split: "0", OutSID: "SF1", CompanyCode: "SF"}
	h, ok, err := l.Claim(ctx, s, "e1", "")
	if err != nil || !ok {
		t.Fatal(h, ok, err)
	}
	o, err := schema.Result{TID: "2", ShopID: "1"}.Outcome(s, h.Round, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Settle(ctx, s, "e1", h, o); err != nil {
		t.Fatal(err)
	}
	got, err := l.Stored(ctx, s, "e1")
	t.Log(got, err, l.Look(s, "e2"), l.Status())
	start := time.Now()
	for i := range 200 {
		s.TID = strconv.Itoa(i + 10)
		if _, ok, err := l.Claim(ctx, s, "e1", ""); err != nil || !ok {
			t.Fatal(ok, err)
		}
	}
	t.Log(time.Since(start) / 200)
	if err := l.Close(ctx); err != nil {
		t.Fatal(err)
	}
	_, _ = net.Dial, errors.New
}
