package consumer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/schema"
)

// settledLog is what all replicas together have settled, and what was committed
// before it was.
type settledLog struct {
	mu      sync.Mutex
	settled []map[int64]int    // by partition: how often
	order   map[string][]int64 // by order: offsets as they were settled first
	early   []string           // commits that passed an unsettled record
	asked   []int64            // the highest commit of each partition
	commits int
}

// look checks a commit request on its way to the coordinator. Whether it will be
// accepted does not matter: nobody may even ask for more than is settled.
func (l *settledLog) look(r kmsg.Request) {
	req, ok := r.(*kmsg.OffsetCommitRequest)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commits++
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			for offset := l.asked[p.Partition]; offset < p.Offset; offset++ {
				if l.settled[p.Partition][offset] == 0 {
					l.early = append(l.early, fmt.Sprintf("%s passed by commit %d", at(int(p.Partition), offset), p.Offset))
				}
			}
			l.asked[p.Partition] = max(l.asked[p.Partition], p.Offset)
		}
	}
}

// TestSimulation runs replicas that are started, stopped, killed and cut off at
// random, over brokers that lose leaders and coordinators and answer with
// errors, with shops that are blocked and reopened. No commit may pass an
// unsettled record, everything must be settled in the end, and the records of an
// order in their order.
//
// PACKSHIP_TEST_ROUNDS sets the number of rounds, PACKSHIP_TEST_SEED the seed.
func TestSimulation(t *testing.T) {
	rounds, seed := 10, rand.Uint64()
	if testing.Short() {
		rounds = 2
	}
	if n, err := strconv.Atoi(os.Getenv("PACKSHIP_TEST_ROUNDS")); err == nil { //nolint:forbidigo // the size of a soak test
		rounds = n
	}
	if n, err := strconv.ParseUint(os.Getenv("PACKSHIP_TEST_SEED"), 10, 64); err == nil { //nolint:forbidigo // to repeat a failure
		seed = n
	}
	var total struct {
		records, again, kills, cuts, stops, moves, faults, commits int

		span time.Duration
	}
	for round := range rounds {
		inWorld(t, 3, func(w *world) {
			t := w.t
			const partitions, records = 3, 400
			rng := rand.New(rand.NewPCG(seed, uint64(round)))
			chaos := rand.New(rand.NewPCG(uint64(round), seed))
			var chaosMu sync.Mutex
			roll := func(n int) int {
				chaosMu.Lock()
				defer chaosMu.Unlock()
				return chaos.IntN(n)
			}
			l := &settledLog{order: make(map[string][]int64), asked: make([]int64, partitions)}
			for range partitions {
				l.settled = append(l.settled, make(map[int64]int))
			}
			w.cluster.ControlKey(int16(kmsg.OffsetCommit), func(r kmsg.Request) (kmsg.Response, error, bool) {
				w.cluster.KeepControl()
				l.look(r)
				return nil, nil, false
			})
			shops := new(blockingHandler) // for its blocks only
			newHandler := func() *blockingHandler {
				h := &blockingHandler{}
				h.work = func(ctx context.Context, g *Gate, rec *schema.Record, p *schema.Packed) error {
					for shops.isBlocked(p.ShopID) || !g.IsOpen() {
						if !sleep(ctx, 100*time.Millisecond) {
							return context.Cause(ctx)
						}
					}
					time.Sleep(time.Duration(roll(1500)) * time.Millisecond) // a call
					l.mu.Lock()
					defer l.mu.Unlock()
					l.settled[rec.Partition][rec.Offset]++
					if l.settled[rec.Partition][rec.Offset] == 1 {
						key := p.ShopID + "/" + p.TID
						l.order[key] = append(l.order[key], rec.Offset)
					}
					return nil
				}
				return h
			}
			names := 0
			newReplica := func() *replica {
				names++
				return w.start(fmt.Sprintf("r%d", names), &sharedBlocks{newHandler(), shops}, func(c *Config) {
					c.Window, c.Handover = 5+roll(60), time.Duration(roll(3))*time.Second
					// The fake broker, unlike a real one, starts its wait for
					// the members anew with every join. Two members whose
					// joins are cut off again and again could go on like that
					// for ever with a longer timeout.
					c.RebalanceTimeout = 2 * time.Second
				})
			}
			replicas := []*replica{newReplica(), newReplica()}
			begun := time.Now()
			var producing sync.WaitGroup
			producing.Go(func() {
				for n := 0; n < records; {
					for p := range partitions {
						var values []string
						for range min(1+rng.IntN(40), records-n) {
							values = append(values, event(fmt.Sprintf("shop%d", rng.IntN(3)), 1+partitions*rng.IntN(30)+p))
						}
						w.produce(p, values...)
						if p == 0 {
							n += len(values)
						}
					}
					time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
				}
			})
			for range 60 {
				time.Sleep(time.Duration(roll(3000)) * time.Millisecond)
				i := roll(len(replicas))
				switch roll(10) {
				case 0:
					replicas[i].kill()
					replicas[i] = newReplica()
					total.kills++
				case 1:
					replicas[i].net.cut(true)
					time.Sleep(time.Duration(roll(12000)) * time.Millisecond)
					replicas[i].net.heal()
					total.cuts++
				case 2:
					if err := replicas[i].stop(); err != nil {
						t.Error(err)
					}
					replicas[i] = newReplica()
					total.stops++
				case 3:
					w.cluster.RehashCoordinators()
					total.moves++
				case 4:
					w.cluster.ShufflePartitionLeaders()
					total.moves++
				case 5:
					w.cluster.Fault(kfakeFault(kmsg.OffsetCommit, []*kerr.Error{
						kerr.RequestTimedOut, kerr.IllegalGeneration, kerr.RebalanceInProgress, kerr.NotCoordinator,
					}[roll(4)], 1+roll(3)))
					total.faults++
				case 6:
					w.cluster.Fault(kfakeFault(kmsg.Fetch, []*kerr.Error{
						kerr.NotLeaderForPartition, kerr.OffsetOutOfRange, kerr.UnknownServerError,
					}[roll(3)], 1+roll(5)))
					total.faults++
				case 7:
					w.cluster.Fault(kfakeFault(kmsg.OffsetFetch, kerr.CoordinatorLoadInProgress, 1+roll(5)))
					total.faults++
				default:
					shop := fmt.Sprintf("shop%d", roll(3))
					if roll(2) == 0 {
						shops.block(shop)
					} else {
						shops.unblock(shop)
					}
				}
			}
			producing.Wait()
			for i := range 3 {
				shops.unblock(fmt.Sprintf("shop%d", i))
			}
			for p := range partitions {
				end := w.cluster.PartitionInfo(testTopic, int32(p)).HighWatermark
				for begun := time.Now(); w.committedAt(p) != end; time.Sleep(30 * time.Second) {
					if time.Since(begun) > 10*time.Minute {
						for _, r := range replicas {
							t.Logf("%+v\n%s", r.c.Status(), r.log)
						}
						t.Fatalf("seed %d round %d: partition %d is committed to %d of %d", seed, round, p, w.committedAt(p), end)
					}
					// The fake broker, unlike a real one, keeps a member whose
					// join could not be answered for ever, and that may be the
					// holder. It is dropped when another member joins.
					if r := newReplica(); r.stop() != nil {
						t.Error("a replica did not stop")
					}
				}
				total.records += int(end)
			}
			total.span += time.Since(begun)
			for _, r := range replicas {
				if err := r.stop(); err != nil {
					t.Error(err)
				}
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			total.commits += l.commits
			for _, e := range l.early {
				t.Error(e)
			}
			for p, settled := range l.settled {
				end := w.cluster.PartitionInfo(testTopic, int32(p)).HighWatermark
				for offset := range end {
					if settled[offset] == 0 {
						t.Errorf("record %s was never settled", at(p, offset))
					}
					total.again += settled[offset] - 1
				}
			}
			for key, offsets := range l.order {
				if !slices.IsSorted(offsets) {
					t.Errorf("order %s was settled as %v", key, offsets)
				}
			}
			if t.Failed() {
				t.Logf("seed %d round %d", seed, round)
			}
		})
		if t.Failed() {
			t.Fatalf("repeat with PACKSHIP_TEST_SEED=%d", seed)
		}
	}
	t.Logf("seed %d: %d rounds, %s of virtual time, %d records, %d settled again, %d kills, %d cuts, %d stops, %d moves, %d faults, %d commits",
		seed, rounds, total.span.Round(time.Second), total.records, total.again, total.kills, total.cuts, total.stops, total.moves, total.faults, total.commits)
}

// sharedBlocks is a handler whose shops are blocked for all replicas alike.
type sharedBlocks struct {
	*blockingHandler

	shops *blockingHandler
}

func (h *sharedBlocks) Blocked(p *schema.Packed) (<-chan struct{}, bool) { return h.shops.Blocked(p) }
