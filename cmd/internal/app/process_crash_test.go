package app

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"packship/upstream/upstreamtest"
)

// TestProcessCrashPoints kills the connector at each point of an order's way at
// which something is on its way, and starts it again, until it has died often
// enough. See crash.go for the points. What is left is brought to an end by a
// process that is not killed, and then the whole history is judged.
//
// In the trials named park the API ships an order as often as it is asked to,
// and no call is repeated: then nothing but packship's own memory keeps orders
// from being shipped twice.
func TestProcessCrashPoints(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9", "c10", "c11", "c12", "drain"} {
		parked := *crashKills / 4
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			newTrial(t, upstreamtest.Options{}).crash(point, "", *crashKills-parked)
		})
		if parked > 0 {
			t.Run(point+" park", func(t *testing.T) {
				t.Parallel()
				options := upstreamtest.Options{Switches: upstreamtest.Switches{AllowRepeats: true}}
				x := newTrial(t, options, func(s *Settings) { s.UnknownPolicy = "park" })
				if v := x.crash(point, " park", parked); v.repeats > 0 {
					t.Errorf("%d calls were repeated although the policy is not to", v.repeats)
				}
			})
		}
	}
}

// crash kills processes at a point.
func (x *trial) crash(point, how string, kills int) verdict {
	x.t.Helper()
	for done := 0; done < kills; {
		if point == "c12" {
			// There must be something in the ledger that makes a difference.
			x.crashOnce([]string{"c2", "c3", "c5", "c7", "c9", "c10"}[x.rand.IntN(6)])
		}
		if x.crashOnce(point) {
			done++
		}
	}
	x.finish()
	v := x.judge(terms{})
	x.t.Logf("crash %s%s: %d kills, %d orders, %d calls, %d repeats, %d violations (%d kills in all, %d calls given up, seed %d)",
		point, how, kills, v.orders, v.calls, v.repeats, len(v.violations), len(x.ends), v.slow, x.seed)
	return v
}

// crashOnce lets one process die at a point, and reports whether it did.
func (x *trial) crashOnce(point string) bool {
	x.t.Helper()
	// Without fresh orders the process has to come to what its predecessors
	// left behind, and may die of that.
	fresh := x.rand.IntN(6)
	nth := 1 + x.rand.IntN(max(1, fresh))
	switch point {
	case "c11":
		nth = 1 + x.rand.IntN(2) // a commit covers many orders
	case "c12":
		nth = 1 + x.rand.IntN(16) // reads, of which there are many
	case "drain":
		fresh += 4
		nth = 1 + x.rand.IntN(2*fresh)
	}
	x.pack(fresh)
	before := x.sim.Stats().Calls
	c := x.run(fmt.Sprintf("CRASH_AT=%s:%d", point, nth))
	if point == "drain" {
		c.await("a call", func() bool { return x.sim.Stats().Calls > before })
		c.signal(syscall.SIGTERM)
	}
	x.awaitEnd(c, point != "drain")
	if c.died() {
		after := time.Duration(0)
		if x.rand.IntN(10) == 0 {
			after = x.settings.KafkaSessionTimeout
		}
		x.mourn(c, after)
		return true
	}
	if code := c.cmd.ProcessState.ExitCode(); point != "drain" || code != 0 {
		x.t.Fatalf("%s was to die at %s for time %d and ended with %d:\n%s", c.name, point, nth, code, c.tail())
	}
	return false // it was done before
}

// awaitEnd waits until the process has ended. It is fed meanwhile, so that it
// gets to the point at which it ends.
func (x *trial) awaitEnd(c *child, feed bool) {
	x.t.Helper()
	fed := time.Now()
	c.await("its end", func() bool {
		if feed && time.Since(fed) > time.Second {
			fed = time.Now()
			x.pack(1)
			x.sweep()
		}
		return c.gone()
	})
}
