package upstream

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"packship/schema"
)

// testConfig returns a configuration that is valid and fast.
func testConfig(url string) Config {
	return Config{
		URL:     url,
		Timeout: 5 * time.Second,
		Accounts: []Account{{
			Name: "default", Token: "token-1", RatePerSecond: 100000,
		}},
		MaxInFlight:     64,
		BreakerFailures: 5,
		BreakerOpenFor:  30 * time.Second,
		RetryMax:        3,
		RetryBackoff:    time.Second,
		RetryBackoffMax: 30 * time.Second,
		Logger:          slog.New(slog.DiscardHandler),
		Registerer:      prometheus.NewRegistry(),
	}
}

func newUpstream(t *testing.T, cfg Config) *Upstream {
	t.Helper()
	u, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.CloseIdleConnections)
	return u
}

// order returns an event that breaks no rule.
func order(tid int) *schema.Packed {
	id := fmt.Sprint(tid)
	return &schema.Packed{
		EventID: "evt-" + id, ShopID: "S1", TID: id, OutSID: "SF1234567890123", CompanyCode: "SF",
		Shipment: schema.Shipment{ShopID: "S1", TID: id, Split: "0", OutSID: "SF1234567890123", CompanyCode: "SF"},
	}
}

func shopOrder(shop string, tid int) *schema.Packed {
	p := order(tid)
	p.ShopID, p.Shipment.ShopID = shop, shop
	return p
}

// send admits an order and makes its call.
func send(t *testing.T, u *Upstream, p *schema.Packed) schema.Answer {
	t.Helper()
	turn, err := u.Admit(t.Context(), p, false)
	if err != nil {
		t.Fatalf("admit %s: %v", p.TID, err)
	}
	defer turn.Leave()
	return turn.Send(t.Context(), schema.Hold{StartBy: time.Now().Add(time.Minute)})
}

const success = `{"code":0,"msg":"成功","msec":1193,"time":1612416107,"data":[{"withholding_money":1,"success":true}]}`

func answerText(code int, msg string) string {
	return fmt.Sprintf(`{"code":%d,"msg":%q,"msec":12,"time":1612416107,"data":[]}`, code, msg)
}

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// pipes is an in-memory network of one listener.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipes() *pipes {
	return &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	close(p.done)
	return nil
}

func (*pipes) Addr() net.Addr { return pipeAddr{} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.done:
		return nil, io.ErrClosedPipe
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
