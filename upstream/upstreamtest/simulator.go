package upstreamtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Simulator is the simulated shipping API: an [http.Handler] with the state of
// a vendor and a platform behind it. Make one with [New], and close it. It is
// safe for concurrent use.
type Simulator struct {
	journal *Journal
	faults  *faults
	control http.Handler // nil if turned off
	started time.Time
	closing chan struct{} // closed by Close

	// lifeMu guards closed, and that no handler starts after Close has begun
	// to wait for them.
	lifeMu   sync.Mutex
	closed   bool
	handlers sync.WaitGroup
	servers  []*http.Server // of Serve

	// mu guards everything below. It is never held over a wait.
	mu       sync.Mutex
	opts     Options // what Dump cannot take from the state
	world    *world
	limiters map[limiterKey]*limiter
	bans     map[string]time.Time // account to the end of its flow control
	turns    map[string]int       // rotations of answers, by what is rotated
	tokens   int                  // made so far
	offset   time.Duration        // by which the clock has been advanced
	down     Down
	changed  chan struct{} // closed when down or the outages change
}

type limiterKey struct {
	endpoint endpoint
	who      string
}

// New returns a simulated API. It panics if the options are not valid; see
// [Options.Validate].
func New(opts Options) *Simulator {
	if err := opts.Validate(); err != nil {
		panic(err)
	}
	s := &Simulator{
		journal: newJournal(opts.JournalLimit),
		faults:  &faults{seed: opts.Seed},
		started: time.Now(),
		closing: make(chan struct{}),
		opts:    opts, world: newWorld(),
		limiters: map[limiterKey]*limiter{}, bans: map[string]time.Time{}, turns: map[string]int{},
		changed: make(chan struct{}),
	}
	carriers := opts.Carriers
	if carriers == nil {
		carriers = partners
	}
	for _, c := range carriers {
		s.AddCarrier(c)
	}
	for _, a := range opts.Accounts {
		s.AddAccount(a)
	}
	for _, shop := range opts.Shops {
		s.AddShop(shop)
	}
	for _, t := range opts.Trades {
		s.AddTrade(t)
	}
	for _, b := range opts.Waybills {
		s.AddWaybill(b)
	}
	for _, f := range opts.Faults {
		s.AddFault(f)
	}
	for _, sc := range opts.Scripts {
		s.AddScript(sc)
	}
	s.opts.Outages = slices.Clone(opts.Outages)
	if !opts.NoControl {
		s.control = http.StripPrefix(controlPrefix, s.ControlHandler())
	}
	return s
}

// Journal returns the journal of all requests.
func (s *Simulator) Journal() *Journal { return s.journal }

// Stats returns the counters of the journal.
func (s *Simulator) Stats() Stats { return s.journal.Stats() }

// Verify returns what callers have done that they must never do, as far as the
// API can tell: the rate exceeded (if there is a limit), an order shipped
// twice, an Idempotency-Key header, the cookies of the sample, a redirect
// followed. An empty result is a clean run.
func (s *Simulator) Verify() []Violation {
	s.mu.Lock()
	limit := s.opts.Rate.PerSecond
	s.mu.Unlock()
	return s.journal.verify(limit)
}

// Close ends all requests that are going on, without an answer, and the servers
// of Serve and Start, and waits for them. Later requests get no answer.
func (s *Simulator) Close() error {
	s.lifeMu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	servers := s.servers
	s.lifeMu.Unlock()
	for _, srv := range servers {
		// Close fails only for a listener that is closed already.
		_ = srv.Close()
	}
	s.handlers.Wait()
	return nil
}

// enter counts a handler or a server in and reports whether it may go on.
func (s *Simulator) enter() bool {
	s.lifeMu.Lock()
	defer s.lifeMu.Unlock()
	if s.closed {
		return false
	}
	s.handlers.Add(1)
	return true
}

// Now returns the time by the API's clock, see [Simulator.Advance].
func (s *Simulator) Now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now()
}

// now is the time by the API's clock. The caller holds mu.
func (s *Simulator) now() time.Time { return time.Now().Add(s.offset) }

// ServeHTTP answers a request.
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	stamped, _ := r.Context().Value(stampKey{}).(*stampedConn)
	if stamped != nil {
		if t := stamped.arrival(); !t.IsZero() {
			arrived = t
		}
	}
	if !s.enter() {
		abort(w)
		return
	}
	defer s.handlers.Done()
	if s.control != nil && strings.HasPrefix(r.URL.Path, controlPrefix+"/") {
		s.control.ServeHTTP(w, r)
		return
	}
	c := s.newCall(w, r, arrived)
	s.journal.begin(c.entry)
	// The caller may go away at any time; from then on it makes no demands.
	stop := context.AfterFunc(r.Context(), func() { s.journal.done(c.entry, false) })
	c.serve(stamped)
	stop()
	s.journal.done(c.entry, false)
}

// maxBody is how much of a request is read.
const maxBody = 1 << 20

// readBody reads a request to its end, so that the next byte of the connection
// belongs to the next one.
func readBody(r *http.Request, stamped *stampedConn) ([]byte, error) {
	var body []byte
	var err error
	if n := r.ContentLength; n > 0 && n <= maxBody {
		body = make([]byte, n)
		if _, err = io.ReadFull(r.Body, body); err == nil {
			_, err = r.Body.Read(make([]byte, 1))
		}
	} else {
		body, err = io.ReadAll(io.LimitReader(r.Body, maxBody))
	}
	if stamped != nil {
		stamped.arm()
	}
	if err != nil && err != io.EOF { //nolint:errorlint // a body returns it bare
		return nil, fmt.Errorf("upstreamtest: read the request: %w", err)
	}
	return body, nil
}

// abort breaks the connection of a request.
func abort(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		// The server knows this value and closes the connection quietly.
		panic(http.ErrAbortHandler)
	}
	reset(conn)
}

// sleep waits and reports whether it was for the whole time: Close cuts it off.
func (s *Simulator) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.closing:
		return false
	}
}

// newToken makes an access token that looks like the vendor's. The caller holds
// mu.
func (s *Simulator) newToken(account string) string {
	s.tokens++
	sum := sha256.Sum256(fmt.Appendf(nil, "%d/%s/%d", s.opts.Seed, account, s.tokens))
	return hex.EncodeToString(sum[:20])
}

// turn returns the next of several answers that take turns. The caller holds mu.
func (s *Simulator) turn(what string, of []int) int {
	n := s.turns[what]
	s.turns[what] = n + 1
	return of[n%len(of)]
}
