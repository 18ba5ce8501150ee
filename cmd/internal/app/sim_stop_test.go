package app

import (
	"testing"
	"testing/synctest"
	"time"

	"packship/upstream/upstreamtest"
)

// TestStopInTime stops a replica while Kafka hangs, refuses or is not there: the
// process ends within its shutdown timeout, whatever it was doing. The time is
// the bubble's, so that a busy machine makes no difference.
func TestStopInTime(t *testing.T) {
	links := map[string]linkState{
		"answers":         {},
		"hangs":           {holdIn: true},
		"hears nothing":   {holdOut: true},
		"hangs both ways": {holdIn: true, holdOut: true},
		"loses all":       {dropOut: true},
		"refuses":         {refuse: true},
	}
	const start, work, hung = "at the start", "at work", "while calls hang"
	for _, phase := range []string{start, work, hung} {
		for name, state := range links {
			t.Run(phase+" kafka "+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					s := &simulation{t: t, seed: 1, profile: simProfile{
						session: 10 * time.Second, timeout: 15 * time.Second, settle: 30 * time.Second,
						latency: upstreamtest.Latency{Fixed: 1200 * time.Millisecond}, replicas: 1, groups: 1,
					}}
					s.begin()
					if phase == hung {
						s.api.AddFault(upstreamtest.Fault{Kind: upstreamtest.Hang})
					}
					p := s.launch(0)
					if phase != start {
						s.load.backlog(200)
						for s.api.Stats().InFlight < 5 {
							time.Sleep(time.Second)
						}
					}
					p.kafka.set(state)
					time.Sleep(5 * time.Second)
					begin := time.Now()
					p.tell("the test stops it")
					s.awaitEnd(p)
					if took, limit := time.Since(begin), s.settings.ShutdownTimeout; took > limit {
						t.Errorf("the stop took %s, want at most %s; it ended with %v", took, limit, p.err)
					}
					if (name == "answers" || phase == start) && p.err != nil {
						t.Errorf("ended with %v, and nothing was left undone", p.err)
					}
					p.kafka.set(linkState{})
					s.end()
				})
			})
		}
	}
}
