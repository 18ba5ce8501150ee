package upstreamtest

import (
	"context"
	"net"
	"sync"
	"time"
)

// Listener returns a listener whose connections note when the first byte of
// each request arrives, so that the journal knows the rate on the wire and not
// that of handlers being scheduled. The server must use
// [Simulator.ConnContext]. TLS goes below: pass a listener that
// [crypto/tls.NewListener] made.
//
// While the API refuses connections, the listener resets those it accepts.
func (s *Simulator) Listener(ln net.Listener) net.Listener {
	return &listener{Listener: ln, s: s}
}

// ConnContext is the hook of that name of an [net/http.Server]. It lets the
// handler find the arrival time that the connection has noted.
func (*Simulator) ConnContext(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := conn.(*stampedConn); ok {
		return context.WithValue(ctx, stampKey{}, c)
	}
	return ctx
}

type listener struct {
	net.Listener

	s *Simulator
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.s.downNow() != Refusing {
			return &stampedConn{Conn: conn, armed: true}, nil
		}
		reset(conn)
	}
}

// reset closes a connection so that the other end sees a reset, where the
// network knows such a thing.
func reset(conn net.Conn) {
	if c, ok := conn.(*stampedConn); ok {
		conn = c.Conn
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		// If it fails, the connection is gone already.
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

type stampKey struct{}

// stampedConn notes the arrival of the first byte of each request. A request
// ends where the handler has read all of its body: what is read after that is
// the next one, be it by the server's own look-out for a caller that leaves.
type stampedConn struct {
	net.Conn

	mu    sync.Mutex
	armed bool // the next byte begins a request
	first time.Time
}

func (c *stampedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.mu.Lock()
		if c.armed {
			c.first, c.armed = time.Now(), false
		}
		c.mu.Unlock()
	}
	return n, err
}

// arrival returns when the present request's first byte came, once.
func (c *stampedConn) arrival() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.first
	c.first = time.Time{}
	return t
}

// arm says that the present request has been read to its end.
func (c *stampedConn) arm() {
	c.mu.Lock()
	c.armed = true
	c.mu.Unlock()
}
