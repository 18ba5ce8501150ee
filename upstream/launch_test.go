package upstream

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"packship/schema"
)

// unaware is a context whose deadline may have passed without its knowing, as
// in a process that was frozen and whose timers have not fired yet.
type unaware struct {
	context.Context
	deadline atomic.Pointer[time.Time]
}

func (u *unaware) Deadline() (time.Time, bool) {
	at := u.deadline.Load()
	if at == nil {
		return time.Time{}, false
	}
	return *at, true
}

// A process that is frozen while a call waits for its place finds two timers due
// when it wakes up: the one that lets the call go and the one that forbids it.
// Whichever is first, the call must not leave.
func TestNoCallAfterItsTimeAlthoughTheTimerIsLate(t *testing.T) {
	for _, reused := range []bool{false, true} {
		var calls atomic.Int64
		srv := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			calls.Add(1)
			_, _ = w.Write([]byte(success))
		})
		u := newUpstream(t, testConfig(srv.URL))
		if reused {
			send(t, u, order(1))
		}
		before := calls.Load()
		turn, err := u.Admit(t.Context(), order(2), false)
		if err != nil {
			t.Fatal(err)
		}
		gate := &unaware{Context: t.Context()}
		past := time.Now().Add(-time.Millisecond)
		gate.deadline.Store(&past)
		got := turn.Send(gate, schema.Hold{})
		turn.Leave()
		if got.Action != schema.ActHold || got.Reached {
			t.Errorf("reused connection %t: got %+v, want a call that was not sent", reused, got)
		}
		if n := calls.Load() - before; n != 0 {
			t.Errorf("reused connection %t: %d calls left after their time", reused, n)
		}
		if got := send(t, u, order(2)); got.Action != schema.ActSucceed {
			t.Errorf("reused connection %t: the next try: %+v", reused, got)
		}
	}
}
