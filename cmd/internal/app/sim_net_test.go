package app

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// simNetwork is the network of a simulation. It lies within one process and
// uses nothing that a bubble of testing/synctest cannot wait for. Unlike the
// pipes of package net it is like TCP where that matters to us: a write does not
// wait for the reader, what was written may arrive late, or after its writer has
// given up, and one direction may fail while the other works.
type simNetwork struct {
	mu        sync.Mutex
	listeners map[string]*simListener // by port
	rng       *rand.Rand              // draws latencies
	dialled   int
}

func newSimNetwork(seed uint64) *simNetwork {
	return &simNetwork{listeners: map[string]*simListener{}, rng: rand.New(rand.NewPCG(seed, 'n'))}
}

// simAddr is host:port.
type simAddr string

func (simAddr) Network() string  { return "tcp" }
func (a simAddr) String() string { return string(a) }

type simListener struct {
	network *simNetwork
	port    string
	backlog chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

// listen opens a listener at the port of an address. The host does not matter.
func (n *simNetwork) listen(_, addr string) (net.Listener, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[port] != nil {
		return nil, fmt.Errorf("port %s is in use: %w", port, syscall.EADDRINUSE)
	}
	l := &simListener{network: n, port: port, backlog: make(chan net.Conn, 128), closed: make(chan struct{})}
	n.listeners[port] = l
	return l, nil
}

func (l *simListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case conn := <-l.backlog:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *simListener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		delete(l.network.listeners, l.port)
		l.network.mu.Unlock()
		close(l.closed)
		for {
			select {
			case conn := <-l.backlog:
				_ = conn.Close()
			default:
				return
			}
		}
	})
	return nil
}

func (l *simListener) Addr() net.Addr { return simAddr("localhost:" + l.port) }

// linkState is how a link is. The zero value is a link that works.
type linkState struct {
	// refuse breaks all connections and lets none be made.
	refuse bool
	// holdOut and holdIn delay what is sent from or to the process until the
	// state ends. dropOut loses what is sent; then the connections break when
	// the state ends.
	holdOut, holdIn, dropOut bool
}

func (s linkState) up() bool { return s == linkState{} }

// simLink is the way of one process into the network.
type simLink struct {
	network *simNetwork
	process string
	latency time.Duration // of what is sent, at most
	frames  bool          // what is sent is Kafka's

	mu      sync.Mutex
	state   linkState
	changed chan struct{} // closed when the state changes
	// conns are the connections that are open, or were closed while the link did
	// not work: what was written to those may still arrive.
	conns map[*simConn]struct{}
	open  int
	peak  int // of open
}

func (n *simNetwork) link(process string, latency time.Duration) *simLink {
	return &simLink{network: n, process: process, latency: latency, changed: make(chan struct{}), conns: map[*simConn]struct{}{}}
}

// set changes the state of the link.
func (l *simLink) set(s linkState) {
	l.mu.Lock()
	before := l.state
	l.state = s
	close(l.changed)
	l.changed = make(chan struct{})
	var broken []*simConn
	for c := range l.conns {
		if s.refuse || before.dropOut && !s.dropOut || !s.up() && c.crowded() {
			broken = append(broken, c)
			continue
		}
		c.out.hold(s.holdOut, s.dropOut)
		c.in.hold(s.holdIn, false)
		if c.closed && s.up() {
			delete(l.conns, c)
		}
	}
	l.mu.Unlock()
	for _, c := range broken {
		c.sever()
	}
}

// breakConns breaks all connections once.
func (l *simLink) breakConns(which func(remote string) bool) int {
	l.mu.Lock()
	var broken []*simConn
	for c := range l.conns {
		if !c.closed && (which == nil || which(string(c.remote))) {
			broken = append(broken, c)
		}
	}
	l.mu.Unlock()
	for _, c := range broken {
		c.sever()
	}
	return len(broken)
}

func (l *simLink) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: simAddr(addr), Err: err}
	}
	for {
		if err := ctx.Err(); err != nil {
			return fail(err)
		}
		l.mu.Lock()
		state, changed := l.state, l.changed
		if state.up() {
			conn, err := l.connect(addr)
			l.mu.Unlock()
			if err != nil {
				return fail(err)
			}
			return conn, nil
		}
		l.mu.Unlock()
		if state.refuse {
			return fail(syscall.ECONNREFUSED)
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// connect makes a connection. The caller holds mu.
func (l *simLink) connect(addr string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n := l.network
	n.mu.Lock()
	ln := n.listeners[port]
	n.dialled++
	local := simAddr(fmt.Sprintf("%s:%d", l.process, n.dialled))
	n.mu.Unlock()
	if ln == nil {
		return nil, syscall.ECONNREFUSED
	}
	there, back := newSimStream(n, l.latency), newSimStream(n, l.latency)
	client := &simConn{link: l, in: back, out: there, local: local, remote: simAddr(addr)}
	server := &simConn{in: there, out: back, local: simAddr(addr), remote: local}
	select {
	case ln.backlog <- server:
	default:
		return nil, syscall.ECONNREFUSED
	}
	l.conns[client] = struct{}{}
	l.open++
	l.peak = max(l.peak, l.open)
	return client, nil
}

// drop notes that a connection is closed, and forgets it unless something of it
// is still under way.
func (l *simLink) drop(c *simConn, severed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.closed {
		c.closed = true
		l.open--
	}
	if severed || l.state.up() {
		delete(l.conns, c)
	}
}

func (l *simLink) peakConns() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.peak
}

// simConn is one end of a connection.
type simConn struct {
	link          *simLink // of the end that dialled, nil at the other
	in, out       *simStream
	local, remote simAddr
	closed        bool // guarded by link.mu

	mu              sync.Mutex
	asked, answered simFrames
	waiting         int // requests without an answer
}

// Read reads what has arrived.
func (c *simConn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	if c.link != nil && c.link.frames {
		c.mu.Lock()
		if c.waiting -= c.answered.pass(p[:n]); c.waiting == 0 {
			c.in.hurry(false)
			c.out.hurry(false)
		}
		c.mu.Unlock()
	}
	return n, err
}

// Write sends.
//
// A group member of kafka-go sends several requests on one connection, and those
// who wait for the later answers wait for a mutex that is held by the one who
// reads. The clock of a bubble stands still while somebody waits for a mutex, so
// an answer must not need time once a second request is sent: it is delivered
// without delay, and if the link does not work the connection breaks.
func (c *simConn) Write(p []byte) (int, error) {
	if c.link != nil && c.link.frames {
		c.mu.Lock()
		crowded := c.waiting > 0
		c.waiting += c.asked.pass(p)
		c.mu.Unlock()
		if crowded && (c.in.stuck() || c.out.stuck()) {
			c.sever()
			return 0, syscall.ECONNRESET
		}
		if crowded {
			c.in.hurry(true)
			c.out.hurry(true)
		}
	}
	return c.out.write(p)
}

// crowded reports whether several requests wait for their answers.
func (c *simConn) crowded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting > 1
}

// simFrames counts the frames of Kafka's protocol in a stream.
type simFrames struct {
	size []byte // the beginning of a frame's size
	left int    // bytes of the frame that are to come
}

// pass takes in the next bytes and returns how many frames end in them.
func (f *simFrames) pass(p []byte) (ended int) {
	for len(p) > 0 {
		if f.left == 0 {
			n := min(4-len(f.size), len(p))
			f.size = append(f.size, p[:n]...)
			p = p[n:]
			if len(f.size) == 4 {
				f.left = int(binary.BigEndian.Uint32(f.size))
				f.size = f.size[:0]
			}
			continue
		}
		n := min(f.left, len(p))
		p = p[n:]
		if f.left -= n; f.left == 0 {
			ended++
		}
	}
	return ended
}

// Close closes this end. What was written still arrives.
func (c *simConn) Close() error {
	c.out.finish()
	c.in.abandon()
	if c.link != nil {
		c.link.drop(c, false)
	}
	return nil
}

// sever breaks the connection for both ends.
func (c *simConn) sever() {
	c.out.sever()
	c.in.sever()
	if c.link != nil {
		c.link.drop(c, true)
	}
}

func (c *simConn) LocalAddr() net.Addr  { return c.local }
func (c *simConn) RemoteAddr() net.Addr { return c.remote }

func (c *simConn) SetDeadline(t time.Time) error {
	c.out.setWriteDeadline(t)
	c.in.setReadDeadline(t)
	return nil
}

func (c *simConn) SetReadDeadline(t time.Time) error {
	c.in.setReadDeadline(t)
	return nil
}

func (c *simConn) SetWriteDeadline(t time.Time) error {
	c.out.setWriteDeadline(t)
	return nil
}

// simStream is one direction of a connection.
type simStream struct {
	network *simNetwork
	latency time.Duration

	mu       sync.Mutex
	moved    *sync.Cond
	chunks   []simChunk
	held     bool // nothing is delivered for now
	hurried  bool // nothing is delayed
	lossy    bool // what is written is lost
	finished bool // the writer has closed its end
	gone     bool // the reader has closed its end
	severed  bool

	readBy, writeBy time.Time
	timer           *time.Timer // wakes the reader
}

type simChunk struct {
	data []byte
	at   time.Time // when it arrives
}

func newSimStream(n *simNetwork, latency time.Duration) *simStream {
	s := &simStream{network: n, latency: latency}
	s.moved = sync.NewCond(&s.mu)
	return s
}

func (s *simStream) write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.finished:
		return 0, net.ErrClosed
	case s.severed:
		return 0, syscall.ECONNRESET
	case s.gone && !s.held && !s.lossy:
		return 0, syscall.EPIPE
	case !s.writeBy.IsZero() && !time.Now().Before(s.writeBy):
		return 0, os.ErrDeadlineExceeded
	case s.lossy:
		return len(p), nil
	}
	at := time.Now()
	if s.latency > 0 && !s.hurried {
		s.network.mu.Lock()
		at = at.Add(time.Duration(s.network.rng.Int64N(int64(s.latency))))
		s.network.mu.Unlock()
		if n := len(s.chunks); n > 0 && s.chunks[n-1].at.After(at) {
			at = s.chunks[n-1].at
		}
	}
	s.chunks = append(s.chunks, simChunk{append([]byte(nil), p...), at})
	s.moved.Broadcast()
	return len(p), nil
}

func (s *simStream) read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		now := time.Now()
		wake := s.readBy
		switch {
		case s.gone:
			return 0, net.ErrClosed
		case s.severed:
			return 0, syscall.ECONNRESET
		case !s.readBy.IsZero() && !now.Before(s.readBy):
			return 0, os.ErrDeadlineExceeded
		case s.held:
		case len(s.chunks) == 0 && s.finished:
			return 0, io.EOF
		case len(s.chunks) > 0 && !s.chunks[0].at.After(now):
			n := copy(p, s.chunks[0].data)
			if s.chunks[0].data = s.chunks[0].data[n:]; len(s.chunks[0].data) == 0 {
				s.chunks = s.chunks[1:]
			}
			return n, nil
		case len(s.chunks) > 0 && (wake.IsZero() || s.chunks[0].at.Before(wake)):
			wake = s.chunks[0].at
		}
		if !wake.IsZero() {
			if s.timer == nil {
				s.timer = time.AfterFunc(wake.Sub(now), s.wake)
			} else {
				s.timer.Reset(wake.Sub(now))
			}
		}
		s.moved.Wait()
		if s.timer != nil {
			s.timer.Stop()
		}
	}
}

func (s *simStream) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved.Broadcast()
}

// finish closes the writer's end, abandon the reader's, sever both.
func (s *simStream) finish()  { s.change(func() { s.finished = true }) }
func (s *simStream) abandon() { s.change(func() { s.gone = true }) }
func (s *simStream) sever()   { s.change(func() { s.severed = true }) }

// hurry delivers without delay what is under way and what comes, or no longer.
func (s *simStream) hurry(on bool) {
	s.change(func() {
		s.hurried = on
		for i := range s.chunks {
			if on {
				s.chunks[i].at = time.Time{}
			}
		}
	})
}

// stuck reports whether nothing is delivered.
func (s *simStream) stuck() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held || s.lossy
}

func (s *simStream) hold(held, lossy bool) { s.change(func() { s.held, s.lossy = held, lossy }) }

func (s *simStream) setReadDeadline(t time.Time)  { s.change(func() { s.readBy = t }) }
func (s *simStream) setWriteDeadline(t time.Time) { s.change(func() { s.writeBy = t }) }

func (s *simStream) change(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
	s.moved.Broadcast()
}

// processOf returns the process at the other end of a connection.
func processOf(remote string) string {
	name, _, _ := strings.Cut(remote, ":")
	return name
}
