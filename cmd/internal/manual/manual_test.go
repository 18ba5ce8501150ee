package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"packship/cmd/internal/cli"
)

// TestMan checks that every command that users are shown has a page, which names
// its flags.
func TestMan(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man1")
	if err := write(dir); err != nil {
		t.Fatal(err)
	}
	pages := 0
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		file := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1"
		page, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Error(err)
			return
		}
		pages++
		for flag := range strings.FieldsSeq(cmd.LocalFlags().FlagUsages()) {
			if name, ok := strings.CutPrefix(flag, "--"); ok && !strings.Contains(strings.ReplaceAll(string(page), `\-`, "-"), name) {
				t.Errorf("%s does not name --%s", file, name)
			}
		}
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				visit(sub)
			}
		}
	}
	visit(cli.Commands())
	if pages < 15 {
		t.Errorf("only %d pages", pages)
	}
	if err := write(filepath.Join(dir, "packship.1")); err == nil {
		t.Error("a file is taken for a folder")
	}
}
