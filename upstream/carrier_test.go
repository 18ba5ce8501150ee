package upstream

import (
	"io"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

func TestBuiltInCarriers(t *testing.T) {
	if n := builtIn.Len(); n != 22 {
		t.Errorf("got %d carriers, want 22", n)
	}
	var file struct{ Carriers []carrierEntry }
	if err := yaml.Unmarshal([]byte(builtInCarriers), &file); err != nil {
		t.Fatal(err)
	}
	for _, e := range file.Carriers {
		c := builtIn.byCode[e.Code]
		if c == nil || c.pattern == nil || e.Sample == "" || e.Name == "" {
			t.Errorf("%s: got %+v, want a name, a pattern and a sample", e.Code, c)
			continue
		}
		// A pattern must refute something, and be anchored.
		for _, wrong := range []string{"", "A", e.Sample + "/X", "X/" + e.Sample, strings.Repeat("9", 60)} {
			if c.pattern.MatchString(wrong) && e.Code != "DBL" {
				t.Errorf("%s: pattern %s matches %q", e.Code, c.pattern, wrong)
			}
		}
	}
}

func TestParseCatalogue(t *testing.T) {
	good := `# replaces the built-in one
carriers:
  - code: sf
    name: 顺丰速运
    pattern: '^SF[0-9]{12,14}$'
    sample: sf1234567890123
    check: strict
  - code: JTSD
    disabled: true
    self_contact: false
`
	c, err := ParseCatalogue(strings.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	if c.Len() != 2 || c.byCode["SF"].check != CheckStrict || !c.byCode["SF"].selfContact || !c.byCode["JTSD"].disabled || c.byCode["JTSD"].selfContact {
		t.Errorf("got %+v, %+v", c.byCode["SF"], c.byCode["JTSD"])
	}
	for name, tt := range map[string]struct {
		text string
		want []string
	}{
		"empty":         {"", []string{"EOF"}},
		"no carriers":   {"carriers: []", []string{"lists no carriers"}},
		"not YAML":      {"carriers: [", []string{"carrier catalogue"}},
		"misspelt":      {"carriers:\n  - {code: SF, patern: x}", []string{"patern"}},
		"other":         {"carriers:\n  - {code: other}", []string{"OTHER is no carrier"}},
		"several":       {"carriers:\n  - {code: ''}\n  - {code: A, pattern: '('}\n  - {code: B, check: maybe}\n  - {code: C, pattern: '^X$', sample: Y}\n  - {code: D}\n  - {code: d}", []string{"carrier 1", "carrier 2 (A): pattern", "carrier 3 (B): check", "carrier 4 (C): pattern ^X$ does not match", "carrier 6 (d): listed twice"}},
		"wrong type":    {"carriers: 5", []string{"cannot unmarshal"}},
		"Chinese code":  {"carriers:\n  - {code: 顺丰}", []string{"code must be"}},
		"much too long": {strings.Repeat("#", maxCatalogue+1), []string{"more than"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseCatalogue(strings.NewReader(tt.text))
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in %q", want, err)
				}
			}
		})
	}
	if _, err := ParseCatalogue(io.MultiReader(strings.NewReader("carriers:"), brokenReader{})); err == nil {
		t.Error("no error from a broken reader")
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func FuzzCatalogue(f *testing.F) {
	f.Add(builtInCarriers)
	f.Add("carriers:\n  - {code: SF, pattern: '^SF$', sample: SF, check: warn, disabled: false, self_contact: true}\n")
	f.Add("a: &a [*a]")
	f.Add("carriers: [{code: A}, {code: A}]")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCatalogue(strings.NewReader(text))
		if (c == nil) == (err == nil) {
			t.Fatalf("%q: got %v and %v", text, c, err)
		}
		if err != nil {
			return
		}
		if c.Len() == 0 || c.byCode[carrierOther] != nil {
			t.Fatalf("%q: got %v", text, c.byCode)
		}
		for code, carrier := range c.byCode {
			if code != carrier.code || !carrierCode.MatchString(code) || !carrier.check.valid() {
				t.Fatalf("%q: got %+v", text, carrier)
			}
		}
	})
}
