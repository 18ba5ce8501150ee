package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"golang.org/x/time/rate"
)

// The causes with which a session's context ends.
var (
	errGenerationEnded = errors.New("consumer: the generation has ended")
	errFenced          = errors.New("consumer: the group has gone on without this member")
	errFrozen          = errors.New("consumer: the process was frozen, and the group may have gone on without it")
)

// session is the membership in one generation of the group.
type session struct {
	generation int32
	member     string
	partitions []int // of the topic, that the generation gives to this member

	// ctx ends when the generation ends. It is here because it belongs to no
	// single call: it is the generation.
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// member keeps the process in the group until the context ends. stopping is
// over as soon as the process is told to stop; it only keeps a member from
// joining that has not joined yet.
func (c *Consumer) member(ctx, stopping context.Context) {
	for c.awaitTopic(stopping) {
		c.join(ctx)
		if !sleep(ctx, joinBackoff) {
			return
		}
	}
}

// awaitTopic blocks until the topic exists and returns false if the context
// ends first. A group on a topic that does not exist goes through a hundred
// generations a second.
func (c *Consumer) awaitTopic(ctx context.Context) bool {
	for {
		n, err := c.partitions(ctx)
		switch {
		case ctx.Err() != nil:
			return false
		case err != nil:
			c.setAway("kafka does not answer", err)
		case n == 0:
			c.setAway(fmt.Sprintf("topic %s does not exist; create it with: packship topics create", c.cfg.Topic), nil)
		default:
			c.setAway("joining the group", nil)
			return true
		}
		if !sleep(ctx, topicWatch) {
			return false
		}
	}
}

// join joins the group and goes through its generations until the context ends,
// the topic is gone, or the group cannot be joined.
func (c *Consumer) join(ctx context.Context) {
	group, err := kafka.NewConsumerGroup(c.groupConfig())
	if err != nil {
		// Validate has seen to it that this does not happen.
		c.log.Error("group configuration refused", "err", err)
		return
	}
	var attending sync.WaitGroup
	defer attending.Wait()
	defer c.leave(group)
	// The group waits for Next before it goes on, so nothing else happens in
	// this loop; the pace only shows when generations follow each other in a
	// storm.
	pace := rate.NewLimiter(rate.Every(joinBackoff), joinBurst)
	for pace.Wait(ctx) == nil {
		gen, err := group.Next(ctx)
		switch {
		case ctx.Err() != nil || errors.Is(err, kafka.ErrGroupClosed):
			return
		case err != nil:
			c.setAway("joining the group", err)
			if errors.Is(err, kafka.RebalanceInProgress) {
				continue // still a member
			}
			// The group would begin anew anyway, by asking the same broker
			// where its coordinator is. That broker may be one that hangs.
			c.bootstrap = append(c.bootstrap[1:], c.bootstrap[0])
			return
		}
		attending.Wait() // the session before this one, whose context has ended
		s := newSession(ctx, gen, c.cfg.Topic)
		gen.Start(func(generation context.Context) { c.supervise(generation, s) })
		attending.Go(func() { c.attend(s) })
		if len(s.partitions) == 0 && c.topicGone(ctx) {
			return
		}
	}
}

func newSession(ctx context.Context, gen *kafka.Generation, topic string) *session {
	s := &session{generation: gen.ID, member: gen.MemberID}
	for _, a := range gen.Assignments[topic] {
		s.partitions = append(s.partitions, a.ID)
	}
	slices.Sort(s.partitions)
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	return s
}

// fenced reports whether the session has ended because the group no longer counts
// this member, or may not.
func (s *session) fenced() bool {
	why := context.Cause(s.ctx)
	return errors.Is(why, errFenced) || errors.Is(why, errFrozen)
}

// topicGone reports whether the topic has ceased to exist.
func (c *Consumer) topicGone(ctx context.Context) bool {
	n, err := c.partitions(ctx)
	return err == nil && n == 0
}

func (c *Consumer) groupConfig() kafka.ConsumerGroupConfig {
	// While members of both kinds are there, as in a rolling restart, Kafka
	// takes what all of them offer.
	balancers := []kafka.GroupBalancer{c.single}
	if c.cfg.Shares > 1 {
		balancers = []kafka.GroupBalancer{c.spread, c.single}
	}
	start := kafka.FirstOffset
	if c.cfg.StartAtEnd {
		start = kafka.LastOffset
	}
	return kafka.ConsumerGroupConfig{
		ID: c.cfg.GroupID, Brokers: slices.Clone(c.bootstrap), Dialer: c.cfg.Dialer, Topics: []string{c.cfg.Topic},
		GroupBalancers:    balancers,
		HeartbeatInterval: c.cfg.heartbeat(), Timeout: c.cfg.groupTimeout(),
		SessionTimeout: c.cfg.SessionTimeout, RebalanceTimeout: c.cfg.RebalanceTimeout,
		JoinGroupBackoff: joinBackoff, StartOffset: start,
		WatchPartitionChanges: true, PartitionWatchInterval: partitionWatch,
		ErrorLogger: kafka.LoggerFunc(func(format string, args ...any) {
			c.log.Debug("group member", "detail", fmt.Sprintf(format, args...))
		}),
	}
}

// supervise is the only function that is given to the generation. When the
// generation ends, it closes the gate and returns at once: the group rejoins
// only after that, and nothing that is under way may hold it up. It ends the
// generation itself when a commit has shown that the group no longer counts
// this member, or the process was frozen, but not when the member leaves: the
// group would join again before it is told to close.
func (c *Consumer) supervise(generation context.Context, s *session) {
	select {
	case <-generation.Done():
		s.cancel(errGenerationEnded)
	case <-s.ctx.Done():
	}
	c.gate.shut(s.ctx) //nolint:contextcheck // the session's context is what the gate was opened for
	c.setRejoining(s)
	c.lastCommit.raise()
	if !s.fenced() {
		<-generation.Done()
	}
}

// attend takes up a generation: what stays goes on, what is gone is given up,
// what is new begins, and then the gate opens.
func (c *Consumer) attend(s *session) {
	c.metrics.rebalances.Inc()
	c.metrics.generation.Set(float64(s.generation))
	c.single.note(s.generation, len(s.partitions) > 0)
	c.spread.note(s.generation, s.partitions)
	if len(s.partitions) > 0 && c.cfg.Share != nil {
		c.cfg.Share(shareOf(s.partitions))
	}
	taken := c.arrive(s)
	c.log.Info("generation joined", "generation", s.generation, "member", s.member,
		"partitions", len(s.partitions), "kept", len(s.partitions)-len(taken))
	c.lookAgain.raise()
	if len(s.partitions) == 0 {
		return
	}
	var opening sync.WaitGroup
	defer opening.Wait()
	tr := c.trouble(c.log, requestTakeUp)
	for missing, opened := s.partitions, false; ; {
		var err error
		missing, err = c.takeUp(s, missing)
		if !opened && len(missing) < len(s.partitions) {
			// One partition without a leader must not hold up the others.
			opened = true
			opening.Go(func() { c.openGate(s) })
		}
		switch {
		case err == nil:
			tr.over()
			return
		case s.ctx.Err() != nil:
			return
		}
		if !opened {
			c.setReason(s, c.cfg.named(err).Error())
		}
		tr.note(err)
		if !tr.pause(s.ctx) {
			return
		}
	}
}

// openGate opens the gate once this member has read what others wrote to the
// ledger, and, if it has partitions that may have been another's a moment ago,
// one window of the rate limit has passed.
func (c *Consumer) openGate(s *session) {
	tr := c.trouble(c.log, requestCatchUp)
	for c.cfg.CatchUp != nil {
		c.setReason(s, "waiting for the ledger")
		err := c.cfg.CatchUp(s.ctx)
		if err == nil {
			tr.over()
			break
		}
		if s.ctx.Err() != nil {
			return
		}
		c.setReason(s, "waiting for the ledger: "+err.Error())
		tr.note(err)
		if !tr.pause(s.ctx) {
			return
		}
	}
	if wait := c.handoverLeft(); wait > 0 {
		c.setReason(s, "handover: the calls of the holder before may still count")
		if !sleep(s.ctx, wait) {
			return
		}
	}
	if c.gate.open(s.ctx) {
		c.setReason(s, "")
		c.log.Info("gate opened", "generation", s.generation)
	}
}

// arrive makes a session the present one. Tenures of partitions that this
// member has not held without interruption end; it returns the partitions that
// are new to it.
func (c *Consumer) arrive(s *session) (taken []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session, c.role, c.reason = s, RoleActive, "taking up partitions"
	c.metrics.assigned.Set(float64(len(s.partitions)))
	if len(s.partitions) == 0 {
		c.role, c.reason = RoleStandby, ""
	}
	c.lostAt, c.awayKinds = time.Time{}, nil
	if s.ctx.Err() != nil {
		c.lostAt = time.Now() // it is over already
	}
	for p, t := range c.held {
		if !slices.Contains(s.partitions, p) || !t.continues(s) {
			c.giveUp(t, errRevoked)
		}
	}
	for _, p := range s.partitions {
		if c.held[p] == nil {
			taken = append(taken, p)
		}
	}
	if len(taken) > 0 {
		c.takenAt = time.Now()
	}
	return taken
}

// continues reports whether the session's generation follows the tenure's last
// one directly, and notes it if so. A member that was cut off and has joined
// again may get the number of its old generation. If a generation lies between,
// another member may have held the partition in it.
func (t *tenure) continues(s *session) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d := s.generation - t.commits.generation; d != 0 && d != 1 {
		return false
	}
	t.commits.generation = s.generation
	return true
}

// giveUp ends a tenure. The caller holds c.mu.
func (c *Consumer) giveUp(t *tenure, cause error) {
	t.end(cause)
	delete(c.held, t.partition)
	c.metrics.forget(c.cfg.Topic, t.partition)
	c.log.Info("partition given up", "partition", t.partition, "reason", cause)
}

// takeUp makes the partitions of a session ready: their committed offsets are
// looked up, tenures go on or begin. It returns those that are not ready yet,
// with the error that stands in the way.
func (c *Consumer) takeUp(s *session, partitions []int) ([]int, error) {
	committed, err := c.committed(s.ctx, partitions)
	if err != nil {
		return partitions, err
	}
	var unset []int
	for _, p := range partitions {
		switch at := committed[p]; {
		case c.resume(s, p, at.offset):
		case at.offset == noOffset:
			unset = append(unset, p)
		default:
			if c.cfg.Resume != nil {
				c.cfg.Resume(at.metadata)
			}
			c.begin(s, p, at.offset)
		}
	}
	if len(unset) == 0 {
		return nil, nil
	}
	return c.pin(s, unset)
}

// pin gives partitions without a committed offset one, so that the answer to
// where they begin is given once, and begins their tenures. It returns those
// that have none yet.
func (c *Consumer) pin(s *session, partitions []int) ([]int, error) {
	ends, err := c.bounds(s.ctx, partitions)
	if len(ends) == 0 {
		return partitions, err
	}
	if failed := c.judgeUnset(s, partitions); failed != nil {
		return partitions, failed
	}
	starts := make(map[int]int64, len(ends))
	for p, b := range ends {
		starts[p] = b.first
		if c.cfg.StartAtEnd && !c.added[p] {
			starts[p] = b.last
		}
	}
	results, failed := c.commitOffsets(s.ctx, s, starts)
	if failed != nil {
		return partitions, failed
	}
	var unset []int
	for _, p := range partitions {
		start, ok := starts[p]
		switch {
		case !ok:
			unset = append(unset, p)
		case results[p] != nil:
			unset, err = append(unset, p), results[p]
		default:
			c.begin(s, p, start)
		}
	}
	return unset, err
}

// judgeUnset finds out which of the partitions without a committed offset were
// added to the topic after the group had begun. They begin at their beginning even
// if the group began at the end: what stands in them came later. Partitions are
// added at the end, and a group commits for all at its beginning. But one may lack
// a leader then, so this is judged when a partition is met for the first time.
func (c *Consumer) judgeUnset(s *session, partitions []int) error {
	if !c.cfg.StartAtEnd {
		return nil
	}
	unknown := slices.DeleteFunc(slices.Clone(partitions), func(p int) bool { _, known := c.added[p]; return known })
	if len(unknown) == 0 {
		return nil
	}
	n, err := c.partitions(s.ctx)
	if err != nil {
		return err
	}
	n = max(n, slices.Max(partitions)+1)
	all := make([]int, n)
	for p := range all {
		all[p] = p
	}
	committed, err := c.committed(s.ctx, all)
	if err != nil {
		return err
	}
	set := make([]bool, n)
	for p := range set {
		set[p] = committed[p].offset != noOffset
	}
	added := addedLater(set, shareOf(s.partitions).Of)
	for _, p := range unknown {
		c.added[p] = added
	}
	return nil
}

// addedLater judges by which partitions have a committed offset whether those that
// have none are new ones. Members that share the partitions commit one after the
// other: at the beginning of a group that leaves a gap among the first partitions,
// of which each member has one.
func addedLater(set []bool, members int) bool {
	first := slices.Index(set, false)
	return members > 1 && first >= members || first > 0 && !slices.Contains(set[first:], true)
}

// resume lets a tenure go on under a new generation. It reports false if there
// is none, or if the committed offset is not where the tenure left it: then
// somebody else was here, and the tenure ends.
func (c *Consumer) resume(s *session, partition int, committed int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.held[partition]
	if t == nil || c.session != s {
		return t != nil
	}
	t.mu.Lock()
	ours := t.commits.acked <= committed && committed <= t.commits.sent
	if ours {
		t.commits.session = s
	}
	t.mu.Unlock()
	if !ours {
		c.takenAt = time.Now()
		c.giveUp(t, errMoved)
	}
	return ours
}

// begin starts a tenure at a committed offset.
func (c *Consumer) begin(s *session, partition int, start int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping || c.session != s || s.ctx.Err() != nil || c.held[partition] != nil {
		return
	}
	t := newTenure(c, partition, start)
	t.commits.session, t.commits.generation = s, s.generation
	c.start(t)
	c.log.Info("partition taken up", "partition", partition, "offset", start)
}

// restart replaces a tenure by one that begins at another offset, which is
// committed as soon as possible.
func (c *Consumer) restart(t *tenure, start int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping || c.held[t.partition] != t {
		return
	}
	c.giveUp(t, errLogReset)
	next := newTenure(c, t.partition, start)
	t.mu.Lock()
	next.commits.session, next.commits.generation = t.commits.session, t.commits.generation
	t.mu.Unlock()
	next.commits.acked = noOffset
	c.start(next)
}

// start puts a tenure to work. The caller holds c.mu.
func (c *Consumer) start(t *tenure) {
	c.held[t.partition] = t
	c.metrics.begin(c.cfg.Topic, t.partition)
	c.loops.Go(t.fetch)
	if c.blocker != nil {
		c.loops.Go(t.recall)
	}
}

// handoverLeft returns how long this member must still wait with its calls. The
// wait belongs to the partitions and not to the session: a standby that joins in
// the middle of it must not cut it short.
func (c *Consumer) handoverLeft() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg.Handover - time.Since(c.takenAt)
}

// leave closes the membership. The group is told, unless it does not answer in
// time; the group's own goroutine is then left to its deadlines.
func (c *Consumer) leave(group *kafka.ConsumerGroup) {
	closed := make(chan error, 1)
	go func() { closed <- group.Close() }()
	limit := leaveLimit
	c.mu.Lock()
	if !c.leaveBy.IsZero() {
		limit = min(limit, time.Until(c.leaveBy))
	}
	c.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-closed:
		if err != nil {
			c.log.Warn("group not left", "err", err)
		}
	case <-timer.C:
		c.log.Warn("group not left, the broker does not answer", "limit", limit)
	}
}

// commit commits what has been settled since the last time, as a member of the
// session. Only one goroutine at a time commits.
//
// Two things keep a committed offset from going back. The broker refuses the
// commits of a generation that is over, and a tenure offers no less than it
// offered before. A commit whose outcome is unknown is the exception: it may
// wait in a broker that is stuck, and be carried out after a later one. The
// offset is therefore sent again and again for a while, so that the last word
// is right.
func (c *Consumer) commit(ctx context.Context, s *session) error {
	offsets := make(map[int]int64)
	tenures := c.tenuresOf(s)
	now := time.Now()
	for p, t := range tenures {
		t.mu.Lock()
		if mark := t.marks.mark(); mark > t.commits.acked || now.Before(t.commits.again) {
			offsets[p] = mark
			t.commits.sent = max(t.commits.sent, mark)
		}
		t.mu.Unlock()
	}
	if len(offsets) == 0 {
		return nil
	}
	results, err := c.commitOffsets(ctx, s, offsets)
	now = time.Now()
	for p, offset := range offsets {
		t, failed := tenures[p], err
		if failed == nil {
			failed = results[p]
		}
		t.mu.Lock()
		switch {
		case failed == nil:
			t.commits.acked, t.commits.at = max(t.commits.acked, offset), now
		case err != nil || errors.Is(failed, kafka.RequestTimedOut):
			t.commits.again = now.Add(2 * requestLimit)
		}
		t.mu.Unlock()
		if failed == nil {
			c.metrics.committed(c.cfg.Topic, p, now)
		}
	}
	for _, failed := range results {
		if fenced(failed) {
			s.cancel(errFenced)
			return failed
		}
		err = cmp.Or(err, failed)
	}
	return err
}

// tenuresOf returns the tenures that may commit as the session.
func (c *Consumer) tenuresOf(s *session) map[int]*tenure {
	c.mu.Lock()
	defer c.mu.Unlock()
	tenures := make(map[int]*tenure)
	for p, t := range c.held {
		t.mu.Lock()
		if t.commits.session == s && s != nil {
			tenures[p] = t
		}
		t.mu.Unlock()
	}
	return tenures
}

// commitLoop commits twice a second until the context ends, and once more when
// a generation ends. A commit that is under way then is waited for, until the
// context of the commits ends too: if it were given up, the next one would go over
// another connection, and might be carried out first.
func (c *Consumer) commitLoop(ctx, commits context.Context) {
	tr := c.trouble(c.log, requestCommit)
	tick := time.NewTicker(commitEvery)
	defer tick.Stop()
	for {
		last := false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.lastCommit:
			last = true
		}
		done := c.pulse.begin()
		c.updateGauges()
		s := c.current()
		if s == nil || s.ctx.Err() != nil && !last {
			done()
			continue
		}
		err := c.commit(commits, s)
		done()
		switch {
		case err == nil:
			tr.over()
		case s.ctx.Err() == nil:
			tr.note(err)
		}
	}
}

// keepAwake tells the gate that the process runs, until the context ends. If it
// did not for so long that the group may have given its partitions to another,
// it joins again: nothing else says at once whether it still has them.
func (c *Consumer) keepAwake(ctx context.Context) {
	asleep := c.cfg.groupTimeout()
	tick := time.NewTicker(asleep / 20)
	defer tick.Stop()
	for {
		if !c.gate.alive(asleep) {
			c.log.Warn("frozen, joining the group again", "limit", asleep)
			if s := c.current(); s != nil && len(s.partitions) > 0 {
				s.cancel(errFrozen)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// current returns the present session, nil if there never was one.
func (c *Consumer) current() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session
}
