package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"packship/cmd/internal/app"
	"packship/cmd/internal/life"
	"packship/cmd/internal/operate"
	"packship/schema"
)

func newTrace(std Streams) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "trace TID",
		Short: "Tell the life of an order",
		Long: `trace finds everything that the topics hold of an order: its packed events, the
attempts and outcomes in the ledger, the results, and dead letters. It shows
them in the order of time, and says where the order stands and what to do.

It reads all topics, which takes a while if they are large. A running connector
answers sooner, and does not read the results to their ends: GET /api/orders/TID.`,
		Args: cobra.ExactArgs(1),
		RunE: do(func(ctx context.Context, args []string) error {
			tid := strings.TrimSpace(args[0])
			if !schema.ValidID(tid) {
				return usagef("%q is no order id: a whole number from 1 to 9223372036854775807", args[0])
			}
			return withOperator(ctx, std, loadKafka, func(ctx context.Context, o *operate.Operator, _ *app.Settings) error {
				story, err := o.Trace(ctx, tid)
				if err != nil {
					return err
				}
				if asJSON {
					if err := writeJSON(std.Out, story); err != nil {
						return err
					}
				}
				if len(story.Timeline) == 0 {
					return fmt.Errorf("%s; check the id, or whether the topics still keep it", story.Standing)
				}
				if asJSON {
					return nil
				}
				return showStory(std, &story)
			})
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

func showStory(std Streams, s *life.Story) error {
	w := tabwriter.NewWriter(std.Out, 0, 0, 2, ' ', 0)
	numbered := len(s.Shipments) > 1
	if numbered {
		row(w, "NO\tSHOP\tWAYBILL\tCARRIER\tITEMS\tSTATE")
		for i, p := range s.Shipments {
			row(w, "%d\t%s\t%s\t%s\t%s\t%s", i+1, p.ShopID, dash(tame(p.OutSID)), dash(tame(p.CompanyCode)), cmp.Or(tame(strings.Join(p.SubTID, ",")), "all"), p.State)
		}
		row(w, "")
	}
	row(w, "TIME\tWHAT\tWHERE\tDETAIL")
	for i := range s.Timeline {
		m := &s.Timeline[i]
		detail := s.Detail(m)
		if numbered && m.Shipment > 0 {
			detail = fmt.Sprintf("no %d: %s", m.Shipment, detail)
		}
		row(w, "%s\t%s\t%s/%d/%d\t%s", m.Time.UTC().Format("2006-01-02 15:04:05.000"), strings.ReplaceAll(string(m.Kind), "_", " "), m.Topic, m.Partition, m.Offset, tame(detail))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	std.out("\norder %s: %s\n", s.TID, tame(strings.TrimRight(s.Standing, ".")))
	return nil
}
