package cli

import (
	"context"

	"github.com/spf13/cobra"

	"packship/cmd/internal/app"
)

func newRun(std Streams) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the connector until it is told to stop",
		Long: `run is the connector. Its settings are environment variables; "packship config"
lists them. It logs to stderr. A first SIGTERM or SIGINT begins no further
call, lets those under way finish, and exits 0; a second exits 1 at once.`,
		Args: cobra.NoArgs,
		RunE: do(func(ctx context.Context, _ []string) error {
			settings, err := app.Load(app.PartAll)
			if err != nil {
				return err
			}
			connector, err := app.New(settings, app.Options{
				Logger: settings.NewLogger(std.Err, isTerminal(std.Err)),
			})
			if err != nil {
				return err
			}
			return connector.Run(ctx)
		}),
	}
}
