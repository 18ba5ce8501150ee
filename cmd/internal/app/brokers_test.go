package app

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"packship/schema"
	"packship/upstream/upstreamtest"
)

// controlVariable names a program that does something to one of the brokers of
// PACKSHIP_TEST_BROKERS: it is called with one of the words kill, stop, restart,
// pause and resume, and the number of the broker in that list, from 1.
const controlVariable = "PACKSHIP_TEST_BROKER_CONTROL"

// brokers is a cluster of three real brokers, and the program that controls it.
type brokers struct {
	t       *testing.T
	control string
	addrs   []string
}

func realBrokers(t *testing.T) *brokers {
	t.Helper()
	b := &brokers{t: t, control: os.Getenv(controlVariable), addrs: strings.Split(os.Getenv("PACKSHIP_TEST_BROKERS"), ",")}
	if b.control == "" || len(b.addrs) != 3 {
		t.Skipf("needs three brokers in PACKSHIP_TEST_BROKERS and a program that controls them in %s", controlVariable)
	}
	return b
}

func (b *brokers) do(what string, number int) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, b.control, what, strconv.Itoa(number)).CombinedOutput()
	if err != nil {
		b.t.Fatalf("%s broker %d: %v\n%s", what, number, err, out)
	}
}

// number returns which broker listens at an address.
func (b *brokers) number(host string, port int) int {
	b.t.Helper()
	i := slices.Index(b.addrs, net.JoinHostPort(host, strconv.Itoa(port)))
	if i < 0 {
		b.t.Fatalf("no broker listens at %s:%d", host, port)
	}
	return i + 1
}

// leader returns the broker that leads a partition.
func (b *brokers) leader(k *Kafka, topic string, partition int) (number int) {
	b.t.Helper()
	eventually(b.t, "leader of "+topic, func() bool {
		res, err := k.Client.Metadata(b.t.Context(), &kafka.MetadataRequest{Topics: []string{topic}})
		if err != nil || len(res.Topics) != 1 || len(res.Topics[0].Partitions) <= partition || res.Topics[0].Partitions[partition].Leader.Port == 0 {
			return false
		}
		l := res.Topics[0].Partitions[partition].Leader
		number = b.number(l.Host, l.Port)
		return true
	})
	return number
}

// coordinator returns the broker that coordinates a group.
func (b *brokers) coordinator(k *Kafka, group string) (number int) {
	b.t.Helper()
	eventually(b.t, "coordinator of the group", func() bool {
		res, err := k.Client.FindCoordinator(b.t.Context(), &kafka.FindCoordinatorRequest{Key: group, KeyType: kafka.CoordinatorKeyTypeConsumer})
		if err != nil || res.Error != nil {
			return false
		}
		number = b.number(res.Coordinator.Host, res.Coordinator.Port)
		return true
	})
	return number
}

// feeder packs orders for as long as a test has its faults, whatever the brokers
// say. A request that failed may have been carried out, so that there may be
// copies of an event.
type feeder struct {
	w    *world
	stop chan struct{}
	done sync.WaitGroup

	mu     sync.Mutex
	packed int // guarded by mu
}

func (w *world) feed(every time.Duration) *feeder {
	f := &feeder{w: w, stop: make(chan struct{})}
	f.done.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for n := 1; ; n++ {
			r := schema.Record{Partition: n % testPartitions, Key: []byte("key"), Value: []byte(order(n, ""))}
			for {
				select {
				case <-f.stop:
					return
				case <-tick.C:
				}
				if w.tryAppend(r) == nil {
					break
				}
			}
			f.mu.Lock()
			f.packed = n
			f.mu.Unlock()
		}
	})
	return f
}

func (f *feeder) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.packed
}

// end ends it and returns how many orders there are. The last one may be there
// although the broker did not say so.
func (f *feeder) end() int {
	close(f.stop)
	f.done.Wait()
	return f.packed
}

// TestBrokersUnderLoad has two replicas at work on three real brokers, of which
// one after the other is killed, stopped, or frozen: the leaders of the input, of
// the ledger and of the results, the group's coordinator, all in turn; and has the
// ledger refuse every record for a while. In the end every order has its result and
// the API was called once for each.
func TestBrokersUnderLoad(t *testing.T) {
	b := realBrokers(t)
	w := newWorld(t, upstreamtest.Options{Latency: upstreamtest.Latency{Fixed: 100 * time.Millisecond}}, func(s *Settings) {
		s.RatePerSecond, s.LedgerPartitions = 40, 3
		s.KafkaSessionTimeout, s.KafkaRebalanceTimeout = 10*time.Second, 10*time.Second
	})
	w.start()
	w.start()
	feed := w.feed(30 * time.Millisecond)
	ended := false
	defer func() {
		if !ended {
			feed.end()
		}
	}()
	faults := 0
	// goesOn waits until orders that are packed from now on are called for.
	goesOn := func(after string) {
		t.Helper()
		begin := time.Now()
		limit := begin.Add(3 * time.Minute)
		packed, calls := feed.count()+10, w.sim.Stats().Calls+20
		for feed.count() < packed || w.sim.Stats().Calls < calls {
			if time.Now().After(limit) {
				t.Fatalf("after %s the work does not go on: %d of %d packed, %d of %d calls", after, feed.count(), packed, w.sim.Stats().Calls, calls)
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Logf("%s: goes on after %s", after, time.Since(begin).Round(100*time.Millisecond))
	}
	strike := func(what string, number int, undo string) {
		t.Helper()
		faults++
		b.do(strings.Fields(what)[0], number)
		goesOn(fmt.Sprintf("%s, broker %d", what, number))
		b.do(undo, number)
		goesOn(fmt.Sprintf("%s, broker %d", undo, number))
	}
	goesOn("the start")
	strike("kill the leader of the input", b.leader(w.kafka, w.settings.TopicPacked, 0), "restart")
	strike("kill the leader of the ledger", b.leader(w.kafka, w.settings.TopicLedger, 0), "restart")
	strike("kill the leader of the results", b.leader(w.kafka, w.settings.TopicShipped, 0), "restart")
	strike("kill the coordinator", b.coordinator(w.kafka, w.settings.KafkaGroupID), "restart")
	// It takes connections and answers nothing, and is the first in the list.
	strike("pause the first broker", 1, "resume")
	for number := range 3 {
		strike("stop each in turn", number+1, "restart")
	}

	// The ledger wants more replicas than there are: no call is made.
	faults++
	b.minISR(w.kafka, w.settings.TopicLedger, 3)
	b.do("stop", 3)
	quiet := func() bool {
		before := w.sim.Stats()
		time.Sleep(2 * time.Second)
		after := w.sim.Stats()
		return before.Calls == after.Calls && after.InFlight == 0
	}
	eventually(t, "no more calls while the ledger refuses", quiet)
	without := w.sim.Stats().Calls
	time.Sleep(3 * time.Second)
	if n := w.sim.Stats().Calls - without; n != 0 {
		t.Errorf("%d calls were made while the ledger refused every record", n)
	}
	b.minISR(w.kafka, w.settings.TopicLedger, 2)
	goesOn("the ledger takes records again")
	b.do("restart", 3)
	goesOn("the last restart")

	ended = true
	n := feed.end()
	w.calls(n)
	w.reconnect()
	w.everyOrder(n)
	w.committed()
	stats := w.verify()
	// The order that was being packed at the end may be there.
	if stats.Repeats != 0 || stats.Calls < n || stats.Calls > n+1 || stats.Applied != stats.Calls {
		t.Errorf("%d calls, %d applied, %d repeats for %d orders", stats.Calls, stats.Applied, stats.Repeats, n)
	}
	w.identities()
	t.Logf("brokers: %d faults, %d orders, %d calls, %d repeats, %d violations", faults, n, stats.Calls, stats.Repeats, len(w.sim.Verify()))
}

// minISR sets how many replicas have to have a record of a topic.
func (b *brokers) minISR(k *Kafka, topic string, n int) {
	b.t.Helper()
	eventually(b.t, "min.insync.replicas set", func() bool {
		res, err := k.Client.IncrementalAlterConfigs(b.t.Context(), &kafka.IncrementalAlterConfigsRequest{
			Resources: []kafka.IncrementalAlterConfigsRequestResource{{
				ResourceType: kafka.ResourceTypeTopic, ResourceName: topic,
				Configs: []kafka.IncrementalAlterConfigsRequestConfig{{
					Name: "min.insync.replicas", Value: strconv.Itoa(n), ConfigOperation: kafka.ConfigOperationSet,
				}},
			}},
		})
		return err == nil && len(res.Resources) == 1 && res.Resources[0].Error == nil
	})
}
