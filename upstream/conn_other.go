//go:build !linux

package upstream

import (
	"net"
	"time"
)

// boundDelivery is for Linux only.
func boundDelivery(net.Conn, time.Duration) {}
