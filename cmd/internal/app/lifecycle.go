package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// lifecycle keeps what must be undone, in the order in which it was done. A stop
// is pushed on the line after the thing it stops exists, so that a program that
// is half started is unwound as well as one that ran for weeks.
type lifecycle struct {
	log   *slog.Logger
	fail  context.CancelCauseFunc // ends the run
	stops []stop
}

type stop struct {
	name string
	do   func(ctx context.Context) error
}

func (l *lifecycle) onStop(name string, do func(ctx context.Context) error) {
	l.stops = append(l.stops, stop{name, do})
}

// background runs a part in a goroutine until it is stopped. It outlives the
// run's context, because what is under way still needs it. If it ends before it
// is told to, the run ends too.
func (l *lifecycle) background(ctx context.Context, name string, run func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() {
		err := run(ctx)
		if ctx.Err() == nil {
			if err == nil {
				err = errors.New("ended by itself")
			}
			l.fail(fmt.Errorf("app: %s: %w", name, err))
		}
		done <- err
	}()
	l.onStop(name, func(limit context.Context) error {
		cancel()
		end := func(err error) error {
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}
		select {
		case err := <-done:
			return end(err)
		case <-limit.Done():
		}
		// Others may have used up the time; most parts need none.
		select {
		case err := <-done:
			return end(err)
		case <-time.After(lastMoment):
			return errLate
		}
	})
}

// lastMoment is what each part has to end when the time for all is over.
const lastMoment = 50 * time.Millisecond

// errLate means that a part did not end in time.
var errLate = errors.New("did not end in time")

// stop undoes everything, last first, and joins what went wrong. All steps
// together have until the context ends; each is given its turn even after that.
func (l *lifecycle) stop(ctx context.Context) error {
	var errs []error
	var late []string
	for _, s := range slices.Backward(l.stops) {
		begin := time.Now()
		switch err := s.do(ctx); {
		case errors.Is(err, errLate):
			late = append(late, s.name)
		case err != nil:
			errs = append(errs, fmt.Errorf("app: stop %s: %w", s.name, err))
		}
		l.log.Debug("part stopped", "part", s.name, "duration", time.Since(begin))
	}
	l.stops = nil
	if len(late) > 0 {
		errs = append(errs, fmt.Errorf("app: stop: requests of %s were still under way; the end of the process has cut them off", strings.Join(late, ", ")))
	}
	return errors.Join(errs...)
}
