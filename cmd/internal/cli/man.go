package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"packship/cmd/internal/app"
)

// newMan is for whoever packages packship, and so not among what users are
// shown.
func newMan(std Streams) *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write a manual page for each command into a folder",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: do(func(_ context.Context, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil { //nolint:gosec // manual pages are for everybody
				return fmt.Errorf("man: %w", err)
			}
			// A tree of its own: the pages are to have no trace of this command's run.
			root := newRoot(std) //nolint:contextcheck // cobra hands the context to the commands
			root.DisableAutoGenTag = true
			header := &doc.GenManHeader{Section: "1", Source: "packship " + app.BuildInfo().Version, Manual: "packship"}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return fmt.Errorf("man: %w", err)
			}
			std.out("wrote the manual pages to %s\n", args[0])
			return nil
		}),
	}
}
