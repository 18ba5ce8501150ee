package operate

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"packship/cmd/internal/app"
	"packship/schema"
	"packship/upstream/upstreamtest"
)

func point(t *testing.T, text string) Point {
	t.Helper()
	p, err := ParsePoint(text, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// plan makes a plan of everything.
func (w *world) plan(r ReplayRange) *Plan {
	w.t.Helper()
	p, err := w.operator().PlanReplay(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// TestReplayComesTrue plans a replay over records of every fate, carries it out,
// and compares what happens with what was said.
func TestReplayComesTrue(t *testing.T) {
	w := newWorld(t)
	w.fault(upstreamtest.AnyRow(35), 7, 1)
	noWaybill := func(tid int, extra string) string {
		return strings.Replace(packedEvent(tid, extra), `"out_sid":"SF`, `"out_sid":"`, 1)
	}
	for tid := range 12 {
		w.produce(packedEvent(tid+1, ""))
	}
	w.produce(packedEvent(1, `,"feature":"`), "not json") // two dead letters
	w.produce(strings.Replace(packedEvent(20, ""), `"SF0`, `"!`, 1))
	w.settled()

	// What comes now is in the topic and was never handled.
	w.produce(
		packedEvent(31, ""), packedEvent(32, ""),
		strings.Replace(packedEvent(32, ""), "evt-32", "evt-32-again", 1), // the same shipment
		noWaybill(33, `,"company_code":""`),                               // breaks rules
		strings.Replace(packedEvent(1, ""), "evt-1", "evt-1-again", 1),    // shipped already
		strings.Replace(packedEvent(7, ""), "evt-7", "evt-7-again", 1),    // failed, and tried anew
		packedEvent(34, ""), // in doubt
	)
	w.claim(packedEvent(34, ""))
	old := time.Now().Add(-w.settings.LedgerHorizon - time.Hour)
	w.append(schema.Record{Key: []byte("35"), Value: []byte(packedEvent(35, "")), Time: old})

	before := w.count()
	got := w.plan(ReplayRange{From: point(t, "first")})
	want := &Plan{
		Records: 23, Shipped: 13, Failed: 3, InDoubt: 1, New: 3, BeyondHorizon: 1, DeadLetters: 2,
		Calls: 4, Points: 4, Seconds: 0.1,
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Plan{}, "Moves")); diff != "" {
		t.Fatalf("plan (-want +got):\n%s", diff)
	}
	if after := w.count(); after != before {
		t.Fatalf("the plan has changed something: %+v and then %+v", before, after)
	}

	w.idle()
	file := filepath.Join(t.TempDir(), "undo.json")
	saved, err := w.operator().Replay(t.Context(), got, file, false)
	if err != nil || saved != file {
		t.Fatalf("replay: %q, %v", saved, err)
	}
	w.settled()
	did := w.count().since(before)
	if diff := cmp.Diff(counts{
		calls: int(got.Calls), shipped: int(got.Shipped + got.New + got.InDoubt),
		failed: int(got.Failed + got.BeyondHorizon), dead: int(got.DeadLetters),
	}, did, cmp.AllowUnexported(counts{})); diff != "" {
		t.Errorf("what was said and what has happened (-want +got):\n%s", diff)
	}
	w.verify()

	// Everything is settled now, so that another replay calls nobody.
	again := w.plan(ReplayRange{From: point(t, "first")})
	want = &Plan{Records: 23, Shipped: 18, Failed: 3, DeadLetters: 2} // 7 is shipped by its second event
	if diff := cmp.Diff(want, again, cmpopts.IgnoreFields(Plan{}, "Moves")); diff != "" {
		t.Errorf("second plan (-want +got):\n%s", diff)
	}
}

// TestReplayKnowsWhoseParcelItIs plans a replay over orders that have the waybill
// number of one that was shipped, or that is shipped by the replay.
func TestReplayKnowsWhoseParcelItIs(t *testing.T) {
	w := newWorld(t)
	labelled := func(tid, label int, group string) string {
		event := packedEvent(tid, `,"order_group":"`+group+`"`)
		return strings.Replace(event, fmt.Sprintf("SF%013d", tid), fmt.Sprintf("SF%013d", label), 1)
	}
	w.produce(labelled(1, 1, "north"), labelled(2, 2, "north"))
	w.settled()
	w.produce(
		labelled(11, 1, "south"), // the label of one that was shipped
		labelled(21, 2, "north"), // a merged parcel
		labelled(31, 2, ""),      // of no group
		labelled(41, 41, "north"),
		labelled(51, 41, "south"), // the label of the one before
		labelled(61, 41, "north"), // a merged parcel
	)
	got := w.plan(ReplayRange{From: point(t, "first")})
	if got.Records != 8 || got.Shipped != 2 || got.Failed != 2 || got.New != 4 || got.Calls != 4 {
		t.Errorf("got %+v, want 2 shipped, 2 failed and 4 new", got)
	}
}

// TestReplayMoves moves a group and moves it back, and has it refused what would
// lose an order or surprise somebody.
func TestReplayMoves(t *testing.T) {
	w := newWorld(t)
	for tid := range 12 {
		w.append(schema.Record{Partition: tid % 3, Value: []byte(packedEvent(tid+1, ""))})
	}
	stop := w.start()
	w.committed()
	o := w.operator()
	all := ReplayRange{From: point(t, "first")}
	refused := func(what, want string, err error) {
		t.Helper()
		if _, ok := errors.AsType[*RefusalError](err); !ok || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want a refusal with %q", what, err, want)
		}
	}
	_, err := o.Replay(t.Context(), w.plan(all), "", false)
	refused("a running replica", "stop all replicas first", err)
	stop()
	w.idle()
	committed := func() []int64 {
		t.Helper()
		progress, err := w.kafka.Progress(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var at []int64
		for _, p := range progress {
			at = append(at, p.Committed)
		}
		return at
	}
	at := func(what string, want ...int64) {
		t.Helper()
		if got := committed(); !slices.Equal(got, want) {
			t.Errorf("%s: the group stands at %v, want %v", what, got, want)
		}
	}
	at("in the beginning", 4, 4, 4)

	_, err = o.Replay(t.Context(), w.plan(ReplayRange{From: point(t, "first"), To: point(t, "2")}), "", false)
	refused("an end before the group", "leave --to out", err)
	at("after the refusals", 4, 4, 4)

	// Part of one partition.
	dir := t.TempDir()
	t.Chdir(dir)
	file, err := o.Replay(t.Context(), w.plan(ReplayRange{From: point(t, "1"), Partitions: []int{2}}), "", false)
	if err != nil {
		t.Fatal(err)
	}
	at("moved", 4, 4, 1)
	if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
		t.Errorf("the undo file: %v", err)
	}

	// Going forward would pass over records.
	forward := ReplayRange{From: point(t, "3"), Partitions: []int{2}}
	_, err = o.Replay(t.Context(), w.plan(forward), "", false)
	refused("forward", "would pass over 2 records", err)
	at("not forward", 4, 4, 1)
	if _, err := o.Replay(t.Context(), w.plan(forward), filepath.Join(dir, "forced.json"), true); err != nil {
		t.Errorf("forced forward: %v", err)
	}
	at("forced forward", 4, 4, 3)

	moved, err := o.Undo(t.Context(), file)
	if err != nil || len(moved) != 1 || moved[0].Now != 3 || moved[0].From != 4 {
		t.Errorf("undo: %+v, %v", moved, err)
	}
	at("undone", 4, 4, 4)
	if moved, err = o.Undo(t.Context(), file); err != nil || len(moved) != 0 {
		t.Errorf("undo twice: %+v, %v", moved, err)
	}
	if _, err := o.Replay(t.Context(), w.plan(ReplayRange{From: point(t, "4")}), "", false); err == nil || !strings.Contains(err.Error(), "nothing to move") {
		t.Errorf("no move: %v", err)
	}
	if _, err := o.Replay(t.Context(), w.plan(all), file, false); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("a file that is there: %v", err)
	}
	at("not moved without a saved place", 4, 4, 4)
	if _, err := o.PlanReplay(t.Context(), ReplayRange{From: point(t, "first"), Partitions: []int{7}}); err == nil || !strings.Contains(err.Error(), "has no partition 7; it has 0 to 2") {
		t.Errorf("an unknown partition: %v", err)
	}

	// Passing over records by force can be undone, also when the group has gone on.
	if _, err := o.Undo(t.Context(), filepath.Join(dir, "forced.json")); err != nil {
		t.Fatal(err)
	}
	at("what was passed over comes again", 4, 4, 1)
	if moved, err = o.Undo(t.Context(), filepath.Join(dir, "forced.json")); err != nil || len(moved) != 0 {
		t.Errorf("undo of force twice: %+v, %v", moved, err)
	}
	if _, err := o.Undo(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	at("and undone again", 4, 4, 4)

	other := w.settings
	other.KafkaGroupID += "-other"
	if _, err := New(&other, w.kafka, nil).Undo(t.Context(), file); err == nil || !strings.Contains(err.Error(), "is about group") {
		t.Errorf("another group's file: %v", err)
	}
	foreign := fmt.Sprintf(`{"group":%q,"topic":%q,"offsets":{"0":9,"1":4},"moved":{"0":0,"1":0}}`, w.settings.KafkaGroupID, w.settings.TopicPacked)
	if err := os.WriteFile(file, []byte(foreign), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = o.Undo(t.Context(), file)
	refused("a file of a longer log", "stood at 9 in partition 0, which ends at 4", err)
	at("not beyond the end", 4, 4, 4)
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Undo(t.Context(), file); err == nil || !strings.Contains(err.Error(), "was not written by packship replay") {
		t.Errorf("another file: %v", err)
	}
}

// TestReplayRanges resolves points to records, by the timestamps of the records
// where they are times.
func TestReplayRanges(t *testing.T) {
	w := newWorld(t)
	begin := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	for i := range 10 {
		w.append(schema.Record{Value: []byte(packedEvent(i+1, "")), Time: begin.Add(time.Duration(i) * time.Minute)})
	}
	now := time.Date(2026, 11, 24, 10, 10, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		from, to string
		want     [2]int64
	}{
		"all":            {"first", "", [2]int64{0, 10}},
		"offset":         {"3", "", [2]int64{3, 10}},
		"offsets":        {"3", "5", [2]int64{3, 5}},
		"time":           {"2026-11-24T10:04:00Z", "", [2]int64{4, 10}},
		"between":        {"2026-11-24T10:03:30Z", "2026-11-24T10:05:30Z", [2]int64{4, 6}},
		"other zone":     {"2026-11-24T18:04:00+08:00", "", [2]int64{4, 10}},
		"duration":       {"150s", "", [2]int64{8, 10}},
		"days":           {"2d", "7m", [2]int64{0, 3}},
		"beyond the end": {"99", "", [2]int64{10, 10}},
		"future":         {"2026-11-24T10:30:00Z", "", [2]int64{10, 10}},
		"turned round":   {"5", "3", [2]int64{5, 5}},
	} {
		t.Run(name, func(t *testing.T) {
			r := ReplayRange{Partitions: []int{0}}
			var err error
			if r.From, err = ParsePoint(tt.from, now); err != nil {
				t.Fatal(err)
			}
			if tt.to != "" {
				if r.To, err = ParsePoint(tt.to, now); err != nil {
					t.Fatal(err)
				}
			}
			moves, err := w.operator().moves(t.Context(), r)
			if err != nil || len(moves) != 1 || moves[0].From != tt.want[0] || moves[0].To != tt.want[1] {
				t.Errorf("got %+v, %v; want %v", moves, err, tt.want)
			}
		})
	}
}

// TestReplayNotes says where a replay cannot begin as it was asked for.
func TestReplayNotes(t *testing.T) {
	w := newWorld(t)
	begin := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	for i := range 10 {
		w.append(schema.Record{Value: []byte(packedEvent(i+1, "")), Time: begin.Add(time.Duration(i) * time.Minute)})
	}
	w.expire(w.topic(w.settings.TopicPacked)[4])
	deleted := "begins at 4: what was before it is deleted"
	for from, want := range map[string]string{
		"first": "", "2": deleted, "4": "", "7": "", "10": "", "11": "ends at 10, so that there is nothing at offset 11",
		"2026-11-24T09:00:00Z": deleted, "2026-11-24T10:05:00Z": "", "2026-11-24T12:00:00Z": "",
	} {
		moves, err := w.operator().moves(t.Context(), ReplayRange{From: point(t, from), Partitions: []int{0}})
		if err != nil || moves[0].Note != want {
			t.Errorf("from %s: %+v, %v; want %q", from, moves, err, want)
		}
	}
}

// TestReplaySinceCommit finds where the group stood at a time: at what it had
// not answered by then, be it packed long before.
func TestReplaySinceCommit(t *testing.T) {
	w := newWorld(t)
	old := time.Now().Add(-2 * time.Hour)
	backlog := func(tids ...int) {
		for _, tid := range tids {
			w.append(schema.Record{Partition: tid % 2, Key: []byte(fmt.Sprint(tid)), Value: []byte(packedEvent(tid, "")), Time: old})
		}
	}
	w.fault(upstreamtest.AnyRow(35), 12, 1)
	backlog(1, 2, 3, 4)
	w.append(schema.Record{Partition: 2, Value: []byte("rubbish"), Time: old})
	w.settled()
	time.Sleep(2 * time.Millisecond) // Kafka's times are milliseconds
	then := time.Now()
	backlog(11, 12, 13, 14)
	w.produce(strings.Replace(packedEvent(1, ""), "evt-1", "evt-1-again", 1)) // shipped before, answered now
	w.append(schema.Record{Partition: 2, Value: []byte("more rubbish"), Time: old})
	w.settled()
	// An earlier replay has answered everything once more.
	w.idle()
	if _, err := w.operator().Replay(t.Context(), w.plan(ReplayRange{From: point(t, "first")}), filepath.Join(t.TempDir(), "u"), false); err != nil {
		t.Fatal(err)
	}
	w.settled()
	now := time.Now()
	w.produce(packedEvent(22, "")) // waits

	from := func(what, text string, want ...int64) {
		t.Helper()
		var got []int64
		for _, m := range w.plan(ReplayRange{From: point(t, text)}).Moves {
			got = append(got, m.From)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: from %v, want %v", what, got, want)
		}
	}
	from("then", "commit@"+then.Format(time.RFC3339Nano), 2, 2, 1)
	from("before anything", "commit@3h", 0, 0, 0)
	from("now", "commit@"+now.Format(time.RFC3339Nano), 4, 5, 2)
	from("by the events' own times", "3h", 0, 0, 0)
	if p := w.plan(ReplayRange{From: point(t, "commit@"+then.Format(time.RFC3339Nano))}); p.Records != 7 || p.Shipped != 4 || p.Failed != 1 || p.DeadLetters != 1 || p.New != 1 {
		t.Errorf("plan: %+v", p)
	}

	// Results of that time are deleted.
	shipped := w.topic(w.settings.TopicShipped)
	w.expire(shipped[slices.IndexFunc(shipped, func(r *schema.Record) bool { return r.Offset > 0 })])
	_, err := w.operator().PlanReplay(t.Context(), ReplayRange{From: point(t, "commit@3h")})
	if _, ok := errors.AsType[*RefusalError](err); !ok || !strings.Contains(err.Error(), "keeps results only since") {
		t.Errorf("forgotten: %v", err)
	}
}

// TestReplaySinceCommitOfBatch has orders whose events have the id of their batch,
// of which one was answered before the time.
func TestReplaySinceCommitOfBatch(t *testing.T) {
	w := newWorld(t)
	pack := func(tid int) {
		event := strings.Replace(packedEvent(tid, ""), fmt.Sprintf("evt-%d", tid), "batch-7", 1)
		w.append(schema.Record{Key: []byte(fmt.Sprint(tid)), Value: []byte(event)})
	}
	pack(1)
	w.settled()
	time.Sleep(2 * time.Millisecond) // Kafka's times are milliseconds
	then := time.Now()
	pack(2)
	pack(3)
	w.settled()
	if m := w.plan(ReplayRange{From: point(t, "commit@"+then.Format(time.RFC3339Nano)), Partitions: []int{0}}).Moves[0]; m.From != 1 {
		t.Errorf("from %d, want 1, which was answered after the time", m.From)
	}
}

// TestReplaySinceCommitOfNothingLeft has results that are all deleted: only what
// cannot have been deleted by then is known.
func TestReplaySinceCommitOfNothingLeft(t *testing.T) {
	w := newWorld(t)
	w.produce(packedEvent(1, ""))
	w.settled()
	shipped := w.topic(w.settings.TopicShipped)
	if len(shipped) != 1 {
		t.Fatalf("%d results", len(shipped))
	}
	shipped[0].Offset++
	w.expire(shipped[0])
	_, err := w.operator().PlanReplay(t.Context(), ReplayRange{From: point(t, "commit@169h")})
	if _, ok := errors.AsType[*RefusalError](err); !ok || !strings.Contains(err.Error(), "keeps results for 168h0m0s only") {
		t.Errorf("beyond the retention: %v", err)
	}
	if _, err := w.operator().PlanReplay(t.Context(), ReplayRange{From: point(t, "commit@167h")}); err != nil {
		t.Errorf("within the retention: %v", err)
	}
}

// TestPlanFields holds the names of a plan's fields to the contract with other
// programs.
func TestPlanFields(t *testing.T) {
	text, err := json.Marshal(Plan{Skipped: 1, Damaged: "x", Moves: []Move{{Note: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]float64 // and nothing but numbers
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	want := []string{"beyond_horizon", "calls", "dead_letters", "failed", "in_doubt", "new", "points", "records", "seconds", "shipped", "skipped"}
	if diff := cmp.Diff(want, sortedKeys(fields)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestReplayPolicies plans by other settings: doubtful orders that are parked,
// shops of another deployment, and a slower account.
func TestReplayPolicies(t *testing.T) {
	w := newWorld(t)
	w.produce(packedEvent(1, ""), packedEvent(2, ""))
	for i := range 20 {
		w.produce(packedEvent(10+i, ""))
	}
	w.claim(packedEvent(1, ""))
	plan := func(change func(*app.Settings)) *Plan {
		t.Helper()
		s := w.settings
		change(&s)
		p, err := New(&s, w.kafka, nil).PlanReplay(t.Context(), ReplayRange{From: point(t, "first")})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := plan(func(s *app.Settings) { s.UnknownPolicy = "park" }); p.InDoubt != 1 || p.New != 21 || p.Calls != 21 {
		t.Errorf("park: %+v", p)
	}
	if p := plan(func(s *app.Settings) { s.RatePerSecond, s.RateJitter = 2, 0 }); p.Calls != 22 || p.Seconds != 11 {
		t.Errorf("slow: %+v", p)
	}
	accounts := filepath.Join(t.TempDir(), "accounts.yaml")
	token := filepath.Join(t.TempDir(), "token")
	for file, text := range map[string]string{
		token:    "hush",
		accounts: "accounts:\n  - name: north\n    token_file: " + token + "\n    shops: [\"1\"]\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if p := plan(func(s *app.Settings) { s.UpstreamToken, s.AccountsFile, s.UnknownShop = "", accounts, "skip" }); p.Skipped != 22 || p.Records != 22 || p.Calls != 0 {
		t.Errorf("skip: %+v", p)
	}
	if p := plan(func(s *app.Settings) { s.UpstreamToken, s.AccountsFile, s.UnknownShop = "", accounts, "fail" }); p.Failed != 21 || p.InDoubt != 1 || p.Calls != 0 {
		t.Errorf("fail: %+v", p)
	}
}
