package app

import (
	"bytes"
	"errors"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"
)

// Problem is one thing that is wrong with the settings.
type Problem struct {
	Name string `json:"name"` // the variable's name
	Text string `json:"problem"`
}

// String returns the problem as one sentence.
func (p Problem) String() string { return p.Name + " " + p.Text }

// SettingsError tells all problems of the settings at once.
type SettingsError struct{ Problems []Problem }

func (e *SettingsError) Error() string {
	texts := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		texts[i] = p.String()
	}
	return "settings: " + strings.Join(texts, "; ")
}

// fieldOfType is how the YAML reader tells of a field that is not there. The type
// is none of the reader's business.
var fieldOfType = regexp.MustCompile(`( not found) in type \S+`)

// OneLine makes one line of an error's text that has several, as those of YAML
// files and joined errors have.
func OneLine(text string) string {
	var b strings.Builder
	for line := range strings.Lines(fieldOfType.ReplaceAllString(text, "$1")) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		switch so := b.String(); {
		case so == "":
		case strings.HasSuffix(so, ":"):
			b.WriteString(" ")
		default:
			b.WriteString("; ")
		}
		b.WriteString(line)
	}
	return b.String()
}

// Part is a group of settings. A command that does not talk to the shipping API
// does not insist on its token.
type Part int

// The parts of the settings, to be combined with |.
const (
	PartKafka    Part = 1 << iota // brokers, topics, ledger
	PartOrders                    // what an order must look like
	PartUpstream                  // the shipping API and its accounts
	PartServer                    // the process: HTTP, logs

	PartAll = PartKafka | PartOrders | PartUpstream | PartServer
)

// partOf tells to which part a setting belongs, by its name without the prefix.
func partOf(name string) Part {
	first, _, _ := strings.Cut(name, "_")
	switch first {
	case "KAFKA", "TOPIC", "LEDGER":
		return PartKafka
	case "CARRIERS", "WAYBILL":
		return PartOrders
	case "HTTP", "ADMIN", "LOG", "SHUTDOWN":
		return PartServer
	default:
		return PartUpstream
	}
}

// nobody is a prefix that no environment variable has: under it every setting
// has its default.
const nobody = "packship, unset"

// Defaults returns the settings of an empty environment.
func Defaults() Settings {
	var s Settings
	if err := envconfig.Process(nobody, &s); err != nil {
		panic(err) // a default tag that cannot be parsed
	}
	return s
}

// Load reads the settings from the environment and checks the given parts. The
// error, if any, is a [*SettingsError] with every problem that there is.
//
// Fields are read one by one, because envconfig stops at the first error and
// puts the raw value into its message, which might be a secret.
func Load(parts Part) (Settings, error) {
	s := Settings{given: map[string]bool{}, signals: readSignals(os.Getenv)}
	var problems []Problem
	value := reflect.ValueOf(&s).Elem()
	broken := map[string]bool{}
	for _, f := range fields() {
		name := f.name
		prefix := Prefix
		if os.Getenv(variable(name)) == "" {
			prefix = nobody // envconfig would take an empty variable for a value
		} else {
			s.given[name] = true
		}
		one := reflect.New(reflect.StructOf([]reflect.StructField{f.field}))
		if err := envconfig.Process(prefix, one.Interface()); err != nil {
			problems = append(problems, Problem{variable(name), unparsable(f.field.Type, err)})
			broken[name] = true
			continue
		}
		value.FieldByIndex(f.field.Index).Set(one.Elem().Field(0))
	}
	s.normalize()
	for _, p := range s.check(parts, broken) {
		if !broken[strings.TrimPrefix(p.Name, Prefix+"_")] {
			problems = append(problems, p)
		}
	}
	problems = slices.DeleteFunc(problems, func(p Problem) bool {
		return partOf(strings.TrimPrefix(p.Name, Prefix+"_"))&parts == 0
	})
	problems = append(problems, misspelt(os.Environ())...)
	if len(problems) > 0 {
		return s, &SettingsError{Problems: problems}
	}
	return s, nil
}

// variable returns the environment variable of a setting.
func variable(name string) string { return Prefix + "_" + name }

// field is a setting with its name as envconfig spells it, without the prefix.
type field struct {
	name  string
	field reflect.StructField
}

// fields lists the settings in the order of their declaration.
func fields() []field {
	var keys bytes.Buffer
	if err := envconfig.Usagef("", &Settings{}, &keys, "{{range .}}{{usage_key .}}\n{{end}}"); err != nil {
		panic(err) // the template is constant
	}
	names := strings.Fields(keys.String())
	var list []field
	for f := range reflect.TypeFor[Settings]().Fields() {
		if f.IsExported() {
			list = append(list, field{names[len(list)], f})
		}
	}
	return list
}

// unparsable says what a value should have been, without showing it.
func unparsable(t reflect.Type, err error) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "is not a duration; write it like 500ms, 15s or 168h"
	case reflect.TypeFor[int]():
		return "is not a whole number"
	case reflect.TypeFor[float64]():
		return "is not a number"
	}
	if parse, ok := errors.AsType[*envconfig.ParseError](err); ok {
		return parse.Err.Error()
	}
	return "cannot be read"
}

// normalize forgives white space and letter case where they carry no meaning.
func (s *Settings) normalize() {
	for _, p := range []*string{
		&s.KafkaStart, &s.Assignment, &s.UnknownShop, &s.UnknownPolicy, &s.WaybillCheck, &s.LogLevel, &s.LogFormat,
	} {
		*p = strings.ToLower(strings.TrimSpace(*p))
	}
	s.KafkaSASLMechanism = strings.ToUpper(strings.TrimSpace(s.KafkaSASLMechanism))
	s.UpstreamURL = strings.TrimSpace(s.UpstreamURL)
	s.HTTPAddr = strings.TrimSpace(s.HTTPAddr)
}

// Entry is a setting as `packship config` shows it.
type Entry struct {
	Name    string `json:"name"`
	Default string `json:"default"`
	Meaning string `json:"meaning"`
	Value   string `json:"value"`
	Given   bool   `json:"given"` // set in the environment
}

// Entries lists all settings with their present values, secrets redacted. A
// value that cannot be parsed is shown as it stands.
func (s *Settings) Entries() []Entry {
	var list []Entry
	for _, f := range fields() {
		e := Entry{
			Name:    variable(f.name),
			Default: f.field.Tag.Get("default"),
			Meaning: f.field.Tag.Get("desc"),
			Given:   s.given[f.name],
		}
		e.Value = e.Default
		if e.Given {
			e.Value = os.Getenv(e.Name)
		}
		if f.field.Type == reflect.TypeFor[Secret]() {
			e.Value = Secret(e.Value).String()
		}
		// The password in a URL is refused by the check, but must not be shown
		// on the way there.
		if u, err := url.Parse(e.Value); err == nil && u.User != nil {
			e.Value = u.Redacted()
		}
		list = append(list, e)
	}
	return list
}

// serviceLink matches what Kubernetes injects into a Pod for every Service of
// its namespace whose name begins with packship.
var serviceLink = regexp.MustCompile(`^PACKSHIP(?:_[A-Z0-9]+)*?_(?:(SERVICE_HOST)|(SERVICE_PORT(?:_[A-Z0-9_]+)?)|(PORT|PORT_[0-9]+_(?:TCP|UDP|SCTP))|(PORT_[0-9]+_(?:TCP|UDP|SCTP)_(?:PROTO|PORT|ADDR)))$`)

var (
	linkHost = regexp.MustCompile(`^[0-9A-Fa-f.:]+$`)
	linkPort = regexp.MustCompile(`^[0-9]+$`)
	linkURL  = regexp.MustCompile(`^(?:tcp|udp|sctp)://`)
)

// isServiceLink reports whether a variable has the name and the form of value
// of a service link. By its name alone PACKSHIP_HTTP_PORT would be one too.
func isServiceLink(name, value string) bool {
	m := serviceLink.FindStringSubmatch(name)
	switch {
	case m == nil:
		return false
	case m[1] != "":
		return linkHost.MatchString(value)
	case m[2] != "":
		return linkPort.MatchString(value)
	case m[3] != "":
		return linkURL.MatchString(value)
	default:
		return true
	}
}

// misspelt reports the variables of the environment that have packship's prefix
// and no meaning. An empty one does no harm.
func misspelt(environ []string) []Problem {
	known := map[string]bool{}
	for _, f := range fields() {
		known[variable(f.name)] = true
	}
	var problems []Problem
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		switch {
		case !strings.HasPrefix(name, Prefix+"_"), known[name], value == "", isServiceLink(name, value),
			strings.HasPrefix(name, Prefix+"_TEST_"): // the test suites' own
			continue
		}
		text := "is not a setting; `packship config` lists them"
		if guess := nearest(name, known); guess != "" {
			text = "is not a setting; did you mean " + guess + "?"
		}
		problems = append(problems, Problem{name, text})
	}
	slices.SortFunc(problems, func(a, b Problem) int { return strings.Compare(a.Name, b.Name) })
	return problems
}

// nearest returns the known name that is closest to a misspelt one, "" if none
// is close.
func nearest(name string, known map[string]bool) string {
	best, least := "", 1+len(name)/5
	for candidate := range known {
		d := Distance(name, candidate)
		// A name that lacks a word, like PACKSHIP_BROKERS, is far by letters.
		if strings.HasSuffix(candidate, strings.TrimPrefix(name, Prefix)) {
			d = min(d, 2)
		}
		if d < least || d == least && best != "" && candidate < best {
			best, least = candidate, d
		}
	}
	return best
}

// Distance is the number of letters to insert, delete or replace to make b of a.
func Distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
