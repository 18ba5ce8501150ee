package cli

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"packship/cmd/internal/demo"
)

func newDemo(std Streams) *cobra.Command {
	var keep bool
	var addr string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See the whole story on this machine, without Kafka",
		Long: `demo runs packship against an embedded Kafka broker and a simulated shipping
API: more than a hundred orders with every kind of trouble, an outage, a second
replica, a take-over and a replay. It shows what happens, checks in the end
that everything adds up, and fails if it does not. It needs nothing and takes
less than a minute.`,
		Args: cobra.NoArgs,
		RunE: do(func(ctx context.Context, _ []string) error {
			// A dumb terminal cannot move its cursor.
			terminal := isTerminal(std.Out) && os.Getenv("TERM") != "dumb"
			return demo.Run(ctx, demo.Options{
				Out: std.Out, Terminal: terminal, Colour: terminal && os.Getenv("NO_COLOR") == "", Keep: keep, Addr: addr,
			})
		}),
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "stay up afterwards, with the status page")
	cmd.Flags().StringVar(&addr, "addr", "127.0.0.1:8080", "address of the status page (another port if it is taken)")
	return cmd
}
