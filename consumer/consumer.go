package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Consumer is a member of the group that reads the packed events. See the
// package comment for what it promises. Its methods are safe for concurrent
// use.
type Consumer struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	blocker Blocker // the handler, if it is one
	single  *singleHolder
	spread  *spreadHolder
	lanes   *lanes
	gate    Gate
	pulse   pulse

	// bootstrap has the brokers in the order in which the group member asks
	// them for its coordinator. Only the member uses it.
	bootstrap []string

	// added says of the partitions that were met without a committed offset
	// whether they are new ones of a group that has begun before. Only the one
	// who attends a session uses it.
	added map[int]bool

	loops      sync.WaitGroup // of the tenures
	lastCommit signal         // a generation has ended
	lookAgain  signal         // a generation has begun

	mu       sync.Mutex
	session  *session        // guarded by mu; the present one, or the last
	held     map[int]*tenure // guarded by mu; by partition
	stopping bool            // guarded by mu; no tenure begins any more
	leaveBy  time.Time       // guarded by mu; when the group is left at the latest, zero before a stop
	role     Role            // guarded by mu; of the session
	reason   string          // guarded by mu
	takenAt  time.Time       // guarded by mu; when this member last got partitions that were not its own
	lostAt   time.Time       // guarded by mu; when the session ended, zero while it lasts
	ends     map[int]bounds  // guarded by mu; by partition, a few seconds old
	foreign  map[int]int64   // guarded by mu; committed offsets of partitions not held
	members  []Member        // guarded by mu; of the group, a few seconds old

	// awayKinds are the reasons for not being a member that have been logged
	// since it was one; guarded by mu.
	awayKinds map[string]struct{}
}

// New returns a consumer that does nothing until it runs.
func New(cfg Config) (*Consumer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	c := &Consumer{
		cfg: cfg, log: cfg.Logger, single: newSingleHolder(cfg.Name), spread: newSpreadHolder(cfg.Shares),
		lastCommit: newSignal(), lookAgain: newSignal(),
		bootstrap: slices.Clone(cfg.Brokers),
		held:      make(map[int]*tenure), ends: make(map[int]bounds), added: make(map[int]bool),
		role: RoleJoining, reason: "starting",
	}
	c.blocker, _ = cfg.Handler.(Blocker)
	m, err := newMetrics(cfg.Registerer, cfg.Topic, c.gate.IsOpen)
	if err != nil {
		return nil, fmt.Errorf("consumer: register metrics: %w", err)
	}
	c.metrics = m
	c.lanes = newLanes(func(it *item) { it.tenure.serve(it) }, m.crossed.Inc)
	return c, nil
}

// Run reads until the context ends, and may be called once. When the context
// ends, the gate closes at once and no more records are read; handlers that wait
// are told to give up, those with something under way are waited for, what is
// settled is committed, and the group is left. Run returns an error if handlers
// have not returned within the stop timeout. It does not wait for a broker that
// does not answer for longer than a few seconds, and not beyond the leave
// timeout.
func (c *Consumer) Run(ctx context.Context) error {
	// Membership and commits outlive ctx: what is under way when the process
	// is told to stop is finished and committed as a member.
	work, leave := context.WithCancelCause(context.WithoutCancel(ctx))
	defer leave(nil)
	var member, upkeep sync.WaitGroup
	member.Go(func() { c.member(work, ctx) })
	upkeepCtx, endUpkeep := context.WithCancel(work)
	defer endUpkeep()
	commits, cutOff := context.WithCancel(work)
	defer cutOff()
	upkeep.Go(func() { c.commitLoop(upkeepCtx, commits) })
	upkeep.Go(func() { c.watch(upkeepCtx) })
	upkeep.Go(func() { c.keepAwake(upkeepCtx) })

	<-ctx.Done()
	end := time.Now().Add(c.cfg.StopTimeout)
	c.mu.Lock()
	c.leaveBy = end.Add(c.cfg.LeaveTimeout)
	c.mu.Unlock()
	err := c.drain(work, end)
	endUpkeep()
	commitBy := end.Add(c.cfg.LeaveTimeout / 2)
	defer time.AfterFunc(time.Until(commitBy), cutOff).Stop()
	upkeep.Wait()
	c.commitRest(work, commitBy)
	leave(errStopped)
	member.Wait()
	return err
}

// drain ends all tenures and waits for their handlers, until the time end.
func (c *Consumer) drain(ctx context.Context, end time.Time) error {
	c.gate.retire()
	c.mu.Lock()
	c.stopping = true
	for _, t := range c.held {
		t.end(errStopped)
	}
	c.mu.Unlock()
	c.loops.Wait()
	c.log.Info("stopping, waiting for orders under way", "lanes", c.lanes.active())
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	if !c.lanes.wait(ctx) {
		return fmt.Errorf("consumer: stop: %d orders were still under way after %s", c.lanes.active(), c.cfg.StopTimeout)
	}
	return nil
}

// commitRest commits what the drain has settled, also if a rebalance comes in
// between. It tries for a few seconds, until the time end at most.
func (c *Consumer) commitRest(ctx context.Context, end time.Time) {
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, lastCommitLimit)
	defer cancel()
	tr := c.trouble(c.log, requestLastCommit)
	for c.uncommitted() {
		err := errors.New("consumer: no generation to commit in")
		if s := c.current(); s != nil {
			err = c.commit(ctx, s)
		}
		if err != nil {
			tr.note(err)
		}
		if c.uncommitted() && !tr.pause(ctx) {
			c.log.Warn("settled records not committed, they will be read again")
			return
		}
	}
}

// uncommitted reports whether a tenure has settled more than is committed.
func (c *Consumer) uncommitted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.held {
		t.mu.Lock()
		behind := t.marks.mark() > t.commits.acked
		t.mu.Unlock()
		if behind {
			return true
		}
	}
	return false
}

// blocked asks the handler whether an order is blocked.
func (c *Consumer) blocked(it *item) (<-chan struct{}, bool) {
	if c.blocker == nil || it.packed == nil {
		return nil, false
	}
	return c.blocker.Blocked(it.packed)
}
