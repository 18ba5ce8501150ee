package upstream

import (
	"context"
	"errors"
	"net"
	"sync"
)

// dialFunc opens a connection, as [net.Dialer.DialContext] does.
type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// oneFamily has all connections made by IPv4 or all by IPv6. The API ends the
// session of a token that it sees from two addresses, and where a name stands for
// both, a dialer takes whichever answers first. IPv4 is tried first; what the
// first connection was made by stays, unless the name has no such address any more.
type oneFamily struct {
	dial dialFunc

	mu     sync.Mutex
	chosen string // tcp4 or tcp6, "" before there was a connection
}

func (f *oneFamily) dialContext(ctx context.Context, _, addr string) (net.Conn, error) {
	f.mu.Lock()
	chosen := f.chosen
	f.mu.Unlock()
	if chosen != "" {
		conn, err := f.dial(ctx, chosen, addr)
		if err == nil || !noAddress(err) {
			return conn, err
		}
	}
	conn, err := f.try(ctx, chosen, "tcp4", addr)
	if err == nil {
		return conn, nil
	}
	conn, other := f.try(ctx, chosen, "tcp6", addr)
	if other != nil && noAddress(other) {
		return nil, err
	}
	return conn, other
}

// try makes a connection in half the time that there is, and if it can has all
// others made likewise. Where another dial has chosen meanwhile, that stands.
func (f *oneFamily) try(ctx context.Context, before, network, addr string) (net.Conn, error) {
	limited, cancel := context.WithTimeout(ctx, dialTimeout/2)
	defer cancel()
	conn, err := f.dial(limited, network, addr)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	if f.chosen == before {
		f.chosen = network
	}
	chosen := f.chosen
	f.mu.Unlock()
	if chosen == network {
		return conn, nil
	}
	_ = conn.Close() // nothing was sent on it
	return f.dial(ctx, chosen, addr)
}

// noAddress reports whether a dial has failed because the name has no address of
// the family.
func noAddress(err error) bool {
	if none, ok := errors.AsType[*net.DNSError](err); ok {
		return none.IsNotFound
	}
	_, ok := errors.AsType[*net.AddrError](err)
	return ok
}
