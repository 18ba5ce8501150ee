package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"

	"packship/cmd/internal/app"
	"packship/consumer"
	"packship/producer"
	"packship/schema"
	"packship/upstream/upstreamtest"
)

// Options say how the demo is shown.
type Options struct {
	Out      io.Writer
	Terminal bool   // lines may be drawn over
	Colour   bool   // escape codes for colours may be written
	Keep     bool   // stay up afterwards, until the context ends
	Addr     string // of the status page; another port if it is taken
}

const (
	partitions = 4
	// rate is the real limit of the API.
	rate = 10
	// outage is how long the API is down.
	outage = 4 * time.Second
	// limit ends a demo that hangs.
	limit = 3 * time.Minute
)

// demo is one performance.
type demo struct {
	show     *show
	opts     Options
	script   *script
	cluster  *kfake.Cluster
	sim      *upstreamtest.Simulator
	settings app.Settings
	kafka    *app.Kafka // the spectator's own connection
	log      *warnings

	now      string     // what is going on
	finished func() int // events with an outcome, as far as the act goes
	whole    int        // of so many

	mu       sync.Mutex // guards replicas
	replicas []*replica // those that run
}

// Run performs the demo. The error says what does not add up, if anything.
func Run(ctx context.Context, o Options) error {
	d := &demo{
		opts: o, script: newScript(), log: &warnings{}, now: "starting", finished: func() int { return 0 },
		show: &show{w: o.Out, terminal: o.Terminal, colour: o.Colour, begin: time.Now()},
	}
	defer d.close()
	bounded, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("demo: not done after %s", limit))
	err := d.perform(bounded)
	if bounded.Err() != nil && err != nil {
		err = fmt.Errorf("demo: stopped before the end: %w", context.Cause(bounded))
	}
	cancel()
	if err != nil {
		d.show.clear()
		d.log.print(o.Out)
		return err
	}
	if o.Keep {
		d.show.tell("staying up; stop with Ctrl-C")
		<-ctx.Done()
	}
	return nil
}

// perform tells the story, act by act.
func (d *demo) perform(ctx context.Context) error {
	if err := d.open(ctx); err != nil {
		return err
	}
	if err := d.produce(ctx); err != nil {
		return err
	}
	orders, events := d.script.count()
	d.finished, d.whole = func() int { return d.published(ctx) }, events
	d.show.tell("%d records for %d orders lie in %s", len(d.script.samples), orders, d.settings.TopicPacked)

	first, err := d.start(ctx, d.opts.Addr)
	if err != nil {
		return err
	}
	d.show.tell("replica 1 runs; its status page is %s", first.url)
	d.act("calling, at most %d times a second; four calls will never be answered", rate)
	if err := d.until(ctx, func() bool { return d.sim.Stats().Calls >= 50 }); err != nil {
		return err
	}

	d.act("the API is down")
	d.show.tell("the API goes down for %s: the breaker opens, nothing fails, one order at a time probes", outage)
	d.sim.SetDown(upstreamtest.Refusing)
	if err := d.pause(ctx, outage); err != nil {
		return err
	}
	d.sim.SetDown(upstreamtest.Up)
	d.act("the API is back")
	d.show.tell("the API is back")
	if err := d.until(ctx, func() bool { return d.sim.Stats().Applied >= 60 }); err != nil {
		return err
	}

	second, err := d.start(ctx, "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.show.tell("replica 2 has joined: it reads the ledger and stands by, as %s says; replica 1 goes on", second.url)
	d.act("two replicas, one sends")
	if err := d.until(ctx, func() bool { return d.sim.Stats().Applied >= 75 }); err != nil {
		return err
	}
	d.show.tell("replica 1 is told to stop: it begins no call, finishes those under way, and leaves")
	if err := first.stop(); err != nil {
		return err
	}
	if err := d.until(ctx, func() bool { return second.c.Status().Role == consumer.RoleActive }); err != nil {
		return err
	}
	d.show.tell("replica 2 has taken over")
	d.act("replica 2 sends the rest")
	if err := d.committed(ctx); err != nil {
		return err
	}
	if err := second.stop(); err != nil {
		return err
	}
	before, err := d.take(ctx)
	if err != nil {
		return err
	}

	d.show.tell("everything is done; now the same %d records are replayed from the beginning", len(d.script.samples))
	if err := d.rewind(ctx); err != nil {
		return err
	}
	d.act("replaying")
	d.finished, d.whole = d.counted, len(d.script.samples)
	if _, err := d.start(ctx, d.opts.Addr); err != nil {
		return err
	}
	if err := d.committed(ctx); err != nil {
		return err
	}
	after, err := d.take(ctx)
	if err != nil {
		return err
	}
	return d.judge(before, after)
}

// open sets the stage: broker, API, topics.
func (d *demo) open(ctx context.Context) error {
	var err error
	if d.cluster, err = kfake.NewCluster(kfake.NumBrokers(1)); err != nil {
		return fmt.Errorf("demo: embedded broker: %w", err)
	}
	options := upstreamtest.Defaults()
	options.AutoCreate = true
	options.Accounts = []upstreamtest.Account{{Name: "demo", Token: demoToken}}
	options.Latency = upstreamtest.Latency{Median: 1200 * time.Millisecond, P99: 2500 * time.Millisecond}
	options.Faults = d.script.faults
	d.sim = upstreamtest.New(options)
	api, err := d.sim.Start("127.0.0.1:0") //nolint:contextcheck // it lives until Close
	if err != nil {
		return err
	}
	s := app.Defaults()
	s.KafkaBrokers = d.cluster.ListenAddrs()
	s.KafkaSessionTimeout = 6 * time.Second
	s.UpstreamURL, s.UpstreamToken = api+upstreamtest.SendPath, demoToken
	s.RatePerSecond = rate
	// A busy machine delays calls more than a network does.
	s.RateJitter = 100 * time.Millisecond
	// Short enough that the unanswered calls are followed up within the demo.
	s.UpstreamTimeout, s.UpstreamSettle = 5*time.Second, 2*time.Second
	s.BreakerOpenFor = time.Second
	s.ShutdownTimeout = 20 * time.Second
	d.settings = s
	d.kafka = app.NewKafka(&d.settings, nil, d.settings.Topics()...)
	if err := d.kafka.Connect(ctx); err != nil {
		return err
	}
	if _, err := d.kafka.CreateTopics(ctx, partitions, 1); err != nil {
		return err
	}
	d.show.tell("an embedded Kafka broker runs at %s, and a simulated shipping API at %s", s.KafkaBrokers, s.UpstreamURL)
	return nil
}

// close takes the stage down.
func (d *demo) close() {
	for _, r := range d.running() {
		_ = r.stop() // judged before, or the demo has failed already
	}
	if d.kafka != nil {
		d.kafka.Close()
	}
	if d.sim != nil {
		_ = d.sim.Close() // nobody calls any more
	}
	if d.cluster != nil {
		d.cluster.Close()
	}
}

// produce writes the sample records.
func (d *demo) produce(ctx context.Context) error {
	out, err := producer.New(producer.Config{
		Client: d.kafka.Client, PackedTopic: d.settings.TopicPacked,
		Source: "packship/demo", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		return err
	}
	for _, s := range d.script.samples {
		if err := out.Produce(ctx, d.settings.TopicPacked, []byte(s.key), s.value, []schema.Header{
			{Key: "content-type", Value: []byte("application/json")},
		}); err != nil {
			return err
		}
	}
	return nil
}

// replica is a connector that runs.
type replica struct {
	c    *app.Connector
	url  string
	stop func() error
}

// start starts a connector and waits until it is ready.
func (d *demo) start(ctx context.Context, addr string) (*replica, error) {
	s := d.settings
	s.HTTPAddr = addr
	r := &replica{}
	ended := make(chan error, 1)
	c, err := app.New(s, app.Options{
		Logger: slog.New(slog.NewTextHandler(d.log, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Listen: listen,
		Serving: func(a net.Addr) {
			r.url = "http://" + a.String() + "/"
		},
	})
	if err != nil {
		return nil, err
	}
	r.c = c
	// A replica is stopped by the demo and not by the signal, so that it stops
	// in an orderly way before the broker is gone.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() { ended <- c.Run(running) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		err := <-ended
		d.retire(r)
		return err
	})
	d.mu.Lock()
	d.replicas = append(d.replicas, r)
	d.mu.Unlock()
	err = d.until(ctx, func() bool {
		if ok, _ := c.Ready(); ok {
			return true
		}
		select {
		case err := <-ended:
			ended <- err
			return true
		default:
			return false
		}
	})
	if err != nil {
		return nil, err
	}
	if ok, why := c.Ready(); !ok {
		return nil, fmt.Errorf("demo: a replica did not start: %s", why)
	}
	return r, nil
}

// listen takes another port if the wanted one is taken.
func listen(ctx context.Context, network, addr string) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, network, addr)
	if err != nil {
		return config.Listen(ctx, network, "127.0.0.1:0")
	}
	return l, nil
}

func (d *demo) running() []*replica {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.replicas)
}

// retire takes a replica off the stage.
func (d *demo) retire(r *replica) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.replicas = slices.DeleteFunc(d.replicas, func(other *replica) bool { return other == r })
}

// act says what is going on from now on.
func (d *demo) act(format string, args ...any) {
	d.now = fmt.Sprintf(format, args...)
}

// tick is how often the state of things is looked at and shown.
const tick = 200 * time.Millisecond

// until shows the state of things until a condition holds.
func (d *demo) until(ctx context.Context, cond func() bool) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for !cond() {
		d.show.block(d.state())
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
	return nil
}

// pause shows the state of things for a while.
func (d *demo) pause(ctx context.Context, while time.Duration) error {
	end := time.Now().Add(while)
	return d.until(ctx, func() bool { return time.Now().After(end) })
}

// published counts the events with an outcome in the topics.
func (d *demo) published(ctx context.Context) int {
	p, err := d.take(ctx)
	if err != nil {
		return 0 // the next look may do better; the judge's look must
	}
	return p.finished()
}

// counted counts the records that the replicas that run have seen through.
func (d *demo) counted() int {
	n := 0
	for _, r := range d.running() {
		c := r.c.Status().Counts
		n += int(c.Shipped + c.Failed + c.DeadLettered)
	}
	return n
}

// committed waits until the group has committed every record.
func (d *demo) committed(ctx context.Context) error {
	var failed error
	err := d.until(ctx, func() bool {
		progress, err := d.kafka.Progress(ctx)
		if err != nil {
			failed = err
			return true
		}
		for _, p := range progress {
			if p.Lag() > 0 {
				return false
			}
		}
		return true
	})
	return errors.Join(err, failed)
}

// rewind moves the group to the beginning.
func (d *demo) rewind(ctx context.Context) error {
	offsets := map[int]int64{}
	for p := range partitions {
		offsets[p] = 0
	}
	return d.kafka.Rewind(ctx, offsets)
}

// state is what the block shows.
func (d *demo) state() []string {
	var roles []string
	breaker := "-"
	for _, r := range d.running() {
		st := r.c.Status()
		roles = append(roles, string(st.Role))
		if st.Role == consumer.RoleActive && len(st.Accounts) > 0 {
			breaker = st.Accounts[0].Breaker
		}
	}
	stats, done := d.sim.Stats(), d.finished()
	return []string{
		fmt.Sprintf("%s%d of %d have a result", d.show.bar(done, d.whole), done, d.whole),
		fmt.Sprintf("%d calls, %d in flight, at most %d in any second, breaker %s", stats.Calls, stats.InFlight, stats.MaxInAnySecond, breaker),
		fmt.Sprintf("replicas: %s", strings.Join(roles, ", ")),
		d.now,
	}
}

// warnings keeps the last lines of the connectors' logs, for a demo that fails.
type warnings struct {
	mu    sync.Mutex // guards lines
	lines []string
}

// Write takes a line.
func (w *warnings) Write(line []byte) (int, error) {
	const most = 20
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, string(line))
	if len(w.lines) > most {
		w.lines = w.lines[1:]
	}
	return len(line), nil
}

func (w *warnings) print(out io.Writer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, line := range w.lines {
		_, _ = fmt.Fprint(out, line)
	}
}
