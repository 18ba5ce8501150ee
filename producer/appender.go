package producer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"packship/producer/internal/outage"
	"packship/schema"
)

const (
	// Brokers refuse a batch of more than 1,048,588 bytes by default.
	maxBatchBytes = 900_000
	// More records in a request bring nothing, and a lost request costs all
	// of them a retry.
	maxBatchRecords = 500

	// One try must end even if the client has no time limit of its own: a
	// broker that hangs must not hold up the partition for ever.
	tryTimeout = 10 * time.Second

	minBackoff = 20 * time.Millisecond
	maxBackoff = 2 * time.Second
	// slowBackoff is the pause after a fault that only a person can mend.
	slowBackoff = 10 * time.Second
)

// ErrMaybeAppended is wrapped by the error of an append that was given up while
// or after its records were under way: they may be in the log, or come into it
// later.
var ErrMaybeAppended = errors.New("the records may be in the log")

// ErrStale is returned for entries that became stale before they were appended;
// a request that failed may have appended them all the same.
var ErrStale = errors.New("the records have become stale")

// Entry is one record to be appended. A nil key or value is kept as null.
type Entry struct {
	Key, Value []byte
	Headers    []schema.Header
	// Stale, if not nil, is asked before every request with the entry, which is
	// not made, and neither is any other, once it returns true. It must be
	// quick, and it must not append anything itself.
	Stale func() bool
}

// size is an upper bound of what the entry takes in a batch.
func (e *Entry) size() int {
	const overhead = 32 // lengths and deltas as varints
	n := overhead + len(e.Key) + len(e.Value)
	for _, h := range e.Headers {
		n += 10 + len(h.Key) + len(h.Value)
	}
	return n
}

// Appender appends records to the partitions of one topic. It is safe for
// concurrent use.
//
// A real cluster takes a few hundred single-record requests a second, a hundred
// times as many records if they come in batches, and two requests that overlap
// may swap their order. So a partition has at most one request in flight, and
// all that arrives meanwhile goes into the next one.
//
// A partition's work is done by a goroutine that exists only while there is
// something to append. [Appender.Wait] waits for all of them.
type Appender struct {
	client *kafka.Client
	topic  string
	remedy func(error) string
	failed func() // called after every try that failed
	log    *slog.Logger
	outage *outage.Log

	mu      sync.Mutex
	queues  map[int]*queue // by partition
	refused int            // how many groups were refused for what they are, and still wait
	refusal string         // why the last of them was, and what to do
	workers int            // how many partitions are being worked on
	idle    chan struct{}  // closed when workers falls to 0
}

// queue is what waits for one partition. Its fields are guarded by the
// Appender's mutex.
type queue struct {
	partition int
	groups    []*group
	working   bool
	nudge     chan struct{} // tells a pausing worker to look again
}

// group is what one call of Append gave: it stays together in one batch.
type group struct {
	entries []Entry
	size    int
	done    chan struct{} // closed when base or stale is set
	base    int64
	stale   bool

	// Guarded by the Appender's mutex.
	sent      bool      // a request with it was made
	abandoned bool      // nobody waits for it any more
	peers     int       // how many groups its batch may hold, 0 for any number
	compress  bool      // it was too large as it is
	refused   bool      // it was refused for what it is, and that was logged and counted
	notBefore time.Time // a refused group stands aside until then
}

// AppenderConfig is what an Appender needs.
type AppenderConfig struct {
	Client *kafka.Client
	Topic  string
	Logger *slog.Logger
	// Principal is the client as Kafka's rights name it, for messages about
	// them; may be empty.
	Principal string
	// Failed, if not nil, is called after every request that failed.
	Failed func()
}

// NewAppender returns an Appender for a topic.
func NewAppender(cfg AppenderConfig) *Appender {
	a := &Appender{
		client: cfg.Client,
		topic:  cfg.Topic,
		remedy: remedies(cfg.Topic, cfg.Principal),
		failed: cfg.Failed,
		log:    cfg.Logger.With("topic", cfg.Topic),
		queues: make(map[int]*queue),
	}
	if a.failed == nil {
		a.failed = func() {}
	}
	a.outage = outage.New(a.log, "appending", a.remedy)
	return a
}

// Append appends the entries to a partition, next to each other and in their
// order, and returns the offset of the first once all in-sync replicas have
// them. It tries for as long as ctx lives. If the acknowledgement of a request
// is lost the entries are appended again, so the log may hold them more than
// once; the offset is that of the copy that was acknowledged.
//
// The error is the context's, or [ErrStale]. The context's wraps
// [ErrMaybeAppended] unless the entries are certainly not in the log.
func (a *Appender) Append(ctx context.Context, partition int, entries ...Entry) (int64, error) {
	g := &group{entries: entries, done: make(chan struct{})}
	for i := range entries {
		g.size += entries[i].size()
	}
	if err := ctx.Err(); err != nil {
		return 0, a.gaveUp(ctx, partition, false)
	}
	a.push(partition, g) //nolint:contextcheck // a request outlives the caller that gave it the most recent record
	select {
	case <-g.done:
		return g.result()
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-g.done: // acknowledged in the meantime
		return g.result()
	default:
	}
	g.abandoned = true
	a.queues[partition].wake()
	return 0, a.gaveUp(ctx, partition, g.sent)
}

// result is what became of a group that is done.
func (g *group) result() (int64, error) {
	if g.stale {
		return 0, ErrStale
	}
	return g.base, nil
}

func (a *Appender) gaveUp(ctx context.Context, partition int, sent bool) error {
	what := fmt.Sprintf("producer: append to %s/%d", a.topic, partition)
	if fault := a.Fault(); fault != "" { // what it was waiting for
		what += ": " + fault
	}
	if sent {
		return fmt.Errorf("%s: %w: %w", what, ErrMaybeAppended, context.Cause(ctx))
	}
	return fmt.Errorf("%s: %w", what, context.Cause(ctx))
}

// Fault says why nothing can be appended at present and what to do about it, ""
// if something can.
func (a *Appender) Fault() string { return a.outage.Fault() }

// Blocked says why what waits to be appended cannot be at present and what to do
// about it, "" if nothing waits or nothing is wrong.
func (a *Appender) Blocked() string {
	a.mu.Lock()
	waiting, refusal := a.workers > 0, ""
	if a.refused > 0 {
		refusal = a.refusal
	}
	a.mu.Unlock()
	if !waiting {
		return "" // what failed last is nobody's business any more
	}
	return cmp.Or(a.outage.Fault(), refusal)
}

// Wait blocks until nothing is queued or in flight, or until ctx ends. Requests
// of callers that gave up end by their own time limit.
func (a *Appender) Wait(ctx context.Context) error {
	for {
		a.mu.Lock()
		workers, idle := a.workers, a.idle
		a.mu.Unlock()
		if workers == 0 {
			return nil
		}
		select {
		case <-idle:
		case <-ctx.Done():
			return fmt.Errorf("producer: wait for appends to %s: %w", a.topic, context.Cause(ctx))
		}
	}
}

// push queues a group and sees to it that somebody works on its partition.
func (a *Appender) push(partition int, g *group) {
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.queues[partition]
	if q == nil {
		q = &queue{partition: partition, nudge: make(chan struct{}, 1)}
		a.queues[partition] = q
	}
	q.groups = append(q.groups, g)
	if q.working {
		q.wake()
		return
	}
	q.working = true
	if a.workers++; a.workers == 1 {
		a.idle = make(chan struct{})
	}
	go a.work(q)
}

func (q *queue) wake() {
	select {
	case q.nudge <- struct{}{}:
	default:
	}
}

// work appends what is queued until nothing is left.
func (a *Appender) work(q *queue) {
	backoff := minBackoff
	for {
		batch, pause := a.next(q)
		if batch == nil {
			if pause <= 0 {
				return // next has signed off
			}
			a.pause(q, pause, true)
			continue
		}
		base, err := a.produce(q.partition, batch)
		if err == nil {
			a.outage.Worked(q.partition)
			backoff = minBackoff
			a.acknowledge(batch, base)
			continue
		}
		a.failed()
		switch gravity := a.putBack(q, batch, err); gravity {
		case 0: // it is tried again in another form
		case outage.Lasting:
			a.outage.Failed(q.partition, gravity, err)
			a.pause(q, slowBackoff, false)
		case outage.Passing:
			a.outage.Failed(q.partition, gravity, err)
			a.pause(q, backoff/2+rand.N(backoff), false)
			backoff = min(2*backoff, maxBackoff)
		}
	}
}

// next takes the next batch from the queue. If there is none it returns how
// long to wait for one; if nothing is left at all it signs the worker off and
// returns no pause.
func (a *Appender) next(q *queue) (batch []*group, pause time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	var rest []*group
	bytes, records, peers, full := 0, 0, 0, false
	for _, g := range q.groups {
		switch wait := g.notBefore.Sub(now); {
		case g.abandoned:
			a.settle(g)
			continue
		case g.isStale():
			g.stale = true
			a.settle(g)
			close(g.done)
			continue
		case wait > 0:
			rest = append(rest, g)
			if pause == 0 || wait < pause {
				pause = wait
			}
			continue
		}
		limit := smallest(peers, g.peers)
		if len(batch) > 0 && (bytes+g.size > maxBatchBytes || records+len(g.entries) > maxBatchRecords ||
			limit != 0 && len(batch) >= limit || g.compress || batch[0].compress) {
			full = true
		}
		if full { // nothing overtakes what did not fit
			rest = append(rest, g)
			continue
		}
		batch = append(batch, g)
		bytes, records, peers = bytes+g.size, records+len(g.entries), limit
		g.sent = true
	}
	q.groups = rest
	if len(batch) == 0 && len(rest) == 0 {
		q.working = false
		if a.workers--; a.workers == 0 {
			close(a.idle)
		}
		return nil, 0
	}
	return batch, pause
}

// settle takes a group out of account. The caller holds mu.
func (a *Appender) settle(g *group) {
	if g.refused {
		a.refused--
	}
}

// isStale reports whether an entry of the group is.
func (g *group) isStale() bool {
	return slices.ContainsFunc(g.entries, func(e Entry) bool { return e.Stale != nil && e.Stale() })
}

// smallest returns the smaller of two limits, of which 0 is none.
func smallest(a, b int) int {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// produce makes one request.
func (a *Appender) produce(partition int, batch []*group) (int64, error) {
	var records []protocol.Record
	for _, g := range batch {
		for _, e := range g.entries {
			r := protocol.Record{Key: nullBytes(e.Key), Value: nullBytes(e.Value)}
			for _, h := range e.Headers {
				r.Headers = append(r.Headers, protocol.Header{Key: h.Key, Value: h.Value})
			}
			records = append(records, r)
		}
	}
	req := &kafka.ProduceRequest{
		Topic:        a.topic,
		Partition:    partition,
		RequiredAcks: kafka.RequireAll,
		Records:      protocol.NewRecordReader(records...),
	}
	if batch[0].compress {
		req.Compression = kafka.Zstd
	}
	// A request outlives the callers that wait for it. Cut off, it might still
	// reach the broker, after the requests that follow it.
	ctx, cancel := context.WithTimeout(context.Background(), tryTimeout)
	defer cancel()
	res, err := a.client.Produce(ctx, req)
	if err != nil {
		return 0, err
	}
	return res.BaseOffset, res.Error
}

func nullBytes(b []byte) protocol.Bytes {
	if b == nil {
		return nil
	}
	return protocol.NewBytes(b)
}

// acknowledge tells the callers where their entries are.
func (a *Appender) acknowledge(batch []*group, base int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, g := range batch {
		g.base = base
		base += int64(len(g.entries))
		a.settle(g)
		if g.refused && a.refused == 0 {
			a.log.Info("no record is refused any more")
		}
		close(g.done)
	}
}

// putBack returns a batch to the head of its queue, in a form that may fare
// better if it was refused for what it holds: first in smaller batches, then
// compressed. A group that is refused all the same stands aside, so that it does
// not hold up the others. The result is 0 if there is no need to pause.
func (a *Appender) putBack(q *queue, batch []*group, err error) outage.Gravity {
	gravity := outage.Passing
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { q.groups = append(batch, q.groups...) }()
	switch fault := faultOf(err); {
	case fault == faultTopic:
		gravity = outage.Lasting
	case fault == faultRecord && len(batch) > 1:
		for _, g := range batch {
			g.peers = (len(batch) + 1) / 2
		}
		gravity = 0
	case fault == faultRecord && !batch[0].compress:
		batch[0].compress = true
		gravity = 0
	case fault == faultRecord:
		g := batch[0]
		g.notBefore = time.Now().Add(slowBackoff)
		if !g.refused && !g.abandoned {
			remedy := a.remedy(err)
			g.refused = true
			a.refused++
			a.refusal = fmt.Sprintf("a record of %d bytes is refused: %v", g.size, err)
			if remedy != "" {
				a.refusal += "; " + remedy
			}
			a.log.Error("record refused, trying again slowly", "partition", q.partition,
				"bytes", g.size, "err", err, "remedy", remedy)
		}
		gravity = 0
	}
	return gravity
}

// pause waits for a while, or until nobody waits for the queue's groups any
// more, or, if early is set, until there is something to append.
func (a *Appender) pause(q *queue, d time.Duration, early bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return
		case <-q.nudge:
		}
		a.mu.Lock()
		waiting, ready := false, false
		for _, g := range q.groups {
			if !g.abandoned {
				waiting = true
				ready = ready || !g.notBefore.After(time.Now())
			}
		}
		a.mu.Unlock()
		if !waiting || early && ready {
			return
		}
	}
}

// fault says what a failed request is about.
type fault int

const (
	faultPassing fault = iota // try again
	faultRecord               // the broker does not take these records
	faultTopic                // the broker does not take anything from us
)

// faultOf classifies the error of a request. What is not known is tried again.
func faultOf(err error) fault {
	code, ok := errors.AsType[kafka.Error](err)
	if !ok {
		return faultPassing
	}
	switch code {
	case kafka.MessageSizeTooLarge, kafka.RecordListTooLarge, kafka.InvalidMessageSize,
		kafka.InvalidRecord, kafka.InvalidTimestamp:
		return faultRecord
	case kafka.TopicAuthorizationFailed, kafka.ClusterAuthorizationFailed, kafka.BrokerAuthorizationFailed,
		kafka.SASLAuthenticationFailed, kafka.InvalidTopic, kafka.PolicyViolation, kafka.UnsupportedVersion,
		kafka.InvalidRequiredAcks, kafka.UnsupportedForMessageFormat, kafka.UnsupportedCompressionType:
		return faultTopic
	default:
		return faultPassing
	}
}

// remedies returns a function that says what a person may do about the error of
// a request to write to a topic, "" if there is nothing special to say.
func remedies(topic, principal string) func(error) string {
	return func(err error) string { return remedy(err, topic, principal) }
}

func remedy(err error, topic, principal string) string {
	switch {
	case errors.Is(err, kafka.MessageSizeTooLarge), errors.Is(err, kafka.RecordListTooLarge):
		return "raise max.message.bytes of the topic"
	case errors.Is(err, kafka.TopicAuthorizationFailed), errors.Is(err, kafka.ClusterAuthorizationFailed):
		return "grant " + cmp.Or(principal, "this client") + " the right Write on topic " + topic
	case errors.Is(err, kafka.UnknownTopicOrPartition), errors.Is(err, protocol.ErrNoTopic), errors.Is(err, protocol.ErrNoPartition):
		return "create the topic with `packship topics create`"
	case errors.Is(err, kafka.NotEnoughReplicas):
		return "bring back the brokers that are missing for min.insync.replicas"
	default:
		return ""
	}
}
