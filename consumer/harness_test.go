package consumer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/schema"
)

const (
	testTopic = "erp.order.packed.v1"
	testGroup = "packship"
)

// world is a fake cluster on a virtual network, inside a synctest bubble.
type world struct {
	t       *testing.T
	vn      *kfake.VirtualNetwork
	ports   []int
	cluster *kfake.Cluster
	client  *kafka.Client
	commits *commitLog
	faults  []*kfake.FaultHandle
}

// fault installs a fault.
func (w *world) fault(f kfake.Fault) *kfake.FaultHandle {
	h := w.cluster.Fault(f)
	w.faults = append(w.faults, h)
	return h
}

// inWorld runs a test in a bubble with a cluster of three brokers. A goroutine
// that is left over at the end fails the test.
func inWorld(t *testing.T, partitions int32, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, vn: new(kfake.VirtualNetwork), ports: []int{9092, 9093, 9094}}
		opts := []kfake.Opt{kfake.NumBrokers(len(w.ports)), kfake.Ports(w.ports...), kfake.ListenFn(w.vn.Listen)}
		if partitions > 0 {
			opts = append(opts, kfake.SeedTopics(partitions, testTopic))
		}
		w.cluster = kfake.MustCluster(opts...)
		defer w.cluster.Close()
		tr := transportOver(w.vn.DialContext, testTopic)
		defer tr.CloseIdleConnections()
		w.client = w.clientOver(tr)
		w.commits = watchCommits(w.cluster)
		test(w)
	})
}

func transportOver(dial func(context.Context, string, string) (net.Conn, error), topic string) *kafka.Transport {
	return &kafka.Transport{
		Dial: dial, ClientID: "test", MetadataTTL: 500 * time.Millisecond, MetadataTopics: []string{topic},
	}
}

func (w *world) clientOver(tr *kafka.Transport) *kafka.Client {
	return &kafka.Client{Addr: kafka.TCP(w.brokers()...), Timeout: 10 * time.Second, Transport: tr}
}

func (w *world) brokers() []string {
	var addrs []string
	for _, p := range w.ports {
		addrs = append(addrs, fmt.Sprintf("localhost:%d", p))
	}
	return addrs
}

// produce writes one record for each value into a partition.
func (w *world) produce(partition int, values ...string) {
	w.t.Helper()
	produce(w.t, w.client, testTopic, partition, values...)
}

func produce(t *testing.T, client *kafka.Client, topic string, partition int, values ...string) {
	t.Helper()
	for chunk := range slices.Chunk(values, 500) {
		records := make([]kafka.Record, len(chunk))
		for i, v := range chunk {
			records[i] = kafka.Record{Time: time.Now(), Value: kafka.NewBytes([]byte(v))}
		}
		for try := 0; ; try++ {
			res, err := client.Produce(t.Context(), &kafka.ProduceRequest{
				Topic: topic, Partition: partition, RequiredAcks: kafka.RequireAll,
				Records: protocol.NewRecordReader(records...),
			})
			if err == nil {
				err = res.Error
			}
			if err == nil {
				break
			}
			if try == 20 {
				t.Fatalf("produce: %v", err)
			}
			time.Sleep(200 * time.Millisecond)
			for i, v := range chunk {
				records[i].Value = kafka.NewBytes([]byte(v))
			}
		}
	}
}

// event returns a packed event.
func event(shop string, tid int) string {
	return fmt.Sprintf(`{"shop_id":%q,"tid":"%d","out_sid":"SF%d","company_code":"SF"}`, shop, tid, tid)
}

// events returns n events of n orders of a shop.
func events(shop string, from, n int) []string {
	var values []string
	for i := range n {
		values = append(values, event(shop, from+i))
	}
	return values
}

// committedAt returns the group's committed offset of a partition, -1 if none.
func (w *world) committedAt(partition int) int64 {
	info := w.cluster.GroupInfo(testGroup)
	if info == nil {
		return -1
	}
	c, ok := info.Commits[testTopic][int32(partition)]
	if !ok {
		return -1
	}
	return c.Offset
}

// awaitCommit waits until the offset of a partition is committed.
func (w *world) awaitCommit(partition int, offset int64) {
	w.t.Helper()
	await(w.t, fmt.Sprintf("offset %d of partition %d to be committed", offset, partition), func() bool {
		return w.committedAt(partition) == offset
	})
}

// await waits until a state is reached.
func await(t *testing.T, what string, reached func() bool) {
	t.Helper()
	const limit = 5 * time.Minute // virtual time in a bubble
	for deadline := time.Now().Add(limit); !reached(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// commitLog is what the brokers were asked to commit.
type commitLog struct {
	mu      sync.Mutex
	commits []commitRequest
}

type commitRequest struct {
	generation int32
	member     string
	offsets    map[int32]int64
	metadata   string
}

func watchCommits(cluster *kfake.Cluster) *commitLog {
	l := new(commitLog)
	cluster.ControlKey(int16(kmsg.OffsetCommit), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		req, ok := r.(*kmsg.OffsetCommitRequest)
		if !ok {
			return nil, nil, false
		}
		c := commitRequest{generation: req.Generation, member: req.MemberID, offsets: make(map[int32]int64)}
		for _, t := range req.Topics {
			for _, p := range t.Partitions {
				c.offsets[p.Partition] = p.Offset
				if p.Metadata != nil {
					c.metadata = *p.Metadata
				}
			}
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.commits = append(l.commits, c)
		return nil, nil, false
	})
	return l
}

func (l *commitLog) all() []commitRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.commits)
}

// neverBack fails the test if a partition's commits, in the order in which
// they arrived, ever went back.
func (l *commitLog) neverBack(t *testing.T) {
	t.Helper()
	highest := make(map[int32]int64)
	for _, c := range l.all() {
		for p, offset := range c.offsets {
			if offset < highest[p] {
				t.Errorf("partition %d: committed %d after %d", p, offset, highest[p])
			}
			highest[p] = max(highest[p], offset)
		}
	}
}

// cutNet is a network that can be cut off.
type cutNet struct {
	dial func(context.Context, string, string) (net.Conn, error)

	mu    sync.Mutex
	down  bool
	conns map[net.Conn]struct{}
}

func newCutNet(dial func(context.Context, string, string) (net.Conn, error)) *cutNet {
	return &cutNet{dial: dial, conns: make(map[net.Conn]struct{})}
}

func (n *cutNet) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	n.mu.Lock()
	down := n.down
	n.mu.Unlock()
	if down {
		return nil, errors.New("network is cut")
	}
	conn, err := n.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[conn] = struct{}{}
	return &trackedConn{Conn: conn, net: n}, nil
}

type trackedConn struct {
	net.Conn
	net *cutNet
}

func (c *trackedConn) Close() error {
	c.net.mu.Lock()
	delete(c.net.conns, c.Conn)
	c.net.mu.Unlock()
	return c.Conn.Close()
}

// cut breaks all connections; with down, no new ones can be made.
func (n *cutNet) cut(down bool) {
	n.mu.Lock()
	n.down = down
	conns := make([]net.Conn, 0, len(n.conns))
	for c := range n.conns {
		conns = append(conns, c)
	}
	n.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// heal lets connections be made again.
func (n *cutNet) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = false
}

// replica is a consumer that runs.
type replica struct {
	t        *testing.T
	c        *Consumer
	net      *cutNet
	reg      *prometheus.Registry
	log      *logBook
	stopRun  context.CancelFunc
	finished chan error
}

// start runs a consumer. It is stopped at the end of the test at the latest.
func (w *world) start(name string, h Handler, change ...func(*Config)) *replica {
	w.t.Helper()
	network := newCutNet(w.vn.DialContext)
	tr := transportOver(network.DialContext, testTopic)
	r := startReplica(w.t, name, h, network, w.brokers(), tr, change...)
	return r
}

func startReplica(t *testing.T, name string, h Handler, network *cutNet, brokers []string, tr *kafka.Transport, change ...func(*Config)) *replica {
	t.Helper()
	r := &replica{t: t, net: network, reg: prometheus.NewRegistry(), log: new(logBook), finished: make(chan error, 1)}
	cfg := Config{
		Brokers: brokers, GroupID: testGroup, ClientID: name, Name: name, Topic: testTopic,
		Dialer:         &kafka.Dialer{DialFunc: network.DialContext, Timeout: 3 * time.Second, ClientID: name},
		Client:         &kafka.Client{Addr: kafka.TCP(brokers...), Timeout: 10 * time.Second, Transport: tr},
		SessionTimeout: 6 * time.Second, RebalanceTimeout: 10 * time.Second, StopTimeout: 20 * time.Second,
		Handler: h, Logger: slog.New(r.log), Registerer: r.reg,
	}
	for _, f := range change {
		f(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.c = c
	ctx, cancel := context.WithCancel(context.Background())
	r.stopRun = cancel
	go func() {
		err := c.Run(ctx)
		tr.CloseIdleConnections()
		r.finished <- err
	}()
	t.Cleanup(func() { _ = r.stop() }) // most tests do not ask
	return r
}

// stop stops the consumer and returns what Run returned.
func (r *replica) stop() error {
	r.stopRun()
	err := <-r.finished
	r.finished <- err
	return err
}

// kill makes the consumer disappear from the network, as a process that was
// killed does. What it does afterwards reaches nobody.
func (r *replica) kill() {
	r.net.cut(true)
	r.stopRun()
}

// awaitRole waits until the consumer says that it has the role, and, if it is
// active, that its gate is open.
func (r *replica) awaitRole(role Role) {
	r.t.Helper()
	await(r.t, "role "+string(role), func() bool {
		st := r.c.Status()
		return st.Role == role && (role != RoleActive || st.GateOpen) && st.Reason == ""
	})
}

// metric returns the value of a metric, which may have labels.
func (r *replica) metric(name string, labels ...string) float64 {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var have []string
			for _, l := range m.GetLabel() {
				have = append(have, l.GetName()+"="+l.GetValue())
			}
			if !slices.ContainsFunc(labels, func(l string) bool { return !slices.Contains(have, l) }) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	r.t.Fatalf("no metric %s %v", name, labels)
	return 0
}

// series returns the number of series of a metric.
func (r *replica) series(name string) int {
	r.t.Helper()
	n, err := testutil.GatherAndCount(r.reg, name)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// fakeHandler is a handler whose work a test decides on. It notes what it sees
// and that the records of an order come one at a time.
type fakeHandler struct {
	// work, if not nil, is what Handle does.
	work func(ctx context.Context, gate *Gate, rec *schema.Record, p *schema.Packed) error

	mu       sync.Mutex
	running  map[string]int // by order
	began    []string
	settled  []string
	perOrder map[string][]int64 // offsets, in the order of their handling
	overlaps int
	maxBusy  int
	busy     int
}

// at names a record.
func at(partition int, offset int64) string { return fmt.Sprintf("%d/%d", partition, offset) }

func (h *fakeHandler) Handle(ctx context.Context, gate *Gate, rec *schema.Record, p *schema.Packed, decodeErr error) error {
	key := fmt.Sprintf("undecodable %s", at(rec.Partition, rec.Offset))
	if p != nil {
		key = p.ShopID + "/" + p.TID
	} else if decodeErr == nil {
		return errors.New("neither event nor error")
	}
	h.mu.Lock()
	if h.running == nil {
		h.running, h.perOrder = make(map[string]int), make(map[string][]int64)
	}
	h.running[key]++
	if h.running[key] > 1 {
		h.overlaps++
	}
	h.busy++
	h.maxBusy = max(h.maxBusy, h.busy)
	h.began = append(h.began, at(rec.Partition, rec.Offset))
	h.mu.Unlock()
	var err error
	if h.work != nil {
		err = h.work(ctx, gate, rec, p)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running[key]--
	h.busy--
	if err == nil {
		h.settled = append(h.settled, at(rec.Partition, rec.Offset))
		h.perOrder[key] = append(h.perOrder[key], rec.Offset)
	}
	return err
}

func (h *fakeHandler) count() (began, settled int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.began), len(h.settled)
}

func (h *fakeHandler) awaitSettled(t *testing.T, n int) {
	t.Helper()
	await(t, fmt.Sprintf("%d settled records", n), func() bool { _, s := h.count(); return s >= n })
}

// inOrder fails the test unless the records of every order were settled once
// each, in the order of their offsets, and never two at a time.
func (h *fakeHandler) inOrder(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.overlaps > 0 {
		t.Errorf("%d records were handled while another of their order was", h.overlaps)
	}
	for key, offsets := range h.perOrder {
		if !slices.IsSorted(offsets) {
			t.Errorf("order %s was handled as %v", key, offsets)
		}
	}
}

// until returns a work function that waits for the channel or the context.
func until(ch <-chan struct{}) func(context.Context, *Gate, *schema.Record, *schema.Packed) error {
	return func(ctx context.Context, _ *Gate, _ *schema.Record, _ *schema.Packed) error {
		select {
		case <-ch:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// logBook keeps log lines.
type logBook struct {
	mu    sync.Mutex
	lines []string
}

func (*logBook) Enabled(context.Context, slog.Level) bool { return true }
func (b *logBook) WithGroup(string) slog.Handler          { return b }
func (b *logBook) WithAttrs([]slog.Attr) slog.Handler     { return b }

func (b *logBook) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, line)
	return nil
}

// count returns the number of lines that contain all the texts.
func (b *logBook) count(texts ...string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, l := range b.lines {
		if !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(l, s) }) {
			n++
		}
	}
	return n
}

func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.lines, "\n")
}

// kfakeFault answers the next n requests of a kind with an error.
func kfakeFault(key kmsg.Key, err *kerr.Error, n int) kfake.Fault {
	return kfakeFaultWhen(key, err, n, nil)
}

func kfakeFaultWhen(key kmsg.Key, err *kerr.Error, n int, when func(kmsg.Request) bool) kfake.Fault {
	f := kfake.Fault{Keys: []kmsg.Key{key}, Err: err, Count: n, When: when}
	switch key {
	case kmsg.Fetch, kmsg.OffsetCommit:
	default:
		f.TopLevel = true
	}
	return f
}

// kfakeObserve counts the requests of a kind.
func kfakeObserve(key kmsg.Key) kfake.Fault {
	return kfake.Fault{Keys: []kmsg.Key{key}, Observe: true, Count: -1}
}

// recordBatch encodes values as an uncompressed batch that begins at an offset
// and claims to end with another.
func recordBatch(base, last int64, values []string) []byte {
	var records []byte
	for i, v := range values {
		rec := kmsg.NewRecord()
		rec.OffsetDelta, rec.Value = int32(i), []byte(v)
		body := rec.AppendTo(nil) // with a length of 0, which takes one byte
		rec.Length = int32(len(body) - 1)
		records = rec.AppendTo(records)
	}
	b := kmsg.NewRecordBatch()
	b.FirstOffset, b.LastOffsetDelta = base, int32(last-base)
	b.PartitionLeaderEpoch, b.Magic = -1, 2
	b.FirstTimestamp, b.MaxTimestamp = time.Now().UnixMilli(), time.Now().UnixMilli()
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = -1, -1, -1
	b.NumRecords, b.Records = int32(len(values)), records
	const lengthAt, lengthSize, crcAt, crcSize = 8, 4, 17, 4
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[lengthAt:], uint32(len(raw)-lengthAt-lengthSize))
	sum := crc32.Checksum(raw[crcAt+crcSize:], crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(raw[crcAt:], sum)
	return raw
}
