package app

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"packship/consumer"
	"packship/producer"
	"packship/producer/ledger"
	"packship/upstream"
)

// Options is what a Connector is given besides its settings. The zero value is
// for production.
type Options struct {
	Logger *slog.Logger // nil: none
	// KafkaDial and UpstreamDial open connections; nil is the network.
	KafkaDial, UpstreamDial DialContext
	// Listen opens the listener of the HTTP server; nil is the network.
	Listen func(ctx context.Context, network, addr string) (net.Listener, error)
	// Serving is called with the address of the HTTP server once it listens.
	Serving func(addr net.Addr)
}

// Connector is one replica of packship.
type Connector struct {
	settings Settings
	opts     Options
	log      *slog.Logger
	registry *prometheus.Registry
	name     string // of this process, among the replicas
	started  time.Time
	signals  *telemetry
	api      *upstream.Upstream
	watchdog *watchdog
	crash    *crash // for tests of a build of their own

	mu      sync.Mutex         // guards the rest
	waiting string             // what keeps the connector from being ready; "" once all parts exist
	broken  error              // why the run has ended by itself
	leaving bool               // it was told to stop
	kafka   *Kafka             // nil until it can be used
	ledger  *ledger.Ledger     // nil until it exists, like the next two
	reader  *consumer.Consumer // the group session
	shipper *consumer.Shipper
	results *producer.Producer // likewise
}

// New prepares a Connector; it opens no connection. The settings must have been
// checked.
func New(s Settings, o Options) (*Connector, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Listen == nil {
		o.Listen = new(net.ListenConfig).Listen
	}
	c := &Connector{
		settings: s, opts: o, log: slog.New(traceHandler{o.Logger.Handler()}), registry: newRegistry(), name: processName(),
		started: time.Now(), waiting: "starting",
	}
	c.signals = newTelemetry(s.signals, c.name, c.registry, c.component("telemetry"))
	c.crash = newCrash(&c.settings)
	config, err := s.upstreamConfig()
	if err != nil {
		return nil, err
	}
	config.DialContext = c.crash.upstream(o.UpstreamDial)
	config.Logger = c.component("upstream")
	config.Registerer = c.registry
	config.Tracer = c.signals.tracer()
	if c.api, err = upstream.New(config); err != nil {
		return nil, err
	}
	c.watchdog = newWatchdog(&c.settings, c.api, c.component("watchdog"), c.registry)
	return c, nil
}

// Run is the connector's life: it returns when ctx has ended and everything is
// stopped, which is not an error, or when something is wrong that waiting does
// not mend.
//
// It is deliberately one straight line. What exists is undone in reverse, so the
// order below is also the order of a stop, read from the end: first the session
// ends (no new call from that moment; calls under way finish and are written
// down), then the ledger says goodbye, and the probes answer until the last.
func (c *Connector) Run(ctx context.Context) (err error) {
	s := &c.settings
	run, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	life := &lifecycle{log: c.log, fail: fail}
	var asked atomic.Pointer[time.Time] // since when the run is over
	defer context.AfterFunc(run, func() { now := time.Now(); asked.Store(&now) })()
	defer func() {
		begin := time.Now()
		if t := asked.Load(); t != nil {
			begin = *t
		}
		limit, cancel := context.WithDeadline(context.WithoutCancel(ctx), begin.Add(s.ShutdownTimeout-s.reserve()/6))
		defer cancel()
		if cause := context.Cause(run); err == nil && ctx.Err() == nil && cause != nil {
			err = cause
		}
		if err != nil {
			c.setBroken(err)
		}
		err = errors.Join(err, life.stop(limit))
	}()
	defer context.AfterFunc(ctx, func() {
		c.setLeaving()
		c.log.Info("stop asked for", "cause", context.Cause(ctx))
	})()
	c.warn()
	c.signals.run(run, life)

	if err := c.serve(run, life); err != nil {
		return err
	}

	kafka := NewKafka(s, c.crash.kafka(c.opts.KafkaDial), s.Topics()...)
	life.onStop("kafka connections", func(context.Context) error { kafka.Close(); return nil })
	p, err := c.makeParts(kafka)
	if err != nil {
		return err
	}
	if err := c.awaitKafka(run, kafka); err != nil {
		return unlessEnded(run, err)
	}

	life.background(run, "upstream", c.api.Run)
	life.onStop("upstream connections", func(context.Context) error { c.api.CloseIdleConnections(); return nil })

	c.setResults(p.results)
	life.background(run, "producer", p.results.Run)
	life.background(run, "ledger", p.ledger.Run)
	life.onStop("ledger farewell", func(limit context.Context) error {
		// It spares the other replicas a wait, and that is all.
		limit, cancel := context.WithTimeout(limit, farewellLimit)
		defer cancel()
		if err := p.ledger.Close(limit); err != nil {
			c.log.Warn("the ledger was not told of the stop, so that other replicas wait before they take over what may be open", "err", err)
		}
		return nil
	})
	c.setLedger(p.ledger, kafka)
	if err := p.ledger.WaitReady(run); err != nil {
		return unlessEnded(run, err)
	}

	c.setReader(p.reader, p.shipper)
	life.background(run, "watchdog", func(ctx context.Context) error { return c.watchdog.run(ctx, p.reader, p.shipper) })
	return unlessEnded(run, p.reader.Run(run))
}

// parts is what works with Kafka.
type parts struct {
	results *producer.Producer
	ledger  *ledger.Ledger
	shipper *consumer.Shipper
	reader  *consumer.Consumer
}

// makeParts makes the parts. None of them connects to anything before it is run,
// but all their metrics are there, also while Kafka is away.
func (c *Connector) makeParts(kafka *Kafka) (*parts, error) {
	s := &c.settings
	out, err := producer.New(producer.Config{
		Client:          kafka.Client,
		ShippedTopic:    s.TopicShipped,
		FailedTopic:     s.TopicFailed,
		DeadLetterTopic: s.TopicDLQ,
		PackedTopic:     s.TopicPacked,
		Source:          s.source(),
		Principal:       s.Principal(),
		Logger:          c.component("producer"),
		Registerer:      c.registry,
		Tracer:          c.signals.tracer(),
	})
	if err != nil {
		return nil, err
	}
	memory, err := ledger.New(ledger.Config{
		Client:      kafka.Client,
		Topic:       s.TopicLedger,
		Partitions:  s.LedgerPartitions,
		Horizon:     s.LedgerHorizon,
		StartBy:     s.StartBy(),
		CallTimeout: s.UpstreamTimeout,
		Settle:      s.UpstreamSettle,
		Instance:    c.name,
		Principal:   s.Principal(),
		Charged:     c.api.Charged,
		Logger:      c.component("ledger"),
		Registerer:  c.registry,
	})
	if err != nil {
		return nil, err
	}
	shipper := consumer.NewShipper(c.crash.ports(consumer.ShipperConfig{
		Ledger:     memory,
		Upstream:   admitting{c.api},
		Publisher:  out,
		Horizon:    s.LedgerHorizon,
		Park:       s.UnknownPolicy == "park",
		RetryMax:   s.RetryMax,
		Settle:     s.UpstreamSettle,
		Backoff:    c.api.Backoff,
		Grace:      s.drain(),
		GroupID:    s.KafkaGroupID,
		Topic:      s.TopicPacked,
		Classes:    upstream.Classes(),
		Logger:     c.component("shipper"),
		Registerer: c.registry,
		Tracer:     c.signals.tracer(),
	}))
	reader, err := consumer.New(consumer.Config{
		Brokers:          kafka.Brokers,
		GroupID:          s.KafkaGroupID,
		ClientID:         s.KafkaClientID,
		Topic:            s.TopicPacked,
		Name:             c.name,
		Principal:        s.Principal(),
		Explain:          kafka.Explain,
		Dialer:           kafka.Dialer,
		Client:           kafka.Client,
		SessionTimeout:   s.KafkaSessionTimeout,
		RebalanceTimeout: s.KafkaRebalanceTimeout,
		StartAtEnd:       s.KafkaStart == "last",
		Handover:         c.api.Window(),
		Shares:           c.shares(),
		Share:            func(s consumer.Share) { c.api.Share(s.Index, s.Of) },
		StopTimeout:      s.drain(),
		LeaveTimeout:     s.reserve() / 2,
		CatchUp:          memory.CatchUp,
		Resume:           memory.Resume,
		CommitMetadata:   memory.Bookmark,
		Handler:          c.crash.handler(shipper),
		Logger:           c.component("consumer"),
		Registerer:       c.registry,
	})
	if err != nil {
		return nil, err
	}
	return &parts{results: out, ledger: memory, shipper: shipper, reader: reader}, nil
}

// unlessEnded drops an error that only says that the run has been ended.
func unlessEnded(run context.Context, err error) error {
	if run.Err() != nil && (errors.Is(err, run.Err()) || errors.Is(err, context.Cause(run))) {
		return nil
	}
	return err
}

// component returns the logger of a part.
func (c *Connector) component(name string) *slog.Logger { return c.log.With("component", name) }

// warn tells of settings that are allowed and yet seldom meant.
func (c *Connector) warn() {
	s := &c.settings
	if strings.HasPrefix(s.UpstreamURL, "http:") {
		c.log.Warn("the token travels unencrypted to an http upstream", "setting", variable("UPSTREAM_URL"))
	}
	if s.Assignment == "spread" {
		c.log.Warn("several replicas call at a time: the API ends the session of a token that it sees from two addresses, so they must all leave by the same one",
			"setting", variable("ASSIGNMENT"))
	}
	if s.drain() < s.UpstreamTimeout {
		c.log.Warn("a stop does not wait for a call's whole time limit, so its outcome may stay unknown",
			"setting", variable("SHUTDOWN_TIMEOUT"), "wait", s.drain(), "call_limit", s.UpstreamTimeout)
	}
	if s.KafkaSASLMechanism == "PLAIN" && !bool(s.KafkaTLS) {
		c.log.Warn("the Kafka password travels unencrypted", "setting", variable("KAFKA_TLS"))
	}
}

// awaitKafka returns once a broker can be used and the topics are right. While
// Kafka is away it waits, and logs each new reason once.
func (c *Connector) awaitKafka(ctx context.Context, k *Kafka) error {
	const pause = 500 * time.Millisecond
	last := ""
	changed := func(err error) {
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text == last {
			return
		}
		last = text
		if err != nil {
			c.setWaiting("waiting for kafka: " + text)
			c.log.Warn("waiting for kafka", "err", err)
		}
	}
	for {
		if err := k.Await(ctx, changed); err != nil {
			return err
		}
		err := k.CheckTopics(ctx, RightsToRun)
		if _, ok := errors.AsType[*TopicsError](err); ok || ctx.Err() != nil {
			return err
		}
		if err == nil {
			c.setWaiting("")
			c.log.Info("kafka is there", "brokers", k.Brokers)
			return nil
		}
		changed(err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// farewellLimit bounds the ledger's farewell.
const farewellLimit = 5 * time.Second

// shares is among how many replicas the partitions and the rate are shared out.
func (c *Connector) shares() int {
	if c.settings.Assignment == "spread" {
		return c.api.MaxShares()
	}
	return 1
}

// drain is how long a stop waits for calls under way.
func (s *Settings) drain() time.Duration { return s.ShutdownTimeout - s.reserve() }

// reserve is what a stop keeps of the shutdown timeout for what comes after the
// calls: half of it for the last commit and leaving the group, the rest for the
// ledger and for all that runs in the background.
func (s *Settings) reserve() time.Duration { return min(3*time.Second, s.ShutdownTimeout/3) }

// source is this connector as its events name it.
func (s *Settings) source() string { return "packship/" + s.KafkaGroupID }

func (c *Connector) setWaiting(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = why
}

func (c *Connector) setBroken(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = err
}

func (c *Connector) setLeaving() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = true
}

func (c *Connector) setResults(p *producer.Producer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.results = p
}

func (c *Connector) setLedger(l *ledger.Ledger, k *Kafka) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ledger, c.kafka = l, k
}

func (c *Connector) setReader(r *consumer.Consumer, s *consumer.Shipper) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reader, c.shipper = r, s
}

// processName is the host's name and a random part, since a host may run two
// replicas.
func processName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "packship"
	}
	return host + "-" + strings.ToLower(rand.Text()[:6])
}

// newRegistry returns a registry with what every process shows.
func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	b := BuildInfo()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "packship_build_info",
		Help:        "Always 1; the labels say which packship this is.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision, "goversion": b.Go},
	})
	info.Set(1)
	r.MustRegister(info)
	return r
}

// serve starts the HTTP server, before anything else, so that the probes answer
// while Kafka is still away.
func (c *Connector) serve(ctx context.Context, life *lifecycle) error {
	listener, err := c.opts.Listen(ctx, "tcp", c.settings.HTTPAddr)
	if err != nil {
		return fmt.Errorf("app: listen on %s (%s): %w", c.settings.HTTPAddr, variable("HTTP_ADDR"), err)
	}
	server := &http.Server{
		Handler:           c.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(c.component("http").Handler(), slog.LevelDebug),
	}
	life.background(ctx, "http server", func(ctx context.Context) error {
		served := make(chan error, 1)
		go func() { served <- server.Serve(listener) }()
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
		}
		// A scrape that is under way may end; nobody waits for more.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(last) != nil {
			_ = server.Close() // the connections that did not end
		}
		return ignoreClosed(<-served)
	})
	c.log.Info("http server listening", "addr", listener.Addr().String())
	if c.opts.Serving != nil {
		c.opts.Serving(listener.Addr())
	}
	return nil
}

// ignoreClosed drops the error of a server that was told to stop.
func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Ready reports whether this replica can do its part, active or standing by, or
// else why not.
func (c *Connector) Ready() (bool, string) {
	c.mu.Lock()
	waiting, broken, memory, reader := c.waiting, c.broken, c.ledger, c.reader
	c.mu.Unlock()
	switch {
	case broken != nil:
		return false, "stopping: " + broken.Error()
	case waiting != "":
		return false, waiting
	case memory == nil:
		return false, "starting"
	}
	if ok, why := memory.Ready(); !ok {
		return false, "the ledger is not ready: " + why
	}
	if reader == nil {
		return false, joiningGroup
	}
	if st := reader.Status(); st.Role == consumer.RoleJoining {
		return false, joiningReason(st.Reason)
	}
	return true, ""
}

const joiningGroup = "joining the group"

// joiningReason says why the group has not been joined, by what the consumer says,
// which may say itself that it is about to.
func joiningReason(reason string) string {
	if reason == "" || strings.HasPrefix(reason, joiningGroup) {
		return cmp.Or(reason, joiningGroup)
	}
	return joiningGroup + ": " + reason
}
