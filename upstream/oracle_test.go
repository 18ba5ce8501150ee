package upstream

import (
	"regexp"
	"strconv"
	"strings"
)

var featureGrammar = func() *regexp.Regexp {
	const (
		char = `[^;|:,="'\x00-\x1f\x7f-\x9f\s\p{Z}\p{Cf}\x{FFFD}«»‘-‟‹›⹂「-』〝-〟﹁-﹄＂＇｢｣` + `]`
		item = `[1-9][0-9]{0,18}:` + char + `+(?:,` + char + `+)*`
	)
	entry := `(?:(?:identCode|machineCode)=` + item + `(?:\|` + item + `)*|retailStoreId=` + char + `+|retailStoreType=(?:STORE|WAREHOUSE))`
	return regexp.MustCompile(`^` + entry + `(?:;` + entry + `)*$`)
}()

// validFeature is the feature grammar a second time.
func validFeature(s string) bool {
	if !featureGrammar.MatchString(s) {
		return false
	}
	keys := map[string]bool{}
	for entry := range strings.SplitSeq(s, ";") {
		key, value, _ := strings.Cut(entry, "=")
		if keys[key] {
			return false
		}
		keys[key] = true
		if !strings.HasSuffix(key, "Code") {
			continue
		}
		seen := map[string]bool{}
		for item := range strings.SplitSeq(value, "|") {
			oid, codes, _ := strings.Cut(item, ":")
			if _, err := strconv.ParseInt(oid, 10, 64); err != nil || seen["oid "+oid] {
				return false
			}
			seen["oid "+oid] = true
			for code := range strings.SplitSeq(codes, ",") {
				if seen[code] {
					return false
				}
				seen[code] = true
			}
		}
	}
	return true
}

// codeCounts is how many codes each sub-order of a valid feature has, a second
// time.
func codeCounts(s string) []string {
	var counts []string
	for entry := range strings.SplitSeq(s, ";") {
		key, value, _ := strings.Cut(entry, "=")
		if !strings.HasSuffix(key, "Code") {
			continue
		}
		for item := range strings.SplitSeq(value, "|") {
			oid, codes, _ := strings.Cut(item, ":")
			counts = append(counts, oid+" "+strconv.Itoa(1+strings.Count(codes, ",")))
		}
	}
	return counts
}
