package upstream

import (
	"bytes"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"packship/schema"
)

// What of a call is still in the send buffer when it is given up must not reach
// the API once the way is free again: that may be after the next call for the
// order.
func TestGivenUpCallIsTakenBack(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	cfg := testConfig("http://" + lis.Addr().String())
	cfg.Timeout = 200 * time.Millisecond
	u := newUpstream(t, cfg)
	p := order(1)
	// It fits into the sender's buffer, and not into that of a receiver that
	// does not read.
	p.Feature = strings.Repeat("x", 1<<20)
	p.VVType = 1 // comes last
	if got := send(t, u, p); got.Effect != schema.EffectUnknown || got.Answered {
		t.Fatalf("got %+v, want a call without an answer", got)
	}
	conn, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if bytes.Contains(got, []byte(`name="vvtype"`)) {
		t.Errorf("the whole call has arrived after it was given up: %d bytes, %v", len(got), err)
	}
	if err == nil || len(got) == 0 {
		t.Errorf("read %d bytes, %v, want a part and a reset", len(got), err)
	}
}

// The kernel of a process that is gone must not deliver its calls for longer than
// they may take.
func TestDeliveryIsBounded(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	cfg := testConfig("http://" + lis.Addr().String())
	u := newUpstream(t, cfg)
	conn, err := u.transport.DialContext(t.Context(), "tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	tcp, ok := conn.(*pacedConn).Conn.(*net.TCPConn)
	if !ok {
		t.Fatalf("got a %T", conn)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ms int
	if failed := raw.Control(func(fd uintptr) {
		ms, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout)
	}); failed != nil || err != nil {
		t.Fatal(failed, err)
	}
	if want := int(cfg.Timeout.Milliseconds()); ms != want {
		t.Errorf("got %d ms, want %d, the time limit of a call", ms, want)
	}
}
