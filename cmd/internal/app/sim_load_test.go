package app

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"

	"packship/upstream/upstreamtest"
)

// simLoad packs orders: bursts of them with idle time between. What it packs is
// fixed by the seed.
type simLoad struct {
	s   *simulation
	rng *rand.Rand

	orders  int
	pending []simPacked // by time
}

// simPacked is a record that is to be packed at a time, after something has been
// done to the order at the API.
type simPacked struct {
	at     time.Time
	key    []byte
	value  []byte
	lane   int // the partition
	before func()
}

func newSimLoad(s *simulation) *simLoad {
	return &simLoad{s: s, rng: rand.New(rand.NewPCG(s.seed, 'o'))}
}

// run packs orders until the quiet begins, and then at once what is left.
func (l *simLoad) run() {
	burst := time.Now().Add(between(l.rng, 0, 5*time.Second))
	for {
		next := burst
		if len(l.pending) > 0 && l.pending[0].at.Before(next) {
			next = l.pending[0].at
		}
		select {
		case <-l.s.quiet:
			l.send(len(l.pending))
			return
		case <-time.After(time.Until(next)):
		}
		now := time.Now()
		if !burst.After(now) {
			over := between(l.rng, 0, 10*time.Second)
			for range 1 + l.rng.IntN(l.s.profile.burst) {
				l.pack(now.Add(between(l.rng, 0, over)))
			}
			burst = now.Add(around(l.rng, l.s.profile.idle))
		}
		due, _ := slices.BinarySearchFunc(l.pending, now, func(p simPacked, now time.Time) int {
			if p.at.After(now) {
				return 1
			}
			return -1
		})
		l.send(due)
	}
}

// backlog packs plain orders all at once.
func (l *simLoad) backlog(n int) {
	for range n {
		tid := l.tid()
		l.plan(time.Now(), tid, l.event(tid, l.shop(), nil), nil)
	}
	l.send(len(l.pending))
}

// send appends the first n records that are pending.
func (l *simLoad) send(n int) {
	batches := make([][]kafka.Record, simPackedPartitions)
	for _, p := range l.pending[:n] {
		if p.before != nil {
			p.before()
		}
		r := kafka.Record{Value: kafka.NewBytes(p.value), Time: time.Now()}
		if p.key != nil {
			r.Key = kafka.NewBytes(p.key)
		}
		batches[p.lane] = append(batches[p.lane], r)
	}
	l.pending = slices.Delete(l.pending, 0, n)
	for lane, batch := range batches {
		for len(batch) > 0 && !l.append(lane, batch) {
			time.Sleep(300 * time.Millisecond)
			for i := range batch {
				batch[i].Time = time.Now()
				rewind(batch[i].Key)
				rewind(batch[i].Value)
			}
		}
	}
}

// rewind lets bytes be read again that a request may have read.
func rewind(b kafka.Bytes) {
	if s, ok := b.(interface {
		Seek(offset int64, whence int) (int64, error)
	}); ok {
		_, _ = s.Seek(0, 0)
	}
}

// append makes one try to append a batch. If it fails the records may be there
// all the same; then they will be there twice, as with any producer.
func (l *simLoad) append(lane int, batch []kafka.Record) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	res, err := l.s.kafka.Client.Produce(ctx, &kafka.ProduceRequest{
		Topic: l.s.settings.TopicPacked, Partition: lane, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(batch...),
	})
	return err == nil && res.Error == nil
}

func (l *simLoad) tid() string {
	l.orders++
	return strconv.FormatUint(1_000_000*(l.s.seed%1_000_000_000)+uint64(l.orders), 10)
}

func (l *simLoad) shop() string { return "shop-" + strconv.Itoa(1+l.rng.IntN(5)) }

// event returns a packed event, with changes.
func (l *simLoad) event(tid, shop string, change map[string]any) []byte {
	e := map[string]any{
		"event_id": fmt.Sprintf("e-%s-%06x", tid, l.rng.IntN(1<<24)), "shop_id": shop, "tid": tid,
		"out_sid": l.waybill(), "company_code": "SF",
	}
	maps.Copy(e, change)
	value, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	return value
}

func (l *simLoad) waybill() string { return fmt.Sprintf("SF%013d", l.rng.Int64N(1e13)) }

// plan puts a record into the line. Records of one order go to one partition.
func (l *simLoad) plan(at time.Time, tid string, value []byte, before func()) {
	n, _ := strconv.Atoi(tid)
	l.planIn(n%simPackedPartitions, at, tid, value, before)
}

func (l *simLoad) planIn(lane int, at time.Time, tid string, value []byte, before func()) {
	p := simPacked{at: at, key: []byte(tid), value: value, lane: lane, before: before}
	if tid == "" {
		p.key = nil
	}
	i, _ := slices.BinarySearchFunc(l.pending, at, func(p simPacked, at time.Time) int {
		if p.at.After(at) {
			return 1
		}
		return -1
	})
	l.pending = slices.Insert(l.pending, i, p)
}

// pack plans all events of one order.
func (l *simLoad) pack(at time.Time) {
	r, tid, shop, api := l.rng, l.tid(), l.shop(), l.s.api
	later := func() time.Time { return at.Add(around(r, pick(r, 2*time.Second, 20*time.Second, 3*time.Minute))) }
	switch n := r.IntN(100); {
	case n < 48: // as it should be
		l.plan(at, tid, l.event(tid, shop, nil), nil)
	case n < 58: // the same event again and again
		value := l.event(tid, shop, nil)
		l.plan(at, tid, value, nil)
		for range 1 + r.IntN(3) {
			if r.IntN(4) == 0 {
				l.planIn(r.IntN(simPackedPartitions), later(), tid, value, nil)
				continue
			}
			l.plan(later(), tid, value, nil)
		}
	case n < 67: // the same shipment packed again
		same := map[string]any{"out_sid": l.waybill()}
		for range 2 + r.IntN(2) {
			if value := l.event(tid, shop, same); r.IntN(4) == 0 {
				l.planIn(r.IntN(simPackedPartitions), at, tid, value, nil)
			} else {
				l.plan(at, tid, value, nil)
			}
			if r.IntN(3) > 0 {
				at = later()
			}
		}
	case n < 72: // packed again under another waybill number
		l.plan(at, tid, l.event(tid, shop, nil), nil)
		l.plan(later(), tid, l.event(tid, shop, nil), nil)
	case n < 81: // parcels
		for i := range 2 + r.IntN(2) {
			l.plan(at, tid, l.event(tid, shop, map[string]any{"is_split": 1, "sub_tid": fmt.Sprintf("%s%d1,%s%d2", tid, i, tid, i)}), nil)
			if r.IntN(2) == 0 {
				at = later()
			}
		}
	case n < 85: // what breaks a rule, and then does not
		l.plan(at, tid, l.event(tid, shop, pick(r, map[string]any{"out_sid": ""}, map[string]any{"company_code": "NOPE"}, map[string]any{"is_split": 1})), nil)
		if r.IntN(2) == 0 {
			l.plan(later(), tid, l.event(tid, shop, nil), nil)
		}
	case n < 88: // no event at all
		l.planIn(r.IntN(simPackedPartitions), at, "", []byte(pick(r, "not json", "", "[1]", `{"tid":"12"}`, `{"shop_id":"a"}`, "\xff", "null")), nil)
	case n < 95: // refused by the platform for good
		api.AddTrade(upstreamtest.Trade{Shop: shop, TID: tid, Status: upstreamtest.Closed})
		value := l.event(tid, shop, nil)
		l.plan(at, tid, value, nil)
		if r.IntN(2) == 0 {
			l.plan(later(), tid, value, nil)
		}
	default: // refused until somebody has repaired it
		api.AddTrade(upstreamtest.Trade{Shop: shop, TID: tid, Status: upstreamtest.ForbidConsign})
		same := map[string]any{"out_sid": l.waybill()}
		l.plan(at, tid, l.event(tid, shop, same), nil)
		l.plan(later(), tid, l.event(tid, shop, same), func() { _ = api.Release(shop, tid) })
		l.plan(later().Add(3*time.Minute), tid, l.event(tid, shop, same), nil)
	}
}
