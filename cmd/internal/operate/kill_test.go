package operate

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"packship/upstream/upstreamtest"
)

// command returns a command of the real binary, with this world's settings.
func (w *world) command(binary string, args ...string) *exec.Cmd {
	s := &w.settings
	cmd := exec.CommandContext(w.t.Context(), binary, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	for name, value := range map[string]string{
		"KAFKA_BROKERS": strings.Join(s.KafkaBrokers, ","), "KAFKA_GROUP_ID": s.KafkaGroupID,
		"TOPIC_PACKED": s.TopicPacked, "TOPIC_SHIPPED": s.TopicShipped, "TOPIC_FAILED": s.TopicFailed, "TOPIC_DLQ": s.TopicDLQ, "TOPIC_LEDGER": s.TopicLedger,
		"LEDGER_PARTITIONS": fmt.Sprint(s.LedgerPartitions), "UPSTREAM_URL": s.UpstreamURL, "UPSTREAM_TOKEN": testToken,
	} {
		cmd.Env = append(cmd.Env, "PACKSHIP_"+name+"="+value)
	}
	return cmd
}

// TestRedriveKilled kills the real command half-way through a redrive, again and
// again, until one gets to the end. No order is sent twice, nor called for twice.
func TestRedriveKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the command and kills it")
	}
	binary := filepath.Join(t.TempDir(), "packship")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "packship/cmd/packship").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	w := newWorld(t)
	const n, step = 40, 9
	for tid := 1; tid <= n; tid++ {
		w.fault(upstreamtest.AnyRow(35), tid, 1)
		w.produce(packedEvent(tid, ""))
	}
	w.settled()
	before := w.count()
	if before.failed != n {
		t.Fatalf("%+v, want %d failures", before, n)
	}

	packed := func() int { return w.count().since(before).packed }
	kills := 0
	for {
		redrive := w.command(binary, "redrive", "--execute", "--rate", "40")
		if err := redrive.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- redrive.Wait() }()
		begin, over := packed(), false
		eventually(t, "some more events sent, or all", func() bool {
			select {
			case err := <-ended:
				if over = true; err != nil {
					t.Errorf("redrive: %v", err)
				}
			default:
			}
			return over || packed() >= begin+step
		})
		if over {
			break
		}
		if err := redrive.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		if <-ended == nil {
			break // it was faster
		}
		kills++
		if kills%2 == 0 {
			w.settled() // every other time a connector has seen what was sent
		}
	}
	w.settled()
	if got := packed(); got != n || kills < 2 {
		t.Errorf("%d events were sent for %d orders, with %d kills", got, n, kills)
	}
	for tid := 1; tid <= n; tid++ {
		if got := w.callsOf(tid); got != 2 {
			t.Errorf("order %d was called for %d times, want 2", tid, got)
		}
	}
	if shipped := w.results(w.settings.TopicShipped); len(shipped) != n {
		t.Errorf("%d orders are shipped, want %d", len(shipped), n)
	}
	w.verify()
	t.Logf("redrive: %d kills, %d orders, %d events sent, %d calls", kills, n, packed(), w.count().since(before).calls)
}
