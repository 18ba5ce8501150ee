package cli

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"packship/cmd/internal/app"
	"packship/cmd/internal/pack"
	"packship/producer"
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
left out; the exit code is then 1.

Whether a shop belongs to an account is for the connector to know and is not
checked here.`,
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

// packer is one run of pack.
type packer struct {
	std            Streams
	format         pack.Format
	dryRun, asJSON bool

	validate func(*schema.Packed) []schema.Violation
	seen     map[schema.Key]place
	events   []event
	report   report
}

// event is a packed event that is right.
type event struct {
	tid     string
	value   []byte
	headers []schema.Header
}

type place struct {
	file string
	line int
}

// report is what pack has to say in the end.
type report struct {
	Lines    int       `json:"lines"`
	Valid    int       `json:"valid"`
	Refused  int       `json:"refused"`
	Produced int       `json:"produced"`
	DryRun   bool      `json:"dry_run"`
	Topic    string    `json:"topic"`
	Findings []finding `json:"findings"`
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
	settings, err := app.Load(parts)
	if err != nil {
		return err
	}
	if p.validate, err = settings.Validator(); err != nil {
		return err
	}
	p.seen = map[schema.Key]place{}
	p.report = report{DryRun: p.dryRun, Topic: settings.TopicPacked, Findings: []finding{}}
	for _, file := range files {
		if err := p.read(file); err != nil {
			return err
		}
	}
	if !p.dryRun && len(p.events) > 0 {
		if err := p.produce(ctx, &settings); err != nil {
			return fmt.Errorf("pack: %d of %d events were produced before this: %w", p.report.Produced, len(p.events), err)
		}
	}
	return p.finish()
}

// read reads a file and notes its events and findings.
func (p *packer) read(file string) error {
	name := file
	in := p.std.In
	if file == "-" {
		name = "stdin"
	} else {
		f, err := os.Open(file) //nolint:gosec // the user names the file
		if err != nil {
			return fmt.Errorf("pack: %w", err)
		}
		defer f.Close() //nolint:errcheck // read only
		in = f
	}
	text, err := pack.Read(in)
	if err != nil {
		return fmt.Errorf("pack: %s: %w", name, err)
	}
	format := p.format
	if format == "" {
		format = pack.Detect(file, text)
	}
	if format == "" {
		return fmt.Errorf("pack: %s is empty", name)
	}
	for line, err := range pack.Lines(text, format) {
		if err != nil {
			return fmt.Errorf("pack: %s: %w", name, err)
		}
		p.take(name, line)
	}
	return nil
}

// take judges one line.
func (p *packer) take(file string, line pack.Line) {
	p.report.Lines++
	found := finding{File: file, Line: line.Number, TID: line.TID, Violations: line.Violations, Warnings: line.Warnings}
	if line.Packed != nil {
		found.Violations = append(line.Malformed(), p.validate(line.Packed)...)
		key := line.Packed.Shipment.Key()
		if first, ok := p.seen[key]; ok {
			found.Warnings = append(found.Warnings, fmt.Sprintf("the same shipment as line %d of %s; it is called for once", first.line, first.file))
		} else {
			p.seen[key] = place{file, line.Number}
		}
	}
	found.Refused = len(found.Violations) > 0 || line.Packed == nil
	if found.Refused {
		p.report.Refused++
	} else {
		p.report.Valid++
		p.events = append(p.events, event{line.Packed.TID, line.Value, pack.Headers(line.Packed)})
	}
	if len(found.Violations)+len(found.Warnings) > 0 {
		p.report.Findings = append(p.report.Findings, found)
	}
}

// producers is how many events are under way at once; those of one order stay
// in order.
const producers = 32

func (p *packer) produce(ctx context.Context, settings *app.Settings) error {
	k := app.NewKafka(settings, nil, settings.TopicPacked)
	defer k.Close()
	if err := k.Connect(ctx); err != nil {
		return err
	}
	out, err := producer.New(producer.Config{
		Client: k.Client, PackedTopic: settings.TopicPacked,
		ShippedTopic: settings.TopicShipped, FailedTopic: settings.TopicFailed, DeadLetterTopic: settings.TopicDLQ,
		Source: "packship/pack", Principal: settings.Principal(), Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() { stopped <- out.Run(running) }()
	err = p.send(ctx, settings.TopicPacked, out)
	stop()
	return errors.Join(err, <-stopped)
}

// patience is how long one event may take to be acknowledged.
const patience = 10 * time.Second

func (p *packer) send(ctx context.Context, topic string, out *producer.Producer) error {
	bar := newProgress(p.std.Err, "produced", len(p.events))
	defer bar.close()
	var lanes [producers][]event
	for _, e := range p.events {
		lane := crc32.ChecksumIEEE([]byte(e.tid)) % producers
		lanes[lane] = append(lanes[lane], e)
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, lane := range lanes {
		group.Go(func() error {
			for _, e := range lane {
				limit, cancel := context.WithTimeout(ctx, patience)
				err := out.Produce(limit, topic, []byte(e.tid), e.value, e.headers)
				cancel()
				if err != nil {
					return fmt.Errorf("order %s: %w", e.tid, err)
				}
				bar.add(1)
			}
			return nil
		})
	}
	err := group.Wait()
	p.report.Produced = bar.count()
	return err
}

// finish writes the report.
func (p *packer) finish() error {
	r := &p.report
	if p.asJSON {
		if err := writeJSON(p.std.Out, r); err != nil {
			return err
		}
	} else {
		for _, f := range r.Findings {
			p.std.out("%s", f)
		}
		did := fmt.Sprintf("%d produced to %s", r.Produced, r.Topic)
		if r.DryRun {
			did = "none produced (dry run)"
		}
		p.std.out("%d lines: %d valid, %d refused; %s\n", r.Lines, r.Valid, r.Refused, did)
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
func (f finding) String() string {
	var b strings.Builder
	where := fmt.Sprintf("%s:%d", f.File, f.Line)
	if f.TID != "" {
		where += " tid " + f.TID
	}
	for _, v := range f.Violations {
		fmt.Fprintf(&b, "%s: refused: %s\n", where, strings.TrimSpace(v.Rule+" "+v.Message))
	}
	for _, text := range f.Warnings {
		fmt.Fprintf(&b, "%s: warning: %s\n", where, text)
	}
	return b.String()
}
