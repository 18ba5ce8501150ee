package app

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/upstream/upstreamtest"
)

// simFault is a kind of fault.
type simFault struct {
	name   string
	weight int // how many cards it has in the deck
	// strike makes it happen and says what it did, "" if it could not. heal
	// ends it; nil for a fault that is over at once.
	strike func(s *simulation, r *rand.Rand) (what string, heal func())
	// lasts is between which times it is healed.
	lasts [2]time.Duration
}

// simEvent is one fault of a schedule.
type simEvent struct {
	after time.Duration // the one before
	fault *simFault
	rng   *rand.Rand // draws its particulars
}

// simSchedule deals the faults of a seed: the order of the kinds is that of a
// shuffled deck, so that each has its turn.
type simSchedule struct {
	rng  *rand.Rand
	seed uint64
	gap  time.Duration
	deck []*simFault
	n    uint64
}

func (d *simSchedule) next() simEvent {
	if len(d.deck) == 0 {
		for i := range simFaults {
			for range simFaults[i].weight {
				d.deck = append(d.deck, &simFaults[i])
			}
		}
		d.rng.Shuffle(len(d.deck), func(i, j int) { d.deck[i], d.deck[j] = d.deck[j], d.deck[i] })
	}
	f := d.deck[0]
	d.deck = d.deck[1:]
	d.n++
	return simEvent{after: around(d.rng, d.gap), fault: f, rng: rand.New(rand.NewPCG(d.seed, 1000+d.n))}
}

// torment lets faults happen for a time.
func (s *simulation) torment(length time.Duration) {
	schedule := &simSchedule{rng: rand.New(rand.NewPCG(s.seed, 'f')), seed: s.seed, gap: s.profile.gap}
	for end := time.Now().Add(length); ; {
		e := schedule.next()
		at := time.Now().Add(e.after)
		if at.After(end) {
			time.Sleep(time.Until(end))
			return
		}
		time.Sleep(e.after)
		what, heal := e.fault.strike(s, e.rng)
		if what == "" {
			continue
		}
		if heal == nil {
			s.history.note("%s: %s", e.fault.name, what)
			continue
		}
		lasts := between(e.rng, e.fault.lasts[0], e.fault.lasts[1])
		s.history.note("%s: %s, for %s", e.fault.name, what, lasts.Round(time.Millisecond))
		s.healing.Go(func() {
			select {
			case <-time.After(lasts):
			case <-s.quiet:
			}
			heal()
			s.history.note("%s: over (%s)", e.fault.name, what)
		})
	}
}

// hit counts that a fault has taken effect.
func (s *simulation) hit(name string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[name] += n
}

// brokerFault makes brokers answer with an error some times.
func brokerFault(name string, weight, most int, fault func(s *simulation, r *rand.Rand) kfake.Fault) simFault {
	return simFault{name: name, weight: weight, lasts: [2]time.Duration{5 * time.Second, 90 * time.Second}, strike: func(s *simulation, r *rand.Rand) (string, func()) {
		f := fault(s, r)
		f.Count = 1 + r.IntN(most)
		handle := s.cluster.Fault(f)
		where := cmp.Or(f.Topic, f.Group)
		return fmt.Sprintf("%d times %s, %s", f.Count, f.Err.Message, where), func() {
			s.hit(name, handle.Hits())
			handle.Remove()
		}
	}}
}

// topic draws a topic, the ledger most often.
func (s *simulation) topic(r *rand.Rand) string {
	set := &s.settings
	return pick(r, set.TopicLedger, set.TopicLedger, set.TopicLedger, set.TopicShipped, set.TopicShipped, set.TopicFailed, set.TopicDLQ, set.TopicPacked)
}

// target draws a process, the active one most often. It returns nil if there is
// none.
func (s *simulation) target(r *rand.Rand) *simProcess {
	running := s.running()
	n := r.IntN(10)
	switch {
	case len(running) == 0:
		return nil
	case n < 7:
		return running[0]
	default:
		return running[n%len(running)]
	}
}

// linkFault keeps a process from the brokers or the API.
func linkFault(name string, weight int, state linkState, api bool, low, high time.Duration) simFault {
	return simFault{name: name, weight: weight, lasts: [2]time.Duration{low, high}, strike: func(s *simulation, r *rand.Rand) (string, func()) {
		p := s.target(r)
		if p == nil {
			return "", nil
		}
		link := p.kafka
		if api {
			link = p.api
		}
		s.hit(name, 1)
		over := p.impair(name)
		link.set(state)
		return p.name, func() {
			p.mu.Lock()
			dead := !p.dead.IsZero()
			p.mu.Unlock()
			if !dead {
				link.set(linkState{})
			}
			over()
		}
	}}
}

// apiFault makes calls go wrong.
func apiFault(weight, most int, faults ...upstreamtest.Fault) simFault {
	name := "api: " + string(faults[0].Kind)
	return simFault{name: name, weight: weight, strike: func(s *simulation, r *rand.Rand) (string, func()) {
		f := pick(r, faults...)
		f.Count = 1 + r.IntN(most)
		switch f.Kind {
		case upstreamtest.HangThenApply:
			// Within the time for which an unanswered call may take effect.
			f.Delay = between(r, 0, s.profile.settle*8/10)
		case upstreamtest.Slow:
			f.Delay = between(r, 0, s.profile.timeout+s.profile.settle*6/10)
		default: // the others take no time
		}
		s.api.AddFault(f)
		return fmt.Sprintf("%d times", f.Count), nil
	}}
}

// relaunch starts a replica in a slot after a while. Once it is quiet, that is
// no longer done.
func (s *simulation) relaunch(slot int, after time.Duration) {
	s.healing.Go(func() {
		for wait := after; ; wait = time.Second {
			select {
			case <-time.After(wait):
			case <-s.quiet:
				return
			}
			if p := s.launch(slot); p != nil {
				s.history.note("started: %s", p.name)
				return
			}
			s.mu.Lock()
			again := s.paused
			s.mu.Unlock()
			if !again {
				return
			}
		}
	})
}

// brokerAt returns a check for the addresses of one broker.
func brokerAt(node int32) func(remote string) bool {
	port := fmt.Sprintf(":%d", simFirstPort+node)
	return func(remote string) bool { return strings.HasSuffix(remote, port) }
}

// simFaults are all the kinds of faults there are.
var simFaults = slices.Concat([]simFault{
	{name: "leader moved", weight: 3, strike: func(s *simulation, r *rand.Rand) (string, func()) {
		topic, partition, node := s.topic(r), int32(r.IntN(simLedgerPartitions)), int32(r.IntN(simBrokers))
		if s.cluster.LeaderFor(topic, partition) == node || s.cluster.MoveTopicPartition(topic, partition, node) != nil {
			return "", nil
		}
		s.hit("leader moved", 1)
		return fmt.Sprintf("%s/%d to broker %d", topic, partition, node), nil
	}},
	{name: "leaders shuffled", weight: 1, strike: func(s *simulation, r *rand.Rand) (string, func()) {
		for _, topic := range s.settings.Topics() {
			for partition := range int32(simPackedPartitions) {
				// A broker that is down does not become one.
				_ = s.cluster.MoveTopicPartition(topic, partition, int32(r.IntN(simBrokers)))
			}
		}
		s.hit("leaders shuffled", 1)
		return "all", nil
	}},
	{name: "coordinator moved", weight: 2, strike: func(s *simulation, r *rand.Rand) (string, func()) {
		group := pick(r, s.groups()...)
		before := s.cluster.CoordinatorFor(group)
		for range 20 {
			s.cluster.RehashCoordinators()
			if now := s.cluster.CoordinatorFor(group); now != before {
				s.hit("coordinator moved", 1)
				return fmt.Sprintf("from broker %d to %d", before, now), nil
			}
		}
		return "", nil
	}},
	{
		name: "broker gone", weight: 2, lasts: [2]time.Duration{2 * time.Second, 40 * time.Second},
		strike: func(s *simulation, r *rand.Rand) (string, func()) {
			node := int32(r.IntN(simBrokers))
			s.mu.Lock()
			busy := len(s.down) > 0
			if !busy {
				s.down[node] = true
			}
			processes := slices.Clone(s.processes)
			s.mu.Unlock()
			if busy || s.cluster.RemoveNode(node) != nil {
				return "", nil
			}
			for _, p := range processes {
				p.kafka.breakConns(brokerAt(node))
			}
			s.hit("broker gone", 1)
			return fmt.Sprint(node), func() {
				_, _, err := s.cluster.AddNode(node, simFirstPort+int(node))
				if err != nil {
					s.violate("simulation", "", "broker %d does not come back: %v", node, err)
				}
				s.mu.Lock()
				delete(s.down, node)
				s.mu.Unlock()
			}
		},
	},
	{
		name: "replicas missing", weight: 3, lasts: [2]time.Duration{2 * time.Second, 60 * time.Second},
		strike: func(s *simulation, r *rand.Rand) (string, func()) {
			f := kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: s.topic(r), Err: kerr.NotEnoughReplicas, Count: -1}
			if r.IntN(3) == 0 {
				f.Topic = ""
			}
			handle := s.cluster.Fault(f)
			return cmp.Or(f.Topic, "all topics"), func() {
				s.hit("replicas missing", handle.Hits())
				handle.Remove()
			}
		},
	},
	{name: "connections cut", weight: 3, strike: func(s *simulation, r *rand.Rand) (string, func()) {
		p := s.target(r)
		if p == nil {
			return "", nil
		}
		n := 0
		switch r.IntN(4) {
		case 0:
			n = p.api.breakConns(nil)
			p.apiCut()
		case 1:
			n = p.kafka.breakConns(brokerAt(int32(r.IntN(simBrokers))))
		default:
			n = p.kafka.breakConns(nil)
		}
		s.hit("connections cut", n)
		return fmt.Sprintf("%d of %s", n, p.name), nil
	}},
	{
		name: "request hung", weight: 3, lasts: [2]time.Duration{5 * time.Second, 60 * time.Second},
		strike: func(s *simulation, r *rand.Rand) (string, func()) {
			key := pick(r, kmsg.Produce, kmsg.Produce, kmsg.Fetch, kmsg.OffsetCommit, kmsg.OffsetFetch, kmsg.Metadata,
				kmsg.Heartbeat, kmsg.JoinGroup, kmsg.SyncGroup, kmsg.ListOffsets, kmsg.FindCoordinator)
			n, deaf := 1+r.IntN(3), r.IntN(2) == 0
			end := s.history.hang(key, deaf, n)
			how := "done but not answered"
			if deaf {
				how = "neither done nor answered"
			}
			return fmt.Sprintf("%d times %s, %s", n, key.Name(), how), func() { s.hit("request hung", end()) }
		},
	},
	brokerFault("append not acknowledged", 4, 3, func(s *simulation, r *rand.Rand) kfake.Fault {
		return kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: s.topic(r), Err: pick(r, kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend)}
	}),
	brokerFault("append refused", 2, 4, func(s *simulation, r *rand.Rand) kfake.Fault {
		return kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: s.topic(r), Err: pick(r, kerr.NotLeaderForPartition, kerr.KafkaStorageError, kerr.UnknownTopicOrPartition, kerr.UnknownServerError)}
	}),
	brokerFault("fetch refused", 2, 4, func(s *simulation, r *rand.Rand) kfake.Fault {
		return kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: s.topic(r), Err: pick(r, kerr.NotLeaderForPartition, kerr.KafkaStorageError, kerr.OffsetOutOfRange, kerr.UnknownServerError, kerr.FencedLeaderEpoch)}
	}),
	brokerFault("heartbeat: rebalance in progress", 2, 2, func(s *simulation, r *rand.Rand) kfake.Fault {
		return kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Group: pick(r, s.groups()...), TopLevel: true, Err: kerr.RebalanceInProgress}
	}),
	brokerFault("heartbeat: unknown member", 2, 2, func(s *simulation, r *rand.Rand) kfake.Fault {
		return kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Group: pick(r, s.groups()...), TopLevel: true, Err: kerr.UnknownMemberID}
	}),
	brokerFault("heartbeat: illegal generation", 2, 2, func(s *simulation, r *rand.Rand) kfake.Fault {
		return kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Group: pick(r, s.groups()...), TopLevel: true, Err: kerr.IllegalGeneration}
	}),
	brokerFault("commit not acknowledged", 2, 3, func(s *simulation, r *rand.Rand) kfake.Fault {
		return kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Group: pick(r, s.groups()...), Err: kerr.RequestTimedOut}
	}),
	brokerFault("commit refused", 3, 3, func(s *simulation, r *rand.Rand) kfake.Fault {
		return kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Group: pick(r, s.groups()...), Err: pick(r, kerr.RebalanceInProgress,
			kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.UnknownServerError)}
	}),
	brokerFault("join refused", 2, 2, func(s *simulation, r *rand.Rand) kfake.Fault {
		return kfake.Fault{
			Keys: []kmsg.Key{pick(r, kmsg.JoinGroup, kmsg.SyncGroup)}, Group: pick(r, s.groups()...), TopLevel: true,
			Err: pick(r, kerr.UnknownMemberID, kerr.RebalanceInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator),
		}
	}),
	brokerFault("lookup refused", 2, 4, func(s *simulation, r *rand.Rand) kfake.Fault {
		return pick(
			r,
			kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: s.topic(r), Err: pick(r, kerr.NotLeaderForPartition, kerr.LeaderNotAvailable, kerr.KafkaStorageError)},
			kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Group: pick(r, s.groups()...), Err: pick(r, kerr.NotCoordinator, kerr.CoordinatorLoadInProgress)},
			kfake.Fault{Keys: []kmsg.Key{kmsg.FindCoordinator}, Group: pick(r, s.groups()...), Err: kerr.CoordinatorNotAvailable},
			kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: s.topic(r), Err: kerr.LeaderNotAvailable},
		)
	}),

	{name: "joined", weight: 2, strike: func(s *simulation, r *rand.Rand) (string, func()) {
		p := s.launch(r.IntN(simSlots))
		if p == nil {
			return "", nil
		}
		s.hit("joined", 1)
		return p.name, nil
	}},
	{name: "left", weight: 3, strike: func(s *simulation, r *rand.Rand) (string, func()) {
		p := s.target(r)
		if p == nil {
			return "", nil
		}
		p.tell("the replica leaves")
		s.relaunch(p.slot, between(r, 2*time.Second, 90*time.Second))
		s.hit("left", 1)
		return p.name, nil
	}},
	{name: "crashed", weight: 6, strike: func(s *simulation, r *rand.Rand) (string, func()) {
		p := s.target(r)
		if p == nil {
			return "", nil
		}
		s.crash(p)
		s.relaunch(p.slot, between(r, 100*time.Millisecond, 40*time.Second))
		s.hit("crashed", 1)
		return p.name, nil
	}},
	{
		name: "storm of joins and leaves", weight: 1, lasts: [2]time.Duration{20 * time.Second, 60 * time.Second},
		strike: func(s *simulation, r *rand.Rand) (string, func()) {
			ctx, cancel := context.WithCancel(context.Background())
			r = rand.New(rand.NewPCG(r.Uint64(), r.Uint64())) // the storm goes on beside the other faults
			s.healing.Go(func() {
				for ctx.Err() == nil {
					slot := r.IntN(simSlots)
					if p := s.launch(slot); p == nil {
						s.mu.Lock()
						p = s.slots[slot]
						s.mu.Unlock()
						if p != nil {
							p.tell("storm")
							s.relaunch(slot, between(r, 0, 4*time.Second))
						}
					}
					select {
					case <-time.After(2 * time.Second):
					case <-ctx.Done():
					case <-s.quiet:
						return
					}
				}
			})
			s.hit("storm of joins and leaves", 1)
			return "every 2s", cancel
		},
	},
	{name: "operator goes back", weight: 1, strike: func(s *simulation, r *rand.Rand) (string, func()) {
		if s.goBack(func(committed int64) int64 { return r.Int64N(committed + 1) }) {
			s.hit("operator goes back", 1)
		}
		for slot := range s.profile.replicas {
			s.launch(slot)
		}
		return "all replicas stopped, offsets reset, started", nil
	}},

	linkFault("cut off from kafka", 5, linkState{refuse: true}, false, 5*time.Second, 45*time.Second),
	linkFault("kafka stalls", 5, linkState{holdOut: true, holdIn: true}, false, 2*time.Second, 45*time.Second),
	linkFault("kafka is not heard", 3, linkState{holdIn: true}, false, 2*time.Second, 45*time.Second),
	linkFault("cut off from the api", 2, linkState{refuse: true}, true, 5*time.Second, 45*time.Second),
	linkFault("the api is not heard", 3, linkState{holdIn: true}, true, 2*time.Second, 45*time.Second),
	linkFault("the api does not hear", 2, linkState{dropOut: true}, true, 2*time.Second, 45*time.Second),

	{
		name: "api: out of order", weight: 2, lasts: [2]time.Duration{3 * time.Second, 2 * time.Minute},
		strike: func(s *simulation, r *rand.Rand) (string, func()) {
			mode := pick(r, upstreamtest.Unavailable, upstreamtest.Refusing)
			s.api.SetDown(mode)
			s.hit("api: out of order", 1)
			return string(mode), func() { s.api.SetDown(upstreamtest.Up) }
		},
	},
	{
		name: "api: account spent", weight: 1, lasts: [2]time.Duration{5 * time.Second, 5 * time.Minute},
		strike: func(s *simulation, _ *rand.Rand) (string, func()) {
			a, _ := s.api.Account(simAccount)
			if a.Balance == nil {
				_ = s.api.TopUp(simAccount, 0)
			} else {
				_ = s.api.TopUp(simAccount, -*a.Balance)
			}
			s.hit("api: account spent", 1)
			return simAccount, func() { s.repair() }
		},
	},
	{
		name: "api: token displaced", weight: 1, lasts: [2]time.Duration{5 * time.Second, 5 * time.Minute},
		strike: func(s *simulation, _ *rand.Rand) (string, func()) {
			if _, err := s.api.RotateToken(simAccount); err != nil {
				return "", nil
			}
			s.hit("api: token displaced", 1)
			return simAccount, func() { s.repair() }
		},
	},
	{
		name: "api: shop unauthorised", weight: 2, lasts: [2]time.Duration{5 * time.Second, 5 * time.Minute},
		strike: func(s *simulation, r *rand.Rand) (string, func()) {
			shop := fmt.Sprintf("shop-%d", 1+r.IntN(5))
			if s.api.Unauthorise(shop) != nil {
				return "", nil
			}
			s.hit("api: shop unauthorised", 1)
			return shop, func() {
				_ = s.api.Authorise(shop)
				for _, p := range s.running() {
					p.c.api.Unpark(shop)
				}
			}
		},
	},
}, simAPIFaults())

// simAPIFaults are the faults of single calls.
func simAPIFaults() []simFault {
	yes := true
	kind := func(k upstreamtest.FaultKind) upstreamtest.Fault { return upstreamtest.Fault{Kind: k} }
	applied := func(k upstreamtest.FaultKind) upstreamtest.Fault { return upstreamtest.Fault{Kind: k, Apply: &yes} }
	var list []simFault
	for _, f := range []struct {
		weight, most int
		fault        upstreamtest.Fault
	}{
		{2, 4, kind(upstreamtest.Slow)},
		{4, 4, kind(upstreamtest.ApplyThenHang)},
		{4, 4, kind(upstreamtest.HangThenApply)},
		{3, 4, kind(upstreamtest.ApplyThenReset)},
		{2, 3, kind(upstreamtest.Hang)},
		// With a condition the form is read, so that the journal knows the order.
		{2, 4, upstreamtest.Fault{Kind: upstreamtest.ResetBeforeRead, TID: "*"}},
		{2, 4, kind(upstreamtest.ResetAfterRead)},
		{1, 2, kind(upstreamtest.HTML200)},
		{1, 2, kind(upstreamtest.Empty200)},
		{1, 2, kind(upstreamtest.Yii200)},
		{1, 2, kind(upstreamtest.TruncatedJSON)},
		{1, 2, kind(upstreamtest.CutOff)},
		{1, 2, kind(upstreamtest.TrailingComma)},
		{1, 2, kind(upstreamtest.StringTypes)},
		{1, 1, kind(upstreamtest.HugeBody)},
		{1, 2, kind(upstreamtest.SlowDrip)},
		{1, 2, kind(upstreamtest.SuccessFalse)},
		{1, 2, kind(upstreamtest.DataEmpty)},
		{1, 2, kind(upstreamtest.NoData)},
		{1, 2, kind(upstreamtest.FlowControl)},
		{1, 1, upstreamtest.Fault{Kind: upstreamtest.Code, Code: 777, Text: "unheard of"}},
		{2, 8, kind(upstreamtest.HTTPStatus(500))},
		{2, 8, applied(upstreamtest.HTTPStatus(502))},
		{2, 8, kind(upstreamtest.HTTPStatus(503))},
		{2, 8, applied(upstreamtest.HTTPStatus(504))},
		{1, 2, kind(upstreamtest.HTTPStatus(429))},
		{1, 3, kind(upstreamtest.YiiError(500))},
		{1, 2, kind(upstreamtest.AnyRow(35))},
		{2, 4, kind(upstreamtest.AnyRow(3))},
		{2, 4, applied(upstreamtest.AnyRow(5))},
		{2, 4, kind(upstreamtest.AnyRow(6))},
		{1, 3, applied(upstreamtest.AnyRow(53))},
		{1, 3, applied(upstreamtest.AnyRow(55))},
	} {
		list = append(list, apiFault(f.weight, f.most, f.fault))
	}
	return list
}

// repair puts right what a person would have to.
func (s *simulation) repair() {
	if a, _ := s.api.Account(simAccount); a.Balance != nil {
		_ = s.api.TopUp(simAccount, 1_000_000)
	}
	_ = s.api.SetToken(simAccount, simToken)
	for _, p := range s.running() {
		p.c.api.Resume(simAccount)
	}
}

// goBack moves the groups to other offsets, as an operator does: with all
// replicas stopped.
func (s *simulation) goBack(to func(committed int64) int64) bool {
	s.mu.Lock()
	s.paused = true
	processes := slices.Clone(s.processes)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.paused = false
	}()
	for _, p := range processes {
		p.tell("the operator stops all replicas")
	}
	for _, p := range processes {
		s.awaitEnd(p)
	}
	for _, group := range s.groups() {
		if !s.moveGroup(group, to) {
			return false
		}
	}
	return true
}

// moveGroup moves one group as soon as it has no members any more.
func (s *simulation) moveGroup(group string, to func(committed int64) int64) bool {
	k, set := *s.kafka, s.settings
	set.KafkaGroupID = group
	k.settings = &set
	for range 300 {
		info := s.cluster.GroupInfo(group)
		if info == nil {
			return false
		}
		if len(info.Members) > 0 {
			time.Sleep(time.Second)
			continue
		}
		offsets := map[int]int64{}
		commits := info.Commits[s.settings.TopicPacked]
		for _, p := range slices.Sorted(maps.Keys(commits)) {
			offsets[int(p)] = to(commits[p].Offset)
		}
		s.mu.Lock()
		s.era++
		s.mu.Unlock()
		if len(offsets) > 0 && k.Rewind(context.Background(), offsets) == nil {
			return true
		}
		time.Sleep(time.Second)
	}
	return false
}
