package upstream

import (
	"net"
	"syscall"
	"time"
)

// tcpUserTimeout is the option TCP_USER_TIMEOUT, in milliseconds.
const tcpUserTimeout = 0x12

// boundDelivery has the kernel give a connection up if what was written to it has
// not arrived within a call's time limit. That holds also for a process that was
// killed amid a call, whose kernel goes on sending for it.
func boundDelivery(conn net.Conn, limit time.Duration) {
	tcp, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	ms := int(max(limit.Milliseconds(), 1))
	_ = raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, ms) })
}
