package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
)

// The requests that a trouble is about, in its lines and as metric labels.
const (
	requestFetch      = "fetch"
	requestRecall     = "fetch from the shelf"
	requestTakeUp     = "take up partitions"
	requestCatchUp    = "catch up with the ledger"
	requestCommit     = "commit"
	requestLastCommit = "last commit"
	requestJoin       = "join the group"
)

// trouble returns a trouble of one of the requests.
func (c *Consumer) trouble(log *slog.Logger, request string) trouble {
	return trouble{log: log, what: request, count: c.metrics.failures.WithLabelValues(request), named: c.cfg.named}
}

// trouble keeps a log to one line per change: an error is logged when the first
// of its kind comes up in a time of trouble, and so is the end of that time. It
// is used by one goroutine.
type trouble struct {
	log   *slog.Logger
	what  string              // the request that its lines name, as in "fetch"
	count prometheus.Counter  // of all errors; nil counts none
	named func(error) error   // puts more words to an error; may be nil
	kinds map[string]struct{} // of the errors since all was well
	try   int                 // errors since all was well
}

// note takes an error in.
func (t *trouble) note(err error) {
	t.try++
	if t.count != nil {
		t.count.Inc()
	}
	if !isNews(&t.kinds, errorKind(err)) {
		return
	}
	if t.named != nil {
		err = t.named(err)
	}
	t.log.Warn("kafka request failed, trying again", "request", t.what, "err", err)
}

// over says that all is well.
func (t *trouble) over() {
	if t.try > 0 {
		t.log.Info("kafka request succeeded again", "request", t.what, "tries", t.try)
	}
	t.kinds, t.try = nil, 0
}

// isNews adds a kind of error to those that have come up and reports whether it
// is new.
func isNews(kinds *map[string]struct{}, kind string) bool {
	if _, ok := (*kinds)[kind]; ok {
		return false
	}
	if *kinds == nil {
		*kinds = make(map[string]struct{})
	}
	(*kinds)[kind] = struct{}{}
	return true
}

// pause waits before the next try: 50 ms, 100 ms, 200 ms, … up to a second. A
// dead leader refuses connections in less than a millisecond, and without a
// pause that would be a busy loop. It returns false if the context ends first.
func (t *trouble) pause(ctx context.Context) bool {
	return sleep(ctx, min(50*time.Millisecond<<min(t.try, 5), time.Second))
}

// sleep returns false if the context ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// named puts an error into words that say what to do about it: to one about a
// missing right it adds which one that is.
func (c *Config) named(err error) error {
	if c.Explain != nil {
		err = c.Explain(err)
	}
	grant := func(kind, name string) error {
		return fmt.Errorf("%w; grant %s the right Read on %s %s", err, cmp.Or(c.Principal, "this client"), kind, name)
	}
	switch {
	case errors.Is(err, kafka.GroupAuthorizationFailed):
		return grant("group", c.GroupID)
	case errors.Is(err, kafka.TopicAuthorizationFailed):
		return grant("topic", c.Topic)
	default:
		return err
	}
}

// errorKind names what went wrong without what differs from try to try, such as
// the local port of a connection.
func errorKind(err error) string {
	if k, ok := errors.AsType[kafka.Error](err); ok {
		return "kafka " + strconv.Itoa(int(k))
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		// The text of one that was not answered names the local port.
		return fmt.Sprintf("lookup %s, unknown %t", dns.Name, dns.IsNotFound)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Op + " " + op.Err.Error()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed"
	}
	return err.Error()
}
