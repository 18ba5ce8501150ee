//go:build crashpoints

package app

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"packship/consumer"
	"packship/schema"
)

// crashPoint is a place on an order's way at which the process may end.
type crashPoint string

// The points, in the order of the way. Between two neighbours lies one step
// that another process can see, or that is lost with the memory of this one.
const (
	afterFetch     crashPoint = "c1"    // nothing was done for the record yet
	intentSent     crashPoint = "c2"    // written to the socket, not acknowledged
	intentAcked    crashPoint = "c3"    // and read back: the order is held
	slotTaken      crashPoint = "c4"    // the rate limit has let the call go, nothing is written
	callWritten    crashPoint = "c5"    // no answer yet
	answerRead     crashPoint = "c6"    // nobody else knows it
	outcomeSent    crashPoint = "c7"    // not acknowledged
	outcomeAcked   crashPoint = "c8"    // not published
	resultSent     crashPoint = "c9"    // not acknowledged
	resultAcked    crashPoint = "c10"   // not committed
	commitSent     crashPoint = "c11"   // not acknowledged
	ledgerRead     crashPoint = "c12"   // a piece of it, from the start on
	drainStep      crashPoint = "drain" // any of the others once SIGTERM has come
	crashPointsVar            = "CRASH_AT"
)

var crashPoints = []crashPoint{
	afterFetch, intentSent, intentAcked, slotTaken, callWritten, answerRead, outcomeSent,
	outcomeAcked, resultSent, resultAcked, commitSent, ledgerRead, drainStep,
}

// crash ends the process, without any farewell, when a point is reached for the
// nth time. CRASH_AT says which: c5:3 kills it, c5:3:stop only halts it, until
// somebody sends SIGCONT.
//
// It stands in front of the ports of the consumer and under the connections, so
// that what runs between the points is the same as in any other build.
type crash struct {
	point    crashPoint // "" for none
	nth      int64
	signal   syscall.Signal
	settings *Settings

	reached  atomic.Int64
	draining atomic.Bool
}

func newCrash(s *Settings) *crash {
	c := &crash{settings: s, signal: syscall.SIGKILL}
	given := os.Getenv(crashPointsVar)
	if given == "" {
		return c
	}
	parts := strings.Split(given, ":")
	var err error
	if c.point = crashPoint(parts[0]); len(parts) > 1 {
		c.nth, err = strconv.ParseInt(parts[1], 10, 64)
	}
	if len(parts) == 3 && parts[2] == "stop" {
		c.signal = syscall.SIGSTOP
		parts = parts[:2]
	}
	if err != nil || len(parts) != 2 || c.nth < 1 || !slices.Contains(crashPoints, c.point) {
		panic(fmt.Sprintf("%s is %q; write it as c5:3 or c5:3:stop", crashPointsVar, given))
	}
	if c.point == drainStep {
		told := make(chan os.Signal, 1)
		signal.Notify(told, syscall.SIGTERM)
		go func() {
			<-told
			c.draining.Store(true)
		}()
	}
	return c
}

// reach ends the process if this is the time and place.
func (c *crash) reach(p crashPoint) {
	if p != c.point && (c.point != drainStep || !c.draining.Load()) {
		return
	}
	if c.reached.Add(1) != c.nth {
		return
	}
	if c.signal == syscall.SIGKILL {
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		select {} // not one step further while the kernel is at it
	}
	// A signal to this very thread has taken effect when the call returns.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = syscall.Tgkill(syscall.Getpid(), syscall.Gettid(), c.signal)
}

// handler watches for c1.
func (c *crash) handler(s *consumer.Shipper) consumer.Handler { return crashingHandler{s, c} }

type crashingHandler struct {
	*consumer.Shipper
	crash *crash
}

func (h crashingHandler) Handle(ctx context.Context, gate *consumer.Gate, rec *schema.Record, p *schema.Packed, decodeErr error) error {
	h.crash.reach(afterFetch)
	return h.Shipper.Handle(ctx, gate, rec, p, decodeErr)
}

// ports watches for c3, c6, c8 and c10.
func (c *crash) ports(cfg consumer.ShipperConfig) consumer.ShipperConfig {
	cfg.Ledger = crashingLedger{cfg.Ledger, c}
	cfg.Upstream = crashingUpstream{cfg.Upstream, c}
	cfg.Publisher = crashingPublisher{cfg.Publisher, c}
	return cfg
}

type crashingLedger struct {
	consumer.Ledger
	crash *crash
}

func (l crashingLedger) Claim(ctx context.Context, s *schema.Shipment, eventID, prev, answer string) (schema.Hold, bool, error) {
	hold, held, err := l.Ledger.Claim(ctx, s, eventID, prev, answer)
	if held {
		l.crash.reach(intentAcked)
	}
	return hold, held, err
}

func (l crashingLedger) Settle(ctx context.Context, s *schema.Shipment, eventID string, h schema.Hold, o schema.Settlement) error {
	err := l.Ledger.Settle(ctx, s, eventID, h, o)
	if err == nil {
		l.crash.reach(outcomeAcked)
	}
	return err
}

func (l crashingLedger) Refuse(ctx context.Context, s *schema.Shipment, eventID string, o schema.Outcome) error {
	err := l.Ledger.Refuse(ctx, s, eventID, o)
	if err == nil {
		l.crash.reach(outcomeAcked)
	}
	return err
}

type crashingUpstream struct {
	consumer.Upstream
	crash *crash
}

func (u crashingUpstream) Admit(ctx context.Context, p *schema.Packed, again bool) (consumer.Turn, error) {
	turn, err := u.Upstream.Admit(ctx, p, again)
	if err != nil {
		return nil, err
	}
	return crashingTurn{turn, u.crash}, nil
}

type crashingTurn struct {
	consumer.Turn
	crash *crash
}

func (t crashingTurn) Send(gate context.Context, hold schema.Hold) schema.Answer {
	answer := t.Turn.Send(gate, hold)
	if answer.Reached {
		t.crash.reach(answerRead)
	}
	return answer
}

type crashingPublisher struct {
	consumer.Publisher
	crash *crash
}

func (p crashingPublisher) Publish(ctx context.Context, pub schema.Publication) error {
	err := p.Publisher.Publish(ctx, pub)
	if err == nil {
		p.crash.reach(resultAcked)
	}
	return err
}

// upstream watches for c4 and c5 under the connections to the API: their writes
// come after the rate limit.
func (c *crash) upstream(dial DialContext) DialContext {
	return dialing(dial, func(conn net.Conn) net.Conn { return &crashingCall{conn, c} })
}

type crashingCall struct {
	net.Conn
	crash *crash
}

func (c *crashingCall) Write(b []byte) (int, error) {
	begins := bytes.HasPrefix(b, []byte("POST "))
	if begins {
		c.crash.reach(slotTaken)
	}
	n, err := c.Conn.Write(b)
	if begins && err == nil {
		c.crash.reach(callWritten)
	}
	return n, err
}

// kafka watches for c2, c7, c9, c11 and c12 under the connections to the
// brokers.
func (c *crash) kafka(dial DialContext) DialContext {
	return dialing(dial, func(conn net.Conn) net.Conn { return &crashingKafka{Conn: conn, crash: c} })
}

// crashingKafka follows the requests of a connection that is not encrypted.
type crashingKafka struct {
	net.Conn
	crash *crash

	mu     sync.Mutex
	begun  []byte      // guarded by mu; of a request that is not written completely
	ledger atomic.Bool // the latest request was a fetch of the ledger
}

// Write writes, and reaches a point after the last byte of a request.
func (c *crashingKafka) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun = append(c.begun, b[:n]...)
	for len(c.begun) >= 4 {
		end := 4 + int(binary.BigEndian.Uint32(c.begun))
		if len(c.begun) < end {
			break
		}
		c.wrote(c.begun[4:end])
		c.begun = append(c.begun[:0], c.begun[end:]...)
	}
	return n, err
}

// The keys of the requests.
const (
	produceKey      = 0
	fetchKey        = 1
	offsetCommitKey = 8
)

func (c *crashingKafka) wrote(request []byte) {
	s := c.crash.settings
	names := func(topic string) bool { return bytes.Contains(request, []byte(topic)) }
	has := func(kind string) bool { return bytes.Contains(request, []byte(`{"kind":"`+kind+`"`)) }
	key := binary.BigEndian.Uint16(request)
	c.ledger.Store(key == fetchKey && names(s.TopicLedger))
	switch key {
	case produceKey:
		if names(s.TopicLedger) {
			if has("intent") || has("takeover") {
				c.crash.reach(intentSent)
			}
			if has("outcome") {
				c.crash.reach(outcomeSent)
			}
		} else if names(s.TopicShipped) || names(s.TopicFailed) {
			c.crash.reach(resultSent)
		}
	case fetchKey:
		if c.ledger.Load() {
			c.crash.reach(ledgerRead)
		}
	case offsetCommitKey:
		c.crash.reach(commitSent)
	}
}

// Read reads, and reaches a point after each piece of the ledger.
func (c *crashingKafka) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.ledger.Load() {
		c.crash.reach(ledgerRead)
	}
	return n, err
}

// dialing returns a dial whose connections are wrapped.
func dialing(dial DialContext, wrap func(net.Conn) net.Conn) DialContext {
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return wrap(conn), nil
	}
}
