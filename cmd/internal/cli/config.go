package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"packship/cmd/internal/app"
)

func newConfig(std Streams) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show every setting, its default, its meaning and its present value",
		Args:  cobra.NoArgs,
		RunE: do(func(context.Context, []string) error {
			settings, _ := app.Load(app.PartAll) // what is wrong is for config check to say
			return showSettings(std, settings.Entries(), asJSON)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	cmd.AddCommand(newConfigCheck(std))
	return cmd
}

func showSettings(std Streams, entries []app.Entry, asJSON bool) error {
	if asJSON {
		return writeJSON(std.Out, entries)
	}
	w := tabwriter.NewWriter(std.Out, 0, 0, 2, ' ', 0)
	row(w, "NAME\tDEFAULT\tVALUE\tMEANING")
	for _, e := range entries {
		row(w, "%s\t%s\t%s\t%s", e.Name, dash(e.Default), dash(e.Value), e.Meaning)
	}
	return w.Flush()
}

// row writes a row of a table. Its errors come up when the table is flushed.
func row(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func newConfigCheck(std Streams) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Report everything that is wrong with the settings",
		Args:  cobra.NoArgs,
		RunE: do(func(context.Context, []string) error {
			_, err := app.Load(app.PartAll)
			wrong, ok := errors.AsType[*app.SettingsError](err)
			if asJSON {
				problems := []app.Problem{}
				if ok {
					problems = wrong.Problems
				}
				if err := writeJSON(std.Out, map[string]any{"problems": problems}); err != nil {
					return err
				}
			}
			switch {
			case !ok && asJSON:
				return nil
			case !ok:
				std.out("the settings are fine\n")
				return nil
			case !asJSON:
				for _, p := range wrong.Problems {
					std.err("%s\n", p)
				}
			}
			return errors.Join(errReported, err)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}
