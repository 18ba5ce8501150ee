package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"packship/cmd/internal/app"
	"packship/schema"
)

func newSchema(std Streams) *cobra.Command {
	return &cobra.Command{
		Use:       "schema [name]",
		Short:     "Print the JSON Schema of an event, or list the names",
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: schema.Names(),
		RunE: do(func(_ context.Context, args []string) error {
			if len(args) == 0 {
				_, err := fmt.Fprintln(std.Out, strings.Join(schema.Names(), "\n"))
				return err
			}
			text, ok := schema.JSONSchema(strings.TrimPrefix(args[0], "erp."))
			if !ok {
				return usagef("no event is called %q; there are %s", args[0], strings.Join(schema.Names(), ", "))
			}
			_, err := std.Out.Write(text)
			return err
		}),
	}
}

func newVersion(std Streams) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Say which packship this is",
		Args:  cobra.NoArgs,
		RunE: do(func(context.Context, []string) error {
			b := app.BuildInfo()
			if asJSON {
				return writeJSON(std.Out, b)
			}
			_, err := fmt.Fprint(std.Out, versionLine(b))
			return err
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

func versionLine(b app.Build) string {
	return fmt.Sprintf("packship %s %s %s %s\n", b.Version, dash(b.Revision), b.Go, b.Platform)
}
