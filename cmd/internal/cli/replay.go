package cli

import (
	"context"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"packship/cmd/internal/app"
	"packship/cmd/internal/operate"
)

// replayFlags are the flags of replay.
type replayFlags struct {
	from, to, undo         string
	partitions             []int
	execute, force, asJSON bool
}

func newReplay(std Streams) *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use:   "replay --from POINT",
		Short: "Plan a replay, and move the group there",
		Long: `replay tells what would happen if the packed events were handled again from a
point on: how many are done and are only published again, how many would be
called for, and what that costs. It reads the ledger and the events, and has
the connector's own code handle them without effect.

A point is "first", an offset, a time as RFC 3339, or a duration, which is that
long ago: --from 90m. These times are those of the packed events. With commit@
before it, as in --from commit@2026-11-24T02:00:00Z, a time or duration means
the first event of each partition that was not answered yet at that time, which
is where the group stood then. --to bounds the plan.

With --execute the consumer group is moved there. For that it must have no
members: stop all replicas first. Where the group stood is saved to a file;
--undo FILE without --from moves it back, with --from it names the file.`,
		Args: cobra.NoArgs,
		RunE: do(func(ctx context.Context, _ []string) error { return replay(ctx, std, &f) }),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.from, "from", "", "where to begin: first, an offset, a time, a duration, or commit@ and one of those two")
	flags.StringVar(&f.to, "to", "", "where the plan ends (default: at the end)")
	flags.IntSliceVar(&f.partitions, "partition", nil, "only this partition of the packed topic; repeatable")
	flags.BoolVar(&f.execute, "execute", false, "move the group")
	flags.BoolVar(&f.force, "force", false, "move it even past records that were not handled, and despite --to")
	flags.StringVar(&f.undo, "undo", "", "move the group back to where this file says it stood; with --from, the file to write")
	flags.BoolVar(&f.asJSON, "json", false, "write the plan as JSON")
	return cmd
}

func replay(ctx context.Context, std Streams, f *replayFlags) error {
	if f.from == "" && f.undo == "" {
		return usagef("--from is needed: first, an offset, a time like 2026-11-24T02:00:00Z, a duration like 90m, or commit@ and a time or duration")
	}
	var r operate.ReplayRange
	now := time.Now()
	for _, point := range []struct {
		flag, text string
		to         *operate.Point
	}{{"--from", f.from, &r.From}, {"--to", f.to, &r.To}} {
		if point.text == "" {
			continue
		}
		var err error
		if *point.to, err = operate.ParsePoint(point.text, now); err != nil {
			return usagef("%s: %v", point.flag, err)
		}
	}
	switch {
	case f.from == "" && (f.to != "" || len(f.partitions) > 0):
		return usagef("--undo without --from moves the group back as the file says; --to and --partition are for a plan")
	case r.From.Future(now):
		return usagef("--from %s has not come yet", f.from)
	case f.to != "" && r.From.After(r.To):
		return usagef("--to %s lies before --from %s", f.to, f.from)
	case len(f.partitions) > 0 && slices.Min(f.partitions) < 0:
		return usagef("--partition: partitions are numbered from 0 on")
	}
	r.Partitions = f.partitions
	return withOperator(ctx, std, app.LoadWithoutToken, func(ctx context.Context, o *operate.Operator, s *app.Settings) error {
		if f.from == "" {
			return undoReplay(ctx, std, o, s, f)
		}
		if f.execute {
			if err := o.MayMove(ctx); err != nil { // before the long reading
				return err
			}
		}
		plan, err := o.PlanReplay(ctx, r)
		if err != nil {
			return err
		}
		if f.asJSON {
			err = writeJSON(std.Out, plan)
		} else {
			err = showPlan(std, plan)
		}
		if err != nil {
			return err
		}
		warn(std, s, plan)
		if !f.execute {
			if !f.asJSON {
				std.out("nothing was changed; --execute moves group %s there\n", s.KafkaGroupID)
			}
			return nil
		}
		file, err := o.Replay(ctx, plan, f.undo, f.force)
		if err != nil {
			if file != "" {
				std.err("packship: group %s was perhaps moved; back with: packship replay --undo %s\n", s.KafkaGroupID, file)
			}
			return err
		}
		std.err("moved group %s; start the replicas again\nundo with: packship replay --undo %s\n", s.KafkaGroupID, file)
		return nil
	})
}

func undoReplay(ctx context.Context, std Streams, o *operate.Operator, s *app.Settings, f *replayFlags) error {
	moves, err := o.Undo(ctx, f.undo)
	if err != nil {
		return err
	}
	if f.asJSON {
		type move struct {
			Partition int   `json:"partition"`
			From      int64 `json:"from"`
			To        int64 `json:"to"`
		}
		list := []move{}
		for _, m := range moves {
			list = append(list, move{m.Partition, m.Now, m.From})
		}
		return writeJSON(std.Out, map[string]any{"moved": list})
	}
	for _, m := range moves {
		std.out("partition %d: from %d back to %d\n", m.Partition, m.Now, m.From)
	}
	if len(moves) == 0 {
		std.out("nothing to undo: group %s has come that far again\n", s.KafkaGroupID)
	}
	return nil
}

func showPlan(std Streams, p *operate.Plan) error {
	w := tabwriter.NewWriter(std.Out, 0, 0, 2, ' ', 0)
	row(w, "PARTITION\tGROUP AT\tFROM\tTO\tEND")
	for _, m := range p.Moves {
		row(w, "%d\t%d\t%d\t%d\t%d", m.Partition, m.Now, m.From, m.To, m.End)
	}
	row(w, "")
	row(w, "RECORDS\t%d\t", p.Records)
	for _, line := range []struct {
		name, meaning string
		n             int64
		always        bool
	}{
		{"shipped", "no call; the result is published again", p.Shipped, true},
		{"failed", "no call; a failed result is published", p.Failed, true},
		{"in doubt", "may be shipped; the API is asked by a call", p.InDoubt, true},
		{"new", "called for", p.New, true},
		{"beyond horizon", "older than the ledger remembers; fail without a call", p.BeyondHorizon, true},
		{"dead letters", "no packed event; copied to the dead letters again", p.DeadLetters, true},
		{"skipped", "shops of other deployments", p.Skipped, false},
	} {
		if line.always || line.n > 0 {
			row(w, "%s\t%d\t%s", line.name, line.n, line.meaning)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	std.out("\n%s\n", costs(p.Calls, p.Points, p.Seconds, ownPace))
	std.out("downstream: %s\n", downstream(p))
	return nil
}

// warn says what the plan does not do as it was asked for, or would do that
// nobody may want.
func warn(std Streams, s *app.Settings, p *operate.Plan) {
	if p.Damaged != "" {
		std.err("packship: the ledger is damaged: %s; what was packed before and has no record will not be called for, but fails as outcome_unknown\n", p.Damaged)
	}
	for _, m := range p.Moves {
		if m.Note != "" {
			std.err("packship: partition %d of %s %s\n", m.Partition, s.TopicPacked, m.Note)
		}
		if m.Unfinished() > 0 {
			std.err("packship: in partition %d group %s stands at %d; beginning at %d would pass over %s\n", m.Partition, s.KafkaGroupID, m.Now, m.From, counted(m.Unfinished(), "record", "records"))
		}
	}
}

// downstream says what the readers of the result topics see.
func downstream(p *operate.Plan) string {
	var parts []string
	add := func(n int64, one, many string) {
		if n > 0 {
			parts = append(parts, counted(n, one, many))
		}
	}
	add(p.Shipped, "shipped result again (same id, same bytes)", "shipped results again (same ids, same bytes)")
	add(p.Failed+p.BeyondHorizon, "failed result", "failed results")
	add(p.New+p.InDoubt, "new result", "new results")
	add(p.DeadLetters, "copy of a dead letter", "copies of dead letters")
	if len(parts) == 0 {
		return "sees nothing"
	}
	return "sees " + strings.Join(parts, ", ")
}
