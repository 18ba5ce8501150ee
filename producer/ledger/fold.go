package ledger

import (
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"packship/schema"
)

// fold is the state of the shipments of one ledger partition: what its records,
// taken in the order of the log, amount to. It does no I/O and looks at no
// clock, so that all replicas that have read the same records have the same
// state, and so that a test can explore it.
//
// A shipment is in one of these states:
//
//	none       nothing is known of it
//	released   attempts were made, all of them known not to have been executed,
//	           or in doubt; the next intent gets it, in the same round
//	held       an attempt holds it
//	failed     the round has ended with a failure; an intent opens the next one,
//	           which is made for an event that no round is known to have answered
//	shipped    for good
//
// What a record does:
//
//	in state                 record                   becomes
//	none, released, failed   intent(A) that fits      held(A)
//	held(B)                  takeover(A, prev = B)    held(A), in doubt
//	held(A)                  release(A)               released
//	held(A)                  outcome(A, failed)       failed
//	all but shipped          outcome(any, shipped)    shipped
//	held(A)                  bye(incarnation of A)    held(A), free at once unless listed
//
// and nothing else does anything. Retention takes the log away record by record:
// where nothing is known of a shipment, a record speaks for what stood before it.
// So then an intent fits in whatever round it is, a takeover holds, and a failure
// ends the round of an attempt whose intent is gone. Without that who reads the
// log later would forget what those still know who read all of it: what has been
// answered, and what is in doubt. And an intent of a first round that does not fit
// begins anew where what is known is as old as the horizon: those who know it forget
// it a little later than the log does.
//
// An intent fits if it was made for the state it
// meets: it names the round that it opens or joins, and it knows of a doubt that
// there is. Without that an outcome that was composed beforehand could carry the
// id of another round, or forget the doubt. Whether its event has been answered is
// for its writer to look at before: who knows the round has read what the rounds
// before it have answered, unless that has expired. Then some still know it and
// some do not, and if the fold asked, they would not agree on the holder.
//
// Doubt means that an attempt has an unknown outcome. It comes with a takeover,
// with a failure that says so, or with an intent whose writer knew; it is never
// taken back, because a definite answer to a later attempt says nothing about an
// earlier one.
//
// A failure answers the event that its attempt acted for, and those of the
// attempts that were taken over in its round: their calls may have been made, so
// that another round for them would be a blind repeat.
//
// A failure may have been settled while its call, which nobody answered, was
// still under way. So the next round, for another event, does not begin before
// that call can no longer take effect: until then the shipment looks held. That
// is the only way in which a state depends on the time.
type fold struct {
	// lease is how long after a holder's record was read its attempt may still
	// take effect.
	lease time.Duration
	// horizon is how long the log keeps records at least, 0 if that is not known.
	horizon time.Duration

	// open has the shipments that are held or released.
	open map[schema.Key]*open
	// cooling has those that have failed without an answer, for as long as the
	// attempt may still take effect.
	cooling map[schema.Key]cooling
	// days has those that are settled, by the day of the outcome's record, so
	// that the horizon forgets whole maps. The newest day is first.
	days []*day
	// parcels has the waybill numbers of those that were shipped lately.
	parcels parcels
}

// open is a shipment that is held or released.
type open struct {
	holder   string // the attempt that holds it, "" if it is released
	event    string // that the holder acts for
	released string // the attempt that was released last
	round    int
	attempts int   // that may have been executed, the holder's not included
	doubt    bool  // one of them has an unknown outcome
	offset   int64 // of the holder's record
	read     time.Time
	freeAt   time.Time
	day      int
	answered []answer // by earlier rounds
	// unsure has the events of attempts of this round that were taken over.
	// The round's outcome answers them too.
	unsure []schema.EventHash
}

// cooling is a failure whose attempt may still take effect.
type cooling struct {
	attempt string
	until   time.Time
}

// day is what was settled on one day.
type day struct {
	n       int
	shipped map[schema.Key]place
	failed  map[schema.Key]failure
	// earlier has what the rounds before have answered of those in failed, if
	// they have.
	earlier map[schema.Key][]answer
	// kin has those that have a bearing on other shipments of their order, by
	// the half of the key that is the order's.
	kin map[[8]byte][]schema.Key
}

// place packs what is kept of every outcome into a word: 47 bits of offset, 16
// of round, and whether it is a failure.
type place uint64

const (
	maxRound  = 1<<16 - 1
	maxOffset = 1<<47 - 1
)

func placeOf(offset int64, round int, failed bool) place {
	p := place(offset&maxOffset)<<17 | place(round&maxRound)<<1
	if failed {
		p |= 1
	}
	return p
}

func (p place) offset() int64 { return int64(p >> 17) }
func (p place) round() int    { return int(p >> 1 & maxRound) }
func (p place) failed() bool  { return p&1 != 0 }

// answer says where the outcome stands that answers an event, 0 if it was there
// once and has expired.
type answer struct {
	event schema.EventHash
	at    place
}

// failure is a shipment whose last round has failed. Its place is in two halves,
// or a failure would take a fifth more: nothing in it needs to stand at a
// multiple of 8 bytes.
type failure struct {
	place    [2]uint32
	event    schema.EventHash // that the last holder acted for
	attempts uint16
	doubt    bool
}

func newFold(lease time.Duration) *fold {
	return &fold{lease: lease, open: make(map[schema.Key]*open), cooling: make(map[schema.Key]cooling)}
}

// entry is a record with where it stands and what it is about.
type entry struct {
	record
	key    schema.Key
	offset int64
	time   time.Time // the record's timestamp
	read   time.Time // when this process has read it, on its monotonic clock
	part   bool      // it is an outcome of a part of a split order

	// waybill and group say whose parcel it is, if it is a success that names a
	// group; else the group is 0.
	waybill waybill
	group   group
}

// hash returns the short name of the entry's event.
func (e *entry) hash() schema.EventHash { return schema.HashEvent(e.Event) }

// parcel sets whose parcel the entry is about, by its record and its key.
func (e *entry) parcel(canonical []byte) {
	if e.Group == "" {
		return
	}
	if w, ok := waybillOf(canonical); ok {
		e.waybill, e.group = w, groupOf(e.Group)
	}
}

// apply folds one record in. It reports whether it changed anything.
func (f *fold) apply(e *entry) bool {
	switch e.Kind {
	case kindIntent:
		return f.intent(e)
	case kindTakeover:
		return f.takeover(e)
	case kindRelease:
		return f.release(e)
	case kindOutcome:
		if e.verdict == schema.Shipped {
			return f.shipped(e)
		}
		return f.fail(e)
	case kindBye:
		return len(f.bye(e)) > 0
	default:
		return false
	}
}

func (f *fold) intent(e *entry) bool {
	o := f.joins(e)
	if o == nil && e.Round == 1 && f.mayHaveExpired(e) {
		delete(f.open, e.key)
		o = &open{round: 1}
	}
	if o == nil {
		return false
	}
	if f.open[e.key] == nil {
		f.forget(e.key)
		delete(f.cooling, e.key)
		f.open[e.key] = o
	}
	o.doubt = e.Doubt
	f.hold(o, e)
	return true
}

// joins returns the round that an intent joins or opens, nil if it does not fit.
func (f *fold) joins(e *entry) *open {
	o := f.open[e.key]
	switch d, at, settled := f.settled(e.key); {
	case o != nil && (o.holder != "" || o.released == e.Attempt):
		// A released attempt is over: what comes late is a copy of its intent.
		return nil
	case o != nil:
	case settled && !at.failed():
		return nil
	case settled:
		failed := d.failed[e.key]
		o = &open{
			round:    at.round() + 1,
			attempts: int(failed.attempts),
			doubt:    failed.doubt,
			answered: d.answers(e.key),
		}
	default:
		o = &open{round: e.Round}
	}
	if e.Round != o.round || o.doubt && !e.Doubt {
		return nil
	}
	return o
}

// mayHaveExpired reports whether what is known of a shipment is so old that the
// writer of a record may have begun to read the log behind it. It goes by days,
// like [fold.expire]. So with a horizon of few of them it would be true of what is
// young, too, and is never.
func (f *fold) mayHaveExpired(e *entry) bool {
	if f.horizon < 48*time.Hour {
		return false
	}
	before := dayOf(earlier(e.time, e.read).Add(-f.horizon))
	if o := f.open[e.key]; o != nil {
		return o.day <= before
	}
	d, _, settled := f.settled(e.key)
	return settled && d.n <= before
}

func (f *fold) takeover(e *entry) bool {
	o := f.open[e.key]
	if o == nil && !f.knows(e.key) {
		o = &open{round: max(e.Round, 1), holder: e.Prev, event: e.Event}
		f.open[e.key] = o
	}
	if o == nil || o.holder != e.Prev {
		return false
	}
	o.attempts++ // that of the previous holder
	o.doubt = true
	if was := schema.HashEvent(o.event); !slices.Contains(o.unsure, was) {
		o.unsure = append(o.unsure, was)
	}
	f.hold(o, e)
	return true
}

// hold gives the shipment to the attempt of a record.
func (f *fold) hold(o *open, e *entry) {
	o.holder, o.event, o.released = e.Attempt, e.Event, ""
	o.offset, o.read, o.freeAt = e.offset, e.read, e.read.Add(f.lease)
	o.day = dayOf(e.time)
}

func (f *fold) release(e *entry) bool {
	o := f.open[e.key]
	if o == nil || o.holder != e.Attempt {
		return false
	}
	o.holder, o.released = "", e.Attempt
	o.day = dayOf(e.time)
	return true
}

func (f *fold) shipped(e *entry) bool {
	if _, at, settled := f.settled(e.key); settled && !at.failed() {
		return false
	}
	f.forget(e.key)
	delete(f.open, e.key)
	delete(f.cooling, e.key)
	d := f.day(e.time)
	d.shipped[e.key] = placeOf(e.offset, e.Round, false)
	if e.part {
		d.relate(e.key)
	}
	f.parcels.remember(e)
	return true
}

func (f *fold) fail(e *entry) bool {
	o := f.open[e.key]
	if o == nil && !f.knows(e.key) {
		o = &open{round: e.Round, holder: e.Attempt, event: e.Event, freeAt: e.read.Add(f.lease)}
	}
	if o == nil || o.holder != e.Attempt {
		return false
	}
	attempts := o.attempts
	if !e.Uncalled {
		attempts++
	}
	at := placeOf(e.offset, o.round, true)
	event := schema.HashEvent(o.event)
	failed := failure{
		place:    [2]uint32{uint32(at >> 32), uint32(at)}, //nolint:gosec // the two halves
		event:    event,
		attempts: uint16(min(attempts, math.MaxUint16)), //nolint:gosec // bounded
		doubt:    o.doubt || e.Doubt,
	}
	earlier := slices.Clone(o.answered)
	for _, other := range o.unsure {
		if other != event {
			earlier = append(earlier, answer{event: other, at: at})
		}
	}
	delete(f.open, e.key)
	if e.Unanswered {
		f.cooling[e.key] = cooling{attempt: o.holder, until: o.freeAt}
	}
	d := f.day(e.time)
	d.failed[e.key] = failed
	if len(earlier) > 0 {
		d.earlier[e.key] = earlier
	}
	if failed.doubt {
		d.relate(e.key)
	}
	return true
}

// bye frees the shipments held by attempts of an incarnation that is gone, but
// for those that it lists. It returns the keys of what it freed.
func (f *fold) bye(e *entry) []schema.Key {
	var freed []schema.Key
	for key, o := range f.open {
		if o.holder != "" && incarnationOf(o.holder) == e.Incarnation && !slices.Contains(e.Open, o.holder) && o.freeAt.After(e.read) {
			o.freeAt = e.read
			freed = append(freed, key)
		}
	}
	return freed
}

// standing tells where a shipment stands for an event at a time, and, if the
// event is answered, at which offset the outcome is that answers it.
func (f *fold) standing(key schema.Key, event schema.EventHash, now time.Time) (st schema.Standing, offset int64, known bool) {
	if o := f.open[key]; o != nil {
		st = schema.Standing{State: schema.StateOpen, Round: o.round, Attempts: o.attempts, Doubt: o.doubt}
		if at := o.answers(event); at != 0 {
			st.State, st.Verdict, st.Round = schema.StateSettled, schema.Failed, at.round()
			return st, at.offset(), true
		}
		if o.holder != "" {
			st.State, st.Holder, st.FreeAt = schema.StateHeld, o.holder, o.freeAt
		}
		if slices.Contains(o.answered, answer{event: event}) {
			st.LostBefore = always
		}
		return st, 0, true
	}
	d, at, settled := f.settled(key)
	if !settled {
		return schema.Standing{State: schema.StateOpen, Round: 1}, 0, false
	}
	if !at.failed() {
		return schema.Standing{State: schema.StateSettled, Verdict: schema.Shipped, Round: at.round()}, at.offset(), true
	}
	failed := d.failed[key]
	st = schema.Standing{State: schema.StateOpen, Round: at.round() + 1, Attempts: int(failed.attempts), Doubt: failed.doubt}
	for _, a := range d.answers(key) {
		switch {
		case a.event != event:
		case a.at == 0:
			st.LostBefore = always
		default:
			st.State, st.Verdict, st.Round = schema.StateSettled, schema.Failed, a.at.round()
			return st, a.at.offset(), true
		}
	}
	if c, ok := f.cooling[key]; ok && now.Before(c.until) {
		st.State, st.Holder, st.FreeAt = schema.StateHeld, c.attempt, c.until
	}
	return st, 0, true
}

// always is later than any packed event: what is lost may be about all of them.
var always = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// expireAnswer notes that the outcome at an offset, of an earlier round than the
// last, is gone. That its event was answered is not forgotten.
func (f *fold) expireAnswer(key schema.Key, offset int64) {
	var answers []answer
	if o := f.open[key]; o != nil {
		answers = o.answered
	} else if d, _, ok := f.settled(key); ok {
		answers = d.earlier[key]
	}
	for i := range answers {
		if answers[i].at != 0 && answers[i].at.offset() == offset {
			answers[i].at = 0
		}
	}
}

// answers returns where the outcome stands that an earlier round gave to an
// event, 0 if none did.
func (o *open) answers(event schema.EventHash) place {
	for _, a := range o.answered {
		if a.event == event && a.at != 0 {
			return a.at
		}
	}
	return 0
}

// answers lists all answers of a shipment that has failed.
func (d *day) answers(key schema.Key) []answer {
	last := d.failed[key]
	return append(slices.Clip(d.earlier[key]), answer{event: last.event, at: last.at()})
}

// at returns where the outcome stands.
func (f *failure) at() place { return place(f.place[0])<<32 | place(f.place[1]) }

// knows reports whether anything is known of a shipment.
func (f *fold) knows(key schema.Key) bool {
	_, _, settled := f.settled(key)
	return settled || f.open[key] != nil
}

// settled finds the outcome of a shipment.
func (f *fold) settled(key schema.Key) (*day, place, bool) {
	for _, d := range f.days {
		if at, ok := d.shipped[key]; ok {
			return d, at, true
		}
		if failed, ok := d.failed[key]; ok {
			return d, failed.at(), true
		}
	}
	return nil, 0, false
}

// forget drops the outcome of a shipment.
func (f *fold) forget(key schema.Key) {
	if d, _, ok := f.settled(key); ok {
		delete(d.shipped, key)
		delete(d.failed, key)
		delete(d.earlier, key)
		d.unrelate(key)
	}
}

// day returns the maps for the outcomes of a time.
func (f *fold) day(t time.Time) *day {
	n := dayOf(t)
	i, found := slices.BinarySearchFunc(f.days, n, func(d *day, n int) int { return n - d.n })
	if !found {
		d := &day{n: n, shipped: make(map[schema.Key]place), failed: make(map[schema.Key]failure), earlier: make(map[schema.Key][]answer)}
		f.days = slices.Insert(f.days, i, d)
	}
	return f.days[i]
}

// cool forgets the failures that have cooled down by a time.
func (f *fold) cool(now time.Time) {
	maps.DeleteFunc(f.cooling, func(_ schema.Key, c cooling) bool { return !now.Before(c.until) })
}

// expire forgets what was last touched before a day.
func (f *fold) expire(before int) {
	f.days = slices.DeleteFunc(f.days, func(d *day) bool { return d.n < before })
	f.parcels.expire(before)
	for key, o := range f.open {
		if o.day < before {
			delete(f.open, key)
		}
	}
}

// entries counts the shipments that are known.
func (f *fold) entries() int {
	n := len(f.open)
	for _, d := range f.days {
		n += len(d.shipped) + len(d.failed)
	}
	return n
}

// dayOf numbers the days of UTC.
func dayOf(t time.Time) int {
	const secondsPerDay = 24 * 60 * 60
	return int(t.Unix() / secondsPerDay)
}

// incarnationOf returns the process that an attempt is of: all of its id but the
// counter.
func incarnationOf(attempt string) string {
	return attempt[:max(0, strings.LastIndexByte(attempt, '/'))]
}
