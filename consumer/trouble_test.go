package consumer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/segmentio/kafka-go"
)

func TestTroubleLogsChanges(t *testing.T) {
	book := new(logBook)
	tr := trouble{log: slog.New(book), what: "fetch"}
	tr.over() // nothing was wrong
	for range 100 {
		tr.note(kafka.NotLeaderForPartition)
	}
	for range 100 {
		tr.note(fmt.Errorf("fetch: %w", io.ErrUnexpectedEOF))
	}
	tr.over()
	tr.over()
	tr.note(io.EOF)
	if n := book.count("WARN kafka request failed", "request=fetch"); n != 3 {
		t.Errorf("%d warnings, want 3:\n%s", n, book)
	}
	if n := book.count("INFO kafka request succeeded again", "tries=200"); n != 1 {
		t.Errorf("%d lines about the recovery, want 1:\n%s", n, book)
	}
}

func TestTroublePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := trouble{log: slog.New(slog.DiscardHandler)}
		var pauses []time.Duration
		for range 8 {
			at := time.Now()
			if !tr.pause(t.Context()) {
				t.Fatal("pause was cut short")
			}
			pauses = append(pauses, time.Since(at)/time.Millisecond)
			tr.note(io.EOF)
		}
		if got, want := fmt.Sprint(pauses), "[50ns 100ns 200ns 400ns 800ns 1µs 1µs 1µs]"; got != want {
			t.Errorf("pauses in ms: %s, want %s", got, want)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if tr.pause(ctx) {
			t.Error("pause does not heed the context")
		}
	})
}

func TestErrorKind(t *testing.T) {
	refused := func(port int) error {
		return &net.OpError{
			Op: "dial", Net: "tcp", Addr: &net.TCPAddr{Port: 9092}, Source: &net.TCPAddr{Port: port},
			Err: os.NewSyscallError("connect", syscall.ECONNREFUSED),
		}
	}
	if a, b := errorKind(refused(40001)), errorKind(refused(40002)); a != b {
		t.Errorf("two refused connections differ: %q and %q", a, b)
	}
	unresolved := func(port int) error { // as the resolver says that it was not answered
		return &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{
			Name: "kafka", Server: "10.0.0.1:53", IsTimeout: true,
			Err: fmt.Sprintf("read udp 10.0.0.2:%d->10.0.0.1:53: i/o timeout", port),
		}}
	}
	if a, b := errorKind(unresolved(40001)), errorKind(unresolved(40002)); a != b {
		t.Errorf("two names that were not looked up differ: %q and %q", a, b)
	}
	unknown := &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Name: "kafka", Err: "no such host", IsNotFound: true}}
	kinds := make(map[string]error)
	for _, err := range []error{
		refused(1), unresolved(1), unknown, kafka.NotLeaderForPartition, kafka.UnknownTopicOrPartition, context.DeadlineExceeded, io.EOF, errors.New("other"),
	} {
		k := errorKind(fmt.Errorf("wrapped: %w", err))
		if kinds[k] != nil {
			t.Errorf("%v and %v are of one kind, %q", kinds[k], err, k)
		}
		kinds[k] = err
	}
}
