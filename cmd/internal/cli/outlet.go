package cli

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"packship/cmd/internal/app"
	"packship/producer"
	"packship/schema"
)

// event is a packed event that is right.
type event struct {
	tid     string
	value   []byte
	headers []schema.Header
}

const (
	// producers is how many events are under way at once; those of one order
	// stay in order.
	producers = 32
	// queued is how many events wait for each of them.
	queued = 16
	// patience is how long one event may take to be acknowledged.
	patience = 10 * time.Second
)

// outlet produces packed events while more are being read.
type outlet struct {
	topic   string
	kafka   *app.Kafka
	ctx     context.Context //nolint:containedctx // of the producers, which the outlet starts and waits for
	lanes   [producers]chan event
	group   *errgroup.Group
	stop    func()
	stopped chan error
	count   atomic.Int64
}

// newOutlet connects to Kafka. The outlet is to be closed.
func newOutlet(ctx context.Context, settings *app.Settings) (*outlet, error) {
	o := &outlet{topic: settings.TopicPacked, kafka: app.NewKafka(settings, nil, settings.TopicPacked), stopped: make(chan error, 1)}
	if err := o.kafka.Connect(ctx); err != nil {
		o.kafka.Close()
		return nil, err
	}
	out, err := producer.New(producer.Config{
		Client: o.kafka.Client, PackedTopic: settings.TopicPacked,
		ShippedTopic: settings.TopicShipped, FailedTopic: settings.TopicFailed, DeadLetterTopic: settings.TopicDLQ,
		Source: "packship/pack", Principal: settings.Principal(), Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		o.kafka.Close()
		return nil, err
	}
	running, stop := context.WithCancel(ctx)
	o.stop = stop
	go func() { o.stopped <- out.Run(running) }()
	o.group, o.ctx = errgroup.WithContext(ctx)
	for i := range o.lanes {
		o.lanes[i] = make(chan event, queued)
		o.group.Go(func() error { return o.serve(o.ctx, out, o.lanes[i]) })
	}
	return o, nil
}

// serve produces the events of a lane, one after the other.
func (o *outlet) serve(ctx context.Context, out *producer.Producer, lane <-chan event) error {
	for e := range lane {
		limit, cancel := context.WithTimeout(ctx, patience)
		err := out.Produce(limit, o.topic, []byte(e.tid), e.value, e.headers)
		cancel()
		if err != nil {
			return fmt.Errorf("order %s: %w", e.tid, err)
		}
		o.count.Add(1)
	}
	return nil
}

// put hands an event over. It blocks while too many are under way, and returns
// an error if one of them has failed.
func (o *outlet) put(e event) error {
	select {
	case o.lanes[crc32.ChecksumIEEE([]byte(e.tid))%producers] <- e:
		return nil
	case <-o.ctx.Done():
		return errStuck
	}
}

// errStuck says that there is another error, which close returns.
var errStuck = errors.New("no more can be produced")

// produced is how many events have been acknowledged.
func (o *outlet) produced() int { return int(o.count.Load()) }

// close waits for what was handed over.
func (o *outlet) close() error {
	for _, lane := range o.lanes {
		close(lane)
	}
	err := o.group.Wait()
	o.stop()
	err = errors.Join(err, <-o.stopped)
	o.kafka.Close()
	return err
}
