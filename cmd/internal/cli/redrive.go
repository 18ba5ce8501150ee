package cli

import (
	"context"
	"io"
	"math"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"packship/cmd/internal/app"
	"packship/cmd/internal/operate"
	"packship/cmd/internal/pack"
	"packship/schema"
)

// redriveFlags are the flags of redrive.
type redriveFlags struct {
	filter          operate.RedriveFilter
	since, until    string
	set             []string
	corrections     string
	rateGiven       bool
	execute, asJSON bool
}

func newRedrive(std Streams) *cobra.Command {
	var f redriveFlags
	cmd := &cobra.Command{
		Use:   "redrive",
		Short: "Send failed orders again",
		Long: `redrive makes packed events of failed ones again: the original event with every
field it had, the changes that are asked for, and a new event id. Without
--execute it only tells what it would do.

It never sends what the ledger knows as shipped, and only with --force what may
be shipped. It can be broken off and run again: an order is not sent twice.

--corrections names a table whose first row names its columns: tid, shop_id and
result_id, if they are needed to tell orders apart, and the fields to change.
Only the orders in it are sent then.`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.filter.Reasons, "reason", nil, "only failures for this reason; repeatable")
	flags.StringArrayVar(&f.filter.Classes, "class", nil, "only failures of this class; repeatable")
	flags.StringArrayVar(&f.filter.Shops, "shop", nil, "only orders of this shop; repeatable")
	flags.StringArrayVar(&f.filter.Accounts, "account", nil, "only orders of this account's shops; repeatable")
	flags.StringArrayVar(&f.filter.TIDs, "tid", nil, "only this order; repeatable")
	flags.StringVar(&f.since, "since", "", "only failures from this time on, or so long ago")
	flags.StringVar(&f.until, "until", "", "only failures before this time, or so long ago")
	flags.BoolVar(&f.filter.MaybeShipped, "maybe-shipped", false, "only orders that may be shipped")
	flags.StringArrayVar(&f.set, "set", nil, "FIELD=VALUE: give the events another value, or none; repeatable")
	flags.StringVar(&f.corrections, "corrections", "", "table of changes, order by order")
	flags.IntVar(&f.filter.Limit, "limit", 1000, "send at most so many; 0 is no limit")
	flags.Float64Var(&f.filter.PerSecond, "rate", 0, "send at most so many a second; 0 is no limit (default: the rate of the account)")
	flags.BoolVar(&f.execute, "execute", false, "send them")
	flags.BoolVar(&f.filter.Force, "force", false, "also send what may be shipped, and whatever else you know better")
	flags.BoolVar(&f.asJSON, "json", false, "write the report as JSON")
	cmd.RunE = do(func(ctx context.Context, _ []string) error {
		f.rateGiven = flags.Changed("rate")
		return redrive(ctx, std, &f)
	})
	return cmd
}

// parse turns what was written into a filter.
func (f *redriveFlags) parse(ctx context.Context, std Streams) error {
	now := time.Now()
	var err error
	if f.since != "" {
		if f.filter.Since, err = operate.ParseTime(f.since, now); err != nil {
			return usagef("--since: %v", err)
		}
	}
	if f.until != "" {
		if f.filter.Until, err = operate.ParseTime(f.until, now); err != nil {
			return usagef("--until: %v", err)
		}
	}
	for _, assignment := range f.set {
		change, err := operate.ParseChange(assignment)
		if err != nil {
			return usagef("--set: %v", err)
		}
		f.filter.Set = append(f.filter.Set, change)
	}
	if f.filter.Limit < 0 || !(f.filter.PerSecond >= 0) || math.IsInf(f.filter.PerSecond, 1) {
		return usagef("--limit and --rate are numbers from 0 on")
	}
	if !f.filter.Since.IsZero() && !f.filter.Until.IsZero() && !f.filter.Since.Before(f.filter.Until) {
		return usagef("--since %s does not lie before --until %s", f.since, f.until)
	}
	for _, tid := range f.filter.TIDs {
		if !schema.ValidID(tid) {
			return usagef("--tid: %q is no order id: a whole number from 1 to 9223372036854775807", tid)
		}
	}
	if f.corrections == "" {
		return nil
	}
	var in io.Reader
	if f.corrections == "-" {
		in = std.in(ctx)
	} else {
		file, err := os.Open(f.corrections)
		if err != nil {
			return usagef("--corrections: %v", err)
		}
		defer file.Close() //nolint:errcheck // read only
		in = file
	}
	table, err := pack.Read(in)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return usagef("--corrections: %v", err)
	}
	if f.filter.Corrections, err = operate.ParseCorrections(table); err != nil {
		return usagef("--corrections: %v", err)
	}
	return nil
}

func redrive(ctx context.Context, std Streams, f *redriveFlags) error {
	if err := f.parse(ctx, std); err != nil {
		return err
	}
	return withOperator(ctx, std, app.LoadWithoutToken, func(ctx context.Context, o *operate.Operator, s *app.Settings) error {
		if !f.rateGiven {
			f.filter.PerSecond = s.RatePerSecond
		}
		plan, err := o.PlanRedrive(ctx, f.filter)
		if err != nil {
			return err
		}
		var failed error
		if f.execute {
			failed = o.Redrive(ctx, plan)
		}
		if f.asJSON {
			err = writeJSON(std.Out, plan)
		} else {
			pace := ownPace
			if f.rateGiven && f.filter.PerSecond > 0 {
				pace += " and of --rate"
			}
			err = showRedrive(std, plan, pace)
		}
		if failed != nil {
			return failed
		}
		return err
	})
}

// detailed is how many orders are shown one by one.
const detailed = 20

// byUrgency returns the orders that are refused, those first that somebody has to
// see to: of the others the story went on without this failure.
func byUrgency(orders []operate.RedriveOrder) []operate.RedriveOrder {
	var urgent, over []operate.RedriveOrder
	for _, o := range orders {
		switch o.Refused {
		case "":
		case operate.RefusedShipped, operate.RefusedOrderShipped, operate.RefusedSuperseded, operate.RefusedSent:
			over = append(over, o)
		default:
			urgent = append(urgent, o)
		}
	}
	return append(urgent, over...)
}

func showRedrive(std Streams, p *operate.Redrive, pace string) error {
	w := tabwriter.NewWriter(std.Out, 0, 0, 2, ' ', 0)
	if p.Found > 0 {
		row(w, "REASON\tCLASS\tFOUND\tTO SEND\tREFUSED")
		for _, r := range p.Reasons {
			row(w, "%s\t%s\t%d\t%d\t%d", r.Reason, r.Class, r.Found, r.Selected, r.Refused)
		}
		row(w, "")
	}
	if p.Refused > 0 {
		row(w, "REFUSED\tWHY\tMEANING")
		for _, r := range p.Refusals {
			row(w, "%d\t%s\t%s", r.Count, r.Why, r.Meaning)
		}
		row(w, "")
		shown := 0
		for _, o := range byUrgency(p.Orders) {
			if shown++; shown > detailed {
				row(w, "…\tand %d more; --json lists all", p.Refused-detailed)
				break
			}
			row(w, "order %s\t%s\t%s", o.TID, o.Refused, tame(o.Detail))
		}
		row(w, "")
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, line := range p.Unmatched {
		std.out("line %d of the corrections: no failure of order %s was found\n", line.Line, line.TID)
	}
	if p.Damaged != "" {
		std.err("packship: the ledger is damaged: %s; what was packed before and has no record will not be called for, but fails as outcome_unknown\n", p.Damaged)
	}
	cost := costs(p.Calls, p.Points, p.Seconds, pace)
	switch {
	case p.Found == 0:
		std.out("no failed order fits\n")
	case p.Selected == 0 && p.Refused == 1:
		std.out("nothing is sent: the failure is refused\n")
	case p.Selected == 0:
		std.out("nothing is sent: all %d failures are refused\n", p.Refused)
	case p.Sent < p.Selected && p.Executed:
		std.out("sent %d of %s\n", p.Sent, counted(p.Selected, "order", "orders"))
	case p.Executed:
		std.out("sent %d of %s: %s\n", p.Sent, counted(p.Selected, "order", "orders"), cost)
	default:
		std.out("%s to send: %s\nnothing was sent; --execute sends them\n", counted(p.Selected, "order", "orders"), cost)
	}
	if p.Left > 0 {
		std.out("%s beyond the limit; run it again, or raise --limit\n", counted(p.Left, "more is", "more are"))
	}
	return nil
}
