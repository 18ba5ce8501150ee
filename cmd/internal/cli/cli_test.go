package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"packship/cmd/internal/app"
	"packship/schema"
)

// packship runs a command in an environment that holds the given settings only.
func packship(t *testing.T, env map[string]string, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, "PACKSHIP_") {
			t.Setenv(name, "")
		}
	}
	for name, value := range env {
		t.Setenv("PACKSHIP_"+name, value)
	}
	var out, errs bytes.Buffer
	code = Main(t.Context(), args, Streams{In: strings.NewReader(stdin), Out: &out, Err: &errs})
	return code, out.String(), errs.String()
}

func file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const goodOrder = `{"shop_id":"s1","tid":"123456789","out_sid":"SF1234567890123","company_code":"SF"}` + "\n"

func TestExitCodes(t *testing.T) {
	orders := file(t, "o.jsonl", goodOrder)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // nobody connects
	taken := listener.Addr().String()
	tests := map[string]struct {
		env            map[string]string
		args           []string
		code           int
		stdout, stderr string // regular expressions
	}{
		"help":              {nil, []string{"--help"}, 0, `packship reads order-packed events`, `^$`},
		"no command":        {nil, nil, 2, `^$`, `^packship: packship needs a command; see packship --help\n$`},
		"unknown command":   {nil, []string{"fly"}, 2, `^$`, `^packship: unknown command "fly" for "packship"; see packship --help\n$`},
		"unknown flag":      {nil, []string{"topics", "--x"}, 2, `^$`, `^packship: unknown flag: --x; see packship topics --help\n$`},
		"too many":          {nil, []string{"version", "x"}, 2, `^$`, `^packship: unknown command "x" for "packship version"; see packship version --help\n$`},
		"too few":           {nil, []string{"trace"}, 2, `^$`, `^packship: accepts 1 arg\(s\), received 0; see packship trace --help\n$`},
		"bad flag":          {nil, []string{"topics", "create", "--partitions", "x"}, 2, `^$`, `^packship: invalid argument "x" for "--partitions" flag: .*; see packship topics create --help\n$`},
		"help of a command": {nil, []string{"help", "dlq", "show"}, 0, `packship dlq show ID`, `^$`},
		"help unknown":      {nil, []string{"help", "fly"}, 2, `^$`, `^packship: there is no command "fly"; see packship --help\n$`},
		"help half known":   {nil, []string{"help", "dlq", "fly"}, 2, `^$`, `^packship: there is no command "dlq fly"; see packship --help\n$`},
		"no shell":          {nil, []string{"completion"}, 2, `^$`, `^packship: packship completion needs a command; see packship completion --help\n$`},
		"unknown shell":     {nil, []string{"completion", "fly"}, 2, `^$`, `^packship: unknown command "fly" for "packship completion"; see packship completion --help\n$`},
		"version":           {nil, []string{"version"}, 0, `^packship \S+ \S+ go1\S+ \w+/\w+\n$`, `^$`},
		"version as a flag": {nil, []string{"--version"}, 0, `^packship \S+ \S+ go1\S+ \w+/\w+\n$`, `^$`},
		"version as JSON":   {nil, []string{"version", "--json"}, 0, `"version": "`, `^$`},
		"schema names":      {nil, []string{"schema"}, 0, `^order.packed.v1\norder.shipped.v1\norder.shipment-failed.v1\n$`, `^$`},
		"schema":            {nil, []string{"schema", "order.packed.v1"}, 0, `"\$schema"`, `^$`},
		"schema by topic":   {nil, []string{"schema", "erp.order.packed.v1"}, 0, `"\$schema"`, `^$`},
		"schema unknown":    {nil, []string{"schema", "x"}, 2, `^$`, `no event is called "x"; there are order.packed.v1`},
		"completion":        {nil, []string{"completion", "bash"}, 0, `bash completion`, `^$`},
		"config":            {map[string]string{"KAFKA_GROUP_ID": "g1", "UPSTREAM_TOKEN": "hush"}, []string{"config"}, 0, `(?s)NAME +DEFAULT +VALUE +MEANING\nPACKSHIP_KAFKA_BROKERS .*PACKSHIP_KAFKA_GROUP_ID +packship +g1 .*PACKSHIP_UPSTREAM_TOKEN +- +\[redacted\]`, `^$`},
		"config unset":      {nil, []string{"config"}, 0, `(?s)PACKSHIP_KAFKA_BROKERS +- +- .*PACKSHIP_KAFKA_GROUP_ID +packship +packship .*PACKSHIP_RATE_PER_SECOND +10 +10 `, `^$`},
		"config bad value":  {map[string]string{"RATE_PER_SECOND": "x"}, []string{"config"}, 0, `PACKSHIP_RATE_PER_SECOND +10 +x `, `^$`},
		"config as JSON":    {nil, []string{"config", "--json"}, 0, `^\[\n  \{\n    "name": "PACKSHIP_KAFKA_BROKERS"`, `^$`},
		"check fine":        {map[string]string{"KAFKA_BROKERS": "k:1", "UPSTREAM_TOKEN": "t"}, []string{"config", "check"}, 0, `^the settings are fine\n$`, `^$`},
		"check all": {
			map[string]string{"RATE_PER_SECOND": "x", "KAFKA_BROKER": "k"},
			[]string{"config", "check"},
			2, `^$`,
			`^PACKSHIP_RATE_PER_SECOND is not a number\nPACKSHIP_KAFKA_BROKERS is not set.*\nPACKSHIP_UPSTREAM_TOKEN is not set.*\nPACKSHIP_KAFKA_BROKER is not a setting; did you mean PACKSHIP_KAFKA_BROKERS\?\n$`,
		},
		"check as JSON":  {nil, []string{"config", "check", "--json"}, 2, `"name": "PACKSHIP_KAFKA_BROKERS"`, `^$`},
		"check spread":   {map[string]string{"KAFKA_BROKERS": "k:1", "UPSTREAM_TOKEN": "t", "ASSIGNMENT": "spread"}, []string{"config", "check"}, 0, `^the settings are fine`, `^$`},
		"check both":     {map[string]string{"KAFKA_BROKERS": "k:1", "UPSTREAM_TOKEN": "t", "ASSIGNMENT": "both"}, []string{"config", "check"}, 2, `^$`, `^PACKSHIP_ASSIGNMENT is "both"`},
		"run unset":      {nil, []string{"run"}, 2, `^$`, `^packship: settings: PACKSHIP_KAFKA_BROKERS is not set.*; PACKSHIP_UPSTREAM_TOKEN is not set.*\n$`},
		"topics unset":   {nil, []string{"topics"}, 2, `^$`, `^packship: settings: PACKSHIP_KAFKA_BROKERS is not set; name at least one broker as host:port\n$`},
		"partitions":     {nil, []string{"topics", "create", "--partitions", "0"}, 2, `^$`, `--partitions must be at least 1`},
		"pack dry":       {nil, []string{"pack", "--dry-run", orders}, 0, `^1 lines: 1 valid, 0 refused; none produced \(dry run\)\n$`, `^$`},
		"pack nothing":   {nil, []string{"pack"}, 2, `^$`, `^packship: requires at least 1 arg.*; see packship pack --help\n$`},
		"pack format":    {nil, []string{"pack", "--format", "xml", orders}, 2, `^$`, `--format is "xml" but must be jsonl or csv`},
		"pack no file":   {nil, []string{"pack", "--dry-run", "/nonexistent.csv"}, 1, `^$`, `^packship: pack: open /nonexistent.csv: no such file`},
		"pack unset":     {nil, []string{"pack", orders}, 2, `^$`, `PACKSHIP_KAFKA_BROKERS is not set`},
		"fault":          {nil, []string{"simulate", "--fault", "{kind: nonsense}"}, 2, `^$`, `^packship: --fault`},
		"fault field":    {nil, []string{"simulate", "--fault", "{kind: hang, when: now}"}, 2, `^$`, `^packship: --fault .*yaml: unmarshal errors: line 1: field when not found\n$`},
		"rate":           {nil, []string{"simulate", "--rate", "-5"}, 2, `^$`, `^packship: --rate -5: give the calls in any second, or -1 for no limit\n$`},
		"address":        {nil, []string{"simulate", "--addr", "nowhere"}, 2, `^$`, `^packship: --addr "nowhere": give host:port, such as 127.0.0.1:8090\n$`},
		"taken address":  {nil, []string{"simulate", "--addr", taken}, 1, `^$`, `^packship: simulate: .*address already in use; give another --addr\n$`},
		"scenario":       {nil, []string{"simulate", "--scenario", "/nonexistent"}, 2, `^$`, `^packship: --scenario: open /nonexistent`},
		"scenario field": {nil, []string{"simulate", "--scenario", file(t, "s.yaml", "foo: 1\nbar: 2\n")}, 2, `^$`, `^packship: --scenario .*: line 1: field foo not found; line 2: field bar not found\n$`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := packship(t, tt.env, "", tt.args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !regexp.MustCompile(tt.stdout).MatchString(stdout) {
				t.Errorf("stdout %q does not match %q", stdout, tt.stdout)
			}
			if !regexp.MustCompile(tt.stderr).MatchString(stderr) {
				t.Errorf("stderr %q does not match %q", stderr, tt.stderr)
			}
			if strings.Contains(stdout+stderr, "hush") {
				t.Error("a secret is shown")
			}
		})
	}
}

func TestPackReports(t *testing.T) {
	table := file(t, "orders.csv", strings.Join([]string{
		"shop_id,tid,out_sid,company_code,is_split,sub_tid",
		"s1,123456789,SF1234567890123,SF,,",
		"s1,3.94189E+18,SF1234567890123,SF,,",
		"s1,987654321,,OTHER,1,",
		"s1,123456789,SF1234567890123,SF,,",
	}, "\n"))
	code, stdout, stderr := packship(t, nil, "", "pack", "--dry-run", table)
	if code != 1 || stderr != "packship: 2 of 4 lines were refused; correct them and pack those lines again\n" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	for _, want := range []string{
		`orders\.csv:3 tid 3\.94189E\+18: refused: V03 .*format the column as text`,
		`orders\.csv:4 tid 987654321: refused: V04 `,
		`orders\.csv:4 tid 987654321: refused: V09 |orders\.csv:4 tid 987654321: refused: V08 `,
		`orders\.csv:4 tid 987654321: refused: V13 `,
		`orders\.csv:5 tid 123456789: warning: the same shipment as line 2 `,
		`\n4 lines: 2 valid, 2 refused; none produced \(dry run\)\n$`,
	} {
		if !regexp.MustCompile(want).MatchString(stdout) {
			t.Errorf("no match of %q in\n%s", want, stdout)
		}
	}

	code, stdout, stderr = packship(t, nil, "", "pack", "--dry-run", "--json", table)
	var got struct {
		Lines, Valid, Refused, Produced int
		Findings                        []struct {
			Line       int
			Refused    bool
			Violations []schema.Violation
		}
	}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	if code != 1 || stderr != "" || got.Lines != 4 || got.Valid != 2 || got.Refused != 2 || got.Produced != 0 || len(got.Findings) != 3 || got.Findings[0].Violations[0].Rule != "V03" {
		t.Errorf("exit code %d, stderr %q, report %+v", code, stderr, got)
	}
}

// TestPackBesideProgress checks that a finding does not go on in the line of the
// progress, and that a report which cannot be written is no success.
func TestPackBesideProgress(t *testing.T) {
	var screen bytes.Buffer
	p := packer{std: Streams{Out: &screen, Err: &screen}, bar: &progress{w: &screen, verb: "read", total: 2}}
	p.bar.add(1)
	if err := p.tell(&finding{File: "f", Line: 7, Warnings: []string{"odd"}}); err != nil {
		t.Fatal(err)
	}
	p.bar.add(1)
	p.bar.clear()
	p.bar.clear() // nothing is there any more
	const away = "\r\x1b[K"
	if got, want := screen.String(), away+"read 1 of 2"+away+"f:7: warning: odd\n"+away+"read 2 of 2"+away; got != want {
		t.Errorf("got %q, want %q", got, want)
	}

	var stderr bytes.Buffer
	code := Main(t.Context(), []string{"pack", "--dry-run", file(t, "a.csv", "shop_id,tid,out_sid,company_code\ns1,1,SF1234567890123,SF\n")}, Streams{Out: closedPipe(t), Err: &stderr})
	if code != 1 || !strings.Contains(stderr.String(), "closed pipe") {
		t.Errorf("the report cannot be written: exit code %d, %q", code, stderr.String())
	}
}

// closedPipe takes nothing.
func closedPipe(t *testing.T) io.Writer {
	t.Helper()
	r, w := io.Pipe()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return w
}

// TestPackBrokenFile has a file turn out not to be readable after others are
// produced: what was produced is said, and the report is whole.
func TestPackBrokenFile(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	env := map[string]string{"KAFKA_BROKERS": strings.Join(cluster.ListenAddrs(), ",")}
	if code, _, stderr := packship(t, env, "", "topics", "create", "--partitions", "1", "--replication", "1"); code != 0 {
		t.Fatalf("create: %s", stderr)
	}
	good := file(t, "good.jsonl", goodOrder)
	bad := file(t, "bad.csv", "shop_id,tid\n")
	code, stdout, stderr := packship(t, env, "", "pack", "--json", good, bad)
	if code != 1 || !regexp.MustCompile(`^packship: pack: 1 events were produced before this, and to pack them again does no harm: \S+bad.csv: the header row lacks out_sid, company_code`).MatchString(stderr) {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	var report struct{ Lines, Valid, Produced int }
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || report.Lines != 1 || report.Valid != 1 || report.Produced != 1 {
		t.Errorf("report %+v, %v in %s", report, err, stdout)
	}
	// What is not there at all is seen before anything is produced.
	before := cluster.PartitionInfo(app.Defaults().TopicPacked, 0).HighWatermark
	for what, path := range map[string]string{"no such file": filepath.Join(t.TempDir(), "none.csv"), "is a directory": t.TempDir()} {
		code, _, stderr = packship(t, env, "", "pack", good, path)
		if code != 1 || !strings.Contains(stderr, what) {
			t.Errorf("exit code %d, stderr %q, want %s", code, stderr, what)
		}
	}
	if after := cluster.PartitionInfo(app.Defaults().TopicPacked, 0).HighWatermark; after != before {
		t.Errorf("%d events were produced although a file is missing", after-before)
	}
}

// generated is a table that is made while it is read.
type generated struct {
	rows, made int
	rest       []byte
}

func (g *generated) Read(p []byte) (int, error) {
	if len(g.rest) == 0 {
		switch {
		case g.made > g.rows:
			return 0, io.EOF
		case g.made == 0:
			g.rest = []byte("shop_id,tid,out_sid,company_code\n")
		default:
			g.rest = fmt.Appendf(nil, "s1,%d,SF%013d,顺丰%s\n", 1_000_000_000+g.made, g.made, strings.Repeat("快", g.made%2*30))
		}
		g.made++
	}
	n := copy(p, g.rest)
	g.rest = g.rest[n:]
	return n, nil
}

// TestPackBigFile reads a table of any length in bounded memory, with its report
// coming line by line: every second row is refused.
func TestPackBigFile(t *testing.T) {
	const rows = 100_000
	if testing.Short() {
		t.Skip("reads a hundred thousand rows")
	}
	reported, most, base := 0, uint64(0), uint64(0)
	out := writer(func(p []byte) {
		reported += bytes.Count(p, []byte("\n"))
		if reported%5000 == 0 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if base == 0 {
				base = m.HeapAlloc
			}
			most = max(most, m.HeapAlloc)
		}
	})
	var errs bytes.Buffer
	code := Main(t.Context(), []string{"pack", "--dry-run", "--format", "csv", "-"}, Streams{In: &generated{rows: rows}, Out: out, Err: &errs})
	if code != 1 || !strings.Contains(errs.String(), fmt.Sprintf("%d of %d lines were refused", rows/2, rows)) || reported != rows/2+1 {
		t.Errorf("exit code %d, %d lines reported, stderr %q", code, reported, errs.String())
	}
	// What is left of each row is one entry in the memory for repetitions, of
	// which there is an end, too.
	if grown := int64(most) - int64(base); grown > 48<<20 {
		t.Errorf("%d bytes were held for %d rows", grown, rows)
	}
	t.Logf("%d rows: %.1f MiB more in the middle than at the start", rows, float64(most-base)/(1<<20))
}

// writer is what is done with each write.
type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

// TestTopicsAndPack creates the topics on the embedded broker, packs into them,
// and reads back.
func TestTopicsAndPack(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	env := map[string]string{"KAFKA_BROKERS": strings.Join(cluster.ListenAddrs(), ",")}

	code, stdout, stderr := packship(t, env, "", "topics")
	if code != 1 || strings.Count(stdout, "missing") != 5 || strings.Count(stderr, "does not exist; create it with `packship topics create`") != 5 {
		t.Errorf("topics before: exit code %d\n%s%s", code, stdout, stderr)
	}
	code, stdout, stderr = packship(t, env, "", "topics", "create", "--partitions", "3", "--replication", "1")
	if code != 0 || strings.Count(stdout, "created ") != 5 {
		t.Errorf("create: exit code %d\n%s%s", code, stdout, stderr)
	}
	code, stdout, stderr = packship(t, env, "", "topics", "--json")
	var topics []app.Topic
	if err := json.Unmarshal([]byte(stdout), &topics); err != nil || code != 0 {
		t.Fatalf("topics after: exit code %d, %v\n%s%s", code, err, stdout, stderr)
	}
	if topics[0].Partitions != 3 || topics[4].Partitions != 8 {
		t.Errorf("partitions %+v", topics)
	}
	if code, stdout, _ = packship(t, env, "", "topics", "create"); code != 0 || stdout != "all topics are there\n" {
		t.Errorf("create again: exit code %d, %q", code, stdout)
	}

	var input strings.Builder
	for i := range 40 {
		fmt.Fprintf(&input, `{"shop_id":"s1","tid":"%d","out_sid":"SF%013d","company_code":"SF","event_id":"e%d"}`+"\n", 1000+i%10, i, i)
	}
	code, stdout, stderr = packship(t, env, input.String(), "pack", "--json", "-")
	if code != 0 || !strings.Contains(stdout, `"produced": 40`) {
		t.Fatalf("pack: exit code %d\n%s%s", code, stdout, stderr)
	}
	settings := app.Defaults()
	settings.KafkaBrokers = cluster.ListenAddrs()
	k := app.NewKafka(&settings, nil)
	defer k.Close()
	last, partition, n := map[string]int{}, map[string]int{}, 0
	err = k.Scan(t.Context(), settings.TopicPacked, func(r *schema.Record) error {
		n++
		packed, err := schema.DecodePacked(r)
		if err != nil || string(r.Key) != packed.TID {
			t.Errorf("record with key %q: %v", r.Key, err)
			return nil
		}
		if p, ok := partition[packed.TID]; ok && p != r.Partition {
			t.Errorf("order %s is in partitions %d and %d", packed.TID, p, r.Partition)
		}
		partition[packed.TID] = r.Partition
		var i int
		if _, err := fmt.Sscanf(packed.EventID, "e%d", &i); err != nil || i < last[packed.TID] {
			t.Errorf("order %s: event %s after e%d", packed.TID, packed.EventID, last[packed.TID])
		}
		last[packed.TID] = i
		return nil
	})
	if err != nil || n != 40 {
		t.Errorf("read back %d records, %v; want 40", n, err)
	}
}

// TestCommandsGiveUp checks the exit code and the one sentence when no broker is
// there. A wrong password is not waited for.
func TestCommandsGiveUp(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("PLAIN", "u", "right"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	code, _, stderr := packship(t, map[string]string{
		"KAFKA_BROKERS": strings.Join(cluster.ListenAddrs(), ","), "KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD": "wrong",
	}, "", "topics")
	if code != 1 || !regexp.MustCompile(`^packship: kafka broker \S+ refused the login of user "u" by PLAIN; .*\n$`).MatchString(stderr) {
		t.Errorf("wrong password: exit code %d, stderr %q", code, stderr)
	}
	if testing.Short() {
		t.Skip("takes the ten seconds that a command waits")
	}
	code, _, stderr = packship(t, map[string]string{"KAFKA_BROKERS": "127.0.0.1:1"}, "", "topics")
	if code != 1 || !regexp.MustCompile(`^packship: kafka broker 127.0.0.1:1 refuses connections; check PACKSHIP_KAFKA_BROKERS .*\n$`).MatchString(stderr) {
		t.Errorf("no broker: exit code %d, stderr %q", code, stderr)
	}
}

// TestSimulate serves, answers a call, and counts it.
func TestSimulate(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	said := make(lineWriter, 1)
	var out bytes.Buffer
	done := make(chan int, 1)
	go func() {
		done <- Main(ctx, []string{"simulate", "--addr", "127.0.0.1:0", "--latency", "0s", "--json"}, Streams{Out: &out, Err: said})
	}()
	url := regexp.MustCompile(`http://\S+`).FindString(<-said)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(
		"--b\r\nContent-Disposition: form-data; name=\"tid\"\r\n\r\n1\r\n--b--\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "multipart/form-data; boundary=b")
	req.Header.Set("Authorization", "Bearer x")
	client := http.Client{Timeout: 10 * time.Second}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	client.CloseIdleConnections()
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(out.String(), `"calls": 1`) {
		t.Errorf("got %s", out.String())
	}
}

// lineWriter passes on what is written to it.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}
