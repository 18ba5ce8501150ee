package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/cmd/internal/app"
	"packship/cmd/internal/life"
	"packship/cmd/internal/operate"
	"packship/schema"
	"packship/upstream/upstreamtest"
)

func TestOperateUsage(t *testing.T) {
	table := file(t, "c.csv", "out_sid\nSF1\n")
	kafka := map[string]string{"KAFKA_BROKERS": "k:1"}
	tests := map[string]struct {
		env    map[string]string
		args   []string
		code   int
		stderr string
	}{
		"replay from nowhere":    {kafka, []string{"replay"}, 2, `^packship: --from is needed: first, an offset, `},
		"replay from nonsense":   {kafka, []string{"replay", "--from", "noon"}, 2, `^packship: --from: "noon" is neither first, nor an offset, `},
		"replay to nonsense":     {kafka, []string{"replay", "--from", "0", "--to", "-1"}, 2, `^packship: --to: offset -1 is negative`},
		"replay turned round":    {kafka, []string{"replay", "--from", "1h", "--to", "2h"}, 2, `^packship: --to 2h lies before --from 1h\n$`},
		"replay to the future":   {kafka, []string{"replay", "--from", "2126-11-24T02:00:00Z"}, 2, `^packship: --from 2126-11-24T02:00:00Z has not come yet\n$`},
		"replay since nonsense":  {kafka, []string{"replay", "--from", "commit@12"}, 2, `^packship: --from: "12" is neither a time like `},
		"replay part of an undo": {kafka, []string{"replay", "--undo", "f", "--partition", "1"}, 2, `^packship: --undo without --from moves the group back as the file says; `},
		"replay an argument":     {kafka, []string{"replay", "first"}, 2, `^packship: unknown command "first"`},
		"replay no partition":    {kafka, []string{"replay", "--from", "0", "--partition", "x"}, 2, `^packship: invalid argument "x" for "--partition"`},
		"replay below partition": {kafka, []string{"replay", "--from", "0", "--partition", "1,-1"}, 2, `^packship: --partition: partitions are numbered from 0 on\n$`},
		"replay unset":           {nil, []string{"replay", "--from", "first"}, 2, `^packship: settings: PACKSHIP_KAFKA_BROKERS is not set; [^;]*\n$`},
		"replay wrong settings":  {map[string]string{"KAFKA_BROKERS": "k:1", "RATE_PER_SECOND": "x"}, []string{"replay", "--from", "first"}, 2, `^packship: settings: PACKSHIP_RATE_PER_SECOND is not a number\n$`},
		"redrive set nonsense":   {kafka, []string{"redrive", "--set", "out_sid"}, 2, `^packship: --set: "out_sid" is not FIELD=VALUE\n$`},
		"redrive set identity":   {kafka, []string{"redrive", "--set", "tid=1"}, 2, `^packship: --set: "tid" is no field that can be set; there are occurred_at, out_sid, `},
		"redrive since":          {kafka, []string{"redrive", "--since", "12"}, 2, `^packship: --since: "12" is neither a time`},
		"redrive until":          {kafka, []string{"redrive", "--until", "x"}, 2, `^packship: --until: `},
		"redrive limit":          {kafka, []string{"redrive", "--limit", "-1"}, 2, `^packship: --limit and --rate are numbers from 0 on\n$`},
		"redrive rate":           {kafka, []string{"redrive", "--rate", "NaN"}, 2, `^packship: --limit and --rate are numbers from 0 on\n$`},
		"redrive no time":        {kafka, []string{"redrive", "--since", "1h", "--until", "2h"}, 2, `^packship: --since 1h does not lie before --until 2h\n$`},
		"redrive no order":       {kafka, []string{"redrive", "--tid", "12x"}, 2, `^packship: --tid: "12x" is no order id`},
		"redrive no corrections": {kafka, []string{"redrive", "--corrections", "/nonexistent"}, 2, `^packship: --corrections: open /nonexistent`},
		"redrive bad table":      {kafka, []string{"redrive", "--corrections", table}, 2, `^packship: --corrections: the header row lacks tid; it names out_sid\n$`},
		"trace nobody":           {kafka, []string{"trace"}, 2, `^packship: accepts 1 arg`},
		"trace nonsense":         {kafka, []string{"trace", "0012"}, 2, `^packship: "0012" is no order id`},
		"dlq":                    {kafka, []string{"dlq"}, 2, `^packship: packship dlq needs a command`},
		"dlq show nothing":       {kafka, []string{"dlq", "show"}, 2, `^packship: accepts 1 arg`},
		"dlq show nonsense":      {kafka, []string{"dlq", "show", "7"}, 2, `^packship: "7" is not the id of a dead letter, which is partition/offset`},
		"dlq done nothing":       {kafka, []string{"dlq", "done"}, 2, `^packship: requires at least 1 arg`},
		"dlq done nonsense":      {kafka, []string{"dlq", "done", "0/1", "7"}, 2, `^packship: "7" is not the id of a dead letter`},
		"dlq resend no value":    {kafka, []string{"dlq", "resend", "0/0", "--value", "/nonexistent"}, 2, `^packship: --value: open /nonexistent`},
		"dlq resend empty value": {kafka, []string{"dlq", "resend", "0/0", "--value", "-"}, 2, `^packship: --value: - is empty`},
		"dlq unset":              {nil, []string{"dlq", "list"}, 2, `PACKSHIP_KAFKA_BROKERS is not set`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := packship(t, tt.env, "", tt.args...)
			if code != tt.code || stdout != "" || !regexp.MustCompile(tt.stderr).MatchString(stderr) {
				t.Errorf("exit code %d, want %d; stdout %q; stderr %q does not match %q", code, tt.code, stdout, stderr, tt.stderr)
			}
		})
	}
}

// TestOperateWithoutTopics checks that missing topics are named, with the remedy.
func TestOperateWithoutTopics(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	env := map[string]string{"KAFKA_BROKERS": strings.Join(cluster.ListenAddrs(), ",")}
	for _, args := range [][]string{{"replay", "--from", "first"}, {"redrive"}, {"trace", "1"}, {"dlq", "list"}, {"dlq", "show", "0/0"}} {
		code, stdout, stderr := packship(t, env, "", args...)
		if code != 1 || stdout != "" || !strings.Contains(stderr, "topic packship.ledger.v1 does not exist; create it with `packship topics create`") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
}

// TestOperateStory is a day of an operator on the command line: a few orders
// are packed and shipped, one fails and one is rubbish; they are looked at, sent
// again, and replayed.
func TestOperateStory(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	sim := upstreamtest.New(upstreamtest.Options{
		AutoCreate: true, Accounts: []upstreamtest.Account{{Name: "default", Token: "hush"}},
		Faults: []upstreamtest.Fault{{Kind: upstreamtest.AnyRow(35), TID: "2000003", Count: 1}},
	})
	defer sim.Close() //nolint:errcheck // nothing is left to be said
	url, err := sim.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{
		"KAFKA_BROKERS": strings.Join(cluster.ListenAddrs(), ","), "UPSTREAM_URL": url + upstreamtest.SendPath, "UPSTREAM_TOKEN": "hush",
		"KAFKA_SESSION_TIMEOUT": "6s", "HTTP_ADDR": "127.0.0.1:0", "RATE_PER_SECOND": "50", "LEDGER_PARTITIONS": "2", "LOG_LEVEL": "error",
	}
	do := func(stdin string, args ...string) (int, string, string) {
		t.Helper()
		return packship(t, env, stdin, args...)
	}
	must := func(stdin string, args ...string) string {
		t.Helper()
		code, stdout, stderr := do(stdin, args...)
		if code != 0 {
			t.Fatalf("%v: exit code %d, %s%s", args, code, stdout, stderr)
		}
		return stdout
	}
	// match checks that an output has all the lines.
	match := func(what, got string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !regexp.MustCompile(`(?m)` + w).MatchString(got) {
				t.Errorf("%s: no match of %q in\n%s", what, w, got)
			}
		}
	}
	must("", "topics", "create", "--partitions", "1", "--replication", "1")
	var orders strings.Builder
	for i := range 5 {
		fmt.Fprintf(&orders, `{"event_id":"e%d","shop_id":"s1","tid":"%d","out_sid":"SF%013d","company_code":"SF"}`+"\n", i, 2000000+i, i)
	}
	must(orders.String(), "pack", "-")

	settings := app.Defaults()
	settings.KafkaBrokers = cluster.ListenAddrs()
	k := app.NewKafka(&settings, nil, settings.Topics()...)
	defer k.Close()
	// ship runs the connector until it has handled everything.
	ship := func() {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan int, 1)
		var log bytes.Buffer
		go func() { done <- Main(ctx, []string{"run"}, Streams{Err: &log}) }()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			progress, err := k.Progress(ctx)
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("not shipped: %+v, %v", progress, err)
			}
			if progress[0].Lag() == 0 {
				break
			}
		}
		if members, err := k.Members(ctx); err != nil || len(members) != 1 {
			t.Errorf("members %v, %v", members, err)
		}
		code, _, stderr := do("", "replay", "--from", "first", "--execute")
		if code != 1 || !strings.Contains(stderr, "has 1 member (packship") || !strings.Contains(stderr, "stop all replicas first") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("replay beside a replica: exit code %d, %q", code, stderr)
		}
		cancel()
		if code := <-done; code != 0 {
			t.Fatalf("run: exit code %d, %s", code, log.String())
		}
	}
	must("", "trace", "2000003") // it waits
	ship()

	match("trace", must("", "trace", "2000003"),
		`^TIME +WHAT +WHERE +DETAIL$`,
		`packed +erp\.order\.packed\.v1/0/\d +event e3, shop s1, waybill SF0000000000003, carrier SF$`,
		`intent +packship\.ledger\.v1/\d/\d+ +round 1 for event e3 by \S+$`,
		`outcome .* failed with waybill_already_used, 1 call, answered with HTTP 200, code 614 ".+" in \d+ ms, told by \S+, result [0-9a-f-]{36}$`,
		`published +erp\.order\.shipment-failed\.v1/0/0 +failed with waybill_already_used, result \S+ in reply to e3$`,
		`^order 2000003: failed at \S+ with waybill_already_used: .*or send it corrected with .packship redrive --tid 2000003 --set out_sid=WAYBILL --execute.$`)
	var story struct {
		TID, Standing string
		Timeline      []map[string]any
	}
	if err := json.Unmarshal([]byte(must("", "trace", "--json", "2000001")), &story); err != nil || story.TID != "2000001" || len(story.Timeline) != 4 {
		t.Errorf("trace as JSON: %+v, %v", story, err)
	}
	if code, stdout, stderr := do("", "trace", "404"); code != 1 || stdout != "" || stderr != "packship: nothing is known of order 404; check the id, or whether the topics still keep it\n" {
		t.Errorf("trace of nothing: exit code %d, %q, %q", code, stdout, stderr)
	}

	match("redrive, dry", must("", "redrive"),
		`^REASON +CLASS +FOUND +TO SEND +REFUSED$`, `^waybill_already_used +waybill_rejected +1 +1 +0$`,
		`^1 order to send: 1 call, at most 1 point, 100ms at the rate of the account$`, `^nothing was sent; --execute sends them$`)
	match("redrive slowly", must("", "redrive", "--rate", "0.01"), `^1 order to send: 1 call, at most 1 point, 100ms at the rate of the account and of --rate$`)
	match("redrive", must("tid,out_sid\n2000003,SF0000000000033\n", "redrive", "--corrections", "-", "--rate", "0", "--execute"), `^sent 1 of 1 order: `)
	match("redrive again", must("", "redrive", "--execute"),
		`^1 +sent +it was sent again already, and waits or is answered$`, `^order 2000003 +sent`, `^nothing is sent: the failure is refused$`)
	ship()
	match("redrive when shipped", must("", "redrive", "--execute"), `^1 +order_shipped +the order was shipped by another event`)
	if out := must("", "redrive", "--reason", "waybill_expired", "--class", "address"); out != "no failed order fits\n" {
		t.Errorf("redrive of nothing: %q", out)
	}
	for flag, want := range map[string]string{
		"--reason=waybill_used":     `^packship: redrive: there is no reason "waybill_used", and no failed event has it; the nearest are .*waybill_already_used.*\n$`,
		"--class=waybill_rejection": `^packship: redrive: there is no class "waybill_rejection", .*waybill_rejected`,
		"--account=nobody":          `^packship: redrive: there is no account "nobody"; there are default\n$`,
	} {
		if code, stdout, stderr := packship(t, env, "", "redrive", flag, "--execute"); code != 2 || stdout != "" || !regexp.MustCompile(want).MatchString(stderr) {
			t.Errorf("redrive %s: exit code %d, stdout %q, stderr %q, want 2 and %s", flag, code, stdout, stderr, want)
		}
	}
	var report struct {
		Found, Selected, Refused, Sent int
		Executed                       bool
		Refusals                       []struct{ Why string }
	}
	if err := json.Unmarshal([]byte(must("", "redrive", "--execute", "--json")), &report); err != nil || report.Found != 1 || report.Refused != 1 || report.Sent != 0 || len(report.Refusals) != 1 {
		t.Errorf("redrive as JSON: %+v, %v", report, err)
	}

	plan := must("", "replay", "--from", "first", "--json")
	var fields map[string]any
	if err := json.Unmarshal([]byte(plan), &fields); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{
		"records": 6.0, "shipped": 5.0, "failed": 1.0, "in_doubt": 0.0, "new": 0.0, "beyond_horizon": 0.0, "dead_letters": 0.0, "calls": 0.0, "points": 0.0, "seconds": 0.0,
	}, fields); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	match("replay", must("", "replay", "--from", "1h", "--to", "0m"),
		`^PARTITION +GROUP AT +FROM +TO +END$`, `^0 +6 +0 +6 +6$`, `^RECORDS +6 *$`, `^shipped +5 +no call; the result is published again$`,
		`^no calls, no points$`, `^downstream: sees 5 shipped results again \(same ids, same bytes\), 1 failed result$`, `^nothing was changed; --execute moves group packship there$`)
	undo := filepath.Join(t.TempDir(), "undo.json")
	code, stdout, stderr := do("", "replay", "--from", "2", "--execute", "--undo", undo, "--json")
	if code != 0 || json.Unmarshal([]byte(stdout), &fields) != nil || fields["records"] != 4.0 || !strings.Contains(stderr, "undo with: packship replay --undo "+undo) {
		t.Errorf("replay: exit code %d, %s%s", code, stdout, stderr)
	}
	if _, err := os.Stat(undo); err != nil {
		t.Error(err)
	}
	code, stdout, stderr = do("", "replay", "--from", "99", "--json")
	if code != 0 || !strings.Contains(stdout, `"records": 0`) || !strings.Contains(stderr, "ends at 6, so that there is nothing at offset 99") {
		t.Errorf("replay from beyond the end: exit code %d, %s%s", code, stdout, stderr)
	}
	if out := must("", "replay", "--undo", undo); out != "partition 0: from 2 back to 6\n" {
		t.Errorf("undo: %q", out)
	}
	if out := must("", "replay", "--undo", undo, "--json"); !strings.Contains(out, `"moved": []`) {
		t.Errorf("undo twice: %q", out)
	}

	for key, args := range map[kmsg.Key][]string{
		kmsg.OffsetFetch: {"redrive"}, kmsg.DescribeGroups: {"replay", "--from", "2", "--execute"}, kmsg.OffsetCommit: {"replay", "--from", "2", "--execute", "--undo", filepath.Join(t.TempDir(), "u")},
	} {
		cluster.Fault(kfake.Fault{Keys: []kmsg.Key{key}, Err: kerr.GroupAuthorizationFailed, Count: 1})
		if code, _, stderr := do("", args...); code != 1 || !strings.Contains(stderr, "grant this client the rights Read and Describe on group packship\n") {
			t.Errorf("%v without the right on the group: exit code %d, %s", args, code, stderr)
		}
	}
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.RebalanceInProgress, Count: 1})
	half := filepath.Join(t.TempDir(), "half.json")
	code, _, stderr = do("", "replay", "--from", "2", "--execute", "--undo", half)
	if code != 1 || !strings.Contains(stderr, "was perhaps moved; back with: packship replay --undo "+half) || !strings.Contains(stderr, "move group packship in partition 0: ") {
		t.Errorf("replay that Kafka has refused: exit code %d, %s", code, stderr)
	}

	if out := must("", "dlq", "list"); out != "no dead letters\n" {
		t.Errorf("dlq list: %q", out)
	}
	rubbish(t, k, settings.TopicPacked, "\x00\x01rubbish\xff")
	ship()
	match("dlq list", must("", "dlq", "list"),
		`^ID +TIME +REASON +SOURCE +KEY +BYTES +DETAIL$`, `^0/0 +20\S+ \S+ +not_utf8 +erp\.order\.packed\.v1/0/6 +k +10 +the value is not UTF-8$`, `^COUNT +REASON$`, `^1 +not_utf8$`)
	match("dlq show", must("", "dlq", "show", "0/0"),
		`^key +k$`, `^header packship_reason +not_utf8$`, `^value +10 bytes$`, `^00000000  00 01 72 75 62 62 69 73  68 ff +\|\.\.rubbish\.\|$`)
	var shown map[string]any
	if err := json.Unmarshal([]byte(must("", "dlq", "show", "0/0", "--json")), &shown); err != nil || shown["value_base64"] != "AAFydWJiaXNo/w==" || shown["id"] != "0/0" {
		t.Errorf("dlq show as JSON: %v, %v", shown, err)
	}
	code, stdout, stderr = do("", "dlq", "resend", "0/0")
	if code != 0 || !strings.HasPrefix(stdout, "sent dead letter 0/0 to ") || !strings.Contains(stderr, "still no packed event (not_utf8: ") {
		t.Errorf("resend as it was: exit code %d, %q, %q", code, stdout, stderr)
	}
	code, stdout, stderr = do(`{"shop_id":"s1","tid":"2000009","out_sid":"SF0000000000009","company_code":"SF"}`, "dlq", "resend", "0/0", "--value", "-", "--json")
	if code != 0 || stderr != "" || !strings.Contains(stdout, `"packed_event": true`) {
		t.Errorf("resend repaired: exit code %d, %q, %q", code, stdout, stderr)
	}
	ship()
	match("dlq done", must("", "dlq", "done", "0/1"), `^1 dead letter is done`)
	match("dlq list --all", must("", "dlq", "list", "--all"), `^0/0 .* not_utf8  `, `^0/1 .* not_utf8 \(done\) `)
	match("dlq done --before", must("", "dlq", "done", "0/1", "--before"), `^1 dead letter is done`)
	if out := must("", "dlq", "done", "0/0", "0/1"); out != "nothing to mark: done already\n" {
		t.Errorf("dlq done twice: %q", out)
	}
	if code, stdout, stderr := do("", "dlq", "list", "--reason", "not_utf"); code != 2 || stdout != "" || !strings.Contains(stderr, `there is no reason "not_utf", and no dead letter has it; there are `) {
		t.Errorf("dlq list by a misspelt reason: exit code %d, %q, %q", code, stdout, stderr)
	}
	if code, _, stderr := do("", "dlq", "show", "0/9"); code != 1 || !strings.Contains(stderr, "there is no dead letter 0/9 in ") {
		t.Errorf("dlq show of nothing: exit code %d, %q", code, stderr)
	}
	match("trace of the repaired one", must("", "trace", "2000009"), `^order 2000009: shipped at `)
}

// TestOperateInterrupted says so in one plain sentence.
func TestOperateInterrupted(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	env := map[string]string{"KAFKA_BROKERS": strings.Join(cluster.ListenAddrs(), ","), "UPSTREAM_TOKEN": "hush"}
	if code, _, stderr := packship(t, env, "", "topics", "create", "--partitions", "1", "--replication", "1"); code != 0 {
		t.Fatal(stderr)
	}
	for _, args := range [][]string{{"replay", "--from", "first"}, {"redrive"}, {"trace", "1"}, {"dlq", "list"}, {"topics"}, {"topics", "create"}} {
		ctx, stop := context.WithCancelCause(t.Context())
		request := kmsg.ListOffsets
		if args[0] == "topics" {
			request = kmsg.Metadata
		}
		cluster.ControlKey(int16(request), func(kmsg.Request) (kmsg.Response, error, bool) {
			stop(errors.New("stopped by a signal"))
			return nil, nil, false
		})
		var stdout, stderr bytes.Buffer
		code := Main(ctx, args, Streams{Out: &stdout, Err: &stderr})
		if code != 1 || stdout.Len() > 0 || stderr.String() != "packship: stopped by a signal\n" {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, code, stdout.String(), stderr.String())
		}
	}
}

// forgotten is an input to which nothing comes before somebody loses patience.
type forgotten struct{ stop func() }

func (f forgotten) Read([]byte) (int, error) {
	f.stop()
	time.Sleep(time.Hour)
	return 0, io.EOF
}

// TestInputInterrupted ends commands that wait for what is to be typed.
func TestInputInterrupted(t *testing.T) {
	t.Setenv("PACKSHIP_KAFKA_BROKERS", "127.0.0.1:9092")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"pack", "--dry-run", "-"}, "packship: pack: stopped by a signal\n"},
		{[]string{"redrive", "--corrections", "-"}, "packship: stopped by a signal\n"},
		{[]string{"dlq", "resend", "0/0", "--value", "-"}, "packship: stopped by a signal\n"},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancelCause(t.Context())
			var stderr bytes.Buffer
			in := forgotten{func() { stop(errors.New("stopped by a signal")) }}
			if code := Main(ctx, tt.args, Streams{In: in, Out: io.Discard, Err: &stderr}); code != 1 || stderr.String() != tt.want {
				t.Errorf("%v: exit code %d, stderr %q", tt.args, code, stderr.String())
			}
			time.Sleep(2 * time.Hour) // the input comes to its end
		})
	}
}

// TestDryRunInterrupted does not read a file to its end for nobody.
func TestDryRunInterrupted(t *testing.T) {
	ctx, stop := context.WithCancelCause(t.Context())
	reported := 0
	out := writer(func(p []byte) {
		reported += bytes.Count(p, []byte("\n"))
		stop(errors.New("stopped by a signal"))
	})
	var stderr bytes.Buffer
	code := Main(ctx, []string{"pack", "--dry-run", file(t, "o.jsonl", strings.Repeat("x\n", 100))}, Streams{Out: out, Err: &stderr})
	if code != 1 || stderr.String() != "packship: pack: stopped by a signal\n" || reported != 1 {
		t.Errorf("exit code %d, %d lines reported, stderr %q", code, reported, stderr.String())
	}
}

// rubbish appends a record that is no packed event.
func rubbish(t *testing.T, k *app.Kafka, topic, value string) {
	t.Helper()
	res, err := k.Client.Produce(t.Context(), &kafka.ProduceRequest{
		Topic: topic, RequiredAcks: kafka.RequireAll,
		Records: kafka.NewRecordReader(kafka.Record{Key: kafka.NewBytes([]byte("k")), Value: kafka.NewBytes([]byte(value))}),
	})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestMeter(t *testing.T) {
	var screen bytes.Buffer
	m := &meter{w: &screen, terminal: true}
	m.Begin("reading", 200)
	m.done = 50
	if got, want := m.line(time.Second), "reading [#######.......................] 25% of 200"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := m.line(10*time.Second), "reading [#######.......................] 25% of 200, 30s left"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	m.drawn = time.Time{}
	m.Add(350) // more than was expected
	if got := screen.String(); got != "\r\033[Kreading [##############################] 100% of 200" {
		t.Errorf("got %q", got)
	}
	m.End()
	screen.Reset()
	m.Begin("nothing", 0)
	m.Add(1)
	m.terminal = false
	m.End()
	m.Begin("unseen", 10)
	m.Add(10)
	if screen.Len() > 0 {
		t.Errorf("drawn without a terminal or without a whole: %q", screen.String())
	}
}

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{"abc": "abc", "a\x1b[2Jb\n": "a·[2Jb·", "\xff": "·", "运单": "运单", "123456789": "1234567…"} {
		if got := printable(text, 8); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]bool{"a\tb\r\n运": true, "a\x00": false, "\x1b[2J": false, "\xff": false} {
		if got := isText([]byte(text)); got != want {
			t.Errorf("%q is text: %t", text, got)
		}
	}
}

// TestHostileText shows what others wrote, with sequences in it that would clear
// the terminal, set its title or turn the writing round, and checks that none of
// them gets there.
func TestHostileText(t *testing.T) {
	const hostile = "e\x1b[2J\x1b]0;t\a\n\u202ex"
	found := life.Found{TID: "2000001"}
	for i, waybill := range []string{hostile + "1", hostile + "2"} {
		s := schema.Shipment{ShopID: "s1", TID: "2000001", Split: "1", SubTID: []string{hostile}, OutSID: waybill, CompanyCode: hostile}
		found.Packed = append(found.Packed, life.Packed{
			Packed: &schema.Packed{EventID: hostile, TID: s.TID, ShopID: s.ShopID, Shipment: s},
			Record: &schema.Record{Topic: "packed", Offset: int64(i), Time: time.Unix(int64(i), 0)}, Ahead: -1,
		})
	}
	story := life.Tell(found)
	story.Standing = "failed with " + hostile
	plan := operate.Redrive{Found: 1, Refused: 1, Orders: []operate.RedriveOrder{{TID: "2000001", Refused: operate.RefusedInvalid, Detail: hostile}}}
	line, err := json.Marshal(map[string]string{"shop_id": "s1", "tid": hostile, "out_sid": hostile, "company_code": hostile})
	if err != nil {
		t.Fatal(err)
	}
	for name, show := range map[string]func(out *bytes.Buffer) error{
		"trace":   func(out *bytes.Buffer) error { return showStory(Streams{Out: out}, &story) },
		"redrive": func(out *bytes.Buffer) error { return showRedrive(Streams{Out: out}, &plan, "") },
		"pack": func(out *bytes.Buffer) error {
			_, stdout, _ := packship(t, nil, string(line), "pack", "--dry-run", "-")
			out.WriteString(stdout)
			return nil
		},
	} {
		var out bytes.Buffer
		if err := show(&out); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if text := out.String(); strings.ContainsAny(text, "\x1b\a\u202e") || !strings.Contains(text, "e·[2J·]0;t···x") {
			t.Errorf("%s: %q", name, text)
		}
	}
}

// TestOperateFlags holds the flags to the contract.
func TestOperateFlags(t *testing.T) {
	root := newRoot(Streams{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}})
	for command, flags := range map[string][]string{
		"replay":     {"from", "to", "partition", "execute", "undo", "json"},
		"redrive":    {"reason", "class", "shop", "account", "tid", "since", "until", "maybe-shipped", "set", "corrections", "limit", "rate", "execute", "force", "json"},
		"trace":      {"json"},
		"dlq list":   {"json"},
		"dlq resend": {"value"},
	} {
		cmd, rest, err := root.Find(strings.Fields(command))
		if err != nil || len(rest) > 0 {
			t.Errorf("%s: %v", command, err)
			continue
		}
		for _, flag := range flags {
			if cmd.Flags().Lookup(flag) == nil {
				t.Errorf("%s has no flag --%s", command, flag)
			}
		}
	}
}
