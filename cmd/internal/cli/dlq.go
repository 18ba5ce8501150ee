package cli

import (
	"context"
	"encoding/hex"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"packship/cmd/internal/app"
	"packship/cmd/internal/operate"
)

func newDLQ(std Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dlq",
		Short: "See to the dead letters: records that are no packed event",
		Args:  cobra.NoArgs,
		RunE:  needsCommand,
	}
	cmd.AddCommand(newDLQList(std), newDLQShow(std), newDLQResend(std), newDLQDone(std))
	return cmd
}

// letterArg takes the id of a dead letter.
func letterArg(cmd *cobra.Command, args []string) error {
	if err := cobra.ExactArgs(1)(cmd, args); err != nil {
		return err
	}
	_, _, err := operate.ParseLetterID(args[0])
	return err
}

// letterArgs takes the ids of dead letters.
func letterArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.MinimumNArgs(1)(cmd, args); err != nil {
		return err
	}
	for _, id := range args {
		if _, _, err := operate.ParseLetterID(id); err != nil {
			return err
		}
	}
	return nil
}

func newDLQList(std Streams) *cobra.Command {
	var f operate.LetterFilter
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the dead letters that are not done",
		Args:  cobra.NoArgs,
		RunE: do(func(ctx context.Context, _ []string) error {
			return withOperator(ctx, std, loadKafka, func(ctx context.Context, o *operate.Operator, _ *app.Settings) error {
				letters, err := o.DeadLetters(ctx, f)
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(std.Out, map[string]any{"reasons": operate.CountLetters(letters), "letters": letters})
				}
				return showLetters(std, letters)
			})
		}),
	}
	cmd.Flags().StringArrayVar(&f.Reasons, "reason", nil, "only those for this reason; repeatable")
	cmd.Flags().BoolVar(&f.All, "all", false, "also those that are marked as done")
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

func showLetters(std Streams, letters []operate.Letter) error {
	if len(letters) == 0 {
		std.out("no dead letters\n")
		return nil
	}
	w := tabwriter.NewWriter(std.Out, 0, 0, 2, ' ', 0)
	row(w, "ID\tTIME\tREASON\tSOURCE\tKEY\tBYTES\tDETAIL")
	for _, l := range letters {
		reason := dash(l.Reason)
		if l.Done {
			reason += " (done)"
		}
		row(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s", l.ID, l.Time.UTC().Format(time.DateTime), reason, dash(l.Source), dash(printable(l.Key, 24)), l.Bytes, dash(printable(l.Detail, 80)))
	}
	row(w, "")
	row(w, "COUNT\tREASON")
	for _, c := range operate.CountLetters(letters) {
		row(w, "%d\t%s", c.Count, dash(c.Reason))
	}
	return w.Flush()
}

// tame returns a text that others wrote in one line, without anything that could
// move a terminal's cursor or turn its writing round.
func tame(text string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, text)
}

// printable returns the beginning of a tame text.
func printable(text string, limit int) string {
	text = tame(text)
	if runes := []rune(text); len(runes) > limit {
		return string(runes[:limit-1]) + "…"
	}
	return text
}

func newDLQShow(std Streams) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show a dead letter: its headers and its value, as text or, if it is none, in hex",
		Args:  letterArg,
		RunE: do(func(ctx context.Context, args []string) error {
			return withOperator(ctx, std, loadKafka, func(ctx context.Context, o *operate.Operator, _ *app.Settings) error {
				l, err := o.DeadLetter(ctx, args[0])
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(std.Out, operate.Show(l))
				}
				return showLetter(std, l)
			})
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

func showLetter(std Streams, l operate.Letter) error {
	w := tabwriter.NewWriter(std.Out, 0, 0, 2, ' ', 0)
	const long = 1000
	row(w, "id\t%s", l.ID)
	row(w, "time\t%s", l.Time.UTC().Format(time.RFC3339Nano))
	key := "-"
	if l.Record.Key != nil {
		key = printable(string(l.Record.Key), long)
	}
	row(w, "key\t%s", key)
	for _, h := range l.Record.Headers {
		row(w, "header %s\t%s", printable(h.Key, long), printable(string(h.Value), long))
	}
	value := l.Record.Value
	row(w, "value\t%d bytes", len(value))
	if err := w.Flush(); err != nil {
		return err
	}
	switch {
	case value == nil:
		std.out("\n(no value)\n")
	case isText(value):
		std.out("\n%s\n", strings.TrimSuffix(string(value), "\n"))
	default:
		std.out("\n%s", hex.Dump(value))
	}
	return nil
}

// isText reports whether a person can read bytes as they are.
func isText(b []byte) bool {
	if !utf8.Valid(b) {
		return false
	}
	for _, r := range string(b) {
		if !unicode.IsPrint(r) && r != '\n' && r != '\t' && r != '\r' && r != '\ufeff' {
			return false
		}
	}
	return true
}

func newDLQResend(std Streams) *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "resend ID",
		Short: "Send a dead letter to the packed topic, as it was or with a corrected value",
		Args:  letterArg,
		RunE: do(func(ctx context.Context, args []string) error {
			value, err := readValue(ctx, std, file)
			if err != nil {
				return err
			}
			return withOperator(ctx, std, loadKafka, func(ctx context.Context, o *operate.Operator, s *app.Settings) error {
				l, err := o.DeadLetter(ctx, args[0])
				if err != nil {
					return err
				}
				still, err := o.Resend(ctx, l, value)
				if err != nil {
					return err
				}
				if still != nil {
					std.err("packship: it is still no packed event (%s: %s) and will be a dead letter again; correct it with --value\n", still.Reason, still.Detail)
				}
				if asJSON {
					return writeJSON(std.Out, map[string]any{"id": l.ID, "topic": s.TopicPacked, "packed_event": still == nil})
				}
				std.out("sent dead letter %s to %s\n", l.ID, s.TopicPacked)
				if still == nil {
					std.out("take it off the list with: packship dlq done %s\n", l.ID)
				}
				return nil
			})
		}),
	}
	cmd.Flags().StringVar(&file, "value", "", `file that holds the value to send instead; "-" is standard input`)
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

// readValue reads the value that is to be sent, nil if no file is named.
func readValue(ctx context.Context, std Streams, file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	var value []byte
	var err error
	if file == "-" {
		if value, err = io.ReadAll(std.in(ctx)); ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	} else {
		value, err = os.ReadFile(file) //nolint:gosec // the user names the file
	}
	if err != nil {
		return nil, usagef("--value: %v", err)
	}
	if len(value) == 0 {
		return nil, usagef("--value: %s is empty", file)
	}
	return value, nil
}

func newDLQDone(std Streams) *cobra.Command {
	var before bool
	cmd := &cobra.Command{
		Use:   "done ID…",
		Short: "Mark dead letters as done, so that they are not listed any more",
		Args:  letterArgs,
		RunE: do(func(ctx context.Context, args []string) error {
			return withOperator(ctx, std, loadKafka, func(ctx context.Context, o *operate.Operator, _ *app.Settings) error {
				n, err := o.MarkDone(ctx, args, before)
				if err != nil {
					return err
				}
				if n == 0 {
					std.out("nothing to mark: done already\n")
					return nil
				}
				std.out("%s done; `packship dlq list --all` still shows what is done\n", counted(n, "dead letter is", "dead letters are"))
				return nil
			})
		}),
	}
	cmd.Flags().BoolVar(&before, "before", false, "also all before it in its partition")
	return cmd
}
