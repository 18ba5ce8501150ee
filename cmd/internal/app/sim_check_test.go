package app

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"

	"packship/schema"
	"packship/upstream/upstreamtest"
)

// simViolation is something that must never be.
type simViolation struct {
	invariant string // I1 to I10, or simulation for what the simulation itself could not do
	tid       string // of the order it is about, "" if none
	text      string
}

// violate notes a violation.
func (s *simulation) violate(invariant, tid, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = append(s.trouble, simViolation{invariant, tid, fmt.Sprintf(format, args...)})
}

// countGoroutines returns how many goroutines the simulation has now, without
// those of the embedded brokers: they keep their ends of the connections of
// replicas that have crashed. What belongs to the simulation bears its label.
func (s *simulation) countGoroutines() int {
	var profile bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		s.violate("simulation", "", "%v", err)
	}
	label, total := fmt.Sprintf("# labels: {%q:%q}\n", simLabel, strconv.FormatUint(s.seed, 10)), 0
	_, stacks, _ := strings.Cut(profile.String(), "\n") // after the title
	for stack := range strings.SplitSeq(stacks, "\n\n") {
		if strings.Contains(stack, label) && !strings.Contains(stack, "/kfake.") {
			n, _, _ := strings.Cut(stack, " @ ")
			count, err := strconv.Atoi(n)
			if err != nil {
				s.violate("simulation", "", "a profile of goroutines: %v", err)
			}
			total += count
		}
	}
	return total
}

// simFindings are the histories of a simulation that is over, side by side.
type simFindings struct {
	s       *simulation
	inputs  []*simInput
	results []*simResult
	dead    map[string][]time.Time // dead letters by partition/offset of the input
	calls   []*simCall
	ledger  []*simEntry
	commits []simCommit

	byEvent    map[string][]*simResult
	holds      map[string][]*simHold    // by shipment, in the order of the log
	outcomes   map[string][]*simOutcome // those that counted, by shipment
	processes  map[string]*simProcess   // by instance and by name
	excused    map[string]int           // repeats after an answer that its caller could not write down
	lateNews   int                      // calls that news of a success came just too late for
	ambiguous  int                      // orders of which the API cannot say which waybill it took
	violations []simViolation
}

type simInput struct {
	schema.Record

	packed *schema.Packed // nil if it is no event
}

type simResult struct {
	schema.Record
	schema.Result

	at      time.Time
	client  string
	replyTo string
}

type simCall struct {
	upstreamtest.Entry

	shipment string // canonical
	process  *simProcess
	hold     *simHold
}

type simEntry struct {
	schema.Record

	at     time.Time
	client string
	what   simLedgerRecord
}

// simLedgerRecord is what the checks need to know of a record of the ledger.
// It is read on its own, so that a mistake in the ledger's own reading shows.
type simLedgerRecord struct {
	Kind, Attempt, Prev, Event string
	Round                      int
	Doubt                      bool
	Incarnation                string
	Open                       []string
	Why                        string
	Outcome                    *schema.Outcome
}

// simHold is an attempt for the time that it held a shipment.
type simHold struct {
	attempt string
	process *simProcess
	event   string
	round   int
	begin   *simEntry // the intent or takeover
	before  *simHold  // that a takeover took over from
	end     *simEntry // nil if it was never ended
	bye     *simEntry // of its process, if that did not list it
	call    *simCall
}

// simOutcome is an outcome that counted.
type simOutcome struct {
	*schema.Outcome

	entry *simEntry
	round int
}

func (f *simFindings) violate(invariant, tid, format string, args ...any) {
	f.violations = append(f.violations, simViolation{invariant, tid, fmt.Sprintf(format, args...)})
}

// findings reads all histories and compares them.
func (s *simulation) findings(ctx context.Context) (*simFindings, error) {
	f := &simFindings{
		s: s, dead: map[string][]time.Time{}, byEvent: map[string][]*simResult{}, holds: map[string][]*simHold{},
		outcomes: map[string][]*simOutcome{}, processes: map[string]*simProcess{}, excused: map[string]int{},
	}
	s.mu.Lock()
	for _, p := range s.processes {
		f.processes[p.name], f.processes[p.c.name] = p, p
	}
	s.mu.Unlock()
	s.history.mu.Lock()
	f.commits = slices.Clone(s.history.commits)
	s.history.mu.Unlock()
	if err := f.read(ctx); err != nil {
		return nil, err
	}
	f.fold()
	f.callsAndHolds()
	f.answered()
	f.appliedOnce()
	f.truth()
	f.identity()
	f.offsets()
	f.order()
	f.bounded()
	return f, nil
}

// read reads the topics and the journal of the API.
func (f *simFindings) read(ctx context.Context) error {
	s, set := f.s, &f.s.settings
	var failed error
	scan := func(topic string, each func(r schema.Record) error) {
		if failed == nil {
			failed = s.kafka.Scan(ctx, topic, func(r *schema.Record) error { return each(*r) })
		}
	}
	scan(set.TopicPacked, func(r schema.Record) error {
		in := &simInput{Record: r}
		if p, err := schema.DecodePacked(&in.Record); err == nil {
			in.packed = p
		}
		f.inputs = append(f.inputs, in)
		return nil
	})
	for _, topic := range []string{set.TopicShipped, set.TopicFailed} {
		scan(topic, func(r schema.Record) error {
			res := &simResult{Record: r}
			res.replyTo, _ = r.Header("in_reply_to")
			res.at, res.client = s.history.appended(topic, &r)
			f.results = append(f.results, res)
			f.byEvent[res.replyTo] = append(f.byEvent[res.replyTo], res)
			return json.Unmarshal(r.Value, &res.Result)
		})
	}
	scan(set.TopicDLQ, func(r schema.Record) error {
		partition, _ := r.Header("packship_partition")
		offset, _ := r.Header("packship_offset")
		at, _ := s.history.appended(set.TopicDLQ, &r)
		f.dead[partition+"/"+offset] = append(f.dead[partition+"/"+offset], at)
		return nil
	})
	scan(set.TopicLedger, func(r schema.Record) error {
		e := &simEntry{Record: r}
		e.at, e.client = s.history.appended(set.TopicLedger, &r)
		f.ledger = append(f.ledger, e)
		return json.Unmarshal(r.Value, &e.what)
	})
	slices.SortStableFunc(f.results, func(a, b *simResult) int { return a.at.Compare(b.at) })
	for _, list := range f.byEvent {
		slices.SortStableFunc(list, func(a, b *simResult) int { return a.at.Compare(b.at) })
	}
	for _, e := range s.api.Journal().Calls() {
		c := &simCall{Entry: e, process: f.processes[processOf(e.Remote)]}
		c.shipment = shipmentOf(e.Shipment)
		f.calls = append(f.calls, c)
	}
	return failed
}

// shipmentOf returns the canonical form of a shipment as the API sees it.
func shipmentOf(e upstreamtest.Shipment) string {
	s := schema.Shipment{ShopID: e.ShopID, TID: e.TID, Split: "0", OutSID: e.OutSID, CompanyCode: e.CompanyCode}
	if e.Split {
		s.Split = "1"
	}
	if e.SubTIDs != "" {
		s.SubTID = strings.Split(e.SubTIDs, ",")
	}
	return s.Canonical()
}

// simState is the state of a shipment by the table of the design.
type simState struct {
	hold     *simHold // nil unless held
	released string   // the attempt that was released last
	round    int
	doubt    bool
	shipped  bool
	failed   bool
	answered map[string]bool // events
	unsure   []string        // events of attempts of this round that were taken over
}

// fold finds out which attempts held which shipments, and which outcomes
// counted.
func (f *simFindings) fold() {
	states := map[string]*simState{}
	for _, e := range f.ledger {
		r := &e.what
		if r.Kind == "meta" {
			continue
		}
		if r.Kind == "bye" {
			for _, st := range states {
				if h := st.hold; h != nil && strings.HasPrefix(h.attempt, r.Incarnation+"/") && !slices.Contains(r.Open, h.attempt) && h.begin.Partition == e.Partition && h.bye == nil {
					h.bye = e
				}
			}
			continue
		}
		key := string(e.Key)
		st := states[key]
		if st == nil {
			st = &simState{answered: map[string]bool{}}
			states[key] = st
		}
		f.step(key, st, e)
	}
}

// step folds one record in.
func (f *simFindings) step(key string, st *simState, e *simEntry) {
	r := &e.what
	begin := func(before *simHold) {
		instance := r.Attempt[:max(0, strings.LastIndexByte(r.Attempt, '/'))]
		instance = instance[:max(0, strings.LastIndexByte(instance, '/'))]
		st.hold = &simHold{attempt: r.Attempt, process: f.processes[instance], event: r.Event, round: st.round, begin: e, before: before}
		st.released = ""
		f.holds[key] = append(f.holds[key], st.hold)
	}
	end := func() {
		if st.hold != nil {
			st.hold.end = e
		}
		st.hold = nil
	}
	switch r.Kind {
	case "intent":
		round := max(1, st.round)
		if st.failed {
			round++
		}
		if st.shipped || st.hold != nil || st.released == r.Attempt || st.answered[r.Event] || r.Round != round || st.doubt && !r.Doubt {
			return
		}
		st.round, st.failed = round, false
		st.doubt = r.Doubt
		begin(nil)
	case "takeover":
		if st.hold == nil || st.hold.attempt != r.Prev {
			return
		}
		before := st.hold
		st.doubt = true
		st.unsure = append(st.unsure, before.event)
		end()
		begin(before)
	case "release":
		if st.hold != nil && st.hold.attempt == r.Attempt {
			st.released = r.Attempt
			end()
		}
	case "outcome":
		switch {
		case r.Outcome == nil || st.shipped:
			return
		case r.Outcome.Verdict == schema.Shipped:
			st.shipped = true
			end()
		case st.hold == nil || st.hold.attempt != r.Attempt:
			return
		default:
			st.failed = true
			st.doubt = st.doubt || r.Doubt
			for _, event := range append(st.unsure, st.hold.event) {
				st.answered[event] = true
			}
			st.unsure = nil
			end()
		}
		f.outcomes[key] = append(f.outcomes[key], &simOutcome{Outcome: r.Outcome, entry: e, round: r.Round})
	}
}

// lateNews reports whether a hold was ended by an attempt that had been given up
// and was not over after all: it brought a success. That may come between a claim
// and its call.
func (h *simHold) lateNews() bool {
	return h.end.what.Kind == "outcome" && h.end.what.Attempt != h.attempt && h.end.what.Outcome.Verdict == schema.Shipped
}

// simSlack is what the checks allow between two clocks that are the same: the
// latency of the network, and the times that are known only by the record
// before.
const simSlack = 50 * time.Millisecond

// callsAndHolds checks I3: every call is made under an attempt that held the
// shipment, no attempt makes two calls, and an attempt that follows another has
// a reason to.
func (f *simFindings) callsAndHolds() {
	startBy := f.s.settings.StartBy()
	for _, c := range f.calls {
		tid := c.Shipment.TID
		if c.process == nil {
			f.violate("simulation", tid, "call %d came from nobody: %s", c.N, c.Remote)
			continue
		}
		var under *simHold
		for _, h := range f.holds[c.shipment] {
			if h.process == c.process && !h.begin.at.After(c.Arrived) {
				under = h // the last of them
			}
		}
		switch {
		case under == nil:
			f.violate("I3", tid, "call %d by %s without a hold", c.N, c.process.name)
			continue
		case under.call != nil:
			f.violate("I3", tid, "calls %d and %d by %s under one attempt, %s", under.call.N, c.N, c.process.name, under.attempt)
			continue
		case c.Arrived.Sub(under.begin.at) > startBy+simSlack:
			f.violate("I3", tid, "call %d by %s began %s after its intent, %s are allowed", c.N, c.process.name, c.Arrived.Sub(under.begin.at), startBy)
		case under.end != nil && under.end.at.Add(simSlack).Before(c.Arrived) && under.lateNews():
			f.lateNews++
		case under.end != nil && under.end.at.Add(simSlack).Before(c.Arrived):
			f.violate("I3", tid, "call %d by %s came at %s, but its hold had ended at %s by a %s", c.N, c.process.name, f.s.history.since(c.Arrived), f.s.history.since(under.end.at), under.end.what.Kind)
		case under.bye != nil:
			f.violate("I3", tid, "call %d by %s was made under an attempt that its good-bye at %s does not list", c.N, c.process.name, f.s.history.since(under.bye.at))
		}
		under.call, c.hold = c, under
	}
	for _, key := range slices.Sorted(maps.Keys(f.holds)) {
		for i, h := range f.holds[key] {
			f.succession(key, f.holds[key][:i], h)
		}
	}
}

// succession checks that an attempt had a reason to follow those before it.
func (f *simFindings) succession(key string, earlier []*simHold, h *simHold) {
	set := &f.s.settings
	shipment, _ := schema.ParseShipment(key)
	tid := shipment.TID
	if set.UnknownPolicy == "park" && h.before != nil && h.call != nil {
		f.violate("I3", tid, "call %d follows an attempt with an unknown outcome, although such orders are parked", h.call.N)
	}
	if p := h.before; p != nil {
		lease := set.StartBy() + set.UpstreamTimeout + set.UpstreamSettle
		waited := h.begin.at.Sub(p.begin.at)
		switch {
		case p.process != h.process && p.bye == nil && waited < lease:
			f.violate("I3", tid, "%s was taken over by %s after %s, before it was certainly over (%s)", p.attempt, h.attempt, waited, lease)
		case p.process == h.process && p.call != nil && !p.call.Done.IsZero() && h.begin.at.Add(simSlack).Before(p.call.Done):
			f.violate("I3", tid, "%s was taken over by %s while its call was under way", p.attempt, h.attempt)
		case p.process == h.process && p.call != nil && p.call.Status == 0 && h.begin.at.Sub(p.call.Done) < set.UpstreamSettle-simSlack && h.call != nil:
			f.violate("I3", tid, "%s was taken over by %s %s after its call, which was not answered; it may take effect for %s", p.attempt, h.attempt, h.begin.at.Sub(p.call.Done), set.UpstreamSettle)
		}
	}
	if h.call == nil {
		return
	}
	// A call after an answer that says what became of the shipment is blind,
	// unless it is for another event, or the answer has not got into the ledger.
	for _, p := range earlier {
		c := p.call
		if c == nil || !conclusive(c) || !c.Arrived.Before(h.call.Arrived) || p.round != h.round {
			continue
		}
		if p.end != nil && p.end.what.Kind == "release" {
			f.violate("I3", tid, "call %d was answered by row %d, then its hold was released and call %d made", c.N, c.Row, h.call.N)
			continue
		}
		excuse := cmp.Or(p.process.excuse(c.Arrived, h.call.Arrived), p.process.missed(c, set.UpstreamTimeout))
		if excuse == "" && p.process != h.process {
			excuse = f.s.brokerTrouble(c.Arrived, h.call.Arrived)
		}
		if excuse == "" {
			f.violate("I3", tid, "call %d by %s was answered by row %d, and call %d by %s follows", c.N, p.process.name, c.Row, h.call.N, h.process.name)
			continue
		}
		f.excused[excuse]++
	}
}

// conclusive reports whether the API has said what became of a shipment, and
// its caller was there.
func conclusive(c *simCall) bool {
	switch c.Row {
	case 0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 53, 55, 56, 57:
		return false
	}
	return c.Delivered
}

// brokerTrouble returns what kept brokers from taking records for so long, at
// some time between two times, that a lease may have run out.
func (s *simulation) brokerTrouble(from, to time.Time) string {
	s.history.mu.Lock()
	defer s.history.mu.Unlock()
	for _, l := range s.history.faults {
		if l.at.Before(from.Add(-time.Minute)) || l.at.After(to) {
			continue
		}
		for _, kind := range []string{"replicas missing", "broker gone", "request hung", "append refused", "append not acknowledged", "leader moved", "leaders shuffled"} {
			if strings.HasPrefix(l.text, kind) {
				return kind
			}
		}
	}
	return ""
}

// answered checks I1: every record has a result or a dead letter.
func (f *simFindings) answered() {
	for _, in := range f.inputs {
		letters := slices.ContainsFunc(f.dead[place(in.Record)], f.beforeCalm)
		switch {
		case in.packed == nil:
			if !letters {
				f.violate("I1", "", "record %s is no event and has no dead letter: %q", place(in.Record), in.Value)
			}
		case !slices.ContainsFunc(f.byEvent[in.packed.EventID], func(r *simResult) bool { return r.TID == in.packed.TID && f.beforeCalm(r.at) }):
			f.violate("I1", in.packed.TID, "event %s at %s has no result", in.packed.EventID, place(in.Record))
		case letters:
			f.violate("I1", in.packed.TID, "event %s at %s has a dead letter", in.packed.EventID, place(in.Record))
		}
	}
}

func (f *simFindings) beforeCalm(t time.Time) bool { return !t.After(f.s.calm) }

func place(r schema.Record) string {
	return strconv.Itoa(r.Partition) + "/" + strconv.FormatInt(r.Offset, 10)
}

// appliedOnce checks I2 and I6, as the API has seen them.
func (f *simFindings) appliedOnce() {
	for _, v := range f.s.api.Verify() {
		invariant := "I2"
		if v.Rule == "rate" {
			invariant = "I6"
		}
		f.violate(invariant, "", "%s: %s", v.Rule, v.Detail)
	}
	for shipment, n := range f.s.api.Journal().Applied() {
		if n > 1 {
			f.violate("I2", shipment.TID, "shipped %d times: %+v", n, shipment)
		}
	}
}

// truth checks I4: what the results say is what the API has done.
func (f *simFindings) truth() {
	applied := map[string][]*simCall{}
	for _, c := range f.calls {
		if c.Applied {
			applied[c.shipment] = append(applied[c.shipment], c)
		}
	}
	seen := map[string]bool{}
	for _, r := range f.results {
		if seen[r.ResultID] {
			continue
		}
		seen[r.ResultID] = true
		key := f.shipmentOfResult(r)
		entry := f.source(key, r)
		if entry == nil {
			f.violate("I4", r.TID, "result %s (%s) was published, but no outcome of the ledger is this", r.ResultID, r.Status)
			continue
		}
		if entry.entry.at.After(r.at.Add(simSlack)) {
			f.violate("I4", r.TID, "result %s was published at %s, before its outcome stood in the ledger at %s", r.ResultID, f.s.history.since(r.at), f.s.history.since(entry.entry.at))
		}
		before := slices.ContainsFunc(applied[key], func(c *simCall) bool {
			// Times may be the same, the order of the log is not.
			return c.hold != nil && c.hold.begin.Offset < entry.entry.Offset || c.hold == nil && !c.Arrived.After(entry.entry.at)
		})
		switch {
		case r.Status == schema.Shipped && !before && f.shippedOtherwise(key, r, entry):
			f.ambiguous++
		case r.Status == schema.Shipped && !before:
			f.violate("I4", r.TID, "result %s says shipped, but the API has not shipped %s", r.ResultID, key)
		case r.Status == schema.Failed && !r.MaybeShipped && before:
			f.violate("I4", r.TID, "result %s says failed (%s) without maybe_shipped, but the API has shipped %s", r.ResultID, r.Reason, key)
		}
	}
}

// shippedOtherwise reports whether a result that was reconciled speaks of another
// shipment of the same order. The API says only that the order is shipped, not
// under which waybill, so that after an attempt that was not answered nobody can
// know.
func (f *simFindings) shippedOtherwise(key string, r *simResult, o *simOutcome) bool {
	doubt := slices.ContainsFunc(f.holds[key], func(h *simHold) bool { return h.before != nil && h.begin.at.Before(o.entry.at) })
	return r.Reconciled && doubt && slices.ContainsFunc(f.calls, func(c *simCall) bool {
		return c.Applied && c.Shipment.TID == r.TID && c.Shipment.ShopID == r.ShopID && c.shipment != key
	})
}

// source returns the outcome that a result was published from, nil if none.
func (f *simFindings) source(key string, r *simResult) *simOutcome {
	for _, o := range f.outcomes[key] {
		if o.ResultID == r.ResultID && bytes.Equal(o.Event, r.Value) {
			return o
		}
	}
	return nil
}

// shipmentOfResult returns the canonical form of the shipment that a result is
// about, by the event that it answers.
func (f *simFindings) shipmentOfResult(r *simResult) string {
	for _, in := range f.inputs {
		if in.packed != nil && in.packed.EventID == r.replyTo && in.packed.TID == r.TID {
			return in.packed.Shipment.Canonical()
		}
	}
	return ""
}

// identity checks I5: one id means the same bytes, and an event has one answer,
// but for a success that is learned after a failure was composed. Then the
// success has the last word.
func (f *simFindings) identity() {
	first := map[string]*simResult{}
	type answers struct {
		failed, shipped string
		last            *simResult
	}
	byEvent := map[string]*answers{}
	for _, r := range f.results {
		if id, _ := r.Header("ce_id"); id != r.ResultID || string(r.Key) != r.TID {
			f.violate("I5", r.TID, "record %s of %s has id %s and key %s, its event %s and %s", place(r.Record), r.Topic, id, r.Key, r.ResultID, r.TID)
		}
		if before := first[r.ResultID]; before == nil {
			first[r.ResultID] = r
		} else if !bytes.Equal(before.Value, r.Value) {
			f.violate("I5", r.TID, "result %s was published as\n%s\nand\n%s", r.ResultID, before.Value, r.Value)
		}
		a := byEvent[r.replyTo]
		if a == nil {
			a = &answers{}
			byEvent[r.replyTo] = a
		}
		id := &a.failed
		if r.Status == schema.Shipped {
			id = &a.shipped
		}
		if *id != "" && *id != r.ResultID {
			f.violate("I5", r.TID, "event %s was answered with %s results %s and %s", r.replyTo, r.Status, *id, r.ResultID)
		}
		*id, a.last = r.ResultID, r
	}
	for event, a := range byEvent {
		if a.shipped != "" && a.last.Status == schema.Failed {
			f.violate("I5", a.last.TID, "event %s was answered with a success, and at %s, by %s, with a failure after it",
				event, f.s.history.since(a.last.at), a.last.client)
		}
	}
}

// offsets checks I7: a commit covers only what has been settled by then, and
// those that take effect never go back.
func (f *simFindings) offsets() {
	// settled counts how often a group had answered the record's event by a
	// time.
	settled := func(in *simInput, group string, by time.Time) int {
		n := 0
		if in.packed == nil {
			for _, at := range f.dead[place(in.Record)] {
				if !at.After(by) {
					n++
				}
			}
			return n
		}
		for _, r := range f.byEvent[in.packed.EventID] {
			if p := f.processes[r.client]; !r.at.After(by) && (p == nil || p.c.settings.KafkaGroupID == group) {
				n++
			}
		}
		return n
	}
	type lane struct {
		group     string
		partition int32
	}
	byPartition := map[lane][]*simInput{}
	for _, in := range f.inputs {
		for _, group := range f.s.groups() {
			k := lane{group, int32(in.Partition)}
			byPartition[k] = append(byPartition[k], in)
		}
	}
	reached := map[lane]simCommit{}
	covered := map[string]int{} // records of an event that a group's commits have covered
	for _, c := range f.commits {
		if c.client == simTestClient || c.generation < 0 {
			continue
		}
		k := lane{c.group, c.partition}
		rest := byPartition[k]
		for len(rest) > 0 && rest[0].Offset < c.offset {
			in, tid, event := rest[0], "", ""
			rest = rest[1:]
			if in.packed != nil {
				tid, event = in.packed.TID, in.packed.EventID
			}
			need := 1
			if event != "" {
				covered[c.group+" "+event]++
				need = covered[c.group+" "+event]
			}
			if got := settled(in, c.group, c.at.Add(simSlack)); got < need {
				f.violate("I7", tid, "%s committed offset %d of partition %d at %s, but record %d was not settled by then: %d answers to %d records of event %s",
					c.client, c.offset, c.partition, f.s.history.since(c.at), in.Offset, got, need, event)
			}
		}
		byPartition[k] = rest
		if !c.accepted() {
			continue
		}
		if before := reached[k]; before.era == c.era && c.offset < before.offset {
			f.violate("I7", "", "%s (member %s, generation %d) moved the committed offset of partition %d back from %d to %d at %s; %s (member %s, generation %d) had committed it at %s",
				c.client, c.member, c.generation, c.partition, before.offset, c.offset, f.s.history.since(c.at),
				before.client, before.member, before.generation, f.s.history.since(before.at))
		}
		reached[k] = c
	}
}

// order checks I8: the records of one order in one partition are answered in
// their order, and its calls never overlap.
func (f *simFindings) order() {
	type lane struct {
		partition int
		tid       string
	}
	last := map[lane]*simResult{}
	event := map[lane]string{}
	seen := map[string]bool{}
	for _, in := range f.inputs {
		if in.packed == nil || seen[in.packed.EventID] {
			continue // a repeat is answered by an earlier result
		}
		seen[in.packed.EventID] = true
		list := f.byEvent[in.packed.EventID]
		if len(list) == 0 {
			continue
		}
		k := lane{in.Partition, in.packed.TID}
		if before := last[k]; before != nil && list[0].at.Before(before.at) {
			f.violate("I8", in.packed.TID, "event %s was answered at %s, before event %s of the same order, which comes first, at %s", in.packed.EventID, f.s.history.since(list[0].at), event[k], f.s.history.since(before.at))
		}
		last[k], event[k] = list[0], in.packed.EventID
	}
	byOrder := map[string]*simCall{}
	for _, c := range f.calls {
		k := c.Shipment.ShopID + "/" + c.Shipment.TID
		if before := byOrder[k]; before != nil {
			over := before.Arrived.Add(f.s.settings.UpstreamTimeout)
			if !before.Done.IsZero() && before.Done.Before(over) {
				over = before.Done
			}
			if c.Arrived.Add(simSlack).Before(over) && !f.overtaken(before, c) {
				f.violate("I8", c.Shipment.TID, "call %d came while call %d for the same order was under way", c.N, before.N)
			}
		}
		byOrder[k] = c
	}
}

// overtaken reports whether a call was already pointless when the next one of the
// same order came, by a replica of another group: news of its shipment's success
// had reached the ledger late, and that group went on to the next shipment.
// Within a group the caller itself is in charge of all of them.
func (f *simFindings) overtaken(call, next *simCall) bool {
	return f.s.profile.groups > 1 && call.shipment != next.shipment && slices.ContainsFunc(f.outcomes[call.shipment], func(o *simOutcome) bool {
		return o.Verdict == schema.Shipped && o.entry.at.After(call.Arrived) && !o.entry.at.After(next.Arrived)
	})
}

// bounded checks I9, and that no process said what it must not.
func (f *simFindings) bounded() {
	const maxKafkaConns = 100
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	for _, p := range f.s.processes {
		if n := p.api.peakConns(); n > f.s.settings.MaxInFlight {
			f.violate("I9", "", "%s had %d connections to the API", p.name, n)
		}
		if n := p.kafka.peakConns(); n > maxKafkaConns {
			f.violate("I9", "", "%s had %d connections to the brokers", p.name, n)
		}
		p.mu.Lock()
		for _, line := range p.unhealthy {
			f.violate("I9", "", "%s logged: %s", p.name, line)
		}
		p.mu.Unlock()
	}
}

// story is all that is known of one order, in the order of time.
func (f *simFindings) story(tid string) string {
	type line struct {
		at   time.Time
		text string
	}
	var lines []line
	add := func(at time.Time, format string, args ...any) {
		lines = append(lines, line{at, fmt.Sprintf(format, args...)})
	}
	for _, in := range f.inputs {
		if in.packed != nil && in.packed.TID == tid {
			add(in.Time, "packed   %s %s (%s) %s", place(in.Record), in.packed.EventID, in.packed.OutSID, in.Value)
		}
	}
	for _, e := range f.ledger {
		if s, ok := schema.ParseShipment(string(e.Key)); ok && s.TID == tid {
			add(e.at, "ledger   %s by %s (%s): %.230s", place(e.Record), e.client, s.OutSID, e.Value)
		}
	}
	for _, c := range f.calls {
		if c.Shipment.TID == tid {
			name := "?"
			if c.process != nil {
				name = c.process.name
			}
			add(c.Arrived, "call     %d by %s (%s): fault %q, row %d, status %d, applied %t, delivered %t, done %s",
				c.N, name, c.Shipment.OutSID, c.Fault, c.Row, c.Status, c.Applied, c.Delivered, f.s.history.since(c.Done))
		}
	}
	for _, r := range f.results {
		if r.TID == tid {
			reason := ""
			if r.Failure != nil {
				reason = fmt.Sprintf(" (%s, maybe shipped %t)", r.Reason, r.MaybeShipped)
			}
			add(r.at, "result   %s %s by %s in reply to %s: %s %s%s, reconciled %t", r.Topic, place(r.Record), r.client, r.replyTo, r.ResultID, r.Status, reason, r.Reconciled)
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { return a.at.Compare(b.at) })
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "  %s %s\n", f.s.history.since(l.at), l.text)
	}
	return b.String()
}

// report writes down the violations, each with what is needed to understand it.
func (f *simFindings) report() string {
	const most = 5
	var b strings.Builder
	slices.SortStableFunc(f.violations, func(x, y simViolation) int { return cmp.Compare(x.invariant, y.invariant) })
	for i, v := range f.violations {
		if i == most {
			fmt.Fprintf(&b, "and %d more\n", len(f.violations)-most)
			break
		}
		fmt.Fprintf(&b, "%s: %s\n", v.invariant, v.text)
		if v.tid != "" {
			fmt.Fprintf(&b, "order %s:\n%s", v.tid, f.story(v.tid))
		}
	}
	fmt.Fprintf(&b, "profile: %s\nfaults:\n%s", f.s.profile, f.s.history.faultLog(f.s.history.start, time.Now()))
	return b.String()
}
