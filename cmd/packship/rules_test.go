package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"packship/schema"
)

// root is the repository, as seen from this package.
const root = "../.."

// listed is what the tests need of go list about one package.
type listed struct {
	ImportPath string
	Imports    []string // by its files that are no tests
	Deps       []string // all that it links, itself not included
	Module     *struct{ Main bool }
}

// packages returns all packages of packship by import path. Tests and what they
// import are left out.
var packages = sync.OnceValues(func() (map[string]listed, error) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,Deps,Module", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(err, errors.New(stderr.String()))
	}
	all := map[string]listed{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all[p.ImportPath] = p
	}
})

// within reports whether the package path is one of the roots or stands below
// one.
func within(path string, roots ...string) bool {
	return slices.ContainsFunc(roots, func(root string) bool {
		return path == root || strings.HasPrefix(path, root+"/")
	})
}

// The libraries that a package may be told to stay away from.
var (
	kafkaClients = []string{"github.com/segmentio/kafka-go", "github.com/twmb/franz-go"}
	testHelpers  = []string{"github.com/twmb/franz-go", "net/http/httptest", "testing"}
)

// A rule says what the packages at and below a path neither link nor import.
var rules = []struct {
	name string
	of   []string
	but  []string // below them, and not meant
	link []string // not even through another package
	use  []string // not in their own files
}{
	{
		name: "schema is the vocabulary: it knows no Kafka, no HTTP and no other package",
		of:   []string{"packship/schema"},
		link: slices.Concat(kafkaClients, []string{"net/http", "packship/consumer", "packship/upstream", "packship/producer", "packship/cmd"}),
	},
	{
		name: "siblings meet in cmd: consumer stands alone",
		of:   []string{"packship/consumer"},
		link: []string{"packship/upstream", "packship/producer", "packship/cmd"},
	},
	{
		name: "siblings meet in cmd: upstream stands alone",
		of:   []string{"packship/upstream"},
		link: []string{"packship/consumer", "packship/producer", "packship/cmd"},
	},
	{
		name: "siblings meet in cmd: producer stands alone",
		of:   []string{"packship/producer"},
		link: []string{"packship/consumer", "packship/upstream", "packship/cmd"},
	},
	{
		name: "upstream knows no Kafka",
		of:   []string{"packship/upstream"},
		link: kafkaClients,
	},
	{
		name: "consumer and producer know no HTTP",
		of:   []string{"packship/consumer", "packship/producer"},
		use:  []string{"net/http"},
	},
	{
		name: "what runs for the sake of tests or the demo is not linked into the parts",
		of:   []string{"packship/schema", "packship/consumer", "packship/producer", "packship/upstream"},
		but:  []string{"packship/upstream/upstreamtest", "packship/producer/internal/brokertest"},
		link: testHelpers,
	},
	{
		name: "the simulated API serves the demo too, so it is no test helper",
		of:   []string{"packship/upstream/upstreamtest"},
		link: []string{"testing"},
	},
	{
		name: "only cmd reads the environment",
		of:   []string{"packship/schema", "packship/consumer", "packship/producer", "packship/upstream"},
		link: []string{"github.com/kelseyhightower/envconfig", "github.com/spf13/cobra"},
		use:  []string{"os/signal", "flag"},
	},
	{
		name: "the command is thin: what it does stands in cmd/internal",
		of:   []string{"packship/cmd/packship"},
		use:  []string{"packship/consumer", "packship/upstream", "packship/producer", "packship/schema", "net/http", "github.com/segmentio/kafka-go"},
	},
}

func TestPackagesKeepToTheirArrows(t *testing.T) {
	all, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range rules {
		t.Run(rule.name, func(t *testing.T) {
			found := map[string]bool{}
			for path, p := range all {
				if !within(path, rule.of...) || within(path, rule.but...) {
					continue
				}
				for _, of := range rule.of {
					found[of] = found[of] || within(path, of)
				}
				for _, dep := range p.Deps {
					if within(dep, rule.link...) {
						t.Errorf("%s links %s", path, dep)
					}
				}
				for _, imported := range p.Imports {
					if within(imported, rule.use...) {
						t.Errorf("%s imports %s", path, imported)
					}
				}
			}
			for _, of := range rule.of {
				if !found[of] {
					t.Errorf("there is no package %s, so that the rule would hold for nothing", of)
				}
			}
		})
	}
}

// repository calls visit for every file of the repository, by its path there.
// It passes over what git ignores and over .ci, which is not ours.
func repository(t *testing.T, visit func(path string)) {
	t.Helper()
	ignored := []string{".git", ".ci", "bin"}
	files := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a temporary file of an editor or a build
		}
		if err != nil {
			return err
		}
		path, err = filepath.Rel(root, path)
		if err != nil {
			return err
		}
		path = filepath.ToSlash(path)
		switch {
		case d.IsDir() && slices.Contains(ignored, path):
			return fs.SkipDir
		case !d.Type().IsRegular(), path == "packship", slices.Contains([]string{".test", ".out", ".prof"}, filepath.Ext(path)):
			return nil
		}
		files++
		visit(path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Fatalf("only %d files found, is %s the repository?", files, root)
	}
}

// read returns the text of a file of the repository, nothing if it has gone
// since it was listed.
func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(path)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return text
}

func TestEveryPackageHasOneComment(t *testing.T) {
	commented := map[string][]string{}
	repository(t, func(path string) {
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "testdata/") {
			return
		}
		dir := path[:strings.LastIndex(path, "/")+1]
		if _, ok := commented[dir]; !ok {
			commented[dir] = nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, read(t, path), parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return
		}
		if file.Doc == nil {
			return
		}
		commented[dir] = append(commented[dir], path)
		text := file.Doc.Text()
		begin := "Package " + file.Name.Name + " "
		if file.Name.Name == "main" {
			begin = "The "
		}
		if !strings.HasPrefix(text, begin) {
			t.Errorf("%s: the package comment begins with %.30q, not with %q", path, text, begin)
		}
	})
	for dir, files := range commented {
		if len(files) != 1 {
			t.Errorf("package %s has %d package comments, want one: %s", dir, len(files), strings.Join(files, ", "))
		}
	}
}

func TestNothingIsLeftForLater(t *testing.T) {
	// Written so that this file does not hold the words itself.
	forbidden := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME)\b`)
	repository(t, func(path string) {
		if path == "go.sum" {
			return
		}
		text := read(t, path)
		if !utf8.Valid(text) {
			return
		}
		for i, line := range strings.Split(string(text), "\n") {
			if word := forbidden.FindString(line); word != "" {
				t.Errorf("%s:%d: %s", path, i+1, word)
			}
		}
	})
}

func TestReadmeNamesWhatPackshipIsBuiltOn(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("there is no README.md yet; when there is one, its section Built on must name every direct dependency")
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(readme), "## Built on\n")
	if !ok {
		t.Fatal(`README.md has no section "## Built on"`)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for _, r := range mod.Require {
		if !r.Indirect && !strings.Contains(section, r.Path) {
			t.Errorf("README.md, Built on: %s is missing", r.Path)
		}
	}
}

// The events' JSON Schema and the answer table are written in two packages that
// do not know each other.
func TestFailedEventsKnowEveryRowOfTheAnswerTable(t *testing.T) {
	text, _ := schema.JSONSchema("order.shipment-failed.v1")
	var doc struct {
		Properties map[string]json.RawMessage `json:"properties"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	enum := func(property string) []string {
		var p struct {
			Enum []string `json:"enum"`
		}
		if err := json.Unmarshal(doc.Properties[property], &p); err != nil {
			t.Fatal(err)
		}
		return p.Enum
	}
	reasons, classes := enum("reason"), enum("class")
	rows, err := csv.NewReader(bytes.NewReader(read(t, "upstream/codes.csv"))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 61 {
		t.Fatalf("the answer table has %d lines, want a heading and 60 rows", len(rows))
	}
	slug, class := slices.Index(rows[0], "slug"), slices.Index(rows[0], "class")
	if slug < 0 || class < 0 {
		t.Fatalf("the answer table has no column slug or class: %q", rows[0])
	}
	for _, row := range rows[1:] {
		failure := row[class] != "success"
		if slices.Contains(reasons, row[slug]) != failure {
			t.Errorf("row %s: %s as a reason of a failed event: want %t", row[0], row[slug], failure)
		}
		if slices.Contains(classes, row[class]) != failure {
			t.Errorf("row %s: %s as a class of a failed event: want %t", row[0], row[class], failure)
		}
	}
}
