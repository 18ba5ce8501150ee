package operate

import (
	"fmt"
	"testing"

	"packship/cmd/internal/app"
)

// TestMarks marks dead letters in turn, through what is stored of the marks.
func TestMarks(t *testing.T) {
	p := app.Progress{First: 3, End: 100, Committed: -1}
	for _, step := range []struct {
		mark int64
		want string
	}{
		{9, "3 9"}, {7, "3 7,9"}, {8, "3 7-9"}, {20, "3 7-9,20"}, {3, "4 7-9,20"}, {5, "4 5,7-9,20"}, {4, "6 7-9,20"}, {6, "10 20"}, {6, "10 20"},
	} {
		m := parseMarks(p)
		m.add(step.mark, p.First)
		p.Committed, p.Metadata = m.upTo, m.String()
		if got := fmt.Sprintf("%d %s", p.Committed, p.Metadata); got != step.want {
			t.Fatalf("%d: got %q, want %q", step.mark, got, step.want)
		}
	}
	m := parseMarks(p)
	for offset := range int64(30) {
		if want := offset < 10 || offset == 20; m.done(offset) != want {
			t.Errorf("%d: done is %t", offset, !want)
		}
	}
	if (*marks)(nil).done(0) {
		t.Error("without marks something is done")
	}
	for _, text := range []string{"", "nonsense", "1-2-3", "9-", "-4", "5-9223372036854775806"} {
		if m := parseMarks(app.Progress{First: 0, End: 10, Committed: 2, Metadata: text}); m.upTo != 2 || len(m.behind) != 0 {
			t.Errorf("%q: %+v", text, m)
		}
	}
}
