// Package brokertest gives tests a Kafka to talk to: a fake one in the same
// process, which can be made to fail, or a real one.
//
// A real one is used beside the fake one if the environment variable
// PACKSHIP_TEST_BROKERS names its brokers, separated by commas.
package brokertest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Broker is a Kafka cluster for a test.
type Broker struct {
	// Fake is the fake cluster, nil if the cluster is a real one.
	Fake *kfake.Cluster

	addr net.Addr
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu    sync.Mutex
	conns map[net.Conn]bool // open ones of the fake cluster
}

// Fake starts a fake cluster on the loopback interface.
func Fake(tb testing.TB, opts ...kfake.Opt) *Broker {
	tb.Helper()
	b := &Broker{conns: make(map[net.Conn]bool), dial: (&net.Dialer{}).DialContext}
	b.start(tb, func(network, address string) (net.Listener, error) {
		var lc net.ListenConfig
		return lc.Listen(context.Background(), network, address)
	}, opts...)
	return b
}

// Virtual starts a fake cluster without a real network, for use in a bubble of
// testing/synctest.
func Virtual(tb testing.TB, opts ...kfake.Opt) *Broker {
	tb.Helper()
	vn := new(kfake.VirtualNetwork)
	b := &Broker{conns: make(map[net.Conn]bool), dial: vn.DialContext}
	b.start(tb, vn.Listen, append([]kfake.Opt{kfake.Ports(9092, 9093, 9094)}, opts...)...)
	return b
}

func (b *Broker) start(tb testing.TB, listen func(network, address string) (net.Listener, error), opts ...kfake.Opt) {
	tb.Helper()
	opts = append([]kfake.Opt{kfake.NumBrokers(3)}, opts...)
	opts = append(opts, kfake.ListenFn(func(network, address string) (net.Listener, error) {
		l, err := listen(network, address)
		if err != nil {
			return nil, err
		}
		return &listener{Listener: l, broker: b}, nil
	}))
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	b.Fake, b.addr = c, kafka.TCP(c.ListenAddrs()...)
}

// All has the ways to get a cluster, by name: a fake one, and a real one if there
// is one.
var All = map[string]func(testing.TB) *Broker{
	"fake": func(tb testing.TB) *Broker {
		tb.Helper()
		return Fake(tb)
	},
	"real": Real,
}

// Real returns the real cluster, and skips the test if there is none.
func Real(tb testing.TB) *Broker {
	tb.Helper()
	brokers := os.Getenv("PACKSHIP_TEST_BROKERS") //nolint:forbidigo // a test is told of a real cluster this way
	if brokers == "" {
		tb.Skip("PACKSHIP_TEST_BROKERS names no real Kafka")
	}
	return &Broker{addr: kafka.TCP(strings.Split(brokers, ",")...), dial: (&net.Dialer{}).DialContext}
}

// Client returns a client that keeps the metadata of the given topics fresh.
func (b *Broker) Client(tb testing.TB, topics ...string) *kafka.Client {
	tb.Helper()
	transport := &kafka.Transport{
		Dial:           b.dial,
		MetadataTTL:    500 * time.Millisecond,
		MetadataTopics: topics,
		ClientID:       "packship-test",
	}
	tb.Cleanup(transport.CloseIdleConnections)
	return &kafka.Client{Addr: b.addr, Transport: transport, Timeout: 5 * time.Second}
}

// Topic creates a topic under a name that nobody else uses, and deletes it when
// the test is over.
func (b *Broker) Topic(tb testing.TB, partitions int, settings map[string]string) string {
	tb.Helper()
	name := "packship-test-" + uuid.NewString()
	b.Create(tb, name, partitions, settings)
	tb.Cleanup(func() { b.Delete(tb, name) })
	return name
}

// Create creates a topic.
func (b *Broker) Create(tb testing.TB, name string, partitions int, settings map[string]string) {
	tb.Helper()
	var entries []kafka.ConfigEntry
	for k, v := range settings {
		entries = append(entries, kafka.ConfigEntry{ConfigName: k, ConfigValue: v})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	res, err := b.Client(tb, name).CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic: name, NumPartitions: partitions, ReplicationFactor: -1, ConfigEntries: entries,
	}}})
	if err == nil {
		err = res.Errors[name]
	}
	if err != nil {
		tb.Fatalf("create topic %s: %v", name, err)
	}
}

// Delete deletes a topic.
func (b *Broker) Delete(tb testing.TB, name string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	res, err := b.Client(tb, name).DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{name}})
	if err == nil {
		err = res.Errors[name]
	}
	if err != nil {
		tb.Errorf("delete topic %s: %v", name, err)
	}
}

// franz returns a client of another make, which can do what ours cannot.
func (b *Broker) franz(tb testing.TB, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	opts = append(opts, kgo.SeedBrokers(strings.Split(b.addr.String(), ",")...), kgo.Dialer(b.dial),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	client, err := kgo.NewClient(opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return client
}

// DeleteRecords deletes what is before an offset.
func (b *Broker) DeleteRecords(tb testing.TB, topic string, partition int32, before int64) {
	tb.Helper()
	client := b.franz(tb)
	defer client.Close()
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 10_000
	req.Topics = []kmsg.DeleteRecordsRequestTopic{{
		Topic:      topic,
		Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: partition, Offset: before}},
	}}
	resp, err := req.RequestWith(context.Background(), client)
	if err != nil {
		tb.Fatal(err)
	}
	if err := kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode); err != nil {
		tb.Fatal(err)
	}
}

// ProduceTransaction appends a record in a transaction, which leaves a marker
// behind it in the log.
func (b *Broker) ProduceTransaction(tb testing.TB, topic string, partition int32, key, value []byte) {
	tb.Helper()
	client := b.franz(tb, kgo.TransactionalID(uuid.NewString()))
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := client.BeginTransaction(); err != nil {
		tb.Fatal(err)
	}
	if err := client.ProduceSync(ctx, &kgo.Record{Topic: topic, Partition: partition, Key: key, Value: value}).FirstErr(); err != nil {
		tb.Fatal(err)
	}
	if err := client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		tb.Fatal(err)
	}
}

// Record is a record of a log.
type Record struct {
	Offset     int64
	Key, Value []byte
	Headers    []kafka.Header
}

// Log returns everything in a partition.
func (b *Broker) Log(tb testing.TB, topic string, partition int) []Record {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client := b.Client(tb, topic)
	var end, next int64
	retry(ctx, tb, func() error {
		res, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{
			topic: {kafka.FirstOffsetOf(partition), kafka.LastOffsetOf(partition)},
		}})
		if err != nil {
			return err
		}
		o := res.Topics[topic][0]
		next, end = o.FirstOffset, o.LastOffset
		return o.Error
	})
	var log []Record
	for next < end {
		retry(ctx, tb, func() error {
			res, err := client.Fetch(ctx, &kafka.FetchRequest{
				Topic: topic, Partition: partition, Offset: next, MinBytes: 1, MaxBytes: 1 << 20, MaxWait: 100 * time.Millisecond,
			})
			if err == nil {
				err = res.Error
			}
			if err != nil {
				return err
			}
			for {
				rec, err := res.Records.ReadRecord()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				if rec.Offset < next {
					continue
				}
				log = append(log, Record{Offset: rec.Offset, Key: read(tb, rec.Key), Value: read(tb, rec.Value), Headers: rec.Headers})
				next = rec.Offset + 1
			}
		})
	}
	return log
}

func read(tb testing.TB, b protocol.Bytes) []byte {
	tb.Helper()
	if b == nil {
		return nil
	}
	data, err := protocol.ReadAll(b)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// retry tries until it works, or fails the test when ctx ends.
func retry(ctx context.Context, tb testing.TB, try func() error) {
	tb.Helper()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			tb.Fatal(err)
		}
	}
}

// Cut closes all connections to the fake cluster.
func (b *Broker) Cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		_ = c.Close()
	}
}

// listener remembers the connections that it has accepted.
type listener struct {
	net.Listener
	broker *Broker
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	l.broker.conns[c] = true
	return &conn{Conn: c, broker: l.broker}, nil
}

type conn struct {
	net.Conn
	broker *Broker
}

func (c *conn) Close() error {
	c.broker.mu.Lock()
	delete(c.broker.conns, c.Conn)
	c.broker.mu.Unlock()
	return c.Conn.Close()
}
