package deploycheck

import (
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"packship/cmd/internal/app"
)

// pages returns the pages of text: those in docs, and those at the top.
func pages(t *testing.T) map[string]string {
	t.Helper()
	files := list(t, "docs", ".md")
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".md") {
			files = append(files, e.Name())
		}
	}
	pages := map[string]string{}
	for _, file := range files {
		pages[file] = read(t, file)
	}
	return pages
}

var fence = regexp.MustCompile("(?ms)^```.*?^```$")

// headings returns the anchors of a page.
func headings(text string) []string {
	var anchors []string
	for line := range strings.Lines(fence.ReplaceAllString(text, "")) {
		title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " ")
		if !ok || !strings.HasPrefix(line, "#") {
			continue
		}
		anchors = append(anchors, strings.Map(func(r rune) rune {
			switch {
			case r == ' ', r == '-':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '_':
				return unicode.ToLower(r)
			default:
				return -1
			}
		}, strings.TrimSpace(title)))
	}
	return anchors
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestLinksLead(t *testing.T) {
	all := pages(t)
	for page, text := range all {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			target, anchor, _ := strings.Cut(m[1], "#")
			name := page
			if target != "" {
				name = path.Join(path.Dir(page), target)
			}
			if _, err := os.Stat(filepath.Join(root, name)); err != nil {
				t.Errorf("%s: link to %s: %v", page, m[1], err)
				continue
			}
			if anchor != "" && strings.HasSuffix(name, ".md") && !slices.Contains(headings(all[name]), anchor) {
				t.Errorf("%s: link to %s: no such heading", page, m[1])
			}
		}
	}
}

// TestEveryPageIsFound wants each page of docs to be linked from the README, so
// that nobody has to know its name.
func TestEveryPageIsFound(t *testing.T) {
	all := pages(t)
	readme := all["README.md"]
	for page := range all {
		if page != "README.md" && !strings.Contains(readme, "]("+page+")") {
			t.Errorf("README.md does not link to %s", page)
		}
	}
}

var settingName = regexp.MustCompile(`\bPACKSHIP_[A-Z0-9_]*[A-Z0-9]\b`)

// TestSettingsAreSpeltRight looks at every name of a setting, wherever it stands.
func TestSettingsAreSpeltRight(t *testing.T) {
	known := map[string]bool{}
	defaults := app.Defaults()
	for _, e := range defaults.Entries() {
		known[e.Name] = true
	}
	texts := pages(t)
	for _, file := range list(t, "deploy", "") {
		texts[file] = read(t, file)
	}
	texts["Makefile"] = read(t, "Makefile")
	found := 0
	for file, text := range texts {
		for _, name := range settingName.FindAllString(text, -1) {
			found++
			if !known[name] && !strings.HasPrefix(name, "PACKSHIP_TEST_") {
				t.Errorf("%s: %s is no setting", file, name)
			}
		}
	}
	if found < 50 {
		t.Fatalf("only %d names found", found)
	}
}

// TestCommandsExist tries every command line in the pages with --help.
func TestCommandsExist(t *testing.T) {
	found := 0
	for page, text := range pages(t) {
		for line := range strings.Lines(text) {
			var args []string
			switch line = strings.TrimSpace(line); {
			case strings.HasPrefix(line, "$ packship "):
				args = strings.Fields(line)[2:]
			case strings.HasPrefix(line, "$ go run ./cmd/packship "):
				args = strings.Fields(line)[4:]
			case strings.HasPrefix(line, "$ docker compose ") && strings.Contains(line, " cli "):
				_, rest, _ := strings.Cut(line, " cli ")
				args = strings.Fields(rest)
			default:
				continue
			}
			if end := slices.IndexFunc(args, func(a string) bool { return strings.ContainsAny(a, "#|<>&;\\") }); end >= 0 {
				args = args[:end]
			}
			for i := range args {
				args[i] = strings.Trim(args[i], `'"`)
			}
			found++
			t.Log(page, args)
			commandExists(t, args...)
		}
	}
	if found < 5 {
		t.Fatalf("only %d commands found", found)
	}
}

// sections says under which heading of docs/settings.md a setting stands, by
// what its name begins with.
var sections = []struct {
	name     string
	prefixes []string
}{
	{"kafka", []string{"KAFKA_", "ASSIGNMENT"}},
	{"topics", []string{"TOPIC_"}},
	{"api", []string{"UPSTREAM_", "ACCOUNTS_", "UNKNOWN_SHOP", "WAYBILL_", "CARRIERS_"}},
	{"pace", []string{"RATE_", "MAX_IN_FLIGHT", "BREAKER_", "RETRY_", "UNKNOWN_POLICY"}},
	{"ledger", []string{"LEDGER_"}},
	{"process", []string{"HTTP_", "ADMIN_", "LOG_", "SHUTDOWN_"}},
}

// TestSettingsPage keeps the tables of docs/settings.md as the code has them.
func TestSettingsPage(t *testing.T) {
	const page = "docs/settings.md"
	text := read(t, page)
	defaults := app.Defaults()
	left := map[string]bool{}
	for _, e := range defaults.Entries() {
		left[e.Name] = true
	}
	for _, s := range sections {
		var table strings.Builder
		table.WriteString("| variable | default | meaning |\n|---|---|---|\n")
		for _, e := range defaults.Entries() {
			if !slices.ContainsFunc(s.prefixes, func(p string) bool { return strings.HasPrefix(e.Name, app.Prefix+"_"+p) }) || !left[e.Name] {
				continue
			}
			delete(left, e.Name)
			value := ""
			if e.Default != "" {
				value = "`" + e.Default + "`"
			}
			table.WriteString("| `" + e.Name + "` | " + value + " | " + strings.ReplaceAll(e.Meaning, "|", `\|`) + " |\n")
		}
		begin, end := "<!-- settings "+s.name+" -->\n", "<!-- end -->\n"
		before, rest, ok := strings.Cut(text, begin)
		_, after, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("%s has no place for the settings of %s", page, s.name)
		}
		text = before + begin + table.String() + end + after
	}
	for name := range left {
		t.Errorf("%s has no section for %s", page, name)
	}
	keep(t, page, text)
}

// described matches what /metrics says of a metric, before its series.
var described = regexp.MustCompile(`(?m)^# HELP (packship_\w+) (.*)\n# TYPE \w+ (\w+)$`)

// TestMetricsTable keeps the table of metrics in docs/operating.md as a connector
// shows them.
func TestMetricsTable(t *testing.T) {
	const page = "docs/operating.md"
	shown := metrics()
	if shown.err != nil {
		t.Fatal(shown.err)
	}
	var table strings.Builder
	table.WriteString("| metric | type | labels | tells |\n|---|---|---|---|\n")
	for _, m := range described.FindAllStringSubmatch(shown.text, -1) {
		name, help, kind := m[1], m[2], m[3]
		series := shown.exposed[name]
		if kind == "histogram" {
			series = shown.exposed[name+"_count"]
		}
		if len(series) == 0 {
			t.Fatalf("%s has no series", name)
		}
		labels := slices.Sorted(maps.Keys(series[0]))
		table.WriteString("| `" + name + "` | " + kind + " | " + strings.Join(labels, ", ") + " | " + strings.ReplaceAll(help, "|", `\|`) + " |\n")
	}
	text := read(t, page)
	begin, end := "<!-- metrics -->\n", "<!-- end -->\n"
	before, rest, ok := strings.Cut(text, begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the metrics", page)
	}
	keep(t, page, before+begin+table.String()+end+after)
}

// TestRunbookMetrics finds names of metrics in the runbook that no connector
// shows.
func TestRunbookMetrics(t *testing.T) {
	shown := metrics()
	if shown.err != nil {
		t.Fatal(shown.err)
	}
	for _, page := range []string{"docs/runbook.md", "docs/kubernetes.md"} {
		for _, name := range metricName.FindAllString(read(t, page), -1) {
			if len(shown.exposed[name]) == 0 && len(shown.exposed[name+"_bucket"]) == 0 {
				t.Errorf("%s: %s is not a metric", page, name)
			}
		}
	}
}

// TestNamedTestsExist finds tests that docs/guarantees.md names and nobody runs.
func TestNamedTestsExist(t *testing.T) {
	var code strings.Builder
	for _, folder := range []string{"cmd", "consumer", "producer", "schema", "upstream"} {
		for _, file := range list(t, folder, "_test.go") {
			code.WriteString(read(t, file))
		}
	}
	names := regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w+)`").FindAllStringSubmatch(read(t, "docs/guarantees.md"), -1)
	if len(names) < 20 {
		t.Fatalf("only %d tests are named", len(names))
	}
	for _, name := range names {
		if !strings.Contains(code.String(), "\nfunc "+name[1]+"(") {
			t.Errorf("docs/guarantees.md: there is no %s", name[1])
		}
	}
}
