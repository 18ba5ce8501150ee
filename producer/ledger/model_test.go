package ledger

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"packship/schema"
)

// The model test explores every interleaving of a few workers that share one
// shipment, over the fold that runs in production. A worker does what a process
// does: it looks, claims, waits until it has read its own record, calls, and
// settles. Workers read late or not at all, crash, stop, are paused, time out and
// are refused; records land twice; somebody else ships the order by hand. What
// is perfect is only the lease: nobody takes over while the attempt may still
// take effect.
//
// What must never happen:
//
//	overlap        two calls for the shipment at the same time
//	blind repeat   more calls than events that asked for one, plus takeovers
//	false failed   a failure without maybe_shipped of what was shipped
//	false shipped  a success of what was not shipped by anybody
//	two stories    two outcomes with the same id
//	early bye      a bye frees an attempt that may still take effect
//	stuck          an event without an answer and nothing left to do

// mAttempt is an attempt: its worker, that worker's incarnation, and the length
// of the log when it was made. The zero value is none.
type mAttempt struct{ worker, inc, n int8 }

func (a mAttempt) String() string {
	if a == (mAttempt{}) {
		return ""
	}
	return fmt.Sprintf("w%d.%d/%d", a.worker, a.inc, a.n)
}

// mRecord is a record of the model's log.
type mRecord struct {
	kind          kind
	attempt, prev mAttempt
	event         int8
	round         int8
	doubt         bool // of an outcome: maybe_shipped
	shipped       bool
	uncalled      bool
	unanswered    bool
	listed        mAttempt // by a bye
}

// mNode is a prefix of a log, with what the fold makes of it.
type mNode struct {
	parent   int32
	depth    int8
	record   mRecord
	accepted bool
	holder   mAttempt // or the one after whose failure it cools down
	cooling  bool
	freed    bool // the holder may be taken over because of a bye
	plain    bool // the shipment has failed, without maybe_shipped
	opened   int8 // how many events have opened a round
	takes    int8 // how many takeovers were accepted
	standing [2]struct {
		state  schema.State
		round  int8
		doubt  bool
		answer int8 // offset of the outcome
	}
}

// mPhase is what a worker is doing.
type mPhase int8

const (
	mIdle   mPhase = iota
	mClaim         // has appended an intent or takeover, and waits until it has read it
	mCall          // waits for the answer to its call
	mUnsure        // has given up waiting
	mAppend        // waits until it has read what it has appended
)

type mWorker struct {
	inc     int8
	phase   mPhase
	event   int8
	done    int8 // events whose results it has published, as bits
	read    int32
	own     int8 // the length of the log that it waits to read
	attempt mAttempt
	doubt   bool // of its hold
	round   int8
	late    bool // it was paused for so long that others may take over
}

// The answers of the platform.
const (
	mOK int8 = iota + 1
	mAlready
	mBad      // refused for good
	mRejected // turned away unseen
)

type mReply struct {
	attempt mAttempt
	answer  int8
}

// mBudget is how often something may happen.
type mBudget struct{ crash, timeout, bad, reject, foreign, stop, replay, pause, copies int8 }

type mState struct {
	log      int32
	workers  [3]mWorker
	flying   [3]mAttempt
	replies  [3]mReply
	shipped  bool  // by a call of ours
	foreign  bool  // by somebody else
	straggle int32 // a second copy of this node's record is on its way
	calls    int8  // that were not turned away
	left     mBudget
}

// model is one run of the explorer.
type model struct {
	workers, events int8
	budget          mBudget
	refuse          bool // event 1 is refused without a call
	noReadBack      bool
	// warp bends what the fold does to show that the explorer would notice.
	warp func(f *fold, e *entry) (restore func())

	nodes    []mNode
	children map[mChild]int32
	strings  map[mAttempt]string

	seen       map[mState]int32 // its number
	states     []mState
	from       []int32
	violations map[string]int32 // the first state that shows it
	maxCalls   int8
	effects    int8
}

type mChild struct {
	parent int32
	record mRecord
}

var modelShipment = schema.Shipment{ShopID: "1", TID: "2", Split: "0", OutSID: "SF1", CompanyCode: "SF"}

const modelLease = 1000 * time.Hour

// replay folds a log and describes the result.
func (m *model) replay(n int32) *fold {
	var path []int32
	for ; n > 0; n = m.nodes[n].parent {
		path = append(path, n)
	}
	f := newFold(modelLease)
	for _, n := range slices.Backward(path) {
		m.apply(f, n)
	}
	return f
}

func (m *model) apply(f *fold, n int32) bool {
	r := m.nodes[n].record
	at := time.Unix(int64(m.nodes[n].depth), 0)
	e := &entry{key: modelShipment.Key(), offset: int64(m.nodes[n].depth), time: at, read: at, record: record{
		Kind: r.kind, Attempt: m.name(r.attempt), Prev: m.name(r.prev), Event: mEventName(r.event),
		Round: int(r.round), Doubt: r.doubt, Uncalled: r.uncalled, Unanswered: r.unanswered, verdict: schema.Failed,
	}}
	if r.shipped {
		e.verdict = schema.Shipped
	}
	if r.kind == kindBye {
		e.Incarnation = incarnationOf(m.name(r.attempt))
		if r.listed != (mAttempt{}) {
			e.Open = []string{m.name(r.listed)}
		}
	}
	if m.warp == nil {
		return f.apply(e)
	}
	restore := m.warp(f, e)
	ok := f.apply(e)
	restore()
	return ok
}

func mEventName(e int8) string { return string(rune('a' + e)) }

func (m *model) name(a mAttempt) string {
	s, ok := m.strings[a]
	if !ok {
		s = a.String()
		m.strings[a] = s
	}
	return s
}

// append returns the log with a record more.
func (m *model) append(log int32, r mRecord) int32 {
	c := mChild{log, r}
	if n, ok := m.children[c]; ok {
		return n
	}
	n := int32(len(m.nodes))
	parent := m.nodes[log]
	node := mNode{parent: log, depth: parent.depth + 1, record: r, opened: parent.opened, takes: parent.takes}
	m.nodes = append(m.nodes, node)
	f := m.replay(log)
	node.accepted = m.apply(f, n)
	if node.accepted && r.kind == kindTakeover {
		node.takes++
	}
	if node.accepted && r.kind == kindIntent && !m.opened(log, r.event) {
		node.opened++
	}
	key := modelShipment.Key()
	for e := range m.events {
		st, offset, _ := f.standing(key, schema.HashEvent(mEventName(e)), time.Unix(int64(node.depth), 0))
		s := &node.standing[e]
		s.state, s.round, s.doubt, s.answer = st.State, int8(st.Round), st.Doubt, int8(offset)
	}
	holder := f.cooling[key].attempt
	node.cooling = holder != ""
	if o := f.open[key]; o != nil {
		holder = o.holder
	}
	for a, s := range m.strings {
		if s == holder && s != "" {
			node.holder = a
		}
	}
	if o := f.open[key]; o != nil && o.holder != "" {
		node.freed = !o.freeAt.After(time.Unix(int64(node.depth), 0))
	}
	if d, at, ok := f.settled(key); ok && at.failed() {
		node.plain = !d.failed[key].doubt
	}
	m.nodes[n] = node
	m.children[c] = n
	return n
}

// opened reports whether an event has opened a round.
func (m *model) opened(log int32, event int8) bool {
	for n := log; n > 0; n = m.nodes[n].parent {
		if r := m.nodes[n]; r.accepted && r.record.kind == kindIntent && r.record.event == event {
			return true
		}
	}
	return false
}

// at returns the node at an offset of a log.
func (m *model) at(log int32, offset int8) *mNode {
	n := log
	for m.nodes[n].depth > offset {
		n = m.nodes[n].parent
	}
	return &m.nodes[n]
}

func (s *mState) inFlight(a mAttempt) bool { return slices.Contains(s.flying[:], a) }

func (s *mState) fly(a mAttempt) {
	i := slices.Index(s.flying[:], mAttempt{})
	s.flying[i] = a
	slices.SortFunc(s.flying[:], compareAttempts)
}

func (s *mState) land(a mAttempt) {
	s.flying[slices.Index(s.flying[:], a)] = mAttempt{}
	slices.SortFunc(s.flying[:], compareAttempts)
}

func compareAttempts(a, b mAttempt) int {
	key := func(a mAttempt) int { return -(int(a.worker)<<16 | int(a.inc)<<8 | int(a.n)) }
	return key(a) - key(b)
}

// reply has an answer on its way to whoever still waits for it.
func (s *mState) reply(a mAttempt, answer int8) {
	for i := range s.workers {
		if w := &s.workers[i]; w.attempt == a && w.phase == mCall {
			j := slices.Index(s.replies[:], mReply{})
			s.replies[j] = mReply{a, answer}
			slices.SortFunc(s.replies[:], func(a, b mReply) int { return compareAttempts(a.attempt, b.attempt) })
			return
		}
	}
}

// leased reports whether an attempt may not be taken over: it is under way, or a
// worker is busy with it.
func (s *mState) leased(a mAttempt) bool {
	return s.inFlight(a) || slices.ContainsFunc(s.workers[:], func(w mWorker) bool {
		return w.attempt == a && w.phase != mIdle && !w.late
	})
}

// running reports whether an attempt may still take effect.
func (s *mState) running(a mAttempt) bool {
	return s.inFlight(a) || slices.ContainsFunc(s.workers[:], func(w mWorker) bool {
		return w.attempt == a && w.phase == mClaim && !w.late
	})
}

// run explores, up to a number of states, or until it has found all violations
// of a list that is not empty. It reports whether it has seen all states.
func (m *model) run(limit int, until ...string) (complete bool) {
	m.nodes = []mNode{{parent: -1}}
	for e := range m.events {
		m.nodes[0].standing[e].round = 1
	}
	m.children = make(map[mChild]int32)
	m.strings = map[mAttempt]string{{}: ""}
	m.seen = make(map[mState]int32)
	m.violations = make(map[string]int32)
	m.states, m.from = nil, nil
	m.maxCalls, m.effects = 0, 0
	init := mState{left: m.budget}
	for i := range init.workers {
		if int8(i) >= m.workers {
			init.workers[i].done = -1
		}
	}
	m.add(init, -1)
	for n := 0; n < len(m.states); n++ {
		if len(m.states) > limit || len(until) > 0 && m.hasFound(until) {
			return false
		}
		s := m.states[n]
		found := false
		m.next(&s, func(t mState) {
			found = true
			m.add(t, int32(n))
		})
		if !found {
			for i := range m.workers {
				if s.workers[i].done != 1<<m.events-1 {
					m.violate("stuck", int32(n))
				}
			}
		}
	}
	return true
}

func (m *model) add(s mState, from int32) {
	if _, ok := m.seen[s]; ok {
		return
	}
	n := int32(len(m.states))
	m.seen[s] = n
	m.states = append(m.states, s)
	m.from = append(m.from, from)
	m.maxCalls = max(m.maxCalls, s.calls)
	if s.shipped {
		m.effects = 1
	}
	node := &m.nodes[s.log]
	if s.calls > node.opened+node.takes {
		m.violate("blind repeat", n)
	}
}

func (m *model) violate(what string, state int32) {
	if _, ok := m.violations[what]; !ok {
		m.violations[what] = state
	}
}

// next calls yield with every state that may follow.
func (m *model) next(s *mState, yield func(mState)) {
	number := int32(-1)
	this := func() int32 {
		if number < 0 {
			number = m.seen[*s]
		}
		return number
	}
	for i := range m.workers {
		if t, ok := m.private(s, i, this); ok {
			yield(t)
			return
		}
	}
	for i := range m.workers {
		w := s.workers[i]
		if i > 0 && w == (mWorker{}) && s.workers[i-1] == w {
			break // it may as well be the one before
		}
		if w.read != s.log && w.phase != mCall && (w.done != 1<<m.events-1 || s.left.replay > 0) {
			t := *s
			t.workers[i].read = s.log
			yield(t)
		}
		m.faults(s, i, yield)
		m.act(s, i, yield, this)
	}
	m.platform(s, yield, this)
	if s.straggle != 0 {
		t := *s
		t.log = m.append(t.log, m.nodes[t.straggle].record)
		t.straggle = 0
		yield(t)
	}
}

// private returns the state after a step that nobody else can see or hinder, and
// that therefore need not be interleaved with others.
func (m *model) private(s *mState, i int8, this func() int32) (mState, bool) {
	w := s.workers[i]
	node := &m.nodes[w.read]
	idle := w.idle()
	switch {
	case w.phase == mAppend && node.depth >= w.own,
		w.phase == mClaim && node.depth >= w.own && node.holder != w.attempt && !m.noReadBack:
	case w.phase == mIdle:
		settled := false
		for e := range m.events {
			if st := node.standing[e]; w.done&(1<<e) == 0 && st.state == schema.StateSettled {
				if r := m.at(w.read, st.answer).record; r.shipped && !s.shipped && !s.foreign {
					m.violate("false shipped", this())
				}
				idle.done |= 1 << e
				settled = true
			}
		}
		if !settled {
			return mState{}, false
		}
	default:
		return mState{}, false
	}
	t := *s
	t.workers[i] = idle
	return t, true
}

// idle returns the worker when it has nothing in hand.
func (w mWorker) idle() mWorker { return mWorker{inc: w.inc, done: w.done, read: w.read} }

// faults is what may befall a worker.
func (m *model) faults(s *mState, i int8, yield func(mState)) {
	w := s.workers[i]
	busy := w.phase != mIdle || w.done != 1<<m.events-1
	reborn := mWorker{inc: w.inc + 1}
	step := func(w mWorker, change func(*mState)) {
		t := *s
		t.workers[i] = w
		change(&t)
		yield(t)
	}
	if s.left.crash > 0 && busy {
		step(reborn, func(t *mState) { t.left.crash--; t.dropReplies(w.attempt) })
		if s.inFlight(w.attempt) {
			step(reborn, func(t *mState) { t.left.crash--; t.dropReplies(w.attempt); t.land(w.attempt) })
		}
	}
	// A clean stop is made when no call is in the air. An attempt that was not
	// called under is disowned, one whose outcome is unknown is listed.
	if s.left.stop > 0 && busy && (w.phase == mIdle || w.phase == mClaim || w.phase == mUnsure) {
		bye := mRecord{kind: kindBye, attempt: mAttempt{i, w.inc, 1}}
		if w.phase == mUnsure {
			bye.listed = w.attempt
		}
		step(reborn, func(t *mState) { t.left.stop--; t.log = m.append(t.log, bye) })
	}
	if s.left.pause > 0 && w.phase != mIdle && !w.late && !s.inFlight(w.attempt) {
		w := w
		w.late = true
		step(w, func(t *mState) { t.left.pause-- })
	}
	if s.left.replay > 0 && w.phase == mIdle {
		for e := range m.events {
			if w.done&(1<<e) != 0 {
				w := w
				w.done &^= 1 << e
				step(w, func(t *mState) { t.left.replay-- })
			}
		}
	}
}

func (s *mState) dropReplies(a mAttempt) {
	for j := range s.replies {
		if s.replies[j].attempt == a {
			s.replies[j] = mReply{}
		}
	}
	slices.SortFunc(s.replies[:], func(a, b mReply) int { return compareAttempts(a.attempt, b.attempt) })
}

// act is what a worker may do.
func (m *model) act(s *mState, i int8, yield func(mState), this func() int32) {
	w := s.workers[i]
	node := &m.nodes[w.read]
	fresh := mAttempt{i, w.inc, m.nodes[s.log].depth + 1}
	step := func(w mWorker, change func(*mState)) {
		t := *s
		t.workers[i] = w
		if change != nil {
			change(&t)
		}
		yield(t)
	}
	// put appends a record, after which the worker is w and waits for it. With
	// an acknowledgement lost it is appended twice, now or much later.
	put := func(s *mState, w mWorker, r mRecord) {
		log := m.append(s.log, r)
		m.check(s, log, this())
		yield := func(log, straggle int32, copies int8) {
			t := *s
			w.own = m.nodes[log].depth
			t.workers[i], t.log, t.left.copies = w, log, t.left.copies-copies
			if straggle != 0 {
				t.straggle = straggle
			}
			yield(t)
		}
		yield(log, 0, 0)
		if s.left.copies > 0 {
			yield(m.append(log, r), 0, 1)
			if s.straggle == 0 {
				yield(log, log, 1)
			}
		}
	}
	claim := func(w mWorker, r mRecord) {
		r.attempt, r.event = fresh, w.event
		w.phase, w.attempt, w.late = mClaim, fresh, false
		put(s, w, r)
	}
	settle := func(w mWorker, shipped, maybe bool) {
		w.phase = mAppend
		put(s, w, mRecord{kind: kindOutcome, attempt: w.attempt, event: w.event, round: w.round, shipped: shipped, doubt: maybe && !shipped, unanswered: true})
	}

	switch w.phase {
	case mIdle:
		for e := range m.events {
			if w.done&(1<<e) != 0 {
				continue
			}
			w := w
			w.event = e
			st := node.standing[e]
			switch st.state {
			case schema.StateOpen:
				w.round = st.round
				if m.refuse && e == 1 {
					intent := m.append(s.log, mRecord{kind: kindIntent, attempt: fresh, event: e, round: st.round, doubt: st.doubt})
					own := m.append(intent, mRecord{kind: kindOutcome, attempt: fresh, event: e, round: st.round, doubt: st.doubt, uncalled: true})
					m.check(s, own, this())
					w.phase, w.attempt, w.own = mAppend, fresh, m.nodes[own].depth
					step(w, func(t *mState) { t.log = own })
					continue
				}
				claim(w, mRecord{kind: kindIntent, round: st.round, doubt: st.doubt})
			case schema.StateSettled: // private has seen to it
			case schema.StateHeld:
				if node.freed && s.running(node.holder) {
					m.violate("early bye", this())
				}
				switch {
				case s.leased(node.holder) && !node.freed:
				case node.cooling:
					w.round = st.round
					claim(w, mRecord{kind: kindIntent, round: st.round, doubt: st.doubt})
				default:
					claim(w, mRecord{kind: kindTakeover, prev: node.holder, round: st.round})
				}
			}
		}
	case mClaim:
		switch {
		case !m.noReadBack && node.depth < w.own:
		case m.noReadBack || node.holder == w.attempt:
			st := node.standing[w.event]
			w.round, w.doubt, w.own = st.round, st.doubt, 0
			if w.late {
				w.phase = mAppend
				put(s, w, mRecord{kind: kindRelease, attempt: w.attempt})
				return
			}
			w.phase = mCall
			for _, a := range s.flying {
				if a != (mAttempt{}) {
					m.violate("overlap", this())
				}
			}
			if slices.Contains(s.flying[:], mAttempt{}) {
				step(w, func(t *mState) { t.fly(w.attempt); t.calls++ })
			}
		}
	case mCall:
		for _, r := range s.replies {
			if r.attempt != w.attempt || r == (mReply{}) {
				continue
			}
			w := w
			w.phase = mAppend
			out := mRecord{kind: kindRelease, attempt: w.attempt}
			if r.answer != mRejected {
				ok := r.answer == mOK || r.answer == mAlready && w.doubt
				out = mRecord{kind: kindOutcome, attempt: w.attempt, event: w.event, round: w.round, shipped: ok, doubt: w.doubt && !ok}
			}
			t := *s
			t.dropReplies(w.attempt)
			if r.answer == mRejected {
				t.calls--
			}
			put(&t, w, out)
		}
		if s.left.timeout > 0 {
			w := w
			w.phase = mUnsure
			step(w, func(t *mState) { t.left.timeout--; t.dropReplies(w.attempt) })
			if s.inFlight(w.attempt) {
				step(w, func(t *mState) { t.left.timeout--; t.land(w.attempt) })
			}
		}
	case mUnsure:
		// Give up, or, when the call can no longer take effect, try again if
		// still the holder.
		settle(w, false, true)
		switch {
		case s.inFlight(w.attempt):
		case node.holder == w.attempt:
			claim(w, mRecord{kind: kindTakeover, prev: w.attempt, round: w.round})
		case w.read == s.log:
			step(w.idle(), nil)
		}
	case mAppend:
	}
}

// check looks at an outcome that is about to stand at the end of a log.
func (m *model) check(s *mState, log, state int32) {
	node := &m.nodes[log]
	r := node.record
	if r.kind != kindOutcome || !node.accepted {
		return
	}
	if !r.shipped && !r.doubt && s.shipped {
		m.violate("false failed", state)
	}
	for n := node.parent; n > 0; n = m.nodes[n].parent {
		if o := &m.nodes[n]; o.accepted && o.record.kind == kindOutcome && o.record.round == r.round && o.record.shipped == r.shipped {
			m.violate("two stories", state)
		}
	}
}

// platform is what the API may do.
func (m *model) platform(s *mState, yield func(mState), this func() int32) {
	for _, a := range s.flying {
		if a == (mAttempt{}) {
			continue
		}
		answer := func(r int8, change func(*mState)) {
			t := *s
			t.land(a)
			t.reply(a, r)
			if change != nil {
				change(&t)
			}
			yield(t)
		}
		if s.shipped || s.foreign {
			answer(mAlready, nil)
		} else {
			if m.nodes[s.log].plain {
				m.violate("false failed", this())
			}
			answer(mOK, func(t *mState) { t.shipped = true })
		}
		if s.left.bad > 0 && !s.shipped && !s.foreign {
			answer(mBad, func(t *mState) { t.left.bad-- })
		}
		if s.left.reject > 0 {
			answer(mRejected, func(t *mState) { t.left.reject-- })
		}
	}
	if s.left.foreign > 0 && !s.shipped {
		t := *s
		t.left.foreign--
		t.foreign = true
		yield(t)
	}
}

// trace describes the way to a state.
func (m *model) trace(n int32) string {
	var b strings.Builder
	var path []int32
	for ; n >= 0; n = m.from[n] {
		path = append(path, n)
	}
	for _, n := range slices.Backward(path) {
		s := &m.states[n]
		fmt.Fprintf(&b, "  shipped=%v foreign=%v flying=%v replies=%v\n", s.shipped, s.foreign, s.flying, s.replies)
		for i := range m.workers {
			w := s.workers[i]
			fmt.Fprintf(&b, "    w%d.%d phase=%d event=%d attempt=%v done=%b read=%d\n", i, w.inc, w.phase, w.event, w.attempt, w.done, m.nodes[w.read].depth)
		}
	}
	s := &m.states[path[0]]
	var log []string
	for n := s.log; n > 0; n = m.nodes[n].parent {
		r := m.nodes[n].record
		log = append(log, fmt.Sprintf("    %d %s %v prev=%v event=%d round=%d doubt=%v shipped=%v accepted=%v", m.nodes[n].depth, r.kind, r.attempt, r.prev, r.event, r.round, r.doubt, r.shipped, m.nodes[n].accepted))
	}
	slices.Reverse(log)
	return b.String() + strings.Join(log, "\n")
}

func (m *model) found() []string { return slices.Sorted(maps.Keys(m.violations)) }

func (m *model) hasFound(violations []string) bool {
	for _, what := range violations {
		if _, ok := m.violations[what]; !ok {
			return false
		}
	}
	return true
}
