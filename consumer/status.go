package consumer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

// Role is what a process is in the group.
type Role string

// The roles.
const (
	// RoleActive holds partitions.
	RoleActive Role = "active"
	// RoleStandby is a member without partitions, ready to take over.
	RoleStandby Role = "standby"
	// RoleJoining is not a member now.
	RoleJoining Role = "joining"
)

// Status is what a consumer is doing now.
type Status struct {
	Role Role `json:"role"`
	// Reason says why the process is not a member, or why an active one may
	// start no calls yet. It is empty if all is well.
	Reason     string            `json:"reason,omitempty"`
	GateOpen   bool              `json:"gate_open"`
	Generation int32             `json:"generation"` // 0 before the first
	Partitions []PartitionStatus `json:"partitions"`
	// Members are those of the group, as it last said, a few seconds ago.
	Members []Member `json:"members"`
}

// Member is a process in the consumer group.
type Member struct {
	Name       string `json:"name"`
	Host       string `json:"host"`
	Partitions int    `json:"partitions"` // that it holds
	Self       bool   `json:"self,omitempty"`
}

// PartitionStatus is how far a partition has come. A standby shows what the
// holder has committed.
type PartitionStatus struct {
	Partition int   `json:"partition"`
	Committed int64 `json:"committed"` // -1 if there is none
	End       int64 `json:"end"`
	Lag       int64 `json:"lag"`
	// OldestUnfinishedSeconds is the age of the oldest record that was read
	// and is not settled, by the record's own time; 0 if there is none.
	OldestUnfinishedSeconds float64 `json:"oldest_unfinished_seconds"`
	Unsettled               int     `json:"unsettled"` // records that were read and are not settled
	Shelved                 int     `json:"shelved"`   // those of them whose shop is blocked
	// Waiting is how many records are neither settled nor shelved, whether they
	// were read or not. Unlike the lag it does not count what is settled behind
	// a record that is not.
	Waiting int64 `json:"waiting"`
	// Oldest is the oldest record that was read and is not settled, nil if
	// there is none or the partition is another's.
	Oldest *Oldest `json:"oldest,omitempty"`
}

// Oldest is the first record of a partition that is not settled.
type Oldest struct {
	Offset int64     `json:"offset"`
	Time   time.Time `json:"time"` // the record's own, to the second
	// Shelved is true if its shop is blocked.
	Shelved bool `json:"shelved"`
	// ShopID and TID are of its order, "" if that is no longer in memory, or
	// is none.
	ShopID string `json:"shop_id,omitempty"`
	TID    string `json:"tid,omitempty"`
}

// rejoinGrace is how long a member that lost its generation still counts as
// what it was. A rejoin takes some tens of milliseconds, and readiness must not
// flap with it.
const rejoinGrace = 5 * time.Second

// Status returns what the consumer is doing now. It never blocks on Kafka.
func (c *Consumer) Status() Status {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	st := Status{Role: c.roleNow(now), Reason: c.reason, GateOpen: c.gate.IsOpen(), Members: append([]Member{}, c.members...)}
	if c.session != nil {
		st.Generation = c.session.generation
	}
	known := make(map[int]PartitionStatus)
	for p, b := range c.ends {
		known[p] = partitionStatus(p, b, c.foreign[p])
	}
	for p, t := range c.held {
		known[p] = t.status(c.ends[p], now)
	}
	st.Partitions = make([]PartitionStatus, 0, len(known))
	for _, p := range slices.Sorted(maps.Keys(known)) {
		st.Partitions = append(st.Partitions, known[p])
	}
	return st
}

// partitionStatus returns the status of a partition by its offsets. What lies
// below the beginning of the log cannot be waiting.
func partitionStatus(partition int, b bounds, committed int64) PartitionStatus {
	lag := max(0, b.last-max(committed, b.first))
	return PartitionStatus{Partition: partition, Committed: committed, End: b.last, Lag: lag, Waiting: lag}
}

// status returns the status of a partition that this member holds.
func (t *tenure) status(b bounds, now time.Time) PartitionStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	b.last = max(b.last, t.marks.next) // what has been read is there
	st := partitionStatus(t.partition, b, t.commits.acked)
	st.Unsettled, st.Shelved = t.marks.unfinished(), t.shelf.size
	st.Waiting = b.last - t.marks.next + int64(st.Unsettled-st.Shelved)
	if first := t.marks.first(); first != nil {
		st.Oldest = t.describe(first)
		st.OldestUnfinishedSeconds = max(0, now.Sub(st.Oldest.Time).Seconds())
	}
	return st
}

// describe says what is known of a record that is not settled. The caller holds
// mu.
func (t *tenure) describe(s *slot) *Oldest {
	o := &Oldest{Offset: s.offset, Time: time.Unix(int64(s.at), 0), Shelved: s.place.shelved()}
	if o.Shelved {
		sh := t.shelf.byID[s.place]
		o.ShopID = sh.name
		if sh.first == s.offset {
			o.TID = sh.firstTID
		}
		return o
	}
	// The first record of a partition waits for no other in its lane, so it is
	// being handled, or is about to be.
	for it := range t.started {
		if it.rec.Offset == s.offset && it.packed != nil {
			o.ShopID, o.TID = it.packed.ShopID, it.packed.TID
			break
		}
	}
	return o
}

// Ready reports whether the process has done its part to be useful: it is a
// member of the group, as holder or as standby. If not, the text says why.
func (c *Consumer) Ready() (bool, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stopping:
		return false, "stopping"
	case c.roleNow(time.Now()) == RoleJoining:
		return false, c.reason
	}
	return true, ""
}

// aliveWithin is how long a loop may take for a turn that is bounded by much
// less.
const aliveWithin = 30 * time.Second

// Alive reports whether the loops of the consumer turn. It depends neither on
// Kafka nor on how long an order takes: only a step that is bounded and does not
// end counts as a loop that stands still.
func (c *Consumer) Alive() (bool, string) {
	if d := c.pulse.longest(time.Now()); d > aliveWithin {
		return false, "a loop of the consumer has not turned for " + d.Round(time.Second).String()
	}
	return true, ""
}

// pulse knows the bounded steps that are under way. The zero value is ready.
type pulse struct {
	mu    sync.Mutex
	steps map[*time.Time]struct{} // guarded by mu; when each began
}

// begin notes the beginning of a step and returns the function for its end.
func (p *pulse) begin() (end func()) {
	at := new(time.Time)
	*at = time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.steps == nil {
		p.steps = make(map[*time.Time]struct{})
	}
	p.steps[at] = struct{}{}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.steps, at)
	}
}

// longest returns for how long the oldest step has been under way.
func (p *pulse) longest(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var d time.Duration
	for at := range p.steps {
		d = max(d, now.Sub(*at))
	}
	return d
}

// roleNow returns the present role. The caller holds mu.
func (c *Consumer) roleNow(now time.Time) Role {
	if !c.lostAt.IsZero() && now.Sub(c.lostAt) > rejoinGrace {
		return RoleJoining
	}
	return c.role
}

// setAway notes why the process is not a member, and logs it if that is news.
func (c *Consumer) setAway(reason string, err error) {
	kind := reason
	if err != nil {
		c.metrics.failures.WithLabelValues(requestJoin).Inc()
		reason, kind = reason+": "+c.cfg.named(err).Error(), reason+": "+errorKind(err)
	}
	c.mu.Lock()
	news := isNews(&c.awayKinds, kind)
	if err != nil || !strings.HasPrefix(c.reason, reason+": ") { // another try does not make it forget how the last one failed
		c.reason = reason
	}
	c.mu.Unlock()
	switch {
	case !news:
	case err == nil:
		c.log.Info("not in the group", "reason", reason)
	default:
		c.log.Warn("not in the group", "reason", reason)
	}
}

// setRejoining notes that a session is over.
func (c *Consumer) setRejoining(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == s && c.lostAt.IsZero() {
		c.metrics.assigned.Set(0)
		c.lostAt, c.reason = time.Now(), "rejoining the group"
	}
}

// setReason notes what keeps the gate of a session closed, "" if nothing.
func (c *Consumer) setReason(s *session, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == s && s.ctx.Err() == nil {
		c.reason = reason
	}
}

// watch keeps the ends of the log and the members up to date, also as a standby,
// and the gauges with them.
func (c *Consumer) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		for what, look := range map[string]func(context.Context) error{"ends of the log": c.look, "members of the group": c.lookAtMembers} {
			done := c.pulse.begin()
			err := look(ctx)
			done()
			if err != nil {
				// Those who need the brokers say so louder.
				c.log.Debug("not seen", "what", what, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.lookAgain:
		}
	}
}

// look fetches the ends of all partitions once, and the committed offsets of
// those that this member does not hold.
func (c *Consumer) look(ctx context.Context) error {
	n, err := c.partitions(ctx)
	if err != nil || n == 0 {
		return err
	}
	all := make([]int, n)
	for p := range all {
		all[p] = p
	}
	ends, err := c.bounds(ctx, all)
	c.mu.Lock()
	maps.Copy(c.ends, ends)
	others := slices.DeleteFunc(all, func(p int) bool { return c.held[p] != nil })
	c.mu.Unlock()
	if err != nil || len(others) == 0 {
		return err
	}
	foreign, err := c.committed(ctx, others)
	if err != nil {
		return err
	}
	offsets := make(map[int]int64, len(foreign))
	for p, at := range foreign {
		offsets[p] = at.offset
	}
	c.mu.Lock()
	c.foreign = offsets
	c.mu.Unlock()
	return nil
}

// lookAtMembers asks the group for its members. Only the member that computes
// the assignment is told of the others without asking.
func (c *Consumer) lookAtMembers(ctx context.Context) error {
	ctx, cancel := request(ctx)
	defer cancel()
	res, err := c.cfg.Client.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{c.cfg.GroupID}})
	if err != nil {
		return err
	}
	if len(res.Groups) != 1 {
		return errors.New("consumer: no answer about the group")
	}
	self := ""
	if s := c.current(); s != nil {
		self = s.member
	}
	members := make([]Member, 0, len(res.Groups[0].Members))
	for _, m := range res.Groups[0].Members {
		var data holderData
		_ = json.Unmarshal(m.MemberMetadata.UserData, &data) // another balancer says something else
		member := Member{Name: cmp.Or(data.Name, m.MemberID), Host: strings.TrimPrefix(m.ClientHost, "/"), Self: m.MemberID == self}
		for _, topic := range m.MemberAssignments.Topics {
			member.Partitions += len(topic.Partitions)
		}
		members = append(members, member)
	}
	slices.SortFunc(members, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = members
	return nil
}

// updateGauges sets the gauges of the partitions that this member holds.
func (c *Consumer) updateGauges() {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, t := range c.held {
		st, label := t.status(c.ends[p], now), partitionLabel(p)
		c.metrics.lag.WithLabelValues(c.cfg.Topic, label).Set(float64(st.Lag))
		c.metrics.oldest.WithLabelValues(c.cfg.Topic, label).Set(st.OldestUnfinishedSeconds)
	}
}
