package demo

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// show is what a person sees: lines that tell what happens, and on a terminal,
// below them, a few lines that are drawn over again.
type show struct {
	w        io.Writer
	terminal bool
	colour   bool
	begin    time.Time
	drawn    int       // lines of the block on the screen
	last     time.Time // when the block was shown, where it is not drawn over
}

// tell writes a line that stays.
func (s *show) tell(format string, args ...any) {
	s.clear()
	stamp := fmt.Sprintf("%5.1f s", time.Since(s.begin).Seconds())
	if s.colour {
		stamp = "\033[2m" + stamp + "\033[0m"
	}
	_, _ = fmt.Fprintf(s.w, "%s  %s\n", stamp, fmt.Sprintf(format, args...))
}

// block shows the state of things: in place on a terminal, else as one line
// every few seconds.
func (s *show) block(lines []string) {
	if !s.terminal {
		const pause = 3 * time.Second
		if time.Since(s.last) >= pause {
			s.last = time.Now()
			s.tell("  %s", strings.Join(lines, "; "))
		}
		return
	}
	s.clear()
	for _, line := range lines {
		_, _ = fmt.Fprintf(s.w, "   %s\n", line)
	}
	s.drawn = len(lines)
}

// clear removes the block from the screen.
func (s *show) clear() {
	if s.drawn > 0 {
		_, _ = fmt.Fprintf(s.w, "\033[%dA\033[J", s.drawn)
		s.drawn = 0
	}
}

// bar draws how much of the whole is done, on a terminal.
func (s *show) bar(done, whole int) string {
	if !s.terminal {
		return ""
	}
	const width = 40
	n := 0
	if whole > 0 {
		n = min(width, width*done/whole)
	}
	return "[" + strings.Repeat("#", n) + strings.Repeat(".", width-n) + "] "
}

// print writes the closing table.
func (s *show) print(rows [][2]string) {
	s.clear()
	wide := 0
	for _, row := range rows {
		wide = max(wide, len(row[0]))
	}
	_, _ = fmt.Fprintln(s.w)
	for _, row := range rows {
		_, _ = fmt.Fprintf(s.w, "  %-*s  %s\n", wide, row[0], row[1])
	}
	_, _ = fmt.Fprintln(s.w)
}
