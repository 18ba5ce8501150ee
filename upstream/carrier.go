package upstream

import (
	_ "embed" // carriers.yaml
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"gopkg.in/yaml.v3"

	"packship/schema"
)

// Catalogue lists the carriers that the platform behind the API knows.
type Catalogue struct {
	byCode map[string]*carrier
}

type carrier struct {
	code        string
	name        string
	pattern     *regexp.Regexp // nil: any number
	check       WaybillCheck   // "": as the setting says
	disabled    bool
	selfContact bool
}

// carrierEntry is a carrier as a catalogue file writes it.
type carrierEntry struct {
	Code        string       `yaml:"code"`
	Name        string       `yaml:"name"`
	Pattern     string       `yaml:"pattern"`
	Sample      string       `yaml:"sample"`
	Check       WaybillCheck `yaml:"check"`
	Disabled    bool         `yaml:"disabled"`
	SelfContact *bool        `yaml:"self_contact"`
}

//go:embed carriers.yaml
var builtInCarriers string

// builtIn is the catalogue of the program itself.
var builtIn = mustParseCatalogue(builtInCarriers)

func mustParseCatalogue(text string) *Catalogue {
	c, err := ParseCatalogue(strings.NewReader(text))
	if err != nil {
		panic(err)
	}
	return c
}

// maxCatalogue bounds a catalogue file.
const maxCatalogue = 4 << 20

var carrierCode = regexp.MustCompile(`^[A-Z0-9][A-Z0-9_-]{0,39}$`)

// ParseCatalogue reads a carrier catalogue in YAML, which replaces the built-in
// one. It reports all that is wrong with it. A catalogue looks like this:
//
//	carriers:
//	  - code: SF                       # as the platform spells it; needed
//	    name: 顺丰速运                  # for people
//	    pattern: '^SF[0-9]{12,14}$'    # of its waybill numbers, upper case; left out: any number
//	    sample: SF1234567890123        # a number that the pattern must match
//	    check: strict                  # off, warn or strict for this carrier; left out: as the setting says
//	    disabled: true                 # the platform no longer takes it
//	    self_contact: false            # it does not ship parcels that the seller hands over
func ParseCatalogue(r io.Reader) (*Catalogue, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxCatalogue+1))
	if err != nil {
		return nil, fmt.Errorf("upstream: carrier catalogue: %w", err)
	}
	if len(text) > maxCatalogue {
		return nil, fmt.Errorf("upstream: carrier catalogue: more than %d bytes", maxCatalogue)
	}
	var file struct {
		Carriers []carrierEntry `yaml:"carriers"`
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(text)))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		return nil, fmt.Errorf("upstream: carrier catalogue: %w", err)
	}
	if len(file.Carriers) == 0 {
		return nil, errors.New("upstream: carrier catalogue: lists no carriers; without any, every order with a carrier code would fail")
	}
	c := &Catalogue{byCode: make(map[string]*carrier, len(file.Carriers))}
	var errs []error
	for i, entry := range file.Carriers {
		carrier, err := entry.carrier()
		if err != nil {
			errs = append(errs, fmt.Errorf("upstream: carrier catalogue: carrier %d (%s): %w", i+1, entry.Code, err))
			continue
		}
		if c.byCode[carrier.code] != nil {
			errs = append(errs, fmt.Errorf("upstream: carrier catalogue: carrier %d (%s): listed twice", i+1, entry.Code))
		}
		c.byCode[carrier.code] = carrier
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return c, nil
}

func (e *carrierEntry) carrier() (*carrier, error) {
	c := &carrier{
		code: schema.NormalizeCarrier(e.Code), name: e.Name, check: e.Check, disabled: e.Disabled,
		selfContact: e.SelfContact == nil || *e.SelfContact,
	}
	switch {
	case !carrierCode.MatchString(c.code):
		return nil, errors.New("code must be 1 to 40 letters, digits, _ or -")
	case c.code == carrierOther:
		return nil, errors.New("OTHER is no carrier: the platform refuses it")
	case !e.Check.valid():
		return nil, fmt.Errorf("check must be off, warn or strict, got %q", e.Check)
	}
	if e.Pattern == "" {
		return c, nil
	}
	pattern, err := regexp.Compile(e.Pattern)
	if err != nil {
		return nil, fmt.Errorf("pattern: %w", err)
	}
	if e.Sample != "" && !pattern.MatchString(schema.NormalizeWaybill(e.Sample)) {
		return nil, fmt.Errorf("pattern %s does not match the sample %s", e.Pattern, e.Sample)
	}
	c.pattern = pattern
	return c, nil
}

// carrierOther is what some systems send for a carrier that the platform does
// not know. The platform wants the carrier's Chinese name instead.
const carrierOther = "OTHER"

// Len returns the number of carriers.
func (c *Catalogue) Len() int { return len(c.byCode) }
