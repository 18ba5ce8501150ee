package upstreamtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"gopkg.in/yaml.v3"
)

// LoadScenario reads a scenario file: [Options] in YAML, with the names in
// their yaml tags. What the file leaves out is as in [Defaults]; a field that
// does not exist is an error.
func LoadScenario(r io.Reader) (Options, error) {
	opts := Defaults()
	if err := decode(r, &opts); err != nil {
		return Options{}, fmt.Errorf("upstreamtest: read the scenario: %w", err)
	}
	if err := opts.Validate(); err != nil {
		return Options{}, err
	}
	return opts, nil
}

// WriteScenario writes options as a scenario file.
func WriteScenario(w io.Writer, opts Options) error {
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&opts); err != nil {
		return fmt.Errorf("upstreamtest: write the scenario: %w", err)
	}
	return enc.Close()
}

// maxScenario is how much of a scenario file is read.
const maxScenario = 64 << 20

// decode reads one YAML document, or one of JSON, which is YAML too.
func decode(r io.Reader, into any) error {
	data, err := io.ReadAll(io.LimitReader(r, maxScenario))
	if err != nil {
		return err
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
