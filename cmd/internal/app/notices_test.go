package app

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/consumer"
	"packship/producer/ledger"
	"packship/upstream"
	"packship/upstream/upstreamtest"
)

var night = time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)

func in(d time.Duration) *time.Time {
	at := night.Add(d)
	return &at
}

// TestHolds says which hold an order waits behind, by the names of what is held.
func TestHolds(t *testing.T) {
	st := Status{
		Accounts: []upstream.AccountStatus{
			{Name: "north", State: upstream.StateHalted, Reason: "access_token_invalid"},
			{Name: "south", State: upstream.StatePaused, Reason: "breaker_open"},
			{Name: "west", State: upstream.StateSending},
		},
		ParkedShops: []upstream.ParkedShop{{ShopID: "77", Account: "west", Reason: "shop_not_authorized"}},
	}
	for _, test := range []struct{ shop, account, want string }{
		{"1", "north", "waits because its account north is halted: access token invalid"},
		{"1", "south", "waits because its account south is paused"},
		{"77", "west", "waits because its shop is parked: shop not authorized"},
		{"77", "north", "waits because its account north is halted: access token invalid, and its shop is parked: shop not authorized"},
		{"1", "west", "waits until its shop and its account may go on"},
		{"", "", "waits until its shop and its account may go on"},
	} {
		if got := st.holds(test.shop, test.account); got != test.want {
			t.Errorf("shop %q of account %q: %q, want %q", test.shop, test.account, got, test.want)
		}
	}
}

// TestHealth tells the states of a replica apart: each has a word, and a notice
// that says what ends it.
func TestHealth(t *testing.T) {
	account := func(change func(*upstream.AccountStatus)) func(*Status) {
		return func(st *Status) { change(&st.Accounts[0]) }
	}
	tests := map[string]struct {
		change func(*Status)
		broken error
		want   Health
		text   string // of the first notice
		ends   string
	}{
		"idle":    {func(*Status) {}, nil, HealthIdle, "", ""},
		"sending": {account(func(a *upstream.AccountStatus) { a.State = upstream.StateSending }), nil, HealthSending, "", ""},
		"halted": {account(func(a *upstream.AccountStatus) {
			a.State, a.Reason, a.Until = upstream.StateHalted, "access_token_invalid", in(4*time.Minute)
		}), nil, HealthHalted, "account default is halted: access token invalid", "one order is tried in 4 min, or at once after a new token or a resume"},
		"halted, tried": {account(func(a *upstream.AccountStatus) {
			a.State, a.Reason, a.Probing = upstream.StateHalted, "access_token_invalid", true
		}), nil, HealthHalted, "halted", "one order is being tried: if the API takes it, the account goes on"},
		"breaker open": {account(func(a *upstream.AccountStatus) {
			a.State, a.Reason, a.Breaker, a.Until = upstream.StatePaused, "breaker_open", "open", in(12*time.Second)
		}), nil, HealthPaused, "account default is paused by its breaker", "one order tries the API in 12 s"},
		"breaker half-open": {account(func(a *upstream.AccountStatus) {
			a.State, a.Reason, a.Breaker, a.Probing = upstream.StatePaused, "breaker_half_open", "half_open", true
		}), nil, HealthPaused, "paused by its breaker", "one order is trying the API: if it answers, the account goes on"},
		"throttled": {account(func(a *upstream.AccountStatus) {
			a.State, a.Reason, a.Until = upstream.StatePaused, "throttled", in(3*time.Second)
		}), nil, HealthThrottled, "account default is throttled", "in 3 s by itself"},
		"parked": {func(st *Status) {
			st.ParkedShops = []upstream.ParkedShop{{ShopID: "77", Reason: "shop_not_authorized", Until: in(time.Minute), URL: "https://auth.example/secret"}}
		}, nil, HealthParked, "shop 77 is parked: shop not authorized", "its owner authorises it, then one order is tried in 1 min, or at once after an unpark"},
		"many parked": {func(st *Status) {
			st.ParkedShops = slices.Repeat([]upstream.ParkedShop{{Reason: "user_session_missing"}}, 10_000)
			for i := range 7000 {
				st.ParkedShops[i].Reason = "shop_not_authorized"
			}
		}, nil, HealthParked, "10\u202f000 shops are parked: 7\u202f000 shop not authorized, 3\u202f000 user session missing. Their", "one order of each"},
		"many parked for one reason": {func(st *Status) {
			st.ParkedShops = slices.Repeat([]upstream.ParkedShop{{Reason: "user_session_missing"}}, 4)
		}, nil, HealthParked, "4 shops are parked: user session missing. Their", "one order of each"},
		"leaving": {func(st *Status) {
			st.Leaving, st.Ready = true, false
		}, nil, HealthLeaving, "told to stop", "by itself"},
		"breaker open for a reason": {account(func(a *upstream.AccountStatus) {
			a.State, a.Reason, a.Breaker, a.Until, a.Fault = upstream.StatePaused, "breaker_open", "open", in(12*time.Second), "code 202, 系统错误。"
		}), nil, HealthPaused, "again and again, the last time: code 202, 系统错误. Orders wait", "one order tries"},
		"stuck": {func(st *Status) {
			o := OverdueOrder{Due: night.Add(-2 * time.Minute)}
			o.TID, o.Step, o.Since = "3941893279420000001", consumer.StepPublish, night.Add(-3*time.Minute)
			st.Overdue, st.OverdueCount = []OverdueOrder{o}, 3
		}, nil, HealthStuck, "order 3941893279420000001 and 2 more should have gone on 2 min ago although nothing holds it; it waits for the result topic to take its result, 3 min so far", "a restart is safe"},
		"standby": {func(st *Status) {
			st.Role, st.Members = consumer.RoleStandby, []consumer.Member{{Name: "b"}, {Name: "a", Partitions: 3}}
		}, nil, HealthStandby, "standing by: a sends", "when the sender leaves the group"},
		"joining":  {func(st *Status) { st.Ready, st.Reason = false, "waiting for kafka: refused" }, nil, HealthJoining, "not ready: waiting for kafka: refused", "goes on trying"},
		"handover": {func(st *Status) { st.Reason = "handover" }, nil, HealthWaiting, "no call is started yet: handover", "by itself"},
		"damaged": {func(st *Status) {
			st.Ledger = ledger.Status{Damaged: "truncated", LostBefore: "2026-11-24T00:00:00Z"}
		}, nil, HealthDamaged, "the ledger has lost records: truncated. Orders packed before 2026-11-24T00:00:00Z", "horizon"},
		"unfit":        {func(st *Status) { st.Ledger = ledger.Status{Unfit: "it is compacted"} }, nil, HealthDamaged, "will lose records: it is compacted", "packship topics"},
		"ledger fails": {func(st *Status) { st.Ledger = ledger.Status{Failing: "no leader"} }, nil, HealthBlocked, "the ledger cannot be used: no leader. No call is made without it", "goes on trying"},
		"results refused": {func(st *Status) {
			st.refused = map[string]string{"shipped": "too large; raise it"}
			st.Accounts[0].State, st.Accounts[0].Until = upstream.StateHalted, in(0)
		}, nil, HealthBlocked, "topic shipped cannot be written to: too large; raise it. What is to be written waits", "goes on trying"},
		"kafka away": {func(st *Status) {
			st.Ready, st.Reason, st.Ledger = false, "no broker", ledger.Status{Failing: "no broker"}
		}, nil, HealthJoining, "no broker", "goes on trying"},
		"broken": {func(st *Status) { st.Ready = false }, errors.New("no topic"), HealthStopping, "packship stops: no topic", "start it again"},
		"the worst comes first": {func(st *Status) {
			st.Accounts[0].State, st.Accounts[0].Until = upstream.StateHalted, in(0)
			st.ParkedShops = make([]upstream.ParkedShop, 1)
		}, nil, HealthHalted, "halted", "less than 1 s"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			st := Status{
				Now: night, Ready: true, Role: consumer.RoleActive,
				Accounts: []upstream.AccountStatus{{Name: "default", State: upstream.StateIdle, Breaker: "closed"}},
			}
			tt.change(&st)
			st.judge(tt.broken)
			if st.Health != tt.want {
				t.Errorf("health %s, want %s", st.Health, tt.want)
			}
			first := Notice{}
			if len(st.Notices) > 0 {
				first = st.Notices[0]
			}
			if !strings.Contains(first.Text, tt.text) || !strings.Contains(first.Ends, tt.ends) || (tt.text == "") != (first.Text == "") {
				t.Errorf("notice %+v, want %q and %q", first, tt.text, tt.ends)
			}
			for _, n := range st.Notices {
				if n.Ends == "" {
					t.Errorf("notice %q does not say what ends it", n.Text)
				}
				if strings.Contains(n.Text+n.Ends, "secret") {
					t.Errorf("notice %+v has the authorisation link, and /readyz shows it", n)
				}
			}
		})
	}
}

// TestNoticesSayWhatToDo checks that what a person has to do is told with what
// holds up the orders.
func TestNoticesSayWhatToDo(t *testing.T) {
	shops := func(advice ...string) (all []upstream.ParkedShop) {
		for _, a := range advice {
			all = append(all, upstream.ParkedShop{Advice: a})
		}
		return all
	}
	for name, tt := range map[string]struct {
		st   Status
		want string
	}{
		"halted":     {Status{Accounts: []upstream.AccountStatus{{State: upstream.StateHalted, Advice: "Buy points."}}}, "Buy points."},
		"paused":     {Status{Accounts: []upstream.AccountStatus{{State: upstream.StatePaused, Breaker: "open"}}}, doOfPaused},
		"throttled":  {Status{Accounts: []upstream.AccountStatus{{State: upstream.StatePaused, Breaker: "closed"}}}, doOfThrottled},
		"parked":     {Status{ParkedShops: shops("Authorise it.")}, "Authorise it."},
		"linked":     {Status{ParkedShops: []upstream.ParkedShop{{Advice: "Authorise it.", URL: "https://auth.example"}}}, "Authorise it. The link for that stands with it in `/api/status`."},
		"all alike":  {Status{ParkedShops: shops("A.", "A.", "A.", "A.")}, "A."},
		"each other": {Status{ParkedShops: shops("A.", "A.", "A.", "B.")}, "what stands with the parked shops, by reason"},
	} {
		st := tt.st
		st.Now, st.Ready, st.Role = night, true, consumer.RoleActive
		st.judge(nil)
		if len(st.Notices) != 1 || st.Notices[0].Do != tt.want {
			t.Errorf("%s: %+v, want one that says to do %q", name, st.Notices, tt.want)
		}
	}
}

func TestJoiningReason(t *testing.T) {
	for reason, want := range map[string]string{
		"":                                  "joining the group",
		"joining the group":                 "joining the group",
		"joining the group: no coordinator": "joining the group: no coordinator",
		"kafka does not answer: refused":    "joining the group: kafka does not answer: refused",
	} {
		if got := joiningReason(reason); got != want {
			t.Errorf("%q: %q, want %q", reason, got, want)
		}
	}
}

// TestBlockedIsTold has Kafka refuse first an intent and then a result, and finds
// at once, long before the watchdog has something to say, what is refused and why.
func TestBlockedIsTold(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	if w.cluster == nil {
		t.Skip("the embedded broker fails on request")
	}
	r := w.start()
	r.eventually("at work", func() bool { return r.c.Status().Health == HealthIdle })
	refusal := w.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: w.settings.TopicLedger, Err: kerr.NotEnoughReplicas, Count: -1})
	w.produce(orders(1, 1)...)
	told := func(texts ...string) func() bool {
		return func() bool {
			code, body := r.get("/readyz")
			return code == http.StatusOK && strings.HasPrefix(body, "ok\nblocked\n") && !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(body, text) })
		}
	}
	r.eventually("the ledger's trouble is told", told("the ledger cannot be used", "bring back the brokers", "No call is made"))
	if l, ok := r.c.Status().Ledger.(ledger.Status); !ok || l.Failing == "" {
		t.Errorf("the ledger's status does not say that it fails: %+v", l)
	}
	relent := w.refuseResults()
	refusal.Remove()
	r.eventually("the refused result is told", told("topic "+w.settings.TopicShipped+" cannot be written to", "bring back the brokers"))
	relent()
	w.await(1, 0, 0)
	r.eventually("idle again", func() bool { return r.c.Status().Health == HealthIdle })
}

func TestAgo(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second:                      "less than 1 s",
		999 * time.Millisecond:            "less than 1 s",
		12 * time.Second:                  "12 s",
		4 * time.Minute:                   "4 min",
		4*time.Minute + 5*time.Second:     "4 min 5 s",
		59*time.Minute + 59*time.Second:   "59 min",
		2*time.Hour + 13*time.Minute:      "2 h 13 min",
		3*24*time.Hour + 4*time.Hour + 59: "3 d 4 h",
	} {
		if got := ago(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

// TestDrain checks when partitions that share a rate are done.
func TestDrain(t *testing.T) {
	st := Status{Accounts: []upstream.AccountStatus{{State: upstream.StateSending, Attainable: 10}, {State: upstream.StateHalted, Attainable: 10, Waiting: 5}}}
	st.measure([]consumer.PartitionStatus{{Waiting: 100, Shelved: 7}, {Waiting: 10}, {}})
	for i, want := range []float64{11, 2, 0} {
		if got := st.Partitions[i].DrainSeconds; got == nil || *got != want {
			t.Errorf("partition %d is drained in %v, want %g s", i, got, want)
		}
	}
	if b := st.Backlog; b.Waiting != 105 || b.Held != 12 || b.DrainSeconds == nil || *b.DrainSeconds != 10.5 {
		t.Errorf("backlog %+v, want 105 waiting and 7+5 held", b)
	}
	st = Status{Accounts: []upstream.AccountStatus{{State: upstream.StatePaused, Attainable: 10}}}
	st.measure([]consumer.PartitionStatus{{Waiting: 1}})
	if st.Backlog.DrainSeconds != nil || st.Partitions[0].DrainSeconds != nil {
		t.Error("there is a time at which it is drained, although nobody sends")
	}
	for overdue, drains := range map[int]bool{0: true, 2: true, 3: false, 4: false} {
		st := Status{Accounts: []upstream.AccountStatus{{State: upstream.StateIdle, Attainable: 10}}, OverdueCount: overdue}
		st.measure([]consumer.PartitionStatus{{Waiting: 3}})
		st.admitStuck()
		if got := st.Backlog.DrainSeconds != nil; got != drains || got != (st.Partitions[0].DrainSeconds != nil) {
			t.Errorf("%d of 3 orders are overdue: there is a time at which it is drained: %t", overdue, got)
		}
	}
}

// TestDrainOfThoseThatRest checks that nothing is drained before those in it that
// rest may go on, and what is said where nothing else goes on.
func TestDrainOfThoseThatRest(t *testing.T) {
	st := Status{Now: night, Ready: true, Role: consumer.RoleActive, Accounts: []upstream.AccountStatus{{State: upstream.StateIdle, Attainable: 10}}}
	st.measure([]consumer.PartitionStatus{{Partition: 3, Waiting: 40}, {Partition: 5, Waiting: 10}})
	for _, u := range []consumer.UnderWay{
		{Partition: 3, Step: consumer.StepOther, Until: night.Add(2 * time.Second)},
		{Partition: 5, Step: consumer.StepOther, Until: night.Add(50 * time.Second)},
		{Partition: 5, Step: consumer.StepOther, Until: night.Add(40 * time.Second)},
		{Partition: 5, Step: consumer.StepRest, Until: night.Add(70 * time.Second)},
		{Partition: 5, Step: consumer.StepOther, Until: night.Add(-time.Second)},
		{Partition: 5, Step: consumer.StepCall},
	} {
		st.rest(&u)
	}
	if all, first, second := *st.Backlog.DrainSeconds, *st.Partitions[0].DrainSeconds, *st.Partitions[1].DrainSeconds; all != 70 || first != 5 || second != 70 {
		t.Errorf("drained in %g s, the partitions in %g and %g; want 70, 5 and 70", all, first, second)
	}
	st.ParkedShops = []upstream.ParkedShop{{ShopID: "77"}}
	st.judge(nil)
	want := []Notice{{
		Kind: HealthWaiting, Text: "3 orders wait until earlier attempts can no longer take effect: a replica that is gone may have called for them",
		Ends: "by itself in 50 s: then the API is asked once more",
	}}
	if diff := cmp.Diff(want, st.Notices[:1]); diff != "" || st.Health != HealthWaiting || len(st.Notices) != 2 {
		t.Errorf("%s; notices (-want +got):\n%s", st.Health, diff)
	}
	st.ParkedShops = nil
	st.Accounts[0].State = upstream.StatePaused
	if st.judge(nil); st.Health != HealthPaused || len(st.Notices) != 1 {
		t.Errorf("while nothing is asked of the API: %s, %+v", st.Health, st.Notices)
	}
	st.Accounts[0].State = upstream.StateSending
	if st.judge(nil); st.Health != HealthSending || len(st.Notices) != 0 {
		t.Errorf("while others are sent: %s, %+v", st.Health, st.Notices)
	}
	st.Accounts[0].State, st.Accounts[0].Attainable = upstream.StateHalted, 0
	st.measure(nil)
	st.rest(&consumer.UnderWay{Step: consumer.StepRest, Until: night.Add(time.Minute)})
	if st.Backlog.DrainSeconds != nil {
		t.Error("there is a time at which it is drained, although nobody sends")
	}
}

// TestDrainWithoutKafka checks that nothing is said of the time at which all is
// settled while no call can be made.
func TestDrainWithoutKafka(t *testing.T) {
	for name, tt := range map[string]struct {
		role   consumer.Role
		ledger any
		drains bool
	}{
		"active":             {consumer.RoleActive, ledger.Status{}, true},
		"standby":            {consumer.RoleStandby, ledger.Status{}, true},
		"not in the group":   {consumer.RoleJoining, ledger.Status{}, false},
		"before the ledger":  {consumer.RoleJoining, nil, false},
		"without the ledger": {consumer.RoleActive, ledger.Status{Failing: "refused"}, false},
	} {
		st := Status{Role: tt.role, Ledger: tt.ledger, Accounts: []upstream.AccountStatus{{State: upstream.StateIdle, Attainable: 10}}}
		st.measure([]consumer.PartitionStatus{{Waiting: 3}})
		st.admitStuck()
		if got := st.Backlog.DrainSeconds != nil; got != tt.drains || got != (st.Partitions[0].DrainSeconds != nil) {
			t.Errorf("%s: there is a time at which it is drained: %t", name, got)
		}
	}
}

// TestDrainOfAccounts checks that an account is not expected to send the orders
// of another.
func TestDrainOfAccounts(t *testing.T) {
	account := func(name string, rate float64, waiting, inFlight int) upstream.AccountStatus {
		return upstream.AccountStatus{Name: name, State: upstream.StateSending, Attainable: rate, Waiting: waiting, InFlight: inFlight}
	}
	for name, tt := range map[string]struct {
		accounts []upstream.AccountStatus
		want     float64
	}{
		"nothing in memory":  {[]upstream.AccountStatus{account("a", 10, 0, 0), account("b", 10, 0, 0)}, 5},
		"all of one":         {[]upstream.AccountStatus{account("a", 10, 38, 2), account("b", 10, 0, 0)}, 10},
		"half and half":      {[]upstream.AccountStatus{account("a", 10, 20, 0), account("b", 10, 20, 0)}, 5},
		"most of a slow one": {[]upstream.AccountStatus{account("a", 10, 10, 0), account("b", 1, 10, 0)}, 50},
		"some are parked":    {[]upstream.AccountStatus{account("a", 10, 20, 0), account("b", 10, 27, 0)}, 5},
		"another is halted":  {[]upstream.AccountStatus{account("a", 10, 20, 0), {Name: "b", State: upstream.StateHalted, Attainable: 10}}, 10},
	} {
		st := Status{Accounts: tt.accounts, ParkedShops: []upstream.ParkedShop{{Account: "b"}}}
		waiting := int64(100)
		if name == "some are parked" {
			st.ParkedShops[0].Waiting = 7
			waiting = 107
		}
		st.measure([]consumer.PartitionStatus{{Waiting: waiting}})
		if got := st.Backlog.DrainSeconds; got == nil {
			t.Errorf("%s: there is no time at which it is drained", name)
		} else if *got != tt.want {
			t.Errorf("%s: drained in %g s, want %g", name, *got, tt.want)
		}
	}
	st := Status{Leaving: true, Accounts: []upstream.AccountStatus{account("a", 10, 0, 0)}}
	st.measure([]consumer.PartitionStatus{{Waiting: 10}})
	st.admitStuck()
	if st.Backlog.DrainSeconds != nil || st.Partitions[0].DrainSeconds != nil {
		t.Error("a replica that leaves says when it will have drained what waits")
	}
}
