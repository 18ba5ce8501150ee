package ledger

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestAliveNoticesATailThatStandsStill has one of two tails stand still, and
// then rest, as it may for as long as Kafka is away.
func TestAliveNoticesATailThatStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Ledger{partitions: []*partition{newPartition(0, time.Second, nil), newPartition(1, time.Second, nil)}}
		if ok, why := l.Alive(); !ok {
			t.Errorf("not alive before it runs: %s", why)
		}
		l.partitions[1].turned.Store(time.Now().UnixNano())
		time.Sleep(aliveWithin)
		if ok, why := l.Alive(); !ok {
			t.Errorf("not alive in time: %s", why)
		}
		time.Sleep(time.Second)
		if ok, why := l.Alive(); ok || !strings.Contains(why, "partition 1") {
			t.Errorf("alive is %t, %q with a tail that stands still", ok, why)
		}
		l.partitions[1].turned.Store(0)
		if ok, why := l.Alive(); !ok {
			t.Errorf("not alive while it rests: %s", why)
		}
	})
}
