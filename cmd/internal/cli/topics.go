package cli

import (
	"context"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"packship/cmd/internal/app"
)

func newTopics(std Streams) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "topics",
		Short: "Show packship's topics and what is wrong with them",
		Args:  cobra.NoArgs,
		RunE: do(func(ctx context.Context, _ []string) error {
			return withKafka(ctx, func(ctx context.Context, k *app.Kafka) error {
				topics, err := k.Topics(ctx)
				if err != nil {
					return err
				}
				return showTopics(std, topics, asJSON)
			})
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	cmd.AddCommand(newTopicsCreate(std))
	return cmd
}

func newTopicsCreate(std Streams) *cobra.Command {
	var partitions, replication int
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create the topics that are missing",
		Args:  cobra.NoArgs,
		RunE: do(func(ctx context.Context, _ []string) error {
			if partitions < 1 {
				return usagef("--partitions must be at least 1")
			}
			if replication < 0 {
				return usagef("--replication must be at least 1")
			}
			return withKafka(ctx, func(ctx context.Context, k *app.Kafka) error {
				created, err := k.CreateTopics(ctx, partitions, replication)
				for _, name := range created {
					std.out("created %s\n", name)
				}
				if err == nil && len(created) == 0 {
					std.out("all topics are there\n")
				}
				return err
			})
		}),
	}
	cmd.Flags().IntVar(&partitions, "partitions", 8, "partitions of each topic but the ledger, which has its own setting")
	cmd.Flags().IntVar(&replication, "replication", 0, "replicas of each partition (default 3, or the number of brokers if there are fewer)")
	return cmd
}

func showTopics(std Streams, topics []app.Topic, asJSON bool) error {
	wrong := false
	for _, t := range topics {
		wrong = wrong || t.Problem != ""
	}
	if asJSON {
		if err := writeJSON(std.Out, topics); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(std.Out, 0, 0, 2, ' ', 0)
		row(w, "TOPIC\tPARTITIONS\tREPLICATION\tCLEANUP\tRETENTION\tSTATE")
		for _, t := range topics {
			switch {
			case t.Hidden:
				row(w, "%s\t-\t-\t-\t-\thidden", t.Name)
			case !t.Exists:
				row(w, "%s\t-\t-\t-\t-\tmissing", t.Name)
			default:
				state := "ok"
				if t.Problem != "" {
					state = "wrong"
				}
				row(w, "%s\t%d\t%d\t%s\t%s\t%s", t.Name, t.Partitions, t.Replication, dash(t.Cleanup), dash(t.Retention), state)
			}
		}
		if err := w.Flush(); err != nil {
			return err
		}
		for _, t := range topics {
			if t.Problem != "" {
				std.err("packship: %s\n", t.Problem)
			}
		}
	}
	if wrong {
		return errReported
	}
	return nil
}

// withKafka loads the settings of Kafka, connects, and does the work. It gives
// up with one clear error if no broker can be used.
func withKafka(ctx context.Context, work func(context.Context, *app.Kafka) error) error {
	settings, err := app.Load(app.PartKafka)
	if err != nil {
		return err
	}
	k := app.NewKafka(&settings, nil, settings.Topics()...)
	defer k.Close()
	err = k.Connect(ctx)
	if err == nil {
		err = work(ctx, k)
	}
	return interrupted(ctx, err)
}
