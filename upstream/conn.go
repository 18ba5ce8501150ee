package upstream

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// A connection to the API is wrapped so that the rate limit can be applied at
// the last possible moment: when the connection stands and the request is about
// to be written. Earlier, the time that a dial takes would bring calls together
// that were apart. And where the write itself waits, it can still be refused with
// nothing on the wire.
//
// Neither can be had from net/http alone: the body is read after the headers are
// written, and cancelling a request races with its being written.

const (
	// dialTimeout bounds the making of a connection. It is shorter than the
	// time in which a claimed order must be called, so that an API that cannot
	// be reached is seen as such.
	dialTimeout = 4 * time.Second
	// idleTimeout closes a connection before common servers do, so that a
	// request is rarely written into one that is being closed.
	idleTimeout = 4 * time.Second
	// maxHeader bounds the header of an answer.
	maxHeader = 64 << 10
)

// newTransport returns the transport of all calls. It knows HTTP/1.1 only,
// because one connection must not carry two calls; it follows nothing, adds
// nothing to a request, and asks no proxy.
func newTransport(cfg *Config) *http.Transport {
	dial := cfg.DialContext
	if dial == nil {
		dial = (&oneFamily{dial: new(net.Dialer).DialContext}).dialContext
	}
	calls := 0
	for range cfg.Accounts {
		calls += cfg.MaxInFlight
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			boundDelivery(conn, cfg.Timeout)
			return &pacedConn{Conn: conn}, nil
		},
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    dialTimeout,
		Protocols:              protocols,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    calls,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
	}
}

// pacedConn is a connection whose next write may be armed with a launch.
type pacedConn struct {
	net.Conn

	mu    sync.Mutex
	armed *launch // the call that the next write begins
}

// arm makes the next write the launch's; nil disarms it.
func (c *pacedConn) arm(l *launch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = l
}

func (c *pacedConn) launch() *launch {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.armed
}

// Write writes, through the launch if one is armed. A launch that was refused
// stays armed: its connection writes nothing any more.
func (c *pacedConn) Write(b []byte) (int, error) {
	l := c.launch()
	if l == nil {
		return c.Conn.Write(b)
	}
	n, err := l.write(c.Conn, b)
	if n > 0 {
		c.arm(nil)
	}
	return n, err
}

// Close closes the connection; a launch that still waits on it will not happen.
func (c *pacedConn) Close() error {
	if l := c.launch(); l != nil {
		l.refuse(errConnLost)
	}
	return c.Conn.Close()
}

// takeBack has the next close drop what was written and has not arrived. A close
// alone leaves that to the kernel, which goes on sending it for a minute or two:
// where the way to the API was cut for a while, the call would arrive when it had
// long been given up, and made again.
func (c *pacedConn) takeBack() {
	if tcp, ok := c.Conn.(interface{ SetLinger(sec int) error }); ok {
		_ = tcp.SetLinger(0)
	}
}

// paced returns the wrapped connection under a connection of the transport.
func paced(conn net.Conn) *pacedConn {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	p, ok := conn.(*pacedConn)
	if !ok {
		panic(fmt.Sprintf("upstream: connection of type %T was not made by our dialer", conn))
	}
	return p
}
