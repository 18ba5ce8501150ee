package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/segmentio/kafka-go"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
	"github.com/testcontainers/testcontainers-go/wait"

	"packship/upstream/upstreamtest"
)

const (
	imageVariable = "PACKSHIP_TEST_KAFKA_IMAGE"
	defaultImage  = "apache/kafka:4.1.2"
	brokerPort    = "9092/tcp"
)

// TestContainer runs against one real broker, in a container of its own, what an
// embedded broker cannot show: that the connector gets on with Kafka itself, and
// what it does when its broker goes away in the middle of its work.
func TestContainer(t *testing.T) {
	b := startBroker(t)
	t.Setenv("PACKSHIP_TEST_BROKERS", b.addr)
	t.Run("end to end", TestEndToEnd)
	t.Run("restart and replay", TestRestartAndReplay)
	// What a fault does must not keep the broker from being there for the next.
	t.Run("broker stopped", func(t *testing.T) { underLoad(t, func() outage { return b.restart(t, 20*time.Second) }) })
	t.Run("broker killed", func(t *testing.T) { underLoad(t, func() outage { return b.restart(t, 0) }) })
	t.Run("broker paused", func(t *testing.T) { underLoad(t, func() outage { return b.pause(t, 8*time.Second) }) })
}

// outage is the time in which no broker answered.
type outage struct{ begin, end time.Time }

// underLoad has a fault strike while a connector is busy. Afterwards every order
// has one result, whether it was packed before or after, and the API was called
// once for each.
func underLoad(t *testing.T, fault func() outage) {
	t.Helper()
	w := newWorld(t, upstreamtest.Options{Latency: upstreamtest.Latency{Fixed: 300 * time.Millisecond}}, func(s *Settings) {
		s.RatePerSecond = 20
	})
	const before, after = 120, 20
	w.produce(orders(1, before)...)
	r := w.start()
	w.calls(before / 4)
	out := fault()
	during := w.withoutLedger(out)
	if w.sim.Stats().Calls == before {
		t.Fatalf("all %d calls were made before the broker was back; this run shows nothing", before)
	}
	// A broker that is back may lose its partitions once more, when the
	// controller finds out that it was away. The connector has to bear it; the
	// test asks Kafka only once the connector is through with that.
	w.calls(before)
	w.reconnect()
	w.produce(orders(before+1, after)...)

	const n = before + after
	w.everyOrder(n)
	w.committed()
	r.eventually("ready again", func() bool { ok, _ := r.c.Ready(); return ok })
	if stats := w.calledOnce(n); stats.Applied != n {
		t.Errorf("%d applied, want %d", stats.Applied, n)
	}
	if ids, failed := w.identities(), w.read(w.settings.TopicFailed); len(ids) != n || len(failed) != 0 {
		t.Errorf("%d results, %d of them failed; want %d, 0", len(ids), len(failed), n)
	}
	t.Logf("no broker for %s: %d calls in that time, %d results published %d times",
		out.end.Sub(out.begin).Round(time.Millisecond), during, n, len(w.read(w.settings.TopicShipped)))
}

// withoutLedger checks the calls that were made during an outage, and counts
// them. An intent that was written before may still become a call, as long as it
// is young; the second on top is for a busy machine. There must be no other,
// because nobody could know of it.
func (w *world) withoutLedger(out outage) int {
	w.t.Helper()
	during, late, limit := 0, 0, w.settings.StartBy()+time.Second
	for _, c := range w.sim.Journal().Calls() {
		if c.Arrived.After(out.begin) && c.Arrived.Before(out.end) {
			during++
			if c.Arrived.Sub(out.begin) > limit {
				late++
			}
		}
	}
	if late != 0 {
		w.t.Errorf("%d calls more than %s after the ledger had gone, want none", late, limit)
	}
	return during
}

// reconnect gives the test connections that have not seen the fault, and waits
// until the broker serves everything that is asked of it.
func (w *world) reconnect() {
	w.t.Helper()
	w.kafka.Close()
	w.kafka = NewKafka(&w.settings, nil, w.settings.Topics()...)
	w.t.Cleanup(w.kafka.Close)
	eventually(w.t, "all topics and the group's offsets served", func() bool {
		for _, topic := range w.settings.Topics() {
			if _, err := w.kafka.bounds(w.t.Context(), topic); err != nil {
				return false
			}
		}
		_, err := w.kafka.Progress(w.t.Context())
		return err == nil
	})
}

// broker is Kafka in a container. Its address is known before it starts and
// stays the same when it starts again.
type broker struct {
	addr      string
	container testcontainers.Container
	engine    *testcontainers.DockerClient
}

// startBroker starts the broker, or skips the test where that cannot be done.
func startBroker(t *testing.T) *broker {
	t.Helper()
	switch {
	case testing.Short():
		t.Skip("starting Kafka in a container takes too long for -short")
	case os.Getenv("PACKSHIP_TEST_BROKERS") != "":
		t.Skip("PACKSHIP_TEST_BROKERS names brokers already; without it, the test starts one in a container")
	}
	decideReaper(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	engine, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		t.Skipf("no container engine answers; start one, or set DOCKER_HOST (%s)", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	t.Cleanup(func() { _ = engine.Close() })
	if host := engine.DaemonHost(); strings.HasPrefix(host, "tcp:") || strings.HasPrefix(host, "ssh:") {
		t.Skipf("the container engine at %s may be another machine, whose loopback addresses cannot be reached from here", host)
	}
	image := os.Getenv(imageVariable)
	if image == "" {
		image = defaultImage
		if _, err := engine.ImageInspect(ctx, image); err != nil {
			t.Skipf("the container engine does not have %s, and the test pulls it only when asked to by %s=%[1]s", image, imageVariable)
		}
	}

	port := freePort(t)
	b := &broker{addr: "127.0.0.1:" + strconv.Itoa(port), engine: engine}
	begin := time.Now()
	b.container, err = testcontainers.Run(t.Context(), image,
		testcontainers.WithEnv(brokerEnvironment(b.addr)),
		testcontainers.WithLabels(map[string]string{"packship.test.session": testcontainers.SessionID()}),
		testcontainers.WithExposedPorts(brokerPort),
		testcontainers.WithHostConfigModifier(func(c *container.HostConfig) {
			c.PortBindings = network.PortMap{
				network.MustParsePort(brokerPort): {{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: strconv.Itoa(port)}},
			}
		}),
		testcontainers.WithWaitStrategyAndDeadline(90*time.Second, wait.ForNop(b.serves)),
		testcontainers.CustomizeRequestOption(func(r *testcontainers.GenericContainerRequest) error {
			r.Logger = log.TestLogger(t)
			return nil
		}),
	)
	testcontainers.CleanupContainer(t, b.container, testcontainers.StopTimeout(0))
	t.Cleanup(func() {
		if t.Failed() && b.container != nil {
			t.Logf("the end of the broker's log:\n%s", b.log())
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s at %s serves after %s", image, b.addr, time.Since(begin).Round(time.Millisecond))
	return b
}

// decideReaper turns off the reaper of testcontainers, a container that removes
// those of a test that was killed, unless the engine can have it: without its
// image no container would start at all. It has to come before any other use of
// testcontainers, which asks for this variable once.
func decideReaper(t *testing.T) {
	t.Helper()
	const disabled = "TESTCONTAINERS_RYUK_DISABLED"
	if os.Getenv(disabled) != "" {
		return
	}
	available := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		engine, err := client.New(client.FromEnv)
		if err != nil {
			return err
		}
		defer engine.Close()                       //nolint:errcheck // nothing was written that could be lost
		image := testcontainers.ReaperDefaultImage //nolint:staticcheck // there is no other way to learn the name
		if _, err := engine.ImageInspect(ctx, image); err == nil || os.Getenv(imageVariable) == "" {
			return err
		}
		pull, err := engine.ImagePull(ctx, image, client.ImagePullOptions{})
		if err != nil {
			return err
		}
		return pull.Wait(ctx)
	}
	if err := available(); err != nil {
		t.Setenv(disabled, "true")
	}
}

// freePort returns a port for the broker. It is below those that the system
// gives to clients: otherwise one that dials in vain while the broker is away is
// given the broker's own port now and then, and holds it against its return.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20_000 + rand.IntN(10_000)
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return port
	}
	t.Fatal("no port is free between 20000 and 30000")
	return 0
}

// brokerEnvironment configures one broker that is its own controller. It is
// complete, because any of these variables replaces all defaults of the image.
// Clients have a listener of their own, because their address for the broker is
// not one that the broker can reach itself at.
func brokerEnvironment(addr string) map[string]string {
	return map[string]string{
		"CLUSTER_ID":                             "5L6g3nShT-eMCtK--X86sw",
		"KAFKA_NODE_ID":                          "1",
		"KAFKA_PROCESS_ROLES":                    "broker,controller",
		"KAFKA_CONTROLLER_QUORUM_VOTERS":         "1@localhost:9093",
		"KAFKA_CONTROLLER_LISTENER_NAMES":        "CONTROLLER",
		"KAFKA_INTER_BROKER_LISTENER_NAME":       "BROKER",
		"KAFKA_LISTENER_SECURITY_PROTOCOL_MAP":   "CLIENT:PLAINTEXT,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"KAFKA_LISTENERS":                        "CLIENT://:9092,BROKER://:9094,CONTROLLER://:9093",
		"KAFKA_ADVERTISED_LISTENERS":             "CLIENT://" + addr + ",BROKER://localhost:9094",
		"KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
		"KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS":     "3",
		"KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
		"KAFKA_AUTO_CREATE_TOPICS_ENABLE":        "false",
		// A broker that was killed cannot come back before this has passed.
		"KAFKA_BROKER_SESSION_TIMEOUT_MS":    "3000",
		"KAFKA_BROKER_HEARTBEAT_INTERVAL_MS": "500",
		"KAFKA_HEAP_OPTS":                    "-Xms128m -Xmx512m",
	}
}

// serves waits until the broker answers. Neither a line in its log nor an open
// port would tell: after a restart the line is still there from the first start,
// and the port is opened by the engine.
func (b *broker) serves(ctx context.Context, target wait.StrategyTarget) error {
	for {
		state, err := target.State(ctx)
		if err == nil && !state.Running {
			return fmt.Errorf("kafka exited with status %d", state.ExitCode)
		}
		if err == nil {
			err = b.answer(ctx)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kafka at %s: %w", b.addr, errors.Join(err, ctx.Err()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// answer asks the broker whether it belongs to a cluster.
func (b *broker) answer(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	k := NewKafka(&Settings{KafkaBrokers: List{b.addr}}, nil)
	defer k.Close()
	meta, err := k.Client.Metadata(limit, &kafka.MetadataRequest{Topics: []string{}})
	if err == nil && len(meta.Brokers) == 0 {
		err = kafka.BrokerNotAvailable
	}
	return err
}

// log returns the end of what the broker has logged.
func (b *broker) log() string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	logs, err := b.container.Logs(ctx)
	if err != nil {
		return err.Error()
	}
	defer logs.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(logs)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-8<<10):])
}

// restart stops the broker, by a kill if there is no grace, and starts it again.
func (b *broker) restart(t *testing.T, grace time.Duration) outage {
	t.Helper()
	// It is started even if the stop failed or the test is over: the next test
	// needs it.
	ctx := context.WithoutCancel(t.Context())
	stopped := b.container.Stop(ctx, &grace)
	out := outage{begin: time.Now()}
	started := b.container.Start(ctx)
	out.end = time.Now()
	if err := errors.Join(stopped, started); err != nil {
		t.Fatal(err)
	}
	return out
}

// pause freezes the broker: its connections stay open and nothing answers.
func (b *broker) pause(t *testing.T, length time.Duration) outage {
	t.Helper()
	id := b.container.GetContainerID()
	if _, err := b.engine.ContainerPause(t.Context(), id, client.ContainerPauseOptions{}); err != nil {
		t.Fatal(err)
	}
	out := outage{begin: time.Now()}
	<-time.After(length) // the fault itself, not a wait for its effects
	out.end = time.Now()
	if _, err := b.engine.ContainerUnpause(t.Context(), id, client.ContainerUnpauseOptions{}); err != nil {
		t.Fatal(err)
	}
	return out
}
