package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"packship/cmd/internal/app"
	"packship/cmd/internal/operate"
)

// The exit codes.
const (
	exitDone   = 0
	exitFailed = 1 // at run time
	exitUsage  = 2 // wrong usage or settings
)

// Streams are the process's three files.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// out writes for the user. Nobody is told if the user's end is closed.
func (s Streams) out(format string, args ...any) { _, _ = fmt.Fprintf(s.Out, format, args...) }

// err writes about what goes wrong, or on.
func (s Streams) err(format string, args ...any) { _, _ = fmt.Fprintf(s.Err, format, args...) }

// in reads what the user types or sends, until the context ends: what comes of it
// may be a long time in coming.
func (s Streams) in(ctx context.Context) io.Reader {
	r, w := io.Pipe()
	go func() {
		_, err := io.Copy(w, s.In)
		_ = w.CloseWithError(err) // it never fails
	}()
	context.AfterFunc(ctx, func() { _ = w.CloseWithError(context.Cause(ctx)) })
	return r
}

// Main runs the command that the arguments name and returns the exit code. It
// returns when the command is done or the context has ended and everything is
// stopped.
func Main(ctx context.Context, args []string, std Streams) int {
	root := newRoot(std) //nolint:contextcheck // cobra hands the context to the commands
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	if !errors.Is(err, errReported) {
		std.err("packship: %s\n", app.OneLine(explain(cmd, err)))
	}
	return exitCode(err)
}

// explain returns the text of an error. One of cobra's own says only what is
// wrong with the arguments, and gets a word on what to do.
func explain(cmd *cobra.Command, err error) string {
	_, ran := errors.AsType[*runError](err)
	_, ours := errors.AsType[*usageError](err)
	if ran || ours {
		return err.Error()
	}
	return fmt.Sprintf("%v; see %s --help", err, cmd.CommandPath())
}

// errReported is the failure of a command that has already said why.
var errReported = errors.New("failed")

// runError is an error of a command at work. Any other that cobra returns is
// about its usage.
type runError struct{ err error }

func (e *runError) Error() string { return e.err.Error() }

func (e *runError) Unwrap() error { return e.err }

// usageError is wrong usage that only the command itself could find.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

func exitCode(err error) int {
	if _, ok := errors.AsType[*runError](err); !ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*app.SettingsError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*operate.FilterError](err); ok {
		return exitUsage
	}
	return exitFailed
}

// do wraps the work of a command, so that its errors can be told from those of
// its usage.
func do(work func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := work(cmd.Context(), args); err != nil {
			return &runError{err}
		}
		return nil
	}
}

// Commands returns the tree of all commands, for those who write about them.
func Commands() *cobra.Command { return newRoot(Streams{}) }

func newRoot(std Streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "packship",
		Short: "Marks packed orders as shipped",
		Long: `packship reads order-packed events from Kafka, calls the shipping API once per
shipment and within its rate limit, and publishes one shipped or
shipment-failed event for each.

Settings are environment variables that begin with PACKSHIP_;
"packship config" lists them. To see it work without any of that, run
"packship demo".`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          needsCommand,
	}
	root.SetIn(std.In)
	root.SetOut(std.Out)
	root.SetErr(std.Err)
	// What most programs have is there, too.
	build := app.BuildInfo()
	root.Version = build.Version
	root.SetVersionTemplate(versionLine(build))
	root.AddCommand(
		newRun(std),
		newDemo(std),
		newSimulate(std),
		newPack(std),
		newReplay(std),
		newRedrive(std),
		newTrace(std),
		newDLQ(std),
		newTopics(std),
		newConfig(std),
		newSchema(std),
		newVersion(std),
	)
	checkArguments(root)
	return root
}

// checkArguments has the commands that cobra adds refuse what they do not know.
// By themselves they show the help and exit 0.
func checkArguments(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Args = func(_ *cobra.Command, args []string) error {
				if _, rest, err := root.Find(args); err != nil || len(rest) > 0 {
					return usagef("there is no command %q; see packship --help", strings.Join(args, " "))
				}
				return nil
			}
		case "completion":
			cmd.RunE = needsCommand
		}
	}
}

// needsCommand answers a command that only groups others.
func needsCommand(cmd *cobra.Command, _ []string) error {
	return usagef("%s needs a command; see %s --help", cmd.CommandPath(), cmd.CommandPath())
}

// writeJSON writes a value for a program to read.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// isTerminal reports whether a person reads what is written to w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
