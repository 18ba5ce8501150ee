package upstreamtest_test

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"packship/upstream/upstreamtest"
)

func TestServe(t *testing.T) {
	sim := upstreamtest.New(upstreamtest.Options{AutoCreate: true})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- sim.Serve(ln) }()
	got, err := call(t, ln.Addr().String(), order("S", "1"))
	if err != nil {
		t.Fatal(err)
	}
	wantRow(t, got, 1)
	// A server that does not own its listener resets while the API refuses.
	sim.SetDown(upstreamtest.Refusing)
	if got, err := call(t, ln.Addr().String(), order("S", "1")); err == nil {
		t.Errorf("got %s", got.Body)
	}
	sim.SetDown(upstreamtest.Up)
	if _, err := call(t, ln.Addr().String(), order("S", "1")); err != nil {
		t.Error(err)
	}
	if err := sim.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve returned %v", err)
	}
	// What comes too late is closed.
	ln, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := sim.Serve(ln); err != nil {
		t.Errorf("after Close: %v", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
	if _, err := sim.Start("127.0.0.1:0"); err == nil {
		t.Error("Start works after Close")
	}
}

func TestServeReportsABrokenListener(t *testing.T) {
	sim := open(t, upstreamtest.Options{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if err := sim.Serve(ln); err == nil {
		t.Error("no error")
	}
	if _, err := sim.Start("127.0.0.1:bad"); err == nil {
		t.Error("Start listens on a bad address")
	}
}

// TestStartRefuses: connections are refused, not reset, and the address is the
// same afterwards.
func TestStartRefuses(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true})
	addr := start(t, sim)
	idle := dial(t, addr)
	sim.SetDown(upstreamtest.Refusing)
	// The server closes the connections that it has: then nothing listens.
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is alive")
	}
	for {
		conn, err := net.Dial("tcp", addr)
		if errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
		if err == nil {
			_ = conn.Close() // accepted before the listener was closed
		}
	}
	sim.SetDown(upstreamtest.Up)
	for {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
			break
		}
		time.Sleep(time.Millisecond)
	}
	got, err := call(t, addr, order("S", "1"))
	if err != nil {
		t.Fatal(err)
	}
	wantRow(t, got, 1)
}

// TestOwnServer uses a server of the caller's, with TLS, and arrival times of
// the wire.
func TestOwnServer(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true})
	pair := httptest.NewUnstartedServer(nil)
	pair.StartTLS() // for its certificate
	defer pair.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: sim, ConnContext: sim.ConnContext, ReadHeaderTimeout: time.Minute}
	served := make(chan error)
	go func() {
		served <- srv.Serve(sim.Listener(tls.NewListener(ln, &tls.Config{Certificates: pair.TLS.Certificates, MinVersion: tls.VersionTLS12})))
	}()
	client := pair.Client()
	for i := range 3 {
		r := order("S", "10"+string(rune('0'+i))).request(upstreamtest.SendPath)
		r.URL.Scheme, r.URL.Host, r.RequestURI = "https", ln.Addr().String(), ""
		before := time.Now()
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		wantRow(t, parse(t, res), 1)
		_ = res.Body.Close()
		calls := sim.Journal().Calls()
		if e := calls[len(calls)-1]; e.Arrived.Before(before) {
			t.Errorf("request %d arrived before it was sent", i)
		}
	}
	client.CloseIdleConnections()
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

// TestHandlerWithoutHijack: where a connection cannot be taken over, the
// request is aborted as net/http does it.
func TestHandlerWithoutHijack(t *testing.T) {
	for _, kind := range []upstreamtest.FaultKind{upstreamtest.ResetBeforeRead, upstreamtest.CutOff, upstreamtest.ApplyThenReset} {
		sim := open(t, upstreamtest.Options{AutoCreate: true})
		sim.AddFault(upstreamtest.Fault{Kind: kind})
		func() {
			defer func() {
				if err, _ := recover().(error); !errors.Is(err, http.ErrAbortHandler) {
					t.Errorf("%s: recovered %v", kind, err)
				}
			}()
			send(t, sim, order("S", "1"))
		}()
	}
}

func TestNewPanicsOnBadOptions(t *testing.T) {
	defer func() {
		if err, ok := recover().(error); !ok || !strings.Contains(err.Error(), "price") {
			t.Errorf("recovered %v", err)
		}
	}()
	upstreamtest.New(upstreamtest.Options{Price: -1})
}

func TestIdleTimeout(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true, IdleTimeout: time.Millisecond})
	addr := start(t, sim)
	conn := dial(t, addr)
	write(t, conn, order("S", "1"))
	wait(t, sim, func(s upstreamtest.Stats) bool { return s.Applied == 1 })
	// The answer comes, then the end of the connection.
	buf, n := make([]byte, 4096), 0
	for {
		k, err := conn.Read(buf[n:])
		n += k
		if err != nil {
			break
		}
	}
	if !strings.Contains(string(buf[:n]), `"success":true`) {
		t.Errorf("got %s", buf[:n])
	}
}
