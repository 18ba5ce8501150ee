// Package cli is the commands of packship: it turns arguments, environment and
// files into calls of the packages that do the work, and their results into
// text, JSON and exit codes.
package cli
