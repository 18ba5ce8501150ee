package operate

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
	"golang.org/x/time/rate"

	"packship/producer"
	"packship/schema"
)

const (
	// senders is how many events are under way at once; those of one order
	// stay in order.
	senders = 16
	// patience is how long one event may take to be acknowledged.
	patience = 10 * time.Second
)

// Redrive sends what a plan has selected, as fast as its filter allows. It may be
// broken off: a plan that is made afterwards leaves out what was sent, and an event
// that is sent twice nevertheless is the same event, so that it causes no second
// call.
func (o *Operator) Redrive(ctx context.Context, p *Redrive) error {
	p.Executed = true
	limiter := rate.NewLimiter(rate.Inf, 1)
	if p.perSecond > 0 {
		limiter = rate.NewLimiter(rate.Limit(p.perSecond), 1)
	}
	o.meter.Begin("sending", int64(len(p.events)))
	defer o.meter.End()
	var sent atomic.Int64
	err := o.producing(ctx, func(ctx context.Context, out *producer.Producer) error {
		var lanes [senders][]redriven
		for _, e := range p.events {
			lane := crc32.ChecksumIEEE([]byte(e.tid)) % senders
			lanes[lane] = append(lanes[lane], e)
		}
		group, ctx := errgroup.WithContext(ctx)
		for _, lane := range lanes {
			group.Go(func() error {
				for _, e := range lane {
					if limiter.Wait(ctx) != nil {
						return context.Cause(ctx)
					}
					if err := o.send(ctx, out, e.record); err != nil {
						return fmt.Errorf("order %s: %w", e.tid, err)
					}
					sent.Add(1)
					o.meter.Add(1)
				}
				return nil
			})
		}
		return group.Wait()
	})
	p.Sent = int(sent.Load())
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("redrive: stopped after %d of %d events: %w; the same command goes on where it stopped", p.Sent, len(p.events), err)
	}
	return nil
}

// send appends a record to the packed topic and waits until it is acknowledged.
func (o *Operator) send(ctx context.Context, out *producer.Producer, rec *schema.Record) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return out.Produce(ctx, o.settings.TopicPacked, rec.Key, rec.Value, rec.Headers)
}

// producing does some work with a producer.
func (o *Operator) producing(ctx context.Context, work func(context.Context, *producer.Producer) error) error {
	s := o.settings
	out, err := producer.New(producer.Config{
		Client: o.kafka.Client, PackedTopic: s.TopicPacked,
		ShippedTopic: s.TopicShipped, FailedTopic: s.TopicFailed, DeadLetterTopic: s.TopicDLQ,
		Source: "packship/" + s.KafkaGroupID, Principal: s.Principal(), Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() { stopped <- out.Run(running) }()
	err = work(ctx, out)
	stop()
	return errors.Join(err, <-stopped)
}
