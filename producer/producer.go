package producer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/trace"

	"packship/producer/internal/outage"
	"packship/schema"
)

// Config is what a Producer needs. A topic that is left empty cannot be written
// to.
type Config struct {
	// Client's transport must know the metadata of the topics, and keep it
	// fresh: after a move of a leader it goes on asking the old one for as long.
	Client *kafka.Client

	ShippedTopic    string
	FailedTopic     string
	DeadLetterTopic string
	PackedTopic     string

	// Source is this connector as the events name it, packship/<group id>.
	Source string

	// Principal is the client as Kafka's rights name it, for messages about
	// them; may be empty.
	Principal string

	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Tracer makes the spans of what is written; nil makes none.
	Tracer trace.Tracer
}

// Producer writes result events, dead letters, and, for the commands that send
// orders again, packed events. It is safe for concurrent use.
type Producer struct {
	cfg       Config
	appenders map[string]*Appender     // by topic, fixed
	lookups   map[string]*outage.Log   // likewise
	looking   map[string]*atomic.Int64 // likewise: who waits for a lookup
	metrics   *metrics
}

// New returns a Producer. It does not connect to anything.
func New(cfg Config) (*Producer, error) {
	if cfg.Client == nil || cfg.Logger == nil {
		return nil, errors.New("producer: a client and a logger are needed")
	}
	p := &Producer{
		cfg:       cfg,
		appenders: make(map[string]*Appender),
		lookups:   make(map[string]*outage.Log),
		looking:   make(map[string]*atomic.Int64),
	}
	var topics []string
	for _, topic := range []string{cfg.ShippedTopic, cfg.FailedTopic, cfg.DeadLetterTopic, cfg.PackedTopic} {
		if topic != "" && !slices.Contains(topics, topic) {
			topics = append(topics, topic)
		}
	}
	p.metrics = newMetrics(cfg.Registerer, topics)
	for _, topic := range topics {
		p.appenders[topic] = NewAppender(AppenderConfig{
			Client:    cfg.Client,
			Topic:     topic,
			Principal: cfg.Principal,
			Logger:    cfg.Logger,
			Failed:    p.metrics.failures.WithLabelValues(topic).Inc,
		})
		p.looking[topic] = new(atomic.Int64)
		p.lookups[topic] = outage.New(cfg.Logger.With("topic", topic), "looking up partitions", remedies(topic, cfg.Principal))
	}
	return p, nil
}

// Run blocks until ctx ends and then until everything that was given to the
// Producer has been appended or given up by its caller.
func (p *Producer) Run(ctx context.Context) error {
	<-ctx.Done()
	for _, a := range p.appenders {
		if err := a.Wait(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// Blocked says which topics do not take what waits to be written to them, why,
// and what to do about it.
func (p *Producer) Blocked() map[string]string {
	blocked := make(map[string]string)
	for topic, a := range p.appenders {
		fault := a.Blocked()
		if fault == "" && p.looking[topic].Load() > 0 {
			fault = p.lookups[topic].Fault()
		}
		if fault != "" {
			blocked[topic] = fault
		}
	}
	return blocked
}

// Publish writes the result event of an outcome to the topic of its verdict. It
// returns once all in-sync replicas have it; it fails if ctx ends before that or
// with [ErrStale] if the result has become stale.
func (p *Producer) Publish(ctx context.Context, pub schema.Publication) error {
	topic, eventType := p.cfg.FailedTopic, schema.TypeFailed
	if pub.Outcome.Verdict == schema.Shipped {
		topic, eventType = p.cfg.ShippedTopic, schema.TypeShipped
	}
	if len(pub.Outcome.Event) == 0 {
		// On a compacted topic a record without a value deletes.
		return fmt.Errorf("producer: publish result of %s: the outcome has no event", pub.TID)
	}
	ctx, span := p.startSend(ctx, topic, resultAttributes(&pub)...)
	pub = traced(ctx, pub)
	headers := pub.Headers(eventType, p.cfg.Source)
	return p.send(ctx, span, topic, Entry{Key: []byte(pub.TID), Value: pub.Outcome.Event, Headers: headers, Stale: pub.Stale})
}

// Bury writes a record that is no packed event to the dead letters, as it is,
// with headers that say where it was found and what is wrong with it.
func (p *Producer) Bury(ctx context.Context, rec *schema.Record, reason, detail string) error {
	headers := append(slices.Clone(rec.Headers),
		schema.Header{Key: "packship_reason", Value: []byte(reason)},
		schema.Header{Key: "packship_detail", Value: []byte(detail)},
		schema.Header{Key: "packship_topic", Value: []byte(rec.Topic)},
		schema.Header{Key: "packship_partition", Value: strconv.AppendInt(nil, int64(rec.Partition), 10)},
		schema.Header{Key: "packship_offset", Value: strconv.AppendInt(nil, rec.Offset, 10)},
		schema.Header{Key: "packship_at", Value: time.Now().UTC().AppendFormat(nil, "2006-01-02T15:04:05.000Z07:00")},
	)
	return p.Produce(ctx, p.cfg.DeadLetterTopic, rec.Key, rec.Value, headers)
}

// Produce writes a record to one of the Producer's topics, to the partition to
// which a Java client would write its key. It returns once all in-sync replicas
// have it; only the end of ctx makes it fail.
func (p *Producer) Produce(ctx context.Context, topic string, key, value []byte, headers []schema.Header) error {
	ctx, span := p.startSend(ctx, topic)
	return p.send(ctx, span, topic, Entry{Key: key, Value: value, Headers: headers})
}

// send appends an entry to a topic, and ends the span of that.
func (p *Producer) send(ctx context.Context, span trace.Span, topic string, e Entry) error {
	partition, offset, err := p.append(ctx, topic, e)
	endSend(span, partition, offset, err)
	if err != nil {
		return err
	}
	p.metrics.published.WithLabelValues(topic).Inc()
	return nil
}

// append appends an entry to the partition of its key.
func (p *Producer) append(ctx context.Context, topic string, e Entry) (partition int, offset int64, err error) {
	a := p.appenders[topic]
	if a == nil {
		return 0, 0, fmt.Errorf("producer: produce: %q is none of the topics that were set", topic)
	}
	if partition, err = p.partition(ctx, topic, e.Key); err != nil {
		return 0, 0, err
	}
	offset, err = a.Append(ctx, partition, e)
	return partition, offset, err
}

// partition returns the partition for a key, by the number of partitions that
// the topic has now. The client answers from its own memory, which it keeps
// fresh.
func (p *Producer) partition(ctx context.Context, topic string, key []byte) (int, error) {
	p.looking[topic].Add(1)
	defer p.looking[topic].Add(-1)
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		res, err := p.cfg.Client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
		if err == nil && len(res.Topics) == 1 {
			if t := res.Topics[0]; t.Error == nil && len(t.Partitions) > 0 {
				p.lookups[topic].Worked(0)
				return PartitionOf(key, len(t.Partitions)), nil
			} else if err = t.Error; err == nil {
				err = kafka.UnknownTopicOrPartition
			}
		}
		if ctx.Err() != nil {
			what := "producer: look up the partitions of " + topic
			if fault := p.lookups[topic].Fault(); fault != "" {
				what += ": " + fault
			}
			return 0, fmt.Errorf("%s: %w", what, context.Cause(ctx))
		}
		p.lookups[topic].Failed(0, outage.Passing, err)
		select {
		case <-time.After(backoff/2 + rand.N(backoff)):
		case <-ctx.Done():
		}
	}
}

// PartitionOf returns the partition of a key among n, as the default partitioner
// of the Java client does: murmur2 of the key. Records without a key are spread.
func PartitionOf(key []byte, n int) int {
	if key == nil {
		return rand.N(n)
	}
	partitions := make([]int, n)
	for i := range partitions {
		partitions[i] = i
	}
	return kafka.Murmur2Balancer{}.Balance(kafka.Message{Key: key}, partitions...)
}
