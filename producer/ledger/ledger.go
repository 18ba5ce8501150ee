package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"packship/producer"
	"packship/producer/internal/outage"
	"packship/schema"
)

// Config is what a Ledger needs.
type Config struct {
	// Client's transport must know the metadata of the topic, and keep it
	// fresh: after a move of a leader it goes on asking the old one for as long.
	Client *kafka.Client
	Topic  string
	// Partitions is the number of partitions of the topic, fixed for ever.
	Partitions int
	// Horizon is how long the topic keeps its records.
	Horizon time.Duration

	// A call under an attempt begins within StartBy of the append of its
	// record and ends within CallTimeout, and the API may go on working on it
	// for Settle. After all three, and not before, somebody else may try.
	StartBy     time.Duration
	CallTimeout time.Duration
	Settle      time.Duration

	// Instance names this process among the replicas.
	Instance string

	// Principal is the client as Kafka's rights name it, for messages about
	// them; may be empty.
	Principal string
	// Charged is told what each attempt in the log has cost, whichever replica
	// made it, and at what time its record was written, from the oldest record
	// on; nil is allowed. It must not block.
	Charged func(paid schema.Charge, at time.Time)

	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

func (c *Config) validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New("ledger: "+what))
		}
	}
	need(c.Client != nil && c.Logger != nil, "a client and a logger are needed")
	need(c.Topic != "", "the name of the topic is needed")
	need(c.Instance != "", "a name of this instance is needed")
	need(c.Partitions > 0, "the number of partitions must be positive")
	need(c.Horizon > 0, "the horizon must be positive")
	need(c.StartBy > 0 && c.CallTimeout > 0 && c.Settle >= 0, "the time limits of a call must be positive")
	return errors.Join(errs...)
}

// Ledger is a replica of the ledger and the way to write to it. It is safe for
// concurrent use. Its answers are those of the whole log only after
// [Ledger.WaitReady], and after [Ledger.CatchUp] wherever another process may
// have written.
type Ledger struct {
	cfg        Config
	self       string        // instance and incarnation
	made       atomic.Uint64 // attempts made by this process
	appender   *producer.Appender
	partitions []*partition
	metrics    *metrics
	reading    *outage.Log
	log        *slog.Logger

	started  time.Time     // set by Run before anything is read
	behind   atomic.Int32  // partitions that have not been read to the end seen at the start
	ready    chan struct{} // closed when that falls to 0
	restored time.Duration // set before ready is closed
	closed   atomic.Bool

	damage   atomic.Pointer[string]
	unfit    atomic.Pointer[string] // what is wrong with the topic, if that is not ""
	identity struct {
		sync.Mutex

		name string // the one that was given out last
	}
	refused chan struct{} // closed after refusal is set
	refusal error

	// orphans are attempts to be released although nobody waits for it.
	orphans chan orphan
	// stored caches outcomes that were fetched, by partition.
	stored []*readAhead
}

// orphan is an attempt that no call is made under and whose shipment should not
// have to wait until that is obvious to the other replicas.
type orphan struct {
	p        *partition
	shipment string // canonical
	release  record
}

// New returns a Ledger. It does not connect to anything; [Ledger.Run] does.
func New(cfg Config) (*Ledger, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	log := cfg.Logger.With("topic", cfg.Topic)
	l := &Ledger{
		cfg:     cfg,
		self:    cfg.Instance + "/" + uuid.NewString()[:8],
		reading: outage.New(log, "reading the ledger", cfg.remedy),
		log:     log,
		ready:   make(chan struct{}),
		refused: make(chan struct{}),
		orphans: make(chan orphan, 1024),
	}
	// Clocks may run at rates that differ by a percent.
	lease := (cfg.StartBy + cfg.CallTimeout + cfg.Settle) * 101 / 100
	for n := range cfg.Partitions {
		p := newPartition(n, lease, cfg.Charged)
		p.fold.horizon = cfg.Horizon
		l.partitions = append(l.partitions, p)
		l.stored = append(l.stored, newReadAhead())
	}
	l.behind.Store(int32(cfg.Partitions)) //nolint:gosec // a partition count
	l.metrics = newMetrics(cfg.Registerer)
	l.appender = producer.NewAppender(producer.AppenderConfig{
		Client: cfg.Client, Topic: cfg.Topic, Principal: cfg.Principal, Logger: cfg.Logger, Failed: l.metrics.appendFailures.Inc,
	})
	exposeStatus(cfg.Registerer, l)
	return l, nil
}

// Run reads the ledger until ctx ends, and sees to its housekeeping. It returns
// an error only if the ledger cannot be used as it is, which only a person can
// change.
func (l *Ledger) Run(ctx context.Context) error {
	l.started = time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range l.partitions {
		g.Go(func() error { return l.tail(ctx, p) })
	}
	g.Go(func() error {
		l.releaseOrphans(ctx)
		return nil
	})
	g.Go(func() error {
		l.watchTopic(ctx)
		return nil
	})
	err := g.Wait()
	if err != nil {
		l.refusal = err
		close(l.refused)
	}
	// What was handed over last may still be under way. It ends by itself.
	waiting, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
	defer cancel()
	if err := l.appender.Wait(waiting); err != nil {
		l.log.Warn("records were still being appended at the end", "err", err)
	}
	return err
}

// flushLimit is how long Run waits at its end for requests that are under way.
const flushLimit = 10 * time.Second

// Ready reports whether the ledger has been read up to where it ended when that
// began, and if not, why.
func (l *Ledger) Ready() (bool, string) {
	select {
	case <-l.ready:
		return true, ""
	case <-l.refused:
		return false, l.refusal.Error()
	default:
		why := []string{fmt.Sprintf("reading the ledger: %d of %d partitions to go", l.behind.Load(), l.cfg.Partitions)}
		for _, fault := range []string{l.reading.Fault(), l.appender.Fault()} { // an empty partition is written to before it is read
			if fault != "" {
				why = append(why, fault)
			}
		}
		return false, strings.Join(why, ": ")
	}
}

// WaitReady blocks until the ledger is ready, or cannot become it, or ctx ends.
func (l *Ledger) WaitReady(ctx context.Context) error {
	select {
	case <-l.ready:
		return nil
	case <-l.refused:
		return l.refusal
	case <-ctx.Done():
		return fmt.Errorf("ledger: wait until %s is read: %w", l.cfg.Topic, context.Cause(ctx))
	}
}

// CatchUp blocks until everything has been read that was in the ledger when it
// was called. It tries for as long as ctx lives.
func (l *Ledger) CatchUp(ctx context.Context) error {
	if err := l.WaitReady(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range l.partitions {
		g.Go(func() error { return l.catchUp(ctx, p) })
	}
	return g.Wait()
}

// Refresh blocks until everything has been read that the ledger held about the
// shipment when it was called. It tries for as long as ctx lives.
func (l *Ledger) Refresh(ctx context.Context, s *schema.Shipment) error {
	return l.catchUp(ctx, l.partition(s))
}

// catchUp blocks until a partition has been read up to its present end.
func (l *Ledger) catchUp(ctx context.Context, p *partition) error {
	// Only a leader answers with the end of the log; a follower that answers a
	// fetch may be behind.
	end, err := l.look(ctx, p)
	for backoff := minBackoff; err != nil; backoff = min(2*backoff, maxBackoff) {
		sleep(ctx, backoff)
		if ctx.Err() != nil {
			return fmt.Errorf("ledger: catch up with %s/%d: %w: %w", l.cfg.Topic, p.n, context.Cause(ctx), err)
		}
		end, err = l.look(ctx, p)
	}
	return l.readUpTo(ctx, p, end)
}

// look inspects a partition and returns where it ended at some time after the
// call. One inspection serves all who ask before it begins.
func (l *Ledger) look(ctx context.Context, p *partition) (int64, error) {
	asked := p.looks.Load()
	select {
	case p.looking <- struct{}{}:
		defer func() { <-p.looking }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if p.seen.look > asked {
		return p.seen.end, nil
	}
	n := p.looks.Add(1)
	end, err := l.inspect(ctx, p)
	if err == nil {
		p.seen.look, p.seen.end = n, end
	}
	return end, err
}

// readUpTo waits until an offset is the next to be read, or lies behind.
func (l *Ledger) readUpTo(ctx context.Context, p *partition, end int64) error {
	for {
		next, moved := p.position()
		if next >= end {
			return nil
		}
		select {
		case <-moved:
		case <-l.refused:
			return l.refusal
		case <-ctx.Done():
			return fmt.Errorf("ledger: wait until %s/%d is read: %w", l.cfg.Topic, p.n, context.Cause(ctx))
		}
	}
}

// partition returns the partition of a shipment.
func (l *Ledger) partition(s *schema.Shipment) *partition {
	return l.partitions[s.Order().LedgerPartition(len(l.partitions))]
}

// standing tells where a shipment stands, and at which offset the outcome is if
// it is settled. The caller holds the partition's mutex.
func (l *Ledger) standing(p *partition, key schema.Key, event schema.EventHash) (schema.Standing, int64) {
	st, offset, known := p.fold.standing(key, event, time.Now())
	st.Mine = st.Holder != "" && strings.HasPrefix(st.Holder, l.self+"/")
	if !known {
		st.LostBefore = p.lostBefore
	}
	return st, offset
}

// Look tells where the shipment stands for the packed event.
func (l *Ledger) Look(s *schema.Shipment, event string) schema.Standing {
	p := l.partition(s)
	key, hash := s.Key(), schema.HashEvent(eventID(event))
	p.mu.Lock()
	defer p.mu.Unlock()
	st, _ := l.standing(p, key, hash)
	return st
}

// Wait blocks until the shipment stands differently for the packed event than
// seen, or may be taken over earlier, or until the time until. It returns the
// context's error if that ends first.
func (l *Ledger) Wait(ctx context.Context, s *schema.Shipment, event string, seen schema.Standing, until time.Time) error {
	p := l.partition(s)
	key, hash := s.Key(), schema.HashEvent(eventID(event))
	for {
		p.mu.Lock()
		st, _ := l.standing(p, key, hash)
		now := time.Now()
		if st.State != seen.State || st.Holder != seen.Holder || st.Round != seen.Round || st.FreeAt.Before(seen.FreeAt) || !now.Before(until) {
			p.mu.Unlock()
			return nil
		}
		changed, unwatch := p.watch(key)
		p.mu.Unlock()
		// A shipment that looks held because it has failed without an answer
		// becomes open by itself.
		wait := until.Sub(now)
		if free := st.FreeAt.Sub(now); free > 0 {
			wait = min(wait, free)
		}
		err := await(ctx, changed, wait)
		unwatch()
		if err != nil {
			return fmt.Errorf("ledger: wait for %s: %w", s.TID, err)
		}
	}
}

// await waits until a channel is closed or a time has passed. It returns the
// cause of the end of ctx if that comes first.
func await(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-changed:
		return nil
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Claim appends an intent, or, if prev is not empty, a takeover from the attempt
// prev, waits until it has read its own record, and reports whether this process
// now holds the shipment. Without an error and without the hold somebody else
// was first, or the shipment stands differently than it did. A takeover keeps what
// the previous attempt was answered, in words, "" if nobody knows.
//
// A hold whose StartBy has passed without a call should be released and claimed
// anew: a takeover would put the shipment in doubt. So a claim is given up at that
// time, too: who waits for a partition that takes nothing may hold up those whose
// partition does.
//
// If it is given up, or ctx ends first, the attempt may be in the log all the same. No call was made
// under it, so it is released in the background; should that fail, the other
// replicas wait as for any attempt they hear no more of.
func (l *Ledger) Claim(ctx context.Context, s *schema.Shipment, event, prev, answer string) (schema.Hold, bool, error) {
	event = eventID(event)
	p := l.partition(s)
	key, hash := s.Key(), schema.HashEvent(event)
	if l.closed.Load() {
		return schema.Hold{}, false, fmt.Errorf("ledger: claim %s: the ledger is closed", s.TID)
	}

	p.mu.Lock()
	st, _ := l.standing(p, key, hash)
	p.mu.Unlock()
	r := record{Kind: kindIntent, Attempt: l.newAttempt(), Event: event, Round: st.Round, Doubt: st.Doubt}
	if prev == "" && st.State != schema.StateOpen || prev != "" && (st.State != schema.StateHeld || st.Holder != prev) {
		return schema.Hold{}, false, nil
	}
	if prev != "" {
		if wait := time.Until(st.FreeAt); !st.Mine && wait > 0 {
			return schema.Hold{}, false, fmt.Errorf("ledger: claim %s: attempt %s may take effect for another %s", s.TID, prev, wait)
		}
		r.Kind, r.Prev, r.Why = kindTakeover, prev, answer
	}

	p.claim(r.Attempt)
	h := schema.Hold{Attempt: r.Attempt, StartBy: time.Now().Add(l.cfg.StartBy)}
	writing, cancel := context.WithDeadlineCause(ctx, h.StartBy, errTooLate)
	defer cancel()
	if err := l.write(writing, p, s, &r); err != nil {
		l.abandon(orphan{p, s.Canonical(), record{Kind: kindRelease, Attempt: r.Attempt, Why: "the claim was given up"}}, errors.Is(err, producer.ErrMaybeAppended))
		return schema.Hold{}, false, fmt.Errorf("ledger: claim %s: %w", s.TID, err)
	}
	defer p.claimed(r.Attempt)
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.fold.open[key]
	if o == nil || o.holder != r.Attempt {
		return schema.Hold{}, false, nil
	}
	if prev != "" {
		l.metrics.takeovers.Inc()
	}
	h.Round, h.Prior, h.Doubt = o.round, o.attempts, o.doubt
	return h, true, nil
}

// errTooLate is why a claim is given up although its caller is still there.
var errTooLate = errors.New("no call could begin in time")

// Release says that the hold's attempt has certainly reached nothing, so that
// the shipment is open again. It keeps what the attempt has cost all the same. If
// ctx ends first this goes on in the background.
func (l *Ledger) Release(ctx context.Context, s *schema.Shipment, h schema.Hold, why string, paid schema.Charge) error {
	p := l.partition(s)
	p.disown(h.Attempt)
	r := record{Kind: kindRelease, Attempt: h.Attempt, Why: why, Account: paid.Account, Points: paid.Points}
	if err := l.write(ctx, p, s, &r); err != nil {
		l.abandon(orphan{p, s.Canonical(), r}, true)
		return fmt.Errorf("ledger: release %s: %w", s.TID, err)
	}
	return nil
}

// Settle appends the outcome of a hold and waits until it has read it. The
// outcome that counts is the one that [Ledger.Stored] returns afterwards; it may
// be another's.
//
// A failure may be settled while its call may still take effect: the next round
// of the shipment does not begin before that has become impossible.
func (l *Ledger) Settle(ctx context.Context, s *schema.Shipment, event string, h schema.Hold, o schema.Settlement) error {
	if want := schema.ResultID(s, h.Round, o.Verdict, o.At); o.ResultID != want {
		return fmt.Errorf("ledger: settle %s: result id %s is not that of round %d, %s", s.TID, o.ResultID, h.Round, want)
	}
	if o.Verdict == schema.Failed && h.Doubt && !o.MaybeShipped {
		return fmt.Errorf("ledger: settle %s: a failure after an attempt with an unknown outcome must say maybe_shipped", s.TID)
	}
	r, err := outcomeRecord(h.Attempt, eventID(event), h.Round, &o.Outcome)
	if err != nil {
		return err
	}
	r.Account, r.Points = o.Paid.Account, o.Paid.Points
	r.Unanswered = o.Verdict == schema.Failed && o.MaybeShipped && !answered(&o.Outcome)
	if o.Verdict == schema.Shipped {
		r.Group = o.Group
	}
	if err := l.write(ctx, l.partition(s), s, r); err != nil {
		return fmt.Errorf("ledger: settle %s: %w", s.TID, err)
	}
	return nil
}

// Refuse settles a shipment that needs no call: it appends an intent and the
// outcome, next to each other. Like Settle it may lose; it does not even try if
// the outcome was made for another round than the shipment is in.
func (l *Ledger) Refuse(ctx context.Context, s *schema.Shipment, event string, o schema.Outcome) error {
	event = eventID(event)
	p := l.partition(s)
	key, hash := s.Key(), schema.HashEvent(event)
	p.mu.Lock()
	st, _ := l.standing(p, key, hash)
	p.mu.Unlock()
	if st.State != schema.StateOpen || o.ResultID != schema.ResultID(s, st.Round, o.Verdict, o.At) {
		return nil
	}
	if st.Doubt && !o.MaybeShipped {
		return fmt.Errorf("ledger: refuse %s: a failure after an attempt with an unknown outcome must say maybe_shipped", s.TID)
	}
	attempt := l.newAttempt()
	intent := &record{Kind: kindIntent, Attempt: attempt, Event: event, Round: st.Round, Doubt: st.Doubt}
	outcome, err := outcomeRecord(attempt, event, st.Round, &o)
	if err != nil {
		return err
	}
	outcome.Uncalled = true
	p.disown(attempt)
	if err := l.write(ctx, p, s, intent, outcome); err != nil {
		if !errors.Is(err, producer.ErrMaybeAppended) {
			p.never(attempt)
		}
		return fmt.Errorf("ledger: refuse %s: %w", s.TID, err)
	}
	return nil
}

// answered reports whether the event of an outcome shows an answer of the API.
func answered(o *schema.Outcome) bool {
	var event struct {
		Upstream *struct{} `json:"upstream"`
	}
	return json.Unmarshal(o.Event, &event) == nil && event.Upstream != nil
}

func outcomeRecord(attempt, event string, round int, o *schema.Outcome) (*record, error) {
	body, err := encodeOutcome(o)
	if err != nil {
		return nil, err
	}
	return &record{Kind: kindOutcome, Attempt: attempt, Event: event, Round: round, Doubt: o.MaybeShipped, Outcome: body}, nil
}

func (l *Ledger) newAttempt() string {
	return fmt.Sprintf("%s/%d", l.self, l.made.Add(1))
}

// write appends records of a shipment and waits until they have been read back.
func (l *Ledger) write(ctx context.Context, p *partition, s *schema.Shipment, records ...*record) error {
	key := []byte(s.Canonical())
	entries := make([]producer.Entry, len(records))
	for i, r := range records {
		value, err := r.encode()
		if err != nil {
			return err
		}
		entries[i] = producer.Entry{Key: key, Value: value}
	}
	begin := time.Now()
	read := p.reading()
	first, err := l.appender.Append(ctx, p.n, entries...)
	if err != nil {
		return err
	}
	if p.cutOff(read, first) {
		l.damaged(p, time.Now(), fmt.Sprintf("a record was appended to partition %d at offset %d although %d had been read: the log was cut off", p.n, first, read.next-1))
		p.lose()
		return fmt.Errorf("ledger: append to %s/%d: %w: the log was cut off", l.cfg.Topic, p.n, producer.ErrMaybeAppended)
	}
	appended := time.Now()
	l.metrics.append.Observe(appended.Sub(begin).Seconds())
	if err := l.readUpTo(ctx, p, first+int64(len(records))); err != nil {
		return fmt.Errorf("%w: %w", producer.ErrMaybeAppended, err)
	}
	l.metrics.readback.Observe(time.Since(appended).Seconds())
	return nil
}

// abandon gives an attempt up that no call is made under. If it may be in the
// log it is released in the background.
func (l *Ledger) abandon(o orphan, maybeAppended bool) {
	if !maybeAppended {
		o.p.never(o.release.Attempt)
		return
	}
	o.p.disown(o.release.Attempt)
	select {
	case l.orphans <- o:
	default: // the lease of the attempt ends by itself
	}
}

// releaseOrphans releases what was abandoned, until ctx ends. Each claim that meets a
// partition which takes nothing leaves an orphan, so there is a limit.
func (l *Ledger) releaseOrphans(ctx context.Context) {
	const limit = 10 * time.Minute
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case o := <-l.orphans:
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, limit)
				defer cancel()
				value, err := o.release.encode()
				if err == nil {
					_, err = l.appender.Append(ctx, o.p.n, producer.Entry{Key: []byte(o.shipment), Value: value})
				}
				if err != nil {
					l.log.Debug("attempt not released", "attempt", o.release.Attempt, "err", err)
				}
			})
		case <-ctx.Done():
			return
		}
	}
}

// renewLast appends the meta record again at the end of a process, so that it does
// not expire before the last records do: after a standstill of nearly a horizon the
// log would look as if its beginning were lost.
func (l *Ledger) renewLast(ctx context.Context, p *partition) error {
	p.mu.Lock()
	known, lost := p.metas, p.lost
	p.mu.Unlock()
	if lost || known.epoch == "" || known.offset == gone || time.Since(known.newest) < l.cfg.Horizon/100 {
		return nil
	}
	_, err := l.appendMeta(ctx, p, known.newest, known.epoch)
	return err
}

// Close says good-bye in every partition: no attempt of this process is open,
// but for those that it still holds. Nothing can be claimed afterwards. A process
// that has not read the ledger has nothing to say.
func (l *Ledger) Close(ctx context.Context) error {
	l.closed.Store(true)
	if ready, _ := l.Ready(); !ready {
		// It has attempted nothing, and an empty partition must begin with a
		// meta record.
		return l.appender.Wait(ctx)
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, p := range l.partitions {
		g.Go(func() error {
			r := record{Kind: kindBye, Incarnation: l.self, Open: p.openAttempts(l.self)}
			value, err := r.encode()
			if err != nil {
				return err
			}
			if _, err := l.appender.Append(gctx, p.n, producer.Entry{Value: value}); err != nil {
				return fmt.Errorf("ledger: say good-bye: %w", err)
			}
			return l.renewLast(gctx, p)
		})
	}
	return errors.Join(g.Wait(), l.appender.Wait(ctx))
}
