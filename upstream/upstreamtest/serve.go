package upstreamtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"
)

// Down is how an API is out of order.
type Down string

// The ways to be out of order.
const (
	Up Down = ""
	// Unavailable answers everything with HTTP status 503.
	Unavailable Down = "unavailable"
	// Refusing refuses connections. That is what Start does; with Serve or a
	// server of the caller's, connections are reset instead.
	Refusing Down = "refusing"
)

// Outage is a time for which the API is out of order, counted from the start of
// the simulator.
type Outage struct {
	From time.Duration `yaml:"from"`
	To   time.Duration `yaml:"to"`
	Mode Down          `yaml:"mode"`
}

func (o *Outage) validate() error {
	if o.From < 0 || o.To <= o.From {
		return errors.New("upstreamtest: an outage ends after it begins")
	}
	if o.Mode != Unavailable && o.Mode != Refusing {
		return fmt.Errorf("upstreamtest: the mode of an outage is %s or %s, not %q", Unavailable, Refusing, o.Mode)
	}
	return nil
}

// SetDown puts the API out of order, or back: Up ends the outages that are
// going on, too.
func (s *Simulator) SetDown(mode Down) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = mode
	if mode == Up {
		now := time.Since(s.started)
		s.opts.Outages = slices.DeleteFunc(s.opts.Outages, func(o Outage) bool { return o.From <= now && now < o.To })
	}
	s.announce()
}

// AddOutage adds an outage. It panics if it is not valid.
func (s *Simulator) AddOutage(o Outage) {
	if err := o.validate(); err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opts.Outages = append(s.opts.Outages, o)
	s.announce()
}

// announce wakes who waits for the API to go down or up. The caller holds mu.
func (s *Simulator) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Simulator) downNow() Down {
	down, _, _ := s.downUntil()
	return down
}

// downUntil returns the present mode, how long it lasts by the outages, 0 for
// ever, and a channel that is closed when it may change otherwise.
func (s *Simulator) downUntil() (mode Down, wait time.Duration, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mode = s.down
	now := time.Since(s.started)
	for _, o := range s.opts.Outages {
		for _, at := range []time.Duration{o.From, o.To} {
			if at > now && (wait == 0 || at-now < wait) {
				wait = at - now
			}
		}
		if o.From <= now && now < o.To && mode != Refusing {
			mode = o.Mode
		}
	}
	return mode, wait, s.changed
}

// await blocks until the API is refusing, or not. It returns false if the
// simulator is closed first.
func (s *Simulator) await(refusing bool) bool {
	for {
		mode, wait, changed := s.downUntil()
		if (mode == Refusing) == refusing {
			return true
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-s.closing:
			return false
		case <-changed:
		case <-timer:
		}
	}
}

// server returns a server of the API.
func (s *Simulator) server() *http.Server {
	return &http.Server{
		Handler:           s,
		ConnContext:       s.ConnContext,
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       s.opts.IdleTimeout,
		// What clients do wrong is in the journal.
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
}

// Serve answers the connections of a listener until the simulator is closed,
// then it returns nil. It closes the listener.
func (s *Simulator) Serve(ln net.Listener) error {
	if !s.enter() {
		return ln.Close()
	}
	defer s.handlers.Done()
	srv := s.server()
	s.lifeMu.Lock()
	s.servers = append(s.servers, srv)
	if s.closed {
		// A closed server returns at once, and closes the listener.
		_ = srv.Close()
	}
	s.lifeMu.Unlock()
	if err := srv.Serve(s.Listener(ln)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("upstreamtest: serve: %w", err)
	}
	return nil
}

// Start listens on a TCP address, such as 127.0.0.1:0, answers until the
// simulator is closed, and returns the base URL. While the API is refusing,
// nothing listens there.
func (s *Simulator) Start(addr string) (url string, err error) {
	var lc net.ListenConfig
	at, err := s.StartFunc(func() (net.Listener, error) {
		ln, err := lc.Listen(context.Background(), "tcp", addr)
		if err == nil {
			addr = ln.Addr().String() // the port stays the same after an outage
		}
		return ln, err
	})
	if err != nil {
		return "", err
	}
	return "http://" + at.String(), nil
}

// StartFunc is Start for another kind of network. It listens at once by the
// given function, and once more after each time that the API was refusing; such
// calls do not overlap.
func (s *Simulator) StartFunc(listen func() (net.Listener, error)) (net.Addr, error) {
	ln, err := listen()
	if err != nil {
		return nil, fmt.Errorf("upstreamtest: listen: %w", err)
	}
	if !s.enter() {
		_ = ln.Close()
		return nil, errors.New("upstreamtest: the simulator is closed")
	}
	at := ln.Addr()
	go func() {
		defer s.handlers.Done()
		s.keep(ln, listen)
	}()
	return at, nil
}

// keep serves until the simulator is closed, with breaks.
func (s *Simulator) keep(ln net.Listener, listen func() (net.Listener, error)) {
	for {
		srv, served := s.server(), make(chan struct{})
		go func() {
			defer close(served)
			_ = srv.Serve(s.Listener(ln)) // ends when srv is closed
		}()
		open := s.await(true)
		_ = srv.Close() // fails only if the listener is gone
		<-served
		if !open || !s.await(false) {
			return
		}
		var err error
		for ln, err = listen(); err != nil; ln, err = listen() {
			// Somebody else may have the address for a moment.
			if !s.sleep(50 * time.Millisecond) {
				return
			}
		}
	}
}
