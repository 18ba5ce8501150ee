package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"packship/cmd/internal/app"
	"packship/cmd/internal/pack"
	"packship/schema"
)

func newPack(std Streams) *cobra.Command {
	p := packer{std: std}
	var format string
	cmd := &cobra.Command{
		Use:   "pack FILE...",
		Short: "Validate orders from JSON lines or CSV and produce packed events",
		Long: `pack reads orders from JSON lines, or from CSV whose first row names the
fields, validates each, and produces a packed event for each that is right.
A file called "-" is standard input. Lines that are wrong are reported and
left out; the exit code is then 1. Files may be UTF-8, GB18030, or UTF-16, and
of any size: they are read line by line.

In CSV, a cell of items lists the order's items with their quantities, if they
are known: 1001:2;1002:1.

Which account a shop belongs to, and which shops are omni-channel shops, is for
the connector to know and is not checked here.`,
		Args: cobra.MinimumNArgs(1),
		RunE: do(func(ctx context.Context, files []string) error {
			switch p.format = pack.Format(format); p.format {
			case "", pack.CSV, pack.JSONL:
			default:
				return usagef("--format is %q but must be jsonl or csv", format)
			}
			return p.run(ctx, files)
		}),
	}
	cmd.Flags().StringVar(&format, "format", "", "jsonl or csv (default: by the file's name, then by its content)")
	cmd.Flags().BoolVar(&p.dryRun, "dry-run", false, "validate only")
	cmd.Flags().BoolVar(&p.asJSON, "json", false, "write the report as JSON")
	return cmd
}

// packer is one run of pack. Files are read line by line: what is wrong with a
// line is reported and what is right is produced before the next ones are read,
// so that it does not matter how many there are.
type packer struct {
	std            Streams
	format         pack.Format
	dryRun, asJSON bool

	settings app.Settings
	validate func(*schema.Packed) []schema.Violation
	seen     shipments
	out      *outlet // nil until the first event is to be produced
	bar      *progress
	report   report
	findings int
	unsaid   error // why something of the report could not be written
}

// report is what pack has to say in the end. In JSON the findings, which are
// written as they come, are the first field of the same object.
type report struct {
	Lines    int    `json:"lines"`
	Valid    int    `json:"valid"`
	Refused  int    `json:"refused"`
	Produced int    `json:"produced"`
	DryRun   bool   `json:"dry_run"`
	Topic    string `json:"topic"`
}

// finding is what there is to say of one line, or of a file if Line is 0.
type finding struct {
	File       string             `json:"file"`
	Line       int                `json:"line,omitempty"`
	TID        string             `json:"tid,omitempty"`
	Refused    bool               `json:"refused"`
	Violations []schema.Violation `json:"violations,omitempty"`
	Warnings   []string           `json:"warnings,omitempty"`
}

func (p *packer) run(ctx context.Context, files []string) error {
	parts := app.PartOrders
	if !p.dryRun {
		parts |= app.PartKafka
	}
	var err error
	if p.settings, err = app.Load(parts); err != nil {
		return err
	}
	if p.validate, err = p.settings.Validator(); err != nil {
		return err
	}
	p.report = report{DryRun: p.dryRun, Topic: p.settings.TopicPacked}
	size, err := sizeOf(files)
	if err != nil {
		return err
	}
	p.bar = newProgress(p.std.Err, "read", size)
	if p.asJSON {
		p.say("{\n  \"findings\": [")
	}
	for _, file := range files {
		if err = p.read(ctx, file); err != nil {
			break
		}
	}
	var failed error
	if p.out != nil {
		failed = p.out.close()
		p.report.Produced = p.out.produced()
	}
	if errors.Is(err, errStuck) || err != nil && ctx.Err() != nil {
		err = cmp.Or(failed, context.Cause(ctx))
	} else {
		err = errors.Join(err, failed)
	}
	p.bar.clear()
	if err == nil {
		err = p.finish()
		return errors.Join(err, p.unsaid)
	}
	if p.asJSON {
		err = errors.Join(err, p.total())
	}
	if p.report.Produced > 0 {
		return fmt.Errorf("pack: %d events were produced before this, and to pack them again does no harm: %w", p.report.Produced, err)
	}
	return fmt.Errorf("pack: %w", err)
}

// sizeOf checks that the files can be read, before anything is produced of the
// first, and returns how many bytes there are; what comes on standard input does
// not count.
func sizeOf(files []string) (int, error) {
	var size int64
	for _, file := range files {
		if file == "-" {
			continue
		}
		f, err := os.Open(file) //nolint:gosec // the user names the file
		if err != nil {
			return 0, fmt.Errorf("pack: %w", err)
		}
		info, err := f.Stat()
		_ = f.Close() // nothing was written
		if err != nil {
			return 0, fmt.Errorf("pack: %w", err)
		}
		if info.IsDir() {
			return 0, fmt.Errorf("pack: %s is a directory; name the files in it", file)
		}
		size += info.Size()
	}
	return int(size), nil
}

// read sees a file through.
func (p *packer) read(ctx context.Context, file string) error {
	name := file
	var in io.Reader
	if file == "-" {
		name, in = "stdin", p.std.in(ctx)
	} else {
		f, err := os.Open(file) //nolint:gosec // the user names the file
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // read only
		in = &watched{in: f, bar: p.bar}
	}
	opened, err := pack.Open(file, in, p.format)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for line, err := range opened.Lines() {
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := p.take(ctx, name, line); err != nil {
			return err
		}
	}
	return nil
}

// watched is a file whose reading is shown.
type watched struct {
	in  io.Reader
	bar *progress
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.in.Read(b)
	w.bar.add(n)
	return n, err
}

// take judges one line, and produces its event if that is right.
func (p *packer) take(ctx context.Context, file string, line pack.Line) error {
	p.report.Lines++
	found := finding{File: file, Line: line.Number, TID: line.TID, Violations: line.Violations, Warnings: line.Warnings}
	if line.Packed != nil {
		found.Violations = append(line.Malformed(), p.validate(line.Packed)...)
		if first, ok := p.seen.before(line.Packed.Shipment.Key(), place{file, line.Number}); ok {
			found.Warnings = append(found.Warnings, fmt.Sprintf("the same shipment as line %d of %s; it is called for once", first.line, first.file))
		}
	}
	found.Refused = len(found.Violations) > 0 || line.Packed == nil
	if len(found.Violations)+len(found.Warnings) > 0 {
		if err := p.tell(&found); err != nil {
			return err
		}
	}
	if found.Refused {
		p.report.Refused++
		return nil
	}
	p.report.Valid++
	if p.dryRun {
		return nil
	}
	if p.out == nil {
		var err error
		if p.out, err = newOutlet(ctx, &p.settings); err != nil {
			return err
		}
	}
	return p.out.put(event{line.Packed.TID, line.Value, pack.Headers(line.Packed)})
}

// say writes a part of the report. What was refused would not be known to
// anybody if that were lost without a word.
func (p *packer) say(format string, args ...any) {
	if _, err := fmt.Fprintf(p.std.Out, format, args...); p.unsaid == nil {
		p.unsaid = err
	}
}

// tell writes a finding.
func (p *packer) tell(f *finding) error {
	p.findings++
	if !p.asJSON {
		p.bar.clear() // it stands in the line that the finding would begin in
		p.say("%s", f)
		return nil
	}
	text, err := json.Marshal(f)
	if err != nil {
		return err
	}
	comma := ","
	if p.findings == 1 {
		comma = ""
	}
	p.say("%s\n    %s", comma, text)
	return nil
}

// total ends the JSON report with the numbers.
func (p *packer) total() error {
	text, err := json.MarshalIndent(p.report, "", "  ")
	if err != nil {
		return err
	}
	end := "],"
	if p.findings > 0 {
		end = "\n  ],"
	}
	p.say("%s%s\n", end, strings.TrimPrefix(string(text), "{"))
	return nil
}

// finish ends the report.
func (p *packer) finish() error {
	r := &p.report
	if p.asJSON {
		if err := p.total(); err != nil {
			return err
		}
	} else {
		did := fmt.Sprintf("%d produced to %s", r.Produced, r.Topic)
		if r.DryRun {
			did = "none produced (dry run)"
		}
		p.say("%d lines: %d valid, %d refused; %s\n", r.Lines, r.Valid, r.Refused, did)
	}
	if r.Refused > 0 {
		if p.asJSON {
			return errReported
		}
		return fmt.Errorf("%d of %d lines were refused; correct them and pack those lines again", r.Refused, r.Lines)
	}
	return nil
}

// String returns the finding as lines of text.
func (f *finding) String() string {
	var b strings.Builder
	where := fmt.Sprintf("%s:%d", f.File, f.Line)
	if f.TID != "" {
		where += " tid " + tame(f.TID)
	}
	for _, v := range f.Violations {
		fmt.Fprintf(&b, "%s: refused: %s\n", where, tame(strings.TrimSpace(v.Rule+" "+v.Message)))
	}
	for _, text := range f.Warnings {
		fmt.Fprintf(&b, "%s: warning: %s\n", where, tame(text))
	}
	return b.String()
}

type place struct {
	file string
	line int
}

// shipments remembers where shipments were seen, to warn of those that are there
// twice: the last hundred thousand of them at least. A repetition that it misses
// does no harm, since the ledger knows it.
type shipments struct{ young, old map[schema.Key]place }

const maxShipments = 100_000

// before returns where the shipment was seen first, and else notes the place.
func (s *shipments) before(key schema.Key, here place) (first place, ok bool) {
	if first, ok = s.young[key]; ok {
		return first, true
	}
	if first, ok = s.old[key]; ok {
		return first, true
	}
	if len(s.young) >= maxShipments {
		s.old, s.young = s.young, nil
	}
	if s.young == nil {
		s.young = map[schema.Key]place{}
	}
	s.young[key] = here
	return place{}, false
}
