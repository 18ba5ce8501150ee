package upstream

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestOneFamily dials again and again, where some addresses of a name answer and
// others do not.
func TestOneFamily(t *testing.T) {
	refused := errors.New("connection refused")
	none := &net.OpError{Op: "dial", Err: &net.AddrError{Err: "no suitable address found", Addr: "api.example"}}
	unknown := &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "api.example", IsNotFound: true}}
	busy := &net.OpError{Op: "dial", Err: &net.DNSError{Err: "server misbehaving", Name: "api.example", IsTemporary: true}}
	type answers struct{ four, six error }
	for name, tt := range map[string]struct {
		dials []answers
		want  string // what each dial has tried, the last with what came of it
		err   error
	}{
		"both":                        {[]answers{{nil, nil}, {nil, nil}}, "4 4", nil},
		"IPv4 goes away":              {[]answers{{nil, nil}, {refused, nil}}, "4 4", refused},
		"IPv4 has come and gone":      {[]answers{{nil, nil}, {none, nil}, {nil, nil}}, "4 446 6", nil},
		"no address of IPv4":          {[]answers{{none, nil}, {none, nil}}, "46 6", nil},
		"no name with IPv4":           {[]answers{{unknown, nil}}, "46", nil},
		"a machine without IPv4":      {[]answers{{refused, nil}, {nil, nil}}, "46 6", nil},
		"not before it was made use":  {[]answers{{refused, refused}, {nil, nil}, {nil, nil}}, "46 4 4", nil},
		"neither, and no IPv6":        {[]answers{{refused, none}}, "46", refused},
		"neither, and no IPv4":        {[]answers{{none, refused}}, "46", refused},
		"no such name":                {[]answers{{unknown, unknown}}, "46", unknown},
		"the names are not to be had": {[]answers{{nil, nil}, {busy, busy}}, "4 4", busy},
	} {
		t.Run(name, func(t *testing.T) {
			var tried strings.Builder
			var now answers
			f := oneFamily{dial: func(_ context.Context, network, _ string) (net.Conn, error) {
				tried.WriteString(strings.TrimPrefix(network, "tcp"))
				err := now.four
				if network == "tcp6" {
					err = now.six
				}
				if err != nil {
					return nil, err
				}
				conn, _ := net.Pipe()
				return conn, nil
			}}
			var err error
			for i, d := range tt.dials {
				if now = d; i > 0 {
					tried.WriteByte(' ')
				}
				var conn net.Conn
				if conn, err = f.dialContext(t.Context(), "tcp", "api.example:80"); (conn == nil) != (err != nil) {
					t.Fatalf("got %v and %v", conn, err)
				}
			}
			if tried.String() != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("tried %q, and the last came to %v; want %q and %v", tried.String(), err, tt.want, tt.err)
			}
		})
	}
}

// familyConn is a connection that knows what it was made by.
type familyConn struct {
	net.Conn
	network string
}

// What is sent by IPv4 is lost for the first of two dials, so that it goes on to
// IPv6. By then the other one has made its connection.
func TestOneFamilyOfTwoDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lost atomic.Bool
		f := oneFamily{dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			if network == "tcp4" && lost.CompareAndSwap(false, true) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			conn, _ := net.Pipe()
			return &familyConn{conn, network}, nil
		}}
		var dials sync.WaitGroup
		for i := range 3 {
			dials.Go(func() {
				time.Sleep(time.Duration(i) * dialTimeout / 4)
				conn, err := f.dialContext(t.Context(), "tcp", "api.example:80")
				if err != nil {
					t.Errorf("dial %d: %v", i, err)
				} else if c, ok := conn.(*familyConn); !ok || c.network != "tcp4" {
					t.Errorf("dial %d: not connected by tcp4, as another is", i)
				}
			})
		}
		dials.Wait()
	})
}

// TestNoAddress asks the real dialer for families that an address is not of.
func TestNoAddress(t *testing.T) {
	for addr, network := range map[string]string{"[::1]:9": "tcp4", "127.0.0.1:9": "tcp6"} {
		if conn, err := new(net.Dialer).DialContext(t.Context(), network, addr); err == nil || !noAddress(err) {
			t.Errorf("%s by %s: got %v, %v", addr, network, conn, err)
		}
	}
}
