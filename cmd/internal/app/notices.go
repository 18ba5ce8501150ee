package app

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"packship/consumer"
	"packship/producer/ledger"
	"packship/upstream"
)

// Health is the state of a replica in one word. Only one word fits at a time:
// the one that an operator should see first.
type Health string

// The states of a replica, the most urgent first.
const (
	HealthStopping  Health = "stopping"  // it ends, because of what waiting does not mend
	HealthLeaving   Health = "leaving"   // it was told to stop, and finishes what is under way
	HealthJoining   Health = "joining"   // it is not ready yet, or not any more
	HealthStuck     Health = "stuck"     // orders are overdue although nothing holds them
	HealthBlocked   Health = "blocked"   // the ledger or a topic for results does not take or give what it should
	HealthHalted    Health = "halted"    // an account waits for a repair
	HealthPaused    Health = "paused"    // a breaker is open: the API is down
	HealthThrottled Health = "throttled" // the API asked for a pause
	HealthWaiting   Health = "waiting"   // it is about to send, as after a takeover
	HealthDamaged   Health = "damaged"   // the ledger has lost records, or will
	HealthParked    Health = "parked"    // a shop waits for a repair, others go on
	HealthStandby   Health = "standby"   // another replica sends
	HealthSending   Health = "sending"
	HealthIdle      Health = "idle" // it may send and has nothing to do
)

// Notice is one thing that an operator should know.
type Notice struct {
	Kind Health `json:"kind"`
	// Text says what is the matter, Ends what ends it, and Do what a person has
	// to do for that, "" if it is said already or there is nothing to do.
	Text string `json:"text"`
	Ends string `json:"ends"`
	Do   string `json:"do,omitempty"`
	// Account and ShopID say of what it is the matter, if of one.
	Account string `json:"account,omitempty"`
	ShopID  string `json:"shop_id,omitempty"`
}

// judge says how the replica is.
func (st *Status) judge(broken error) {
	st.Notices = []Notice{}
	note := func(kind Health, text, ends string) *Notice {
		st.Notices = append(st.Notices, Notice{Kind: kind, Text: text, Ends: ends})
		return &st.Notices[len(st.Notices)-1]
	}
	switch {
	case broken != nil:
		note(HealthStopping, "packship stops: "+broken.Error(), "repair what it says and start it again")
	case st.Leaving:
		note(HealthLeaving, "told to stop: no further call is begun, those under way are finished and written down", "by itself; the replica that is started next, or stands by, goes on with the rest")
	case !st.Ready:
		note(HealthJoining, "not ready: "+st.Reason, joiningEnds(st.Reason))
	}
	if st.OverdueCount > 0 {
		note(HealthStuck, overdueText(st), "a person: see what it waits for, and look for it in the log; a restart is safe for all orders")
	}
	st.noteBlocked(note)
	for i := range st.Accounts {
		if a := &st.Accounts[i]; a.State == upstream.StateHalted {
			n := note(HealthHalted, fmt.Sprintf("account %s is halted: %s. No call is made for it; its orders wait and none fails", a.Name, say(a.Reason)), accountEnds(a, st.Now))
			n.Account, n.Do = a.Name, a.Advice
		}
	}
	for i := range st.Accounts {
		if a := &st.Accounts[i]; a.State == upstream.StatePaused {
			kind, text, do := HealthPaused, fmt.Sprintf("account %s is paused by its breaker: the API fails again and again%s. Orders wait and none fails", a.Name, faultText(a)), doOfPaused
			if a.Breaker == "closed" {
				kind, text, do = HealthThrottled, fmt.Sprintf("account %s is throttled: the API has asked for fewer calls. Orders wait and none fails", a.Name), doOfThrottled
			}
			n := note(kind, text, accountEnds(a, st.Now))
			n.Account, n.Do = a.Name, do
		}
	}
	if st.Role == consumer.RoleActive && st.Ready && st.Reason != "" {
		note(HealthWaiting, "no call is started yet: "+st.Reason, "by itself, as soon as that is over")
	}
	sending := slices.ContainsFunc(st.Accounts, func(a upstream.AccountStatus) bool { return a.State == upstream.StateSending })
	if st.others > 0 && !sending && len(st.Notices) == 0 {
		note(HealthWaiting, othersText(st.others), fmt.Sprintf("by itself in %s: then the API is asked once more", ago(st.othersUntil.Sub(st.Now))))
	}
	st.noteLedger(note)
	st.noteParked(note)
	if st.Role == consumer.RoleStandby && st.Ready {
		note(HealthStandby, st.standbyText(), "when the sender leaves the group: then one of the others takes over within seconds")
	}
	st.Health = HealthIdle
	if sending {
		st.Health = HealthSending
	}
	if len(st.Notices) > 0 {
		st.Health = st.Notices[0].Kind
	}
}

// othersText speaks of orders that another replica may have called for, as one that
// was killed.
func othersText(n int) string {
	if n == 1 {
		return "1 order waits until an earlier attempt can no longer take effect: a replica that is gone may have called for it"
	}
	return grouped(n) + " orders wait until earlier attempts can no longer take effect: a replica that is gone may have called for them"
}

// What to do about an API that does not let anybody call.
const (
	doOfPaused    = "nothing when the API is down; if it works for others, see whether this machine reaches it"
	doOfThrottled = "nothing, unless it comes again and again: then somebody else uses the account, too"
)

// faultText is the last fault of an account as a part of a sentence.
func faultText(a *upstream.AccountStatus) string {
	if a.Fault == "" {
		return ""
	}
	return ", the last time: " + strings.TrimRight(a.Fault, ".。")
}

// noteBlocked notes what Kafka refuses. While a replica is not ready, that it is
// not says enough.
func (st *Status) noteBlocked(note func(Health, string, string) *Notice) {
	if !st.Ready {
		return
	}
	const ends = "when Kafka takes and gives it again; packship goes on trying"
	if l, ok := st.Ledger.(ledger.Status); ok && l.Failing != "" {
		note(HealthBlocked, "the ledger cannot be used: "+l.Failing+". No call is made without it; orders wait and none fails", ends)
	}
	for _, topic := range slices.Sorted(maps.Keys(st.refused)) {
		note(HealthBlocked, fmt.Sprintf("topic %s cannot be written to: %s. What is to be written waits and is not lost, and nothing is called for twice", topic, st.refused[topic]), ends)
	}
}

func joiningEnds(reason string) string {
	if strings.Contains(reason, "packship topics create") {
		return "when the topic has been created"
	}
	return "by itself, as soon as that is over; packship goes on trying"
}

// noteLedger notes what the ledger has lost, or will lose.
func (st *Status) noteLedger(note func(Health, string, string) *Notice) {
	l, ok := st.Ledger.(ledger.Status)
	if !ok {
		return
	}
	if l.Damaged != "" || l.LostBefore != "" {
		text := "the ledger has lost records"
		if l.Damaged != "" {
			text += ": " + l.Damaged
		}
		if l.LostBefore != "" {
			text += fmt.Sprintf(". Orders packed before %s of which nothing is known fail without a call", l.LostBefore)
		}
		note(HealthDamaged, text, "when the horizon has passed; look up what failed with outcome_unknown, and redrive what was not shipped")
	}
	if l.Unfit != "" {
		note(HealthDamaged, "the ledger's topic will lose records: "+l.Unfit, "when its settings are right; `packship topics` says how they have to be")
	}
}

// fewParked shops have a notice each.
const fewParked = 3

// noteParked notes the parked shops, each by itself if they are few.
func (st *Status) noteParked(note func(Health, string, string) *Notice) {
	shops := st.ParkedShops
	if len(shops) > fewParked {
		n := note(HealthParked, fmt.Sprintf("%s shops are parked: %s. Their orders wait and none fails; other shops go on", grouped(len(shops)), reasonsOf(shops)),
			"one order of each is tried every ten minutes, or at once after an unpark")
		n.Do = shopDo(&shops[0])
		for i := range shops {
			if shopDo(&shops[i]) != n.Do {
				n.Do = "what stands with the parked shops, by reason"
				break
			}
		}
		return
	}
	for i := range shops {
		p := &shops[i]
		n := note(HealthParked, fmt.Sprintf("shop %s is parked: %s. Its orders wait and none fails; other shops go on", p.ShopID, say(p.Reason)), shopEnds(p, st.Now))
		n.ShopID, n.Do = p.ShopID, shopDo(p)
	}
}

// reasonsOf lists why shops are parked, the most frequent reason first.
func reasonsOf(shops []upstream.ParkedShop) string {
	counts := map[string]int64{}
	for i := range shops {
		counts[shops[i].Reason]++
	}
	rows := byCount(counts)
	if len(rows) == 1 {
		return say(rows[0].Reason)
	}
	var parts []string
	for _, row := range rows {
		parts = append(parts, fmt.Sprintf("%s %s", grouped(row.Count), say(row.Reason)))
	}
	return strings.Join(parts, ", ")
}

func (st *Status) standbyText() string {
	return fmt.Sprintf("standing by: %s sends. This replica has read the ledger and sends nothing", st.sender())
}

// sender names the replica that sends, the first one if there are several.
func (st *Status) sender() string {
	for i := range st.Members {
		if m := &st.Members[i]; m.Partitions > 0 && !m.Self {
			return m.Name
		}
	}
	return "another replica"
}

func overdueText(st *Status) string {
	o := &st.Overdue[0]
	what := fmt.Sprintf("order %s", o.TID)
	if o.TID == "" {
		what = fmt.Sprintf("the record at offset %d of partition %d", o.Offset, o.Partition)
	}
	if more := st.OverdueCount - 1; more > 0 {
		what += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Sprintf("%s should have gone on %s ago although nothing holds it; it %s", what, ago(st.Now.Sub(o.Due)), o.doing(st.Now))
}

// doing says what an order that is overdue does.
func (o *OverdueOrder) doing(now time.Time) string {
	text := stepText(o.Step, o.Since, o.Until, now)
	if o.Trouble != "" {
		text += ", held up by: " + o.Trouble
	}
	return text
}

// accountEnds says what ends the state of an account that does not send, "" if
// it does.
func accountEnds(a *upstream.AccountStatus, now time.Time) string {
	switch {
	case a.State == upstream.StateHalted && a.Probing:
		return "one order is being tried: if the API takes it, the account goes on"
	case a.State == upstream.StateHalted && a.Until != nil:
		return fmt.Sprintf("one order is tried in %s, or at once after a new token or a resume", ago(a.Until.Sub(now)))
	case a.State == upstream.StatePaused && a.Probing:
		return "one order is trying the API: if it answers, the account goes on"
	case a.State == upstream.StatePaused && a.Breaker != "closed" && a.Until != nil:
		return fmt.Sprintf("one order tries the API in %s", ago(a.Until.Sub(now)))
	case a.State == upstream.StatePaused && a.Until != nil:
		return fmt.Sprintf("in %s by itself, or at once after a resume; the rate climbs back little by little", ago(a.Until.Sub(now)))
	default:
		return ""
	}
}

// shopDo says what to do about a parked shop, and where the link for that is.
func shopDo(p *upstream.ParkedShop) string {
	if p.URL == "" {
		return p.Advice
	}
	return p.Advice + " The link for that stands with it in `/api/status`."
}

// shopEnds says what ends the parking of a shop.
func shopEnds(p *upstream.ParkedShop, now time.Time) string {
	first := ""
	if p.URL != "" {
		first = "its owner authorises it, then "
	}
	if p.Probing || p.Until == nil {
		return first + "its next order is tried: if the API takes it, the shop goes on"
	}
	return fmt.Sprintf("%sone order is tried in %s, or at once after an unpark", first, ago(p.Until.Sub(now)))
}

// holds says what an order waits for that is held with its shop or its account.
func (st *Status) holds(shop, account string) string {
	var why []string
	for i := range st.Accounts {
		switch a := &st.Accounts[i]; {
		case a.Name != account:
		case a.State == upstream.StateHalted:
			why = append(why, fmt.Sprintf("its account %s is halted: %s", a.Name, say(a.Reason)))
		case a.State == upstream.StatePaused:
			why = append(why, fmt.Sprintf("its account %s is paused", a.Name))
		}
	}
	for i := range st.ParkedShops {
		if p := &st.ParkedShops[i]; p.ShopID == shop {
			why = append(why, "its shop is parked: "+say(p.Reason))
		}
	}
	if len(why) == 0 { // it may go on as of now, or its shop is no longer in memory
		return "waits until its shop and its account may go on"
	}
	return "waits because " + strings.Join(why, ", and ")
}

// sentence says where the oldest order stands if it is not held, in a replica that
// leaves or does not.
func (o *OldestOrder) sentence(now time.Time, leaving bool) string {
	switch {
	case o.Step == "" && leaving:
		return "waits for the next replica"
	case o.Step == "":
		return "is about to be handled"
	default:
		return stepText(o.Step, o.Since, o.Until, now)
	}
}

// stepText says what an order does, as the rest of a sentence.
func stepText(step consumer.Step, since, until, now time.Time) string {
	text := map[consumer.Step]string{
		consumer.StepGate:    "waits until this replica may start calls",
		consumer.StepTurn:    "waits for its turn",
		consumer.StepClaim:   "waits for the ledger to take its intent",
		consumer.StepCall:    "waits for its call to leave and to be answered",
		consumer.StepSettle:  "waits for the ledger to take its outcome",
		consumer.StepRest:    "rests before its next attempt",
		consumer.StepOther:   "waits until an earlier attempt can no longer take effect",
		consumer.StepPublish: "waits for the result topic to take its result",
		consumer.StepBury:    "waits for the dead letters to take it",
	}[step]
	text = cmp.Or(text, "is being handled")
	if !since.IsZero() {
		text += ", " + ago(now.Sub(since)) + " so far"
	}
	if until.After(now) {
		text += ", " + ago(until.Sub(now)) + " to go"
	}
	return text
}

// say makes a reason readable: the words are the names of the table of answers.
func say(reason string) string { return strings.ReplaceAll(reason, "_", " ") }

// ago writes a duration for people, in at most two units.
func ago(d time.Duration) string {
	d = max(0, d)
	switch {
	case d < time.Second:
		return "less than 1 s"
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < 10*time.Minute:
		return units(d, time.Minute, "min", time.Second, "s")
	case d < time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 24*time.Hour:
		return units(d, time.Hour, "h", time.Minute, "min")
	default:
		return units(d, 24*time.Hour, "d", time.Hour, "h")
	}
}

func units(d, large time.Duration, largeName string, small time.Duration, smallName string) string {
	text := fmt.Sprintf("%d %s", d/large, largeName)
	if rest := d % large / small; rest > 0 {
		text += fmt.Sprintf(" %d %s", rest, smallName)
	}
	return text
}
