package app

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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

// TestCrashPointsAreLeftOut checks that what kills the process on purpose is in
// the tests' binary alone.
func TestCrashPointsAreLeftOut(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the command twice")
	}
	for _, tt := range []struct {
		build func() (string, error)
		want  bool
	}{{executable, false}, {crashing, true}} {
		path, err := tt.build()
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Contains(content, []byte("CRASH_AT")); got != tt.want {
			t.Errorf("%s knows of crash points: %t, want %t", filepath.Base(path), got, tt.want)
		}
	}
}

// left is what a process that died at a point has left of the only order that
// there was: y is yes, n is no, anything else depends.
type left struct{ intent, call, outcome, result, commit byte }

// leftAt says so for each point. It shows that the points are where they should
// be.
var leftAt = map[string]left{
	"c1":  {'n', 'n', 'n', 'n', 'n'},
	"c2":  {'?', 'n', 'n', 'n', 'n'},
	"c3":  {'y', 'n', 'n', 'n', 'n'},
	"c4":  {'y', 'n', 'n', 'n', 'n'},
	"c5":  {'y', 'y', 'n', 'n', 'n'},
	"c6":  {'y', 'y', 'n', 'n', 'n'},
	"c7":  {'y', 'y', '?', 'n', 'n'},
	"c8":  {'y', 'y', 'y', 'n', 'n'},
	"c9":  {'y', 'y', 'y', '?', 'n'},
	"c10": {'y', 'y', 'y', 'y', 'n'},
	"c11": {'y', 'y', 'y', 'y', '?'},
}

// crashAlone lets a process die at a point with the first of all orders, and
// looks what there is of it.
func (x *trial) crashAlone(point string, want left) {
	x.t.Helper()
	nth := 1
	if point == "c11" {
		nth = 2 // the first commit says where the group begins
	}
	x.pack(1)
	c := x.run(fmt.Sprintf("CRASH_AT=%s:%d", point, nth))
	x.awaitEnd(c, false)
	if !c.died() {
		x.t.Fatalf("%s was to die at %s:\n%s", c.name, point, c.tail())
	}
	x.mourn(c, 0)
	if want.call == 'y' {
		x.calls(1) // the API may read it a moment later
	}
	e := x.collect()["1"]
	has := func(kind string) bool {
		return slices.ContainsFunc(e.ledger, func(r entry) bool { return r.Kind == kind })
	}
	for _, part := range []struct {
		what string
		got  bool
		want byte
	}{
		{"an intent", has("intent"), want.intent},
		{"a call", len(e.calls) > 0, want.call},
		{"an outcome", has("outcome"), want.outcome},
		{"a result", len(e.results) > 0, want.result},
		{"a commit", x.done(), want.commit},
	} {
		if part.want == 'y' && !part.got || part.want == 'n' && part.got {
			x.t.Errorf("after a death at %s there is %s: %t", point, part.what, part.got)
		}
	}
}

// crash kills processes at a point.
func (x *trial) crash(point, how string, kills int) verdict {
	x.t.Helper()
	done := 0
	if want, ok := leftAt[point]; ok {
		x.crashAlone(point, want)
		done++
	}
	for done < kills {
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
		nth = 1 + x.rand.IntN(8) // of the reads it takes to read the ledger
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
