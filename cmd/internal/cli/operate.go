package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"packship/cmd/internal/app"
	"packship/cmd/internal/operate"
)

// withOperator connects to Kafka, looks whether packship's topics are there, and
// does the work. It gives up with one clear error if no broker can be used.
func withOperator(ctx context.Context, std Streams, load func() (app.Settings, error), work func(context.Context, *operate.Operator, *app.Settings) error) (err error) {
	defer func() { err = interrupted(ctx, err) }()
	settings, err := load()
	if err != nil {
		return err
	}
	k := app.NewKafka(&settings, nil, settings.Topics()...)
	defer k.Close()
	if err := k.Connect(ctx); err != nil {
		return err
	}
	if err := k.CheckTopics(ctx, app.RightsToOperate); err != nil {
		return err
	}
	return work(ctx, operate.New(&settings, k, &meter{w: std.Err, terminal: isTerminal(std.Err)}), &settings)
}

// interrupted returns why a work has ended, if it was broken off, and not what it
// was doing.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return context.Cause(ctx)
	}
	return err
}

// loadKafka loads the settings of a command that needs only Kafka.
func loadKafka() (app.Settings, error) { return app.Load(app.PartKafka) }

// meter draws how far a long work has come, on a terminal and nowhere else.
type meter struct {
	w        io.Writer
	terminal bool

	mu          sync.Mutex // guards the rest
	what        string
	whole, done int64
	begun       time.Time
	drawn       time.Time
}

// Begin begins a work of so many steps.
func (m *meter) Begin(what string, whole int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.what, m.whole, m.done, m.begun, m.drawn = what, whole, 0, now, now
}

// Add does some steps.
func (m *meter) Add(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += int64(n)
	const pause = 100 * time.Millisecond // nobody reads faster
	if !m.terminal || m.whole == 0 || m.done&63 != 0 && m.done < m.whole || time.Since(m.drawn) < pause {
		return
	}
	m.drawn = time.Now()
	_, _ = fmt.Fprintf(m.w, "\r\033[K%s", m.line(m.drawn.Sub(m.begun)))
}

// line is what there is to see after some time.
func (m *meter) line(spent time.Duration) string {
	const width = 30
	done := min(m.done, m.whole)
	filled := int(width * done / m.whole)
	text := fmt.Sprintf("%s [%s%s] %d%% of %d", m.what, strings.Repeat("#", filled), strings.Repeat(".", width-filled), 100*done/m.whole, m.whole)
	if left := time.Duration(float64(spent) / float64(max(done, 1)) * float64(m.whole-done)); spent > 2*time.Second && left >= time.Second {
		text += fmt.Sprintf(", %s left", left.Round(time.Second))
	}
	return text
}

// End clears the line.
func (m *meter) End() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.terminal {
		_, _ = fmt.Fprint(m.w, "\r\033[K")
	}
}

// ownPace is the pace of calls that nothing else holds back.
const ownPace = "the rate of the account"

// costs says what calls come to at a pace.
func costs(calls, points int64, seconds float64, pace string) string {
	if calls == 0 {
		return "no calls, no points"
	}
	took := time.Duration(seconds * float64(time.Second))
	if took >= 10*time.Second {
		took = took.Round(time.Second)
	}
	return fmt.Sprintf("%s, at most %s, %s at %s", counted(calls, "call", "calls"), counted(points, "point", "points"), took, pace)
}

// counted writes a number of things.
func counted[N int | int64](n N, one, many string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", one)
	}
	return fmt.Sprintf("%d %s", n, many)
}
