package outage

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestLog(t *testing.T) {
	lost, denied := errors.New("lost"), errors.New("denied")
	for name, tt := range map[string]struct {
		does func(l *Log)
		want []string // level and message of what is logged
	}{
		"nothing fails": {
			func(l *Log) { l.Worked(0); l.Worked(1) }, nil,
		},
		"one line for many tries": {
			func(l *Log) {
				for range 100 {
					l.Failed(0, Passing, lost)
				}
			}, []string{"WARN failing"},
		},
		"one line for many partitions": {
			func(l *Log) {
				for n := range 8 {
					l.Failed(n, Passing, lost)
				}
			}, []string{"WARN failing"},
		},
		"it is over when all work": {
			func(l *Log) {
				l.Failed(0, Passing, lost)
				l.Failed(1, Passing, lost)
				l.Worked(0)
				l.Worked(0)
				l.Worked(1)
				l.Worked(1)
			}, []string{"WARN failing", "INFO works again"},
		},
		"it becomes graver": {
			func(l *Log) {
				l.Failed(0, Passing, lost)
				l.Failed(0, Lasting, denied)
				l.Failed(1, Passing, lost)
				l.Failed(0, Lasting, denied)
			}, []string{"WARN failing", "ERROR refused"},
		},
		"two outages": {
			func(l *Log) {
				l.Failed(0, Lasting, denied)
				l.Worked(0)
				l.Failed(0, Passing, lost)
			}, []string{"ERROR refused", "INFO works again", "WARN failing"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			tt.does(New(slog.New(slog.NewTextHandler(&out, nil)), "appending", func(err error) string {
				if errors.Is(err, denied) {
					return "ask for leave"
				}
				return ""
			}))
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if out.Len() == 0 {
				lines = nil
			}
			if len(lines) != len(tt.want) {
				t.Fatalf("got %q, want %q", lines, tt.want)
			}
			for i, want := range tt.want {
				level, message, _ := strings.Cut(want, " ")
				if !strings.Contains(lines[i], "level="+level+" ") || !strings.Contains(lines[i], message) || !strings.Contains(lines[i], "what=appending") {
					t.Errorf("line %d: got %s, want %s", i, lines[i], want)
				}
				if level == "ERROR" != strings.Contains(lines[i], "ask for leave") {
					t.Errorf("line %d: got %s", i, lines[i])
				}
			}
		})
	}
}
