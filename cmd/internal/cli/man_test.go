package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestMan checks that every command that users are shown has a page, which names
// its flags.
func TestMan(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man1")
	if code, _, stderr := packship(t, nil, "", "man", dir); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
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
	visit(newRoot(Streams{}))
	if pages < 15 {
		t.Errorf("only %d pages", pages)
	}
	code, _, stderr := packship(t, nil, "", "man")
	if code != 2 || stderr == "" {
		t.Errorf("without a folder: exit code %d, %q", code, stderr)
	}
}
