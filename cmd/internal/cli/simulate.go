package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"packship/upstream/upstreamtest"
)

// simulation is the flags of simulate.
type simulation struct {
	addr, scenario, token string
	latency               time.Duration
	rate                  int
	seed                  uint64
	faults                []string
	asJSON                bool
}

func newSimulate(std Streams) *cobra.Command {
	var s simulation
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Serve a simulated shipping API",
		Long: `simulate serves an API like the real one, for tries and tests: it knows every
shop and order from the first call for it, counts the rate, takes as long as
the real one, and charges. A scenario file says what exists and what goes
wrong; the flags change what it says. When it is stopped it prints what was
called.`,
		Example: `  packship simulate --addr 127.0.0.1:8090
  packship simulate --latency 200ms --fault any_row(55)
  packship simulate --fault '{kind: apply_then_hang, every: 20}' --fault '{kind: http_503, probability: 0.1}'`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&s.addr, "addr", "127.0.0.1:8090", "address to listen on")
	flags.StringVar(&s.scenario, "scenario", "", "scenario file (YAML)")
	flags.DurationVar(&s.latency, "latency", 0, "time that each call takes (default like the real API: 1.1s in the middle, 4s at worst)")
	flags.IntVar(&s.rate, "rate", 0, "calls in any second (default 10, -1 for no limit)")
	flags.Uint64Var(&s.seed, "seed", 0, "fixes what is random")
	flags.StringVar(&s.token, "token", "", "the only good token (default: any token is good)")
	flags.StringArrayVar(&s.faults, "fault", nil, "something that goes wrong: a kind, or a YAML mapping as in a scenario file; repeatable")
	flags.BoolVar(&s.asJSON, "json", false, "write what was called as JSON")
	cmd.RunE = do(func(ctx context.Context, _ []string) error {
		options, err := s.options(flags.Changed("latency"))
		if err != nil {
			return err
		}
		return s.serve(ctx, std, options)
	})
	return cmd
}

// options puts the flags over the scenario.
func (s *simulation) options(fixed bool) (upstreamtest.Options, error) {
	options := upstreamtest.Defaults()
	options.AutoCreate = true
	if _, _, err := net.SplitHostPort(s.addr); err != nil {
		return options, usagef("--addr %q: give host:port, such as 127.0.0.1:8090", s.addr)
	}
	if s.scenario != "" {
		f, err := os.Open(s.scenario)
		if err != nil {
			return options, usagef("--scenario: %v", err)
		}
		defer f.Close() //nolint:errcheck // read only
		if options, err = upstreamtest.LoadScenario(f); err != nil {
			return options, usagef("--scenario %s: %v", s.scenario, err)
		}
	}
	if fixed {
		options.Latency = upstreamtest.Latency{Fixed: s.latency}
	}
	switch {
	case s.rate < -1:
		return options, usagef("--rate %d: give the calls in any second, or -1 for no limit", s.rate)
	case s.rate > 0:
		options.Rate.PerSecond = s.rate
	case s.rate < 0:
		options.Rate = upstreamtest.Rate{}
	}
	if s.seed != 0 {
		options.Seed = s.seed
	}
	if s.token != "" {
		options.Accounts = append(options.Accounts, upstreamtest.Account{Name: "default", Token: s.token})
	}
	for _, text := range s.faults {
		fault, err := parseFault(text)
		if err != nil {
			return options, usagef("--fault %s: %v", text, err)
		}
		options.Faults = append(options.Faults, fault)
	}
	if err := options.Validate(); err != nil {
		return options, usagef("%v", err)
	}
	return options, nil
}

// parseFault reads a kind, or a YAML mapping.
func parseFault(text string) (upstreamtest.Fault, error) {
	if !strings.HasPrefix(strings.TrimSpace(text), "{") {
		fault := upstreamtest.Fault{Kind: upstreamtest.FaultKind(text)}
		return fault, fault.Validate()
	}
	var fault upstreamtest.Fault
	dec := yaml.NewDecoder(strings.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&fault); err != nil {
		return fault, err
	}
	return fault, fault.Validate()
}

func (s *simulation) serve(ctx context.Context, std Streams, options upstreamtest.Options) error {
	sim := upstreamtest.New(options)
	url, err := sim.Start(s.addr) //nolint:contextcheck // it lives until Close
	if err != nil {
		return fmt.Errorf("simulate: %w; give another --addr", err)
	}
	std.err("the simulated shipping API listens; set PACKSHIP_UPSTREAM_URL=%s%s\n", url, upstreamtest.SendPath)
	<-ctx.Done()
	if err := sim.Close(); err != nil {
		return err
	}
	stats, broken := sim.Stats(), sim.Verify()
	if s.asJSON {
		return writeJSON(std.Out, map[string]any{"stats": stats, "violations": broken})
	}
	std.out("calls %d, shipments %d, shipped %d, repeated calls %d, at most %d in a second, %d points\n",
		stats.Calls, stats.Shipments, stats.Applied, stats.Repeats, stats.MaxInAnySecond, stats.TotalCharge)
	for _, v := range broken {
		std.out("the caller broke a rule: %s: %s\n", v.Rule, v.Detail)
	}
	return nil
}
