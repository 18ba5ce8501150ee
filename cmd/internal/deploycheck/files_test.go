package deploycheck

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

var update = flag.Bool("update", false, "write again what is made from the code or from another file")

// root is the repository, as seen from this package.
const root = "../../.."

// read returns a file of the repository.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// keep compares a file of the repository with what it should be, or writes it.
func keep(t *testing.T, name, want string) {
	t.Helper()
	file := filepath.Join(root, filepath.FromSlash(name))
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != want {
		t.Errorf("%s is not what it should be (%v); write it with: go test ./cmd/internal/deploycheck -update", name, err)
	}
}

// list returns the files below a folder of the repository whose names end so.
func list(t *testing.T, folder string, endings ...string) []string {
	t.Helper()
	var files []string
	err := fs.WalkDir(os.DirFS(root), folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for _, ending := range endings {
			if strings.HasSuffix(name, ending) {
				files = append(files, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatalf("no file below %s ends with %s", folder, strings.Join(endings, " or "))
	}
	return files
}

// documents splits a file into its YAML documents. It fails on what is no YAML,
// a key that is there twice included.
func documents(t *testing.T, name, text string) []*yaml.Node {
	t.Helper()
	var nodes []*yaml.Node
	for dec := yaml.NewDecoder(strings.NewReader(text)); ; {
		var raw any
		node := new(yaml.Node)
		err := dec.Decode(node)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = node.Decode(&raw)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		nodes = append(nodes, node)
	}
	if len(nodes) == 0 {
		t.Fatalf("%s is empty", name)
	}
	return nodes
}

// strict decodes a document, and fails if it has a field that v has not.
func strict(t *testing.T, name string, node *yaml.Node, v any) {
	t.Helper()
	text, err := yaml.Marshal(node)
	if err != nil {
		t.Fatal(err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// one decodes the only document of a file.
func one[T any](t *testing.T, name string) T {
	t.Helper()
	nodes := documents(t, name, read(t, name))
	if len(nodes) != 1 {
		t.Fatalf("%s holds %d documents, want one", name, len(nodes))
	}
	var v T
	strict(t, name, nodes[0], &v)
	return v
}

func TestEveryFileIsWellFormed(t *testing.T) {
	for _, name := range list(t, "deploy", ".yaml", ".yml") {
		documents(t, name, read(t, name))
	}
	for _, name := range list(t, "deploy", ".json") {
		if !json.Valid([]byte(read(t, name))) {
			t.Errorf("%s is no JSON", name)
		}
	}
}

// TestNoManifestIsForgotten finds files that no kustomization names, and names
// without a file.
func TestNoManifestIsForgotten(t *testing.T) {
	for _, name := range list(t, "deploy/k8s", "kustomization.yaml") {
		k, folder := one[kustomization](t, name), path.Dir(name)
		named := map[string]bool{"kustomization.yaml": true}
		for _, file := range append(k.Resources, k.Components...) {
			named[file] = true
		}
		for _, g := range k.ConfigMaps {
			for _, file := range g.Envs {
				named[file] = true
			}
		}
		for file := range named {
			if _, err := os.Stat(filepath.Join(root, folder, file)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		entries, err := os.ReadDir(filepath.Join(root, folder))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !named[e.Name()] {
				t.Errorf("%s does not name %s", name, e.Name())
			}
		}
	}
}
