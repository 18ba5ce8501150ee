package app

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/schema"
)

// simHistory is what the brokers of a simulation have seen beyond what stands in
// their logs: when each record was appended and by whom, and every commit.
type simHistory struct {
	start time.Time

	mu      sync.Mutex
	appends map[simPartition][]simAppend   // by offset, since they come in its order
	orphans map[simPartition][]*simRequest // produce requests that were never answered
	commits []simCommit
	faults  []simFaultLine
	hangs   []*simHang
}

// simHang makes brokers not answer requests.
type simHang struct {
	key   kmsg.Key
	deaf  bool // the requests are not even looked at
	left  int
	count int // how many it has hit
}

// hang leaves some requests without an answer. The function ends that and
// returns how many it has hit.
func (h *simHistory) hang(key kmsg.Key, deaf bool, n int) (end func() int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := &simHang{key: key, deaf: deaf, left: n}
	h.hangs = append(h.hangs, f)
	return func() int {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.hangs = slices.DeleteFunc(h.hangs, func(g *simHang) bool { return g == f })
		return f.count
	}
}

// hangs reports whether a request is to be left without an answer, and whether
// it is not to be looked at.
func (h *simHistory) hanging(key int16, client string) (hang, deaf bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.hangs {
		if int16(f.key) == key && f.left > 0 && client != simTestClient {
			f.left--
			f.count++
			return true, f.deaf
		}
	}
	return false, false
}

type simPartition struct {
	topic     string
	partition int32
}

// simAppend is one batch that came into a log.
type simAppend struct {
	base   int64
	n      int64
	at     time.Time
	client string
}

// simCommit is one partition of an offset commit.
type simCommit struct {
	at         time.Time // of the request
	client     string
	group      string
	member     string
	generation int32
	partition  int32
	offset     int64
	answered   bool
	code       int16
	era        int // counts the times that an operator moved the group
}

// accepted reports whether the commit took effect, as far as its answer tells.
func (c *simCommit) accepted() bool {
	return c.answered && (c.code == 0 || c.code == kerr.RequestTimedOut.Code)
}

// simFaultLine is one line of the fault log.
type simFaultLine struct {
	at   time.Time
	text string
}

func newSimHistory() *simHistory {
	return &simHistory{start: time.Now(), appends: map[simPartition][]simAppend{}, orphans: map[simPartition][]*simRequest{}}
}

// since writes a time as the time since the beginning of the simulation.
func (h *simHistory) since(t time.Time) string {
	d := t.Sub(h.start)
	return fmt.Sprintf("%02d:%02d:%06.3f", int(d.Hours()), int(d.Minutes())%60, (d % time.Minute).Seconds())
}

// note adds a line to the fault log.
func (h *simHistory) note(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = append(h.faults, simFaultLine{time.Now(), fmt.Sprintf(format, args...)})
}

// faultLog returns the fault log between two times.
func (h *simHistory) faultLog(from, to time.Time) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	for _, l := range h.faults {
		if !l.at.Before(from) && !l.at.After(to) {
			fmt.Fprintf(&b, "  %s %s\n", h.since(l.at), l.text)
		}
	}
	return b.String()
}

// appended returns when a record came into its log and whose it is. Where the
// answer never left the broker it goes by the request.
func (h *simHistory) appended(topic string, r *schema.Record) (time.Time, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := simPartition{topic, int32(r.Partition)}
	list := h.appends[p]
	i, found := slices.BinarySearchFunc(list, r.Offset, func(a simAppend, offset int64) int {
		switch {
		case a.base+a.n <= offset:
			return -1
		case a.base > offset:
			return 1
		default:
			return 0
		}
	})
	if found {
		return list[i].at, list[i].client
	}
	before := h.start
	if i > 0 {
		before = list[i-1].at
	}
	for _, o := range h.orphans[p] {
		produce, ok := o.request.(*kmsg.ProduceRequest)
		if ok && !o.at.Before(before) && bytes.Contains(batchIn(produce, topic, p.partition), r.Value) {
			return o.at, o.client
		}
	}
	return before, ""
}

// listen returns a listen function for brokers whose connections are watched.
func (h *simHistory) listen(listen func(network, addr string) (net.Listener, error), era func() int) func(network, addr string) (net.Listener, error) {
	return func(network, addr string) (net.Listener, error) {
		ln, err := listen(network, addr)
		if err != nil {
			return nil, err
		}
		return &simTapListener{Listener: ln, history: h, era: era}, nil
	}
}

type simTapListener struct {
	net.Listener

	history *simHistory
	era     func() int
}

func (l *simTapListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &simTap{Conn: conn, history: l.history, era: l.era, pending: map[int32]*simRequest{}}, nil
}

// simTap is a broker's end of a connection that notes appends and commits as
// they go by, and leaves requests without an answer.
type simTap struct {
	net.Conn

	history *simHistory
	era     func() int

	in  []byte // of requests, the beginning of a frame
	out []byte // frames for the broker

	mu      sync.Mutex
	pending map[int32]*simRequest // by correlation id
	mute    map[int32]bool        // not to be answered, by correlation id
	stuck   bool                  // a request was left without an answer
}

type simRequest struct {
	at      time.Time
	client  string
	request kmsg.Request
	commits []int // where they stand in the history
}

func (c *simTap) Read(p []byte) (int, error) {
	buf := make([]byte, 4096)
	for len(c.out) == 0 {
		n, err := c.Conn.Read(buf)
		c.in = append(c.in, buf[:n]...)
		for len(c.in) >= 4 {
			size := 4 + int(binary.BigEndian.Uint32(c.in))
			if len(c.in) < size {
				break
			}
			if c.asked(c.in[4:size]) {
				c.out = append(c.out, c.in[:size]...)
			}
			c.in = c.in[size:]
		}
		if err != nil && len(c.out) == 0 {
			return 0, err
		}
	}
	n := copy(p, c.out)
	if c.out = c.out[n:]; len(c.out) == 0 {
		c.out = nil
	}
	return n, nil
}

// asked notes a request, and reports whether the broker is to see it.
func (c *simTap) asked(frame []byte) bool {
	r := kbin.Reader{Src: frame}
	key, version, correlation := r.Int16(), r.Int16(), r.Int32()
	name := r.NullableString()
	client := ""
	if name != nil {
		client = *name
	}
	hang, deaf := c.history.hanging(key, client)
	c.mu.Lock()
	stuck := c.stuck
	if hang {
		c.stuck = true
		if c.mute == nil {
			c.mute = map[int32]bool{}
		}
		c.mute[correlation] = true
	}
	c.mu.Unlock()
	if stuck {
		// Nobody must wait behind somebody who waits: see simConn.Write.
		_ = c.Close()
		return false
	}
	if deaf {
		return false
	}
	if key != int16(kmsg.Produce) && key != int16(kmsg.OffsetCommit) {
		return true
	}
	request := kmsg.RequestForKey(key)
	request.SetVersion(version)
	if request.IsFlexible() {
		kmsg.SkipTags(&r)
	}
	if request.ReadFrom(r.Src) != nil {
		return true // the broker will say so
	}
	p := &simRequest{at: time.Now(), client: client, request: request}
	if commit, ok := request.(*kmsg.OffsetCommitRequest); ok {
		p.commits = c.history.committing(commit, p, c.era())
	}
	c.history.producing(p, true)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending[correlation] = p
	return true
}

// producing notes that a produce request was made, or answered.
func (h *simHistory) producing(p *simRequest, begun bool) {
	produce, ok := p.request.(*kmsg.ProduceRequest)
	if !ok {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range produce.Topics {
		for _, tp := range t.Partitions {
			k := simPartition{t.Topic, tp.Partition}
			if begun {
				h.orphans[k] = append(h.orphans[k], p)
			} else {
				h.orphans[k] = slices.DeleteFunc(h.orphans[k], func(o *simRequest) bool { return o == p })
			}
		}
	}
}

// committing notes that a commit was asked for.
func (h *simHistory) committing(commit *kmsg.OffsetCommitRequest, p *simRequest, era int) []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	var places []int
	for _, t := range commit.Topics {
		for _, tp := range t.Partitions {
			places = append(places, len(h.commits))
			h.commits = append(h.commits, simCommit{
				at: p.at, client: p.client, group: commit.Group, member: commit.MemberID, generation: commit.Generation,
				partition: tp.Partition, offset: tp.Offset, era: era,
			})
		}
	}
	return places
}

// Write notes an answer. The broker writes each in one piece.
func (c *simTap) Write(b []byte) (int, error) {
	if len(b) >= 8 {
		correlation := int32(binary.BigEndian.Uint32(b[4:]))
		c.mu.Lock()
		p, ok := c.pending[correlation]
		delete(c.pending, correlation)
		mute := c.mute[correlation]
		c.mu.Unlock()
		if ok {
			c.history.producing(p, false)
			c.answered(p, b[8:])
		}
		if mute {
			return len(b), nil
		}
	}
	return c.Conn.Write(b)
}

func (c *simTap) answered(p *simRequest, body []byte) {
	response := p.request.ResponseKind()
	response.SetVersion(p.request.GetVersion())
	if response.IsFlexible() && len(body) > 0 {
		body = body[1:]
	}
	if response.ReadFrom(body) != nil {
		return
	}
	h := c.history
	h.mu.Lock()
	defer h.mu.Unlock()
	switch response := response.(type) {
	case *kmsg.ProduceResponse:
		produce, _ := p.request.(*kmsg.ProduceRequest)
		for _, t := range response.Topics {
			for _, tp := range t.Partitions {
				switch tp.ErrorCode {
				case 0, kerr.RequestTimedOut.Code, kerr.NotEnoughReplicasAfterAppend.Code:
					h.appendedLocked(p, simPartition{t.Topic, tp.Partition}, tp.BaseOffset, recordsIn(produce, t.Topic, tp.Partition))
				}
			}
		}
	case *kmsg.OffsetCommitResponse:
		for _, t := range response.Topics {
			for _, tp := range t.Partitions {
				for _, i := range p.commits {
					if commit := &h.commits[i]; commit.partition == tp.Partition {
						commit.answered, commit.code = true, tp.ErrorCode
					}
				}
			}
		}
	}
}

func (h *simHistory) appendedLocked(p *simRequest, at simPartition, base, n int64) {
	list := h.appends[at]
	a := simAppend{base: base, n: n, at: time.Now(), client: p.client}
	i, found := slices.BinarySearchFunc(list, base, func(a simAppend, base int64) int { return int(a.base - base) })
	if !found {
		h.appends[at] = slices.Insert(list, i, a)
	}
}

// recordsIn returns how many records a produce request has for a partition.
func recordsIn(produce *kmsg.ProduceRequest, topic string, partition int32) int64 {
	const countAt = 57 // in a batch of the second format
	if b := batchIn(produce, topic, partition); len(b) >= countAt+4 {
		return int64(binary.BigEndian.Uint32(b[countAt:]))
	}
	return 1
}

// batchIn returns the batch that a produce request has for a partition.
func batchIn(produce *kmsg.ProduceRequest, topic string, partition int32) []byte {
	for _, t := range produce.Topics {
		for _, p := range t.Partitions {
			if t.Topic == topic && p.Partition == partition {
				return p.Records
			}
		}
	}
	return nil
}
