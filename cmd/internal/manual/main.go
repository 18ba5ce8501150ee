// The manual command writes the manual pages of all commands, for whoever packages packship:
//
//	go run ./cmd/internal/manual DIR
//
// It is a program of its own so that what turns help into pages is no part of
// packship.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra/doc"

	"packship/cmd/internal/app"
	"packship/cmd/internal/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "manual: name the folder for the pages, and nothing else")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
	fmt.Println("wrote the manual pages to", os.Args[1])
}

// write writes a page for each command into a folder, which it makes if it is
// missing.
func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // manual pages are for everybody
		return err
	}
	root := cli.Commands()
	root.DisableAutoGenTag = true
	return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "packship " + app.BuildInfo().Version, Manual: "packship"}, dir)
}
