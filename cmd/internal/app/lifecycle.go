package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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
		select {
		case err := <-done:
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		case <-limit.Done():
			return fmt.Errorf("did not stop: %w", limit.Err())
		}
	})
}

// stop undoes everything, last first, and joins what went wrong. All steps
// together have until the context ends; each is given its turn even after that.
func (l *lifecycle) stop(ctx context.Context) error {
	var errs []error
	for _, s := range slices.Backward(l.stops) {
		begin := time.Now()
		if err := s.do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("app: stop %s: %w", s.name, err))
		}
		l.log.Debug("part stopped", "part", s.name, "duration", time.Since(begin))
	}
	l.stops = nil
	return errors.Join(errs...)
}
