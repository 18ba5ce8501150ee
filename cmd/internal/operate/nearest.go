package operate

import (
	"cmp"
	"slices"
	"strings"

	"packship/cmd/internal/app"
)

// nearest returns the n known names that somebody is most likely to have meant
// who wrote another one: those with the most words in common, and among them
// those with the fewest letters to change.
func nearest(name string, known []string, n int) []string {
	name = strings.ToLower(name)
	words := strings.FieldsFunc(name, notOfWord)
	inCommon := func(candidate string) int {
		count := 0
		for word := range strings.SplitSeq(candidate, "_") {
			if slices.Contains(words, word) {
				count++
			}
		}
		return count
	}
	known = slices.Compact(slices.Sorted(slices.Values(known)))
	slices.SortStableFunc(known, func(a, b string) int {
		return cmp.Or(cmp.Compare(inCommon(b), inCommon(a)), cmp.Compare(app.Distance(name, a), app.Distance(name, b)))
	})
	return known[:min(n, len(known))]
}

func notOfWord(r rune) bool { return r == '_' || r == '-' || r == ' ' || r == ',' }
